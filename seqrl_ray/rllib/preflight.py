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
from seqrl_ray.rllib.config import make_config, settings_of
from seqrl_ray.types import GroupSpec

NOT_READ = {
    "replay": "*",
    "actors": ("fragment_steps", "in_flight"),
    "learner": (
        "batch_size",
        "updates_per_call",
        "prefetch",
        "compile",
        "publish_every_s",
        "max_policy_lag_updates",
    ),
}
"""Sections of a recipe -> the keys that RLlib has its own of."""


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
        data_returns=None,
        lints=env,
    )


def check_recipe(recipe: Recipe) -> None:
    """Refuse what the bridge has not. Raises: RecipeError."""
    name = recipe.algorithm["name"]
    kinds = [phase.kind for phase in recipe.phase]
    if kinds != ["online"] or recipe.data is not None:
        raise RecipeError(
            f"algorithm.name={name!r} with phases {kinds}{' and [data]' if recipe.data else ''}: RLlib's "
            "algorithms run in one online phase here. Leave [data] and [[phase]] out."
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
            wiring = (section, name) == ("replay", "wiring")  # resolved by us on resume
            if not wiring and (keys == "*" or name in keys) and getattr(settings, name) != info.default:
                found.append(f"{section}.{name}")
    if not found:
        return []
    return [f"not read, RLlib has its own under [algorithm.config]: {', '.join(found)}"]


def groups_of(recipe: Recipe) -> dict[str, GroupSpec]:
    """Return policy id -> the slots and spaces of ONE environment copy."""
    return _look(recipe)[1]


def _look(recipe: Recipe) -> tuple[tuple[str, ...], dict[str, GroupSpec]]:
    one_copy = recipe.model_copy(update={"actors": recipe.actors.model_copy(update={"envs_per_actor": 1})})
    with closing(training_env(one_copy, 0, 0)) as env:
        return tuple(getattr(env, "lints", ())), dict(env.groups)
