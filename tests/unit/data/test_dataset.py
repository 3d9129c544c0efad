"""The dataset folder: what is written is read back, mapped, checked; damage is named."""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest
from data_world import group, make_dataset, make_episode, make_episodes, rows_of, write
from hypothesis import given, settings
from hypothesis import strategies as st

from seqrl_ray.data import Dataset, DatasetWriter, obs_mean_std, select, trajectories
from seqrl_ray.data.dataset import check_flags
from seqrl_ray.errors import DataError

LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=12)


@given(
    lengths=LENGTHS,
    kind=st.sampled_from(["vector", "image", "scalars"]),
    action=st.sampled_from(["discrete", "box"]),
    masked=st.booleans(),
    frame_stack=st.sampled_from([1, 3]),
)
@settings(max_examples=25, deadline=None)
def test_what_is_written_is_read_back(tmp_path_factory, lengths, kind, action, masked, frame_stack):
    of = group(kind, action=action, masked=masked and action == "discrete", frame_stack=frame_stack)
    episodes = make_episodes(of, lengths)
    dataset = write(tmp_path_factory.mktemp("d") / "set", of, episodes, {"policy": "random"})
    check_flags(dataset)
    assert dataset.group == of
    assert dataset.meta == {"policy": "random"}
    assert (dataset.episodes, dataset.steps, dataset.rows) == (
        len(lengths),
        sum(lengths),
        sum(lengths) + len(lengths),
    )
    assert dataset.lengths().tolist() == lengths
    for number, episode in enumerate(episodes):
        stored = rows_of(dataset, number)
        for name, column in episode.columns.items():
            np.testing.assert_array_equal(stored[name][:-1], column)
            assert stored[name].dtype == dataset.columns[name].dtype
        np.testing.assert_array_equal(stored["obs"][-1], episode.final_obs)
        if of.masked:
            np.testing.assert_array_equal(stored["legal"][-1], episode.final_legal)
        assert stored["final"].tolist() == [False] * episode.steps + [True]
        assert not stored["terminated"][-1] and not stored["truncated"][-1] and stored["reward"][-1] == 0
        assert dataset.returns()[number] == episode.columns["reward"].sum()
        assert dataset.episode_seed[number] == (-1 if episode.seed is None else episode.seed)


@given(lengths=LENGTHS, cut=st.integers(0, 12))
@settings(max_examples=15, deadline=None)
def test_many_at_once_are_the_same_files(tmp_path_factory, lengths, cut):
    folder = tmp_path_factory.mktemp("d")
    of = group(masked=True)
    episodes = make_episodes(of, lengths)
    write(folder / "each", of, episodes)
    with DatasetWriter(folder / "many", of) as writer:
        for part in (episodes[:cut], episodes[cut:]):
            if part:
                writer.append_many(
                    {name: np.concatenate([e.columns[name] for e in part]) for name in part[0].columns},
                    np.array([e.steps for e in part]),
                    np.stack([e.final_obs for e in part]),
                    final_legal=np.stack([e.final_legal for e in part]),
                    seeds=np.array([-1 if e.seed is None else e.seed for e in part]),
                )
    for file in (folder / "each").iterdir():
        assert file.read_bytes() == (folder / "many" / file.name).read_bytes(), file.name


def test_columns_are_mapped_read_only_and_plain_npy(tmp_path):
    dataset = make_dataset(tmp_path / "set")
    for name, column in dataset.columns.items():
        assert isinstance(column, np.memmap), name
        assert not column.flags.writeable
        np.testing.assert_array_equal(np.load(tmp_path / "set" / f"{name}.npy", allow_pickle=False), column)
    fragment = next(trajectories(dataset))
    assert np.shares_memory(fragment.columns["obs"], dataset.columns["obs"])  # not copied on the way


def test_it_travels_by_its_path(tmp_path):
    dataset = make_dataset(tmp_path / "set", [200] * 20)
    sent = pickle.dumps(dataset)
    assert len(sent) < 1_000
    again = pickle.loads(sent)
    assert isinstance(again.columns["obs"], np.memmap)
    np.testing.assert_array_equal(again.columns["obs"], dataset.columns["obs"])


def test_the_manifest_is_strict_json(tmp_path):
    of = group(action="box")  # bounds are infinite
    make_dataset(tmp_path / "set", of=of)
    json.loads(
        (tmp_path / "set" / "manifest.json").read_text(),
        parse_constant=lambda name: pytest.fail(f"{name} is not JSON"),
    )
    assert Dataset.open(tmp_path / "set").group == of


# ------------------------------------------------------------------------------------------ what goes wrong


def flip_last_byte(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def edit(path, **changes):
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | changes))


def wrong_header(folder):
    """The right number of bytes, another dtype."""
    path = folder / "reward.npy"
    path.write_bytes(path.read_bytes().replace(b"'<f4'", b"'<i4'"))


def wrong_index(folder):
    path = folder / "episode_rows.npy"
    rows = np.load(path)
    np.save(path, rows[::-1])


DAMAGE = {
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "has no manifest.json: it is no dataset"),
    "no folder": (lambda f: os.rename(f, f.with_name("gone")), "has no manifest.json: it is no dataset"),
    "half a manifest": (
        lambda f: (f / "manifest.json").write_text((f / "manifest.json").read_text()[:90]),
        "manifest.json cannot be read",
    ),
    "no object": (lambda f: (f / "manifest.json").write_text("[1]"), "format=None of"),
    "another format": (
        lambda f: edit(f / "manifest.json", format="seqrl-ray dataset 2"),
        "format='seqrl-ray dataset 2' of .* is not 'seqrl-ray dataset 1'",
    ),
    "no meta": (lambda f: edit(f / "manifest.json", group={}), "group of manifest.json is incomplete"),
    "no files": (
        lambda f: edit(f / "manifest.json", files={}),
        "describes column 'obs' as None None, not float32",
    ),
    "no counts": (
        lambda f: (f / "manifest.json").write_text('{"format": "seqrl-ray dataset 1"}'),
        "lacks episodes, files, group, meta, rows, steps",
    ),
    "a column missing": (
        lambda f: (f / "obs.npy").unlink(),
        "obs.npy does not exist: the dataset lacks a column",
    ),
    "cut short": (
        lambda f: os.truncate(f / "obs.npy", 140),
        "obs.npy has 140 bytes, not 432: it was cut short",
    ),
    "no npy": (
        lambda f: (f / "obs.npy").write_bytes(b"x" * 432),
        "obs.npy is not a .npy file",
    ),
    "another dtype": (wrong_header, "reward.npy holds int32 .*, not float32"),
    "an index that lies": (wrong_index, "episode_start and episode_rows do not cut the 19 rows"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named_in_one_line(tmp_path, name):
    damage, message = DAMAGE[name]
    make_dataset(tmp_path / "set")
    damage(tmp_path / "set")
    with pytest.raises(DataError, match=message) as error:
        Dataset.open(tmp_path / "set")
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 2


def test_changed_values_are_found_by_the_hash(tmp_path):
    make_dataset(tmp_path / "set")
    flip_last_byte(tmp_path / "set" / "obs.npy")
    Dataset.open(tmp_path / "set")  # sizes agree
    with pytest.raises(DataError, match=r"obs\.npy has another sha256"):
        Dataset.open(tmp_path / "set", verify=True)


def test_flags_that_contradict_the_index_are_found(tmp_path):
    make_dataset(tmp_path / "set", [3, 2])
    path = tmp_path / "set" / "terminated.npy"
    data = bytearray(path.read_bytes())
    data[-7] = 1  # the first row
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match="a flag stands where no episode ends"):
        check_flags(Dataset.open(tmp_path / "set"))


def test_an_existing_folder_is_refused(tmp_path):
    make_dataset(tmp_path / "set")
    before = (tmp_path / "set" / "manifest.json").read_bytes()
    with pytest.raises(DataError, match="exists: writing there would mix two datasets"):
        DatasetWriter(tmp_path / "set", group())
    assert (tmp_path / "set" / "manifest.json").read_bytes() == before


def test_an_error_leaves_nothing(tmp_path):
    with pytest.raises(DataError, match="no episode was written"), DatasetWriter(tmp_path / "empty", group()):
        pass
    with pytest.raises(KeyError), DatasetWriter(tmp_path / "broken", group()) as writer:
        episode = make_episodes(group(), [3])[0]
        writer.append(episode.columns, episode.final_obs)
        raise KeyError
    with pytest.raises(DataError, match="meta cannot be written as JSON"):
        DatasetWriter(tmp_path / "meta", group(), meta={"x": float("nan")})
    assert not list(tmp_path.iterdir())


def test_a_kill_while_writing_leaves_no_dataset(tmp_path):
    code = (
        "import os, sys\n"
        "sys.path.insert(0, sys.argv[2])\n"
        "from data_world import group, make_episodes\n"
        "from seqrl_ray.data import DatasetWriter\n"
        "writer = DatasetWriter(sys.argv[1], group())\n"
        "for episode in make_episodes(group(), [50] * 50):\n"
        "    writer.append(episode.columns, episode.final_obs)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    here = os.path.dirname(__file__)
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "set"), here], check=False)
    assert done.returncode == -9
    assert (tmp_path / "set" / "obs.npy").is_file()
    with pytest.raises(DataError, match="it is no dataset, or its writing was interrupted"):
        Dataset.open(tmp_path / "set")


def spoiled(name, change):
    episode = make_episode(group(), 4, np.random.default_rng(0), terminates=True)
    column = episode.columns[name].copy()
    return episode, episode.columns | {name: change(column)}


def put(row, value):
    def change(column):
        column[row] = value
        return column

    return change


REFUSED = {
    "a NaN reward": ("reward", put(2, np.nan), "reward of episode 1, step 2 is not finite"),
    "an infinite observation": ("obs", put((3, 0), np.inf), "obs of episode 1, step 3 is not finite"),
    "an action too large": ("action", put(1, 3), r"action of episode 1, step 1 is not in \[0, 3\)"),
    "a negative action": ("action", put(0, -1), r"action of episode 1, step 0 is not in \[0, 3\)"),
    "an early end": ("truncated", put(1, True), "episode 1, step 1 is set before the last decision"),
    "no end": ("terminated", put(3, False), "episode 1, step 3 is not set at the last decision"),
    "another shape": ("obs", lambda c: c[:, :2], r"column 'obs' has shape \(4, 2\), not \(4, 4\)"),
    "too few": ("action", lambda c: c[:-1], r"column 'action' has shape \(3,\), not \(4,\)"),
    "another kind": (
        "action",
        lambda c: c + 0.5,
        "column 'action' has dtype float64, which does not fit int64",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_do_harm_is_refused(tmp_path, name):
    column, change, message = REFUSED[name]
    good = make_episodes(group(), [2])[0]
    episode, columns = spoiled(column, change)
    writer = DatasetWriter(tmp_path / "set", group())
    writer.append(good.columns, good.final_obs)
    with pytest.raises(DataError, match=message):
        writer.append(columns, episode.final_obs)
    writer.append(good.columns, good.final_obs)  # a refused episode leaves no trace
    writer.close()
    assert Dataset.open(tmp_path / "set", verify=True).lengths().tolist() == [2, 2]


def test_a_missing_column_and_an_empty_episode_are_refused(tmp_path):
    writer = DatasetWriter(tmp_path / "set", group())
    episode = make_episodes(group(), [2])[0]
    with pytest.raises(DataError, match="column 'action' is missing"):
        writer.append({n: c for n, c in episode.columns.items() if n != "action"}, episode.final_obs)
    with pytest.raises(DataError, match="are not all at least 1"):
        writer.append({n: c[:0] for n, c in episode.columns.items()}, episode.final_obs)


# ----------------------------------------------------------------------------------------- choosing episodes


def slow_percent_bc(returns, lengths, share):
    """The rule as kzl/decision-transformer writes it (gym/experiment.py)."""
    order = np.argsort(returns, kind="stable")
    budget = max(int(share * sum(lengths)), 1)
    count, steps, at = 1, lengths[order[-1]], len(returns) - 2
    while at >= 0 and steps + lengths[order[at]] <= budget:
        steps += lengths[order[at]]
        count += 1
        at -= 1
    return sorted(order[-count:].tolist())


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=20), share=st.floats(0.01, 1.0))
@settings(max_examples=30, deadline=None)
def test_top_share_is_the_percent_bc_rule(tmp_path_factory, lengths, share):
    dataset = make_dataset(tmp_path_factory.mktemp("d") / "set", lengths)
    returns = dataset.returns() + np.arange(len(lengths), 0, -1) * 1e-9  # no ties: their order is ours
    assert select(dataset, top_share=share).tolist() == slow_percent_bc(returns, lengths, share)


def test_filters_apply_one_after_the_other(tmp_path):
    dataset = make_dataset(tmp_path / "set", [5] * 30)
    returns = dataset.returns()
    best = set(np.argsort(-returns, kind="stable")[:4].tolist())
    assert set(select(dataset, top_episodes=4).tolist()) == best
    assert select(dataset, top_episodes=4, max_episodes=2).tolist() == sorted(best)[:2]
    assert select(dataset, min_return=0.0).tolist() == np.flatnonzero(returns >= 0).tolist()
    above = int((returns >= 0).sum())
    assert select(dataset, min_return=0.0, top_share=0.5).size == max(1, above // 2)
    assert select(dataset).tolist() == list(range(30))
    for arguments, message in (
        ({"top_share": 0.0}, r"top_share=0.0 is not in \(0, 1\]"),
        ({"top_episodes": 0}, "top_episodes=0 is below 1"),
        ({"max_episodes": -1}, "max_episodes=-1 is below 1"),
        ({"min_return": 1e9}, r"min_return=1000000000.0 is above the best return"),
    ):
        with pytest.raises(DataError, match=message):
            select(dataset, **arguments)


@given(
    lengths=LENGTHS,
    kind=st.sampled_from(["vector", "image"]),
    chunk=st.sampled_from([1, 100, 10**7]),
    data=st.data(),
)
@settings(max_examples=25, deadline=None)
def test_mean_and_std_are_over_the_decisions_chosen(tmp_path_factory, lengths, kind, chunk, data):
    of = group(kind)
    dataset = make_dataset(tmp_path_factory.mktemp("d") / "set", lengths, of=of)
    numbers = np.array(sorted(data.draw(st.sets(st.integers(0, len(lengths) - 1), min_size=1))))
    from unittest import mock

    with mock.patch("seqrl_ray.data.dataset._STATISTICS_BYTES", chunk):
        mean, std = obs_mean_std(dataset, numbers)
    rows = np.concatenate([rows_of(dataset, n)["obs"][:-1] for n in numbers]).astype(np.float64)
    assert mean.dtype == std.dtype == np.float64 and mean.shape == of.obs.shape
    np.testing.assert_allclose(mean, rows.mean(axis=0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(std, rows.std(axis=0) + 1e-6, rtol=1e-9, atol=1e-12)


def test_a_large_mean_costs_no_digits(tmp_path):
    of = group("scalars")
    episodes = make_episodes(of, [500])
    episodes[0].columns["obs"][:, 0] = 1e6 + np.arange(500) % 2
    dataset = write(tmp_path / "set", of, episodes)
    _, std = obs_mean_std(dataset)
    assert std[0] == pytest.approx(0.5 + 1e-6, rel=1e-12)


def test_episodes_that_do_not_exist_are_refused(tmp_path):
    dataset = make_dataset(tmp_path / "set")
    for wrong in ([4], [-1], [1, 1], []):
        with pytest.raises(DataError, match=re.escape(f"episodes={wrong}")):
            next(trajectories(dataset, episodes=np.array(wrong, np.int64)))
