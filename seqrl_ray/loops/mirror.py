"""A run folder here and its copy in remote storage: what `--run-dir s3://bucket/runs/first` does.

The run works in a local folder, `runs/<name>`; a thread copies it to the remote place: rows and events now
and then, each checkpoint when it is complete, its manifest last. So the place holds a run folder like any
other, whose newest checkpoint with a manifest is whole, whatever moment this machine is lost at. `--resume`
of the place brings the newest checkpoint, the rows and the recipe to the machine that goes on.

What can go wrong: storage that fails for a while makes the copy lag, and training goes on; if it still fails
at the end, the run says so and stays complete here. A machine that was thought lost and comes back finds
another session's name in `owner.json` and stops. That is a look before each checkpoint, not a lock: of two
sessions that begin within the same second both may write, and what they mixed is refused when it is read.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from seqrl_ray.errors import CheckpointError, RunFolderError
from seqrl_ray.loops import checkpoints
from seqrl_ray.loops.remote import OWNER, Remote, StorageError, is_url

MARK = "mirror.json"
"""Stands in the local folder alone: whose copy it is, and which session of ours wrote last."""
CHECKPOINTS = "checkpoints"
EVERY_S = 30.0
"""Between two copies: rows and events are files that grow and are written anew each time."""
DROPPED_S = 1.0
"""How long it takes at most to delete a checkpoint here, file by file."""
TRIES, PAUSE_S = 4, 5.0
"""At the run's end."""

Pull = Callable[[Remote, Path], Path]
"""(a place, a folder to be made) -> the folder, with what goes on from there."""


def working_folder(remote: Remote) -> Path:
    """Return the folder of this machine that a remote run works in."""
    return Path("runs") / remote.name


def begin(url: str) -> tuple[Remote, Path]:
    """Return the place and the working folder of a new run; nothing is written yet.

    Raises: RunFolderError: there is a run already, or the place cannot be spoken to.
    """
    remote = Remote(url)
    try:
        there = remote.files()
    except OSError as error:
        raise _unreachable(url, error) from None
    if there:
        raise RunFolderError(
            f"--run-dir={url} is not empty ({there[0]}): a new run would overwrite it. "
            f"Name another place, or give --resume {url} to go on with it."
        )
    return remote, working_folder(remote)


def go_on(run: str | Path, bring: Pull | None = None) -> tuple[Path, Remote | None]:
    """Return (the local folder to go on in, its remote place or None) of a run that is to be resumed.

    Args:
        run: a remote place, or a folder of this machine, which may be the copy of one.
        bring: how what lies there comes here; None: as `pull` does.
    Raises: RunFolderError, CheckpointError: there is no run, none that is whole, or it went on elsewhere.
    """
    if is_url(run):
        remote = Remote(str(run))
        folder = working_folder(remote)
        return _brought(remote, folder, bring or pull), remote
    folder = Path(run)
    if not (folder / MARK).is_file():
        return folder, None
    mark = json.loads((folder / MARK).read_text(encoding="utf-8"))
    remote = Remote(mark["url"])
    try:
        owner = remote.owner()
    except OSError as error:
        raise _unreachable(remote.url, error) from None
    if owner not in (None, mark["session"]):
        raise RunFolderError(
            f"{folder} is an old copy: the run went on elsewhere, in {remote.url}. "
            f"Give --resume {remote.url} to go on from there."
        )
    return folder, remote


def _brought(remote: Remote, folder: Path, bring: Pull) -> Path:
    """Bring a run here, unless this folder wrote last what lies there."""
    try:
        mark = folder / MARK
        if mark.is_file():
            known = json.loads(mark.read_text(encoding="utf-8"))
            if known["url"] == remote.url and known["session"] == remote.owner():
                return folder  # nobody has written since: what is here is as new, or newer
        return bring(remote, folder)
    except OSError as error:
        raise _unreachable(remote.url, error) from None


def pull(remote: Remote, folder: Path) -> Path:
    """Bring the newest complete checkpoint of a run, and all but its other checkpoints, into a new folder.

    Args:
        remote: the run's place.
        folder: where to; one that is there is kept beside it under another name.
    Raises: RunFolderError: there is no run. CheckpointError: it has no complete checkpoint, or a damaged one.
    """
    there = remote.files()
    if "recipe.toml" not in there:
        raise RunFolderError(f"{remote.url} is not a run: it has no recipe.toml. Name a run's own place.")
    newest = complete(there)[-1:]
    if not newest:
        raise CheckpointError(
            f"{remote.url} holds no complete checkpoint: there is nothing to go on from. Start a new run."
        )
    wanted = [n for n in there if not n.startswith(f"{CHECKPOINTS}/") or n.split("/")[1] == newest[0]]
    return arrive(remote, folder, wanted, [f"{CHECKPOINTS}/{newest[0]}"])


def arrive(
    remote: Remote,
    folder: Path,
    wanted: Iterable[str],
    whole: Iterable[str],
    read: Mapping[str, bytes] | None = None,
) -> Path:
    """Bring files into a new folder; one that is there is kept beside it under another name.

    Args:
        remote: their place.
        folder: where to.
        wanted: their names.
        whole: checkpoints among them.
        read: name -> content of files that have been read already.
    Raises: CheckpointError: a checkpoint is damaged; nothing is left here.
    """
    arriving = folder.with_name(f"{folder.name}.arriving")
    shutil.rmtree(arriving, ignore_errors=True)
    for name in wanted:
        if name != OWNER and not name.endswith(".partial"):
            remote.get(name, arriving / name)
    for name, content in (read or {}).items():
        (arriving / name).write_bytes(content)
    for name in whole:
        checkpoints.verify(arriving / name)
    if folder.exists():
        folder.rename(folder.with_name(f"{folder.name}.before-{time.strftime('%Y%m%d-%H%M%S')}"))
    arriving.rename(folder)
    return folder


@contextlib.contextmanager
def fetched(run: str | Path) -> Iterator[Path]:
    """Have a run folder here for reading: itself, or a copy of a remote one that goes again.

    Raises: RunFolderError, CheckpointError: there is no such run.
    """
    if not is_url(run):
        yield Path(run)
        return
    with tempfile.TemporaryDirectory(prefix="seqrl-") as here:
        remote = Remote(str(run))
        try:
            folder = pull(remote, Path(here) / remote.name)
        except OSError as error:
            raise _unreachable(remote.url, error) from None
        yield folder


def complete(names: list[str]) -> list[str]:
    """Return the names of the complete checkpoints among a run's files, oldest first."""
    parts = [name.split("/") for name in names]
    return sorted(p[1] for p in parts if len(p) == 3 and p[0] == CHECKPOINTS and p[2] == checkpoints.MANIFEST)


class Mirror:
    """Copies a run folder to its place while the run goes on.

    As a context manager it ends the thread; where the run failed, it first copies what there is, if it can.
    """

    def __init__(self, remote: Remote, folder: Path, keep: int, say: Callable[[str], None]) -> None:
        """Take the place over.

        Args:
            remote: the run's place.
            folder: the run folder here; exists.
            keep: complete checkpoints to keep there.
            say: hears lines for people, from the thread that calls `nudge` and `finish`.
        Raises: RunFolderError: nothing can be written there.
        """
        self.remote, self.folder, self.keep, self.say = remote, folder, keep, say
        self._copied: dict[str, tuple[int, int]] = {}
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="run-mirror")
        self._copying: Future[None] | None = None
        self._began = -EVERY_S
        self._lagging = False
        try:
            self.session = remote.take(socket.gethostname())
        except OSError as error:
            raise _unreachable(remote.url, error) from None
        mark = json.dumps({"url": remote.url, "session": self.session})
        (folder / MARK).write_text(mark, encoding="utf-8")

    def nudge(self) -> None:
        """Begin a copy if none is under way and it is time for one; never waits for storage.

        Raises: StorageError: another session has taken the run over. Whatever else a copy raised that is no
            trouble with the storage.
        """
        if self._copying is not None:
            if not self._copying.done():
                return
            self._hear(self._copying)
            self._copying = None
        if time.monotonic() - self._began >= EVERY_S:
            self._began = time.monotonic()
            self._copying = self._thread.submit(self.copy)

    def finish(self) -> None:
        """Copy what is left.

        Raises: StorageError: the storage does not take it; the run stays complete here.
        """
        if self._copying is not None:
            self._copying.exception()  # ends; what went wrong is tried again now
        for left in reversed(range(TRIES)):
            try:
                self.copy()
                break
            except OSError as error:
                if not left:
                    raise StorageError(
                        f"{self.remote.url} does not take the run ({error}): its last part is in "
                        f"{self.folder} alone. Give --resume {self.folder} once the storage answers."
                    ) from None
                time.sleep(PAUSE_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=True)  # a copy under way ends first
        if error is not None and not isinstance(error, StorageError):
            with contextlib.suppress(OSError, StorageError):  # the run's own error is what has to be told
                self.copy()

    def _hear(self, copying: Future[None]) -> None:
        error = copying.exception()
        if isinstance(error, OSError):
            if not self._lagging:
                self.say(f"{self.remote.url} does not answer ({error}); the run goes on here, its copy lags")
            self._lagging = True
        elif error is not None:
            raise error
        elif self._lagging:
            self.say(f"{self.remote.url} answers again")
            self._lagging = False

    def copy(self) -> None:
        """Copy what is new: rows, events, reports, then the newest complete checkpoint; drop old ones there.

        Raises: OSError: the storage failed. StorageError: another session has taken the run over.
        """
        self._still_ours()
        self._put_rows()
        newest = checkpoints.complete(self.folder / CHECKPOINTS)[-1:]
        there = self.remote.files(CHECKPOINTS)
        if newest and newest[0].name not in complete(there):
            stale = [name for name in there if name.split("/")[1] == newest[0].name]
            self.remote.remove(stale)  # a copy of it that was cut short
            if not self._put_checkpoint(newest[0], f"{CHECKPOINTS}/{newest[0].name}"):
                return  # dropped here meanwhile: there is a newer one
            there = self.remote.files(CHECKPOINTS)
        self._drop_old(there)

    def _still_ours(self) -> None:
        if self.remote.owner() != self.session:
            raise StorageError(
                f"another session has taken {self.remote.url} over: this one must not write there any more. "
                f"What it did is in {self.folder}."
            )

    def _put_rows(self) -> None:
        """Copy what has changed of all that is in no checkpoint."""
        for path in sorted(self.folder.rglob("*")):
            name = path.relative_to(self.folder).as_posix()
            if path.is_file() and not self._stays(name):
                self._put_changed(path, name)

    def _stays(self, name: str) -> bool:
        """Whether a file is none of those that are copied as they change."""
        return name.startswith(f"{CHECKPOINTS}/") or name == MARK or name.endswith(".partial")

    def _put_changed(self, path: Path, name: str) -> None:
        try:
            about = path.stat()
            stamp = (about.st_size, about.st_mtime_ns)
            if self._copied.get(name) != stamp:
                self.remote.put(path, name)
                self._copied[name] = stamp
        except FileNotFoundError:
            if path.exists():
                raise  # it is the storage that has lost something

    def _put_checkpoint(self, folder: Path, top: str) -> bool:
        """Copy a checkpoint to `top`, its manifest last; returns False if it was dropped here meanwhile."""
        manifest = folder / checkpoints.MANIFEST
        try:
            content = manifest.read_bytes()
            for path in sorted(p for p in folder.rglob("*") if p.is_file() and p != manifest):
                self.remote.put(path, f"{top}/{path.relative_to(folder).as_posix()}")
        except FileNotFoundError:
            time.sleep(DROPPED_S)
            if manifest.is_file():
                raise
            return False
        self._still_ours()
        self.remote.put_whole(content, f"{top}/{checkpoints.MANIFEST}")
        return True

    def _drop_old(self, there: list[str]) -> None:
        """Delete all but the newest complete checkpoints there, and what never became one."""
        kept = complete(there)[-self.keep :]
        old = [name for name in there if kept and name.split("/")[1] < kept[0]]
        self._remove_checkpoints(old)

    def _remove_checkpoints(self, names: list[str]) -> None:
        """Delete files of checkpoints, manifests first: what is half deleted is none."""

        def later(name: str) -> bool:
            _, _, within = name.rpartition(f"{CHECKPOINTS}/")
            return within.partition("/")[2] != checkpoints.MANIFEST

        self.remote.remove(sorted(names, key=later))


def _unreachable(url: str, error: Exception) -> RunFolderError:
    return RunFolderError(
        f"{url} cannot be used ({error}): the run would have nowhere to go. Look at the address, at your "
        "credentials and at the network."
    )
