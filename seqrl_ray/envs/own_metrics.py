"""Metrics that a Gymnasium environment gives about its own episodes, beside `return`.

Source: ours. What an info holds under `episode_metrics` (a dict of name -> number) at an episode's last step
is added to `EpisodeEnd.metrics`. A time limit may end an episode behind the environment's back, so it gives
them with every step, as if the episode ended there. Names that stand in an attribute `episode_metrics` of its
class are promised: they must be there at every end, and a recipe may be judged by them.
"""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any

import numpy as np

from seqrl_ray.errors import EnvError

KEY = "episode_metrics"
"""Key of the info, and attribute of the class."""
TAKEN = frozenset({"return", "steps", "env", "seed", "actor", "env_steps", "kind", "at_s"})
"""Names that mean something else in a row of a finished episode."""


def promised(source: Any) -> tuple[str, ...]:
    """Return the names that an environment, or the callable that makes one, promises."""
    return tuple(getattr(source, KEY, ()))


def own_metrics(info: Mapping[str, Any], names: tuple[str, ...], env_id: str) -> dict[str, float]:
    """Return what an environment says about an episode that ended, in the order it gives.

    Args:
        info: of the episode's last step.
        names: what is promised.
        env_id: whose it is, for messages.
    Raises: EnvError: a promised name is missing, a name is taken, or a value is no number.
    """
    given = info.get(KEY, {})
    for name in names:
        if name not in given:
            raise EnvError(
                f"{KEY}={given!r} of env.id={env_id!r} is without {name!r}, which its class promises: "
                "episodes could not be compared. Give it with every step, or promise less."
            )
    for name, value in given.items():
        if name in TAKEN:
            raise EnvError(
                f"{KEY}={given!r} of env.id={env_id!r} has {name!r}, which means something else in a row of "
                "an episode: one of the two would be lost. Choose another name."
            )
        if not isinstance(value, Real | np.bool_):
            raise EnvError(
                f"{KEY}={given!r} of env.id={env_id!r} has {name!r}, which is no number: no mean can be "
                "taken over episodes. Give a number, or put it under another key of the info."
            )
    return {name: float(value) for name, value in given.items()}
