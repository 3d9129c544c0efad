"""Who else hears of a run's rows: the seam between the run folder and what exports metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

PROCESSES = ("actor", "shard", "learner", "board", "evaluator", "policy_server", "node")
"""Kinds of process that may die and be replaced, and what may take several of them along."""


class Listener(Protocol):
    """Hears what goes to `metrics.jsonl`; `seqrl_ray.runtime.metrics.Exporter` is one."""

    def row(self, kind: str, row: Mapping[str, Any]) -> None:
        """Take a row; its values may be NaN, where the file has null."""
        ...

    def trained(self) -> None:
        """Training is over, or stands still for an evaluation; the run is not over."""
        ...

    def close(self) -> None:
        """Nothing more will come; closing twice is harmless."""
        ...


class Nobody:
    """Hears nothing."""

    def row(self, kind: str, row: Mapping[str, Any]) -> None: ...
    def trained(self) -> None: ...
    def close(self) -> None: ...
