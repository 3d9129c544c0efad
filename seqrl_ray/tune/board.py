"""The population board: `Population` with a log that survives it, hosted by one Ray actor.

Every decision is a line of `board.jsonl`, on disk before anybody hears of it. A board that begins in a folder
with a log reads it and goes on: after its own death, or after the driver's. Who may write the log is whoever
holds the lock on it, so the board of a sweep that is still dying cannot disturb one that resumes it.

A member saves a checkpoint before it reports, and the log names it: what the log says can always be gone on
from. What a donor had learned travels as a reference to its newest copy in Ray's object store; if that is
lost, the donor's checkpoint has it too.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from seqrl_ray.errors import RunFolderError
from seqrl_ray.tune.population import Decision, Population, Rules
from seqrl_ray.tune.space import Space, Values

LOG = "board.jsonl"
LOCK_S = 60.0
"""How long a resumed sweep waits for the processes of the one before it to end."""

DEFAULT = -1
"""Number of the trial beside the population that trains the base recipe."""


@dataclass(frozen=True)
class Joined:
    """What a member that begins, or begins again, is told."""

    values: Values
    report: int
    checkpoint: str | None
    """Of its newest report; None = it begins from nothing."""
    decision: Decision | None
    """Of its newest report: to be carried out again, the checkpoint is from before it."""
    donor_checkpoint: str | None


@dataclass(frozen=True)
class Answer:
    """What a member that has reported is told."""

    decision: Decision
    learned: Any
    """What stands for the donor's learned state; None = read its checkpoint."""
    donor_checkpoint: str | None
    keep: frozenset[str]
    """Names of the member's checkpoints that are still needed; the others may go."""


class Board:
    """Hears reports, decides, and remembers; the sweep makes a Ray actor of it."""

    def __init__(self, folder: Path, space: Space, rules: Rules, size: int, seed: int) -> None:
        """Begin a log, or go on with the one that is there.

        Raises: RunFolderError: another process keeps the log.
        """
        self._lock = lock(folder / f"{LOG}.lock")
        rows = read_log(folder / LOG)
        self._file = open(folder / LOG, "a", encoding="utf-8")  # noqa: SIM115  held as long as the board
        self._clock_s = max((float(row["at_s"]) for row in rows), default=0.0)
        self._started = time.monotonic()
        self._checkpoints: dict[tuple[int, int], str] = {}
        self._learned: dict[int, tuple[int, Any]] = {}
        self._default = 0
        self._here: set[int] = set()
        self.copies = 0
        if rows:
            self.population = Population.from_rows(space, rules, rows)
            for row in rows:
                self._remember(row)
            sessions = sum(row["event"] == "resumed" for row in rows)
            self._write({"event": "resumed", "session": sessions + 2})
        else:
            self.population = Population(space, rules, size, seed)
            self._write(self.population.begin_row())

    def join(self, member: int) -> Joined:
        """Tell a member where it stands."""
        self._here.add(member)
        if member == DEFAULT:
            at = self._default
            return Joined({}, at, self._checkpoints.get((DEFAULT, at)), None, None)
        one = self.population.members[member]
        at = one.report
        return Joined(
            dict(one.values),
            at,
            self._checkpoints.get((member, at)),
            one.decision,
            self._donor_checkpoint(one.decision),
        )

    def report(
        self,
        member: int,
        report: int,
        env_steps: int,
        score: float,
        *,
        last: bool,
        checkpoint: str,
        learned: Any = None,
        episodes: list[float] | None = None,
    ) -> Answer:
        """Hear a score, decide, and write it down.

        Args:
            member: who; DEFAULT for the trial beside the population, which is only noted.
            report: number of the report, from 1.
            env_steps: steps the member has made.
            score: in the metric's unit; may be NaN.
            last: its budget is spent.
            checkpoint: name of the checkpoint that it has saved for this report.
            learned: what stands for what it had learned when it saved.
            episodes: what the score is a statistic of.
        """
        extra = {"checkpoint": checkpoint, "episodes": episodes}
        if member == DEFAULT:
            if report > self._default:
                finite = score if math.isfinite(score) else None
                row = {"report": report, "env_steps": env_steps, "score": finite, "last": last}
                self._log({"event": "default", **row, **extra})
            keep = frozenset({self._checkpoints[DEFAULT, self._default]})
            return Answer(Decision("go on", {}), None, None, keep)
        decision, row = self.population.report(member, report, env_steps, score, last=last)
        if row:
            self._log({**row, **extra})
        if learned is not None:
            self._learned[member] = (report, learned)
        pinned = {self._checkpoints[member, r] for r in self.population.pinned(member)}
        return Answer(
            decision,
            self._donor_learned(decision),
            self._donor_checkpoint(decision),
            frozenset({self._checkpoints[member, self.population.members[member].report], *pinned}),
        )

    def all_here(self) -> bool:
        """Whether every member has joined: the first need not run ahead of the last by the time that starting
        a process takes.
        """
        return len(self._here - {DEFAULT}) == len(self.population.members)

    def standing(self) -> dict[str, Any]:
        """Return what people watch: the best score, whose it is, copies so far."""
        winner = self.population.winner()
        return {
            "winner": winner,
            "score": None if winner is None else self.population.members[winner].score,
            "copies": self.copies,
            "env_steps": sum(m.env_steps for m in self.population.members),
        }

    def pid(self) -> int:
        """Process id, for kill tests and for people."""
        return os.getpid()

    def _donor_learned(self, decision: Decision) -> Any:
        held = self._learned.get(decision.donor) if decision.donor is not None else None
        return held[1] if held is not None and held[0] == decision.donor_report else None

    def _donor_checkpoint(self, decision: Decision | None) -> str | None:
        if decision is None or decision.donor is None or decision.donor_report is None:
            return None
        return self._checkpoints[decision.donor, decision.donor_report]

    def _log(self, row: Mapping[str, Any]) -> None:
        self._write(row)
        self._remember(row)

    def _remember(self, row: Mapping[str, Any]) -> None:
        if row["event"] == "default":
            self._default = row["report"]
            self._checkpoints[DEFAULT, row["report"]] = row["checkpoint"]
        elif row["event"] == "report":
            self._checkpoints[row["member"], row["report"]] = row["checkpoint"]
            self.copies += row["decision"]["action"] == "copy"

    def _write(self, row: Mapping[str, Any]) -> None:
        at_s = round(self._clock_s + time.monotonic() - self._started, 3)
        self._file.write(json.dumps({**row, "at_s": at_s}) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a board's log; a last line that a kill cut short never was, and is taken away."""
    if not path.is_file():
        return []
    text = path.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if len(whole) < len(text):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    return rows_of(whole)


def rows_of(text: bytes) -> list[dict[str, Any]]:
    """Return the whole rows of a log's content."""
    return [json.loads(line) for line in text[: text.rfind(b"\n") + 1].splitlines()]


def named(rows: Iterable[Mapping[str, Any]]) -> set[tuple[int, str]]:
    """Return (trial, name) of the checkpoints that a log goes on from: each trial's newest, and those that
    others copied and have not reported since.
    """
    names: dict[tuple[int, int], str] = {}
    newest: dict[int, Mapping[str, Any]] = {}
    for row in rows:
        if row["event"] in ("report", "default"):
            trial = DEFAULT if row["event"] == "default" else int(row["member"])
            names[trial, row["report"]] = row["checkpoint"]
            newest[trial] = row
    found = {(trial, str(row["checkpoint"])) for trial, row in newest.items()}
    for row in newest.values():
        decision = row.get("decision") or {}
        if decision.get("donor") is not None:
            found.add((decision["donor"], names[decision["donor"], decision["donor_report"]]))
    return found


def lock(path: Path, patience_s: float = LOCK_S) -> IO[str]:
    """Return an open file that nobody else can lock while it is open; the death of its process frees it.

    Raises: RunFolderError: another process has held it all the while.
    """
    file = open(path, "a", encoding="utf-8")  # noqa: SIM115  held as long as its owner
    until = time.monotonic() + patience_s
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except BlockingIOError:
            if time.monotonic() >= until:
                file.close()
                raise RunFolderError(
                    f"{path} is held by another process: the sweep is still going on there. Wait for it, or "
                    "end it."
                ) from None
            time.sleep(0.1)
