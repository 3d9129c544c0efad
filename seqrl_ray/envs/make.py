"""The one way into a simulator: from a recipe's `[env]` table to a `VectorEnv`.

Source: ours. Each kind's door is imported when an environment of that kind is made, so that a process loads
only the simulators it steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from seqrl_ray.envs.loading import load_callable
from seqrl_ray.envs.own_metrics import promised
from seqrl_ray.errors import EnvError, did_you_mean
from seqrl_ray.recipe import EnvSettings
from seqrl_ray.recipe_env import AtariSettings, GymSettings, PettingZooSettings, PolicySettings
from seqrl_ray.types_env import SeedStream, VectorEnv

RANDOM = "random"
"""The controller every kind has: the evaluator draws legal actions itself."""


def make_env(
    env: EnvSettings,
    policies: Mapping[str, PolicySettings],
    *,
    num_envs: int,
    seeds: SeedStream,
    evaluation: bool = False,
    details: bool = False,
    controller: str | None = None,
    folder: Path | None = None,
) -> VectorEnv:
    """Make E copies of an environment.

    Args:
        env: the `[env]` table of a recipe.
        policies: policy id -> which agents it drives.
        num_envs: E, at least 1 (traffic: exactly 1, libsumo is one simulation per process).
        seeds: gives the seed of every episode of every copy.
        evaluation: raw scores and whole episodes: no training-time aid (reward clipping, life-loss ends,
            teleport).
        details: fill `EpisodeEnd.details` (traffic; other kinds have none).
        controller: name of a built-in rule, see `controllers`; the environment then offers
            `controller_actions()`,
            except for "random", which needs nothing of it.
        folder: where relative files of the recipe resolve, and where a `module:callable` may stand.
    Raises: EnvError: it cannot be made. RecipeError: its agents and the policies do not fit.
    """
    if num_envs < 1:
        raise EnvError(
            f"num_envs={num_envs} is below 1: there is nothing to step. Raise actors.envs_per_actor."
        )
    known = controllers(env)
    if controller is not None and controller not in known:
        raise EnvError(
            f"controller={controller!r} is not offered by a {env.kind} "
            f"environment.{did_you_mean(controller, known)} Choose from: {', '.join(known)}."
        )
    if isinstance(env, GymSettings):
        from seqrl_ray.envs.gym import GymEnv

        return GymEnv(env, policies, num_envs=num_envs, seeds=seeds, folder=folder)
    if isinstance(env, AtariSettings):
        from seqrl_ray.envs.atari import AtariEnv

        return AtariEnv(env, policies, num_envs=num_envs, seeds=seeds, evaluation=evaluation)
    if isinstance(env, PettingZooSettings):
        from seqrl_ray.envs.pettingzoo import PettingZooEnv

        return PettingZooEnv(env, policies, num_envs=num_envs, seeds=seeds, folder=folder)
    from seqrl_ray.envs.traffic.env import TrafficEnv

    if num_envs != 1:
        raise EnvError(
            f"num_envs={num_envs} is not 1 for a traffic environment: libsumo is one simulation per process. "
            "Set actors.envs_per_actor=1 and raise actors.count."
        )
    return TrafficEnv(
        env,
        policies,
        seeds=seeds,
        evaluation=evaluation,
        details=details,
        controller=controller,
        folder=folder,
    )


def metric_names(
    env: EnvSettings, policies: Mapping[str, PolicySettings], folder: Path | None = None
) -> tuple[str, ...]:
    """Names of the metrics every episode of an evaluation has.

    Args:
        env: the `[env]` table of a recipe.
        policies: policy id -> which agents it drives.
        folder: where the recipe stands; a `module:callable` may be beside it.
    Raises: EnvError: a `module:callable` that cannot be found.
    """
    if env.kind == "traffic":
        from seqrl_ray.envs.traffic.metrics import EMISSION_METRICS, METRICS

        return (*METRICS, *(EMISSION_METRICS if env.emissions else ()))
    if env.kind == "pettingzoo":
        of_policies = tuple(f"return_{policy_id}" for policy_id in policies) if len(policies) > 1 else ()
        return ("return", "return_total", *of_policies)
    if isinstance(env, GymSettings) and ":" in env.id:
        return ("return", *promised(load_callable(env.id, folder)))
    return ("return",)


def controllers(env: EnvSettings) -> tuple[str, ...]:
    """Names of the built-in rules an environment of this kind can be driven by."""
    if env.kind == "traffic":
        from seqrl_ray.envs.traffic.controllers import CONTROLLERS

        return CONTROLLERS
    return (RANDOM,)
