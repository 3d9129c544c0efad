"""From a recipe to its parts: environments, algorithms, shards. The local loop and the Ray runtime both build
here.

Every random stream of a run is keyed off the recipe's one seed; the first number of a key says what the
stream is for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seqrl_ray.algorithms import make_algorithm, settings_class
from seqrl_ray.algorithms.contract import Algorithm
from seqrl_ray.envs.make import make_env
from seqrl_ray.envs.seeds import EpisodeSeeds, FixedSeeds
from seqrl_ray.loops.behaviour import Behaviour, Collecting
from seqrl_ray.loops.rollout import Rollout
from seqrl_ray.recipe import Recipe, policy_algorithm
from seqrl_ray.settings import parse
from seqrl_ray.types import GroupSpec
from seqrl_ray.types_env import VectorEnv

EPISODES, ACTING, SHARDS, ALGORITHM = range(4)
"""First key of the seed streams: episodes of training, acting, sampling, parameters."""


def stream_seed(recipe: Recipe, *key: int) -> int:
    """Return a 31-bit seed that is a function of the recipe's seed and `key` alone."""
    return int(np.random.SeedSequence(recipe.seed, spawn_key=key).generate_state(1)[0]) >> 1


def training_env(recipe: Recipe, actor: int, incarnation: int, controller: str | None = None) -> VectorEnv:
    """Make the environment of one actor; a replacement (a later incarnation) gets new episodes."""
    return make_env(
        recipe.env,
        recipe.policies,
        num_envs=recipe.actors.envs_per_actor,
        seeds=EpisodeSeeds(recipe.seed, EPISODES, actor, incarnation),
        controller=controller,
        folder=_folder(recipe),
    )


def evaluation_env(
    recipe: Recipe, seeds: Sequence[int], *, controller: str | None = None, details: bool = False
) -> VectorEnv:
    """Make an environment that plays one episode on each of `seeds`."""
    copies = 1 if recipe.env.kind == "traffic" else min(recipe.evaluation.envs, len(seeds))
    return make_env(
        recipe.env,
        recipe.policies,
        num_envs=copies,
        seeds=FixedSeeds(seeds, copies),
        evaluation=True,
        details=details,
        controller=controller,
        folder=_folder(recipe),
    )


def algorithms(
    recipe: Recipe, groups: Mapping[str, GroupSpec], *, device: str = "cpu"
) -> dict[str, Algorithm]:
    """Make the algorithm of every policy id; equal recipes give equal initial parameters in every process."""
    name = recipe.algorithm["name"]
    return {
        policy_id: make_algorithm(
            name,
            parse(settings_class(name), policy_algorithm(recipe, policy_id), "algorithm"),
            group,
            device=device,
            seed=stream_seed(recipe, ALGORITHM, place),
        )
        for place, (policy_id, group) in enumerate(sorted(groups.items()))
    }


def rollout(recipe: Recipe, actor: int, incarnation: int, behaviour: Behaviour | None = None) -> Rollout:
    """Make the rollout of one actor: its environment, its copies of the algorithms, its random stream.

    Args:
        recipe: the run.
        actor: number of the actor.
        incarnation: number that differs between restarts of this actor.
        behaviour: how the algorithms act where data is collected and nothing is learned; None: as they do.
    """
    env = training_env(recipe, actor, incarnation, behaviour.controller if behaviour else None)
    actings: dict[str, Any] = dict(algorithms(recipe, env.groups))
    if behaviour is not None:
        actings = {p: Collecting(a, behaviour, env, env.groups[p]) for p, a in actings.items()}
    return Rollout(
        env,
        actings,
        writer=f"actor-{actor}",
        incarnation=incarnation,
        fragment_steps=recipe.actors.fragment_steps,
        seed=stream_seed(recipe, ACTING, actor, incarnation),
        first_copy=actor * recipe.actors.envs_per_actor,
        total_copies=recipe.env_copies(),
    )


def held_out_seeds(recipe: Recipe, episodes: int, seed: int | None = None) -> list[int]:
    """Seeds of an evaluation: consecutive from `evaluation.seed`."""
    first = recipe.evaluation.seed if seed is None else seed
    return list(range(first, first + episodes))


def _folder(recipe: Recipe) -> Path | None:
    return Path(recipe.folder) if recipe.folder else None
