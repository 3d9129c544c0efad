"""Watching: one held-out episode of a trained traffic policy, recorded through libsumo and shown in sumo-gui
through TraCI.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from seqrl_ray.envs.traffic.replay import replay
from seqrl_ray.errors import RecipeError
from seqrl_ray.loops.build import evaluation_env
from seqrl_ray.loops.evaluate import PolicyPlayer
from seqrl_ray.loops.judge import with_weights
from seqrl_ray.recipe import Recipe
from seqrl_ray.recipe_traffic import TrafficSettings
from seqrl_ray.types import Array
from seqrl_ray.types_env import OpenEpisode, Weights


def record(recipe: Recipe, weights: Mapping[str, Weights], seed: int) -> OpenEpisode:
    """Play one evaluation episode on `seed` and return its seed and joint actions.

    Actions: policy id -> [T, S], S the slots of the policy.
    """
    env = evaluation_env(recipe, [seed])
    taken: dict[str, list[Array]] = {policy_id: [] for policy_id in env.groups}
    try:
        player = PolicyPlayer(env.groups, with_weights(recipe, weights, env.groups), seed=seed)
        step = env.reset()
        while not step.episodes:
            actions = player.act(step)
            for policy_id, chosen in actions.items():
                taken[policy_id].append(np.array(chosen, copy=True))
            step = env.step(actions)
    finally:
        env.close()
    return OpenEpisode(0, seed, 0, {policy_id: np.stack(rows) for policy_id, rows in taken.items()})


def show(
    recipe: Recipe,
    weights: Mapping[str, Weights],
    seed: int,
    *,
    binary: str = "sumo-gui",
    delay_ms: int = 100,
) -> list[int]:
    """Record an episode and show it in a window; returns the vehicles in the net after each decision.

    Raises: RecipeError: the recipe is not a traffic recipe. EnvError: SUMO's window cannot be opened.
    """
    if not isinstance(recipe.env, TrafficSettings):
        raise RecipeError(
            f"--gui with env.kind={recipe.env.kind!r}: only SUMO has a window here. Leave --gui out."
        )
    folder = Path(recipe.folder) if recipe.folder else None
    episode = record(recipe, weights, seed)
    return replay(recipe.env, recipe.policies, episode, folder=folder, binary=binary, delay_ms=delay_ms)
