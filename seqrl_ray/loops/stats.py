"""Statistics of evaluations: the one place where means, percentiles and confidence intervals are computed.

Source: Student (1908), "The Probable Error of a Mean"; the distribution function for whole degrees of
freedom is Abramowitz & Stegun (1964), 26.7.3 and 26.7.4, inverted by bisection.

Why Student's t and not a bootstrap: evaluations have few episodes (often 5 to 20), where bootstrap intervals
tend to be too short, while t is exact for normal values and needs no random numbers. With strongly skewed
values (one gridlocked episode among ten) any 95 % interval of a mean covers less than it says: read `median`
and `p95` beside it, and prefer `paired`, where what the seeds share cancels.

Missing values are NaN (an episode in which the metric does not exist). They are left out of every figure and
counted in `missing`; `n` is what the figures stand on. Results hold plain floats and None: valid JSON.

Dims: M values, one per episode.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from seqrl_ray.errors import EnvError

LEVEL = 0.95
"""Coverage of every interval here."""


class Summary(TypedDict):
    """One metric over the episodes of one evaluation, in the metric's unit."""

    mean: float | None
    median: float | None
    p95: float | None
    ci95: list[float] | None
    n: int
    missing: int


class Paired(TypedDict):
    """Policy minus another controller, episode by episode on the same seeds, in the metric's unit."""

    mean_difference: float | None
    ci95: list[float] | None
    n: int
    missing: int


def summarise(values: Iterable[float]) -> Summary:
    """Summarise one metric over episodes.

    Args:
        values: [M] one value per episode; NaN where the episode has none.

    Returns:
        mean, median and p95 (linear between order statistics), ci95 of the mean as [low, high], `n` values
        used and `missing` values left out. All but the counts is None if n is 0; ci95 is None if n < 2.

    Raises:
        EnvError: a value is infinite.
    """
    present, missing = _present(values)
    if present.size == 0:
        return Summary(mean=None, median=None, p95=None, ci95=None, n=0, missing=missing)
    return Summary(
        mean=float(present.mean()),
        median=float(np.median(present)),
        p95=float(np.percentile(present, 95.0)),
        ci95=_interval(present),
        n=int(present.size),
        missing=missing,
    )


def paired(
    policy: Sequence[float] | NDArray[np.float64], other: Sequence[float] | NDArray[np.float64]
) -> Paired:
    """Summarise policy - other over pairs of episodes that ran on the same seed.

    Args:
        policy: [M] one value per episode; NaN where the episode has none.
        other: [M] the other controller's, in the same order of seeds.

    Returns:
        mean_difference and its ci95, `n` whole pairs used and `missing` pairs left out; None as in
        `summarise`.

    Raises:
        ValueError: the lengths differ.
        EnvError: a value is infinite.
    """
    if len(policy) != len(other):
        raise ValueError(
            f"other has {len(other)} values and policy {len(policy)}: pairs would mix seeds. "
            "Give both in the same order of seeds, NaN where one is missing."
        )
    for values in (policy, other):  # checked one by one: inf - inf would pass for a missing value
        _present(values)
    summary = summarise(np.subtract(np.asarray(policy, np.float64), np.asarray(other, np.float64)))
    return Paired(
        mean_difference=summary["mean"], ci95=summary["ci95"], n=summary["n"], missing=summary["missing"]
    )


@lru_cache(maxsize=256)
def t_quantile(degrees: int) -> float:
    """Return the t with P(|T| <= t) = LEVEL for Student's T of `degrees` >= 1 degrees of freedom."""
    if degrees < 1:
        raise ValueError(f"degrees={degrees} is below 1: an interval needs two values. Give at least 1.")
    low, high = 0.0, math.pi / 2
    for _ in range(200):  # more than enough to meet in neighbouring doubles
        middle = (low + high) / 2
        if _t_inside(middle, degrees) < LEVEL:
            low = middle
        else:
            high = middle
    return math.sqrt(degrees) * math.tan((low + high) / 2)


def _t_inside(angle: float, degrees: int) -> float:
    """P(|T| <= sqrt(degrees) * tan(angle)), Abramowitz & Stegun 26.7.3 (odd) and 26.7.4 (even)."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2
    if degrees == 1:
        return 2 * angle / math.pi
    first = 3 if odd else 2
    index = np.arange(first, degrees - 1, 2)  # each next term is the last one times (index-1)/index * cos^2
    factors = (index - 1) / index * cosine**2
    series = (cosine if odd else 1.0) * float(1.0 + np.cumprod(factors).sum())
    return 2 / math.pi * (angle + sine * series) if odd else sine * series


def _interval(present: NDArray[np.float64]) -> list[float] | None:
    if present.size < 2:
        return None
    half = t_quantile(int(present.size) - 1) * float(present.std(ddof=1)) / math.sqrt(present.size)
    mean = float(present.mean())
    return [mean - half, mean + half]


def _present(values: Iterable[float]) -> tuple[NDArray[np.float64], int]:
    """The values that are not NaN, and how many are."""
    given = np.asarray(list(values), np.float64)
    if np.isinf(given).any():
        place = int(np.flatnonzero(np.isinf(given))[0])
        raise EnvError(
            f"values[{place}]={given[place]} is infinite: no mean or interval exists. "
            "Let the environment report NaN where a metric does not exist."
        )
    missing = np.isnan(given)
    return given[~missing], int(missing.sum())
