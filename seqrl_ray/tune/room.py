"""Room for a sweep: what each process of a trial reserves, and whether the population fits at once.

`pbt` pauses nobody, so all its members must live at the same time; other schedulers may queue, and then one
trial must fit. With label selectors each process of a trial has a bundle of its own, on nodes with its
labels, and only such nodes count.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any

from ray import tune
from ray.util import get_current_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from seqrl_ray.errors import RecipeError
from seqrl_ray.recipe import Recipe
from seqrl_ray.recipe_labels import matches
from seqrl_ray.runtime.room import Nodes
from seqrl_ray.runtime.session import Placement
from seqrl_ray.tune.plan import labels_of
from seqrl_ray.tune.settings import IN_PLACE, SweepSettings

Labels = Mapping[str, str]
NAMES = ("learner", "actors")
"""Sections of a recipe whose processes a trial has."""


@dataclass(frozen=True)
class Room:
    """What one trial reserves."""

    cpus: float
    """Of each of its processes that works."""
    gpus: float
    """Of its learner."""
    processes: int
    learner_labels: Labels = field(default_factory=dict)
    """What the node of the learner must have; where a trial is one process, of that."""
    actor_labels: Labels = field(default_factory=dict)
    """What the nodes of actors and evaluator must have."""

    def bundles(self) -> list[dict[str, float]]:
        """Return the bundles of a trial's placement group; the first is Tune's own actor's."""
        learner = {"CPU": self.cpus, **({"GPU": self.gpus} if self.gpus else {})}
        if self.processes == 1:
            return [learner]
        return [{}, learner, *({"CPU": self.cpus} for _ in range(self.processes - 1))]

    def labels(self) -> list[dict[str, str]] | None:
        """Return what the node of each bundle that reserves something must have; None: any node will do."""
        if not self.learner_labels and not self.actor_labels:
            return None
        others = [dict(self.actor_labels) for _ in range(self.processes - 1)]
        return [dict(self.learner_labels), *others]

    def factory(self) -> Any:
        """Return what Tune makes placement groups of."""
        labels = self.labels()
        asked = {} if labels is None else {"bundle_label_selector": labels}
        return tune.PlacementGroupFactory(self.bundles(), strategy="PACK", **asked)

    def placement(self, recipe: Recipe) -> Placement | None:
        """Return where the session's processes go; None: all in Tune's own actor."""
        if self.processes == 1:
            return None
        threads = 1 if recipe.learner.threads == "auto" else int(recipe.learner.threads)
        return Placement(
            device=recipe.learner.device,
            num_gpus=self.gpus,
            learner_threads=threads,
            actor_cpus=self.cpus,
            learner_cpus=self.cpus,
            shard_cpus=self.cpus,
            evaluator_cpus=self.cpus,
            workers=1,
        )


def pinned(placement: Placement | None, room: Room) -> Placement | None:
    """Return the placement with a bundle of the group that this process stands in for each of its own.

    Without labels Ray may give any bundle to any of them; with labels an actor in the learner's would leave
    the learner none that it may stand in.
    """
    if placement is None or room.labels() is None:
        return placement
    group = get_current_placement_group()
    assert group is not None, "Tune places trials in groups"
    at = [
        {"scheduling_strategy": PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=i)}
        for i in range(room.processes)
    ]
    return replace(placement, pin=at[0], actor_pins=tuple(at[1:-1]), evaluator_pin=at[-1])


def make_room(
    sweep: SweepSettings,
    recipe: Recipe,
    *,
    one_process: bool,
    cpus: float,
    gpus: float,
    nodes: Sequence[Nodes] | None = None,
) -> Room:
    """Share the machine or cluster out.

    Args:
        sweep: says how many trials, and what each reserves.
        recipe: says how many actors, and on which nodes.
        one_process: a trial is one process; else it has a learner, its actors and an evaluator.
        cpus: there are, in all.
        gpus: there are, in all.
        nodes: of a cluster; None: a machine of our own, where labels mean nothing.
    Raises: RecipeError: what must live at once does not fit; the message shows the arithmetic.
    """
    processes = 1 if one_process else recipe.actors.count + 2
    at_once = sweep.trials if sweep.scheduler.kind == IN_PLACE else 1
    learner, actors = ({}, {}) if nodes is None else labels_of(recipe, one_process=one_process)
    said = {name: f"{name}.label_selector={getattr(recipe, name).label_selector}" for name in NAMES}
    if processes == 1:
        given = [said[name] for name in NAMES if getattr(recipe, name).label_selector]
        kinds = [(" and ".join(given), learner, 1, sweep.trial.gpus)]
    else:
        kinds = [
            (said["learner"], learner, 1, sweep.trial.gpus),
            (said["actors"], actors, processes - 1, 0.0),
        ]
    groups = [group for size in range(1, len(kinds) + 1) for group in combinations(kinds, size)]
    groups = [group for group in groups if all(selector for _, selector, _, _ in group)]
    asked = sweep.trial.cpus
    shares = [cpus / (sweep.trials * processes)]
    for group in groups:
        shares.append(_on(nodes, group)[0] / (sweep.trials * sum(count for _, _, count, _ in group)))
    share = min(1.0, *shares)
    each = max(0.01, math.floor(share * 100) / 100) if asked == "auto" else float(asked)
    why = (
        "the population cannot be placed at once, and pbt pauses nobody"
        if at_once > 1
        else "not one trial could be placed"
    )

    def check(
        count: int, trial_gpus: float, has: tuple[float, float], where: str, there: str, do: str
    ) -> None:
        need_cpus, need_gpus = at_once * count * each, at_once * trial_gpus
        if need_cpus <= has[0] + 1e-9 and need_gpus <= has[1] + 1e-9:
            return
        who = f"trials={at_once} x {count}" if at_once > 1 else f"one trial x {count}"
        raise RecipeError(
            f"{who} process{'es' if count > 1 else ''} x trial.cpus={each:g} = {need_cpus:g} CPUs and "
            f"{at_once} x trial.gpus={trial_gpus:g} = {need_gpus:g} GPUs{where}, and there are {has[0]:g} "
            f"CPUs and {has[1]:g} GPUs{there}: {why}. Lower trials, trial.cpus or trial.gpus, {do}."
        )

    check(processes, sweep.trial.gpus, (cpus, gpus), "", "", "or add nodes")
    for group in groups:
        selectors = " or ".join(name for name, *_ in group)
        check(
            sum(count for _, _, count, _ in group),
            sum(amount for _, _, _, amount in group),
            _on(nodes, group),
            f" on nodes with {selectors}",
            " there",
            "add such nodes, or change the selector",
        )
    return Room(each, sweep.trial.gpus, processes, learner, actors)


def _on(
    nodes: Sequence[Nodes] | None, group: Sequence[tuple[str, Labels, int, float]]
) -> tuple[float, float]:
    """Return the CPUs and GPUs of the nodes on which any of these processes may stand."""
    found = [node for node in nodes or () if any(matches(node.labels, selector) for _, selector, *_ in group)]
    return sum(node.cpus for node in found), sum(node.gpus for node in found)
