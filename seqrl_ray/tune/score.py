"""The score of a trial: one stated statistic of its headline metric over several seeds.

Dims: M episodes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from seqrl_ray.tune.settings import Statistic
from seqrl_ray.types_env import EpisodeEnd


def score(values: Sequence[float], statistic: Statistic, *, lower_is_better: bool) -> float:
    """Return a statistic of M values.

    Args:
        values: one per episode, M >= 1.
        statistic: mean; median; iqm, the mean of the middle half (Agarwal et al. 2021, arXiv:2108.13264);
            worst_quarter, the mean of the worst quarter; worst.
        lower_is_better: which end is the worst.
    Returns: the statistic in the metric's unit; NaN if a value is not finite.
    """
    found = np.asarray(values, np.float64)  # [M]
    if not np.isfinite(found).all():
        return math.nan
    ordered = np.sort(-found if lower_is_better else found)  # [M] the worst first
    count = len(ordered)
    sign = -1.0 if lower_is_better else 1.0
    if statistic == "mean":
        chosen = ordered
    elif statistic == "median":
        return sign * float(np.median(ordered))
    elif statistic == "iqm":
        cut = count // 4
        chosen = ordered[cut : count - cut]
    elif statistic == "worst_quarter":
        chosen = ordered[: max(1, math.ceil(count / 4))]
    else:
        chosen = ordered[:1]
    return sign * float(chosen.mean())


def headline(ends: Sequence[EpisodeEnd], metric: str) -> list[float]:
    """Return the headline metric of every episode; NaN where an episode has none."""
    return [float(end.metrics.get(metric, math.nan)) for end in ends]
