"""Driving a run: the same loop for a local session and for a Ray session.

A session trains for a while when told to, saves, and judges. `drive` decides when: reports, checkpoints,
evaluations in between, the budget, Ctrl-C, the final evaluation, `summary.json` and the report. It is on no
data path.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Protocol

from seqrl_ray.loops.evaluate import POLICY
from seqrl_ray.loops.judge import Job
from seqrl_ray.loops.run_folder import LagCounter, RunFolder
from seqrl_ray.loops.trainer import Finished
from seqrl_ray.recipe import Recipe
from seqrl_ray.types_env import EpisodeEnd


@dataclass(frozen=True)
class Failure:
    """One death that the run survived."""

    what: str
    """One of `listener.PROCESSES`."""
    at_s: float
    recover_s: float | None
    lost_steps: int = 0
    lost_updates: int = 0
    diverged: bool = False
    """A learner's weights had been lost to NaN or infinity."""


@dataclass
class Advance:
    """What a session did in one stretch of training."""

    row: dict[str, Any]
    """Counts and losses; at least env_steps, agent_steps, updates, episodes, progress."""
    finished: list[Finished] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    judged: list[tuple[dict[str, int], list[EpisodeEnd]]] = field(default_factory=list)
    """({"env_steps", "updates"} of the weights, episodes) of evaluations in between that have ended."""
    notes: list[str] = field(default_factory=list)
    """Lines for people; a session that has one comes back before its time."""
    done: bool = False
    save: bool = False
    """A checkpoint is wanted now: the place where the learner stands is about to go."""


class Session(Protocol):
    """A run in being."""

    @property
    def recipe(self) -> Recipe:
        """What is run, as it stands."""
        ...

    @property
    def lag(self) -> LagCounter:
        """Policy lag of the fragments inserted, in updates."""
        ...

    def advance(self, seconds: float) -> Advance:
        """Train for about this long, or until the budget is spent."""
        ...

    def save(self, root: Path, trees: Mapping[str, Any], *, wait: bool) -> None:
        """Write a checkpoint of the session and `trees` under `root`; `wait` until it exists."""
        ...

    def judge_interim(self, seeds: Sequence[int]) -> None:
        """Begin (or do) an evaluation of the present weights; it comes back in a later `Advance.judged`."""
        ...

    def judge_final(
        self, jobs_of: Callable[[int], list[Job]], on_job: Callable[[Job, int], None]
    ) -> dict[str, list[EpisodeEnd]]:
        """Stop training and play the jobs of `jobs_of(chunk)`; `on_job` hears of each, and of their
        number.
        """
        ...

    def take_failures(self, *, final: bool = False) -> list[Failure]:
        """Return deaths mended since the last `advance`; with `final` also those that never were."""
        ...

    def close(self) -> None: ...


class Screen(Protocol):
    """Where people watch; see `seqrl_ray.loops.progress`."""

    def train(self, row: Mapping[str, Any], at_s: float, headline: float | None) -> None: ...
    def note(self, text: str) -> None: ...
    def judge(self, job: Job, done: int, total: int) -> None: ...


class StopRequested:
    """Turns the first Ctrl-C (or SIGTERM) into a wish that the loop reads; a second one interrupts at
    once.
    """

    def __init__(self) -> None:
        self.asked = False
        self._old: dict[int, Any] = {}

    def __enter__(self) -> StopRequested:
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._old[number] = signal.signal(number, self._heard)
            except ValueError:  # not the main thread: whoever owns it handles signals
                return self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


@dataclass
class _Clock:
    """Accumulated times that a resumed run goes on from."""

    train_s: float = 0.0
    next_judge_steps: int = 0
    next_judge_updates: int = 0

    def due(self, recipe: Recipe, row: Mapping[str, Any]) -> bool:
        """Return whether it is time for an evaluation in between, and set when the next one is."""
        steps, updates = int(row["env_steps"]), int(row["updates"])
        due = 0 < self.next_judge_steps <= steps
        while 0 < self.next_judge_steps <= steps:
            self.next_judge_steps += recipe.evaluation.every_env_steps
        if updates < recipe.offline_updates:  # afterwards it is every_env_steps that counts
            due = due or 0 < self.next_judge_updates <= updates
            while 0 < self.next_judge_updates <= updates:
                self.next_judge_updates += recipe.evaluation.every_updates
        return due


def drive(
    session: Session,
    folder: RunFolder,
    screen: Screen,
    *,
    jobs_of: Callable[[int], list[Job]],
    clock: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Run a session to its end and return the summary (also written to the folder).

    Raises: whatever the session raises, after a summary with status "failed" has been written.
    """
    recipe = session.recipe
    times = _Clock(0.0, recipe.evaluation.every_env_steps, recipe.evaluation.every_updates)
    if clock:
        times = _Clock(
            float(clock["train_s"]), int(clock["next_judge_steps"]), int(clock["next_judge_updates"])
        )
    last: dict[str, Any] = {
        "env_steps": 0,
        "agent_steps": 0,
        "updates": 0,
        "episodes": 0,
        "samples_per_insert": None,
    }
    status = "failed"
    try:
        with StopRequested() as stop:
            status = _train(session, folder, screen, times, stop, last)
            folder.trained()
            session.save(folder.path / "checkpoints", _driver_tree(folder, times), wait=True)
            if status == "completed" and recipe.evaluation.episodes:
                _judge(session, folder, screen, jobs_of, last)
                if stop.asked:
                    status = "interrupted"
    except KeyboardInterrupt:
        status = "interrupted"
    finally:
        _note_failures(session.take_failures(final=True), folder, screen)
        counters = {
            k: last.get(k) for k in ("env_steps", "agent_steps", "updates", "episodes", "samples_per_insert")
        }
        counters["train_s"] = times.train_s
        summary = folder.summary(status, counters, session.lag)
    return summary


def _train(
    session: Session,
    folder: RunFolder,
    screen: Screen,
    times: _Clock,
    stop: StopRequested,
    last: dict[str, Any],
) -> str:
    """Train to the budget's end or a wish to stop; return the status, keep the newest counts in `last`."""
    recipe, learner = session.recipe, session.recipe.learner
    saved_at = time.monotonic()
    before = {"env_steps": 0.0, "updates": 0.0}
    first = True
    while True:
        began = time.monotonic()
        advance = session.advance(learner.report_every_s)
        took = time.monotonic() - began
        times.train_s += took
        row = advance.row
        last.update(row)
        if first:  # a resumed run's counts do not start at nothing: its first rate would be wrong
            before = {k: float(row[k]) if row[k] and times.train_s > took else 0.0 for k in before}
            first = False
        row["env_steps_per_s"] = (row["env_steps"] - before["env_steps"]) / took
        row["updates_per_s"] = (row["updates"] - before["updates"]) / took
        before = {k: float(row[k]) for k in before}
        for finished in advance.finished:
            folder.episodes(finished.ends, actor=finished.actor, env_steps=row["env_steps"])
        folder.report(row)
        _note_failures(advance.failures, folder, screen)
        for note in advance.notes:
            screen.note(note)
        for at, ends in advance.judged:
            folder.evaluation(POLICY, ends, env_steps=at["env_steps"], updates=at["updates"], final=False)
        headline = folder.recent[-1][1] if folder.recent else None
        screen.train(row, folder.at_s(), headline)
        if advance.done:
            return "completed"
        if stop.asked:
            screen.note("stopping: writing a checkpoint (once more Ctrl-C to stop without)")
            return "interrupted"
        if recipe.stop.wall_s and folder.at_s() >= recipe.stop.wall_s:
            return "completed"
        due = learner.checkpoint_every_s and time.monotonic() - saved_at >= learner.checkpoint_every_s
        if due or advance.save:
            session.save(folder.path / "checkpoints", _driver_tree(folder, times), wait=False)
            saved_at = time.monotonic()
        if times.due(recipe, row):
            first_seed = recipe.evaluation.seed + 500_000  # apart from the final evaluation's seeds
            session.judge_interim(range(first_seed, first_seed + recipe.evaluation.interim_episodes))


def _judge(
    session: Session,
    folder: RunFolder,
    screen: Screen,
    jobs_of: Callable[[int], list[Job]],
    last: Mapping[str, Any],
) -> None:
    done = 0

    def heard(job: Job, total: int) -> None:
        nonlocal done
        done += 1
        screen.judge(job, done, total)

    for name, ends in session.judge_final(jobs_of, heard).items():
        folder.evaluation(name, ends, env_steps=last["env_steps"], updates=last["updates"], final=True)


def _note_failures(failures: Sequence[Failure], folder: RunFolder, screen: Screen) -> None:
    for failure in failures:
        folder.restarts[failure.what] += 1
        folder.failure(**vars(failure))
        screen.note(_failure_line(failure))


def _driver_tree(folder: RunFolder, times: _Clock) -> dict[str, Any]:
    return {"driver": {"clock_s": folder.at_s(), "times": dict(vars(times))}}


def _failure_line(failure: Failure) -> str:
    recovered = "not recovered yet" if failure.recover_s is None else f"back after {failure.recover_s:.1f} s"
    return (
        f"{failure.what} died at {failure.at_s:.1f} s, {recovered}; "
        f"lost {failure.lost_steps} steps, {failure.lost_updates} updates"
    )
