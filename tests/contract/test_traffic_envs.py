"""The environment contract over every shipped traffic recipe, on a short window, and the maps' lint."""

import pytest

from seqrl_ray.algorithms import settings_class
from seqrl_ray.envs.check import check_env
from seqrl_ray.envs.make import controllers, make_env
from seqrl_ray.envs.traffic.controllers import CONTROLLERS
from seqrl_ray.recipe import load, shipped
from seqrl_ray.recipe_traffic import MAPS, TrafficSettings

RECIPES = [name for name in shipped() if name.startswith("traffic/")]


def test_every_packaged_map_has_a_recipe() -> None:
    assert {name.removeprefix("traffic/") for name in RECIPES} >= set(MAPS)


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_keeps_the_contract(name: str) -> None:
    recipe = load(name, algorithm_settings=settings_class)
    env = recipe.env
    assert isinstance(env, TrafficSettings)
    assert controllers(env) == CONTROLLERS
    assert set(recipe.evaluation.controllers) <= set(CONTROLLERS)
    short = env.model_copy(update={"end_s": env.begin_s + 12 * env.decision_s})
    found = check_env(
        lambda seeds: make_env(short, recipe.policies, num_envs=1, seeds=seeds), steps=30, seed=3
    )
    assert [finding for finding in found if finding.level == "error"] == []
