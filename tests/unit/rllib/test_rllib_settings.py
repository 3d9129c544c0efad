"""What can be known of an algorithm of RLlib's without importing RLlib."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import seqrl_ray
from seqrl_ray import api
from seqrl_ray.algorithms import settings_class
from seqrl_ray.algorithms.rllib_settings import RllibSettings, registered
from seqrl_ray.errors import RecipeError

ROOT = Path(seqrl_ray.__file__).parents[1]


def test_the_names_are_those_of_rllibs_registry():
    from ray.rllib.algorithms.registry import ALGORITHMS

    assert registered() == tuple(sorted(ALGORITHMS))
    assert {"APPO", "BC", "CQL", "DQN", "IMPALA", "MARWIL", "PPO", "SAC"} <= set(registered())
    assert all(settings_class(f"rllib:{name}") is RllibSettings for name in registered())


@pytest.mark.parametrize(("given", "meant"), [("rllib:ppo", "rllib:PPO"), ("rllib:IMPALLA", "rllib:IMPALA")])
def test_an_unknown_name_is_answered_with_the_closest(given, meant):
    with pytest.raises(RecipeError) as error:
        settings_class(given)
    assert str(error.value).startswith(
        f'algorithm.name={given!r} is not an algorithm that RLlib registers. Did you mean "{meant}"? Known: '
    )


def test_reading_a_recipe_of_rllibs_imports_neither_ray_nor_torch():
    code = (
        "import sys; from seqrl_ray.api import read_recipe; r = read_recipe('classic/cartpole_ppo'); "
        "assert r.algorithm['name'] == 'rllib:PPO'; sys.exit('ray' in sys.modules or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT).returncode == 0


def test_a_recipe_changes_to_rllib_by_one_override():
    recipe = api.read_recipe("traffic/cologne8", ['algorithm={ name = "rllib:PPO", config = { lr = 1e-3 } }'])
    assert recipe.algorithm == {"name": "rllib:PPO", "config": {"lr": 1e-3}, "model": {}}


def test_a_key_outside_the_two_tables_is_refused():
    with pytest.raises(RecipeError, match=r"algorithm.lr is not a setting. Known here: config, model"):
        api.read_recipe("classic/cartpole_ppo", ["algorithm.lr=1e-3"])
