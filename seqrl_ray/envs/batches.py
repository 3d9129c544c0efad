"""Many observations or actions at once, as they stand in datasets, in the layout of `spaces.py` and back.

`spaces.py` encodes one observation as an environment gives it; here T of them are encoded without a loop over
them, to the same numbers (a test compares the two). `decode` is the inverse, up to float32.

A batch of a space is an array with a leading T; of a Dict a mapping of batches, of a Tuple a tuple of them.

Dims: T observations, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from seqrl_ray.envs.spaces import is_image
from seqrl_ray.errors import EnvError
from seqrl_ray.types import Array, IntArray


def encode(space: spaces.Space[Any], batch: Any, where: str) -> Array:
    """Return T observations as they are stored.

    Args:
        space: one that `spaces.obs_codec` accepts.
        batch: T observations of it.
        where: whose they are, for messages.
    Returns: [T, *shape] of the codec's shape and dtype.
    Raises: EnvError: the batch is not one of this space.
    """
    if isinstance(space, spaces.Box) and is_image(space):
        values = _shaped(space, batch, where)
        if space.dtype == np.bool_:
            return np.where(values, np.uint8(255), np.uint8(0))
        return values.astype(np.uint8 if space.dtype == np.uint8 else np.float32, copy=False)
    parts = list(_flat(space, batch, where))
    counts = {len(part) for part in parts}
    if len(counts) > 1:
        raise EnvError(
            f"{where}: the parts of {space} hold {sorted(counts)} observations: they cannot stand side by "
            "side. Correct or leave out the episode."
        )
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)  # [T, D]


def decode(space: spaces.Space[Any], rows: Array) -> Any:
    """Return stored observations [T, *shape] as a batch of `space`; the inverse of `encode`."""
    if isinstance(space, spaces.Box) and is_image(space):
        return rows > 0 if space.dtype == np.bool_ else rows.astype(space.dtype)
    batch, rest = _unflat(space, rows)
    assert rest.shape[1] == 0
    return batch


def encode_actions(space: spaces.Space[Any], batch: Any, where: str) -> Array:
    """Return T actions as they are stored: indices from 0 [T] int64, or [T, *action] float32.

    Args:
        space: one that `spaces.action_codec` accepts.
        batch: T actions of it; a Discrete's may stand in a column [T, 1].
        where: whose they are, for messages.
    Raises: EnvError: the batch is not one of this space.
    """
    values = np.asarray(batch)
    if isinstance(space, spaces.Discrete):
        return _index(values, [int(space.n)], [int(space.start)], where)[:, 0]  # [T]
    return _shaped(space, values, where).astype(np.float32, copy=False)


def decode_actions(space: spaces.Space[Any], rows: Array) -> Array:
    """Return stored actions as a batch of `space`; the inverse of `encode_actions`."""
    if isinstance(space, spaces.Discrete):
        return (rows + space.start).astype(space.dtype)
    return rows.astype(space.dtype)


def _flat(space: spaces.Space[Any], batch: Any, where: str) -> Sequence[Array]:
    """Parts [T, d] of the vector, in gymnasium's order."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        named = isinstance(space, spaces.Dict)
        if not isinstance(batch, dict if named else tuple) or len(batch) != len(space.spaces):
            raise EnvError(
                f"{where}: a batch of {space} is a {type(batch).__name__}"
                f"{f' of {len(batch)} parts' if hasattr(batch, '__len__') else ''}: its parts cannot be told "
                "apart. Give one per subspace."
            )
        inner = _inner(space)
        for name, _ in inner:
            if named and name not in batch:
                raise EnvError(
                    f"{where}: part {name!r} of {space} is missing: its features would be unknown. Add it."
                )
        return [part for name, below in inner for part in _flat(below, batch[name], where)]
    if isinstance(space, spaces.Discrete):
        return [_one_hot(batch, [int(space.n)], [int(space.start)], where)]
    if isinstance(space, spaces.MultiDiscrete):
        return [_one_hot(batch, space.nvec.ravel().tolist(), space.start.ravel().tolist(), where)]
    values = _shaped(space, batch, where)
    return [values.reshape(len(values), -1).astype(np.float32, copy=False)]


def _unflat(space: spaces.Space[Any], rows: Array) -> tuple[Any, Array]:
    """The batch that the first features of `rows` [T, D] hold, and the other features."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        parts: dict[Any, Any] = {}
        for name, below in _inner(space):
            parts[name], rows = _unflat(below, rows)
        return (parts if isinstance(space, spaces.Dict) else tuple(parts.values())), rows
    size = spaces.flatdim(space)
    own, rest = rows[:, :size], rows[:, size:]
    if isinstance(space, spaces.Discrete):
        return (own.argmax(axis=1) + space.start).astype(space.dtype), rest  # [T]
    if isinstance(space, spaces.MultiDiscrete):
        cuts = np.cumsum(space.nvec.ravel())[:-1]
        index = np.stack([hot.argmax(axis=1) for hot in np.split(own, cuts, axis=1)], axis=1)
        return (index.reshape(-1, *space.shape) + space.start).astype(space.dtype), rest
    assert space.shape is not None
    return own.reshape(-1, *space.shape).astype(space.dtype), rest


def _inner(space: spaces.Dict | spaces.Tuple) -> list[tuple[Any, spaces.Space[Any]]]:
    """Key or place, and space, of every part."""
    return list(space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces))


def _shaped(space: spaces.Space[Any], batch: Any, where: str) -> Array:
    values: Array = np.asarray(batch)
    if values.shape[1:] != space.shape or values.dtype.kind not in "bif" + "u":
        raise EnvError(
            f"{where}: a batch of {space} has shape {values.shape} and dtype {values.dtype}, not (T, "
            f"{', '.join(map(str, space.shape or ()))}) numbers: it cannot be stored. Correct or leave out "
            "the episode."
        )
    return values


def _one_hot(batch: Any, sizes: list[int], starts: list[int], where: str) -> Array:
    index = _index(np.asarray(batch), sizes, starts, where)  # [T, parts]
    hot = np.zeros((len(index), sum(sizes)), np.float32)  # [T, D]
    offsets = np.cumsum([0, *sizes[:-1]])
    np.put_along_axis(hot, index + offsets, 1.0, axis=1)
    return hot


def _index(values: Array, sizes: list[int], starts: list[int], where: str) -> IntArray:
    """Values from 0, [T, parts]."""
    if values.dtype.kind not in "iu" or values.size != len(values) * len(sizes):
        raise EnvError(
            f"{where}: a batch of {len(sizes)} discrete values has shape {values.shape} and dtype "
            f"{values.dtype}: it cannot be stored. Give integers, one per part."
        )
    index = values.reshape(len(values), -1).astype(np.int64) - starts
    if ((index < 0) | (index >= sizes)).any():
        raise EnvError(
            f"{where}: a discrete value is outside of its space (sizes {sizes}, from {starts}): it has no "
            "place in the one-hot. Correct the space or leave out the episode."
        )
    return index
