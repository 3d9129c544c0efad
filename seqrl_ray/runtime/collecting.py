"""Collecting offline data through Ray actors: a source of fragments without a learner.

Lost actors are replaced under the same budget as in training; what they had begun is dropped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType

import ray

from seqrl_ray.loops.behaviour import Behaviour
from seqrl_ray.loops.collect import Collector
from seqrl_ray.recipe import Recipe
from seqrl_ray.runtime.launch import place
from seqrl_ray.runtime.learner import RemoteSource
from seqrl_ray.runtime.supervisor import Supervisor
from seqrl_ray.types import GroupSpec
from seqrl_ray.types_env import Fragment, Weights


class RayCollection:
    """Rollout actors that only collect; a context manager that ends them."""

    def __init__(
        self, recipe: Recipe, behaviour: Behaviour, weights: Mapping[str, Weights], *, local: bool
    ) -> None:
        """Start the actors.

        Args:
            recipe: how many (of a range: the least), and of what.
            behaviour: who acts.
            weights: policy id -> what it acts with; empty where nothing learned is needed.
            local: Ray was started for this on this machine.
        """
        # a dataset is of so many actors, from its first step to its last, and rules and noise act in them
        fixed = recipe.actors.model_copy(update={"max_count": 0, "inference": "local"})
        recipe = recipe.model_copy(update={"actors": fixed})
        self._source = RemoteSource(recipe)
        self._source.offer(weights)
        placement = place(recipe, local=local)
        self._supervisor = Supervisor(
            recipe,
            actor_cpus=placement.actor_cpus,
            actor_labels=placement.actor_labels,
            behaviour=behaviour,
        )
        self.collector: Collector | None = None
        """Hears of lost actors."""
        for index in range(recipe.actors.count):
            self._source.add(index, self._supervisor.make_actor(index), replacement=False)

    def groups(self) -> dict[str, GroupSpec]:
        """Return the policy groups of one actor."""
        found: dict[str, GroupSpec] = ray.get(self._supervisor.actors[0].groups.remote())
        return found

    @property
    def overlaps(self) -> bool:
        """Actors go on while what they made is written."""
        return self._source.overlaps

    def poll(self, *, wait: bool = True) -> Sequence[tuple[str, Fragment]]:
        """Return fragments that are ready, and replace actors that were lost.

        Raises: WorkerError: an actor failed twice in the same way, or too many died.
        """
        fragments = self._source.poll(wait=wait)
        lost, self._source.lost = self._source.lost, []
        for actor in lost:
            what = f"actor-{actor.index}"
            if actor.application_error:
                self._supervisor.budget.application_error("actor", actor.cause)
            else:
                self._supervisor.budget.death(what)
            if self.collector is not None:
                self.collector.lost(what)
            self._supervisor.end(self._supervisor.actors[actor.index])
            self._source.add(actor.index, self._supervisor.make_actor(actor.index), replacement=True)
        return fragments

    def offer(self, weights: Mapping[str, Weights]) -> None:
        """Act with these weights from the next fragment on."""
        self._source.offer(weights)

    def __enter__(self) -> RayCollection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._supervisor.close()
