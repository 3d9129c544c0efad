"""Recipes that RLlib trains, with a known optimum. `pytest -m learning -s`."""

from __future__ import annotations

import pytest

from seqrl_ray import api
from seqrl_ray.envs.toys import DoorGrid

pytestmark = [pytest.mark.learning, pytest.mark.timeout(1800)]


def final(tmp_path, recipe: str, metric: str, seed: int) -> float:
    summary = api.train(recipe, [f"seed={seed}"], run_dir=tmp_path / f"run-{seed}", quiet=True).summary
    mean = float(summary["evaluation"][metric]["mean"])
    print(
        f"\n{recipe} seed {seed}: {metric} {mean:.3f} after {summary['env_steps']:,} steps, "
        f"{summary['updates']:,} updates, {summary['train_s']:.0f} s of training"
    )
    return mean


def test_ppo_balances_the_pole(tmp_path):
    assert api.read_recipe("classic/cartpole_ppo").stop.env_steps <= 150_000
    returns = [final(tmp_path, "classic/cartpole_ppo", "return", seed) for seed in range(2)]
    assert min(returns) >= 450.0, returns


def test_ppo_with_shared_parameters_comes_close_to_the_optimum_of_the_door_grid(tmp_path):
    found = final(tmp_path, "multi_agent/door_grid_ppo", "return", 0)
    assert found >= 0.9 * DoorGrid().optimum()


def test_bc_imitates_the_few_that_succeeded(tmp_path):
    assert final(tmp_path, "classic/key_to_door_rllib_bc", "success", 0) >= 0.9
