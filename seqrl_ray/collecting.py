"""`seqrl data collect` and `seqrl data replay`: from a recipe, in this process or through Ray, or from what a
run has stored, to a dataset folder.
"""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from seqrl_ray import api
from seqrl_ray.data.of_replay import write_replay
from seqrl_ray.data.writer import DatasetWriter
from seqrl_ray.errors import DataError, RecipeError
from seqrl_ray.loops import checkpoints
from seqrl_ray.loops.behaviour import Behaviour
from seqrl_ray.loops.build import rollout
from seqrl_ray.loops.collect import Collector, collect
from seqrl_ray.loops.preflight import Plan, preflight
from seqrl_ray.loops.run_folder import open_run
from seqrl_ray.loops.source import FragmentSource, LocalSource
from seqrl_ray.recipe import Recipe, dump
from seqrl_ray.types import GroupSpec, Mode
from seqrl_ray.types_env import Weights

SHOW_EVERY_S = 2.0


def collect_into(
    recipe: Recipe,
    folder: Path,
    *,
    steps: int | None,
    run: Path | None,
    controller: str | None,
    noise: float,
    mode: Mode,
    local: bool,
    address: str | None,
    quiet: bool,
) -> dict[str, Any]:
    """Collect whole episodes; see `seqrl_ray.api.collect`."""
    began = time.monotonic()
    if run is not None and controller is not None:
        raise RecipeError(
            f"--run={run} and --controller={controller} are both given: one of them acts. Leave one out."
        )
    if not 0.0 <= noise <= 1.0:
        raise RecipeError(f"--noise={noise} is not in [0, 1]: it is a chance. Change it.")
    weights: dict[str, Weights] = {}
    if run is not None:
        source = api.read_recipe(open_run(run) / "recipe.toml")
        keep = {"algorithm": source.algorithm, "policies": source.policies}
        recipe = recipe.model_copy(update=keep)
        _, weights = api.checkpoint_weights(run, source)
    plan = preflight(recipe.model_copy(update={"data": None}))
    wanted = recipe.stop.env_steps if steps is None else steps
    if wanted < 1:
        raise RecipeError("--steps is missing and the recipe has no stop.env_steps: nothing to collect.")
    if run is None and controller is None and any(plan.learns.values()):
        raise RecipeError(
            f"algorithm.name={recipe.algorithm['name']!r} would act untrained: random weights are nobody's "
            'policy. Give --run or --controller, or algorithm.name="random".'
        )
    policy_id, group = _only(plan)
    behaviour = Behaviour(controller, noise, mode)
    meta = {
        "recipe": dump(recipe),
        "environment": recipe.env.model_dump(mode="json"),
        "policy": str(run) if run is not None else controller or recipe.algorithm["name"],
        "behaviour": dict(vars(behaviour)),
        "seed": recipe.seed,
    }
    with ExitStack() as stack:
        writer = stack.enter_context(DatasetWriter(folder, group, meta=meta))
        actor_group = group
        if local:
            acting = rollout(recipe, 0, 0, behaviour)
            stack.callback(acting.close)
            actor_group = acting.env.groups[policy_id]
            source_of: FragmentSource = LocalSource(acting)
            collector = Collector(writer, actor_group, wanted)
        else:
            source_of, collector = _through_ray(stack, recipe, behaviour, weights, address, writer, wanted)
        source_of.offer(weights)
        shown = 0.0

        def heard(done: int, episodes: int) -> None:
            nonlocal shown
            if not quiet and (time.monotonic() - shown > SHOW_EVERY_S or done >= wanted):
                shown = time.monotonic()
                rate = done / max(shown - began, 1e-9)
                sys.stderr.write(
                    f"collecting {min(1.0, done / wanted):4.0%} | {done:,} steps | {episodes:,} episodes | "
                    f"{rate:,.0f} steps/s\n"
                )

        collected = collect(collector, source_of, heard=heard)
    return {"folder": str(folder), **collected, "wall_s": time.monotonic() - began}


def replay_into(run: Path, folder: Path) -> dict[str, Any]:
    """Write the whole episodes of a run's replay; see `seqrl_ray.api.replay_data`."""
    run = open_run(run)
    recipe = api.read_recipe(run / "recipe.toml")
    checkpoint = checkpoints.latest(run / "checkpoints")
    plan = preflight(recipe.model_copy(update={"data": None}), checkpoint)
    policy_id, group = _only(plan)
    saved = checkpoint / "replay" / policy_id
    snapshots = sorted(saved.glob("shard-*")) or [saved]  # of the service wiring, or the learner's own
    meta = {
        "recipe": dump(recipe),
        "environment": recipe.env.model_dump(mode="json"),
        "policy": str(run),
        "replay": {"checkpoint": checkpoint.name, "env_steps": checkpoints.steps_of(checkpoint)},
        "seed": recipe.seed,
    }
    with DatasetWriter(folder, group, meta=meta) as writer:
        left = write_replay(snapshots, plan.specs[policy_id], recipe.replay, writer)
        steps, episodes = writer.steps, writer.episodes
        if not episodes:
            raise DataError(
                f"{checkpoint} stores {left} decisions and no whole episode: there is nothing to write. "
                "Train for longer, or with a larger replay.capacity_steps."
            )
        if left:
            writer.meta["notes"] = [f"{left} stored decisions are of no whole episode and were left out"]
    return {"folder": str(folder), "steps": steps, "episodes": episodes, "left_out_steps": left}


def _only(plan: Plan) -> tuple[str, GroupSpec]:
    """The one policy there is, and its group. Raises: RecipeError: there are more."""
    if len(plan.groups) != 1:
        raise RecipeError(
            f"policies {sorted(plan.groups)} make one dataset each, and this command writes one. Use one."
        )
    ((policy_id, group),) = plan.groups.items()
    return policy_id, group


def _through_ray(
    stack: ExitStack,
    recipe: Recipe,
    behaviour: Behaviour,
    weights: dict[str, Weights],
    address: str | None,
    writer: DatasetWriter,
    wanted: int,
) -> tuple[FragmentSource, Collector]:
    from seqrl_ray.runtime.collecting import RayCollection
    from seqrl_ray.runtime.launch import connected

    stack.enter_context(connected(address))
    local = address in (None, "local")
    source = stack.enter_context(RayCollection(recipe, behaviour, weights, local=local))
    (group,) = source.groups().values()
    source.collector = Collector(writer, group, wanted)
    return source, source.collector
