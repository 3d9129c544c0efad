"""The run of one trial: a session, its run folder, and its checkpoints, one per report.

A trial's folder is a run folder like any other: `seqrl report` and `seqrl evaluate` read it. Rows that were
written after the report a trial was taken up from again are marked `rolled_back`.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ObjectLostError

from seqrl_ray.algorithms.rllib_settings import is_rllib
from seqrl_ray.errors import DivergedError
from seqrl_ray.loops import checkpoints
from seqrl_ray.loops.drive import Advance
from seqrl_ray.loops.evaluate import POLICY
from seqrl_ray.loops.living import LivingSession, Replay, saved_learned
from seqrl_ray.loops.local import LocalSession
from seqrl_ray.loops.run_folder import RunFolder
from seqrl_ray.recipe import Recipe
from seqrl_ray.runtime.colocated import ColocatedSession
from seqrl_ray.runtime.metrics import open_exporter
from seqrl_ray.runtime.session import Placement
from seqrl_ray.tune.score import headline
from seqrl_ray.tune.space import Values

CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class Stretch:
    """What a trial did until its next report."""

    env_steps: int
    diverged: bool


class TrialRun:
    """A run that is trained from report to report."""

    def __init__(
        self, recipe: Recipe, folder: Path, placement: Placement | None, *, checkpoint: Path | None = None
    ) -> None:
        """Begin a run, or take it up from a checkpoint of its own.

        Args:
            recipe: of this trial.
            folder: of this trial.
            placement: of its processes; None: all in this one.
            checkpoint: to go on from.
        """
        self.folder_path, self.recipe = folder, recipe
        self._own: dict[str, Any] = {} if checkpoint is None else checkpoints.load(checkpoint, "trial")
        clock_s = float(self._own.get("clock_s", 0.0))
        if checkpoint is None and folder.exists():
            shutil.rmtree(folder)  # of a first report that never was: the board knows nothing of it
        if checkpoint is not None:
            roll_back(folder / "metrics.jsonl", int(self._own["metrics_bytes"]))
            drop_after(folder / CHECKPOINTS, checkpoint.name)
        root = folder / CHECKPOINTS
        self.session: LivingSession
        if is_rllib(recipe.algorithm["name"]):
            from seqrl_ray.rllib.launch import trial_session  # seconds that the others need not wait

            self.session = trial_session(recipe, placement, root=root, clock_s=clock_s, resume=checkpoint)
        elif placement is None:
            self.session = LocalSession(recipe, resume=checkpoint)
        else:
            session = ColocatedSession(recipe, placement, root=root, clock_s=clock_s, resume=checkpoint)
            session.gives_up_diverged = True
            self.session = session
        self.folder = RunFolder(
            folder,
            recipe,
            resumed=checkpoint is not None,
            clock_s=clock_s,
            listener=open_exporter(recipe),
        )
        self.env_steps = int(self._own.get("env_steps", 0))
        self.values: Values = {}
        self._train_s = float(self._own.get("train_s", 0.0))
        self._last: dict[str, Any] = {}

    def train(self, env_steps: int, mend: Callable[[], None]) -> Stretch:
        """Train until `env_steps` are made, or the budget is spent.

        Args:
            env_steps: of the run, in all.
            mend: called after a learner was restored from a checkpoint.
        """
        while True:
            began, before = time.monotonic(), self.env_steps
            try:
                advance = self.session.advance_to(env_steps, self.recipe.learner.report_every_s)
            except DivergedError as error:
                self.folder.change("diverged", env_steps=self.env_steps, why=str(error))
                return Stretch(self.env_steps, True)
            took = time.monotonic() - began
            self._train_s += took
            self._write(advance, took, before)
            if any(failure.what == "learner" for failure in advance.failures):
                mend()
            if advance.done or self.env_steps >= env_steps:
                return Stretch(self.env_steps, False)

    def judge(self, seeds: Sequence[int]) -> list[float]:
        """Return the headline metric of one greedy episode per seed."""
        self.folder.trained()  # training waits meanwhile: nobody is to miss its updates
        ends = self.session.judge_now(seeds)
        at = {"env_steps": self.env_steps, "updates": int(self._last.get("updates", 0))}
        self.folder.evaluation(POLICY, ends, **at, final=False)
        return headline(ends, self.recipe.evaluation.headline)

    def save(self) -> str:
        """Write a checkpoint and return its name."""
        self.folder.flush()
        own = {
            "env_steps": self.env_steps,
            "clock_s": self.folder.at_s(),
            "train_s": self._train_s,
            "metrics_bytes": (self.folder_path / "metrics.jsonl").stat().st_size,
        }
        times = {"train_s": self._train_s, "next_judge_steps": 0, "next_judge_updates": 0}
        driver = {"clock_s": own["clock_s"], "times": times}  # a trial can be gone on with as a run
        root = self.folder_path / CHECKPOINTS
        self.session.save(root, {"trial": own, "driver": driver}, wait=True)
        return checkpoints.latest(root).name

    def learned(self) -> Any:
        """Return a list of one reference to a copy of what was learned."""
        found = self.session.learned()
        return found if isinstance(found, list) else [ray.put(found)]

    def adopt(self, learned: Any, donor: Path | None, replay: Replay) -> None:
        """Go on from what a donor had learned.

        Args:
            learned: from the donor's `learned`; None, or lost by now: read it from the checkpoint.
            donor: the donor's checkpoint; None: begin with new parameters.
            replay: what becomes of this run's replay.
        """
        if donor is None:
            self.session.adopt(None)
            return
        own = isinstance(self.session, LocalSession)
        if learned is not None:
            try:
                self.session.adopt(ray.get(learned[0]) if own else learned, replay=replay, donor=donor)
                return
            except ObjectLostError:  # its owner died
                pass
        saved = saved_learned(donor)
        self.session.adopt(saved if own else [ray.put(saved)], replay=replay, donor=donor)

    def set_values(self, values: Mapping[str, Any]) -> None:
        """Change searched keys in the living run."""
        self.session.set_values(values)
        self.values = dict(values)

    def prune(self, keep: Collection[str]) -> None:
        """Drop the checkpoints that nobody needs any more."""
        for folder in checkpoints.complete(self.folder_path / CHECKPOINTS):
            if folder.name not in keep:
                shutil.rmtree(folder)

    def note(self, event: str, **fields: Any) -> None:
        """Write a line about a change into the run's metrics."""
        self.folder.change(event, env_steps=self.env_steps, **fields)

    def end(self, status: str) -> None:
        """Write `summary.json`."""
        names = ("env_steps", "agent_steps", "updates", "episodes", "samples_per_insert")
        counters = {name: self._last.get(name, 0) for name in names}
        counters["env_steps"] = self.env_steps
        self.folder.summary(status, {**counters, "train_s": self._train_s}, self.session.lag)

    def close(self) -> None:
        """End the run's processes and files."""
        self.session.close()
        self.folder.close()

    def _write(self, advance: Advance, took: float, before: int) -> None:
        row = advance.row
        self.env_steps = int(row["env_steps"])
        took = max(took, 1e-9)
        row["env_steps_per_s"] = (self.env_steps - before) / took
        row["updates_per_s"] = (int(row["updates"]) - int(self._last.get("updates", row["updates"]))) / took
        row.update({f"hparam/{name}": value for name, value in self.values.items()})
        self._last = row
        for finished in advance.finished:
            self.folder.episodes(finished.ends, actor=finished.actor, env_steps=self.env_steps)
        self.folder.report(row)
        for failure in advance.failures:
            self.folder.restarts[failure.what] += 1
            self.folder.failure(**vars(failure))


def roll_back(metrics: Path, size: int) -> int:
    """Mark the rows of a metrics file after its first `size` bytes as rolled back; return how many."""
    if not metrics.is_file():
        return 0
    text = metrics.read_bytes()
    marked = []
    for line in text[size:].splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue  # cut short by a kill
        marked.append(json.dumps({**row, "rolled_back": True}).encode())
    partial = metrics.with_name(metrics.name + ".partial")
    partial.write_bytes(text[:size] + b"".join(line + b"\n" for line in marked))
    os.replace(partial, metrics)
    return len(marked)


def drop_after(root: Path, name: str) -> None:
    """Drop the checkpoints, whole or half, that were begun after `name`."""
    for folder in root.iterdir():
        if folder.is_dir() and folder.name > name:
            shutil.rmtree(folder)
