"""One column on disk: an ordinary `.npy` file that grows at its end, and the checks of reading it back.

Source: the NumPy format, version 1.0 (https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html).
Its header leaves room for the row count to grow, so it is written with 0 rows first and in place at the end;
`np.load(mmap_mode="r", allow_pickle=False)` reads the result. The hash is of the array's bytes, without the
header: that can be kept while the file grows, and the header is compared with the manifest itself.

Dims: R rows.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from seqrl_ray.errors import DataError
from seqrl_ray.types import Array, ArraySpec


class GrowingNpy:
    """A `.npy` file of rows of one spec, written in order."""

    def __init__(self, path: Path, spec: ArraySpec) -> None:
        """Make the file.

        Raises: OSError: it exists, or cannot be written.
        """
        self._path, self._spec = path, spec
        self._file = path.open("xb")
        self._header_bytes = self._file.write(_header(spec, 0))
        self._digest = hashlib.sha256()
        self._rows = 0

    def append(self, rows: Array) -> None:
        """Write `rows` [n, *shape] of the spec's dtype."""
        data = np.ascontiguousarray(rows).reshape(-1).view(np.uint8).data
        self._digest.update(data)
        self._file.write(data)
        self._rows += rows.shape[0]

    def close(self) -> dict[str, Any]:
        """Finish the header, wait for the disk, and return the file's manifest entry."""
        header = _header(self._spec, self._rows)
        if len(header) != self._header_bytes:  # 21 digits are reserved
            raise DataError(
                f"rows={self._rows} do not fit the header of {self._path}: it is not a .npy file. Report "
                "this as a defect."
            )
        bytes_written = self._file.tell()
        self._file.seek(0)
        self._file.write(header)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return {
            "dtype": self._spec.dtype,
            "shape": [self._rows, *self._spec.shape],
            "bytes": bytes_written,
            "sha256": self._digest.hexdigest(),
        }

    def abandon(self) -> None:
        """Close and remove the file."""
        self._file.close()
        self._path.unlink(missing_ok=True)


def open_npy(path: Path, entry: Mapping[str, Any], *, verify: bool) -> np.memmap[Any, Any]:
    """Map a column into memory, read only.

    Args:
        path: the file.
        entry: what the manifest says of it: dtype, shape, bytes, sha256.
        verify: also compare the hash, which reads the whole file.
    Raises: DataError: it is missing, cut short, or not what the manifest says.
    """
    try:
        size = path.stat().st_size
    except OSError:
        raise DataError(
            f"file={path} does not exist: the dataset lacks a column. Copy or import the dataset again."
        ) from None
    if size != entry.get("bytes"):
        raise DataError(
            f"file={path} has {size} bytes, not {entry.get('bytes')}: it was cut short or changed. Copy or "
            "import the dataset again."
        )
    try:
        column: np.memmap[Any, Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(
            f"file={path} is not a .npy file ({error}): the dataset is damaged. Copy or import it again."
        ) from None
    if column.dtype != np.dtype(entry["dtype"]) or list(column.shape) != list(entry["shape"]):
        raise DataError(
            f"file={path} holds {column.dtype} {list(column.shape)}, not {entry['dtype']} "
            f"{entry['shape']}: it was changed. Copy or import the dataset again."
        )
    if verify and _hash(path, column.offset) != entry.get("sha256"):
        raise DataError(
            f"file={path} has another sha256 than the manifest: its values were changed. Copy or import "
            "the dataset again."
        )
    return column


def _header(spec: ArraySpec, rows: int) -> bytes:
    buffer = io.BytesIO()
    description = np.lib.format.dtype_to_descr(np.dtype(spec.dtype))
    shape = (rows, *spec.shape)
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": description, "fortran_order": False, "shape": shape}
    )
    return buffer.getvalue()


def _hash(path: Path, offset: int) -> str:
    with path.open("rb") as file:
        file.seek(offset)
        return hashlib.file_digest(file, "sha256").hexdigest()
