"""Recipes: loading, overriding, resolving, writing."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from seqrl_ray.algorithms import settings_class
from seqrl_ray.errors import RecipeError
from seqrl_ray.recipe import Recipe, dump, find, load, policy_algorithm, shipped

ROOT = Path(__file__).parents[2]


def read(recipe: str | Path, *overrides: str) -> Recipe:
    return load(recipe, overrides, algorithm_settings=settings_class)


def written_and_read(recipe: Recipe, tmp_path: Path) -> Recipe:
    (tmp_path / "recipe.toml").write_text(dump(recipe), encoding="utf-8")
    return read(tmp_path / "recipe.toml")


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_recipe_survives_writing_and_reading(name, tmp_path):
    recipe = read(name)
    assert written_and_read(recipe, tmp_path) == recipe
    assert recipe.folder == str(find(name).parent)


@pytest.mark.parametrize(
    "override",
    [
        "replay.samples_per_insert=none",
        "replay.band_items=200.0",
        'policies."a.b".agents=["*"]',
        'env.kwargs={ text = "with \\" and \\\\ and ü", deep = { x = [1, 2.5, 1e-4] } }',
        "seed=2147483647",
        "learner.checkpoint_every_s=1e-7",
        "learner.publish_every_s=inf",
        "algorithm.hidden=[1, 2, 3]",
        "actors.count=[1,8]",
    ],
)
def test_every_kind_of_value_survives_writing_and_reading(override, tmp_path):
    if override.startswith("policies"):
        (tmp_path / "mine.toml").write_text(
            find("classic/cartpole").read_text() + '\n[policies."a.b"]\nagents = ["*"]\n'
        )
        recipe = read(tmp_path / "mine.toml")
        assert list(recipe.policies) == ["a.b"]
    else:
        recipe = read("classic/cartpole", override)
    assert written_and_read(recipe, tmp_path) == recipe


def test_none_stands_for_no_value_only_where_there_may_be_none(tmp_path):
    assert isinstance(read("classic/cartpole").replay.samples_per_insert, float)
    assert read("classic/cartpole", "replay.samples_per_insert=none").replay.samples_per_insert is None
    assert read("traffic/cologne1", "env.reward_clip=none").env.reward_clip is None  # type: ignore[union-attr]
    assert read("classic/cartpole", "name=none").name == "none"
    with pytest.raises(RecipeError, match=r"^learner\.batch_size='none' is refused"):
        read("classic/cartpole", "learner.batch_size=none")


def test_overrides_are_read_as_toml_and_else_as_text():
    recipe = read(
        "classic/cartpole", "algorithm.learning_rate=3e-4", "name=two-words", "evaluation.controllers=[]"
    )
    assert recipe.algorithm["learning_rate"] == 3e-4
    assert recipe.name == "two-words"
    assert recipe.evaluation.controllers == ()


def test_the_later_override_wins():
    assert read("classic/cartpole", "seed=1", "seed=2").seed == 2


def test_a_resolved_recipe_holds_every_default():
    recipe = read("classic/cartpole")
    defaults = settings_class("double_dqn")().model_dump()
    assert set(recipe.algorithm) == {"name", *defaults}
    assert recipe.algorithm["huber_delta"] == defaults["huber_delta"]


def test_a_policy_puts_its_own_settings_on_top(tmp_path):
    text = find("multi_agent/door_grid_two_policies").read_text()
    text = text.replace("[policies.climber]", "[policies.climber]\nalgorithm = { gamma = 0.5 }")
    (tmp_path / "mine.toml").write_text(text)
    recipe = read(tmp_path / "mine.toml")
    assert policy_algorithm(recipe, "climber")["gamma"] == 0.5
    assert policy_algorithm(recipe, "walker")["gamma"] == recipe.algorithm["gamma"]
    assert written_and_read(recipe, tmp_path) == recipe


@pytest.mark.parametrize("name", ["classic/cartpole", "envs/classic/cartpole.toml", "classic/cartpole.toml"])
def test_a_shipped_recipe_goes_by_name_from_any_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find(name) == ROOT / "envs" / "classic" / "cartpole.toml"


def test_the_page_of_keys_is_what_the_schema_says():
    spec = importlib.util.spec_from_file_location("make_keys", ROOT / "docs" / "make_keys.py")
    assert spec is not None and spec.loader is not None
    make_keys = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_keys)
    page = (ROOT / "docs" / "recipe_keys.md").read_text(encoding="utf-8")
    assert page == make_keys.pages(), "run: python docs/make_keys.py"


def test_the_number_of_actors_may_be_a_range():
    fixed, ranged = read("classic/cartpole", "actors.count=3"), read("classic/cartpole", "actors.count=[1,3]")
    assert (fixed.actors.count, fixed.actors.most, fixed.actors.elastic) == (3, 3, False)
    assert (ranged.actors.count, ranged.actors.most, ranged.actors.elastic) == (1, 3, True)
    assert ranged == read("classic/cartpole", "actors.count=1", "actors.max_count=3")
    assert not read("classic/cartpole", "actors.count=[2,2]").actors.elastic
    assert ranged.env_copies() == 3 * ranged.actors.envs_per_actor


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["actors.count=[3,1]"], "actors.count=[3, 1] is neither a number nor [least, most]"),
        (["actors.count=[0,1]"], "actors.count=[0, 1] is neither a number nor [least, most]"),
        (["actors.count=[1,2,3]"], "actors.count=[1, 2, 3] is neither a number nor [least, most]"),
        (["actors.count=[1,8]", "actors.max_count=4"], "actors.count=[1, 8] and actors.max_count=4 name two"),
        (["actors.count=4", "actors.max_count=2"], "actors.max_count=2 is below actors.count=4"),
        (["actors.count=[1,8]", "actors.in_flight=1"], "actors.count=[1, 8] with actors.in_flight=1"),
    ],
)
def test_a_range_that_says_nothing_clear_is_refused(overrides, message):
    with pytest.raises(RecipeError) as refused:
        read("classic/cartpole", *overrides)
    assert message in str(refused.value)
