"""A sweep's folder here and its copy in remote storage: `seqrl tune --run-dir s3://bucket/sweeps/first`.

As `loops/mirror.py` does for a run; but what a sweep goes on from is its board's log together with the
checkpoints that the log names, of one moment, while members go on and drop theirs. So a copy takes the log as
it is, holds what it names (hard links, in the sweep's own folder), and copies in this order: rows, those
checkpoints with their manifests last, the log, whole. Then checkpoints go that the log there no longer names.
Whatever moment this machine is lost at, the log that lies there names complete checkpoints.

A report that was made after the newest copy is lost with the machine, as it is with a kill before the report.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from seqrl_ray.errors import CheckpointError, RunFolderError
from seqrl_ray.loops import checkpoints
from seqrl_ray.loops.mirror import CHECKPOINTS, MARK, Mirror, arrive
from seqrl_ray.loops.remote import Remote, is_url
from seqrl_ray.tune.board import LOG, named, rows_of
from seqrl_ray.tune.trainable import folder_of

SWEEP, RECIPE = "sweep.toml", "recipe.toml"
HELD = ".held"
"""Folder of the links, in the sweep's own."""
LOOKS = 20
"""How often a copy looks at a log that grows before it has all that it names."""


def needed(log: bytes) -> set[str]:
    """Return the names, within a sweep's folder, of the checkpoints that its log goes on from."""
    return {(folder_of(Path(), trial) / CHECKPOINTS / name).as_posix() for trial, name in named(rows_of(log))}


def checkpoint_of(name: str) -> str | None:
    """Return the checkpoint that a file of a sweep belongs to, by its name; None: to none."""
    parts = name.split("/")
    if CHECKPOINTS not in parts[:-2]:
        return None
    return "/".join(parts[: parts.index(CHECKPOINTS) + 2])


def pull_sweep(remote: Remote, folder: Path) -> Path:
    """Bring a sweep: its log, the checkpoints that this names, and all that is in no checkpoint.

    Args:
        remote: the sweep's place.
        folder: where to; one that is there is kept beside it under another name.
    Raises: RunFolderError: there is no sweep. CheckpointError: a checkpoint is missing or damaged.
    """
    log = remote.read_whole(LOG) or b""  # before the rest: what it names is there
    there = _sweep_files(remote)
    whole = needed(log)
    wanted = [name for name in there if name != LOG and checkpoint_of(name) in {None, *whole}]
    return arrive(remote, folder, wanted, sorted(whole), {LOG: log} if log else None)


@contextlib.contextmanager
def fetched_sweep(sweep: str | Path) -> Iterator[Path]:
    """Have a sweep's file, recipe and log here for reading: its folder, or a copy of them that goes again.

    Raises: RunFolderError: there is no such sweep.
    """
    if not is_url(sweep):
        yield Path(sweep)
        return
    with tempfile.TemporaryDirectory(prefix="seqrl-") as here:
        remote = Remote(str(sweep))
        try:
            _sweep_files(remote)
            folder = arrive(
                remote, Path(here) / remote.name, (SWEEP, RECIPE), (), {LOG: remote.read_whole(LOG) or b""}
            )
        except OSError as error:
            raise RunFolderError(
                f"{remote.url} cannot be read ({error}). Look at the address and at your credentials."
            ) from None
        yield folder


def _sweep_files(remote: Remote) -> list[str]:
    there = remote.files()
    missing = [name for name in (SWEEP, RECIPE) if name not in there]
    if missing:
        raise RunFolderError(
            f"{remote.url} is not a sweep: it has no {' and no '.join(missing)}. Name a sweep's own place."
        )
    return there


class SweepMirror(Mirror):
    """Copies a sweep's folder to its place while the sweep goes on; see the module docstring."""

    def __init__(self, remote: Remote, folder: Path, say: Callable[[str], None]) -> None:
        """Take the place over; arguments as in `Mirror`."""
        super().__init__(remote, folder, 0, say)
        self._whole: dict[str, bytes] = {}  # checkpoint that lies there -> its manifest
        self._log: bytes | None = None

    def copy(self) -> None:
        """Copy what is new, the log last; drop what it does not name there.

        Raises: OSError: the storage failed. StorageError: another session has taken the sweep over.
        """
        self._still_ours()
        if self.remote.read_whole(LOG) is None:
            self.remote.put_whole(b"", LOG)  # a first log that is cut short then never is the only one
        try:
            log, names = self._hold()
            self._put_rows()
            for name in sorted(names):
                self._put_named(name)
            self._still_ours()
            if log != self._log:
                self.remote.put_whole(log, LOG)
                self._log = log
        finally:
            shutil.rmtree(self.folder / HELD, ignore_errors=True)
        found = [(name, checkpoint_of(name)) for name in self.remote.files()]
        self._remove_checkpoints([name for name, of in found if of is not None and of not in names])
        self._whole = {name: manifest for name, manifest in self._whole.items() if name in names}

    def _stays(self, name: str) -> bool:
        return (
            checkpoint_of(name) is not None
            or name.startswith(f"{HELD}/")
            or name in (LOG, f"{LOG}.lock", MARK)
            or name.endswith(".partial")
        )

    def _hold(self) -> tuple[bytes, set[str]]:
        """Return the log and what it names; of that, what does not lie there yet is held here.

        A member drops a checkpoint only when a later report of its own is in the log: what the log still
        names after the links were made was whole while they were made.

        Raises: CheckpointError: the log names what is not here.
        """
        held: set[str] = set()
        shutil.rmtree(self.folder / HELD, ignore_errors=True)  # of a copy that was killed
        log = self._read_log()
        for _ in range(LOOKS):
            names = needed(log)
            lost = None
            for name in sorted(names - held):
                try:
                    if self._manifest(self.folder / name) != self._whole.get(name):
                        shutil.copytree(
                            self.folder / name,
                            self.folder / HELD / name,
                            copy_function=_link,
                        )
                    held.add(name)
                except (FileNotFoundError, shutil.Error):
                    lost = name
                    shutil.rmtree(self.folder / HELD / name, ignore_errors=True)
            log, before = self._read_log(), log
            if lost is None and names <= needed(log):
                return before, names
            held &= needed(log)
        raise CheckpointError(
            f"{self.folder / LOG} names {lost or 'checkpoints'}, which cannot be found whole: the sweep "
            "cannot be copied. Look at who else writes to this folder."
        )

    def _put_named(self, name: str) -> None:
        """Copy a checkpoint that is held, unless it lies there; one of its name may be of a lost session."""
        held = self.folder / HELD / name
        if not held.is_dir():
            return
        manifest = self._manifest(held)
        if self.remote.read(f"{name}/{checkpoints.MANIFEST}") != manifest:
            self._remove_checkpoints(self.remote.files(name))
            self._put_checkpoint(held, name)
        self._whole[name] = manifest

    def _read_log(self) -> bytes:
        path = self.folder / LOG
        text = path.read_bytes() if path.is_file() else b""
        return text[: text.rfind(b"\n") + 1]

    @staticmethod
    def _manifest(folder: Path) -> bytes:
        return (folder / checkpoints.MANIFEST).read_bytes()


def _link(source: str, target: str) -> None:
    """Link a file, or copy it where the file system has no links."""
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(source, target)
