"""Learning from a part of every minibatch: what several learners need to do together what one would do.

Each of n learners has B / n of a minibatch's B items. Gradients and what to divide them by are added up over
all (`FlatLearner.add_up`) before anything is done with them, so clipping, moments, targets and temperatures
are those of one learner with the whole minibatch. What is left are random numbers that a loss needs for its
rows: all learners draw those of the whole minibatch, by its seed and number, and each keeps those of its own
rows. Dropout is drawn for places in the computation and not for rows; there each learner has a seed of its
own, which is as good and not the same.
Dims: U updates, B batch, n learners, b = B / n rows of one of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from numpy.typing import NDArray
from torch import Tensor

from seqrl_ray.algorithms.contract import Algorithm, TensorBatch
from seqrl_ray.algorithms.flat_learner import FlatLearner, change
from seqrl_ray.errors import RecipeError


@dataclass(frozen=True)
class Part:
    """Which part of every minibatch is learned from here."""

    rank: int = 0
    """In [0, of)."""
    of: int = 1
    """Learners, n."""


def check_sharing(algorithms: Mapping[str, Algorithm], learners: int) -> None:
    """Raise RecipeError if one of the algorithms cannot learn together with others like it."""
    for policy_id, algorithm in algorithms.items():
        if learners > 1 and not isinstance(algorithm, FlatLearner):
            raise RecipeError(
                f"learner.count={learners} does not fit {type(algorithm).__name__} (policies.{policy_id}): "
                "it takes no gradient steps that could be shared. Set learner.count=1."
            )


def with_own_draws(algorithm: FlatLearner[Any], batch: TensorBatch, part: Part) -> TensorBatch:
    """Return a part of minibatches, [U, b, ...], with the random numbers that one learner with all of them
    would draw for these rows (see `FlatLearner.drawn`).
    """
    if part.of == 1:
        return batch
    updates, rows = batch.weight.shape
    whole = algorithm.drawn(change(batch, lambda column: _widened(column, updates, rows * part.of)))
    own = slice(part.rank * rows, (part.rank + 1) * rows)
    extra = dict(batch.extra)
    for name, column in whole.extra.items():
        if name not in extra:  # one number per update is a seed
            extra[name] = column + part.rank if column.dim() == 1 else column[:, own]
    return replace(batch, extra=extra)


def _widened(column: Tensor, updates: int, rows: int) -> Tensor:
    """Return a stand-in of `rows` rows, without their memory: only its shape is looked at."""
    if column.dim() == 1:
        return column
    return column[:, :1].expand(updates, rows, *column.shape[2:])


def parameters(algorithms: Mapping[str, Algorithm]) -> list[NDArray[Any]]:
    """Return every policy's parameters, flat: what must be alike for all who learn together."""
    learning = [algorithm for algorithm in algorithms.values() if isinstance(algorithm, FlatLearner)]
    return [algorithm.state.online.cpu().numpy() for algorithm in learning]
