"""Actors and learner overlap: fragments are taken between draws, and pacing holds both sides all the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seqrl_ray import api
from seqrl_ray.loops import trainer as trainer_module
from seqrl_ray.loops.local import LocalSession
from seqrl_ray.types_env import Fragment
from tests.unit.loops.offline_world import recipe_file, small_data

PHASES = '[[phase]]\nkind = "offline"\nupdates = 4\n[[phase]]\nkind = "online"\n'


class Eager:
    """Actors that always have a fragment ready, or one only at every so manieth look."""

    overlaps = True

    def __init__(self, local: Any, every: int) -> None:
        self.local, self.every, self.looks = local, every, 0
        self.waits: list[bool] = []

    def poll(self, *, wait: bool = True) -> Sequence[tuple[str, Fragment]]:
        self.looks += 1
        self.waits.append(wait)
        return self.local.poll() if self.looks % self.every == 0 else []

    def offer(self, weights: Any) -> None:
        self.local.offer(weights)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_data(tmp_path_factory.mktemp("data") / "random")


@pytest.mark.parametrize(("every", "ratio"), [(1, 2.0), (1, 0.1), (30, 2.0)])
def test_both_sides_go_on_and_pacing_holds_them(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, every: int, ratio: float
) -> None:
    monkeypatch.setattr(trainer_module, "SLICE_S", 0.0)  # one draw, then a look
    keys = ["stop.env_steps=400", f"replay.samples_per_insert={ratio}", "learner.updates_per_call=1"]
    running = LocalSession(api.read_recipe(recipe_file(tmp_path, data, phases=PHASES), keys))
    trainer = running.trainer
    while trainer.offline:
        trainer.turn()
    source = Eager(trainer.source, every)
    trainer.source = source
    pacing = trainer.pacing["shared"]
    band, before, inserts = pacing.band_items * ratio, pacing.inserted, []
    while not trainer.done:
        steps, drawn = trainer.counters.env_steps, trainer.learner.updates
        trainer.turn()
        assert trainer.learner.updates - drawn <= 1
        assert -band - 1e-6 <= pacing.credit <= band + 1e-6
        if trainer.counters.env_steps > steps:
            inserts.append(pacing.credit)
    counted = pacing.report()
    assert abs(counted.samples_per_insert - ratio) * (counted.inserted - before) <= band + 1e-6
    assert (True in source.waits) == (every > 1 or ratio < 1)  # it waits for actors only if nothing is owed
    if ratio > 1 and every == 1:
        assert sum(credit >= 8 for credit in inserts) > len(inserts) / 4  # let in while updates were owed
    running.close()


class Clock:
    """Time as the trainer sees it."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now


class Actor:
    """An actor with two fragments on their way, in made-up time: `step_s` a step."""

    def __init__(self, local: Any, clock: Clock, step_s: float, *, overlaps: bool) -> None:
        self.local, self.clock, self.step_s, self.overlaps = local, clock, step_s, overlaps
        self.asked, self.free, self.acted_s = [clock.now, clock.now], clock.now, 0.0

    def poll(self, *, wait: bool = True) -> Sequence[tuple[str, Fragment]]:
        took = 4 * self.step_s
        done = max(self.asked[0], self.free) + took
        if done > self.clock.now:
            if not wait:
                return []
            self.clock.now = done
        self.asked = [*self.asked[1:], self.clock.now]
        self.free = done
        self.acted_s += took
        return self.local.poll()

    def offer(self, weights: Any) -> None:
        self.local.offer(weights)


@pytest.mark.parametrize(("step_s", "update_s"), [(0.01, 0.01), (0.02, 0.01), (0.01, 0.02)])
def test_the_slower_side_never_waits_for_the_other(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, step_s: float, update_s: float
) -> None:
    """One update per step; episodes are many times longer than what is on its way."""
    clock, shares = Clock(), {}
    monkeypatch.setattr(trainer_module, "time", clock)
    keys = ["stop.env_steps=1000", "replay.samples_per_insert=8.0", "learner.updates_per_call=1"]
    keys += ["actors.fragment_steps=4", "actors.envs_per_actor=1"]
    for overlaps in (True, False):
        folder = tmp_path / str(overlaps)
        running = LocalSession(api.read_recipe(recipe_file(folder, data, phases=PHASES), keys))
        trainer = running.trainer
        while trainer.offline:
            trainer.turn()
        learner, learned = trainer.learner, 0.0

        def update(policy_id: str, batch: Any, progress: float, learner: Any = learner) -> Any:
            nonlocal learned
            clock.now += update_s
            learned += update_s
            learner.algorithms[policy_id]._updates += 1
            return np.zeros(batch.weight.shape, np.float32)

        monkeypatch.setattr(learner, "update", update)
        began = clock.now
        actor = trainer.source = Actor(trainer.source, clock, step_s, overlaps=overlaps)
        while not trainer.done:
            trainer.turn()
        shares[overlaps] = (clock.now - began) / max(actor.acted_s, learned)
        running.close()
    assert shares[True] < 1.1  # of the time that the slower side needs alone
    if step_s == update_s:
        assert shares[False] > 1.25  # which is not so by itself
