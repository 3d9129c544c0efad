"""Write a shard to a folder while it goes on inserting and sampling.

`Snapshot` freezes a version at once: it copies what may change while a row lives (links, masses, returns:
about 50 bytes per row) and remembers which rows are stored. The rest of a row is written once in its life, so
it is read later, in bounded slices; a row that is about to be overwritten before its slice was written is
copied aside first. Each slice is one Arrow record batch; `manifest.json`, written last with sizes and hashes,
alone makes the snapshot exist. Nothing is pickled.

Dims: N rows of capacity, R frozen rows.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from seqrl_ray.errors import CheckpointError
from seqrl_ray.replay.store import Store
from seqrl_ray.types import Array, ArraySpec

Int64Array = NDArray[np.int64]

FORMAT = "seqrl-ray replay snapshot 1"
MANIFEST = "manifest.json"
ROW = "row"
_FILE_BYTES = 256_000_000
_SYNC_WAIT_S = 0.005


class Snapshot:
    """A frozen version of one shard on its way to a folder."""

    def __init__(
        self,
        store: Store,
        folder: Path,
        *,
        item_columns: Mapping[str, Array],
        description: Mapping[str, Any],
        slice_bytes: int,
    ) -> None:
        """Freeze the present version.

        Args:
            store: what is written.
            folder: made if missing; a manifest in it is removed first, so that an older snapshot cannot be
                mistaken.
            item_columns: name -> [N], the sampler's state by row.
            description: JSON values that go to the manifest: settings that must agree, and all other state.
            slice_bytes: most bytes of one slice.

        Raises: CheckpointError: the folder cannot be written.
        """
        self._store, self._folder = store, folder
        self._rows = store.live_rows()  # [R]
        links = {name: store.columns[name] for name in store.link_specs}
        self._frozen = {
            name: column.take(self._rows, axis=0) for name, column in (links | dict(item_columns)).items()
        }
        self._description = dict(description)
        self._pending = np.zeros(store.capacity, bool)
        self._pending[self._rows] = True
        self._preserved: dict[int, dict[str, Array]] = {}
        row_bytes = sum(spec.nbytes for spec in (store.data_specs | store.link_specs).values()) + 16
        self._slice_rows = max(1, slice_bytes // row_bytes)
        self._file_rows = self._slice_rows * max(1, _FILE_BYTES // (self._slice_rows * row_bytes))
        self._written = 0
        self._files: list[dict[str, Any]] = []
        self._file: _HashedFile | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="replay-snapshot")
        self._syncing: list[Future[None]] = []
        self.done = False
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / MANIFEST).unlink(missing_ok=True)
        except OSError as error:
            raise _unwritable(folder, error) from error

    def preserve(self, rows: Int64Array) -> None:
        """Copy aside those of `rows` that are frozen and unwritten; call before they are overwritten."""
        if self.done:
            return
        rows = rows[self._pending[rows]]
        if rows.size == 0:
            return
        kept = {name: self._store.columns[name].take(rows, axis=0) for name in self._store.data_specs}
        for place, row in enumerate(rows.tolist()):
            self._preserved[row] = {name: column[place] for name, column in kept.items()}
        self._pending[rows] = False

    def write_slice(self) -> bool:
        """Write the next slice, or the manifest after the last one. Returns whether the snapshot exists now.

        Files are synced to the disk by a thread: a disk may take its time over them, the shard may not.

        Raises: CheckpointError: the folder cannot be written.
        """
        if self.done:
            return True
        try:
            if self._written < self._rows.size:
                self._write_rows()
            elif not wait(self._syncing, timeout=_SYNC_WAIT_S).not_done:
                for file in self._syncing:
                    file.result()
                self._thread.shutdown()
                self._write_manifest()
        except OSError as error:
            raise _unwritable(self._folder, error) from error
        return self.done

    def write_all(self) -> None:
        """Write all that is left."""
        while not self.write_slice():
            pass

    def _write_rows(self) -> None:
        if self._file is None:
            self._file = _HashedFile(self._folder / f"rows-{len(self._files):05d}.arrow")
        part = slice(self._written, self._written + self._slice_rows)
        rows = self._rows[part]
        data = {name: self._store.columns[name].take(rows, axis=0) for name in self._store.data_specs}
        for place in np.flatnonzero(~self._pending[rows]).tolist():
            for name, value in self._preserved.pop(int(rows[place])).items():
                data[name][place] = value
        self._pending[rows] = False
        self._file.write({ROW: rows} | data | {name: column[part] for name, column in self._frozen.items()})
        self._written += rows.size
        if self._written == self._rows.size or self._file.rows >= self._file_rows:
            self._files.append(self._file.close())
            self._syncing.append(self._thread.submit(self._file.sync))
            self._file = None

    def _write_manifest(self) -> None:
        specs = self._store.data_specs | self._store.link_specs
        manifest = {
            "format": FORMAT,
            "rows": int(self._rows.size),
            "capacity": self._store.capacity,
            "columns": {name: {"dtype": s.dtype, "shape": list(s.shape)} for name, s in specs.items()},
            "files": self._files,
            **self._description,
        }
        partial = self._folder / f"{MANIFEST}.partial"
        with partial.open("w", encoding="utf-8") as file:
            json.dump(manifest, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, self._folder / MANIFEST)
        self.done = True


class _HashedFile:
    """An Arrow IPC file that is hashed while it is written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sink = _HashingSink(path.open("wb"))
        self._writer: pa.ipc.RecordBatchFileWriter | None = None
        self.rows = 0

    def write(self, columns: Mapping[str, Array]) -> None:
        batch = pa.record_batch({name: to_arrow(column) for name, column in columns.items()})
        if self._writer is None:
            self._writer = pa.ipc.new_file(self._sink, batch.schema)
        self._writer.write_batch(batch)
        self.rows += batch.num_rows

    def close(self) -> dict[str, Any]:
        """End the file and describe it; `sync` must follow."""
        if self._writer is not None:
            self._writer.close()
        digest, size = self._sink.digest.hexdigest(), self._sink.tell()
        return {"name": self._path.name, "rows": self.rows, "bytes": size, "sha256": digest}

    def sync(self) -> None:
        """Wait until the file is on the disk, and close it."""
        self._sink.sync()


class _HashingSink:
    """What Arrow writes to: a file object that also hashes."""

    closed = False

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size = 0
        self.digest = hashlib.sha256()

    def write(self, data: Any) -> int:
        view = memoryview(data)
        self.digest.update(view)
        self._size += view.nbytes
        self._file.write(view)
        return view.nbytes

    def tell(self) -> int:
        return self._size

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        """Arrow closes its sink; the file is closed by `sync`."""

    def sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()


def to_arrow(column: Array) -> pa.Array:
    """A column [R, ...] as an Arrow array: plain for scalars, else fixed-size lists of flat rows."""
    values = pa.array(np.ascontiguousarray(column).reshape(-1))
    if column.ndim == 1:
        return values
    return pa.FixedSizeListArray.from_arrays(values, int(np.prod(column.shape[1:], dtype=np.int64)))


def from_arrow(array: pa.Array, spec: ArraySpec) -> Array:
    """The inverse of `to_arrow`."""
    if spec.shape:
        array = array.flatten()
    return np.asarray(array.to_numpy(zero_copy_only=False), spec.dtype).reshape(-1, *spec.shape)


def _unwritable(folder: Path, error: OSError) -> CheckpointError:
    return CheckpointError(
        f"folder={folder} cannot be written ({error}): the replay snapshot does not exist. Free space or "
        "change the folder."
    )
