"""The weight board: the newest two versions of every policy's weights, for whoever asks.

The board owns the arrays it serves (the learner sends them), so a dead learner takes no weights with it. It
may be restarted empty at any time: the learner publishes again.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from seqrl_ray.runtime.wire import pack
from seqrl_ray.types import Weights

KEPT = 2


class WeightBoard:
    """A plain object; the runtime makes a Ray actor of it."""

    def __init__(self) -> None:
        self._versions: dict[str, list[Weights]] = {}

    def publish(self, weights: Mapping[str, Weights]) -> None:
        """Take new weights of some policies; an older version than the newest held is ignored."""
        for policy_id, new in weights.items():
            held = self._versions.setdefault(policy_id, [])
            if not held or new.version >= held[-1].version:
                if held and held[-1].version == new.version:
                    held.pop()  # the same parameters, further progress
                self._versions[policy_id] = [*held, new][-KEPT:]

    def newest(self, have: Mapping[str, tuple[int, int]]) -> dict[str, Weights]:
        """Return the newest weights of every policy whose version is not the one the caller has."""
        return {p: held[-1] for p, held in self._versions.items() if held[-1].version != have.get(p)}

    def pull(self, have: Mapping[str, tuple[int, int]]) -> Any:
        """Return (`newest(have)`, share of the run's budget that is spent), packed for the way."""
        weights = self.newest(have)
        progress = max((held[-1].progress for held in self._versions.values()), default=0.0)
        return pack((weights, progress), [w.flat for w in weights.values()])

    def versions(self) -> dict[str, list[tuple[int, int]]]:
        """Versions held, oldest first."""
        return {p: [w.version for w in held] for p, held in self._versions.items()}

    def pid(self) -> int:
        """Process id, for kill tests and for people."""
        return os.getpid()
