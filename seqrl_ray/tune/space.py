"""Values of the searched keys: drawn, and moved inside their bounds.

A log-uniform value is drawn and moved in its logarithm, a whole number stays one, a choice stays one of its
values. Source of resample-or-perturb: Jaderberg et al. (2017), arXiv:1711.09846, section 4.1. Departs from
it: a uniform value moves by a share of its range, because a factor means nothing to it (a discount of 0.99
times 1.2), and every value is held to its bounds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from seqrl_ray.tune.settings import DimensionSettings, Value

Values = dict[str, Value]


@dataclass(frozen=True)
class Space:
    """All searched keys."""

    dimensions: Mapping[str, DimensionSettings]

    def draw(self, rng: np.random.Generator) -> Values:
        """Draw every key anew."""
        return {name: draw(self.dimensions[name], rng) for name in sorted(self.dimensions)}

    def explore(
        self, values: Mapping[str, Value], rng: np.random.Generator, *, resample: float, factor: float
    ) -> Values:
        """Return `values` with every key moved, or drawn anew with chance `resample`.

        Args:
            values: key -> value.
            rng: the only source of randomness.
            resample: chance, in [0, 1].
            factor: how far a value moves, > 1; see `scheduler.factor`.
        """
        moved: Values = {}
        for name in sorted(self.dimensions):
            dimension = self.dimensions[name]
            anew, up = rng.random() < resample, rng.random() < 0.5
            fresh = draw(dimension, rng)  # drawn in any case: how much is drawn follows from the space alone
            moved[name] = fresh if anew else move(dimension, values[name], up=up, factor=factor)
        return moved

    def holds(self, values: Mapping[str, Value]) -> bool:
        """Whether every value is one that its dimension allows."""
        return set(values) == set(self.dimensions) and all(
            inside(self.dimensions[name], value) for name, value in values.items()
        )


def draw(dimension: DimensionSettings, rng: np.random.Generator) -> Value:
    """Draw one value."""
    if dimension.kind == "choice":
        return dimension.values[int(rng.integers(len(dimension.values)))]
    low, high = bounds(dimension)
    if dimension.kind == "uniform":
        return clipped(dimension, float(rng.uniform(low, high)))
    return clipped(dimension, math.exp(float(rng.uniform(math.log(low), math.log(high)))))


def move(dimension: DimensionSettings, value: Value, *, up: bool, factor: float) -> Value:
    """Return a neighbour of `value`; a choice has none and stays."""
    if dimension.kind == "choice":
        return value
    assert isinstance(value, int | float)
    low, high = bounds(dimension)
    if dimension.kind == "log_uniform":
        moved = value * factor if up else value / factor
    else:
        moved = value + (factor - 1.0) * (high - low) * (1.0 if up else -1.0)
    if dimension.integer and round(moved) == value:
        moved = value + (1 if up else -1)
    return clipped(dimension, moved)


def clipped(dimension: DimensionSettings, value: float) -> Value:
    """Return the allowed value nearest to `value`."""
    low, high = bounds(dimension)
    if dimension.integer:
        return int(min(max(round(value), math.ceil(low)), math.floor(high)))
    return float(min(max(value, low), high))


def inside(dimension: DimensionSettings, value: Value) -> bool:
    """Whether `value` is one that `dimension` allows."""
    if dimension.kind == "choice":
        return value in dimension.values
    low, high = bounds(dimension)
    whole = not dimension.integer or float(value) == round(float(value))
    return whole and low <= float(value) <= high


def bounds(dimension: DimensionSettings) -> tuple[float, float]:
    """Return (low, high) of a dimension that is no choice."""
    assert dimension.low is not None and dimension.high is not None
    return dimension.low, dimension.high
