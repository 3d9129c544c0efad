"""The environment contract, run over the environment of every shipped recipe (traffic has its own file)."""

import importlib.util

import pytest

from seqrl_ray.algorithms import settings_class
from seqrl_ray.envs.check import check_env
from seqrl_ray.envs.make import make_env
from seqrl_ray.recipe import load, shipped

NEEDS = {"atari": "ale_py", "mujoco": "mujoco"}
TOYS = [
    "RecallCorridor",
    "MinedChain",
    "Endless",
    "PaddleBricks",
    "ShortestPathGraph",
    "KeyToDoor",
    "StitchGrid",
]
RECIPES = [name for name in shipped() if not name.startswith("traffic/")]


def test_every_suite_has_recipes():
    assert {name.partition("/")[0] for name in RECIPES} >= {"classic", "atari", "mujoco", "multi_agent"}


@pytest.mark.parametrize("evaluation", [False, True])
@pytest.mark.parametrize("name", RECIPES)
def test_the_contract_holds(name, evaluation):
    recipe = load(name, algorithm_settings=settings_class)
    needed = NEEDS.get(recipe.env.kind)
    if recipe.env.kind == "gym" and ":" in recipe.env.id:
        needed = recipe.env.id.partition(".")[0].partition(":")[0]  # a package the user brings along
    if needed and importlib.util.find_spec(needed) is None:
        pytest.skip(f"{needed} is not installed")
    env = recipe.env
    steps = 80
    if env.kind == "atari":  # short games, so that some end within few steps
        env, steps = env.model_copy(update={"max_episode_frames": 60}), 32
    found = check_env(
        lambda seeds: make_env(env, recipe.policies, num_envs=2, seeds=seeds, evaluation=evaluation),
        steps=steps,
    )
    assert [f for f in found if f.level == "error"] == []


def test_pettingzoos_own_api_test_accepts_the_toy_with_departures_spoken():
    pettingzoo_test = pytest.importorskip("pettingzoo.test")
    from seqrl_ray.envs.toys import DoorGrid

    pettingzoo_test.parallel_api_test(DoorGrid(), num_cycles=100)


@pytest.mark.parametrize("name", TOYS)
def test_gymnasiums_own_checker_accepts_the_toys(name):
    from gymnasium.utils.env_checker import check_env as gymnasium_check

    from seqrl_ray.envs import toys

    gymnasium_check(getattr(toys, name)(), skip_render_check=True)
