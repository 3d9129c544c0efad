"""A sum tree of width 16 in numpy: draw in proportion to mass, change masses, both for many items per call.

Source: proportional prioritisation, Schaul et al. 2016 (https://arxiv.org/abs/1511.05952), appendix B.2.1.
Departures: 16 children per node instead of 2 (a level is one gather and one small matrix product, so a call
costs a handful of numpy operations); the topmost level holds up to 8192 sums, searched through one cumulative
sum. Every inner sum is recomputed from its children, so nothing drifts.

Dims: N leaves, M items in a call, W = 16 children.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from seqrl_ray.errors import ReplayError
from seqrl_ray.types import IntArray

Float64Array = NDArray[np.float64]
Int64Array = NDArray[np.int64]

_WIDTH = 16
_TOP = 8_192
_PREFIX = np.triu(np.ones((_WIDTH, _WIDTH)))  # x @ _PREFIX = inclusive prefix sums of the last axis
_ONES = np.ones(_WIDTH)


class SumTree:
    """Non-negative float64 masses of `size` leaves."""

    def __init__(self, size: int) -> None:
        """Make a tree of `size` leaves of mass 0."""
        self.size = size
        self._levels: list[Float64Array] = []  # [nodes, W], leaves first; the topmost is flat
        nodes = -(-size // _WIDTH)
        self._levels.append(np.zeros((nodes, _WIDTH)))
        while nodes > _TOP:
            nodes = -(-nodes // _WIDTH)
            self._levels.append(np.zeros((nodes, _WIDTH)))
        self._leaf = self._levels[0].reshape(-1)  # [N, padded to W]
        self._top = np.zeros(nodes)
        self._cumulative = np.zeros(nodes)
        self._fresh = True

    @property
    def total(self) -> float:
        """Sum of all masses."""
        return float(self._prefix()[-1])

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(level.nbytes for level in self._levels) + self._top.nbytes + self._cumulative.nbytes

    def get(self, leaf: IntArray) -> Float64Array:
        """Masses of the leaves `leaf` [M] -> [M] float64."""
        return self._leaf.take(leaf)

    def set(self, leaf: IntArray, mass: Float64Array | float) -> None:
        """Set the masses of the leaves `leaf` [M]; of a leaf named twice, the last mass holds.

        Args:
            leaf: [M] integers in [0, size).
            mass: [M] float64 or one value, finite and >= 0 (not checked here: the callers make them).
        """
        self._leaf[leaf] = mass
        node = leaf >> 4
        for below, above in zip(self._levels[:-1], self._levels[1:], strict=True):
            above.reshape(-1)[node] = below.take(node, axis=0) @ _ONES
            node = node >> 4
        self._top[node] = self._levels[-1].take(node, axis=0) @ _ONES
        self._fresh = False

    def draw(self, count: int, rng: np.random.Generator) -> Int64Array:
        """Draw `count` leaves, each in proportion to its mass: one from each of `count` equal strata of the
        total.

        Args:
            count: number of draws, >= 1.
            rng: source of randomness.

        Returns: [count] int64, in ascending order; a leaf of mass 0 is never drawn.
        Raises: ReplayError: all masses are 0.
        """
        total = self.total
        if not total > 0.0:
            raise ReplayError(
                f"mass={total} leaves nothing to draw: the tree is empty. Insert items before sampling."
            )
        strata = rng.random(count)
        strata += np.arange(count)
        strata *= total / count
        leaf = self._find(strata)
        empty = np.flatnonzero(self._leaf.take(leaf) <= 0.0)
        while empty.size:  # rounding at a block's edge: draw these again, from anywhere
            leaf[empty] = self._find(rng.random(empty.size) * total)
            empty = empty[self._leaf.take(leaf[empty]) <= 0.0]
        return leaf

    def check(self) -> None:
        """Raise ReplayError if a mass is negative or not finite, or a sum differs from its children's."""
        if not (np.isfinite(self._leaf).all() and (self._leaf >= 0.0).all()):
            raise ReplayError(
                "mass holds a negative or non-finite value: draws would be wrong. Report this as a defect."
            )
        sums = [level.reshape(-1) for level in self._levels[1:]] + [self._top]
        for below, above in zip(self._levels, sums, strict=True):
            fresh = below.sum(axis=1)
            if not np.allclose(above[: fresh.size], fresh, rtol=1e-9, atol=0.0):
                raise ReplayError(
                    "a node's sum differs from its children's: draws would be wrong. Report this as a defect."
                )

    def _prefix(self) -> Float64Array:
        if not self._fresh:
            np.cumsum(self._top, out=self._cumulative)
            self._fresh = True
        return self._cumulative

    def _find(self, value: Float64Array) -> Int64Array:
        """Leaf whose interval of cumulative mass holds `value` [M] (changed in place)."""
        cumulative = self._prefix()
        node = np.searchsorted(cumulative, value, side="right")
        np.minimum(node, cumulative.size - 1, out=node)
        value -= cumulative.take(node)
        value += self._top.take(node)
        for level in reversed(self._levels):
            children = level.take(node, axis=0)  # [M, W]
            prefix = children @ _PREFIX  # [M, W]
            child = np.count_nonzero(prefix <= value[:, None], axis=1)
            np.minimum(child, _WIDTH - 1, out=child)
            if level is not self._levels[0]:
                at = np.arange(child.size)
                value -= prefix[at, child] - children[at, child]
            node = node * _WIDTH + child
        return node
