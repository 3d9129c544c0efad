"""What can be found wrong with a run of RLlib's before anything of it exists; see `loops.preflight`."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from seqrl_ray.errors import CheckpointError, RecipeError
from seqrl_ray.loops import checkpoints
from seqrl_ray.loops.build import training_env
from seqrl_ray.loops.judge import check_targets, names
from seqrl_ray.loops.preflight import Plan, check_headline
from seqrl_ray.recipe import Recipe
from seqrl_ray.rllib.acting import RllibPolicy
from seqrl_ray.rllib.config import is_offline, make_config, settings_of
from seqrl_ray.rllib.offline import open_for
from seqrl_ray.types import GroupSpec

NOT_READ = {
    "replay": "*",
    "actors": ("fragment_steps", "in_flight", "inference_gpus", "max_node_losses_per_10_min"),
    "learner": (
        "batch_size",
        "updates_per_call",
        "prefetch",
        "compile",
        "publish_every_s",
        "max_policy_lag_updates",
    ),
}
"""Sections of a recipe -> the keys that a run of RLlib's does not read."""

REFUSED = {
    "learner.count": "RLlib has its own learners. Set algorithm.config.num_learners",
    "actors.max_count": "RLlib's env runners are as many from beginning to end. Give actors.count one number",
    "actors.inference": "RLlib's env runners act themselves. Leave it out",
    "actors.label_selector": "RLlib's env runners stand on any node. Leave it out",
    "learner.label_selector": "RLlib's learner is the driver, or stands on any node. Leave it out",
    "replay.label_selector": "RLlib's replay buffer is in the driver. Leave it out",
}
"""Keys that may have no other value than their default -> why, and what to do."""


def preflight(recipe: Recipe, checkpoint: Path | None = None) -> Plan:
    """Make one environment, RLlib's configuration and the networks, once, here.

    Args:
        recipe: the run.
        checkpoint: what the run is to go on from.
    Raises: RecipeError, EnvError: the run could not begin. CheckpointError: it could not go on from there.
    """
    judged = names(recipe)
    check_headline(recipe)
    check_targets(recipe)
    check_recipe(recipe)
    env, groups = _look(recipe)
    make_config(recipe, groups, runners=recipe.actors.count)
    data_returns = None
    if recipe.data is not None:
        data_returns = open_for(recipe, groups).return_range()
    policies = {
        policy_id: RllibPolicy(recipe.algorithm["name"], settings_of(recipe), group)
        for policy_id, group in groups.items()
    }
    if checkpoint is not None:
        checkpoints.verify(checkpoint)
        if not (checkpoint / "rllib.json").is_file():
            raise CheckpointError(
                f"{checkpoint} was not written by an algorithm of RLlib's: there is nothing of it to go on "
                "from. Resume with the run's own algorithm.name."
            )
        for policy_id, weights in checkpoints.acting_weights(checkpoint).items():
            policies[policy_id].load_weights(weights.flat)
    return Plan(
        groups=groups,
        specs={},
        pacing={},
        learns=dict.fromkeys(groups, True),
        judged=judged,
        data_returns=data_returns,
        lints=env,
    )


def check_recipe(recipe: Recipe) -> None:
    """Refuse what the bridge has not. Raises: RecipeError."""
    name = recipe.algorithm["name"]
    for key, why in REFUSED.items():
        section, _, plain = key.partition(".")
        settings = getattr(recipe, section)
        value, default = getattr(settings, plain), type(settings).model_fields[plain].default
        if value != default and (key != "actors.max_count" or recipe.actors.elastic):
            raise RecipeError(f"{key}={value} with algorithm.name={name!r}: {why}.")
    kinds, data = [phase.kind for phase in recipe.phase], recipe.data is not None
    if kinds != (["offline"] if is_offline(name) else ["online"]) or (data and not is_offline(name)):
        own = (
            'learns from data alone. Give [data], and one [[phase]] of kind "offline"'
            if is_offline(name)
            else "learns in one online phase. Leave [data] and [[phase]] out"
        )
        raise RecipeError(
            f"algorithm.name={name!r} with phases {kinds} and {'' if data else 'no '}[data]: it {own}."
        )
    for policy_id, policy in recipe.policies.items():
        if policy.algorithm:
            raise RecipeError(
                f"policies.{policy_id}.algorithm with algorithm.name={name!r}: one configuration of RLlib's "
                "drives all policies. Leave it out."
            )


def unused_keys(recipe: Recipe) -> list[str]:
    """Return a line for people that names the keys which the recipe sets and RLlib does not read; or none."""
    found = []
    for section, keys in NOT_READ.items():
        settings = getattr(recipe, section)
        for name, info in type(settings).model_fields.items():
            elsewhere = name == "label_selector" or (section, name) == ("replay", "wiring")  # resolved by us
            if not elsewhere and (keys == "*" or name in keys) and getattr(settings, name) != info.default:
                found.append(f"{section}.{name}")
    if not found:
        return []
    return [f"not read by RLlib, which has most of them under [algorithm.config]: {', '.join(found)}"]


def groups_of(recipe: Recipe) -> dict[str, GroupSpec]:
    """Return policy id -> the slots and spaces of ONE environment copy."""
    return _look(recipe)[1]


def _look(recipe: Recipe) -> tuple[tuple[str, ...], dict[str, GroupSpec]]:
    one_copy = recipe.model_copy(update={"actors": recipe.actors.model_copy(update={"envs_per_actor": 1})})
    with closing(training_env(one_copy, 0, 0)) as env:
        return tuple(getattr(env, "lints", ())), dict(env.groups)
