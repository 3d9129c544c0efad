"""RLlib's PPO for a few iterations: the same run folder, evaluation and resume as every run of ours."""

from __future__ import annotations

import numpy as np
import pytest

from seqrl_ray import api
from seqrl_ray.loops import checkpoints
from tests.system.rllib_runs import TINY, rows

pytestmark = pytest.mark.system


def test_a_run_and_what_goes_on_from_it(ray_here, tmp_path):
    folder = tmp_path / "run"
    run = api.train("classic/cartpole_ppo", [*TINY, "stop.env_steps=600"], run_dir=folder, quiet=True)
    summary = run.summary
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
    assert summary["evaluation"]["return"]["n"] == 2
    assert (folder / "report.html").is_file()

    newest = checkpoints.latest(folder / "checkpoints")
    checkpoints.verify(newest)
    assert {path.suffix for path in newest.iterdir()} == {".json", ".safetensors"}, "no pickle"
    again = api.evaluate(folder)
    assert again["evaluation"]["return"]["mean"] == summary["evaluation"]["return"]["mean"]

    collected = api.collect(
        "classic/cartpole", tmp_path / "data", run=folder, steps=50, local=True, quiet=True
    )
    assert collected["steps"] >= 50, "a policy of RLlib's acts wherever one of ours does"

    before = checkpoints.load(newest, "rllib")["learner"]
    same = api.resume(folder, quiet=True)
    after = checkpoints.load(checkpoints.latest(folder / "checkpoints"), "rllib")["learner"]
    assert same.summary["env_steps"] == summary["env_steps"], "its budget is spent: nothing was trained"
    for part in ("modules", "optimizers", "coefficients", "weights_seq_no"):
        np.testing.assert_equal(after[part], before[part])

    longer = api.resume(folder, ["stop.env_steps=1000"], quiet=True).summary
    assert longer["env_steps"] >= 1000 and longer["updates"] > summary["updates"]
    assert longer["episodes"] == len(rows(folder, "episode")) > len(ended)
    seeds = [row["seed"] for row in rows(folder, "episode")]
    assert len(set(seeds)) == len(seeds), "a run that goes on plays new episodes"
