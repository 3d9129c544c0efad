"""Deaths that `test_kills.py` has no room for: an environment that raises once while it is stepped, and a
learner that dies before there is a checkpoint.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from typing import Any

import pytest
import ray

from seqrl_ray import api
from seqrl_ray.loops.drive import drive
from seqrl_ray.loops.judge import final_jobs
from seqrl_ray.loops.progress import Silence
from seqrl_ray.loops.run_folder import RunFolder
from seqrl_ray.recipe import find
from seqrl_ray.runtime.launch import open_session
from tests.system.runs import SMALL
from tests.system.test_kills import CALM, WIRINGS

pytestmark = [pytest.mark.system, pytest.mark.kill]

RAISES_ONCE = """\
from pathlib import Path

import gymnasium

FLAG = Path({flag!r})


class Raises(gymnasium.Wrapper):
    steps = 0

    def step(self, action):
        Raises.steps += 1
        if Raises.steps > 2000 and not FLAG.exists():
            FLAG.touch()
            raise RuntimeError("the simulator lost its temper")
        return self.env.step(action)


def make():
    return Raises(gymnasium.make("CartPole-v1"))
"""


@pytest.mark.parametrize("wiring", WIRINGS)
def test_an_environment_that_raises_once_is_begun_anew(ray_here, tmp_path, wiring):
    flag = tmp_path / "raised"
    (tmp_path / f"raises_{wiring}.py").write_text(RAISES_ONCE.format(flag=str(flag)))
    recipe = tmp_path / "mine.toml"
    recipe.write_text(find("classic/cartpole").read_text())
    overrides = [*SMALL, *WIRINGS[wiring], f"env.id=raises_{wiring}:make", "actors.count=2"]
    overrides += ["stop.env_steps=20000", "learner.report_every_s=0.5"]
    summary = api.train(recipe, overrides, run_dir=tmp_path / "run", quiet=True).summary
    assert flag.exists()
    assert summary["status"] == "completed"
    assert summary["restarts"] == {**CALM, "actor": 1}
    assert summary["failures"][0]["recover_s"] is not None


class Once(Silence):
    """Kills the learner when it has learnt a little."""

    def __init__(self) -> None:
        self.session: Any = None
        self.at: tuple[int, int] | None = None

    def train(self, row: Mapping[str, Any], at_s: float, headline: float | None) -> None:
        if self.at is None and row["updates"] > 200:
            self.at = (row["env_steps"], row["updates"])
            os.kill(ray.get(self.session._learner.pid.remote()), signal.SIGKILL)


@pytest.mark.parametrize("wiring", WIRINGS)
def test_a_learner_that_dies_before_any_checkpoint_begins_anew(ray_here, tmp_path, wiring):
    overrides = [*SMALL, *WIRINGS[wiring], "actors.count=2", "stop.env_steps=20000"]
    overrides += ["learner.report_every_s=0.5", "learner.checkpoint_every_s=0"]
    recipe, path, screen = api.read_recipe("classic/cartpole", overrides), tmp_path / "run", Once()
    session = open_session(recipe, root=path / "checkpoints", local=True)
    folder, screen.session = RunFolder(path, recipe, resumed=False), session
    try:
        summary = drive(session, folder, screen, jobs_of=lambda chunk: final_jobs(recipe, chunk=chunk))
    finally:
        session.close()
        folder.close()
    assert screen.at is not None
    steps, updates = screen.at
    assert summary["status"] == "completed"
    assert summary["env_steps"] >= 20000
    assert summary["restarts"] == {**CALM, "learner": 1}
    (failure,) = summary["failures"]
    assert failure["lost_updates"] == updates
    assert failure["lost_steps"] == (steps if wiring == "colocated" else 0)  # a shard of its own stays
