"""Actors and learner overlap: fragments are taken between draws, and pacing holds both sides all the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
    band, inserts = pacing.band_items * ratio, []
    while not trainer.done:
        steps, drawn = trainer.counters.env_steps, trainer.learner.updates
        trainer.turn()
        assert trainer.learner.updates - drawn <= 1
        assert -band - 1e-6 <= pacing.credit <= band + 1e-6
        if trainer.counters.env_steps > steps:
            inserts.append(pacing.credit)
    counted = pacing.report()
    assert abs(counted.samples_per_insert - ratio) * (counted.inserted - 600) <= band + 1e-6
    assert (True in source.waits) == (every > 1 or ratio < 1)  # it waits for actors only if nothing is owed
    if ratio > 1 and every == 1:
        assert sum(credit >= 8 for credit in inserts) > len(inserts) / 4  # let in while updates were owed
    running.close()
