"""What every algorithm is: the seam between the loops that move data and the equations that learn from it.

An algorithm is pure torch: it declares the batch it wants (`sample_spec`), is handed it as device tensors,
and gives back priorities and metrics. It never sees an environment, a replay shard or Ray.
The contract suite `tests/contract/test_algorithms.py` holds every registered algorithm to what is said here.
Dims: S slots, U updates in one call, B batch, A actions, P parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from seqrl_ray.types import (
    ActInput,
    Array,
    DataFacts,
    IntArray,
    Mode,
    SampleSpec,
    TransitionTensors,
    Update,
    WindowTensors,
)

__all__ = ["ActInput", "Algorithm", "TensorBatch"]

TensorBatch = TransitionTensors[Tensor] | WindowTensors[Tensor]


class Algorithm(Protocol):
    """Acts for a batch of slots and learns from batches."""

    learns: bool
    """False for a rule that has nothing to learn: then no learner and no replay are needed."""

    def sample_spec(self) -> SampleSpec:
        """Return what replay must hand to `update`; follows the present `gamma`."""
        ...

    def slot_params(self, progress: float, rank: IntArray, total: int) -> dict[str, Array]:
        """Return the acting parameters of each slot (exploration, target return).

        Args:
            progress: share of the run that is spent, in [0, 1].
            rank: number of each slot's environment copy among all actors' copies, [S] in [0, total).
            total: environment copies in all actors, >= 1.
        Returns: name -> [S] float32.
        """
        ...

    def prepare(self, facts: DataFacts) -> None:
        """Take notice of the offline data, once, before the first update of a new run; most ignore it."""
        ...

    def initial_state(self, slots: int) -> Any:
        """Return the acting state of `slots` fresh slots; None for a feed-forward policy."""
        ...

    def act(self, inputs: ActInput, state: Any, mode: Mode) -> tuple[Array, Any, Mapping[str, Array]]:
        """Choose an action for every slot.

        Args:
            inputs: what the slots know; all randomness comes from `inputs.rng`.
            state: what the last call (or `initial_state`) gave; slots with `is_first` start afresh.
            mode: "explore" draws with the slot's parameters, "greedy" takes the best action.
        Returns: actions ([S] int64 or [S, *action] float32, legal), the next state, and the extra columns
            that `sample_spec().extra` declares (name -> [S, ...], of the decision just taken).
        """
        ...

    def hparams(self, progress: float) -> dict[str, float]:
        """Return the hyper-parameters in force at this share of the run, schedules applied."""
        ...

    def set_hparams(self, values: Mapping[str, float]) -> None:
        """Change mutable hyper-parameters in a living run.

        Raises: RecipeError: a name is not mutable here, or a value breaks the schema's bound.
        """
        ...

    def update(self, batch: TensorBatch, hparams: Mapping[str, float]) -> Update:
        """Take U gradient steps, one per minibatch, in order; U calls with one minibatch each give the same.

        Args:
            batch: tensors on the algorithm's device, leading dimensions [U, B].
            hparams: from `hparams(progress)`.
        """
        ...

    def weights(self) -> NDArray[np.float32]:
        """Return a copy of what acting needs, one flat vector [P]."""
        ...

    def judged_weights(self) -> NDArray[np.float32]:
        """Return what the policy is judged and kept with, [P]: `weights()`, or an average of them."""
        ...

    def load_weights(self, flat: NDArray[np.float32]) -> None:
        """Act with these weights from now on. Raises: CheckpointError: another size than [P]."""
        ...

    def learned(self) -> dict[str, NDArray[Any]]:
        """Return copies of what learning made (parameters, target, moments): what an exploit copies."""
        ...

    def load_learned(self, values: Mapping[str, NDArray[Any]]) -> None:
        """Take over `learned()` of an equal algorithm. Raises: CheckpointError: a name or size differs."""
        ...

    def private(self) -> dict[str, Any]:
        """Return counters and overrides as JSON-able values: only resume restores them, never an exploit."""
        ...

    def load_private(self, values: Mapping[str, Any]) -> None:
        """Take over `private()`. Raises: CheckpointError: a name differs."""
        ...

    @property
    def updates(self) -> int:
        """Updates done in all."""
        ...


def rested(state: Any) -> Any:
    """Return an acting state that no longer goes on from what a network remembers of it (`networks.recall`).

    Reading anew rounds differently, and whoever resumes has no such memory: so every fragment begins anew.
    """
    return state._replace(stamp=-abs(state.stamp)) if hasattr(state, "stamp") else state


def unclaimed(state: Any) -> Any:
    """Return an acting state as it goes into a checkpoint: without its place in this process's memory."""
    if not hasattr(state, "stamp"):
        return state
    return state._replace(row=np.zeros_like(state.row), stamp=np.zeros_like(state.stamp))
