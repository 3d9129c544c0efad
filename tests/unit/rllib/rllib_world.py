"""Recipes and groups that the tests of the bridge share."""

from __future__ import annotations

from typing import Any

from seqrl_ray import api
from seqrl_ray.recipe import Recipe
from seqrl_ray.rllib.preflight import groups_of
from seqrl_ray.types import GroupSpec


def recipe_of(name: str, algorithm: str = "PPO", *overrides: str, **tables: Any) -> Recipe:
    """A shipped recipe with another algorithm; tables: config, model."""
    recipe = api.read_recipe(name, [f'algorithm={{ name = "rllib:{algorithm}" }}', *overrides])
    return recipe.model_copy(update={"algorithm": {**recipe.algorithm, **tables}})


def group_of(recipe: Recipe) -> GroupSpec:
    """The only policy group of a recipe."""
    (group,) = groups_of(recipe).values()
    return group
