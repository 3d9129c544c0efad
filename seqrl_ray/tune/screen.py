"""What people watch while a sweep goes on: a line now and then, from what Tune hears of its trials."""

from __future__ import annotations

import sys
import time
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayError

from seqrl_ray.tune.plan import Plan

EVERY_S = 10.0


class Screen(tune.Callback):
    """A callback of Tune's that writes progress lines and counts the trials that came to their end."""

    def __init__(self, plan: Plan, *, quiet: bool) -> None:
        self.plan, self.quiet = plan, quiet
        self.board: Any = None
        """The population's board, where there is one."""
        self.all_done = False
        self._steps: dict[str, int] = {}
        self._best: tuple[float, str] | None = None
        self._said_at = -1e9

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Hear a row of a trial."""
        self._steps[trial.trial_id] = int(result.get("env_steps", 0))
        if not self.quiet and time.monotonic() - self._said_at >= EVERY_S:
            self._said_at = time.monotonic()
            self.say(self._line(trials))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Hear that a trial's process failed; Tune begins it again while it may."""
        self.say(f"trial {trial.config.get('trial', trial.trial_id)} failed; its log: {trial.error_file}")

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """See whether every trial came to its end."""
        budget = self.plan.sweep.budget.env_steps
        ended = [t for t in trials if int((t.last_result or {}).get("env_steps", 0)) >= budget]
        stopped = [t for t in trials if t.status == "TERMINATED" and (t.last_result or {}).get("done")]
        self.all_done = len({t.trial_id for t in [*ended, *stopped]}) == len(trials)

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
        """Tune saves its callbacks; a handle of an actor is nobody's state."""
        return {**self.__dict__, "board": None}
