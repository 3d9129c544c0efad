"""Gymnasium spaces as our array and action specs, and how one observation becomes one array.

Source: gymnasium.spaces (its `flatten` for structured spaces). Departs from it by an image rule: a Box of
three dimensions, or of two and uint8, is an image and keeps its shape; everything else becomes one float32
vector.

| space                     | stored as                                                                    |
|---------------------------|------------------------------------------------------------------------------|
| Box, an image             | its shape; uint8 stays, bool becomes uint8 0 / 255, other types float32      |
| Box, other                | float32 vector                                                               |
| Discrete, MultiDiscrete   | one-hot(s), float32 vector                                                   |
| MultiBinary               | float32 vector                                                               |
| Dict, Tuple of the above  | float32 vector in gymnasium's order (a plain dict's keys sorted); no images  |
| action: Discrete          | index from 0 (a space that starts elsewhere is shifted)                      |
| action: Box               | float32 of its shape, clipped to its bounds before the environment sees it   |

Dims: A actions, D features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces

from seqrl_ray.errors import EnvError
from seqrl_ray.types import ActionSpec, Array, ArraySpec

OBSERVATION_KEY = "observation"


@dataclass(frozen=True)
class ObsCodec:
    """How one space's observations are stored."""

    spec: ArraySpec
    encode: Callable[[Any], Any]
    """One observation -> what can be assigned to a row of `spec.shape` and `spec.dtype`."""


@dataclass(frozen=True)
class ActionCodec:
    """How one space's actions are chosen, and handed to the environment."""

    spec: ActionSpec
    where: str
    start: int = 0
    """What the environment calls our action 0."""
    dtype: str = "int64"

    def check(self, actions: Array) -> None:
        """Refuse action indices that do not exist.

        Args:
            actions: [S] integers, or [S, *action] floats (which `hand` clips).
        Raises: EnvError: an index outside [0, A).
        """
        if (
            self.spec.kind == "discrete"
            and actions.size
            and not 0 <= actions.min() <= actions.max() < self.spec.n
        ):
            raise EnvError(
                f"actions={actions.tolist()} are not all in [0, {self.spec.n}): {self.where} has no such "
                "action. Choose existing ones."
            )

    def hand(self, actions: Array) -> list[Any]:
        """Return what the environment's `step` is called with, for each of [S] or [S, *action] actions."""
        if self.spec.kind == "discrete":
            handed: list[Any] = (actions + self.start).tolist()
            return handed
        low, high = (
            np.array(bound, self.dtype).reshape(self.spec.shape) for bound in (self.spec.low, self.spec.high)
        )
        return list(np.clip(actions.astype(self.dtype), low, high))


def obs_codec(space: spaces.Space[Any], where: str) -> ObsCodec:
    """Return how observations of `space` are stored.

    Args:
        space: the environment's observation space.
        where: whose it is, for messages.
    Raises: EnvError: a space that has no fixed-size array, or an image inside a Dict or Tuple.
    """
    if isinstance(space, spaces.Box):
        return _box(space)
    _refuse_unflattenable(space, where)
    size = spaces.flatdim(space)
    low, high = _bounds(space)

    def encode(obs: Any) -> Array:
        return np.asarray(spaces.flatten(space, obs), np.float32)  # [D]

    return ObsCodec(ArraySpec((size,), "float32", low, high), encode)


def action_codec(space: spaces.Space[Any], where: str) -> ActionCodec:
    """Return how actions of `space` are chosen.

    Raises: EnvError: neither Discrete nor Box.
    """
    if isinstance(space, spaces.Discrete):
        return ActionCodec(ActionSpec("discrete", n=int(space.n)), where, start=int(space.start))
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
        low, high = (tuple(float(v) for v in bound.ravel()) for bound in (space.low, space.high))
        return ActionCodec(
            ActionSpec("box", shape=space.shape, low=low, high=high), where, dtype=str(space.dtype)
        )
    raise EnvError(
        f"{where}: action space {space} is neither Discrete nor a Box of floats: no policy here can choose "
        "in it. Wrap the environment so that its actions are one of the two."
    )


def split_mask(space: spaces.Space[Any], mask_key: str) -> tuple[spaces.Space[Any], bool]:
    """Tell whether `space` is the Dict {"observation", mask_key} that carries a legal-action mask.

    Returns: the space of the observation proper, and True if the mask stands beside it.
    """
    if isinstance(space, spaces.Dict) and set(space.spaces) == {OBSERVATION_KEY, mask_key}:
        return space.spaces[OBSERVATION_KEY], True
    return space, False


def given_mask(beside: Mapping[str, Any], mask_key: str, where: str) -> Array:
    """Return the legal-action mask that stands in `beside` (a Dict observation, or an info).

    Raises: EnvError: it is not there.
    """
    if mask_key not in beside:
        raise EnvError(
            f"{where}: no {mask_key!r} beside this observation, though the first reset had one: which "
            "actions are legal cannot be known. Give the mask with every observation."
        )
    mask: Array = np.asarray(beside[mask_key], np.bool_)
    return mask


def is_image(space: spaces.Box) -> bool:
    """Whether observations of `space` keep their shape."""
    return len(space.shape) == 3 or (len(space.shape) == 2 and space.dtype == np.uint8)


def _box(space: spaces.Box) -> ObsCodec:
    low, high = float(np.min(space.low)), float(np.max(space.high))
    if not is_image(space):
        size = int(np.prod(space.shape))
        return ObsCodec(
            ArraySpec((size,), "float32", low, high), _as_is if len(space.shape) == 1 else np.ravel
        )
    if space.dtype == np.uint8:
        return ObsCodec(ArraySpec(space.shape, "uint8", low, high), _as_is)
    if space.dtype == np.bool_:
        return ObsCodec(ArraySpec(space.shape, "uint8", 0.0, 255.0), _black_and_white)
    return ObsCodec(ArraySpec(space.shape, "float32", low, high), _as_is)


def _as_is(obs: Any) -> Any:
    return obs


def _black_and_white(obs: Any) -> Array:
    return np.where(obs, np.uint8(255), np.uint8(0))


def _refuse_unflattenable(space: spaces.Space[Any], where: str) -> None:
    if isinstance(space, spaces.Dict | spaces.Tuple):
        for part in space.spaces.values() if isinstance(space, spaces.Dict) else space.spaces:
            _refuse_unflattenable(part, where)
    elif isinstance(space, spaces.Box):
        if is_image(space):
            raise EnvError(
                f"{where}: observation space holds the image {space} inside a Dict or Tuple: flattening it "
                "would hide its shape from the network. Wrap the environment so that the image is the whole "
                "observation."
            )
    elif not isinstance(space, spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        raise EnvError(
            f"{where}: observation space {space} has no fixed-size array: it cannot be stored as a column. "
            "Wrap the environment so that it gives a Box, Discrete, MultiDiscrete or MultiBinary, or a Dict "
            "or Tuple of those."
        )


def _bounds(space: spaces.Space[Any]) -> tuple[float, float]:
    flat = spaces.flatten_space(space)
    assert isinstance(flat, spaces.Box)  # what flatten_space gives for every space let through above
    return float(np.min(flat.low)), float(np.max(flat.high))
