"""A run's replay as a dataset: every whole episode and nothing else, of one shard or several, by command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from data_world import group, make_dataset

from seqrl_ray import api
from seqrl_ray.cli import main
from seqrl_ray.data import Dataset, DatasetWriter
from seqrl_ray.data.dataset import check_flags, trajectories
from seqrl_ray.data.of_replay import write_replay
from seqrl_ray.errors import CheckpointError, DataError
from seqrl_ray.loops import checkpoints
from seqrl_ray.recipe_replay import ReplaySettings
from seqrl_ray.replay import ReplayShard
from seqrl_ray.types import SampleSpec

SPEC = SampleSpec("windows", window_steps=3, returns=True, return_gamma=1.0)
LENGTHS = [3, 1, 7, 4, 2, 5]


def snapshot(folder, dataset, settings, spec, episodes, index=0):
    """A shard of some of a dataset's episodes, the last of them without its end, written to a folder."""
    shard = ReplayShard(dataset.group, spec, settings, seed=0, index=index)
    for number in episodes:
        (whole,) = trajectories(dataset, episodes=np.array([number]))
        if number == episodes[-1]:
            cut = whole.rows - 1
            columns = {name: column[:cut] for name, column in whole.columns.items()}
            whole = type(whole)(**{**vars(whole), "length": whole.length - 1, "columns": columns})
        shard.insert(whole)
    shard.begin_snapshot(folder).write_all()
    return folder


def written(folder, of, snapshots, spec, settings):
    with DatasetWriter(folder, of) as writer:
        left = write_replay(snapshots, spec, settings, writer)
    dataset = Dataset.open(folder, verify=True)
    check_flags(dataset)
    return dataset, left


def assert_has(dataset, source, episodes):
    """The dataset is these episodes of the source, in this order."""
    rows = np.concatenate([np.arange(source.episode_rows[n]) + source.episode_start[n] for n in episodes])
    for name, column in source.columns.items():
        np.testing.assert_array_equal(dataset.columns[name], column[rows], err_msg=name)
    np.testing.assert_array_equal(dataset.episode_return, source.episode_return[episodes])
    assert (dataset.episode_seed == -1).all()


@pytest.mark.parametrize(
    "of",
    [group(), group(masked=True), group("image", frame_stack=2), group(action="box")],
    ids=["vector", "masked", "stacked", "box"],
)
@pytest.mark.parametrize("eviction", ["fifo_steps", "fifo_episodes"])
def test_whole_episodes_come_back_as_they_were(tmp_path, of, eviction, monkeypatch):
    monkeypatch.setattr("seqrl_ray.data.of_replay.CHUNK_ROWS", 9)  # several chunks
    source = make_dataset(tmp_path / "source", LENGTHS, of=of)
    settings = ReplaySettings(capacity_steps=40, min_items=1, eviction=eviction)
    saved = snapshot(tmp_path / "saved", source, settings, SPEC, range(6))
    dataset, left = written(tmp_path / "set", of, [saved], SPEC, settings)
    assert dataset.group == of and left == 5  # the last one, which had not ended
    assert_has(dataset, source, range(5))


def test_an_episode_that_lost_its_beginning_is_left_out(tmp_path):
    source = make_dataset(tmp_path / "source", LENGTHS)
    settings = ReplaySettings(
        capacity_steps=21, min_items=1
    )  # of 27 rows the first 6: of the first two 4 + 2
    saved = snapshot(tmp_path / "saved", source, settings, SPEC, range(6))
    dataset, left = written(tmp_path / "set", source.group, [saved], SPEC, settings)
    assert_has(dataset, source, [2, 3, 4])
    assert left == 5
    tighter = ReplaySettings(capacity_steps=18, min_items=1)  # and 3 rows of the third
    saved = snapshot(tmp_path / "tight", source, tighter, SPEC, range(6))
    dataset, left = written(tmp_path / "less", source.group, [saved], SPEC, tighter)
    assert_has(dataset, source, [3, 4])
    assert left == 5 + 4


def test_shards_are_put_together_and_no_living_file_is_touched(tmp_path):
    source = make_dataset(tmp_path / "source", LENGTHS)
    settings = ReplaySettings(
        capacity_steps=80, min_items=1, shards=2, memory_bytes=0, memmap_folder=str(tmp_path / "columns")
    )
    saved = [
        snapshot(tmp_path / f"saved{i}", source, settings, SPEC, episodes, i)
        for i, episodes in enumerate([[0, 2, 4], [1, 3, 5]])
    ]
    before = {p: p.read_bytes() for p in (tmp_path / "columns").rglob("*.column")}
    dataset, left = written(tmp_path / "set", source.group, saved, SPEC, settings)
    assert before and {p: p.read_bytes() for p in (tmp_path / "columns").rglob("*.column")} == before
    assert sorted(dataset.episode_return) == sorted(source.episode_return[:4]) and left == 2 + 5
    assert not [p for p in tmp_path.iterdir() if p.name.startswith("tmp")]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    keys = ["stop.env_steps=1500", "algorithm.hidden=[8]", "replay.min_items=200", "evaluation.episodes=1"]
    api.train("classic/cartpole", keys, run_dir=folder, local=True, quiet=True)
    return folder


def test_a_runs_episodes_are_those_it_reported(run, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["data", "replay", str(run), str(tmp_path / "set")])
    assert not stop.value.code
    dataset = Dataset.open(tmp_path / "set", verify=True)
    (checkpoint,) = (run / "checkpoints").iterdir()
    steps = checkpoints.steps_of(checkpoint)
    left = steps - dataset.steps
    said = (
        f"{dataset.episodes} episodes, {dataset.steps:,} steps; {left} stored steps are of no whole episode"
    )
    assert capsys.readouterr().out == f"{tmp_path / 'set'}: {said}\n"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    played = [row["return"] for row in rows if row["kind"] == "episode"]
    assert sorted(dataset.episode_return) == sorted(played) and len(set(played)) > 5
    assert dataset.meta["policy"] == str(run) and "CartPole-v1" in dataset.meta["recipe"]
    assert dataset.meta["replay"] == {"checkpoint": checkpoint.name, "env_steps": steps}
    assert dataset.meta["notes"] == [f"{left} stored decisions are of no whole episode and were left out"]


def test_what_cannot_be_is_refused_and_leaves_nothing(run, tmp_path):
    with pytest.raises(DataError, match="exists: writing there would mix two datasets"):
        api.replay_data(run, tmp_path)
    empty = tmp_path / "empty"
    (empty / "checkpoints").mkdir(parents=True)
    for name in ("recipe.toml", "metrics.jsonl"):
        (empty / name).write_text((run / name).read_text())
    with pytest.raises(CheckpointError, match="holds no complete checkpoint"):
        api.replay_data(empty, tmp_path / "set")
    short = ["stop.env_steps=16", "algorithm.hidden=[8]", "evaluation.episodes=1", "actors.fragment_steps=1"]
    api.train("classic/cartpole", short, run_dir=tmp_path / "short", local=True, quiet=True)
    with pytest.raises(DataError, match="decisions and no whole episode: there is nothing to write"):
        api.replay_data(tmp_path / "short", tmp_path / "set")
    assert not Path(tmp_path / "set").exists()
