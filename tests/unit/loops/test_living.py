"""A run that is copied from, given another's learning, and changed while it lives."""

from __future__ import annotations

import numpy as np
import pytest

from seqrl_ray import api
from seqrl_ray.errors import CheckpointError, RecipeError
from seqrl_ray.loops import checkpoints, living
from seqrl_ray.loops.local import LocalSession
from tests.unit.loops.small_cartpole import SMALL


@pytest.fixture
def session():
    opened = []

    def make(*overrides, resume=None):
        opened.append(LocalSession(api.read_recipe("classic/cartpole", [*SMALL, *overrides]), resume=resume))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


def same(a, b):
    return all(np.array_equal(a[p][n], b[p][n]) for p in a for n in a[p])


def test_a_run_is_held_at_a_step_count_and_goes_on_as_if_it_had_not_been(session):
    held, free = session(), session()
    assert held.advance_to(640, 60.0).row["env_steps"] == 640
    held.advance_to(1280, 60.0)
    free.advance_to(1280, 60.0)
    assert same(held.learned(), free.learned())


def test_what_is_adopted_is_the_learned_state_and_nothing_else(session):
    donor, taker = session("seed=1", "algorithm.learning_rate=3e-3"), session("seed=2")
    donor.advance_to(960, 60.0)
    taker.advance_to(640, 60.0)
    trainer = taker.trainer
    pacing = trainer.pacing["shared"]
    before = (trainer.learner.updates, trainer.counters.env_steps, pacing.inserted, pacing.credit)
    rng, rows = trainer.shards["shared"].state()["rng"], trainer.shards["shared"].stats().rows
    taker.adopt(donor.learned())
    assert same(taker.learned(), donor.learned())
    assert before == (trainer.learner.updates, trainer.counters.env_steps, pacing.inserted, pacing.credit)
    assert (rng, rows) == (trainer.shards["shared"].state()["rng"], trainer.shards["shared"].stats().rows)
    assert trainer.learner.algorithms["shared"].hparams(0.0)["learning_rate"] == 5e-4
    acting = taker.rollout.acting["shared"]
    assert np.array_equal(acting.algorithm.weights(), donor.learned()["shared"]["online"])
    assert acting.version == (1, trainer.learner.updates), "a new lineage epoch"
    taker.advance_to(960, 60.0)
    assert not same(taker.learned(), donor.learned())


def test_none_is_a_new_beginning(session):
    one, fresh = session(), session()
    one.advance_to(640, 60.0)
    one.adopt(None)
    assert same(one.learned(), fresh.learned())


def test_another_algorithms_state_is_refused(session):
    one = session()
    with pytest.raises(CheckpointError, match="cannot be matched"):
        one.adopt({"other": {}})


def test_a_cleared_replay_is_empty_warms_up_again_and_learns_on(session):
    one = session()
    one.advance_to(960, 60.0)
    updates = one.trainer.learner.updates
    one.adopt(one.learned(), replay="clear")
    assert one.trainer.shards["shared"].stats().rows == 0
    one.advance_to(992, 60.0)
    assert one.trainer.learner.updates == updates, "too few items to learn from"
    one.advance_to(1600, 60.0)
    one.trainer.shards["shared"].check()
    assert one.trainer.learner.updates > updates
    items = one.trainer.shards["shared"].stats().items
    assert 100 < items < 700
    assert one.trainer.report()["samples_per_insert"] == pytest.approx(4.0, rel=0.15)


@pytest.mark.parametrize("sampler", ["uniform", "prioritised"])
def test_a_shared_replay_is_the_donors_and_takes_the_takers_steps(session, tmp_path, sampler):
    rule = f"replay.sampler={sampler}"
    donor, taker = session("seed=1", rule), session("seed=2", rule)
    donor.advance_to(1280, 60.0)
    donor.save(tmp_path, {}, wait=True)
    taker.advance_to(320, 60.0)
    taker.adopt(donor.learned(), replay="share", donor=checkpoints.latest(tmp_path))
    shard, theirs = taker.trainer.shards["shared"], donor.trainer.shards["shared"]
    assert shard.stats().rows == theirs.stats().rows
    held, given = shard.store.columns["reward"], theirs.store.columns["reward"]
    assert np.array_equal(held, given, equal_nan=True)
    assert shard.state()["rng"] != theirs.state()["rng"], "it does not draw what the donor draws"
    rows = shard.stats().rows
    taker.advance_to(640, 60.0)
    shard.check()
    assert shard.stats().rows >= rows + 320, "no step of its own episodes is taken for a duplicate"
    assert shard.stats().refused_rows == theirs.stats().refused_rows
    assert taker.trainer.learner.updates > 0


def test_changed_values_are_in_force(session):
    one = session()
    one.advance_to(640, 60.0)
    one.set_values(
        {
            "algorithm.learning_rate": 2e-3,
            "algorithm.gamma": 0.5,
            "replay.samples_per_insert": 8.0,
            "replay.beta_end": 0.6,
        }
    )
    trainer = one.trainer
    assert trainer.learner.algorithms["shared"].hparams(0.0)["learning_rate"] == 2e-3
    assert trainer.recipe.replay.beta(1.0) == 0.6
    batch = trainer.shards["shared"].sample(1, 64)
    assert set(np.unique(batch.discount_t)) <= {np.float32(0.0), *(np.float32(0.5) ** np.arange(1, 4))}
    updates = trainer.learner.updates
    one.advance_to(1280, 60.0)
    assert (trainer.learner.updates - updates) * 16 == pytest.approx(8.0 * 640, rel=0.1)
    assert one.recipe.algorithm["learning_rate"] == 2e-3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"algorithm.hidden": [8]}, "algorithm.hidden is not mutable"),
        ({"replay.capacity_steps": 9}, "replay.capacity_steps is not mutable"),
        ({"env.id": "x"}, "env.id is not mutable"),
        ({"algorithm.learning_rate": 2.0}, "algorithm.learning_rate=2.0 is refused"),
    ],
)
def test_what_cannot_change_is_refused_and_changes_nothing(session, values, message):
    one = session()
    before = one.recipe
    with pytest.raises(RecipeError, match=message):
        one.set_values({"algorithm.gamma": 0.9, **values})
    assert one.recipe == before
    assert one.trainer.learner.algorithms["shared"].hparams(0.0)["gamma"] == 0.99


def test_mutable_keys_are_the_schemas(session):
    keys = living.mutable_recipe_keys(session().recipe)
    assert "algorithm.learning_rate" in keys and "replay.samples_per_insert" in keys
    assert "learner.publish_every_s" in keys and "algorithm.n_step" not in keys


def test_a_return_asked_for_reaches_those_who_act():
    recipe = api.read_recipe("classic/cartpole", ["algorithm={ name = 'toy_window' }", *SMALL[1:]])
    one = LocalSession(recipe)
    one.set_values({"algorithm.target_return": 7.0})
    assert set(one.rollout.acting["shared"].slot_params["target_return"]) == {7.0}
    one.close()


def test_an_average_is_judged_and_kept_and_the_last_weights_act(session, tmp_path):
    one = session("algorithm.average_share=0.2")
    one.advance_to(960, 60.0)
    learned = one.learned()["shared"]
    assert np.abs(learned["average"] - learned["online"]).max() > 1e-4
    np.testing.assert_array_equal(one.rollout.acting["shared"].algorithm.weights(), learned["online"])
    judged = one.trainer.learner.judged_weights(0.5)["shared"]
    np.testing.assert_array_equal(judged.flat, learned["average"])
    one.save(tmp_path, {}, wait=True)
    kept = checkpoints.acting_weights(checkpoints.latest(tmp_path))["shared"]
    np.testing.assert_array_equal(kept.flat, learned["average"])
    again = session("algorithm.average_share=0.2", resume=checkpoints.latest(tmp_path))
    for run in (one, again):
        run.advance_to(1280, 60.0)
    assert same(one.learned(), again.learned())


@pytest.mark.parametrize("average", [0.0, 0.2])
def test_an_evaluation_in_between_is_of_what_is_judged(session, monkeypatch, average):
    one, played = session(f"algorithm.average_share={average}"), []
    one.advance_to(640, 60.0)
    monkeypatch.setattr(
        "seqrl_ray.loops.local.play_jobs",
        lambda recipe, jobs, weights, **_: played.append(weights) or {"policy": []},
    )
    one.judge_interim([1])
    learned = one.learned()["shared"]
    expected = learned["average" if average else "online"]
    np.testing.assert_array_equal(played[0]["shared"].flat, expected)
