"""Judging: the evaluation jobs of a run, and how they are played in one process or in a pool of processes.

A job is one controller on some seeds. libsumo is one simulation per process, so jobs that run beside a
training simulation, or beside one another, each need a process of their own; `play_jobs` sees to that with a
spawned pool, the Ray runtime with evaluator actors. Both call `play_job`.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial

from seqrl_ray.algorithms import settings_class
from seqrl_ray.algorithms.contract import Algorithm
from seqrl_ray.envs.make import controllers
from seqrl_ray.errors import RecipeError, did_you_mean
from seqrl_ray.loops.build import algorithms, held_out_seeds
from seqrl_ray.loops.evaluate import AT_TARGET, POLICY, PRETRAINED, evaluate
from seqrl_ray.recipe import Recipe, policy_algorithm
from seqrl_ray.settings import mutable_keys
from seqrl_ray.types import GroupSpec
from seqrl_ray.types_env import EpisodeEnd, Weights


@dataclass(frozen=True)
class Job:
    """One controller on some held-out seeds."""

    name: str
    seeds: tuple[int, ...]
    details: bool = False
    """Keep the series of the first episode for the report."""
    target_return: float | None = None
    """What the policy is asked for; None = the recipe's `algorithm.target_return`."""


def names(recipe: Recipe) -> tuple[str, ...]:
    """Who is judged at the end of a run: the policy, what it was before it acted where a run begins offline,
    then the recipe's controllers.

    Raises: RecipeError: the environment has no such controller.
    """
    offered = controllers(recipe.env)
    for name in recipe.evaluation.controllers:
        if name not in offered:
            raise RecipeError(
                f"evaluation.controllers={name!r} is not a controller of this environment."
                f"{did_you_mean(name, offered)} Offered: {', '.join(offered)}."
            )
    before = (PRETRAINED,) if recipe.offline_updates and recipe.stop.env_steps else ()
    return (POLICY, *before, *recipe.evaluation.controllers)


def check_targets(recipe: Recipe) -> None:
    """Raise RecipeError if `evaluation.targets` are given and the policy cannot be asked for a return."""
    for policy_id in recipe.policies if recipe.evaluation.targets else ():
        name, keys = recipe.algorithm["name"], policy_algorithm(recipe, policy_id)
        if "target_return" not in mutable_keys(settings_class(name)) or keys.get("return_quantile"):
            why = "generates its returns itself" if "return_quantile" in keys else "is asked for no return"
            raise RecipeError(
                f"evaluation.targets={list(recipe.evaluation.targets)} with algorithm.name={name!r}, which "
                f"{why}: all targets would play alike. Leave the key out."
            )


def final_jobs(
    recipe: Recipe, *, episodes: int | None = None, seed: int | None = None, chunk: int = 0
) -> list[Job]:
    """Return the jobs of the final evaluation, every controller and every target return on the same seeds.

    Args:
        recipe: says who is judged, on how many seeds.
        episodes: instead of the recipe's.
        seed: first seed, instead of the recipe's.
        chunk: seeds per job, so that jobs can be spread over processes; 0 = all.
    """
    seeds = held_out_seeds(recipe, episodes or recipe.evaluation.episodes, seed)
    size = chunk or len(seeds)
    return [
        Job(name, tuple(seeds[i : i + size]), details=i == 0)
        for name in names(recipe)
        for i in range(0, len(seeds), size)
    ] + [
        Job(f"{AT_TARGET}{target:.12g}", tuple(seeds[i : i + size]), target_return=target)
        for target in recipe.evaluation.targets
        for i in range(0, len(seeds), size)
    ]


def before_acting(weights: Mapping[str, Weights]) -> dict[str, Weights]:
    """Return the weights that an offline phase ended with under the names that `play_job` looks for."""
    return {f"{PRETRAINED}/{policy_id}": own for policy_id, own in weights.items()}


def playable(jobs: Sequence[Job], weights: Mapping[str, Weights]) -> list[Job]:
    """Return the jobs for which there are weights: a run stopped in its offline phase has none from before it
    acted.
    """
    pretrained = any(name.startswith(f"{PRETRAINED}/") for name in weights)
    return [job for job in jobs if job.name != PRETRAINED or pretrained]


def chunk_size(recipe: Recipe, episodes: int, workers: int) -> int:
    """Seeds per job that keep `workers` busy: few where an episode is long (SUMO)."""
    if workers <= 1 or recipe.env.kind != "traffic":
        return max(1, -(-episodes // max(1, workers)))
    return max(1, min(5, -(-episodes // workers)))


def play_job(recipe: Recipe, job: Job, weights: Mapping[str, Weights]) -> list[EpisodeEnd]:
    """Play one job in this process; `weights`: policy id -> its weights, and those of `before_acting`."""
    hparams = {} if job.target_return is None else {"target_return": job.target_return}
    trained = job.target_return is not None or job.name == PRETRAINED
    if job.name == PRETRAINED:
        weights = {policy_id: weights[f"{PRETRAINED}/{policy_id}"] for policy_id in recipe.policies}
    return evaluate(
        recipe,
        POLICY if trained else job.name,
        job.seeds,
        algorithms=partial(with_weights, recipe, weights, hparams=hparams),
        details=job.details,
    )


def play_jobs(
    recipe: Recipe,
    jobs: Sequence[Job],
    weights: Mapping[str, Weights],
    *,
    workers: int,
    on_job: Callable[[Job], None] | None = None,
) -> dict[str, list[EpisodeEnd]]:
    """Play jobs and return name -> episodes in the order of the seeds.

    Args:
        recipe: says the environment.
        jobs: from `final_jobs`.
        weights: as for `play_job`.
        workers: processes; 0 = this process.
        on_job: called as each job ends.
    """
    results: dict[Job, list[EpisodeEnd]] = {}
    for job, ends in _played(recipe, jobs, weights, workers):
        results[job] = ends
        if on_job is not None:
            on_job(job)
    return collect(jobs, results)


def collect(jobs: Sequence[Job], results: Mapping[Job, Sequence[EpisodeEnd]]) -> dict[str, list[EpisodeEnd]]:
    """Join the episodes of jobs of one name, in the order of `jobs`."""
    joined: dict[str, list[EpisodeEnd]] = {}
    for job in jobs:
        joined.setdefault(job.name, []).extend(results[job])
    return joined


def _played(
    recipe: Recipe, jobs: Sequence[Job], weights: Mapping[str, Weights], workers: int
) -> Iterator[tuple[Job, list[EpisodeEnd]]]:
    if workers == 0:
        for job in jobs:
            yield job, play_job(recipe, job, weights)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=context, initializer=_one_thread) as pool:
        futures = {pool.submit(play_job, recipe, job, weights): job for job in jobs}
        for future in as_completed(futures):
            yield futures[future], future.result()


def _one_thread() -> None:
    """Processes share the cores: one torch thread each."""
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)


def with_weights(
    recipe: Recipe,
    weights: Mapping[str, Weights],
    groups: Mapping[str, GroupSpec],
    *,
    hparams: Mapping[str, float] | None = None,
) -> dict[str, Algorithm]:
    """Make the algorithms of a recipe and give them these weights to act with, and changed `hparams`."""
    made = algorithms(recipe, groups)
    for policy_id, algorithm in made.items():
        if policy_id in weights:
            algorithm.load_weights(weights[policy_id].flat)
        if hparams:
            algorithm.set_hparams(hparams)
    return made
