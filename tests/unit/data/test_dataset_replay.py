"""A dataset in a replay shard: every window drawn is the one a slow loop cuts from the episodes."""

from __future__ import annotations

import numpy as np
from data_world import group, make_dataset, rows_of
from hypothesis import given, settings
from hypothesis import strategies as st

from seqrl_ray.data import select, trajectories
from seqrl_ray.recipe_replay import ReplaySettings
from seqrl_ray.replay import ReplayShard
from seqrl_ray.types import SampleSpec


def shard(of, spec, **keys):
    return ReplayShard(of, spec, ReplaySettings(**({"capacity_steps": 5_000, "min_items": 1} | keys)), 0)


def fill(into, dataset, **arguments):
    for fragment in trajectories(dataset, **arguments):
        into.insert(fragment)
    into.check()
    return into


def slow_window(dataset, number, t, steps, frames):
    """One window as the paper draws it, from lists."""
    stored = rows_of(dataset, number)
    life = len(stored["reward"]) - 1
    blank = np.zeros_like(stored["obs"][0])

    def seen(k):
        if frames == 1:
            return stored["obs"][k]
        return np.stack([stored["obs"][j] if j >= 0 else blank for j in range(k - frames + 1, k + 1)])

    window = {"obs": [], "action": [], "reward": [], "return_to_go": [], "valid": [], "timestep": []}
    for k in range(t, t + steps):
        real = k < life
        window["valid"].append(real)
        window["timestep"].append(k if real else 0)
        window["obs"].append(seen(k) if real else np.zeros_like(seen(0)))
        window["action"].append(stored["action"][k] if real else np.zeros_like(stored["action"][0]))
        window["reward"].append(stored["reward"][k] if real else 0.0)
        window["return_to_go"].append(sum(stored["reward"][k:life].tolist()) if real else 0.0)
    return {name: np.array(values) for name, values in window.items()} | {
        "next_obs": seen(min(t + steps, life))
    }


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    chunk_rows=st.sampled_from([1, 13, 1_000]),
    frame_stack=st.sampled_from([1, 3]),
    action=st.sampled_from(["discrete", "box"]),
    data=st.data(),
)
@settings(max_examples=25, deadline=None)
def test_drawn_windows_are_those_of_a_slow_loop(
    tmp_path_factory, lengths, chunk_rows, frame_stack, action, data
):
    of = group(frame_stack=frame_stack, action=action)
    dataset = make_dataset(tmp_path_factory.mktemp("d") / "set", lengths, of=of)
    numbers = np.array(data.draw(st.permutations(range(len(lengths)))))[
        : data.draw(st.integers(1, len(lengths)))
    ]
    into = fill(
        shard(of, SampleSpec("windows", window_steps=4, returns=True)),
        dataset,
        episodes=numbers,
        chunk_rows=chunk_rows,
    )
    assert into.items == dataset.lengths()[numbers].sum()
    drawn = into.sample(1, 40)
    by_obs = {rows_of(dataset, n)["obs"][t].tobytes(): (n, t) for n in numbers for t in range(lengths[n])}
    for b in range(40):
        first = drawn.obs[0, b, 0] if frame_stack == 1 else drawn.obs[0, b, 0, -1]
        number, t = by_obs[first.tobytes()]
        for name, values in slow_window(dataset, number, t, 4, frame_stack).items():
            np.testing.assert_array_equal(getattr(drawn, name)[0, b], values, err_msg=name)


def test_ends_keep_their_kind(tmp_path):
    dataset = make_dataset(tmp_path / "set", [3] * 20, of=group(masked=True))
    drawn = fill(shard(dataset.group, SampleSpec("transitions", gamma=0.5)), dataset).sample(1, 200)
    assert {0.0, 0.5} == set(np.unique(drawn.discount_t))
    kinds = np.array([rows_of(dataset, n)["terminated"].any() for n in range(20)])
    assert kinds.any() and not kinds.all()
    assert drawn.legal_t is not None and drawn.legal_t.shape == (1, 200, 3)


def test_fragments_are_whole_episodes_and_inserting_twice_changes_nothing(tmp_path):
    dataset = make_dataset(tmp_path / "set", [7, 1, 3, 20, 2, 2, 2])
    fragments = list(trajectories(dataset, chunk_rows=10, policy_id="other", writer="w"))
    assert [f.rows for f in fragments] == [10, 4, 21, 9]
    assert [f.episode.tolist() for f in fragments] == [[0, 1], [2], [3], [4, 5, 6]]
    assert {(f.policy_id, f.writer, f.incarnation, f.weights, f.env_steps) for f in fragments} == {
        ("other", "w", 0, (0, 0), 0)
    }
    into = fill(shard(dataset.group, SampleSpec("transitions")), dataset)
    held = into.stats()
    for other in ({}, {"chunk_rows": 1}, {"episodes": np.array([5, 3])}):  # a stream's name is its episode's
        fill(into, dataset, **other)
    assert into.stats().rows == held.rows and into.stats().inserted_rows == held.inserted_rows


def test_more_episodes_than_lanes(tmp_path):
    from unittest import mock

    dataset = make_dataset(tmp_path / "set", [2] * 50)
    with mock.patch("seqrl_ray.data.dataset.LANES", 8):
        into = fill(
            shard(dataset.group, SampleSpec("windows", window_steps=2, returns=True)), dataset, chunk_rows=40
        )
    assert into.items == 100


def test_the_best_share_fills_a_shard_that_drops_the_worst_first(tmp_path):
    dataset = make_dataset(tmp_path / "set", [5] * 40)
    spec = SampleSpec("windows", window_steps=3, returns=True)
    into = fill(
        shard(dataset.group, spec, eviction="lowest_return_first", capacity_steps=6 * 10),
        dataset,
        episodes=select(dataset, top_episodes=10),
    )
    assert into.items == 50
    drawn = into.sample(1, 300)
    starts = drawn.return_to_go[0, :, 0][drawn.timestep[0, :, 0] == 0]
    assert starts.min() >= np.sort(dataset.returns())[-10]
