"""Plain files in, tables out: what is kept, what is dropped, and that it is said."""

from __future__ import annotations

import json
import sys

import h5py
import numpy as np
import pyarrow as pa
import pytest
from data_world import group, make_dataset, make_episodes, rows_of, write
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from seqrl_ray.data.files import import_hdf5, import_npz
from seqrl_ray.data.manifest import group_from_json
from seqrl_ray.data.tables import export_table
from seqrl_ray.errors import DataError, EnvError

IMPORTS = {"hdf5": import_hdf5, "npz": import_npz}


def save(path, arrays):
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        with h5py.File(path, "w") as file:
            for name, values in arrays.items():
                file[name] = values
    return path


def flat(lengths, ends, seed=0):
    """A D4RL file of episodes; `ends` says of each: terminal, timeout, both, or none (an unfinished tail)."""
    rng = np.random.default_rng(seed)
    rows = sum(lengths)
    arrays = {
        "observations": rng.normal(size=(rows, 3)),
        "actions": rng.uniform(-1, 1, (rows, 2)),
        "rewards": rng.normal(size=rows),
        "terminals": np.zeros(rows, bool),
        "timeouts": np.zeros(rows, bool),
        "next_observations": rng.normal(size=(rows, 3)),
    }
    stop = np.cumsum(lengths)
    for at, end in zip(stop - 1, ends, strict=True):
        arrays["terminals"][at] = end in ("terminal", "both")
        arrays["timeouts"][at] = end in ("timeout", "both")
    for first, last in zip(stop - lengths, stop, strict=True):
        arrays["next_observations"][first : last - 1] = arrays["observations"][first + 1 : last]
    return arrays


def slow(lengths, ends, arrays, known):
    """The table of `files.py`, one episode at a time."""
    episodes, at = [], 0
    for steps, end in zip(lengths, ends, strict=True):
        rows = {name: values[at : at + steps] for name, values in arrays.items()}
        at += steps
        final = rows["next_observations"][-1] if known else rows["observations"][-1]
        if not known and end == "none":
            continue
        if not known and end == "timeout":
            rows = {name: values[:-1] for name, values in rows.items()}
        if len(rows["rewards"]) == 0:
            continue
        episodes.append((rows, final, end in ("terminal", "both"), end in ("timeout", "both", "none")))
    return episodes


@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=10),
    known=st.booleans(),
    unfinished=st.booleans(),
    at_once=st.sampled_from([1, 400, 10**8]),
    kind=st.sampled_from(["hdf5", "npz"]),
    data=st.data(),
)
@settings(max_examples=40, deadline=None)
def test_d4rl_layout(tmp_path_factory, lengths, known, unfinished, at_once, kind, data):
    from unittest import mock

    folder = tmp_path_factory.mktemp("d")
    ends = data.draw(
        st.lists(
            st.sampled_from(["terminal", "timeout", "both"]), min_size=len(lengths), max_size=len(lengths)
        )
    )
    if unfinished:
        ends[-1] = "none"
    arrays = flat(lengths, ends)
    if not known:
        del arrays["next_observations"]
    path = save(folder / f"data.{kind}", arrays)
    expected = slow(lengths, ends, arrays, known)
    with mock.patch("seqrl_ray.data.files._AT_ONCE_BYTES", at_once):
        if not expected:
            with pytest.raises(DataError, match="holds no episode that can be kept"):
                IMPORTS[kind](path, folder / "ours")
            return
        ours = IMPORTS[kind](path, folder / "ours")
    assert ours.episodes == len(expected)
    for number, (rows, final, terminated, truncated) in enumerate(expected):
        stored = rows_of(ours, number)
        np.testing.assert_array_equal(stored["obs"][:-1], rows["observations"].astype(np.float32))
        np.testing.assert_array_equal(stored["obs"][-1], final.astype(np.float32))
        np.testing.assert_array_equal(stored["action"][:-1], rows["actions"].astype(np.float32))
        np.testing.assert_array_equal(stored["reward"][:-1], rows["rewards"].astype(np.float32))
        assert (stored["terminated"][-2], stored["truncated"][-2]) == (terminated, truncated)


def test_what_is_dropped_or_guessed_is_said(tmp_path):
    lengths, ends = [3, 4, 1, 2, 5], ["terminal", "timeout", "timeout", "both", "none"]
    arrays = flat(lengths, ends)
    ours = import_hdf5(save(tmp_path / "known.hdf5", arrays), tmp_path / "known")
    guess = "The file has no action space: the values make it [-1.0, 1.0]."
    assert ours.meta["notes"] == [guess, "Rows without an end, taken as a truncated episode: 5."]
    assert ours.meta["source"] == {"kind": "hdf5", "file": "known.hdf5"}
    del arrays["next_observations"]
    ours = import_hdf5(save(tmp_path / "unknown.hdf5", arrays), tmp_path / "unknown")
    assert ours.meta["notes"] == [
        guess,
        "Rows without an end and without next_observations, dropped: 5.",
        "Truncated episodes without next_observations, whose last decision was dropped and gives the final "
        "observation: 1.",
        "Truncated episodes of one decision without next_observations, dropped: 1.",
        "Terminated episodes without next_observations, whose last observation stands for the final one: 2.",
    ]
    assert ours.lengths().tolist() == [3, 3, 2]


def test_infos_and_metadata_are_left_out(tmp_path):
    path = save(tmp_path / "a.hdf5", flat([3], ["terminal"]))
    with h5py.File(path, "a") as file:
        file["infos/qpos"] = np.zeros((7, 2))
        file["metadata/algorithm"] = "SAC"
    assert import_hdf5(path, tmp_path / "ours").steps == 3


def stable_baselines(lengths, actions, seed=0):
    rng = np.random.default_rng(seed)
    rows, starts = sum(lengths), np.cumsum(lengths) - lengths
    return {
        "obs": rng.normal(size=(rows, 4)),
        "actions": actions(rng, rows),
        "rewards": np.ones((rows, 1)),
        "episode_starts": np.isin(np.arange(rows), starts),
        "episode_returns": np.array(lengths, float),
    }


def test_episode_starts(tmp_path):
    lengths = [20, 500, 3]
    arrays = stable_baselines(lengths, lambda rng, rows: rng.integers(0, 2, (rows, 1)))
    path = save(tmp_path / "expert.npz", arrays)
    ours = import_npz(path, tmp_path / "guessed")
    assert ours.lengths().tolist() == lengths and ours.returns().tolist() == lengths
    assert ours.columns["terminated"].sum() == 3 and ours.columns["truncated"].sum() == 0
    assert ours.group.action.n == 2 and "all count as terminated" in " ".join(ours.meta["notes"])
    np.testing.assert_array_equal(rows_of(ours, 1)["action"][:-1], arrays["actions"][20:520, 0])

    named = import_npz(path, tmp_path / "named", env="CartPole-v1")  # its limit is 500 steps
    assert named.lengths().tolist() == [20, 499, 3]
    assert named.columns["terminated"].sum() == 2 and named.columns["truncated"].sum() == 1
    np.testing.assert_array_equal(rows_of(named, 1)["obs"][-1], arrays["obs"][519].astype(np.float32))
    assert named.meta["env"] == "CartPole-v1" and json.loads(named.meta["env_spec"])["id"] == "CartPole-v1"
    assert named.group.obs.high > 4  # its bounds, not a guess


def test_rows_before_the_first_start_are_dropped(tmp_path):
    arrays = stable_baselines([2, 3], lambda rng, rows: rng.uniform(-2, 2, rows))
    arrays["episode_starts"][0] = False
    ours = import_npz(save(tmp_path / "a.npz", arrays), tmp_path / "ours")
    assert ours.lengths().tolist() == [3]
    assert "Rows before the first episode start, dropped: 2." in ours.meta["notes"]
    assert ours.group.action.high == (np.inf,) and ours.columns["action"].shape == (4, 1)


def test_images_stay_uint8(tmp_path):
    arrays = flat([3, 2], ["terminal", "timeout"])
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 6), np.uint8)
    arrays |= {"observations": images, "next_observations": images[::-1], "actions": np.arange(5)}
    ours = import_hdf5(save(tmp_path / "a.hdf5", arrays), tmp_path / "ours")
    assert ours.columns["obs"].dtype == np.uint8 and ours.group.obs.high == 255.0
    np.testing.assert_array_equal(rows_of(ours, 0)["obs"][:-1], images[:3])


def without(name):
    return lambda arrays: arrays.pop(name)


def put(name, values):
    return lambda arrays: arrays.update({name: values})


WRONG = {
    "no rewards": (without("rewards"), None, "has no array 'rewards', it has actions, next_observations"),
    "no timeouts": (
        without("timeouts"),
        None,
        "has no array 'timeouts'.*cut by a time limit would be joined",
    ),
    "other lengths": (put("rewards", np.zeros(4)), None, "has arrays of different lengths, or none"),
    "no rows": (lambda a: a.update({n: v[:0] for n, v in a.items()}), None, "different lengths, or none"),
    "a NaN": (put("rewards", np.full(5, np.nan)), None, "reward of episode 0, step 0 is not finite"),
    "negative actions": (
        put("actions", np.arange(5) - 1),
        None,
        r"Name the environment they are of \(--env\)",
    ),
    "ids for observations": (
        put("observations", np.arange(5)),
        None,
        r"how many there are is not in the file",
    ),
    "no such environment": (lambda a: None, "CartPole-v9", "env='CartPole-v9' cannot be made"),
    "another environment": (
        lambda a: None,
        "CartPole-v1",
        r"CartPole-v1: a batch of Box.* has shape \(5, 3\)",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_imported_is_named(tmp_path, name):
    change, env, message = WRONG[name]
    arrays = flat([3, 2], ["terminal", "timeout"])
    change(arrays)
    for kind, read in IMPORTS.items():
        path = save(tmp_path / f"a.{kind}", dict(arrays))
        with pytest.raises((DataError, EnvError), match=message) as error:
            read(path, tmp_path / "ours", env=env)
        assert "\n" not in str(error.value)
        assert not (tmp_path / "ours").exists()


def test_files_that_are_none_are_named(tmp_path):
    (tmp_path / "a").write_bytes(b"not a file of either kind")
    np.save(tmp_path / "one.npy", np.zeros(3))
    np.savez(tmp_path / "pickled.npz", rewards=np.array([{}], object))
    arrays = flat([3], ["terminal"])
    for kind in IMPORTS:
        path = save(tmp_path / f"short.{kind}", arrays)
        path.write_bytes(path.read_bytes()[:-200])
    cases = [(read, name) for read in IMPORTS.values() for name in ("a", "missing")]
    cases += [(import_npz, name) for name in ("one.npy", "pickled.npz", "short.npz")]
    for read, name in [*cases, (import_hdf5, "short.hdf5")]:
        with pytest.raises(DataError, match="cannot be read") as error:
            read(tmp_path / name, tmp_path / "ours")
        assert "\n" not in str(error.value)


def test_without_h5py_one_line_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(DataError, match="Run: pip install h5py"):
        import_hdf5(tmp_path / "a", tmp_path / "ours")


# ----------------------------------------------------------------------------------------------------- tables


def read_table(path, table_format):
    return parquet.read_table(path) if table_format == "parquet" else pa.ipc.open_file(path).read_all()


@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=8),
    kind=st.sampled_from(["vector", "image"]),
    action=st.sampled_from(["discrete", "box"]),
    masked=st.booleans(),
    at_once=st.sampled_from([1, 300, 10**8]),
    table_format=st.sampled_from(["parquet", "arrow"]),
)
@settings(max_examples=30, deadline=None)
def test_a_table_has_one_row_per_decision(
    tmp_path_factory, lengths, kind, action, masked, at_once, table_format
):
    from unittest import mock

    folder = tmp_path_factory.mktemp("d")
    of = group(kind, action=action, masked=masked and action == "discrete")
    ours = write(folder / "ours", of, make_episodes(of, lengths), {"policy": "random"})
    with mock.patch("seqrl_ray.data.tables._AT_ONCE_BYTES", at_once):
        path = export_table(ours, folder / "out" / "table", table_format)
    assert [p.name for p in path.parent.iterdir()] == ["table"]
    table = read_table(path, table_format)
    assert table.num_rows == ours.steps
    assert table["episode"].to_pylist() == np.repeat(np.arange(len(lengths)), lengths).tolist()
    assert table["step"].to_pylist() == [t for steps in lengths for t in range(steps)]
    seeds = [None if seed < 0 else seed for seed in ours.episode_seed.tolist()]
    assert table["seed"].to_pylist() == [
        seed for seed, steps in zip(seeds, lengths, strict=True) for _ in range(steps)
    ]
    decision = ~ours.columns["final"]
    for name in ours.columns:
        if name == "final":
            continue
        expected = ours.columns[name][decision]
        if expected.ndim > 1:
            assert pa.types.is_fixed_size_list(table.schema.field(name).type)
            assert json.loads(table.schema.field(name).metadata[b"shape"]) == list(expected.shape[1:])
            expected = expected.reshape(len(expected), -1)
        assert table[name].to_pylist() == expected.tolist()
    finals = table["final_obs"].to_pylist()
    ends = np.cumsum(lengths) - 1
    assert [n for n, value in enumerate(finals) if value is not None] == ends.tolist()
    last = ours.columns["obs"][ours.columns["final"]]
    assert [finals[n] for n in ends] == last.reshape(len(last), -1).tolist()
    described = json.loads(table.schema.metadata[b"seqrl"])
    assert group_from_json(described["group"]) == of and described["meta"] == {"policy": "random"}


def test_a_table_is_not_overwritten(tmp_path):
    ours = make_dataset(tmp_path / "ours")
    export_table(ours, tmp_path / "t.parquet", "parquet")
    with pytest.raises(DataError, match=r"t\.parquet exists"):
        export_table(ours, tmp_path / "t.parquet", "parquet")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written"):
        export_table(ours, tmp_path / "file" / "t.arrow", "arrow")
