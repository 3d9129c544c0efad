"""What a sweep may do to a run while it lives: take a copy of what it learned, give it another's, change its
mutable keys, renew its replay.

What is taken and given is `Algorithm.learned()` of every policy: parameters, targets, the optimiser's
moments; never hyper-parameters, random streams or counters. Whoever is given it raises its lineage epoch, so
that weights under the old version are never taken for the new ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from numpy.typing import NDArray

from seqrl_ray.algorithms import settings_class
from seqrl_ray.errors import CheckpointError, RecipeError
from seqrl_ray.loops import checkpoints
from seqrl_ray.loops.build import algorithms
from seqrl_ray.loops.drive import Advance, Session
from seqrl_ray.loops.trainer import Trainer, make_pacing, make_shards
from seqrl_ray.recipe import LearnerSettings, Recipe
from seqrl_ray.recipe_replay import ReplaySettings
from seqrl_ray.replay.restore import restore as restore_shards
from seqrl_ray.settings import Settings, mutable_keys, parse
from seqrl_ray.types_env import EpisodeEnd

Learned = dict[str, dict[str, NDArray[Any]]]
"""Policy id -> `Algorithm.learned()`."""

Replay = Literal["keep", "share", "clear"]


class LivingSession(Session, Protocol):
    """A run that a sweep can hold at a step count, score, copy and change."""

    def advance_to(self, env_steps: int, seconds: float) -> Advance:
        """Train until `env_steps` are made (0 = no limit), for about `seconds` at most.

        Raises: DivergedError: the weights are lost; the session lives on and can be given others.
        """
        ...

    def judge_now(self, seeds: Sequence[int]) -> list[EpisodeEnd]:
        """Play one greedy episode per seed with the present weights, and wait for them."""
        ...

    def learned(self) -> Any:
        """Return a copy of what was learned: `Learned`, or what stands for it where it is not here."""
        ...

    def adopt(self, learned: Any, *, replay: Replay = "keep", donor: Path | None = None) -> None:
        """Go on from another run's `learned()`; None = from new parameters.

        Args:
            learned: of an equal algorithm.
            replay: what becomes of this run's replay.
            donor: checkpoint whose replay is taken over, for "share".
        """
        ...

    def set_values(self, values: Mapping[str, Any]) -> None:
        """Change mutable recipe keys, dotted."""
        ...


def mutable_recipe_keys(recipe: Recipe) -> tuple[str, ...]:
    """Dotted names of the keys that may change in a living run of this recipe."""
    classes: dict[str, type[Settings]] = {
        "algorithm": settings_class(recipe.algorithm["name"]),
        "replay": ReplaySettings,
        "learner": LearnerSettings,
    }
    return tuple(f"{section}.{name}" for section, cls in classes.items() for name in mutable_keys(cls))


def changed(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """Return the recipe with mutable keys changed.

    Raises: RecipeError: a key is not mutable, or a value breaks the schema's bound.
    """
    known = mutable_recipe_keys(recipe)
    for name in values:
        if name not in known:
            raise RecipeError(
                f"{name} is not mutable: a living run cannot change it. Change one of {', '.join(known)}, or "
                "start a new run."
            )
    own = settings_class(recipe.algorithm["name"])
    given = {k: v for k, v in recipe.algorithm.items() if k != "name"} | algorithm_part(values)
    algorithm = {"name": recipe.algorithm["name"], **parse(own, given, "algorithm").model_dump(mode="json")}
    replay = parse(ReplaySettings, recipe.replay.model_dump() | _part(values, "replay"), "replay")
    learner = parse(LearnerSettings, recipe.learner.model_dump() | _part(values, "learner"), "learner")
    return recipe.model_copy(update={"algorithm": algorithm, "replay": replay, "learner": learner})


def algorithm_part(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of `values` that are the algorithm's, by their plain names."""
    return _part(values, "algorithm")


def _part(values: Mapping[str, Any], section: str) -> dict[str, Any]:
    parts = {name.partition("."): value for name, value in values.items()}
    return {name: value for (of, _, name), value in parts.items() if of == section}


def learned(trainer: Trainer) -> Learned:
    """Return a copy of what every policy learned."""
    return {policy_id: algorithm.learned() for policy_id, algorithm in trainer.learner.algorithms.items()}


def new_learned(trainer: Trainer) -> Learned:
    """Return what a run of this recipe begins with."""
    groups = {policy_id: shard.group for policy_id, shard in trainer.shards.items()}
    made = algorithms(trainer.recipe, groups)
    return {policy_id: algorithm.learned() for policy_id, algorithm in made.items()}


def saved_learned(checkpoint: Path) -> Learned:
    """Return what a checkpoint's policies had learned. Raises: CheckpointError: the checkpoint is damaged."""
    checkpoints.verify(checkpoint)
    policies = checkpoints.load(checkpoint, "trainer")["learner"]["policies"]
    return {policy_id: state["learned"] for policy_id, state in policies.items()}


def adopt(
    trainer: Trainer, given: Learned | None, *, replay: Replay = "keep", donor: Path | None = None
) -> None:
    """Go on from another run's `learned` (None = new parameters), under a new lineage epoch.

    Raises: CheckpointError: it is of other policies, or of networks of another shape.
    """
    given = new_learned(trainer) if given is None else given
    own = trainer.learner.algorithms
    if set(given) != set(own):
        raise CheckpointError(
            f"what was learned is of policies {sorted(given)}, this run has {sorted(own)}: they cannot be "
            "matched. Copy between runs of one recipe."
        )
    for policy_id, algorithm in own.items():
        algorithm.load_learned(given[policy_id])
    trainer.learner.epoch += 1
    if replay != "keep":
        renew_replay(trainer, donor if replay == "share" else None)
    trainer.source.offer(trainer.learner.all_weights(trainer.progress))


def renew_replay(trainer: Trainer, donor: Path | None) -> None:
    """Replace the replay by a donor's checkpointed one, or by an empty one that warms up again.

    Episodes that are under way go on as new segments: nothing joins them to rows that are gone.
    """
    groups = {policy_id: shard.group for policy_id, shard in trainer.shards.items()}
    seed = trainer.recipe.seed + trainer.learner.epoch  # no draws that were drawn before, here or there
    if trainer.saving is not None:  # it reads the shards that go
        trainer.saving.finish()
        trainer.saving = None
    trainer.shards = make_shards(trainer.recipe, trainer.learner, groups, seed)
    for policy_id, shard in trainer.shards.items():
        pacing = make_pacing(trainer.recipe, shard.spec, len(shard.group.slots))
        trainer.pacing[policy_id] = pacing
        if donor is None:
            continue
        restore_shards([donor / "replay" / policy_id], [shard])
        shard.own_rows(seed)
        saved = checkpoints.load(donor, "trainer")["pacing"][policy_id]
        pacing.restore({**saved, "elsewhere": [0, 0]})
        pacing.retune(trainer.recipe.replay.samples_per_insert, trainer.recipe.replay.band_items)


def set_values(trainer: Trainer, values: Mapping[str, Any]) -> None:
    """Change mutable keys of a living run.

    Raises: RecipeError: a key is not mutable, a value breaks its bound, or pacing would deadlock.
    """
    recipe = changed(trainer.recipe, values)
    before, after = trainer.recipe.replay, recipe.replay
    if (before.samples_per_insert, before.band_items) != (after.samples_per_insert, after.band_items):
        for policy_id, pacing in trainer.pacing.items():
            if trainer.learner.algorithms[policy_id].learns:
                pacing.retune(after.samples_per_insert, after.band_items)
    own = algorithm_part(values)
    for policy_id, algorithm in trainer.learner.algorithms.items():
        if own:
            algorithm.set_hparams(own)
            trainer.shards[policy_id].respec(algorithm.sample_spec())  # its discount is applied at every read
    trainer.recipe = trainer.learner.recipe = recipe
