"""Room on a cluster: what its nodes have, what an autoscaler may add, and whether a run's processes fit.

What an autoscaler may add stands in the file that `ray up` leaves on the head; Ray has no call that says it.
Without such a file (a cluster started by hand, or by another operator) what is there is all there is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from seqrl_ray.errors import RecipeError
from seqrl_ray.recipe import Recipe
from seqrl_ray.recipe_labels import matches
from seqrl_ray.runtime.nodes import HEAD, NODE_GROUP

BOOTSTRAP = "~/ray_bootstrap_config.yaml"
"""Where `ray up` puts the cluster's file on its head; JSON, whatever it is called."""

READ_S = 60.0
"""How long the head may take to read a file."""


@dataclass(frozen=True)
class Nodes:
    """Some nodes alike."""

    labels: Mapping[str, str]
    cpus: float
    """Of all of them."""
    gpus: float = 0.0
    """Of all of them, where they are there already."""


def present() -> list[Nodes]:
    """The nodes that are there."""
    alive = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    has = [(node["Labels"], node["Resources"]) for node in alive]
    return [Nodes(labels, found.get("CPU", 0.0), found.get("GPU", 0.0)) for labels, found in has]


def to_come() -> list[Nodes]:
    """The nodes that the cluster's autoscaler may add to those that are there."""
    config = _cluster_file()
    if config is None:
        return []
    found = present()
    types = config["available_node_types"]
    left = int(config["max_workers"]) - (len(found) - 1)  # the head is no worker
    nodes = []
    for name, node_type in types.items():
        if name == config["head_node_type"] and len(types) > 1:
            continue
        there = sum(node.labels.get(NODE_GROUP) == name for node in found)
        count = max(0, min(left, int(node_type.get("max_workers", left)) - there))
        nodes.append(Nodes(node_type.get("labels") or {}, count * node_type["resources"].get("CPU", 0.0)))
    return nodes


def _cluster_file() -> dict[str, Any] | None:
    """The file of `ray up`, read on the head."""
    here = ray.get_runtime_context().get_node_id()
    node = next(n for n in ray.nodes() if n["NodeID"] == here)  # type: ignore[no-untyped-call]
    if HEAD in node["Resources"]:
        return _read(BOOTSTRAP)
    task = ray.remote(_read).options(num_cpus=0, resources={HEAD: 0.001})
    found: dict[str, Any] | None = ray.get(task.remote(BOOTSTRAP), timeout=READ_S)
    return found


def _read(path: str) -> dict[str, Any] | None:
    try:
        found = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and "available_node_types" in found else None


def cpus(nodes: Sequence[Nodes], selector: Mapping[str, str] | None = None) -> float:
    """CPUs of the nodes that a selector chooses."""
    return sum(node.cpus for node in nodes if matches(node.labels, selector or {}))


def check_room(recipe: Recipe, threads: int, shards: int) -> bool:
    """See whether the processes of a run fit on the cluster.

    Args:
        recipe: the run.
        threads: of all learners, one CPU each.
        shards: that are processes of their own, one CPU each.
    Returns: whether nodes must come for it.
    Raises: RecipeError: the cluster could never hold the run; the message shows the arithmetic.
    """
    actors = recipe.actors
    wanted = (
        ("actors", actors.label_selector, actors.count * actors.cpus),
        ("learner", recipe.learner.label_selector, float(threads)),
        ("replay", recipe.replay.label_selector, float(shards)),
    )
    server = float(recipe.actors.inference == "central")
    need, now = sum(amount for _, _, amount in wanted) + server, present()
    if need <= cpus(now) and all(amount <= cpus(now, selector) for _, selector, amount in wanted):
        return False
    grown = [*now, *to_come()]
    if need > cpus(grown):
        beside = " + 1 for the policy server" if server else ""
        raise RecipeError(
            f"actors.count={actors.count} x actors.cpus={actors.cpus:g} + {threads} for the "
            f"learner + {shards} shards{beside} = {need:g} CPUs, and the cluster has "
            f"{_amount(now, grown)}: the run could never be placed. Lower actors.count or add nodes."
        )
    for name, selector, amount in wanted:
        if amount > cpus(grown, selector):
            raise RecipeError(
                f"{name}.label_selector={dict(selector)}: {amount:g} CPUs are needed on nodes with these "
                f"labels, and the cluster has {_amount(now, grown, selector)} there: the run could never be "
                "placed. Add nodes with these labels, or change the selector."
            )
    return True


def _amount(now: Sequence[Nodes], grown: Sequence[Nodes], selector: Mapping[str, str] | None = None) -> str:
    has, most = cpus(now, selector), cpus(grown, selector)
    return f"{has:g}" if most == has else f"{has:g} and may grow to {most:g}"
