"""Recipes with a known optimum, locally and through Ray, five seeds each. `pytest -m learning -s`."""

from __future__ import annotations

import pytest

from seqrl_ray import api
from seqrl_ray.envs.toys import DoorGrid

pytestmark = [pytest.mark.learning, pytest.mark.timeout(3600)]

LAYOUTS = pytest.mark.parametrize("local", [True, False], ids=["local", "ray"])


def final_return(tmp_path, recipe: str, seed: int, local: bool, *overrides: str) -> float:
    name = f"{recipe.replace('/', '-')}-{seed}"
    summary = api.train(
        recipe, [f"seed={seed}", *overrides], run_dir=tmp_path / name, local=local, quiet=True
    ).summary
    result = summary["evaluation"]["return"]
    print(
        f"\n{recipe} seed {seed} {'local' if local else 'ray'}: {result['mean']:.3f} "
        f"after {summary['env_steps']:,} steps"
    )
    return float(result["mean"])


@LAYOUTS
def test_cartpole_is_solved_on_five_seeds(tmp_path, local):
    steps = api.read_recipe("classic/cartpole").stop.env_steps
    assert steps <= 150_000
    returns = [
        final_return(tmp_path, "classic/cartpole", seed, local, "evaluation.episodes=20") for seed in range(5)
    ]
    assert min(returns) >= 475.0, returns


def test_the_pendulum_is_swung_up_by_continuous_actions(tmp_path):
    """Random play returns about -1200; what is left is the swing itself."""
    returns = [final_return(tmp_path, "classic/pendulum_sac", seed, True) for seed in range(2)]
    assert min(returns) >= -250.0, returns


@LAYOUTS
@pytest.mark.parametrize("variant", ["door_grid", "door_grid_departing", "door_grid_two_policies"])
def test_agents_that_need_each_other_come_close_to_the_optimum(tmp_path, variant, local):
    optimum = DoorGrid(departing=variant.endswith("departing")).optimum()
    returns = [final_return(tmp_path, f"multi_agent/{variant}", seed, local) for seed in range(5)]
    assert min(returns) >= 0.95 * optimum, (returns, optimum)


def test_images_are_learned_from(tmp_path):
    """MinAtar's Breakout: several times what random play scores, through Ray, in minutes."""
    pytest.importorskip("minatar", reason="pip install --no-deps minatar==1.0.15")
    summary = api.train("atari/minatar_breakout", run_dir=tmp_path / "run", quiet=True).summary
    policy, random = summary["evaluation"]["return"]["mean"], summary["baselines"]["random"]["return"]["mean"]
    print(f"\nminatar breakout: {policy:.1f}, random {random:.2f}, {summary['wall_s'] / 60:.1f} minutes")
    assert policy >= 5.0 * random
    assert summary["wall_s"] <= 30 * 60
