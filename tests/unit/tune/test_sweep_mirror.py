"""Sweeps in remote storage: what a copy holds at every moment it can be cut at, and another machine going on.

A real board keeps the log; members are stood in for by folders with real checkpoints, which they drop as the
board says.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from seqrl_ray import api
from seqrl_ray.errors import CheckpointError, RecipeError, RunFolderError
from seqrl_ray.loops import checkpoints, mirror
from seqrl_ray.loops.mirror import go_on
from seqrl_ray.loops.remote import Remote, StorageError
from seqrl_ray.tune.board import DEFAULT, LOG, Board, named, read_log, rows_of
from seqrl_ray.tune.mirror import HELD, SweepMirror, checkpoint_of, fetched_sweep, needed, pull_sweep
from seqrl_ray.tune.population import Rules
from seqrl_ray.tune.settings import DimensionSettings
from seqrl_ray.tune.space import Space
from seqrl_ray.tune.trainable import folder_of

SPACE = Space({"algorithm.gamma": DimensionSettings(kind="uniform", low=0.5, high=0.9)})
MEMBERS = 3


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    yield
    fsspec.filesystem("memory").store.clear()
    fsspec.filesystem("memory").pseudo_dirs[:] = [""]


@pytest.fixture(params=["memory", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "memory":
        return "memory://bucket/sweeps/first"
    return f"file://{tmp_path}/storage/sweeps/first"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Go to another machine."""

    def go(name: str) -> Path:
        here = tmp_path / name
        here.mkdir(exist_ok=True)
        monkeypatch.chdir(here)
        return here

    return go


class Sweep:
    """A sweep in being: a board and members that save, report and drop what is no longer needed."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "sweep.toml").write_text('name = "small"\n')
        (folder / "recipe.toml").write_text('name = "base"\n')
        self.folder = folder
        self.board = Board(folder, SPACE, Rules(quantile=0.34), MEMBERS, seed=0)
        self.at = {m: self.board.join(m).report for m in (DEFAULT, *range(MEMBERS))}

    def report(self, member: int, score: float, salt: int = 0) -> Any:
        number = self.at[member] = self.at[member] + 1
        name = self.save(member, number, salt)
        answer = self.board.report(member, number, 100 * number, score, last=False, checkpoint=name)
        for old in checkpoints.complete(folder_of(self.folder, member) / "checkpoints"):
            if old.name not in answer.keep:
                remove(old)
        return answer.decision

    def save(self, member: int, number: int, salt: int = 0) -> str:
        run = folder_of(self.folder, member)
        root = run / "checkpoints"
        root.mkdir(parents=True, exist_ok=True)
        with (run / "metrics.jsonl").open("a") as file:
            file.write(f'{{"report": {number}}}\n')
        name = f"{number:06d}-{100 * number:012d}"
        replay = root / name / "replay" / "shared"
        replay.mkdir(parents=True)
        (replay / "rows-0.arrow").write_bytes(bytes([member + 1, number, salt]) * 500)
        (replay / "manifest.json").write_text("{}")
        state = {"member": member, "number": number, "flat": np.full(number, salt)}
        checkpoints.save(root, name, {"part": state}, keep=1_000_000)
        return name

    def round(self, salt: int = 0) -> None:
        """Everybody reports once; the last member is the worst and copies the first."""
        for member, score in enumerate((3.0, 2.0, 1.0)):
            self.report(member, score + self.at[member], salt)
        self.report(DEFAULT, 1.0, salt)

    def end(self) -> None:
        self.board._file.close()
        self.board._lock.close()


def remove(folder: Path) -> None:
    shutil.rmtree(folder)


@pytest.fixture
def begun(tmp_path: Path) -> Iterator[Sweep]:
    sweep = Sweep(tmp_path / "here")
    yield sweep
    sweep.end()


def opened(url: str, folder: Path) -> SweepMirror:
    return SweepMirror(Remote(url), folder, lambda line: None)


def whole_there(url: str) -> set[str]:
    ends = f"/{checkpoints.MANIFEST}"
    return {n.removesuffix(ends) for n in Remote(url).files() if checkpoint_of(n) == n.removesuffix(ends)}


def goes_on(folder: Path) -> dict[int, Any]:
    """What every trial of a sweep would go on from: read, not only named."""
    sweep = Board(folder, SPACE, Rules(quantile=0.34), MEMBERS, seed=0)
    found = {}
    for member in (DEFAULT, *range(MEMBERS)):
        joined = sweep.join(member)
        own = donor = None
        if joined.checkpoint is not None:
            place = folder_of(folder, member) / "checkpoints" / joined.checkpoint
            checkpoints.verify(place)
            own = checkpoints.load(place, "part")
            assert (own["member"], own["number"]) == (member, joined.report)
        if joined.donor_checkpoint is not None:
            place = folder_of(folder, joined.decision.donor) / "checkpoints" / joined.donor_checkpoint
            checkpoints.verify(place)
            donor = checkpoints.load(place, "part")
            assert donor["number"] == joined.decision.donor_report
        found[member] = (joined.report, joined.values, own, donor)
    sweep._file.close()
    sweep._lock.close()
    return found


def same(one: Any, other: Any) -> bool:
    return repr(one) == repr(other)


# --------------------------------------------------------------------------------------------------- the copy


def test_another_machine_goes_on_where_the_log_stood(url: str, begun: Sweep, tmp_path: Path) -> None:
    for _ in range(3):
        begun.round()
    (begun.folder / "summary.json").write_text('{"status": "interrupted"}')
    (begun.folder / "summary.json.partial").write_text("half")
    with opened(url, begun.folder) as copy:
        copy.finish()
    assert not (begun.folder / HELD).exists()
    back = pull_sweep(Remote(url), tmp_path / "elsewhere")
    assert read_log(back / LOG) == read_log(begun.folder / LOG)
    assert (back / "summary.json").read_text() == '{"status": "interrupted"}'
    assert (back / "members/00/metrics.jsonl").read_text() == '{"report": 1}\n{"report": 2}\n{"report": 3}\n'
    assert not [p for p in back.rglob("*") if p.name in ("owner.json", "mirror.json", f"{LOG}.lock")]
    assert not [p for p in back.rglob("*.partial")]
    begun.end()
    mine = goes_on(begun.folder)
    assert mine[2][3]["member"] == 0, "the worst was to copy the best, and this is what it copies"
    assert same(goes_on(back), mine)
    assert whole_there(url) == needed((begun.folder / LOG).read_bytes())


def test_what_the_log_no_longer_names_goes_there_too(url: str, begun: Sweep, tmp_path: Path) -> None:
    with opened(url, begun.folder) as copy:
        for _ in range(4):
            begun.round()
            copy.copy()
        Remote(url).put(begun.folder / "recipe.toml", "members/01/checkpoints/000001-000000000001/half")
        begun.round()
        copy.copy()
    log = (begun.folder / LOG).read_bytes()
    of = {checkpoint_of(name) for name in Remote(url).files()} - {None}
    assert of == whole_there(url) == needed(log)
    assert {name.split("/")[-1][:6] for name in needed(log)} == {"000005"}


def test_only_what_changed_is_copied_again(url: str, begun: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    begun.round()
    with opened(url, begun.folder) as copy:
        copy.copy()
        put: list[str] = []
        monkeypatch.setattr(Remote, "put", lambda self, local, name: put.append(name))
        monkeypatch.setattr(Remote, "put_whole", lambda self, content, name: put.append(name))
        copy.copy()
        assert put == []
        (begun.folder / "report.html").write_text("<p>")
        copy.copy()
        assert put == ["report.html"]


def test_members_that_go_on_during_a_copy_do_not_spoil_it(
    url: str, begun: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With every file that is copied a round of reports is made, and everything older dropped here."""
    begun.round()
    put, rounds = Remote.put, [0]

    def slow(self: Remote, local: Path, name: str) -> None:
        if checkpoint_of(name) and rounds[0] < 5:
            rounds[0] += 1
            begun.round()
        put(self, local, name)

    log = (begun.folder / LOG).read_bytes()
    with opened(url, begun.folder) as copy:
        monkeypatch.setattr(Remote, "put", slow)
        copy.copy()
        assert rounds == [5]
        assert Remote(url).read(LOG) == log
        back = pull_sweep(Remote(url), tmp_path / "then")
        assert {report for report, *_ in goes_on(back).values()} == {1}
        copy.copy()
    back = pull_sweep(Remote(url), tmp_path / "now")
    assert {report for report, *_ in goes_on(back).values()} == {6}


def test_a_log_that_grows_while_links_are_made_is_looked_at_again(
    begun: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "memory://bucket/sweeps/first"
    begun.round()
    link, left = os.link, [3]

    def slow(source: str, target: str) -> None:
        if left[0]:
            left[0] -= 1
            begun.report(1, 2.0)  # and the checkpoint that was to be held is gone
        link(source, target)

    with opened(url, begun.folder) as copy:
        monkeypatch.setattr(os, "link", slow)
        copy.copy()
    assert left == [0]
    back = pull_sweep(Remote(url), tmp_path / "elsewhere")
    begun.end()
    assert same(goes_on(back), goes_on(begun.folder))


def test_a_checkpoint_that_is_missing_here_is_said(begun: Sweep) -> None:
    begun.round()
    remove(begun.folder / "members/01/checkpoints")
    with opened("memory://bucket/sweeps/first", begun.folder) as copy:
        with pytest.raises(CheckpointError, match="members/01/checkpoints/000001"):
            copy.copy()
        assert Remote("memory://bucket/sweeps/first").read(LOG) == b""


def test_a_file_system_without_links_is_copied_from(
    begun: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(source: str, target: str) -> None:
        raise PermissionError("no links here")

    begun.round()
    monkeypatch.setattr(os, "link", refuses)
    with opened("memory://bucket/sweeps/first", begun.folder) as copy:
        copy.finish()
    assert goes_on(pull_sweep(Remote("memory://bucket/sweeps/first"), tmp_path / "elsewhere"))


# ---------------------------------------------------------------------------------------- kills, two machines


class Killed(BaseException):
    """What nothing catches."""


STEPS = ("makedirs", "put_file", "pipe_file", "rm_file", "mv")


def test_a_kill_in_mid_copy_leaves_a_sweep_that_goes_on(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One operation of the storage is the last one, and half done where it writes: every one on the log, and
    every twelfth of the others."""
    seen: set[int] = set()
    done: list[str] = []  # of the copy that is cut, once it was not
    cuts = [10**6]
    while cuts:
        cut = cuts.pop()
        place = f"{url}-{cut}"
        sweep = Sweep(tmp_path / f"here-{cut}")
        sweep.round()
        copy = opened(place, sweep.folder)
        copy.copy()
        before = goes_on(pull_sweep(Remote(place), tmp_path / f"before-{cut}"))
        sweep.round()
        sweep.round()
        made: list[str] = []
        with monkeypatch.context() as meanwhile, contextlib.suppress(Killed):
            for step in STEPS:
                works = getattr(copy.remote.system, step)
                meanwhile.setattr(copy.remote.system, step, dying(works, step, cut, made, tmp_path))
            copy.copy()
        copy._thread.shutdown()
        if not done:
            done = made
            cuts = [i for i, what in enumerate(made) if i % 12 == 0 or LOG in what]
        back = pull_sweep(Remote(place), tmp_path / f"back-{cut}")
        sweep.end()
        found = goes_on(back)
        seen.add(found[0][0])
        assert same(found, before) or same(found, goes_on(sweep.folder))
        # the machine that goes on makes checkpoints of the same names and other content
        again = Sweep(back)
        again.round(salt=7)
        with opened(place, back) as second:
            second.finish()
        again.end()
        third = goes_on(pull_sweep(Remote(place), tmp_path / f"third-{cut}"))
        assert same(third, goes_on(back))
        assert third[0][2]["flat"][0] == 7
    assert seen == {1, 3}, "kills fell before and after the log was there"
    assert len(done) > 60


def dying(works: Any, step: str, cut: int, made: list[str], scratch: Path) -> Any:
    def once(*arguments: Any, **named: Any) -> Any:
        made.append(f"{step} {arguments}"[:300])
        if len(made) <= cut:
            return works(*arguments, **named)
        if step == "put_file":
            half = scratch / "half"
            half.write_bytes(Path(arguments[0]).read_bytes()[: Path(arguments[0]).stat().st_size // 2])
            works(str(half), *arguments[1:])
        elif step == "pipe_file":
            works(arguments[0], arguments[1][: len(arguments[1]) // 2])
        raise Killed

    return once


def test_a_checkpoint_of_a_lost_session_is_not_taken_for_ours(
    url: str, tmp_path: Path, machine: Callable[[str], Path]
) -> None:
    """The first machine had copied a checkpoint, but not the log that names it, when it was lost."""
    machine("one")
    first = Sweep(Path("runs/first").absolute())
    first.round()
    copy = opened(url, first.folder)
    copy.copy()
    first.round(salt=1)
    for name in needed((first.folder / LOG).read_bytes()):
        copy._put_checkpoint(first.folder / name, name)
    machine("two")
    folder, place = go_on(url, pull_sweep)
    assert place is not None and goes_on(folder)[0][0] == 1
    second = Sweep(folder)
    second.round(salt=2)
    with SweepMirror(place, folder, lambda line: None) as its:
        its.finish()
    second.end()
    assert goes_on(pull_sweep(Remote(url), tmp_path / "third"))[1][2]["flat"][0] == 2
    # who was thought lost stops, and is told where the sweep went on
    with pytest.raises(StorageError, match="another session has taken"):
        copy.copy()
    with pytest.raises(RunFolderError, match="went on elsewhere"):
        go_on(first.folder, pull_sweep)
    first.end()


def test_a_copy_that_wrote_last_goes_on_with_what_is_here(url: str, machine: Callable[[str], Path]) -> None:
    machine("one")
    sweep = Sweep(Path("runs/first"))
    sweep.round()
    with opened(url, sweep.folder) as copy:
        copy.finish()
    sweep.round()  # never copied
    sweep.end()
    for given in (url, sweep.folder):
        folder, place = go_on(given, pull_sweep)
        assert folder == sweep.folder and place is not None
        assert goes_on(folder)[0][0] == 2


def test_a_damaged_checkpoint_is_refused_and_nothing_is_left_here(
    url: str, begun: Sweep, tmp_path: Path
) -> None:
    begun.round()
    with opened(url, begun.folder) as copy:
        copy.finish()
    (tmp_path / "cut").write_bytes(b"{")
    Remote(url).put(tmp_path / "cut", f"{sorted(whole_there(url))[0]}/part.json")
    with pytest.raises(CheckpointError, match="not what was written"):
        pull_sweep(Remote(url), tmp_path / "elsewhere")
    assert not (tmp_path / "elsewhere").exists()


# ------------------------------------------------------------------------------------------------ small parts


def test_a_log_names_newest_reports_and_what_is_being_copied(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "here")
    assert named(read_log(sweep.folder / LOG)) == set()
    sweep.round()
    last = "000001-000000000100"
    assert named(read_log(sweep.folder / LOG)) == {(m, last) for m in (DEFAULT, 0, 1, 2)}
    sweep.report(0, 9.0)
    rows = read_log(sweep.folder / LOG)
    assert [r["decision"]["donor"] for r in rows if r["event"] == "report" and r["member"] == 2] == [0]
    now = {(0, "000002-000000000200"), *((m, last) for m in (DEFAULT, 0, 1, 2))}
    assert named(rows) == now, "member 2 has not reported since it copied report 1 of member 0"
    assert rows_of((sweep.folder / LOG).read_bytes() + b'{"event": "rep') == rows
    sweep.end()


def test_schedules_can_be_replayed_from_the_place(url: str, begun: Sweep) -> None:
    begun.round()
    with opened(url, begun.folder) as copy:
        copy.finish()
    with fetched_sweep(url) as folder:
        assert sorted(p.name for p in folder.iterdir()) == [LOG, "recipe.toml", "sweep.toml"]
        assert read_log(folder / LOG) == read_log(begun.folder / LOG)
    assert not folder.exists()
    with fetched_sweep(begun.folder) as here:
        assert here == begun.folder
    with (
        pytest.raises(RunFolderError, match=r"no sweep\.toml and no recipe\.toml"),
        fetched_sweep(f"{url}-2"),
    ):
        pass


def test_a_place_without_a_sweep_cannot_be_gone_on_with(url: str, machine: Callable[[str], Path]) -> None:
    here = machine("one")
    with pytest.raises(RunFolderError, match=r"is not a sweep: it has no sweep\.toml"):
        api.resume_tune(url, quiet=True)
    assert not list(here.iterdir())


def test_a_sweep_that_cannot_be_remote_is_refused_before_anything_is_made(
    machine: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = machine("one")
    url = "memory://bucket/sweeps/first"
    with pytest.raises(RecipeError, match=r"scheduler\.kind='asha'.*Name a folder"):
        api.tune("cartpole_pbt", ["scheduler.kind=asha"], run_dir=url, quiet=True)
    with pytest.raises(RunFolderError, match="lost a slash"):
        api.tune("cartpole_pbt", run_dir=Path("s3://bucket/sweep"), quiet=True)
    Remote(url).put_whole(b"{}", "recipe.toml")
    with pytest.raises(RunFolderError, match=f"is not empty .* --resume {url}"):
        api.tune("cartpole_pbt", run_dir=url, quiet=True)
    assert not list(here.iterdir())
    assert mirror.complete(Remote(url).files()) == []
