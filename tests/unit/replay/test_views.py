"""What leaves a shard, against slow loops in the notation of the papers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from replay_world import (
    VALUE,
    action_of,
    legal_of,
    life,
    name_of,
    obs_of,
    reward_of,
    shard,
    terminates,
    trajectory,
)

from seqrl_ray.replay import views
from seqrl_ray.replay.items import discounted_sums
from seqrl_ray.types import ColumnSpec, SampleSpec


def fill(s, *, poison=False, episodes=6, chunk=4):
    """Insert whole episodes of 4 slots, `chunk` rows of each slot at a time, so that streams interleave."""
    for episode in range(episodes):
        for offset in range(0, 12, chunk):
            fragment = trajectory(
                [(slot, episode, offset, chunk) for slot in range(4)], weights=(7, episode), poison=poison
            )
            if fragment.rows:
                s.insert(fragment)


def everything(s):
    """Every live item once, through the view: [1, M]."""
    rows = s.sampler.rows()
    ones = np.ones((1, rows.size))
    read = views.transitions if s.spec.view == "transitions" else views.windows
    batch = read(s.store, s.spec, rows, ones, ones.astype(np.float32), s.sample(1, 1).ids)
    return batch, [name_of(s.store.columns["obs"][row]) for row in rows]


def stacked(key, t, frames):
    if frames == 1:
        return obs_of(key, t)
    return np.stack([obs_of(key, i) if i >= 0 else np.zeros(4) for i in range(t - frames + 1, t + 1)])


@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("n", [1, 2, 5, 12])
def test_n_step_transitions(n, frames):
    gamma = 0.9
    s = shard(
        SampleSpec("transitions", n_step=n, gamma=gamma, extra=(VALUE,)), frame_stack=frames, masked=True
    )
    fill(s)
    batch, names = everything(s)
    assert len(names) == s.items == sum(life(slot, episode) for slot in range(4) for episode in range(6))
    for i, (key, t) in enumerate(names):
        _, _, slot, episode = key
        end = life(slot, episode)
        m = min(n, end - t)
        total = sum(gamma**k * float(reward_of(slot, episode, t + k)) for k in range(m))
        discount = 0.0 if t + m == end and terminates(slot, episode) else gamma**m
        assert batch.reward_t[0, i] == pytest.approx(total, abs=1e-5)
        assert batch.discount_t[0, i] == pytest.approx(discount, abs=1e-6)
        np.testing.assert_array_equal(batch.obs_tm1[0, i], stacked(key, t, frames))
        np.testing.assert_array_equal(batch.obs_t[0, i], stacked(key, t + m, frames))
        np.testing.assert_array_equal(batch.legal_tm1[0, i], legal_of(slot, episode, t))
        np.testing.assert_array_equal(batch.legal_t[0, i], legal_of(slot, episode, t + m))
        np.testing.assert_array_equal(batch.extra["value"][0, i], [slot, episode, t])
        assert batch.action_tm1[0, i] == action_of(slot, episode, t)
        assert batch.weights_counter[0, i] == episode


@pytest.mark.parametrize("frames", [1, 2])
@pytest.mark.parametrize(("steps", "period", "burn_in"), [(1, 1, 0), (4, 1, 0), (5, 3, 2), (12, 2, 1)])
@pytest.mark.parametrize("returns", [False, True])
def test_windows(steps, period, burn_in, returns, frames):
    gamma = 0.8
    spec = SampleSpec(
        "windows",
        window_steps=steps,
        period_steps=period,
        burn_in_steps=burn_in,
        returns=returns,
        return_gamma=gamma,
        extra=(VALUE,),
    )
    s = shard(spec, frame_stack=frames, masked=True)
    fill(s)
    batch, names = everything(s)
    starts = [t for slot in range(4) for episode in range(6) for t in range(0, life(slot, episode), period)]
    assert len(names) == s.items == len(starts)
    for i, (key, first) in enumerate(names):
        _, _, slot, episode = key
        end = life(slot, episode)
        rewards = [float(reward_of(slot, episode, t)) for t in range(end)]
        for k in range(steps):
            t = first + k
            inside = t < end
            assert batch.valid[0, i, k] == inside
            assert batch.learn[0, i, k] == (inside and k >= burn_in)
            assert batch.is_first[0, i, k] == (t == 0)
            assert batch.terminated[0, i, k] == (t == end - 1 and terminates(slot, episode))
            assert batch.truncated[0, i, k] == (t == end - 1 and not terminates(slot, episode))
            assert batch.timestep[0, i, k] == (t if inside else 0)
            assert batch.action[0, i, k] == (action_of(slot, episode, t) if inside else 0)
            assert batch.reward[0, i, k] == (rewards[t] if inside else 0.0)
            expected = stacked(key, t, frames) if inside else np.zeros(batch.obs.shape[3:])
            np.testing.assert_array_equal(batch.obs[0, i, k], expected)
            np.testing.assert_array_equal(
                batch.legal[0, i, k], legal_of(slot, episode, t) if inside else [False] * 3
            )
            if returns:
                to_go = sum(gamma ** (j - t) * rewards[j] for j in range(t, end)) if inside else 0.0
                assert batch.return_to_go[0, i, k] == pytest.approx(to_go, abs=1e-4)
        after = min(first + steps, end)
        np.testing.assert_array_equal(batch.next_obs[0, i], stacked(key, after, frames))
        np.testing.assert_array_equal(batch.next_legal[0, i], legal_of(slot, episode, after))
        np.testing.assert_array_equal(batch.extra["value"][0, i], [slot, episode, first])
    assert (batch.return_to_go is None) == (not returns)


@pytest.mark.parametrize(
    "spec",
    [
        SampleSpec("transitions", n_step=3, extra=(VALUE,)),
        SampleSpec("windows", window_steps=6, extra=(VALUE,)),
        SampleSpec("windows", window_steps=6, returns=True, extra=(VALUE,)),
    ],
)
def test_poison_in_padding_and_unwritten_rows_never_leaves(spec):
    clean, poisoned = shard(spec, frame_stack=2, masked=True), shard(spec, frame_stack=2, masked=True)
    live = np.zeros(200, bool)
    fill(clean)
    fill(poisoned, poison=True)
    live[poisoned.store.live_rows()] = True
    for name in ("obs", "reward"):
        column = poisoned.store.columns[name]
        assert np.isnan(column[~live]).all() and (~live).any()
    a, b = everything(clean)[0], everything(poisoned)[0]
    for name in a.__dataclass_fields__:
        if name not in ("ids", "extra") and getattr(a, name) is not None:
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
            assert np.isfinite(getattr(b, name)).all()
    np.testing.assert_array_equal(a.extra["value"], b.extra["value"])


def test_a_cut_stream_gives_no_shortened_item():
    n = 3
    slot, episode = next((x, e) for x in range(4) for e in range(60) if life(x, e) == 9)
    s = shard(SampleSpec("transitions", n_step=n))
    s.insert(trajectory([(slot, episode, 0, 6)]))
    assert s.writer_gone("w") == 1
    _, names = everything(s)
    assert sorted(t for _, t in names) == [0, 1, 2]


def test_items_after_a_gap_look_back_only_at_what_is_stored():
    slot, episode = next((x, e) for x in range(4) for e in range(60) if life(x, e) == 9)
    s = shard(frame_stack=3)
    s.insert(trajectory([(slot, episode, 0, 3)]))
    s.insert(trajectory([(slot, episode, 4, 6)]))
    batch, names = everything(s)
    assert sorted(t for _, t in names) == [0, 1, 6, 7, 8]  # 4 and 5 would need row 3
    for i, (key, t) in enumerate(names):
        np.testing.assert_array_equal(batch.obs_tm1[0, i], stacked(key, t, 3))


def test_a_recurrent_state_stored_every_period_is_read_at_starts_only():
    state = ColumnSpec("value", VALUE.array, period_steps=2)
    s = shard(SampleSpec("windows", window_steps=4, period_steps=2, extra=(state,)))
    fragment = trajectory([(0, next(e for e in range(60) if life(0, e) == 9), 0, 10)])
    fragment.columns["value"][1::2] = np.nan
    s.insert(fragment)
    assert np.isfinite(s.sample(4, 32).extra["value"]).all()


@settings(max_examples=60, deadline=None)
@given(
    reward=st.lists(st.floats(-10, 10), min_size=1, max_size=70),
    gamma=st.one_of(st.sampled_from([0.0, 0.5, 0.99, 1.0]), st.floats(0, 1)),
)
def test_discounted_sums(reward, gamma):
    slow, total = [], 0.0
    for r in reversed(reward):
        total = r + gamma * total
        slow.append(total)
    np.testing.assert_allclose(discounted_sums(np.array(reward), gamma), slow[::-1], rtol=1e-9, atol=1e-9)


def test_shapes_and_dtypes_are_those_of_the_contract():
    transitions = shard(SampleSpec("transitions"), frame_stack=2, masked=True)
    windows = shard(SampleSpec("windows", window_steps=5, returns=True), frame_stack=2, masked=True)
    for s in (transitions, windows):
        fill(s)
    contract = {
        "obs_tm1": ((2, 4), "float32"),
        "action_tm1": ((), "int64"),
        "reward_t": ((), "float32"),
        "discount_t": ((), "float32"),
        "obs_t": ((2, 4), "float32"),
        "probability": ((), "float64"),
        "weight": ((), "float32"),
        "weights_counter": ((), "int64"),
        "legal_tm1": ((3,), "bool"),
        "legal_t": ((3,), "bool"),
    }
    check_contract(transitions.sample(3, 7), contract)
    contract = {
        "obs": ((5, 2, 4), "float32"),
        "action": ((5,), "int64"),
        "reward": ((5,), "float32"),
        "terminated": ((5,), "bool"),
        "truncated": ((5,), "bool"),
        "valid": ((5,), "bool"),
        "learn": ((5,), "bool"),
        "timestep": ((5,), "int64"),
        "is_first": ((5,), "bool"),
        "next_obs": ((2, 4), "float32"),
        "return_to_go": ((5,), "float32"),
        "probability": ((), "float64"),
        "weight": ((), "float32"),
        "weights_counter": ((), "int64"),
        "legal": ((5, 3), "bool"),
        "next_legal": ((3,), "bool"),
    }
    check_contract(windows.sample(3, 7), contract)


def check_contract(batch, contract):
    assert set(contract) == set(batch.__dataclass_fields__) - {"ids", "extra"}
    for name, (shape, dtype) in contract.items():
        array = getattr(batch, name)
        assert (array.shape, str(array.dtype)) == ((3, 7, *shape), dtype), name
    for name in ("shard", "row", "generation"):
        assert getattr(batch.ids, name).shape == (21,)
