"""What people watch while a sweep goes on: a line now and then, from what Tune hears of its trials."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayError

from seqrl_ray.tune.board import DEFAULT, read_log
from seqrl_ray.tune.plan import Plan
from seqrl_ray.tune.trainable import number_of

TRIALS = "trials.jsonl"
EVERY_S = 10.0


class Screen(tune.Callback):
    """A callback of Tune's that writes progress lines and counts the trials that came to their end."""

    def __init__(self, plan: Plan, *, quiet: bool) -> None:
        self.plan, self.quiet = plan, quiet
        self.board: Any = None
        """The population's board, where there is one."""
        self.after_step: Callable[[], None] | None = None
        """Called often while trials go on: what keeps a copy of the folder."""
        self.all_done = False
        self.log: Path | None = None
        """Where every score of a trial under Tune's schedulers is written."""
        self._steps: dict[str, int] = {}
        self._reports: dict[int, int] = {}
        self._said_at = -1e9
        self._started = time.monotonic()

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Hear a row of a trial."""
        self._steps[trial.trial_id] = int(result.get("env_steps", 0))
        if self.log is not None and "score" in result:
            self._write(self.log, trial, result)
        if not self.quiet and time.monotonic() - self._said_at >= EVERY_S:
            self._said_at = time.monotonic()
            self.say(self._line(trials))

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Hear that Tune has looked round once more."""
        if self.after_step is not None:
            self.after_step()

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Hear that a trial's process failed; Tune begins it again while it may."""
        self.say(f"trial {trial.config.get('trial', trial.trial_id)} failed; its log: {trial.error_file}")

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """See whether every trial came to its end."""
        budget = self.plan.sweep.budget.env_steps
        ended = [t for t in trials if int((t.last_result or {}).get("env_steps", 0)) >= budget]
        stopped = [t for t in trials if t.status == "TERMINATED" and self.log is not None]  # by a scheduler
        self.all_done = len({t.trial_id for t in [*ended, *stopped]}) == len(trials)

    def _write(self, log: Path, trial: Any, result: dict[str, Any]) -> None:
        """Write a score of a trial as a board's log has it."""
        if not self._reports:  # a resumed sweep's rows go on from those before it
            for row in read_log(log):
                self._reports[row["member"]] = row["report"]
                self._started = min(self._started, time.monotonic() - row["at_s"])
        member = DEFAULT if trial.config.get("trial") == DEFAULT else number_of(trial.trial_id)
        self._reports[member] = self._reports.get(member, 0) + 1
        score = float(result["score"])
        found = {name: result.get(f"hparam/{name}") for name in self.plan.sweep.search}
        values = {name: value for name, value in found.items() if value is not None}
        row = {
            "event": "default" if member == DEFAULT else "report",
            "member": member,
            "report": self._reports[member],
            "env_steps": int(result["env_steps"]),
            "score": score if math.isfinite(score) else None,
            "score_text": None if math.isfinite(score) else str(score),
            "last": bool(result.get("done")),
            "before": values,
            "decision": {"action": "go on", "values": values, "donor": None, "donor_report": None},
            "at_s": round(time.monotonic() - self._started, 3),
        }
        with log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def say(self, text: str) -> None:
        """Write one line."""
        if not self.quiet:
            sys.stderr.write(f"{self.plan.sweep.name}: {text}\n")
            sys.stderr.flush()

    def _line(self, trials: list[Any]) -> str:
        budget = self.plan.sweep.budget.env_steps * max(1, len(trials))
        done = sum(self._steps.values())
        parts = [f"{min(1.0, done / budget):4.0%}", f"{done:,} steps of {len(trials)} trials"]
        try:
            standing = ray.get(self.board.standing.remote(), timeout=5.0) if self.board is not None else None
        except RayError:
            standing = None  # a board that begins again answers the next time
        if standing and standing["winner"] is not None:
            metric = self.plan.base.evaluation.headline
            parts.append(f"best {metric} {standing['score']:.4g} (member {standing['winner']})")
            parts.append(f"{standing['copies']} copies")
        return " | ".join(parts)

    def __getstate__(self) -> dict[str, Any]:
        """Tune saves its callbacks; a handle of an actor, or a thread, is nobody's state."""
        return {**self.__dict__, "board": None, "after_step": None}
