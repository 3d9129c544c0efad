"""Preallocated columns: what a row consists of, where each column lives, and what an unwritten row holds.

Unwritten rows hold NaN (floats), -1 (signed integers), 0 / False (the rest) and never leave a view. Columns
beyond a byte budget live in memory-mapped files, the largest first, so that everything small stays in RAM.

Dims: N rows of capacity.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from seqrl_ray.errors import ReplayError
from seqrl_ray.types import Array, ArraySpec, GroupSpec, SampleSpec
from seqrl_ray.types_env import Trajectory

TERMINATED, TRUNCATED, FINAL = 1, 2, 4
"""Bits of the `flags` column, of the transition that starts at the row; FINAL marks a stream's last row."""

PRIORITY = "priority"
"""An extra column of this name (scalar float32, NaN = none) gives items their first priority."""

_FLAGS = ("terminated", "truncated", "final")
_MADE_HERE = ("flags", "offset", "serial", "weights_epoch", "weights_counter")


def data_columns(group: GroupSpec, spec: SampleSpec) -> dict[str, ArraySpec]:
    """Columns that are written once, when a row arrives: name -> one row's array."""
    columns = {
        "obs": group.obs,
        "action": group.action.column,
        "reward": ArraySpec((), "float32"),
        "flags": ArraySpec((), "uint8"),
        "offset": ArraySpec((), "int32"),
        "serial": ArraySpec((), "int64"),
        "weights_epoch": ArraySpec((), "int32"),
        "weights_counter": ArraySpec((), "int32"),
    }
    if group.masked:
        columns["legal"] = ArraySpec((group.action.n,), "bool")
    for extra in spec.extra:
        if extra.name in columns or extra.name in _FLAGS:
            raise ReplayError(
                f"extra column {extra.name!r} has the name of a built-in column: its values would be mixed "
                "up. Rename it."
            )
        columns[extra.name] = extra.array
    return columns


def link_columns(spec: SampleSpec) -> dict[str, ArraySpec]:
    """Columns that change while a row lives."""
    columns = {
        "next_row": ArraySpec((), "int64"),
        "prev_row": ArraySpec((), "int64"),
        "generation": ArraySpec((), "int32"),
    }
    if spec.returns:
        columns["return_to_go"] = ArraySpec((), "float32")
    return columns


def unwritten(dtype: str) -> float | int | bool:
    """What an unwritten element of a column of `dtype` holds."""
    kind = np.dtype(dtype).kind
    if kind == "f":
        return math.nan
    return -1 if kind == "i" else 0


def allocate(
    columns: Mapping[str, ArraySpec],
    rows: int,
    *,
    memory_bytes: int | None = None,
    folder: Path | None = None,
) -> dict[str, Array]:
    """Allocate every column: in RAM while `memory_bytes` lasts (smallest first), the rest in `folder`.

    Args:
        columns: name -> one row's array.
        rows: capacity N.
        memory_bytes: RAM budget in bytes; None = no limit.
        folder: where memory-mapped columns go, one file each; required with a budget.

    Raises: ReplayError: a column exceeds the budget and there is no folder.
    """
    left = math.inf if memory_bytes is None else memory_bytes
    arrays: dict[str, Array] = {}
    for name, spec in sorted(columns.items(), key=lambda item: item[1].nbytes):
        shape, size, empty = (rows, *spec.shape), rows * spec.nbytes, unwritten(spec.dtype)
        if size <= left:
            left -= size
            # zeros: pages of unsigned columns stay untouched (and cost nothing) until a row is written
            arrays[name] = np.zeros(shape, spec.dtype) if empty == 0 else np.full(shape, empty, spec.dtype)
            continue
        if folder is None:
            raise ReplayError(
                f"memory_bytes={memory_bytes} is less than column {name!r} needs ({size} bytes) and no "
                "folder is given: it has no place. Set memmap_folder or raise memory_bytes."
            )
        folder.mkdir(parents=True, exist_ok=True)
        arrays[name] = np.memmap(folder / f"{name}.column", dtype=spec.dtype, mode="w+", shape=shape)
        if empty != 0:
            arrays[name][...] = empty
        left = 0
    return {name: arrays[name] for name in columns}


def pack_flags(columns: Mapping[str, Array]) -> Array:
    """Flags [R] uint8 of a fragment's terminated, truncated and final; a final row carries FINAL alone."""
    final = columns["final"]
    flags = columns["terminated"].astype(np.uint8) * TERMINATED
    flags |= columns["truncated"].astype(np.uint8) * TRUNCATED
    flags[final] = FINAL
    return flags


def check_trajectory(trajectory: Trajectory, group: GroupSpec, columns: Mapping[str, ArraySpec]) -> None:
    """Raise ReplayError if a column's name, shape or kind of dtype, or the pieces, do not fit."""
    if trajectory.policy_id != group.policy_id:
        raise ReplayError(
            f"policy_id={trajectory.policy_id!r} is not this store's {group.policy_id!r}: experience of two "
            "policies would mix. Send it to the shard of its policy."
        )
    rows = trajectory.rows
    wanted = {name: spec for name, spec in columns.items() if name not in _MADE_HERE}
    wanted |= {name: ArraySpec((), "bool") for name in _FLAGS}
    for name, spec in wanted.items():
        given = trajectory.columns.get(name)
        if given is None:
            raise ReplayError(
                f"column {name!r} is missing from the fragment: its rows cannot be stored. Add the column."
            )
        if given.shape != (rows, *spec.shape):
            raise ReplayError(
                f"column {name!r} has shape {given.shape}, not {(rows, *spec.shape)}: its rows cannot be "
                "stored. Make the fragment and the group's spec agree."
            )
        if not np.can_cast(given.dtype, spec.dtype, "same_kind"):
            raise ReplayError(
                f"column {name!r} has dtype {given.dtype}, which does not fit {spec.dtype}: values would be "
                "lost. Make the fragment and the group's spec agree."
            )
    length = trajectory.length
    if (
        int(length.sum()) != rows
        or (length < 1).any()
        or (trajectory.offset < 0).any()
        or (trajectory.slot < 0).any()
    ):
        raise ReplayError(
            f"length={length.tolist()} does not cut {rows} rows into pieces of at least 1, or an offset or "
            "slot is negative: rows cannot be told apart. Send whole, non-empty pieces."
        )
    ends = np.cumsum(length) - 1
    final = trajectory.columns["final"]
    if np.count_nonzero(final) != np.count_nonzero(final[ends]):
        raise ReplayError(
            "a final row stands inside a piece: a stream goes on after its end. Start a new episode there."
        )
