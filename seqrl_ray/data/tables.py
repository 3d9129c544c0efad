"""Export to tables: Parquet, and Arrow's IPC file format, one row per decision.

Columns: `episode` and `step` (both from 0), `seed` (null = unknown), `obs`, `action`, `reward`,
`terminated`, `truncated`, `legal` in a masked group, and `final_obs`: the observation after an episode's last
decision, null in all other rows. Arrays are fixed-size lists of their flattened values; a field's metadata
holds the shape. The schema's metadata holds group and metadata under the key "seqrl".

Dims: R rows of a fragment, P episodes of it, N decisions.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from seqrl_ray.data import folders
from seqrl_ray.data.dataset import Dataset, trajectories
from seqrl_ray.data.manifest import group_to_json
from seqrl_ray.data.writer import UNKNOWN_SEED
from seqrl_ray.errors import DataError
from seqrl_ray.replay.snapshot import to_arrow
from seqrl_ray.types_env import Trajectory

TableFormat = Literal["parquet", "arrow"]

_AT_ONCE_BYTES = 32_000_000


def export_table(dataset: Dataset, target: Path | str, table_format: TableFormat) -> Path:
    """Write a dataset as one table file, in bounded memory.

    Args:
        dataset: ours.
        target: the file; must not exist.
        table_format: "parquet" or "arrow".

    Returns: the file.
    Raises: DataError: the file exists or cannot be written.
    """
    target = Path(target)
    if target.exists():
        raise DataError(f"target={target} exists: it would be overwritten. Name a new file.")
    chunk_rows = max(1, _AT_ONCE_BYTES * dataset.rows // dataset.nbytes)
    partial = target.with_name(f"{target.name}.partial")
    schema = _schema(dataset)
    made: tuple[Path, ...] = ()
    try:
        made = folders.make(target.parent, exist_ok=True)
        try:
            with _opener(table_format)(str(partial), schema) as writer:
                for fragment in trajectories(dataset, chunk_rows=chunk_rows):
                    writer.write_batch(pa.record_batch(_columns(dataset, fragment), schema=schema))
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)
            folders.unmake(made)  # where the target is not: else they are not empty
    except OSError as error:
        raise DataError(
            f"target={target} cannot be written ({error}): nothing was exported. Free space or change the "
            "target."
        ) from None
    return target


def _opener(table_format: TableFormat) -> Callable[[str, Any], Any]:
    """What makes a writer of a path and a schema."""
    if table_format == "arrow":
        return pa.ipc.new_file  # type: ignore[no-any-return]
    from pyarrow import parquet

    return parquet.ParquetWriter  # type: ignore[no-any-return]


def _columns(dataset: Dataset, fragment: Trajectory) -> list[Any]:
    """Columns of the decisions of a fragment, in the schema's order."""
    final = fragment.columns["final"]  # [R]
    decisions = fragment.length - 1  # [P]
    number = fragment.episode.repeat(decisions)  # [N]
    ends = np.cumsum(decisions)
    step = np.arange(number.size) - (ends - decisions).repeat(decisions)
    seed = dataset.episode_seed[number]
    arrays = [pa.array(number), pa.array(step), pa.array(seed, mask=seed == UNKNOWN_SEED)]
    for name in _stored(dataset):
        arrays.append(to_arrow(fragment.columns[name][~final]))
    last = fragment.columns["obs"][final]  # [P, *obs]
    missing = np.ones(number.size + 1, np.bool_)
    missing[ends - 1], missing[-1] = False, False
    offsets = np.zeros(number.size + 1, np.int32)  # a list ends where the next one that is not null begins
    offsets[ends - 1] = np.arange(ends.size) * dataset.group.obs.size
    offsets[-1] = last.size
    arrays.append(pa.ListArray.from_arrays(pa.array(offsets, mask=missing), pa.array(last.reshape(-1))))
    return arrays


def _schema(dataset: Dataset) -> Any:
    fields = [pa.field(name, pa.int64()) for name in ("episode", "step", "seed")]
    for name in _stored(dataset):
        column = dataset.columns[name]
        shape = {b"shape": json.dumps(column.shape[1:]).encode()}
        fields.append(pa.field(name, to_arrow(np.asarray(column[:1])).type, metadata=shape))
    value = pa.from_numpy_dtype(np.dtype(dataset.group.obs.dtype))
    fields.append(
        pa.field(
            "final_obs", pa.list_(value), metadata={b"shape": json.dumps(dataset.group.obs.shape).encode()}
        )
    )
    ours = {
        "created_by": dataset.created_by,
        "group": group_to_json(dataset.group),
        "meta": dict(dataset.meta),
    }
    return pa.schema(fields, metadata={b"seqrl": json.dumps(ours).encode()})


def _stored(dataset: Dataset) -> list[str]:
    return [name for name in dataset.columns if name != "final"]
