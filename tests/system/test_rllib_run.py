"""RLlib's PPO for a few iterations: the same run folder, evaluation and resume as every run of ours."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from seqrl_ray import api
from seqrl_ray.loops import checkpoints
from tests.system.rllib_runs import TINY, rows

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def run(ray_here, tmp_path_factory) -> api.Result:
    """A run that has come to its end."""
    folder = tmp_path_factory.mktemp("rllib") / "run"
    return api.train("classic/cartpole_ppo", [*TINY, "stop.env_steps=600"], run_dir=folder, quiet=True)


def learner(folder: Path):
    return checkpoints.load(checkpoints.latest(folder / "checkpoints"), "rllib")["learner"]


def test_a_run_leaves_what_every_run_leaves(run, tmp_path):
    folder, summary = run.folder, run.summary
    assert summary["status"] == "completed" and summary["restarts"]["actor"] == 0
    assert 600 <= summary["env_steps"] < 600 + 250
    last = rows(folder, "report")[-1]
    # 2 epochs of minibatches of 50 of some more than 200 steps, in each iteration
    assert 2 * 4 * last["iterations"] <= summary["updates"] <= 2 * 6 * last["iterations"]
    assert last["env_steps"] == last["agent_steps"] == summary["env_steps"]
    assert np.isfinite(last["shared/total_loss"]) and last["policy_lag_p50"] is not None
    ended = rows(folder, "episode")
    assert len(ended) == summary["episodes"] > 0
    steps = sum(row["steps"] for row in ended)
    assert 0 <= summary["env_steps"] - steps < 2 * 500, "RLlib counts the steps that our doors made"
    assert len({row["seed"] for row in ended}) == len(ended)
    assert (folder / "report.html").is_file()

    newest = checkpoints.latest(folder / "checkpoints")
    checkpoints.verify(newest)
    assert {path.suffix for path in newest.iterdir()} == {".json", ".safetensors"}, "no pickle"
    assert summary["evaluation"]["return"]["n"] == 1
    again = api.evaluate(folder)
    assert again["evaluation"]["return"]["mean"] == summary["evaluation"]["return"]["mean"]
    collected = api.collect(
        "classic/cartpole", tmp_path / "data", run=folder, steps=50, local=True, quiet=True
    )
    assert collected["steps"] >= 50, "a policy of RLlib's acts wherever one of ours does"


@pytest.mark.slow
def test_a_run_goes_on_from_its_checkpoint(run):
    folder, summary = run.folder, run.summary
    before, played = learner(folder), len(rows(folder, "episode"))
    same = api.resume(folder, quiet=True)
    assert same.summary["env_steps"] == summary["env_steps"], "its budget is spent: nothing was trained"
    for part in ("modules", "optimizers", "coefficients", "weights_seq_no"):
        np.testing.assert_equal(learner(folder)[part], before[part])

    longer = api.resume(folder, ["stop.env_steps=1000"], quiet=True).summary
    assert longer["env_steps"] >= 1000 and longer["updates"] > summary["updates"]
    assert longer["episodes"] == len(rows(folder, "episode")) > played
    seeds = [row["seed"] for row in rows(folder, "episode")]
    assert len(set(seeds)) == len(seeds), "a run that goes on plays new episodes"
