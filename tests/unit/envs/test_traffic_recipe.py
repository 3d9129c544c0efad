"""The rules of the traffic recipe."""

import re
from typing import Any

import pytest

from seqrl_ray.errors import RecipeError
from seqrl_ray.recipe_traffic import TrafficSettings
from seqrl_ray.settings import parse


def test_a_map_brings_resco_timing_and_keys_override_it() -> None:
    settings = parse(TrafficSettings, {"map": "arterial4x4", "min_green_s": 2}, "env")
    assert (settings.decision_s, settings.yellow_s, settings.end_s, settings.min_green_s) == (5, 2, 3600, 2)
    assert parse(TrafficSettings, {"map": "cologne8"}, "env").begin_s == 25200


def test_a_resolved_recipe_is_the_same_recipe() -> None:
    settings = parse(TrafficSettings, {"map": "cologne3", "decision_s": 20}, "env")
    assert parse(TrafficSettings, settings.model_dump(exclude_none=True), "env") == settings


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"map": "cologne9"}, "map='cologne9' is not packaged"),
        ({}, "do not name one district"),
        ({"net": "a"}, "do not name one district"),
        ({"map": "cologne1", "net": "a", "route": "b"}, "do not name one district"),
        ({"map": "cologne1", "end_s": 28795}, "plus a multiple of decision_s=10"),
        ({"map": "cologne1", "end_s": 20000}, "plus a multiple of decision_s=10"),
        (
            {"map": "cologne1", "yellow_s": 5, "all_red_s": 3, "red_extension_s": 2},
            "must exceed yellow_s + all_red_s + red_extension_s = 10",
        ),
        (
            {"map": "cologne1", "max_green_s": 17},
            "below min_green_s + yellow_s + all_red_s + red_extension_s + decision_s = 18",
        ),
        ({"map": "cologne1", "reward_samples": 11}, "exceeds decision_s=10"),
        ({"map": "cologne1", "training_demand_scale": [1.2, 0.8]}, "not a range of positive numbers"),
        ({"map": "cologne1", "yelow_s": 3}, 'Did you mean "yellow_s"'),
        ({"map": "cologne1", "observation": ["halts"]}, "env.observation"),
    ],
)
def test_a_broken_rule_is_named(keys: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(says)):
        parse(TrafficSettings, keys, "env")
