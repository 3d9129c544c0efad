"""A member and the board, killed at every single point of their protocol: the lineage is what it would have
been without.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seqrl_ray import api
from seqrl_ray.loops import checkpoints
from seqrl_ray.loops.listener import Nobody
from seqrl_ray.tune.board import LOG, Board, read_log
from seqrl_ray.tune.member import Member, Terms
from seqrl_ray.tune.population import Rules
from seqrl_ray.tune.run import TrialRun
from seqrl_ray.tune.settings import DimensionSettings
from seqrl_ray.tune.space import Space
from tests.unit.loops.small_cartpole import SMALL

SPACE = Space({"rate": DimensionSettings(kind="log_uniform", low=1e-5, high=1e-1)})
RULES = Rules(quantile=0.34)
TERMS = Terms(report_env_steps=10, env_steps=80, seeds=(1, 2), replay="keep")
MEMBERS = 3


class Killed(Exception):
    """The machine went down here."""


class Fate:
    """Counts the moments at which a kill could come, and kills at one of them."""

    def __init__(self, at: int | None = None) -> None:
        self.at, self.moments = at, 0

    def moment(self) -> None:
        self.moments += 1
        if self.moments - 1 == self.at:
            raise Killed


class Toy:
    """A run whose skill grows with its rate; its disk outlives it."""

    def __init__(self, disk: dict[str, Any], joined: Any, fate: Fate) -> None:
        self.disk, self.fate = disk, fate
        saved = disk.get(joined.checkpoint, {"skill": 0.0, "env_steps": 0, "rate": joined.values["rate"]})
        self.skill, self.env_steps = saved["skill"], saved["env_steps"]
        self.rate = saved["rate"]  # as a checkpoint has it: from before the newest decision

    def train(self, env_steps: int, mend: Any) -> Any:
        self.fate.moment()
        self.skill += (env_steps - self.env_steps) * math.exp(-abs(math.log10(self.rate) + 3.0))
        self.env_steps = env_steps
        self.fate.moment()
        from seqrl_ray.tune.run import Stretch

        return Stretch(env_steps, False)

    def judge(self, seeds: Any) -> list[float]:
        return [math.nan if 1e-5 <= self.rate < 3e-5 else self.skill]

    def save(self) -> str:
        self.fate.moment()
        name = f"{self.env_steps:06d}"
        self.disk[name] = {"skill": self.skill, "env_steps": self.env_steps, "rate": self.rate}
        self.fate.moment()
        return name

    def learned(self) -> Any:
        return [self.skill]

    def adopt(self, learned: Any, donor: Any, replay: Any) -> None:
        self.fate.moment()
        held = 0.0 if donor is None else learned[0] if learned is not None else donor["skill"]
        if donor is not None:
            assert donor["skill"] == held, "the reference and the checkpoint are of one moment"
        self.skill = held

    def set_values(self, values: Any) -> None:
        self.fate.moment()
        self.rate = values["rate"]

    def prune(self, keep: Any) -> None:
        self.fate.moment()
        for name in set(self.disk) - set(keep):
            del self.disk[name]

    def note(self, event: str, **fields: Any) -> None: ...
    def end(self, status: str) -> None: ...
    def close(self) -> None: ...


class Door:
    """The way to a board: a kill may come before the board hears, or before its answer is heard."""

    def __init__(self, board: Board, fate: Fate) -> None:
        self.board, self.fate = board, fate

    def join(self, member: int) -> Any:
        return self.board.join(member)

    def report(self, *args: Any, **details: Any) -> Any:
        self.fate.moment()
        answer = self.board.report(*args, **details)
        self.fate.moment()
        return answer


def live(folder: Path, disks: list[dict[str, Any]], fate: Fate) -> None:
    """Everything from joining to the end, members in turn: who is furthest behind goes on."""
    board = Board(folder, SPACE, RULES, MEMBERS, seed=5)
    try:
        members = [
            Member(
                i,
                TERMS,
                Door(board, fate),
                lambda joined, i=i: Toy(disks[i], joined, fate),
                score=lambda episodes: episodes[0],
                checkpoint_of=lambda member, name: disks[member][name],
            )
            for i in range(MEMBERS)
        ]
        while waiting := [m for m in members if not m.done]:
            min(waiting, key=lambda m: m.reports).advance()
    finally:
        board._lock.close()


def told(folder: Path) -> list[str]:
    """What the log says, without clocks and notes of resuming."""
    rows = [row for row in read_log(folder / LOG) if row["event"] != "resumed"]
    return [json.dumps({k: v for k, v in row.items() if k != "at_s"}) for row in rows]


def test_killed_at_every_moment_the_lineage_is_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # thousands of them: the kill is not the machine's
    fate = Fate()
    disks: list[dict[str, Any]] = [{} for _ in range(MEMBERS)]
    (tmp_path / "whole").mkdir()
    live(tmp_path / "whole", disks, fate)
    whole = told(tmp_path / "whole")
    actions = [json.loads(line)["decision"]["action"] for line in whole[1:]]
    assert actions.count("copy") >= 3, "a lineage worth keeping"
    assert fate.moments > 150
    for moment in range(fate.moments):
        folder = tmp_path / str(moment)
        folder.mkdir()
        left: list[dict[str, Any]] = [{} for _ in range(MEMBERS)]
        with pytest.raises(Killed):
            live(folder, left, Fate(moment))
        before = told(folder)
        assert whole[: len(before)] == before
        live(folder, left, Fate())
        assert told(folder) == whole, f"killed at moment {moment}"
        for mine, theirs in zip(left, disks, strict=True):  # one too many is dropped at the next report
            assert mine.items() >= theirs.items()


# ------------------------------------------------------------------------------------------------ a real run

KEEPING = (*SMALL, "learner.keep_checkpoints=1000")


@pytest.fixture
def start(tmp_path):
    opened = []

    def make(name: str, *overrides: str, checkpoint: Path | None = None) -> TrialRun:
        recipe = api.read_recipe("classic/cartpole", [*KEEPING, *overrides])
        opened.append(TrialRun(recipe, tmp_path / name, None, checkpoint=checkpoint))
        return opened[-1]

    yield make
    for run in opened:
        run.close()


def poison(run: TrialRun) -> None:
    learned = run.session.learned()
    learned["shared"]["online"][:] = np.nan
    run.session.adopt(learned)


def nothing() -> None: ...


def test_a_run_that_has_lost_its_weights_lives_on_with_anothers(start, tmp_path):
    donor, lost = start("donor", "seed=1"), start("lost", "seed=2")
    donor.train(640, nothing)
    place = tmp_path / "donor" / "checkpoints" / donor.save()
    lost.train(640, nothing)
    poison(lost)
    stretch = lost.train(1280, nothing)
    assert stretch.diverged and stretch.env_steps < 1280
    lost.save()
    lost.adopt(None, place, "keep")
    lost.set_values({"algorithm.learning_rate": 1e-4})
    assert not lost.train(1280, nothing).diverged
    assert all(math.isfinite(v) for v in lost.judge([7, 8]))
    rows = [json.loads(line) for line in (tmp_path / "lost" / "metrics.jsonl").read_text().splitlines()]
    assert [r["event"] for r in rows if r["kind"] == "sweep"] == ["diverged"]


def test_nobody_misses_the_updates_of_a_run_that_is_judged(start, monkeypatch):
    """An alert looks at runs that train; a judged one says that it does not, until the evaluation is."""
    heard: list[str] = []

    class Ear(Nobody):
        def row(self, kind: str, row: Mapping[str, Any]) -> None:
            heard.append(kind)

        def trained(self) -> None:
            heard.append("trained")

    monkeypatch.setattr("seqrl_ray.tune.run.open_exporter", lambda recipe: Ear())
    run = start("judged")
    run.train(640, nothing)
    heard.clear()
    run.judge([7])
    assert heard == ["trained", "evaluation"]


def test_a_run_taken_up_again_is_the_run_it_was_at_the_checkpoint(start, tmp_path):
    free = start("free")
    free.train(640, nothing)
    free.save()
    free.set_values({"algorithm.learning_rate": 1e-4})
    free.train(1280, nothing)
    wanted = free.session.learned()["shared"]["online"]

    cut = start("cut")
    cut.train(640, nothing)
    name = cut.save()
    cut.train(960, nothing)  # is lost
    cut.judge([7])
    cut.save()
    cut.close()
    place = tmp_path / "cut" / "checkpoints" / name
    again = start("cut", checkpoint=place)
    assert again.env_steps == 640
    assert [c.name for c in checkpoints.complete(place.parent)] == [name]
    again.set_values({"algorithm.learning_rate": 1e-4})
    again.train(1280, nothing)
    assert np.array_equal(again.session.learned()["shared"]["online"], wanted)
    again.folder.flush()
    rows = [json.loads(line) for line in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()]
    gone = [r for r in rows if r.get("rolled_back")]
    assert {r["kind"] for r in gone} >= {"report", "evaluation"}
    steps = [r["env_steps"] for r in rows if r["kind"] == "report" and not r.get("rolled_back")]
    assert steps == sorted(set(steps)), "what is left is one straight run"
