from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from seqrl_ray.algorithms.compiled import compiler
from seqrl_ray.api import read_recipe
from seqrl_ray.errors import RecipeError
from seqrl_ray.loops import compiling
from seqrl_ray.loops.compiling import ENOUGH_UPDATES, Compiling
from seqrl_ray.loops.local import LocalSession
from seqrl_ray.recipe import Recipe
from seqrl_ray.types import Update

OVERRIDES = (
    "algorithm.hidden=[8]",
    "algorithm.n_step=1",
    "learner.batch_size=8",
    "learner.updates_per_call=8",
    "actors.fragment_steps=4",
    "replay.min_items=64",
    "stop.env_steps=100_000",
)


class Fake:
    """Stands for a FlatLearner: each update call is U updates that take as long as the clock is told."""

    compiles = True

    def __init__(self, clock: list[float], eager_s: float, compiled_s: float) -> None:
        self.clock, self.eager_s, self.compiled_s = clock, eager_s, compiled_s
        self.fused: object | None = None
        self.updates = 0
        self.fails: Exception | None = None

    def update(self, batch: Any, hparams: Mapping[str, float]) -> Update:
        if self.fused is not None and self.fails is not None:
            raise self.fails
        self.clock[0] += 16 * (self.eager_s if self.fused is None else self.compiled_s)
        self.updates += 16
        return Update(np.zeros((16, 2), np.float32), {})


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]

    def enable(algorithm: Fake, updates: int) -> None:
        algorithm.fused = updates

    monkeypatch.setattr(compiling.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(compiling, "enable", enable)
    monkeypatch.setattr(compiling, "FlatLearner", Fake)
    monkeypatch.setattr(compiling, "compiler", lambda: "c++")
    return now


def recipe(mode: str, *more: str) -> Recipe:
    return read_recipe("classic/cartpole", [*OVERRIDES, f"learner.compile={mode}", *more])


def run(plan: Compiling, turns: int, per_turn: float = 1e-4) -> None:
    for turn in range(1, turns + 1):
        plan.update("shared", None, {})  # type: ignore[arg-type]
        plan.consider(turn * per_turn)


def test_auto_compiles_when_it_pays_and_announces_it_first(clock: list[float]) -> None:
    fake = Fake(clock, eager_s=1e-3, compiled_s=2e-4)
    plan = Compiling(recipe("auto"), {"shared": fake})  # type: ignore[dict-item]
    run(plan, 20)  # 16 updates per 1e-4 of the run: 160,000 in all, of a millisecond each
    assert fake.fused == 4
    [began, ended] = plan.take_notes()
    assert "159," in began and "1.00 ms" in began
    assert ended.startswith("compiled the updates of shared")
    assert plan.notes == []


@pytest.mark.parametrize(
    ("more", "per_turn"),
    [((), 1e-2), (("stop.updates=2_000",), 1e-4), (("stop.wall_s=60.0",), 1e-4)],
    ids=["short budget", "few updates", "little time"],
)
def test_auto_stays_eager_on_a_short_run(clock: list[float], more: tuple[str, ...], per_turn: float) -> None:
    fake = Fake(clock, eager_s=1e-3, compiled_s=2e-4)
    plan = Compiling(recipe("auto", *more), {"shared": fake})  # type: ignore[dict-item]
    run(plan, 50, per_turn)
    assert fake.fused is None and plan.take_notes() == [] and plan.compile_s == 0.0


def test_auto_needs_a_measurement_and_somebody_who_asks(clock: list[float]) -> None:
    fake = Fake(clock, eager_s=1e-3, compiled_s=2e-4)
    plan = Compiling(recipe("auto"), {"shared": fake})  # type: ignore[dict-item]
    run(plan, ENOUGH_UPDATES // 16)  # the first call is not counted
    assert fake.fused is None
    for _ in range(50):  # the local loop: updates, and no `consider`
        plan.update("shared", None, {})  # type: ignore[arg-type]
    assert fake.fused is None


def test_auto_goes_back_if_compiled_is_slower(clock: list[float]) -> None:
    fake = Fake(clock, eager_s=1e-3, compiled_s=2e-3)
    plan = Compiling(recipe("auto"), {"shared": fake})  # type: ignore[dict-item]
    run(plan, 40)
    assert fake.fused is None
    assert "stay eager: compiled ones take 2.00 ms" in plan.take_notes()[-1]


def test_a_graph_that_cannot_be_made_is_said_in_auto_and_raised_in_on(clock: list[float]) -> None:
    from torch._dynamo.exc import Unsupported

    for mode in ("auto", "on"):
        fake = Fake(clock, eager_s=1e-3, compiled_s=2e-4)
        fake.fails = Unsupported("no such thing", case_name="test")
        plan = Compiling(recipe(mode), {"shared": fake})  # type: ignore[dict-item]
        if mode == "on":
            with pytest.raises(Unsupported):
                run(plan, 1)
            continue
        run(plan, 40)
        assert fake.fused is None and fake.updates == 40 * 16
        assert "stay eager: they cannot be compiled" in plan.take_notes()[-1]


def test_off_never_compiles_and_on_at_once(clock: list[float]) -> None:
    for mode, fused in (("off", None), ("on", 3)):
        fake = Fake(clock, eager_s=1.0, compiled_s=0.1)
        plan = Compiling(recipe(mode, "learner.updates_per_call=3"), {"shared": fake})  # type: ignore[dict-item]
        run(plan, 5)
        assert fake.fused == fused


def test_on_is_refused_where_nothing_learns() -> None:
    with pytest.raises(RecipeError, match=r'learner\.compile="on" does not fit Random'):
        LocalSession(recipe("on", 'algorithm={name = "random"}'))


@pytest.mark.slow
@pytest.mark.skipif(compiler() is None, reason="no C++ compiler on this machine")
def test_a_compiled_session_says_so_before_and_learns_what_an_eager_one_does() -> None:
    sessions = {mode: LocalSession(recipe(mode, "stop.updates=64")) for mode in ("off", "on")}
    first = sessions["on"].advance(60.0)
    assert first.row["updates"] == 0 and first.notes[0].startswith("compiling the updates of shared")
    began = time.monotonic()
    notes: list[str] = []
    for session in sessions.values():
        while not (advance := session.advance(1.0)).done:
            notes.extend(advance.notes)
        notes.extend(advance.notes)
    assert len(notes) == 1 and notes[0].startswith("compiled the updates of shared in")
    compile_s = sessions["on"].trainer.learner.compiling.compile_s
    assert 0.0 < compile_s < time.monotonic() - began
    eager, compiled = (s.trainer.learner.algorithms["shared"] for s in sessions.values())
    assert eager.updates == compiled.updates == 64
    np.testing.assert_allclose(eager.weights(), compiled.weights(), rtol=0.0, atol=1e-6)
