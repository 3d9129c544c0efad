"""What both wirings share, seen from the supervisor's process: board, evaluators, the account of deaths."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from seqrl_ray import errors
from seqrl_ray.errors import SeqrlError
from seqrl_ray.loops import checkpoints
from seqrl_ray.loops.drive import Failure
from seqrl_ray.loops.evaluate import POLICY
from seqrl_ray.loops.judge import Job, before_acting, chunk_size, playable
from seqrl_ray.loops.run_folder import LagCounter
from seqrl_ray.recipe import Recipe
from seqrl_ray.runtime.evaluator import play_jobs
from seqrl_ray.runtime.supervisor import Supervisor
from seqrl_ray.runtime.wire import GONE, unpack
from seqrl_ray.types import GroupSpec
from seqrl_ray.types_env import EpisodeEnd


@dataclass(frozen=True)
class Placement:
    """What the launcher resolved: where things run and with how much."""

    device: str
    num_gpus: float
    learner_threads: int
    actor_cpus: float
    learner_cpus: float
    shard_cpus: float
    evaluator_cpus: float
    workers: int
    """Evaluators of the final evaluation."""
    pin: dict[str, Any] = field(default_factory=dict)
    """Ray options of processes that write checkpoints: on a cluster they stand on the driver's node."""


@dataclass
class Death:
    """A death that has been noticed and not mended yet."""

    what: str
    noticed: float
    lost_steps: int = 0
    lost_updates: int = 0


def cause_of(error: RayTaskError | RayActorError) -> Exception:
    """Return the error of ours that a remote call failed with, or else `error` itself with the worker's
    traceback.

    Of an actor whose constructor raised, Ray keeps the text alone, so a kind of ours is read back from its
    last line.
    """
    if isinstance(error, RayTaskError) and isinstance(error.cause, SeqrlError):
        return error.cause
    last = str(error).strip().splitlines()[-1]
    kind, _, message = last.removeprefix(f"{errors.__name__}.").partition(": ")
    if last.startswith(errors.__name__) and issubclass(getattr(errors, kind, object), SeqrlError):
        ours: Exception = getattr(errors, kind)(message)
        return ours
    return error


class RaySession:
    """What does not depend on the wiring; `ColocatedSession` and `ServiceSession` add the rest."""

    def __init__(
        self, recipe: Recipe, placement: Placement, *, root: Path, clock_s: float, resume: Path | None
    ) -> None:
        """Start the board.

        Args:
            recipe: the run.
            placement: from the launcher.
            root: the run's checkpoints; a dead learner is restored from the newest.
            clock_s: wall seconds the run had used before it was resumed.
            resume: checkpoint to go on from.
        """
        self.recipe, self.placement, self.root = recipe, placement, root
        self.supervisor = Supervisor(recipe, actor_cpus=placement.actor_cpus)
        self.exact: set[int] = set()
        """Actors that go on inside their open episodes: in lock-step, where the checkpoint holds them."""
        if resume is not None:
            checkpoints.verify(resume)
            if recipe.actors.in_flight == 1:
                self.exact = {int(i) for i, state in checkpoints.load(resume, "rollouts").items() if state}
            self.supervisor.go_on_from(checkpoints.load(resume, "supervisor"), exact=self.exact)
        self.lag = LagCounter()
        self.epoch = 0
        self.last = {"env_steps": 0, "updates": 0}
        self.actor_deaths: dict[int, Death] = {}
        self.judge_deaths: dict[Job, Death] = {}
        """By the job that died with its evaluator; mended when another has played it."""
        self._started = time.monotonic() - clock_s
        self._mended: list[Failure] = []
        self._interim: tuple[Any, Job, dict[str, int]] | None = None
        self._evaluator: Any = None
        self.supervisor.make_board()

    def at_s(self) -> float:
        """Wall seconds of the run so far."""
        return time.monotonic() - self._started

    def first_groups(self) -> dict[str, GroupSpec]:
        """Wait for the first actor: its environment says what there is to learn."""
        groups: dict[str, GroupSpec] = ray.get(self.supervisor.actors[0].groups.remote())
        return groups

    def restore_rollouts(self, resume: Path) -> None:
        """Hand their open episodes back to the actors that go on exactly."""
        saved = checkpoints.load(resume, "rollouts")
        ray.get([self.supervisor.actors[i].go_on_from.remote(saved[str(i)]) for i in self.exact])

    def rollout_states(self) -> dict[str, Any]:
        """Return every actor's open episodes (lock-step runs); None for one that cannot tell, or has died."""
        states: dict[str, Any] = {}
        for index, actor in self.supervisor.actors.items():
            try:
                states[str(index)] = ray.get(actor.open_episodes.remote())
            except RayActorError:
                states[str(index)] = None  # found lost, and replaced, by the wiring's next look
        return states

    # ------------------------------------------------------------------------------------------------- deaths

    def take_failures(self, *, final: bool = False) -> list[Failure]:
        """Return the deaths mended since the last call; if training is over, also those that never were."""
        if final:
            for index in list(self.actor_deaths):
                self._never_back(self.actor_deaths.pop(index))
            for job in list(self.judge_deaths):
                self._never_back(self.judge_deaths.pop(job))
        mended, self._mended = self._mended, []
        return mended

    def recovered(self, death: Death) -> None:
        """Account for a death that has been mended now."""
        took = round(self.at_s() - death.noticed, 3)
        self._mended.append(
            Failure(death.what, round(death.noticed, 3), took, death.lost_steps, death.lost_updates)
        )

    def _never_back(self, death: Death) -> None:
        """Account for a death that was not mended: its replacement died too, or the run ended first."""
        noticed = round(death.noticed, 3)
        self._mended.append(Failure(death.what, noticed, None, death.lost_steps, death.lost_updates))

    def bury_actor(self, index: int, cause: str, *, application_error: bool, lost_steps: int) -> Any:
        """Count an actor's death, make sure it is dead, and start its replacement.

        Raises: WorkerError: the run must not survive this.
        """
        if application_error:
            self.supervisor.budget.application_error("actor", cause)
        else:
            self.supervisor.budget.death(f"actor {index} ({cause})")
        self.supervisor.end(self.supervisor.actors[index])
        if index in self.actor_deaths:
            self._never_back(self.actor_deaths.pop(index))
        self.actor_deaths[index] = Death("actor", self.at_s(), lost_steps=lost_steps)
        return self.supervisor.make_actor(index)

    def replace_board(self, publish: Callable[[Any], None]) -> None:
        """Start an empty board and have it filled."""
        death = Death("board", self.at_s())
        self.supervisor.budget.death("the weight board")
        with contextlib.suppress(RayActorError):  # if board or learner died meanwhile, that is reported anew
            publish(self.supervisor.make_board())
        self.recovered(death)

    # ------------------------------------------------------------------------------------------------ judging

    def judge_interim(self, seeds: Sequence[int]) -> None:
        """Evaluate the board's weights on an evaluator beside the training; skipped while one is still at
        it.
        """
        if self._interim is not None:
            return
        if self._evaluator is None:
            self._evaluator = self.supervisor.make_evaluator(0.0)
        try:
            weights = unpack(ray.get(self.supervisor.board.pull.remote({}))).whole()
        except GONE:
            return  # the wiring notices and refills the board; the next evaluation will find weights
        job = Job(POLICY, tuple(seeds))
        self._interim = (self._evaluator.play.remote(job, weights), job, dict(self.last))

    def interim_results(self) -> list[tuple[dict[str, int], list[EpisodeEnd]]]:
        """Return the evaluation in between if it has ended; a dead evaluator is replaced and begins anew."""
        if self._interim is None:
            return []
        call, job, at = self._interim
        ready, _ = ray.wait([call], timeout=0)
        if not ready:
            return []
        self._interim = None
        try:
            ends = ray.get(call)
            self._played(job)
            return [(at, ends)]
        except RayTaskError as error:
            self.supervisor.budget.application_error("evaluator", str(error))
        except RayActorError:
            self.supervisor.budget.death("an evaluator")
        self._died_with(job)
        self.supervisor.end(self._evaluator)
        self._evaluator = None
        self.judge_interim(job.seeds)
        return []

    def _died_with(self, job: Job) -> None:
        """Note that an evaluator died at this job."""
        if job in self.judge_deaths:
            self._never_back(self.judge_deaths.pop(job))
        self.judge_deaths[job] = Death("evaluator", self.at_s())

    def _played(self, job: Job) -> None:
        """Note that a job has been played: if one died at it before, that is mended."""
        if job in self.judge_deaths:
            self.recovered(self.judge_deaths.pop(job))

    def judge_final(
        self, jobs_of: Callable[[int], list[Job]], on_job: Callable[[Job, int], None]
    ) -> dict[str, list[EpisodeEnd]]:
        """End the training processes and play the final jobs, with the weights of the last checkpoint."""
        newest = checkpoints.latest(self.root)
        weights = checkpoints.acting_weights(newest) | before_acting(checkpoints.pretrained_weights(newest))
        self.close()
        workers = self.placement.workers
        jobs = playable(jobs_of(chunk_size(self.recipe, self.recipe.evaluation.episodes, workers)), weights)

        def played(job: Job) -> None:
            self._played(job)
            on_job(job, len(jobs))

        return play_jobs(
            lambda: self.supervisor.make_evaluator(self.placement.evaluator_cpus),
            jobs,
            weights,
            workers=workers,
            patience_s=self.recipe.evaluation.hang_timeout_s,
            budget=self.supervisor.budget,
            on_job=played,
            on_death=self._died_with,
        )

    def close(self) -> None:
        """End actors, board and evaluator; closing twice is harmless."""
        self.supervisor.close()
        if self._evaluator is not None:
            self.supervisor.end(self._evaluator)
        self._evaluator = None
