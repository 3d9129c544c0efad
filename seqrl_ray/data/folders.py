"""Folders made on the way to a dataset, and removed again when it does not come to be."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


def make(folder: Path, *, exist_ok: bool = False) -> tuple[Path, ...]:
    """Make `folder` and the parents it lacks.

    Returns: what was made, deepest first, for `unmake`.
    Raises: FileExistsError: the folder exists, unless `exist_ok`. OSError: it cannot be made.
    """
    missing = tuple(path for path in (folder, *folder.parents) if not path.exists())
    folder.mkdir(parents=True, exist_ok=exist_ok)
    return missing


def unmake(made: Iterable[Path]) -> None:
    """Remove folders, as far as they are empty: what somebody else put there is theirs to keep."""
    for folder in made:
        try:
            folder.rmdir()
        except OSError:
            return
