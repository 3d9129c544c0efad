"""Runs in remote storage: the copy, another machine that goes on, what a kill or a failing storage costs.

"Another machine" is another working directory: `runs/<name>` under it does not exist.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from seqrl_ray import api
from seqrl_ray.errors import CheckpointError, RunFolderError
from seqrl_ray.loops import checkpoints, mirror, remote
from seqrl_ray.loops.mirror import Mirror, complete, go_on, pull
from seqrl_ray.loops.remote import Remote, StorageError
from tests.unit.loops.small_cartpole import SMALL


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    yield
    fsspec.filesystem("memory").store.clear()
    fsspec.filesystem("memory").pseudo_dirs[:] = [""]


@pytest.fixture(params=["memory", "file", "pyarrow"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A place of each kind; pyarrow's is on this disk, through the wrapper that S3 goes through."""
    if request.param == "memory":
        return "memory://bucket/runs/first"
    if request.param == "file":
        return f"file://{tmp_path}/storage/runs/first"

    def wrapped(url: str) -> tuple[Any, str]:
        from fsspec.implementations.arrow import ArrowFSWrapper
        from pyarrow import fs

        return ArrowFSWrapper(fs.LocalFileSystem()), f"{tmp_path}/bucket/{url.partition('://')[2]}"

    monkeypatch.setattr(remote, "_file_system", wrapped)
    return "s3://runs/first"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Go to another machine."""

    def go(name: str) -> Path:
        here = tmp_path / name
        here.mkdir(exist_ok=True)
        monkeypatch.chdir(here)
        return here

    return go


def small_run(folder: Path, *steps: int, keep: int = 2) -> Path:
    """A run folder with a recipe, rows, and a checkpoint with a replay snapshot per number of steps."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.toml").write_text('name = "small"\n')
    (folder / "metrics.jsonl").write_text('{"kind": "report"}\n' * len(steps))
    for number in steps:
        checkpoint(folder, number, keep)
    return folder


def checkpoint(folder: Path, step: int, keep: int = 2) -> Path:
    root = folder / "checkpoints"
    root.mkdir(exist_ok=True)
    name = checkpoints.new_name(root, step)
    replay = root / name / "replay" / "shared"
    replay.mkdir(parents=True)
    (replay / "rows-0.arrow").write_bytes(bytes([step % 256]) * 3_000)
    (replay / "manifest.json").write_text("{}")
    return checkpoints.save(root, name, {"part": {"step": step, "flat": np.arange(step)}}, keep)


def opened(url: str, folder: Path, keep: int = 2) -> Mirror:
    return Mirror(Remote(url), folder, keep, lambda line: None)


def files(folder: Path) -> dict[str, bytes]:
    found = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if name != mirror.MARK}


# -------------------------------------------------------------------------------------------------- the copy


def test_what_is_copied_comes_back_whole(url: str, tmp_path: Path) -> None:
    folder = small_run(tmp_path / "here", 10, 20)
    with opened(url, folder) as copy:
        copy.finish()
        there = Remote(url)
        assert complete(there.files()) == ["000002-000000000020"], "the newest is enough"
        checkpoint(folder, 30)
        (folder / "metrics.jsonl").write_text("{}\n" * 3)
        (folder / "evaluation").mkdir()
        (folder / "evaluation" / "policy.json").write_text("{}")
        (folder / "summary.json.partial").write_text("half")
        copy.finish()
    assert not [name for name in there.files() if name.endswith(".partial")]
    back = pull(there, tmp_path / "elsewhere")
    assert [p.name for p in checkpoints.complete(back / "checkpoints")] == ["000003-000000000030"]
    newest = checkpoints.latest(back / "checkpoints")
    np.testing.assert_array_equal(checkpoints.load(newest, "part")["flat"], np.arange(30))
    mine, theirs = files(folder), files(back)
    assert there.owner() == copy.session
    assert remote.OWNER not in theirs
    expected = {n: c for n, c in mine.items() if "/000002-" not in n and not n.endswith(".partial")}
    assert theirs == expected


def test_old_checkpoints_go_there_too_and_halves_of_them(url: str, tmp_path: Path) -> None:
    folder = small_run(tmp_path / "here", 10)
    there = Remote(url)
    with opened(url, folder) as copy:
        for step in (20, 30, 40):
            copy.copy()
            checkpoint(folder, step)
        there.put(folder / "recipe.toml", "checkpoints/000001-000000000011/half")
        copy.copy()
        assert complete(there.files()) == ["000003-000000000030", "000004-000000000040"]
        assert not [n for n in there.files() if "/000001-" in n or "/000002-" in n]


def test_a_checkpoint_that_is_dropped_here_in_mid_copy_is_let_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "DROPPED_S", 0.0)
    folder = small_run(tmp_path / "here", 10)
    put = Remote.put

    def drops(self: Remote, local: Path, name: str) -> None:
        put(self, local, name)
        if name.startswith("checkpoints/"):
            shutil.rmtree(folder / "checkpoints" / "000001-000000000010")

    with opened("memory://bucket/runs/first", folder) as copy:
        with monkeypatch.context() as meanwhile:
            meanwhile.setattr(Remote, "put", drops)
            copy.copy()
        assert complete(copy.remote.files()) == []
        checkpoint(folder, 20)
        copy.copy()
        assert complete(copy.remote.files()) == ["000001-000000000020"]


def test_only_what_changed_is_copied_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = small_run(tmp_path / "here", 10)
    put: list[str] = []
    with opened("memory://bucket/runs/first", folder) as copy:
        copy.copy()
        monkeypatch.setattr(Remote, "put", lambda self, local, name: put.append(name))
        copy.copy()
        assert put == []
        (folder / "metrics.jsonl").write_text("{}\n{}\n")
        copy.copy()
        assert put == ["metrics.jsonl"]


# --------------------------------------------------------------------------------- kills and failing storage


class Killed(BaseException):
    """What nothing catches."""


@pytest.mark.parametrize("after", range(6))
def test_a_kill_in_mid_copy_leaves_the_last_good_checkpoint(
    url: str, after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint here is five files and its manifest; one that is copied whole counts."""
    folder = small_run(tmp_path / "here", 10)
    copy = opened(url, folder)
    copy.copy()
    checkpoint(folder, 20)
    left = [after]
    put, put_whole = Remote.put, Remote.put_whole

    def dies(self: Remote, local: Path, name: str) -> None:
        if "000002-" in name:
            if not left[0]:
                half = tmp_path / "half"
                half.write_bytes(local.read_bytes()[: local.stat().st_size // 2])
                put(self, half, name)
                raise Killed
            left[0] -= 1
        put(self, local, name)

    def dies_whole(self: Remote, content: bytes, name: str) -> None:
        if name.endswith("manifest.json"):
            raise Killed
        put_whole(self, content, name)

    monkeypatch.setattr(Remote, "put", dies)
    monkeypatch.setattr(Remote, "put_whole", dies_whole)
    with pytest.raises(Killed):
        copy.copy()
    monkeypatch.setattr(Remote, "put", put)
    monkeypatch.setattr(Remote, "put_whole", put_whole)
    back = pull(Remote(url), tmp_path / "elsewhere")
    newest = checkpoints.latest(back / "checkpoints")
    checkpoints.verify(newest)
    assert newest.name == "000001-000000000010"
    # the machine that goes on makes a checkpoint of the same number: nothing of the half one stays in it
    checkpoint(back, 20)
    with opened(url, back) as again:
        again.finish()
    third = pull(Remote(url), tmp_path / "third")
    assert checkpoints.latest(third / "checkpoints").name == "000002-000000000020"
    assert files(third).keys() == {name for name in files(back) if "/000001-" not in name}


def test_a_damaged_checkpoint_is_refused_and_nothing_is_left_here(url: str, tmp_path: Path) -> None:
    folder = small_run(tmp_path / "here", 10)
    with opened(url, folder) as copy:
        copy.finish()
    (tmp_path / "cut").write_bytes(b"{")
    Remote(url).put(tmp_path / "cut", "checkpoints/000001-000000000010/part.json")
    with pytest.raises(CheckpointError, match="not what was written"):
        pull(Remote(url), tmp_path / "elsewhere")
    assert not (tmp_path / "elsewhere").exists()


def test_storage_that_fails_for_a_while_makes_the_copy_lag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "EVERY_S", 0.0)
    folder = small_run(tmp_path / "here", 10)
    said: list[str] = []
    put = Remote.put
    with Mirror(Remote("memory://bucket/runs/first"), folder, 2, said.append) as copy:

        def wait() -> None:
            assert copy._copying is not None
            copy._copying.exception(timeout=30)

        def fails(self: Remote, local: Path, name: str) -> None:
            raise ConnectionResetError("gone")

        monkeypatch.setattr(Remote, "put", fails)
        for _ in range(3):
            copy.nudge()
            wait()
        monkeypatch.setattr(Remote, "put", put)
        copy.nudge()
        wait()
        copy.nudge()
        wait()
        assert [("does not answer" in line, "answers again" in line) for line in said] == [
            (True, False),
            (False, True),
        ]
        assert complete(copy.remote.files())


def test_storage_that_fails_at_the_end_is_said_and_the_run_is_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "PAUSE_S", 0.0)
    folder = small_run(tmp_path / "here", 10)
    tried: list[str] = []

    def fails(self: Remote, local: Path, name: str) -> None:
        tried.append(name)
        raise TimeoutError("no answer")

    with opened("memory://bucket/runs/first", folder) as copy:
        monkeypatch.setattr(Remote, "put", fails)
        with pytest.raises(StorageError, match="Give --resume") as told:
            copy.finish()
    assert len(tried) == mirror.TRIES
    assert told.value.exit_code == 1
    assert checkpoints.complete(folder / "checkpoints")


def test_an_error_that_is_no_trouble_with_storage_is_not_swallowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "EVERY_S", 0.0)
    folder = small_run(tmp_path / "here", 10)

    def wrong(self: Remote, local: Path, name: str) -> None:
        raise KeyError("a defect")

    with opened("memory://bucket/runs/first", folder) as copy:
        monkeypatch.setattr(Remote, "put", wrong)
        copy.nudge()
        assert copy._copying is not None
        copy._copying.exception(timeout=30)
        with pytest.raises(KeyError, match="a defect"):
            copy.nudge()


# ---------------------------------------------------------------------------------------------- two machines


def test_who_was_thought_lost_stops_writing(url: str, tmp_path: Path, machine: Callable[[str], Path]) -> None:
    machine("one")
    first = small_run(Path("runs/first").absolute(), 10)
    slow = opened(url, first)
    slow.copy()
    machine("two")
    second, place = go_on(url)
    assert place is not None
    with Mirror(place, second, 2, lambda line: None) as copy:
        checkpoint(second, 20)
        copy.finish()
    checkpoint(first, 15)
    with pytest.raises(StorageError, match="another session has taken"):
        slow.copy()
    assert complete(Remote(url).files())[-1] == "000002-000000000020"
    with pytest.raises(RunFolderError, match="went on elsewhere"):
        go_on(first)
    # told the place itself, the first machine takes the run over as it is there, and keeps what it had
    machine("one")
    again, _ = go_on(url)
    assert checkpoints.latest(again / "checkpoints").name == "000002-000000000020"
    (kept,) = Path("runs").glob("first.before-*")
    assert checkpoints.latest(kept / "checkpoints").name == "000002-000000000015"


def test_a_copy_that_wrote_last_goes_on_with_what_is_here(url: str, machine: Callable[[str], Path]) -> None:
    machine("one")
    folder = small_run(Path("runs/first"), 10)
    with opened(url, folder) as copy:
        copy.finish()
    checkpoint(folder, 20)  # never copied
    for given in (url, folder):
        again, place = go_on(given)
        assert again == folder and place is not None
        assert checkpoints.latest(again / "checkpoints").name == "000002-000000000020"


# ------------------------------------------------------------------------------------------------ whole runs


def weights(folder: Path) -> np.ndarray:
    newest = checkpoints.latest(folder / "checkpoints")
    return checkpoints.acting_weights(newest)["shared"].flat


RUN = (*SMALL[:-1], "evaluation.episodes=2", "learner.checkpoint_every_s=0.05", "learner.report_every_s=0.05")


@pytest.mark.parametrize("url", ["file"], indirect=True)
def test_a_run_goes_on_elsewhere_as_if_it_had_stayed(
    url: str, machine: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "EVERY_S", 0.0)
    here = machine("one")
    run = api.train("classic/cartpole", [*RUN, "stop.env_steps=800"], run_dir=url, local=True, quiet=True)
    assert run.folder == Path("runs/first")
    there = Remote(url)
    names = there.files()
    assert {"recipe.toml", "metrics.jsonl", "summary.json", "report.html"} <= set(names)
    assert complete(names)[-1] == checkpoints.latest(run.folder / "checkpoints").name
    assert api.evaluate(url, episodes=2) == api.evaluate(run.folder, episodes=2)
    # the same run, gone on with on this machine without the place
    stayed = shutil.copytree(run.folder, here / "stayed")
    (stayed / mirror.MARK).unlink()
    api.resume(stayed, ["stop.env_steps=1600"], local=True, quiet=True)
    elsewhere = machine("two")
    gone = api.resume(url, ["stop.env_steps=1600"], local=True, quiet=True)
    assert (elsewhere / gone.folder).is_dir()
    assert gone.summary["env_steps"] == 1600
    np.testing.assert_array_equal(weights(gone.folder), weights(stayed))
    rows = [json.loads(line) for line in (gone.folder / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["env_steps"] < 800, "the rows of the first machine are there"
    assert complete(there.files())[-1] == checkpoints.latest(gone.folder / "checkpoints").name
    assert json.loads(there.read("summary.json") or b"{}")["env_steps"] == 1600


def test_a_run_that_fails_leaves_what_it_had_there(
    machine: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from seqrl_ray.loops.local import LocalSession

    machine("one")
    url = "memory://bucket/runs/first"

    advance, left = LocalSession.advance, [20]

    def breaks(self: LocalSession, seconds: float) -> Any:
        left[0] -= 1
        return advance(self, seconds) if left[0] else 1 / 0

    monkeypatch.setattr(LocalSession, "advance", breaks)
    with pytest.raises(ZeroDivisionError):
        api.train("classic/cartpole", [*RUN, "stop.env_steps=90000"], run_dir=url, local=True, quiet=True)
    there = Remote(url)
    assert json.loads(there.read("summary.json") or b"{}")["status"] == "failed"
    assert complete(there.files())


def test_a_place_that_has_a_run_is_not_overwritten(machine: Callable[[str], Path]) -> None:
    machine("one")
    url = "memory://bucket/runs/first"
    with opened(url, small_run(Path("runs/first").absolute(), 10)) as copy:
        copy.finish()
    machine("two")
    with pytest.raises(RunFolderError, match=f"--resume {url}"):
        api.train("classic/cartpole", run_dir=url, local=True, quiet=True)
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("nonsense://bucket/runs/first", "nonsense"),
        ("s3://key:secret@bucket/runs/first", "credentials"),
        ("s3://bucket/runs/first?secret_key=x", "credentials"),
        ("memory://bucket", "names no folder"),
    ],
)
def test_a_bad_place_is_one_clear_line_and_costs_nothing(
    url: str, said: str, machine: Callable[[str], Path]
) -> None:
    here = machine("one")
    with pytest.raises(RunFolderError, match=said) as told:
        api.train("classic/cartpole", run_dir=url, local=True, quiet=True)
    assert "\n" not in str(told.value)
    assert "secret" not in str(told.value).replace("secret_key=x", "")
    assert not list(here.iterdir())


def test_a_place_without_a_run_cannot_be_resumed(machine: Callable[[str], Path], tmp_path: Path) -> None:
    machine("one")
    with pytest.raises(RunFolderError, match=r"no recipe\.toml"):
        api.resume("memory://bucket/runs/none", local=True, quiet=True)
    with opened("memory://bucket/runs/first", small_run(tmp_path / "here")) as copy:
        copy.finish()
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        api.resume("memory://bucket/runs/first", local=True, quiet=True)


def test_a_place_that_has_lost_a_slash_is_refused(machine: Callable[[str], Path]) -> None:
    here = machine("one")
    with pytest.raises(RunFolderError, match="lost a slash"):
        api.train("classic/cartpole", run_dir=Path("s3://bucket/run"), local=True, quiet=True)
    assert not list(here.iterdir())
    for fine in (Path("runs/a:/b"), "memory://bucket/run", None):
        remote.refuse_path(fine, "--run-dir")


def test_s3_needs_no_package_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """pyarrow speaks it; with the region given, making the file system asks nobody anything."""
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    place = Remote("s3://bucket-of-nobody/runs/first")
    assert place.root.endswith("runs/first")
    assert place.name == "first"
