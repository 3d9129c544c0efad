"""Offline data in a run: found, checked, loaded; phases in order; stopped and resumed; collected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seqrl_ray import api
from seqrl_ray.data.dataset import Dataset
from seqrl_ray.errors import RecipeError
from seqrl_ray.loops import checkpoints
from seqrl_ray.loops.local import LocalSession
from tests.unit.loops.offline_world import recipe_file, small_data


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_data(tmp_path_factory.mktemp("data") / "random")


def session(folder: Path, data: Path, *overrides: str, phases: str = "") -> LocalSession:
    return LocalSession(api.read_recipe(recipe_file(folder, data, phases=phases), overrides))


def run_out(running: LocalSession) -> dict[str, Any]:
    while not running.trainer.done:
        running.trainer.turn()
    return running.trainer.report()


OFFLINE = '[[phase]]\nkind = "offline"\nupdates = 22\n'
ALTERNATING = '[[phase]]\nkind = "alternating"\nupdates_per_episode = 3\n'


def test_a_collection_is_whole_episodes_and_says_where_it_is_from(data: Path) -> None:
    dataset = Dataset.open(data, verify=True)
    ends = dataset.columns["terminated"] | dataset.columns["truncated"]
    assert dataset.steps >= 600 and int(ends.sum()) == dataset.episodes
    assert (dataset.episode_seed >= 0).all()  # one stream per copy: every episode's seed is known
    assert dataset.meta["policy"] == "random" and "CartPole-v1" in dataset.meta["recipe"]


def test_a_collected_episode_is_what_its_seed_and_actions_give(data: Path) -> None:
    import gymnasium

    dataset, env = Dataset.open(data), gymnasium.make("CartPole-v1")
    for episode in (0, dataset.episodes - 1):
        start, rows = dataset.episode_start[episode], dataset.episode_rows[episode]
        obs, _ = env.reset(seed=int(dataset.episode_seed[episode]))
        for row in range(start, start + rows - 1):
            np.testing.assert_array_equal(obs.astype(np.float32), dataset.columns["obs"][row])
            obs, reward, over, _, _ = env.step(int(dataset.columns["action"][row]))
            assert reward == dataset.columns["reward"][row]
            assert over == dataset.columns["terminated"][row]
        np.testing.assert_array_equal(obs.astype(np.float32), dataset.columns["obs"][start + rows - 1])


def test_an_offline_run_takes_its_updates_and_nobody_acts(tmp_path: Path, data: Path) -> None:
    running = session(tmp_path, data, phases=OFFLINE)
    row = run_out(running)
    assert (row["updates"], row["env_steps"], row["episodes"]) == (22, 0, 0)  # draws of 4 would overshoot
    assert row["progress"] == 1.0
    running.close()


def test_online_begins_after_offline_and_counts_its_samples_from_there(tmp_path: Path, data: Path) -> None:
    phases = OFFLINE + '[[phase]]\nkind = "online"\n'
    running = session(tmp_path, data, "stop.env_steps=600", phases=phases)
    while running.trainer.offline:
        assert running.trainer.counters.env_steps == 0
        running.trainer.turn()
    assert running.trainer.learner.updates == 22 and running.trainer.progress == 0.5
    row = run_out(running)
    sampled, inserted = (row["updates"] - 22) * 8, running.trainer.counters.env_steps
    assert 0.5 * 0.5 * inserted < sampled < 2.0 * 0.5 * inserted  # half a sample per insert, data not counted
    running.close()


def test_what_acting_began_with_is_judged_beside_the_policy(tmp_path: Path, data: Path) -> None:
    recipe = recipe_file(tmp_path, data, phases=OFFLINE + ALTERNATING)
    keys = ("stop.env_steps=100", "actors.in_flight=1", "evaluation.episodes=5")
    result = api.train(recipe, keys, run_dir=tmp_path / "run", local=True, quiet=True)
    alone = recipe_file(tmp_path / "alone", data, phases=OFFLINE)
    offline = api.train(alone, keys[2:], run_dir=tmp_path / "offline", local=True, quiet=True)
    assert result.summary["baselines"]["pretrained"] == offline.summary["evaluation"]
    assert result.summary["paired"]["pretrained"]["return"]["n"] == 5
    assert "Against pretrained, paired on 5 seeds" in (tmp_path / "run" / "report.html").read_text()
    again = api.evaluate(tmp_path / "run")
    assert again["baselines"] == result.summary["baselines"]
    assert "pretrained" not in offline.summary["baselines"]  # nothing to compare with


def test_an_offline_phase_that_was_stopped_has_nothing_to_compare_with(tmp_path: Path, data: Path) -> None:
    recipe = recipe_file(tmp_path, data, phases=OFFLINE + ALTERNATING)
    keys = ("stop.env_steps=100", "stop.updates=10", "actors.in_flight=1")
    result = api.train(recipe, keys, run_dir=tmp_path / "run", local=True, quiet=True)
    assert set(result.summary["baselines"]) == {"random"} and result.summary["evaluation"]["return"]["n"] == 2


@pytest.mark.parametrize("phases", [OFFLINE + ALTERNATING, ALTERNATING])
def test_only_the_best_episodes_are_left_when_acting_begins(tmp_path: Path, data: Path, phases: str) -> None:
    keys = ("stop.env_steps=100", "actors.in_flight=1", "data.online_best_steps=150")
    running = session(tmp_path, data, *keys, "replay.eviction=fifo_episodes", phases=phases)
    dataset, shard = Dataset.open(data), running.trainer.shards["shared"]
    while running.trainer.offline:
        assert shard.store.used == dataset.rows  # offline all of it
        running.trainer.turn()
    shard.check()
    assert 150 - 61 < shard.store.used <= 150  # no more than the longest episode is missing
    best = np.sort(dataset.returns())[::-1]
    length = np.cumsum(best + 1)  # CartPole: an episode has as many decisions as its return, and a last row
    assert shard.store.used == length[np.searchsorted(length, 150, side="right") - 1]
    running.close()


def test_returns_are_learned_in_the_range_of_returns_to_go(tmp_path: Path, data: Path) -> None:
    running = session(tmp_path, data, "algorithm.gamma=0.5", phases=OFFLINE)
    low, high = running.trainer.learner.algorithms["shared"].learned()["return_range"]
    assert low == 1.0 and 1.9 < high <= 2.0  # the last decision's, and the sum of a long series of halves
    running.close()


def test_alternating_learns_so_often_per_episode(tmp_path: Path, data: Path) -> None:
    keys = ("stop.env_steps=400", "actors.in_flight=1")
    running = session(tmp_path, data, *keys, phases=OFFLINE + ALTERNATING)
    row = run_out(running)
    counters = running.trainer.counters
    assert counters.episodes > 5
    assert row["updates"] - 22 == 3 * counters.episodes - counters.owed_updates
    running.close()


@pytest.mark.parametrize("stop_at", [10, 40])
def test_stopped_in_either_phase_and_resumed_it_goes_on_bit_for_bit(
    tmp_path: Path, data: Path, stop_at: int
) -> None:
    keys = ("stop.env_steps=300", "actors.in_flight=1", "replay.sampler=prioritised")
    keys += ("data.online_best_steps=200", "replay.eviction=fifo_episodes")
    learned = []
    for stops in (False, True):
        folder = tmp_path / str(stops)
        running = session(folder, data, *keys, phases=OFFLINE + ALTERNATING)
        if stops:
            while running.trainer.learner.updates < stop_at:
                running.trainer.turn()
            running.save(folder / "checkpoints", {}, wait=True)
            running.close()
            recipe = api.read_recipe(recipe_file(folder, data, phases=OFFLINE + ALTERNATING), keys)
            running = LocalSession(recipe, resume=checkpoints.latest(folder / "checkpoints"))
        run_out(running)
        running.close()
        learned.append(running.trainer.learner.algorithms["shared"].learned())
    for name, values in learned[0].items():
        np.testing.assert_array_equal(values, learned[1][name], err_msg=name)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["data.source=nowhere"], "data.source='nowhere' is no folder"),
        (["env.id=Acrobot-v1"], "was made with obs"),
        (["replay.capacity_steps=100"], "replay.capacity_steps=100 is below"),
        (["replay.shards=2"], "only the learner's own shard"),
        (["replay.wiring=service"], "only the learner's own shard"),
        (["stop.env_steps=50"], "nothing else can spend it"),
        (["data.online_best_steps=9"], "episodes could not leave whole"),
        (["phase.0.updates=0"], "an offline phase ends after its updates"),
        (["phase.0.kind=online"], "Give updates to offline phases only"),
        (["phase.0.kind=sideways"], "phase.0.kind"),
    ],
)
def test_what_does_not_fit_is_one_clear_line(
    tmp_path: Path, data: Path, overrides: list[str], says: str
) -> None:
    recipe = recipe_file(tmp_path, data, phases=OFFLINE)
    with pytest.raises(RecipeError, match=says):
        api.train(recipe, overrides, run_dir=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


def test_untrained_policies_are_not_collected_with(tmp_path: Path, data: Path) -> None:
    with pytest.raises(RecipeError, match="random weights are nobody's policy"):
        api.collect("classic/cartpole", tmp_path / "set", steps=100, local=True, quiet=True)
    assert not (tmp_path / "set").exists()


def test_a_run_collects_the_data_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = recipe_file(tmp_path, Path("made_here"), phases=OFFLINE)
    more = f'[data]\ncollect = "{tmp_path}/random.toml"\ncollect_steps = 300\n'
    recipe.write_text(recipe.read_text().replace("[data]\n", more))
    result = api.train(recipe, run_dir="run", local=True, quiet=True)
    assert result.summary["status"] == "completed" and result.summary["updates"] == 22
    assert Dataset.open(tmp_path / "datasets" / "made_here").steps >= 300
    again = api.train(recipe, run_dir="run2", local=True, quiet=True)  # finds it now
    assert again.summary["updates"] == 22


def test_noise_replaces_so_many_actions(tmp_path: Path, data: Path) -> None:
    """With noise 1 nothing is left of the policy."""
    run = tmp_path / "run"
    api.train(recipe_file(tmp_path, data, phases=OFFLINE), run_dir=run, local=True, quiet=True)
    found = {}
    for noise in (0.0, 1.0):
        folder = tmp_path / f"noise{noise}"
        keys = {"steps": 400, "run": run, "noise": noise, "greedy": True}
        api.collect(tmp_path / "random.toml", folder, local=True, quiet=True, **keys)
        found[noise] = Dataset.open(folder)
    drawn = found[1.0].columns["action"][~found[1.0].columns["final"]].mean()
    assert 0.4 < drawn < 0.6
    assert found[0.0].meta["policy"] == str(run)


def test_a_run_is_resumed_without_its_dataset(tmp_path: Path) -> None:
    data = small_data(tmp_path / "data")
    recipe = recipe_file(tmp_path, data, phases=OFFLINE)
    api.train(recipe, ["stop.updates=10"], run_dir=tmp_path / "run", local=True, quiet=True)
    data.rename(tmp_path / "elsewhere")
    result = api.resume(tmp_path / "run", ["stop.updates=0"], local=True, quiet=True)
    assert result.summary["status"] == "completed" and result.summary["updates"] == 22
