"""Room for a sweep: what each process of a trial reserves, and whether the population fits at once.

`pbt` pauses nobody, so all its members must live at the same time; other schedulers may queue, and then one
trial must fit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from ray import tune

from seqrl_ray.errors import RecipeError
from seqrl_ray.recipe import Recipe
from seqrl_ray.runtime.session import Placement
from seqrl_ray.tune.settings import IN_PLACE, SweepSettings


@dataclass(frozen=True)
class Room:
    """What one trial reserves."""

    cpus: float
    """Of each of its processes that works."""
    gpus: float
    """Of its learner."""
    processes: int

    def bundles(self) -> list[dict[str, float]]:
        """Return the bundles of a trial's placement group; the first is Tune's own actor's."""
        learner = {"CPU": self.cpus, **({"GPU": self.gpus} if self.gpus else {})}
        if self.processes == 1:
            return [learner]
        return [{}, learner, *({"CPU": self.cpus} for _ in range(self.processes - 1))]

    def factory(self) -> Any:
        """Return what Tune makes placement groups of."""
        return tune.PlacementGroupFactory(self.bundles(), strategy="PACK")

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


def make_room(sweep: SweepSettings, recipe: Recipe, *, one_process: bool, cpus: float, gpus: float) -> Room:
    """Share the machine or cluster out.

    Args:
        sweep: says how many trials, and what each reserves.
        recipe: says how many actors.
        one_process: a trial is one process; else it has a learner, its actors and an evaluator.
        cpus: there are, in all.
        gpus: there are, in all.
    Raises: RecipeError: what must live at once does not fit; the message shows the arithmetic.
    """
    processes = 1 if one_process else recipe.actors.count + 2
    at_once = sweep.trials if sweep.scheduler.kind == IN_PLACE else 1
    asked = sweep.trial.cpus
    share = min(1.0, cpus / (sweep.trials * processes))
    each = max(0.01, math.floor(share * 100) / 100) if asked == "auto" else float(asked)
    need_cpus, need_gpus = at_once * processes * each, at_once * sweep.trial.gpus
    if need_cpus > cpus + 1e-9 or need_gpus > gpus + 1e-9:
        who = f"trials={at_once} x {processes}" if at_once > 1 else f"one trial x {processes}"
        why = (
            "the population cannot be placed at once, and pbt pauses nobody"
            if at_once > 1
            else "not one trial could be placed"
        )
        raise RecipeError(
            f"{who} process{'es' if processes > 1 else ''} x trial.cpus={each:g} = {need_cpus:g} CPUs and "
            f"{at_once} x trial.gpus={sweep.trial.gpus:g} = {need_gpus:g} GPUs, and there are {cpus:g} CPUs "
            f"and {gpus:g} GPUs: {why}. Lower trials, trial.cpus or trial.gpus, or add nodes."
        )
    return Room(each, sweep.trial.gpus, processes)
