"""Evaluator actors and their pool: a job goes to whoever is free, a dead evaluator's to its replacement."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import ray
import torch
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from seqrl_ray.loops.judge import Job, collect, play_job
from seqrl_ray.recipe import Recipe
from seqrl_ray.types_env import EpisodeEnd, Weights


class Evaluator:
    """Plays evaluation jobs one at a time; the runtime makes a Ray actor of it."""

    def __init__(self, recipe: Recipe) -> None:
        torch.set_num_threads(1)
        self.recipe = recipe

    def play(self, job: Job, weights: Mapping[str, Weights]) -> list[EpisodeEnd]:
        """Play one job."""
        return play_job(self.recipe, job, weights)

    def use(self, recipe: Recipe) -> None:
        """Play with another recipe of the same environment from now on."""
        self.recipe = recipe

    def pid(self) -> int:
        """Process id, for kill tests and for people."""
        return os.getpid()


class Deaths(Protocol):
    """Where deaths are counted; see `seqrl_ray.runtime.supervisor.Budget`."""

    def death(self, what: str) -> None: ...
    def application_error(self, what: str, traceback: str) -> None: ...


def play_jobs(
    make: Callable[[], Any],
    jobs: Sequence[Job],
    weights: Mapping[str, Weights],
    *,
    workers: int,
    patience_s: float,
    budget: Deaths,
    on_job: Callable[[Job], None],
    on_death: Callable[[Job], None],
) -> dict[str, list[EpisodeEnd]]:
    """Play jobs on `workers` evaluators that `make` starts, and end them.

    A job that takes longer than `patience_s` counts as a death of its evaluator. `on_death` hears which job
    died with it, `on_job` of every job that has been played.

    Returns: name -> episodes in the order of `jobs`.
    Raises: WorkerError: the budget of deaths is spent, or the same application error came twice.
    """
    shipped = ray.put(dict(weights))
    waiting, results = list(reversed(jobs)), {}
    pool: list[Any] = [make() for _ in range(min(workers, len(jobs)))]
    busy: dict[Any, tuple[Any, Job, float]] = {}
    try:
        while waiting or busy:
            idle = [e for e in pool if all(e is not worker for worker, _, _ in busy.values())]
            for evaluator in idle[: len(waiting)]:
                job = waiting.pop()
                busy[evaluator.play.remote(job, shipped)] = (evaluator, job, time.monotonic())
            ready, _ = ray.wait(list(busy), num_returns=1, timeout=1.0)
            silent = [call for call, (_, _, sent) in busy.items() if time.monotonic() - sent > patience_s]
            if not ready and not silent:
                continue
            call = (ready or silent)[0]
            evaluator, job, _ = busy.pop(call)
            try:
                results[job] = ray.get(call, timeout=0.0 if not ready else None)
                on_job(job)
                continue
            except RayTaskError as error:
                budget.application_error("evaluator", str(error))
            except (RayActorError, GetTimeoutError):
                budget.death("evaluator")
            on_death(job)
            waiting.append(job)
            pool.remove(evaluator)
            ray.kill(evaluator, no_restart=True)
            pool.append(make())
    finally:
        for evaluator in pool:
            ray.kill(evaluator, no_restart=True)
    return collect(jobs, results)
