"""The metrics that recipes may be judged by are those that evaluations have."""

from __future__ import annotations

import pytest

from seqrl_ray import api
from seqrl_ray.envs.make import metric_names
from seqrl_ray.loops.evaluate import evaluate


@pytest.mark.parametrize(
    ("recipe", "overrides"),
    [
        ("classic/mined_chain", []),
        ("classic/cartpole", []),
        ("classic/graph_random", []),
        ("classic/key_to_door_random", []),
        ("classic/grid_stitch_random", []),
        ("atari/pong", ["env.max_episode_frames=400"]),
        ("multi_agent/door_grid", []),
        ("multi_agent/door_grid_two_policies", []),
        ("traffic/cologne1", ["env.end_s=25300"]),
        ("traffic/cologne1", ["env.end_s=25300", "env.emissions=true", "env.training_trip_metrics=false"]),
    ],
)
def test_metric_names_are_those_of_an_episode(recipe, overrides):
    resolved = api.read_recipe(recipe, overrides)
    (end,) = evaluate(resolved, "random", [resolved.evaluation.seed])
    assert tuple(end.metrics) == metric_names(resolved.env, resolved.policies)
