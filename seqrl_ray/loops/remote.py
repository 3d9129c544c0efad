"""Remote storage of runs: any path that fsspec knows, as a place of files and as a run's owner.

`s3://` and `gs://` go through fsspec's own backend where it is installed (s3fs, gcsfs), and else through
pyarrow's, which is always there. Credentials come from the environment, never from the path.

What is asked of a backend is little: put, get, list, delete, and that a small file which is moved to its name
is there whole or not at all (a rename in file systems; in object stores every object is).
"""

from __future__ import annotations

import json
import os
import posixpath
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import fsspec

from seqrl_ray.errors import RunFolderError, SeqrlError

OWNER = "owner.json"
"""Who writes to the place now; a session that finds another one's name there stops writing."""

THROUGH_PYARROW = {"s3", "s3a", "gs", "gcs"}


class StorageError(SeqrlError):
    """Remote storage did not take the end of a run, or another session has taken the run over."""

    exit_code = 1


def is_url(place: str | Path) -> bool:
    """Whether a place is remote: it names its kind, e.g. `s3://bucket/runs/first`."""
    return "://" in str(place)


def refuse_path(place: str | Path | None, what: str) -> None:
    """Refuse a remote place that was given as a `Path`, which has taken one of its slashes.

    Raises: RunFolderError: it was.
    """
    kind, colon, rest = str(place or "").partition(":")
    if isinstance(place, Path) and colon and kind.isalnum() and rest.startswith("/"):
        raise RunFolderError(
            f"{what}={place} is a remote place as a Path, which has lost a slash: a folder of that name "
            "would be made here. Give it as a string."
        )


def _file_system(url: str) -> tuple[Any, str]:
    """Return (file system, path in it) of a place.

    Raises: RunFolderError: no such kind, or it cannot be spoken to.
    """
    kind = urlsplit(url).scheme
    try:
        system, path = fsspec.core.url_to_fs(url)
    except ValueError as error:
        raise RunFolderError(f"{url}: {error}: there is nothing to write to. Name another kind.") from None
    except ImportError as error:
        if kind not in THROUGH_PYARROW:
            raise RunFolderError(f"{url}: {error}: it cannot be spoken to. Install that package.") from None
        return _through_pyarrow(url)
    return system, str(path)


def _through_pyarrow(url: str) -> tuple[Any, str]:
    from fsspec.implementations.arrow import ArrowFSWrapper
    from pyarrow import fs

    asked = url.replace("s3a://", "s3://").replace("gcs://", "gs://")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if asked.startswith("s3://") and region:  # else the bucket is asked for it, anonymously
        asked += f"?region={region}"
    try:
        system, path = fs.FileSystem.from_uri(asked)
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{url}: {error}. Look at the address and at your credentials.") from None
    return ArrowFSWrapper(system), str(path)


@dataclass
class Remote:
    """One run's place."""

    url: str
    system: Any = field(init=False, repr=False)
    """fsspec file system."""
    root: str = field(init=False)
    """Path of the place in it."""

    def __post_init__(self) -> None:
        """Connect.

        Raises: RunFolderError: the address is none, holds credentials, or cannot be spoken to.
        """
        parts = urlsplit(self.url)
        if parts.username or parts.password or parts.query:
            raise RunFolderError(
                f"{parts.scheme}://...{parts.path} holds credentials or options: they would stand in logs. "
                "Set them in the environment, as the storage's own tools read them."
            )
        if not posixpath.basename(parts.path.rstrip("/")):
            raise RunFolderError(f"{self.url} names no folder of its own: add the run's name to it.")
        self.url = self.url.rstrip("/")
        self.system, root = _file_system(self.url)
        self.root = root.rstrip("/")

    @property
    def name(self) -> str:
        """Last part of the place: the run's name."""
        return posixpath.basename(self.root)

    def at(self, name: str) -> str:
        """Return the path of a file of the run."""
        return f"{self.root}/{name}"

    def files(self, under: str = "") -> list[str]:
        """Return the names of all files of the run, or of those under a folder of it, sorted."""
        top = self.at(under) if under else self.root
        self.system.invalidate_cache()
        try:
            found = self.system.find(top)
        except FileNotFoundError:
            return []
        start = len(self.system._strip_protocol(self.root).rstrip("/")) + 1
        return sorted(str(self.system._strip_protocol(path))[start:] for path in found)

    def put(self, local: Path, name: str) -> None:
        """Write a local file there."""
        target = self.at(name)
        self.system.makedirs(posixpath.dirname(target), exist_ok=True)
        self.system.put_file(str(local), target)

    def put_whole(self, content: bytes, name: str) -> None:
        """Write a small file so that a reader finds all of it or none of it."""
        target = self.at(name)
        self.system.makedirs(posixpath.dirname(target), exist_ok=True)
        partial = f"{target}.partial"
        self.system.pipe_file(partial, content)
        if self.system.exists(target):
            self.system.rm_file(target)  # not all backends move over a file that is there
        self.system.mv(partial, target)

    def get(self, name: str, local: Path) -> None:
        """Read a file into a local one."""
        local.parent.mkdir(parents=True, exist_ok=True)
        self.system.get_file(self.at(name), str(local))

    def read(self, name: str) -> bytes | None:
        """Return the content of a small file, None if there is none."""
        try:
            content: bytes = self.system.cat_file(self.at(name))
        except FileNotFoundError:
            return None
        return content

    def read_whole(self, name: str) -> bytes | None:
        """Return the content of a file that `put_whole` writes over, None if there is none.

        Between its removal and the move to its name it stands under another; a kill leaves it there.
        """
        content = self.read(name)
        if content is None:
            content = self.read(f"{name}.partial")
        return self.read(name) if content is None else content

    def remove(self, names: list[str]) -> None:
        """Delete files, in this order."""
        for name in names:
            try:
                self.system.rm_file(self.at(name))
            except FileNotFoundError:
                continue

    def owner(self) -> str | None:
        """Return the id of the session that writes there; None: nobody ever did."""
        content = self.read(OWNER)
        return None if content is None else str(json.loads(content)["session"])

    def take(self, host: str) -> str:
        """Write a new id there and return it: whoever wrote before stops at its next look."""
        session = uuid.uuid4().hex
        self.put_whole(json.dumps({"session": session, "host": host}).encode(), OWNER)
        return session

    def try_out(self) -> None:
        """Write, list, read and delete a file there.

        Raises: OSError: one of them failed.
        """
        name, content = f".seqrl-doctor-{uuid.uuid4().hex}", uuid.uuid4().hex.encode()
        self.put_whole(content, name)
        try:
            if name not in self.files() or self.read(name) != content:
                raise OSError("what was written there is not found again")
        finally:
            self.remove([name])
