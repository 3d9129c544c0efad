"""Reserving room on a cluster for what must not be lost: the learner and the shards.

They write checkpoints, so they stand on the driver's node, whose disk these go to; or on nodes with the
labels that the recipe asks for, and then the run folder must be storage that those nodes share with the
driver.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from seqrl_ray.errors import RecipeError
from seqrl_ray.recipe import Recipe
from seqrl_ray.recipe_labels import matches
from seqrl_ray.runtime.room import check_room

RESERVE_S = 60.0
"""How long a cluster may take to find room for learner and shards."""

NODE_ID = "ray.io/node-id"
"""Ray's label for one node. (Its resource `node:ADDRESS` would name several where they share an address.)"""

SERVER_CPUS = 1.0
"""What a policy server reserves."""

NODES_COME_S = 900.0
"""The same where nodes must be started first: as long as Ray's launcher waits for one."""


@dataclass(frozen=True)
class Held:
    """Room that was reserved: Ray options of the learner, the shards, and the learners beside the first."""

    learner: dict[str, Any] = field(default_factory=dict)
    shards: dict[str, Any] = field(default_factory=dict)
    followers: tuple[dict[str, Any], ...] = ()
    elsewhere: tuple[str, ...] = ()
    """Ids of nodes of them that are not the driver's."""
    server: dict[str, Any] = field(default_factory=dict)
    """Of the policy server, if there is one."""


def hold(recipe: Recipe, num_gpus: float, threads: int, shards: int, *, server_gpus: float = 0.0) -> Held:
    """Reserve room for the learner and the shards: on the driver's node, whose disk their checkpoints go to,
    or on nodes with the labels that the recipe asks for.

    A policy server (`server_gpus` are its) stands with the learner where both share one GPU, else anywhere.

    Raises: RecipeError: there is no such room.
    """
    patience_s = NODES_COME_S if check_room(recipe, recipe.learner.count * threads, shards) else RESERVE_S
    here = ray.get_runtime_context().get_node_id()
    node = next(n for n in ray.nodes() if n["NodeID"] == here)  # type: ignore[no-untyped-call]
    apart = recipe.replay.label_selector if shards else {}
    if recipe.replay.label_selector and not shards:
        raise RecipeError(
            f"replay.label_selector={recipe.replay.label_selector} and the run is colocated: the shard "
            "stands in the learner's process. Set learner.label_selector instead, or replay.wiring=service."
        )
    bundle = {"CPU": float(threads) + (0 if apart else shards)}
    shares = server_gpus > 0.0 and num_gpus > 0.0 and num_gpus + server_gpus <= 1.0
    if shares:
        bundle["CPU"] += SERVER_CPUS
    gpus = num_gpus + (server_gpus if shares else 0.0)
    if gpus:
        bundle["GPU"] = gpus
    selector = recipe.learner.label_selector
    if matches(node["Labels"], selector):
        has = {name: node["Resources"].get(name, 0.0) for name in ("CPU", "GPU")}
        why = (
            f"the learner and the shards need {bundle['CPU']:g} CPUs and {gpus:g} GPUs on the node this "
            f"command runs on (their checkpoints go to its disk); it has {has['CPU']:g} and {has['GPU']:g} "
            "in all: they could not be placed. Run the command on a larger node, or lower learner.threads, "
            "replay.shards or learner.num_gpus."
        )
        learner = _reserve([bundle], {NODE_ID: here}, RESERVE_S, why)
    else:
        why = (
            f"learner.label_selector={selector}: no node with these labels has {bundle['CPU']:g} CPUs and "
            f"{gpus:g} GPUs free: the learner could not be placed. Add such a node, or change it."
        )
        learner = _reserve([bundle], selector, patience_s, why)
    held = learner
    if apart:
        why = (
            f"replay.label_selector={apart}: nodes with these labels have no {shards} CPUs free: the shards "
            "could not be placed. Add such nodes, or change the selector."
        )
        held = _reserve([{"CPU": 1.0}] * shards, apart, patience_s, why)
    followers = _hold_followers(recipe, num_gpus, threads, patience_s)
    serves = learner
    if recipe.actors.inference == "central" and not shares:
        bundle = {"CPU": SERVER_CPUS, **({"GPU": server_gpus} if server_gpus else {})}
        why = (
            f"actors.inference='central': no node has {SERVER_CPUS:g} CPU and {server_gpus:g} GPUs free: the "
            "policy server could not be placed. Add a node, or lower actors.inference_gpus."
        )
        serves = _reserve([bundle], {}, patience_s, why)
    table = [placement_group_table(group)["bundles_to_node_id"] for group in (learner, held)]
    nodes = {node_id for bundles in table for node_id in bundles.values()}
    on_learner, on_shards, on_server = (
        {"scheduling_strategy": PlacementGroupSchedulingStrategy(group)} for group in (learner, held, serves)
    )
    return Held(on_learner, on_shards, followers, tuple(sorted(nodes - {here})), on_server)


def _hold_followers(
    recipe: Recipe, num_gpus: float, threads: int, patience_s: float
) -> tuple[dict[str, Any], ...]:
    """Reserve room for the learners beside the first, lest actors take it: without one none learns."""
    count, selector = recipe.learner.count - 1, recipe.learner.label_selector
    if not count:
        return ()
    bundle = {"CPU": float(threads), **({"GPU": num_gpus} if num_gpus else {})}
    where = f" on nodes with the labels {dict(selector)}" if selector else ""
    why = (
        f"learner.count={recipe.learner.count}: {count} times {threads} CPUs and {num_gpus:g} GPUs are not "
        f"free{where} beside the first learner: the others could not be placed. Add nodes, or lower "
        "learner.count or learner.threads."
    )
    group = _reserve([bundle] * count, selector, patience_s, why)
    at = [PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=i) for i in range(count)]
    return tuple({"scheduling_strategy": strategy} for strategy in at)


def _reserve(
    bundles: list[dict[str, float]], selector: Mapping[str, str], patience_s: float, why: str
) -> PlacementGroup:
    """Reserve bundles on nodes with these labels, together where they fit together.

    Raises: RecipeError: `why`, after `patience_s`.
    """
    labels = [dict(selector)] * len(bundles) if selector else None
    group: PlacementGroup = placement_group(bundles, strategy="PACK", bundle_label_selector=labels)
    if not group.wait(timeout_seconds=patience_s):
        remove_placement_group(group)
        raise RecipeError(why)
    return group


def _see(folder: str) -> bool:
    return Path(folder).exists()


def check_shared(root: Path, nodes: Iterable[str]) -> None:
    """See whether other nodes that will write checkpoints see the folder they go to.

    Raises: RecipeError: one does not.
    """
    there = next(folder for folder in root.absolute().parents if folder.is_dir())
    for node in nodes:
        with tempfile.NamedTemporaryFile(dir=there, prefix=".seqrl-") as probe:
            task = ray.remote(_see).options(
                num_cpus=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
            )
            if not ray.get(task.remote(probe.name)):
                raise RecipeError(
                    f"--run-dir={root.parent} is not the same folder on every node: checkpoints that learner "
                    "or shards write elsewhere could not be found again. Put it on storage that all nodes "
                    "share, or run the command on a node with their labels."
                )
