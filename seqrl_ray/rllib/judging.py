"""Evaluating a run of RLlib's: our evaluators play, on the recipe's held-out seeds, with RLlib's networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from seqrl_ray.loops.drive import Failure
from seqrl_ray.loops.evaluate import POLICY
from seqrl_ray.loops.judge import Job, chunk_size
from seqrl_ray.recipe import Recipe
from seqrl_ray.runtime.evaluator import Evaluator, play_jobs
from seqrl_ray.runtime.session import Death
from seqrl_ray.runtime.supervisor import Budget, threads_env
from seqrl_ray.types_env import EpisodeEnd, Weights


class Judges:
    """The evaluator beside a run, and the pool after it."""

    def __init__(
        self, recipe: Recipe, budget: Budget, *, cpus: float, workers: int, at_s: Callable[[], float]
    ) -> None:
        """Start nothing yet.

        Args:
            recipe: the run.
            budget: where deaths are counted.
            cpus: that each evaluator of the final evaluation asks of Ray; the runners have left them by then.
            workers: evaluators of the final evaluation.
            at_s: wall seconds of the run so far.
        """
        self._recipe, self._budget, self._cpus, self._workers = recipe, budget, cpus, workers
        self._at_s = at_s
        self._mended: list[Failure] = []
        self._evaluator: Any = None
        self._playing: tuple[Any, dict[str, int]] | None = None

    def begin(self, seeds: Sequence[int], weights: Mapping[str, Weights], at: dict[str, int]) -> None:
        """Begin an evaluation beside the run; while one is going on, a further one is left out."""
        if self._playing is not None:
            return
        if self._evaluator is None:
            self._evaluator = self._make(0.0)  # beside runners that have all that was reserved
        call = self._evaluator.play.remote(Job(POLICY, tuple(seeds)), dict(weights))
        self._playing = (call, at)

    def results(self) -> list[tuple[dict[str, int], list[EpisodeEnd]]]:
        """Return the evaluation that was begun if it has ended; one whose evaluator died is left out."""
        if self._playing is None:
            return []
        call, at = self._playing
        ready, _ = ray.wait([call], timeout=0)
        if not ready:
            return []
        self._playing = None
        try:
            return [(at, ray.get(call))]
        except RayTaskError as error:
            self._budget.application_error("evaluator", str(error))
        except RayActorError:
            self._budget.death("an evaluator")
        self._mended.append(Failure("evaluator", round(self._at_s(), 3), None))
        self.close()
        return []

    def final(
        self,
        jobs_of: Callable[[int], list[Job]],
        on_job: Callable[[Job, int], None],
        weights: dict[str, Weights],
    ) -> dict[str, list[EpisodeEnd]]:
        """Play the final jobs in a pool of evaluators; see `loops.drive.Session.judge_final`."""
        self.close()
        jobs = jobs_of(chunk_size(self._recipe, self._recipe.evaluation.episodes, self._workers))
        died: dict[Job, Death] = {}

        def played(job: Job) -> None:
            if job in died:
                self._mended.append(failure_of(died.pop(job), self._at_s()))
            on_job(job, len(jobs))

        return play_jobs(
            lambda: self._make(self._cpus),
            jobs,
            weights,
            workers=self._workers,
            patience_s=self._recipe.evaluation.hang_timeout_s,
            budget=self._budget,
            on_job=played,
            on_death=lambda job: died.update({job: Death("evaluator", self._at_s())}),
        )

    def take_failures(self) -> list[Failure]:
        """Return the deaths of evaluators since the last call."""
        mended, self._mended = self._mended, []
        return mended

    def close(self) -> None:
        """End the evaluator beside the run."""
        if self._evaluator is not None:
            ray.kill(self._evaluator, no_restart=True)
        self._evaluator = self._playing = None

    def _make(self, cpus: float) -> Any:
        remote = ray.remote(Evaluator).options(num_cpus=cpus, runtime_env=threads_env())
        return remote.remote(self._recipe)


def failure_of(death: Death, back_s: float | None) -> Failure:
    """Return the account of a death; `back_s`: when it was mended, None if it never was."""
    took = None if back_s is None else round(back_s - death.noticed, 3)
    return Failure(death.what, round(death.noticed, 3), took, death.lost_steps, death.lost_updates)
