"""Reading a sweep's folder for its report: the lives of its trials, from the board's log or Tune's trials'.

A kill can leave a half-written last line in a log: it is left out.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seqrl_ray.errors import RunFolderError

LOGS = ("board.jsonl", "trials.jsonl")
"""Of a population's board; of trials under Ray Tune's schedulers."""


@dataclass(frozen=True)
class Report:
    """One score of one trial."""

    env_steps: int
    score: float | None
    """None where it was not finite."""
    before: Mapping[str, Any]
    """Values that the score was made under."""
    after: Mapping[str, Any]
    action: str
    donor: int | None
    donor_report: int | None
    at_s: float


@dataclass(frozen=True)
class Sweep:
    """What a sweep's folder holds."""

    path: Path
    settings: Mapping[str, Any]
    summary: Mapping[str, Any]
    lives: Mapping[int, Sequence[Report]]
    """Member -> its reports, in order."""
    default: Sequence[Report]
    keys: tuple[str, ...] = ()
    chain: Sequence[Mapping[str, Any]] = field(default=())
    """Segments that made the winner, the oldest first."""

    @property
    def winner(self) -> int | None:
        """Number of the winning member."""
        found = self.summary.get("winner")
        return None if not isinstance(found, Mapping) else int(found["member"])

    @property
    def metric(self) -> str:
        """The headline metric."""
        return str((self.summary.get("score") or {}).get("metric", "score"))

    @property
    def lower_is_better(self) -> bool:
        """Direction of the headline metric."""
        return bool((self.summary.get("score") or {}).get("lower_is_better", False))

    @property
    def statistic(self) -> str:
        """What a score is of its episodes."""
        return str((self.summary.get("score") or {}).get("statistic", "mean"))


def read_sweep(path: Path) -> Sweep:
    """Read a sweep's folder. Raises: RunFolderError: it is none, or a file in it cannot be read."""
    if not (path / "sweep.toml").is_file():
        raise RunFolderError(f"sweep={path} holds no sweep.toml: it is not a sweep. Name a sweep's own.")
    settings = tomllib.loads((path / "sweep.toml").read_text(encoding="utf-8"))
    summary: dict[str, Any] = {}
    if (path / "summary.json").is_file():
        summary = json.loads((path / "summary.json").read_text(encoding="utf-8"))
    rows = [row for name in LOGS for row in _rows(path / name)]
    lives: dict[int, list[Report]] = {}
    default: list[Report] = []
    for row in rows:
        if row["event"] == "default":
            default.append(_report(row))
        elif row["event"] == "report":
            lives.setdefault(int(row["member"]), []).append(_report(row))
    winner = summary.get("winner")
    return Sweep(
        path,
        settings,
        summary,
        {member: lives[member] for member in sorted(lives)},
        default,
        tuple(sorted(settings.get("search", {}))),
        (winner or {}).get("chain", ()),
    )


def _report(row: Mapping[str, Any]) -> Report:
    decision = row.get("decision") or {}
    before = row.get("before") or {}
    return Report(
        int(row["env_steps"]),
        row["score"],
        before,
        decision.get("values") or before,
        str(decision.get("action", "go on")),
        decision.get("donor"),
        decision.get("donor_report"),
        float(row["at_s"]),
    )


def _rows(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            if number == len(path.read_text(encoding="utf-8").splitlines()):
                break
            raise RunFolderError(f"{path}:{number} is not JSON: the log is damaged.") from None
    return rows
