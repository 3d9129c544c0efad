"""The colocated wiring, seen from the supervisor's process: a learner that owns the shard, and rollout actors it pulls from.

Learner and shard are one failure unit: its death restores weights and replay from the same checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from seqrl_ray.loops import checkpoints
from seqrl_ray.loops.drive import Advance, Failure
from seqrl_ray.loops.evaluate import POLICY
from seqrl_ray.loops.judge import Job, chunk_size
from seqrl_ray.loops.run_folder import LagCounter
from seqrl_ray.recipe import Recipe
from seqrl_ray.runtime.evaluator import play_jobs
from seqrl_ray.runtime.learner import ColocatedLearner, LearnerReport
from seqrl_ray.runtime.supervisor import ONE_THREAD, Supervisor
from seqrl_ray.types import EpisodeEnd, GroupSpec


@dataclass(frozen=True)
class Placement:
    """What the launcher resolved: where things run and with how much."""

    device: str
    num_gpus: float
    learner_threads: int
    compile_updates: int
    actor_cpus: float
    learner_cpus: float
    workers: int
    """Evaluators of the final evaluation."""


@dataclass
class _Death:
    what: str
    noticed: float
    lost_steps: int = 0
    lost_updates: int = 0


class ColocatedSession:
    """A run in being; see `seqrl_ray.loops.drive.Session`."""

    def __init__(
        self, recipe: Recipe, placement: Placement, *, root: Path, clock_s: float = 0.0, resume: Path | None = None
    ) -> None:
        """Start the processes.

        Args:
            recipe: the run.
            placement: from the launcher.
            root: the run's checkpoints; a dead learner is restored from the newest.
            clock_s: wall seconds the run had used before it was resumed.
            resume: checkpoint to go on from.
        """
        self.recipe, self.placement, self.root = recipe, placement, root
        self.supervisor = Supervisor(recipe, actor_cpus=placement.actor_cpus)
        exact = resume is not None and recipe.actors.in_flight == 1
        if resume is not None:
            self.supervisor.go_on_from(checkpoints.load(resume, "supervisor"), exact=exact)
        self.lag = LagCounter()
        self._started = time.monotonic() - clock_s
        self._board = self.supervisor.make_board()
        self._new: dict[int, tuple[Any, bool]] = {i: (self.supervisor.make_actor(i), False) for i in range(recipe.actors.count)}
        self.groups: dict[str, GroupSpec] = self._first_groups()
        if resume is not None and exact:
            self._restore_rollouts(resume)
        self._epoch = 0
        self._learner = self._make_learner(resume)
        self._last = {"env_steps": 0, "updates": 0}
        self._actor_deaths: dict[int, _Death] = {}
        self._pending: list[Failure] = []
        self._interim: tuple[Any, Any, dict[str, int]] | None = None
        self._evaluator: Any = None

    def _first_groups(self) -> dict[str, GroupSpec]:
        """Wait for the first actor: its environment says what there is to learn."""
        try:
            groups: dict[str, GroupSpec] = ray.get(self._new[0][0].groups.remote())
        except RayTaskError as error:
            cause = error.cause
            raise cause if isinstance(cause, Exception) else error from None
        return groups

    def _restore_rollouts(self, resume: Path) -> None:
        saved = checkpoints.load(resume, "rollouts")
        calls = [self._new[int(i)][0].go_on_from.remote(state) for i, state in saved.items() if state is not None]
        ray.get(calls)

    def _make_learner(self, resume: Path | None) -> Any:
        p = self.placement
        env = {**ONE_THREAD, "OMP_NUM_THREADS": str(p.learner_threads)}
        remote = ray.remote(ColocatedLearner).options(
            num_cpus=p.learner_cpus, num_gpus=p.num_gpus, runtime_env={"env_vars": env}
        )
        return remote.remote(
            self.recipe,
            self.groups,
            device=p.device,
            compile_updates=p.compile_updates,
            threads=p.learner_threads,
            epoch=self._epoch,
            resume=resume,
        )

    def at_s(self) -> float:
        """Wall seconds of the run so far."""
        return time.monotonic() - self._started

    def advance(self, seconds: float) -> Advance:
        """Let the learner run, and mend what broke."""
        new, self._new = self._new, {}
        try:
            report: LearnerReport = ray.get(self._learner.run_for.remote(seconds, new, self._board))
        except RayTaskError as error:
            self.supervisor.budget.application_error("learner", str(error))
            report = self._replace_learner(seconds)
        except RayActorError:
            report = self._replace_learner(seconds)
        self._last = {k: int(report.row[k]) for k in self._last}
        self.lag = LagCounter(report.lag)
        for lost in report.lost:
            self._replace_actor(lost.index, lost.cause, lost.application_error)
        for index in report.back:
            self._recovered(self._actor_deaths.pop(index))
        if report.board_lost:
            self._replace_board()
        judged = self._interim_results()
        return Advance(report.row, report.finished, self.take_failures(), judged, report.done)

    def _replace_actor(self, index: int, cause: str, application_error: bool) -> None:
        if application_error:
            self.supervisor.budget.application_error("actor", cause)
        else:
            self.supervisor.budget.death(f"actor {index}")
        self.supervisor.end(self.supervisor.actors[index])
        slots = self.recipe.actors.envs_per_actor
        unsent = self.recipe.actors.in_flight * self.recipe.actors.fragment_steps * slots
        self._actor_deaths[index] = _Death("actor", self.at_s(), lost_steps=unsent)
        self._new[index] = (self.supervisor.make_actor(index), True)

    def _replace_board(self) -> None:
        death = _Death("board", self.at_s())
        self.supervisor.budget.death("the weight board")
        self._board = self.supervisor.make_board()
        ray.get(self._board.publish.remote(ray.get(self._learner.weights.remote())))
        self._recovered(death)

    def _replace_learner(self, seconds: float) -> LearnerReport:
        """Restore learner and replay from the newest checkpoint, or from nothing where there is none yet."""
        self.supervisor.budget.death("the learner")
        death = _Death("learner", self.at_s())
        self.supervisor.end(self._learner)
        found = checkpoints.complete(self.root)
        self._epoch += 1
        self._learner = self._make_learner(found[-1] if found else None)
        everyone = {index: (actor, index in self._actor_deaths) for index, actor in self.supervisor.actors.items()}
        report: LearnerReport = ray.get(self._learner.run_for.remote(seconds, everyone, self._board))
        death.lost_steps = max(0, self._last["env_steps"] - report.restored["env_steps"])
        death.lost_updates = max(0, self._last["updates"] - report.restored["updates"])
        self._recovered(death)
        return report

    def take_failures(self) -> list[Failure]:
        """Return the deaths that have been mended since the last call."""
        failures, self._pending = self._pending, []
        return failures

    def _recovered(self, death: _Death) -> None:
        took = round(self.at_s() - death.noticed, 3)
        self._pending.append(Failure(death.what, death.noticed, took, death.lost_steps, death.lost_updates))

    def save(self, root: Path, trees: Mapping[str, Any], *, wait: bool) -> None:
        """Write a checkpoint from the learner's process; open episodes too where the run is lock-step."""
        rollouts: dict[str, Any] = {}
        if self.recipe.actors.in_flight == 1 and not self._new:
            states = ray.get([a.open_episodes.remote() for a in self.supervisor.actors.values()])
            rollouts = {str(i): s for i, s in zip(self.supervisor.actors, states, strict=True)}
        own = {"rollouts": rollouts, "supervisor": self.supervisor.state()}
        ray.get(self._learner.save.remote(root, {**trees, **own}, wait))

    def judge_interim(self, seeds: Sequence[int]) -> None:
        """Evaluate the present weights on an evaluator beside the training; skipped while one is still at it."""
        if self._interim is not None:
            return
        if self._evaluator is None:
            self._evaluator = self.supervisor.make_evaluator(0.0)
        weights = ray.get(self._learner.weights.remote())
        call = self._evaluator.play.remote(Job(POLICY, tuple(seeds)), weights)
        self._interim = (call, tuple(seeds), dict(self._last))

    def _interim_results(self) -> list[tuple[dict[str, int], list[EpisodeEnd]]]:
        if self._interim is None:
            return []
        call, seeds, at = self._interim
        ready, _ = ray.wait([call], timeout=0)
        if not ready:
            return []
        self._interim = None
        try:
            return [(at, ray.get(call))]
        except RayTaskError as error:
            self.supervisor.budget.application_error("evaluator", str(error))
        except RayActorError:
            self.supervisor.budget.death("an evaluator")
        death = _Death("evaluator", self.at_s())
        self.supervisor.end(self._evaluator)
        self._evaluator = None
        self.judge_interim(seeds)
        self._recovered(death)
        return []

    def judge_final(
        self, jobs_of: Callable[[int], list[Job]], on_job: Callable[[Job, int], None]
    ) -> dict[str, list[EpisodeEnd]]:
        """End the training processes and play the final jobs on evaluators."""
        weights = ray.get(self._learner.weights.remote())
        self.close()
        workers = self.placement.workers
        jobs = jobs_of(chunk_size(self.recipe, self.recipe.evaluation.episodes, workers))
        return play_jobs(
            lambda: self.supervisor.make_evaluator(1.0),
            jobs,
            weights,
            workers=workers,
            budget=self.supervisor.budget,
            on_job=lambda job: on_job(job, len(jobs)),
            on_death=lambda: self._recovered(_Death("evaluator", self.at_s())),
        )

    def close(self) -> None:
        """End every process of the run; closing twice is harmless."""
        self.supervisor.close()
        for actor in (self._learner, self._evaluator):
            if actor is not None:
                self.supervisor.end(actor)
        self._learner = self._evaluator = None
