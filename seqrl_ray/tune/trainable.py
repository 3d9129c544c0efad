"""What Ray Tune runs: a trial is one actor of Tune's that holds a whole run.

`PopulationTrial` belongs to `pbt` in place: it lives from the first step to the last, and only its board
decides. `SearchTrial` belongs to Tune's own schedulers, which stop it, or pause it and begin it again with
another's checkpoint.
"""

from __future__ import annotations

import json
import os
import time
import zlib
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray import tune

from seqrl_ray.loops import checkpoints
from seqrl_ray.loops.living import saved_learned
from seqrl_ray.runtime.session import Placement
from seqrl_ray.tune.board import DEFAULT, Answer, Joined
from seqrl_ray.tune.member import Member, Terms
from seqrl_ray.tune.plan import Plan
from seqrl_ray.tune.room import Room, pinned
from seqrl_ray.tune.run import CHECKPOINTS, TrialRun
from seqrl_ray.tune.score import score

ROW_S = 1.0
"""Tune hears of a trial at most this often; the board hears of every report."""

START_S = 120.0
"""How long a member waits for the last one to start, once."""

POINTER = "checkpoint.json"
KEPT = 4
"""Checkpoints of a `SearchTrial` that are kept: a paused trial's, and those others may still copy."""


def folder_of(root: Path, trial: int) -> Path:
    """Return the run folder of a trial of the sweep in `root`."""
    return root / "default" if trial == DEFAULT else root / "members" / f"{trial:02d}"


def number_of(trial_id: str) -> int:
    """Return the number of a trial of Tune's: its place where Tune counts, else one that its id gives."""
    _, counted, place = trial_id.rpartition("_")
    return int(place) if counted and place.isdigit() else zlib.crc32(trial_id.encode()) % 1_000_000


class RemoteBoard:
    """The board as a member sees it: an actor elsewhere."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor

    def join(self, member: int) -> Joined:
        """See `Board.join`."""
        joined: Joined = ray.get(self.actor.join.remote(member))
        return joined

    def report(self, member: int, report: int, env_steps: int, score: float, **details: Any) -> Answer:
        """See `Board.report`."""
        answer: Answer = ray.get(self.actor.report.remote(member, report, env_steps, score, **details))
        return answer


class PopulationTrial(tune.Trainable):
    """A member, or the default beside the population; Tune's config names which."""

    def setup(  # type: ignore[override]  # Tune's with_parameters adds the rest
        self, config: dict[str, Any], *, plan: Plan, root: Path, room: Room, board: Any
    ) -> None:
        """Join the board and begin, or take up, the run."""
        placement = pinned(room.placement(plan.base), room)
        _few_threads(plan, placement)
        number = int(config["trial"])
        metric = plan.base.evaluation
        terms = Terms(
            plan.sweep.scheduler.report_env_steps,
            plan.sweep.budget.env_steps,
            tuple(plan.score_seeds),
            plan.sweep.scheduler.replay,
        )
        self.member = Member(
            number,
            terms,
            RemoteBoard(board),
            partial(_make_run, plan, root, placement, number),
            score=partial(
                score, statistic=plan.sweep.score.statistic, lower_is_better=metric.lower_is_better
            ),
            checkpoint_of=lambda member, name: folder_of(root, member) / CHECKPOINTS / name,
        )
        until = time.monotonic() + START_S
        while number != DEFAULT and time.monotonic() < until and not ray.get(board.all_here.remote()):
            time.sleep(0.05)

    def step(self) -> dict[str, Any]:
        """Go on for a second at least, and to the next report."""
        if self.member.done:  # taken up again after its end
            return {"env_steps": self.member.run.env_steps, "done": True}
        until = time.monotonic() + ROW_S
        while True:
            row = self.member.advance()
            if row["done"] or time.monotonic() >= until:
                return row

    def cleanup(self) -> None:
        """End the run's processes."""
        if hasattr(self, "member"):
            self.member.close()


def _make_run(plan: Plan, root: Path, placement: Placement | None, number: int, joined: Joined) -> TrialRun:
    folder = folder_of(root, number)
    recipe = plan.recipe(None if number == DEFAULT else number, joined.values)
    checkpoint = None if joined.checkpoint is None else folder / CHECKPOINTS / joined.checkpoint
    return TrialRun(recipe, folder, placement, checkpoint=checkpoint)


class SearchTrial(tune.Trainable):
    """A run whose values are the config's."""

    def setup(  # type: ignore[override]  # Tune's with_parameters adds the rest
        self, config: dict[str, Any], *, plan: Plan, root: Path, room: Room
    ) -> None:
        """Begin the run, or take it up from its newest checkpoint."""
        placement = pinned(room.placement(plan.base), room)
        _few_threads(plan, placement)
        self.plan = plan
        self.number = DEFAULT if "trial" in config else number_of(str(self.trial_id))
        folder = folder_of(root, self.number)
        found = checkpoints.complete(folder / CHECKPOINTS)
        values = self._values(config)
        recipe = plan.recipe(None if self.number == DEFAULT else self.number, values)
        self.run = TrialRun(recipe, folder, placement, checkpoint=found[-1] if found else None)
        self.run.values = dict(values)

    def step(self) -> dict[str, Any]:
        """Train until the next report."""
        goal = self.run.env_steps + self.plan.sweep.scheduler.report_env_steps
        goal = min(goal - goal % self.plan.sweep.scheduler.report_env_steps, self.plan.sweep.budget.env_steps)
        if self.run.env_steps >= self.plan.sweep.budget.env_steps:
            return {"env_steps": self.run.env_steps, "done": True}
        stretch = self.run.train(goal, lambda: None)
        found = float("nan")
        if not stretch.diverged:
            found = score(
                self.run.judge(self.plan.score_seeds),
                self.plan.sweep.score.statistic,
                lower_is_better=self.plan.base.evaluation.lower_is_better,
            )
        done = stretch.diverged or stretch.env_steps >= self.plan.sweep.budget.env_steps
        self.run.save()
        self.run.prune([c.name for c in checkpoints.complete(self.run.folder_path / CHECKPOINTS)[-KEPT:]])
        if done:
            self.run.end("failed" if stretch.diverged else "completed")
        return {
            "score": found,
            "fitness": self._fitness(found),
            "env_steps": stretch.env_steps,
            "done": done,
            **{f"hparam/{name}": value for name, value in self.run.values.items()},
        }

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Point to the run's newest checkpoint; Tune's folders hold no replay."""
        newest = checkpoints.latest(self.run.folder_path / CHECKPOINTS) if self.run.env_steps else None
        pointer = {"trial": self.number, "checkpoint": None if newest is None else str(newest)}
        (Path(checkpoint_dir) / POINTER).write_text(json.dumps(pointer), encoding="utf-8")

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Take over what another trial had learned; its own state is taken up in `setup` already."""
        pointer = json.loads((Path(checkpoint) / POINTER).read_text(encoding="utf-8"))
        if pointer["trial"] != self.number and pointer["checkpoint"] is not None:
            donor = Path(pointer["checkpoint"])
            learned = saved_learned(donor)
            own = [ray.put(learned)]
            self.run.adopt(own, donor, self.plan.sweep.scheduler.replay)
            self.run.note("copy", donor=pointer["trial"], values=self.run.values)
        if self.run.values and self.run.env_steps:
            self.run.set_values(self.run.values)

    def cleanup(self) -> None:
        """End the run's processes."""
        if hasattr(self, "run"):
            self.run.close()

    def _values(self, config: dict[str, Any]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name, dimension in self.plan.sweep.search.items():
            if name in config:
                value = config[name]
                values[name] = round(value) if dimension.integer else value
        return values

    def _fitness(self, found: float) -> float:
        """Higher is better, and what is not finite is worst: Tune's schedulers pass NaN over."""
        if found != found or found in (float("inf"), float("-inf")):
            return -1e30
        return -found if self.plan.base.evaluation.lower_is_better else found


def _few_threads(plan: Plan, placement: Placement | None) -> None:
    """Trials share the cores: a trial that is one process uses the threads its recipe names, else one."""
    if placement is not None:
        return
    import torch

    threads = plan.base.learner.threads
    count = 1 if threads == "auto" else int(threads)
    os.environ["OMP_NUM_THREADS"] = str(count)
    torch.set_num_threads(count)
