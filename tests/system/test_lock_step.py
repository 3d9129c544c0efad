"""One process = many processes, and resume is exact: weights are compared bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from seqrl_ray import api
from tests.system.runs import LOCK_STEP, SMALL, learner_state, train

pytestmark = pytest.mark.system


def assert_equal_learners(one: Path, other: Path) -> None:
    a, b = learner_state(one), learner_state(other)
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.mark.parametrize("sampler", ["uniform", "prioritised"])
def test_local_loop_equals_a_lock_step_ray_run_after_200_updates(ray_here, tmp_path, sampler):
    overrides = (*LOCK_STEP, f"replay.sampler={sampler}", "stop.updates=200")
    local = train(tmp_path / "local", *overrides, local=True)
    remote = train(tmp_path / "ray", *overrides)
    assert local["updates"] == remote["updates"] == 200
    assert local["env_steps"] == remote["env_steps"]
    assert_equal_learners(tmp_path / "local", tmp_path / "ray")
    other = train(tmp_path / "seed1", *overrides, "seed=1", local=True)
    assert other["updates"] == 200
    with pytest.raises(AssertionError):  # the comparison can fail: another seed gives other weights
        assert_equal_learners(tmp_path / "local", tmp_path / "seed1")


@pytest.mark.parametrize("local", [True, False], ids=["local", "ray"])
def test_a_resumed_run_equals_one_that_was_never_stopped(ray_here, tmp_path, local):
    train(tmp_path / "whole", *LOCK_STEP, local=local)
    train(tmp_path / "halves", *LOCK_STEP, "stop.updates=200", local=local)
    api.resume(tmp_path / "halves", ["stop.updates=0"], local=local, quiet=True)
    assert_equal_learners(tmp_path / "whole", tmp_path / "halves")


def test_updates_that_draw_at_random_draw_the_same_everywhere(ray_here, tmp_path):
    """Soft Actor-Critic here, through Ray, and stopped and resumed half way."""
    recipe, overrides = "classic/pendulum_sac", (*LOCK_STEP, "stop.updates=200")
    train(tmp_path / "local", *overrides, local=True, recipe=recipe)
    train(tmp_path / "ray", *overrides, recipe=recipe)
    assert_equal_learners(tmp_path / "local", tmp_path / "ray")
    train(tmp_path / "halves", *LOCK_STEP, "stop.updates=100", local=True, recipe=recipe)
    api.resume(tmp_path / "halves", ["stop.updates=200"], local=True, quiet=True)
    assert_equal_learners(tmp_path / "local", tmp_path / "halves")


def test_small_overrides_are_valid_for_the_recipe():
    assert api.read_recipe("classic/cartpole", SMALL).learner.batch_size == 32
