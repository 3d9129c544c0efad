"""`seqrl check`: what a recipe asks for and whether it holds.

It returns lines for people and prints nothing, so that a notebook may use it too. The contract itself stands
in `seqrl_ray.envs.check`, what a run refuses before it begins in `seqrl_ray.loops.preflight`; here
they are put in words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from seqrl_ray.api import prepare, read_recipe
from seqrl_ray.errors import RecipeError
from seqrl_ray.recipe import Recipe, data_root, find

if TYPE_CHECKING:
    from seqrl_ray.envs.check import Finding
    from seqrl_ray.loops.preflight import Plan
    from seqrl_ray.types import GroupSpec

LEAST_STEPS = 2
"""A restore is checked in the middle of the steps: it needs one before and one after it."""


@dataclass(frozen=True)
class Checked:
    """What `seqrl check` found."""

    lines: tuple[str, ...]
    ok: bool


def check_recipe(recipe: str | Path, overrides: Sequence[str] = (), *, steps: int = 200) -> Checked:
    """Validate a recipe, run the environment contract on it, and say what a run would be.

    Args:
        recipe: path or shipped name.
        overrides: `dotted.key=value`, applied on top.
        steps: vector steps of each of the contract's runs, at least 2.
    Returns: lines to print, the verdict last; `ok` is False if the environment breaks the contract.
    Raises: SeqrlError: the recipe is refused, or its environment cannot be made.
    """
    from seqrl_ray.envs.check import check_env
    from seqrl_ray.envs.make import make_env
    from seqrl_ray.loops.offline import locate

    if steps < LEAST_STEPS:
        raise RecipeError(
            f"--steps={steps} is below {LEAST_STEPS}: the contract cannot be checked. Give more."
        )
    resolved = read_recipe(recipe, overrides)
    there = locate(resolved)
    plan = prepare(resolved if there else resolved.model_copy(update={"data": None}))
    copies = min(2, resolved.actors.envs_per_actor)
    found = check_env(
        lambda seeds: make_env(
            resolved.env, resolved.policies, num_envs=copies, seeds=seeds, folder=Path(str(resolved.folder))
        ),
        steps=steps,
        seed=resolved.seed,
    )
    errors = sum(finding.level == "error" for finding in found)
    begins = "a run of this recipe can begin"
    if resolved.data is not None and there is None and resolved.data.collect is None:
        begins += " once its data is there"
    verdict = f"OK: the environment kept the contract for {steps} steps, and {begins}."
    if errors:
        verdict = f"NOT OK, {errors} error(s): a run of this recipe would learn from wrong data."
    lines = [*_what(resolved, find(str(recipe)), plan), *_data(resolved, there)]
    lines += [*_odd(plan, found), verdict]
    return Checked(tuple(lines), ok=not errors)


def check_cluster(file: str) -> Checked:
    """Check a file for `ray up`: a path, or a shipped name such as `cluster/aws.yaml`.

    Raises: RecipeError: there is no such file, or it is not one for `ray up`.
    """
    from seqrl_ray.cluster.check import check_file

    path = Path(file)
    if not path.is_file():
        path = data_root("cluster") / file.removeprefix("cluster/")
    if not path.is_file():
        known = sorted(p.name for p in data_root("cluster").glob("*.yaml"))
        raise RecipeError(f"{file} is neither a file nor a shipped cluster. Shipped: {', '.join(known)}.")
    found = check_file(path)
    return Checked(found.lines, ok=found.ok)


def _what(recipe: Recipe, path: Path, plan: Plan) -> list[str]:
    """What a run of the recipe would be."""
    env, actors, replay = recipe.env, recipe.actors, recipe.replay
    name = getattr(env, "id", None) or getattr(env, "game", None) or getattr(env, "map", None) or env.kind
    many = f"{actors.count} to {actors.most}" if actors.elastic else str(actors.count)
    lines = [
        f"recipe       {path}",
        f"environment  {env.kind} {name}: {many} x {actors.envs_per_actor} copies, "
        f"{recipe.stop.env_steps:,} steps",
    ]
    lines += [f"policy       {_policy(recipe, policy_id, group)}" for policy_id, group in plan.groups.items()]
    if plan.learns and not plan.pacing:
        lines.append("replay       RLlib's own, as [algorithm.config] says")
    for policy_id, pacing in plan.pacing.items():
        if not plan.learns[policy_id]:
            continue
        pace = "not paced"
        if pacing.samples_per_insert is not None:
            pace = f"{pacing.samples_per_insert:g} samples per insert within {pacing.band_items:.1f} items"
        lines.append(f"replay       {policy_id}: {replay.sampler}, {replay.capacity_steps:,} steps, {pace}")
    lines.append(
        f"judged       {', '.join(plan.judged)}: {recipe.evaluation.episodes} held-out seeds each, "
        f"by {recipe.evaluation.headline}"
    )
    return lines


def _data(recipe: Recipe, there: Path | None) -> list[str]:
    """Where the offline data is, or what becomes of the lack of it."""
    if recipe.data is None:
        return []
    if there is not None:
        return [f"data         {there}"]
    if recipe.data.collect is not None:
        how = f"not there yet, the run collects it ({recipe.data.collect})"
    else:
        how = "not there; collect or import it first (seqrl data --help)"
    return [f"data         {recipe.data.source}: {how}"]


def _policy(recipe: Recipe, policy_id: str, group: GroupSpec) -> str:
    agents = [slot.agent for slot in group.slots]
    shown = ", ".join(agents[:8]) + (", ..." if len(agents) > 8 else "")
    action = (
        f"{group.action.n} actions" if group.action.kind == "discrete" else f"box {list(group.action.shape)}"
    )
    return (
        f"{policy_id}: {recipe.algorithm['name']} drives {len(agents)} agent(s) ({shown}); "
        f"observation {group.policy_obs.dtype} {list(group.policy_obs.shape)}, {action}"
        f"{', some illegal at times' if group.masked else ''}"
    )


def _odd(plan: Plan, found: Sequence[Finding]) -> list[str]:
    return [f"net          {lint}" for lint in plan.lints] + [
        f"{finding.level:<12} {finding.rule}: {finding.message}" for finding in found
    ]
