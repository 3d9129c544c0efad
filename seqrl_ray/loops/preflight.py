"""Preflight: whatever can be found wrong with a run before anything of it exists, no folder and no process.

The caller's process makes one copy of the environment, the algorithms and the pacing, loads the checkpoint
that is to be gone on from, and lets everything go again. What fails here fails as one clear line; the same
mistake found later, in an actor on another machine, would leave a run folder and a worker's traceback.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from seqrl_ray.envs.make import metric_names
from seqrl_ray.errors import RecipeError, did_you_mean
from seqrl_ray.loops import checkpoints
from seqrl_ray.loops.build import training_env
from seqrl_ray.loops.judge import check_targets, names
from seqrl_ray.loops.learner import Learner
from seqrl_ray.loops.offline import locate, open_data
from seqrl_ray.loops.trainer import make_pacing
from seqrl_ray.recipe import Recipe
from seqrl_ray.replay.pacing import Pacing
from seqrl_ray.types import GroupSpec, SampleSpec


@dataclass(frozen=True)
class Plan:
    """What a recipe asks for, seen from inside."""

    groups: Mapping[str, GroupSpec]
    """Policy id -> slots of ONE environment copy, and spaces."""
    specs: Mapping[str, SampleSpec]
    pacing: Mapping[str, Pacing]
    learns: Mapping[str, bool]
    judged: tuple[str, ...]
    """Who plays the final evaluation: the policy, then the controllers."""
    data_returns: tuple[float, float] | None
    """Lowest and highest return of the offline episodes that the run uses."""
    lints: tuple[str, ...]
    """What the environment itself calls odd, in words (faults of a SUMO net)."""


def preflight(recipe: Recipe, checkpoint: Path | None = None) -> Plan:
    """Make what a run is made of, once, here.

    Args:
        recipe: the run.
        checkpoint: what the run is to go on from.
    Raises: RecipeError, EnvError: the run could not begin. CheckpointError: it could not go on from there.
    """
    judged = names(recipe)
    check_headline(recipe)
    check_targets(recipe)
    one_copy = recipe.actors.model_copy(update={"envs_per_actor": 1})
    eager = recipe.learner.model_copy(update={"compile": "off"})  # nothing is updated here
    small = recipe.model_copy(update={"actors": one_copy, "learner": eager})
    with closing(training_env(small, 0, 0)) as env:
        groups, lints = dict(env.groups), tuple(getattr(env, "lints", ()))
    # A checkpoint holds the data's rows: the dataset itself may be gone by then.
    offline = open_data(recipe, groups) if checkpoint is None or locate(recipe) else None
    learner = Learner(small, groups)
    if checkpoint is not None:
        checkpoints.verify(checkpoint)
        learner.restore(checkpoints.load(checkpoint, "trainer")["learner"])
    specs = {policy_id: algorithm.sample_spec() for policy_id, algorithm in learner.algorithms.items()}
    copies = recipe.actors.envs_per_actor
    return Plan(
        groups=groups,
        specs=specs,
        pacing={p: make_pacing(recipe, specs[p], copies * len(group.slots)) for p, group in groups.items()},
        learns={policy_id: algorithm.learns for policy_id, algorithm in learner.algorithms.items()},
        judged=judged,
        data_returns=offline.return_range() if offline is not None else None,
        lints=lints,
    )


def check_headline(recipe: Recipe) -> None:
    """Raise RecipeError if the headline is no metric of the environment."""
    known = metric_names(recipe.env, recipe.policies, Path(str(recipe.folder)))
    headline = recipe.evaluation.headline
    if headline not in known:
        raise RecipeError(
            f"evaluation.headline={headline!r} is not a metric of this environment: there is nothing to "
            "judge by."
            f"{did_you_mean(headline, known)} Metrics here: {', '.join(known)}."
        )
