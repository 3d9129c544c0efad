"""Draw items from one shard, and make draws from many shards one draw.

Two samplers: an even one over a dense list of items, and one in proportion to mass over a sum tree, which
serves prioritised, by-length and by-return sampling alike (they differ only in the mass an item is given).

Sharding: a shard is drawn from in proportion to its mass, an item inside it in proportion to its own, so an
item's chance is mass_i / total mass whatever the number of shards; importance weights use that chance and the
number of items of *all* shards. Source: Schaul et al. 2016 (https://arxiv.org/abs/1511.05952, section 3.4),
w_i = (N P(i))^-beta, divided by the largest of its minibatch.

Dims: M items, S shards, U updates, B batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqrl_ray.errors import ReplayError
from seqrl_ray.replay.sum_tree import SumTree
from seqrl_ray.types import Array, Batch, FloatArray, IntArray, ItemIds

Int64Array = NDArray[np.int64]
Float64Array = NDArray[np.float64]


@dataclass(frozen=True)
class Mass:
    """What a shard holds, as a basis for drawing from several: valid for the version it names."""

    mass: float
    items: int
    version: int
    """Raised by every change of items or masses."""


class UniformSampler:
    """Every live item has the same chance: a dense list, where the last item fills a gap."""

    def __init__(self, capacity: int) -> None:
        """Start without items; rows are in [0, capacity)."""
        self.count = 0
        self._items: Int64Array = np.full(capacity, -1, np.int64)
        self._place: Int64Array = np.full(capacity, -1, np.int64)

    def add(self, rows: Int64Array, mass: Float64Array | float = 1.0) -> None:
        """Make distinct rows, none of them an item, items; the mass is not used."""
        place = np.arange(self.count, self.count + rows.size)
        self._items[place] = rows
        self._place[rows] = place
        self.count += rows.size

    def remove(self, rows: Int64Array) -> None:
        """Items among `rows` are items no more; a row may be named twice."""
        place = self._place[rows]
        place = np.unique(place[place >= 0])
        if place.size == 0:
            return
        self._place[self._items[place]] = -1
        left = self.count - place.size
        tail = np.arange(left, self.count)
        movers = self._items[tail[self._place[self._items[tail]] >= 0]]
        holes = place[place < left]
        self._items[holes] = movers
        self._place[movers] = holes
        self._items[tail] = -1
        self.count = left

    def live(self, rows: IntArray) -> NDArray[np.bool_]:
        """Which of `rows` are items."""
        return np.asarray(self._place[rows] >= 0)

    def rows(self) -> Int64Array:
        """All items, ascending."""
        return np.sort(self._items[: self.count])

    def masses(self, rows: IntArray) -> Float64Array:
        """1 for each item."""
        return self.live(rows).astype(np.float64)

    def draw(self, count: int, rng: np.random.Generator) -> tuple[Int64Array, Float64Array]:
        """Draw `count` items independently. Returns rows [count] and their chances [count]."""
        if self.count == 0:
            raise ReplayError(
                "items=0 leaves nothing to draw: the store is empty. Insert items before sampling."
            )
        rows = self._items.take(rng.integers(0, self.count, count))
        return rows, np.full(count, 1.0 / self.count)

    @property
    def total(self) -> float:
        """Number of items."""
        return float(self.count)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self._items.nbytes + self._place.nbytes

    def columns(self) -> dict[str, Array]:
        """State by row: place in the list, -1 = no item."""
        return {"place": self._place}

    def load(self, rows: Int64Array, columns: Mapping[str, Array]) -> None:
        """Take over the state of `rows` [R] that `columns` held; the sampler must be empty."""
        place = columns["place"]
        item = place >= 0
        self._items[place[item]] = rows[item]
        self._place[rows] = place
        self.count = int(np.count_nonzero(item))

    def adopt(self, rows: Int64Array, columns: Mapping[str, Array]) -> None:
        """Make items of the rows [R] that were items of any sampler that `columns` come from."""
        self.add(rows[columns["place"] >= 0])

    def check(self) -> None:
        """Raise ReplayError if list and places disagree."""
        at = np.flatnonzero(self._place >= 0)
        if at.size != self.count or (self._items[self._place[at]] != at).any():
            raise ReplayError("items and places disagree: draws would be wrong. Report this as a defect.")


class MassSampler:
    """An item's chance is its mass over the total."""

    def __init__(self, capacity: int) -> None:
        """Start without items; rows are in [0, capacity)."""
        self.count = 0
        self._tree = SumTree(capacity)

    def add(self, rows: Int64Array, mass: Float64Array | float) -> None:
        """Make distinct rows, none of them an item, items of `mass` [M] > 0."""
        if rows.size:
            self._tree.set(rows, mass)
            self.count += rows.size

    def change(self, rows: Int64Array, mass: Float64Array) -> None:
        """Give items new masses; of an item named twice, the last holds."""
        if rows.size:
            self._tree.set(rows, mass)

    def remove(self, rows: Int64Array) -> None:
        """Items among `rows` are items no more; a row may be named twice."""
        rows = rows[self.live(rows)]
        if rows.size:
            self.count -= np.unique(rows).size
            self._tree.set(rows, 0.0)

    def live(self, rows: IntArray) -> NDArray[np.bool_]:
        """Which of `rows` are items."""
        return np.asarray(self._tree.get(rows) > 0.0)

    def rows(self) -> Int64Array:
        """All items, ascending."""
        return np.flatnonzero(self._tree.get(np.arange(self._tree.size)) > 0.0)

    def masses(self, rows: IntArray) -> Float64Array:
        """Masses of rows; 0 for one that is no item."""
        return self._tree.get(rows)

    def columns(self) -> dict[str, Array]:
        """State by row: mass, 0 = no item."""
        return {"mass": self._tree.get(np.arange(self._tree.size))}

    def load(self, rows: Int64Array, columns: Mapping[str, Array]) -> None:
        """Take over the state of `rows` [R] that `columns` held; the sampler must be empty."""
        item = columns["mass"] > 0.0
        self.add(rows[item], columns["mass"][item])

    def adopt(self, rows: Int64Array, columns: Mapping[str, Array]) -> None:
        """Make items of the rows [R] that were items of any sampler that `columns` come from."""
        self.load(rows, columns)

    def draw(self, count: int, rng: np.random.Generator) -> tuple[Int64Array, Float64Array]:
        """Draw `count` items, stratified. Returns rows [count], ascending, and their chances [count]."""
        rows = self._tree.draw(count, rng)
        return rows, self._tree.get(rows) / self._tree.total

    @property
    def total(self) -> float:
        """Sum of all masses."""
        return self._tree.total

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self._tree.nbytes

    def check(self) -> None:
        """Raise ReplayError if the sums or the count are wrong."""
        self._tree.check()
        if self.rows().size != self.count:
            raise ReplayError(
                f"count={self.count} is not the number of live masses: pacing would drift. Report this."
            )


Largest = Callable[[Float64Array], Float64Array]
"""Of values [U], the largest each that anybody has who shares the minibatches."""


def global_weights(
    probability: Float64Array, total_items: int, beta: float, largest: Largest | None = None
) -> NDArray[np.float32]:
    """Importance weights w = (N p)^-beta / max of the minibatch.

    Args:
        probability: [U, B] float64, chance of one draw hitting the item, over all shards.
        total_items: N, items of all shards.
        beta: exponent in [0, 1]; 0 gives ones.
        largest: of a part of minibatches: asks for their largest weight; None = these are whole.

    Returns: [U, B] float32, the largest of every whole minibatch is 1.
    """
    weight = probability * total_items
    np.power(weight, -beta, out=weight)
    most = weight.max(axis=-1)  # [U]
    weight /= (most if largest is None else largest(most))[..., None]
    return weight.astype(np.float32)


def split_draw(masses: Sequence[float], count: int, rng: np.random.Generator) -> Int64Array:
    """How many of `count` items each shard is asked for: multinomial on the shards' masses.

    Args:
        masses: [S] non-negative masses of one snapshot.
        count: items in all.
        rng: source of randomness.

    Returns: [S] int64, sums to `count`.
    Raises: ReplayError: all masses are 0.
    """
    mass = np.asarray(masses, np.float64)
    total = mass.sum()
    if not total > 0.0:
        raise ReplayError(
            f"masses={mass.tolist()} leave nothing to draw: no shard has items. Insert before sampling."
        )
    return rng.multinomial(count, mass / total).astype(np.int64)


def merge(
    batches: Sequence[Batch],
    shard_probability: Sequence[float],
    *,
    updates: int,
    batch: int,
    total_items: int,
    beta: float,
    rng: np.random.Generator,
    largest: Largest | None = None,
) -> Batch:
    """Join one draw's parts from several shards into U minibatches that each mix the shards.

    Args:
        batches: what the shards gave, each with leading dimensions of any [U', B'] whose product is its
            count.
        shard_probability: chance with which `split_draw` chose each part's shard, in the order of `batches`.
        updates: U.
        batch: B; the parts hold U*B items together.
        total_items: items of all shards in the snapshot that was drawn from.
        beta: importance-weight exponent.
        rng: shuffles the items over the minibatches.
        largest: see `global_weights`.

    Returns: a batch [U, B, ...] with global probabilities and weights.
    Raises: ReplayError: the parts do not hold U*B items.
    """
    parts = [
        replace(part, probability=part.probability * share)
        for part, share in zip(batches, shard_probability, strict=True)
        if len(part.ids)
    ]
    count = sum(len(part.ids) for part in parts)
    if count != updates * batch:
        raise ReplayError(
            f"updates={updates} x batch={batch} is not the {count} items given: minibatches would be short. "
            "Ask the shards for as many as split_draw says."
        )
    order = rng.permutation(count)
    lead = len(parts[0].probability.shape)

    def join(arrays: Sequence[Any]) -> Array:
        flat: Array = np.concatenate([a.reshape(-1, *a.shape[lead:]) for a in arrays])
        return flat.take(order, axis=0).reshape(updates, batch, *flat.shape[1:])

    joined: dict[str, Any] = {}
    for field in fields(parts[0]):
        values = [getattr(part, field.name) for part in parts]
        if field.name == "ids":
            joined["ids"] = ItemIds(
                *(
                    np.concatenate([getattr(v, n) for v in values]).take(order)
                    for n in ("shard", "row", "generation")
                )
            )
        elif field.name == "extra":
            joined["extra"] = {name: join([v[name] for v in values]) for name in values[0]}
        else:
            joined[field.name] = None if values[0] is None else join(values)
    joined["weight"] = global_weights(joined["probability"], total_items, beta, largest)
    return type(parts[0])(**joined)


def check_priorities(priorities: FloatArray, count: int) -> Float64Array:
    """Priorities as [M] float64. Raises ReplayError if their number, sign or finiteness is wrong."""
    flat = np.asarray(priorities, np.float64).reshape(-1)
    if flat.size != count:
        raise ReplayError(
            f"priorities has {flat.size} values for {count} items: they would go to the wrong items. Send "
            "one per item."
        )
    if flat.size and not (flat.min() >= 0.0 and flat.max() < np.inf):
        raise ReplayError(
            "priorities holds a negative, infinite or NaN value: the loss has diverged or the sign is lost. "
            "Check the learner's loss; send magnitudes."
        )
    return flat
