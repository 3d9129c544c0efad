"""The random policy: every legal action alike. It learns nothing; recipes without a learner and baselines use
it.

Dims: S slots, A actions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from seqrl_ray.algorithms.random_settings import RandomSettings
from seqrl_ray.errors import CheckpointError, RecipeError
from seqrl_ray.types import (
    ActInput,
    ActionSpec,
    Array,
    DataFacts,
    GroupSpec,
    IntArray,
    Mode,
    SampleSpec,
    Update,
)


class Random:
    """Draws uniformly: legal indices of a discrete set, or points of a box."""

    learns: ClassVar[bool] = False
    updates = 0

    def __init__(
        self, settings: RandomSettings, group: GroupSpec, network: None, *, device: str = "cpu", seed: int = 0
    ) -> None:
        self.settings = settings
        self.group = group
        self.device = device
        if group.action.kind == "box" and not np.isfinite([*group.action.low, *group.action.high]).all():
            raise RecipeError(
                f"policies.{group.policy_id}: the action box has an infinite bound: nothing can be drawn "
                "uniformly from it. Choose another algorithm.name, or bound the environment's actions."
            )

    def sample_spec(self) -> SampleSpec:
        """Ask for plain transitions (for recipes that store what a random policy does)."""
        return SampleSpec(view="transitions")

    def prepare(self, facts: DataFacts) -> None:
        """Follow nothing from offline data."""

    def slot_params(self, progress: float, rank: IntArray, total: int) -> dict[str, Array]:
        """Have no acting parameters."""
        return {}

    def initial_state(self, slots: int) -> None:
        """Keep no state between decisions."""
        return None

    def act(self, inputs: ActInput, state: None, mode: Mode) -> tuple[Array, None, Mapping[str, Array]]:
        """Draw one action per slot, in both modes."""
        return uniform_actions(self.group.action, inputs), None, {}

    def hparams(self, progress: float) -> dict[str, float]:
        """Have no hyper-parameters."""
        return {}

    def set_hparams(self, values: Mapping[str, float]) -> None:
        """Refuse any. Raises: RecipeError."""
        if values:
            raise RecipeError(
                f"algorithm.{next(iter(values))} is not a setting of random: it has none. Leave it out."
            )

    def update(self, batch: Any, hparams: Mapping[str, float]) -> Update:
        """Refuse. Raises: RecipeError: always."""
        raise RecipeError(
            'algorithm.name="random" learns nothing: it cannot be updated. '
            "Choose an algorithm that learns, or run without a learner."
        )

    def weights(self) -> NDArray[np.float32]:
        """Return an empty vector."""
        return np.zeros(0, np.float32)

    def judged_weights(self) -> NDArray[np.float32]:
        """Return nothing."""
        return self.weights()

    def load_weights(self, flat: NDArray[np.float32]) -> None:
        """Take an empty vector. Raises: CheckpointError: it is not empty."""
        if flat.size:
            raise CheckpointError(
                f"weights has shape {flat.shape}, random has none: they belong to another algorithm. "
                "Load them into the recipe they were made with."
            )

    def learned(self) -> dict[str, NDArray[Any]]:
        """Return nothing."""
        return {}

    def load_learned(self, values: Mapping[str, NDArray[Any]]) -> None:
        """Take nothing. Raises: CheckpointError: there is something."""
        _expect_empty("learned", values)

    def private(self) -> dict[str, Any]:
        """Return nothing."""
        return {}

    def load_private(self, values: Mapping[str, Any]) -> None:
        """Take nothing. Raises: CheckpointError: there is something."""
        _expect_empty("private", values)


def _expect_empty(what: str, values: Mapping[str, Any]) -> None:
    if values:
        raise CheckpointError(
            f"{what} holds {', '.join(sorted(values))}, random has no state: it belongs to another "
            "algorithm. Load it into the recipe it was made with."
        )


def uniform_actions(action: ActionSpec, inputs: ActInput) -> Array:
    """Draw one legal action per slot, [S] int64, or one point of the box, [S, *action] float32."""
    slots = len(inputs.obs)
    if action.kind == "box":
        low, high = (np.asarray(b, np.float32).reshape(action.shape) for b in (action.low, action.high))
        drawn = inputs.rng.random((slots, *action.shape), dtype=np.float32)  # [S, *action]
        return np.clip(low + drawn * (high - low), low, high)
    if inputs.legal is None:
        return inputs.rng.integers(0, action.n, slots)
    best: Array = np.where(inputs.legal, inputs.rng.random((slots, action.n)), -1.0).argmax(1)  # [S]
    return best
