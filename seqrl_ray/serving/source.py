"""Where the weights come from: the checkpoints of one run, of a finished or a living one.

Opened as `seqrl evaluate` opens a run: the environment is made once, for its spaces, and closed; the
algorithms are built from the recipe. Of a checkpoint only the learner's part is read and checked, not the
replay; nothing of it is a pickle.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from seqrl_ray.algorithms import settings_class
from seqrl_ray.algorithms.contract import Algorithm
from seqrl_ray.errors import CheckpointError, RunFolderError
from seqrl_ray.loops import checkpoints
from seqrl_ray.loops.build import algorithms, training_env
from seqrl_ray.loops.remote import is_url
from seqrl_ray.loops.run_folder import open_run
from seqrl_ray.recipe import Recipe, load, policy_algorithm
from seqrl_ray.serving.inputs import Shape
from seqrl_ray.serving.policies import TARGET, Policies
from seqrl_ray.settings import mutable_keys
from seqrl_ray.types import GroupSpec
from seqrl_ray.types_env import Weights

TRAINER = "trainer"
"""The part of a checkpoint with the learner in it."""


@dataclass(frozen=True)
class Loaded:
    """The weights of one checkpoint."""

    checkpoint: Path
    weights: Mapping[str, Weights]

    @property
    def env_steps(self) -> int:
        """At which it was made."""
        return checkpoints.steps_of(self.checkpoint)


class Source:
    """One run's recipe and checkpoints."""

    def __init__(self, run: str, checkpoint: str | None = None) -> None:
        """Open a run.

        Args:
            run: its folder.
            checkpoint: name of the checkpoint to keep to; None: the newest.
        Raises: SeqrlError: no run there, or its recipe cannot be read.
        """
        if is_url(run):
            raise RunFolderError(
                f"RUN={run} is remote: what is served is read from a folder again and again. Copy the run, "
                "or mount its storage."
            )
        self.folder = open_run(Path(run))
        self.recipe: Recipe = load(self.folder / "recipe.toml", (), algorithm_settings=settings_class)
        self._pinned = checkpoint

    def policies(self, seed: int = 0) -> Policies:
        """Make the run's policies; they have no weights of a checkpoint yet."""
        groups = _groups(self.recipe)
        made = algorithms(self.recipe, groups)
        return Policies(made, {p: _shape(self.recipe, g, made[p]) for p, g in groups.items()}, seed)

    def first(self) -> Loaded:
        """Read the checkpoint to begin with.

        Raises: CheckpointError: there is none, or it is damaged or of other policies.
        """
        while True:
            checkpoint = self._named()
            try:
                return self._load(checkpoint)
            except CheckpointError:
                if (checkpoint / checkpoints.MANIFEST).is_file():
                    raise  # else a living run has deleted it meanwhile, and has a newer one

    def newer(self, than: Path) -> Loaded | None:
        """Read the checkpoint to act with, None if that is still `than`.

        Raises: CheckpointError: as `first`, or it was deleted while it was being read.
        """
        checkpoint = self._named()
        return None if checkpoint == than else self._load(checkpoint)

    def _load(self, checkpoint: Path) -> Loaded:
        try:
            checkpoints.verify(checkpoint, TRAINER)
            weights = checkpoints.acting_weights(checkpoint)
        except OSError as error:
            raise CheckpointError(f"{checkpoint} went while it was read: {error}.") from None
        if set(weights) != set(self.recipe.policies):
            raise CheckpointError(
                f"{checkpoint} has policies {sorted(weights)}, the recipe {sorted(self.recipe.policies)}: "
                "they cannot be matched. Use the recipe the run was started with."
            )
        return Loaded(checkpoint, {p: weights[p] for p in self.recipe.policies})

    def _named(self) -> Path:
        """Return the checkpoint to act with.

        Raises: CheckpointError: there is none, or none of that name.
        """
        root = self.folder / "checkpoints"
        if self._pinned is None:
            return checkpoints.latest(root)
        found = {path.name: path for path in checkpoints.complete(root)}
        if self._pinned not in found:
            raise CheckpointError(
                f"checkpoint={self._pinned!r} is no complete checkpoint of {self.folder}. There: "
                f"{', '.join(found) or 'none'}."
            )
        return found[self._pinned]


def _groups(recipe: Recipe) -> dict[str, GroupSpec]:
    """Make one copy of the environment for its spaces, and let it go."""
    one_copy = recipe.actors.model_copy(update={"envs_per_actor": 1})
    with closing(training_env(recipe.model_copy(update={"actors": one_copy}), 0, 0)) as env:
        return dict(env.groups)


def _shape(recipe: Recipe, group: GroupSpec, algorithm: Algorithm) -> Shape:
    keys = policy_algorithm(recipe, group.policy_id)
    name = recipe.algorithm["name"]
    target = None
    if TARGET in mutable_keys(settings_class(name)) and not keys.get("return_quantile"):
        params = algorithm.slot_params(1.0, np.zeros(1, np.int64), 1)
        target = float(params[TARGET][0])
    return Shape(group, algorithm.initial_state(1) is not None, target)
