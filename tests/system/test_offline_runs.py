"""Offline data and fine-tuning through Ray: the same arithmetic as in one process, and data from actors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from seqrl_ray import api
from seqrl_ray.data.dataset import Dataset
from tests.system.runs import learner_state, train
from tests.unit.loops.offline_world import recipe_file, small_data

pytestmark = pytest.mark.system

OFFLINE = '[[phase]]\nkind = "offline"\nupdates = 22\n'
ALTERNATING = '[[phase]]\nkind = "alternating"\nupdates_per_episode = 3\n'
ONLINE = '[[phase]]\nkind = "online"\n'


def test_offline_then_alternating_is_the_same_locally_and_through_ray(ray_here, tmp_path: Path) -> None:
    recipe = recipe_file(tmp_path, small_data(tmp_path / "data"), phases=OFFLINE + ALTERNATING)
    keys = ["stop.env_steps=300", "actors.in_flight=1", "learner.threads=1"]  # sums follow the threads
    one = api.train(recipe, keys, run_dir=tmp_path / "local", local=True, quiet=True).summary
    many = api.train(recipe, keys, run_dir=tmp_path / "ray", quiet=True).summary
    assert one["updates"] == many["updates"] > 22 and one["env_steps"] == many["env_steps"]
    a, b = learner_state(tmp_path / "local"), learner_state(tmp_path / "ray")
    for name, values in a.items():
        np.testing.assert_array_equal(values, b[name], err_msg=name)


def test_offline_then_overlapped_through_ray(ray_here, tmp_path: Path) -> None:
    recipe = recipe_file(tmp_path, small_data(tmp_path / "data"), phases=OFFLINE + ONLINE)
    summary = api.train(recipe, ["stop.env_steps=600"], run_dir=tmp_path / "ray", quiet=True).summary
    assert summary["status"] == "completed" and summary["updates"] > 22
    assert summary["restarts"] == dict.fromkeys(summary["restarts"], 0)
    assert summary["samples_per_insert"] == pytest.approx(0.5, rel=0.5)  # of the online phase alone


def test_actors_collect_whole_episodes(ray_here, tmp_path: Path) -> None:
    small_data(tmp_path / "local")
    found = api.collect(tmp_path / "random.toml", tmp_path / "set", ["actors.count=2"], steps=900, quiet=True)
    dataset = Dataset.open(tmp_path / "set", verify=True)
    assert found["steps"] == dataset.steps >= 900 and found["episodes"] == dataset.episodes
    assert (dataset.columns["terminated"] | dataset.columns["truncated"]).sum() == dataset.episodes
    assert len(set(dataset.episode_seed.tolist())) == dataset.episodes  # no actor plays another's episodes
    assert (dataset.episode_seed >= 0).all()


def test_the_replay_of_several_shards_is_one_dataset(ray_here, tmp_path: Path) -> None:
    keys = ["replay.wiring=service", "replay.shards=2", "actors.count=2", "replay.capacity_steps=20000"]
    run = tmp_path / "run"
    made = train(run, *keys)
    found = api.replay_data(run, tmp_path / "set")
    dataset = Dataset.open(tmp_path / "set", verify=True)
    stored = found["left_out_steps"] + dataset.steps
    on_the_way = 2 * 2 * 32  # steps: two actors, two fragments each
    assert made["env_steps"] <= stored <= made["env_steps"] + on_the_way  # what is counted only next
    assert found["left_out_steps"] < 1_000
    assert found["episodes"] == dataset.episodes
    # actors tell of episodes before shards have them; none is shorter than 8 steps
    assert abs(made["episodes"] - dataset.episodes) <= on_the_way // 8
