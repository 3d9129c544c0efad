"""Many observations at once become the numbers that one at a time becomes, and come back."""

from __future__ import annotations

import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector.utils import concatenate, create_empty_array
from hypothesis import given, settings
from hypothesis import strategies as st

from seqrl_ray.envs.batches import decode, decode_actions, encode, encode_actions
from seqrl_ray.envs.spaces import action_codec, obs_codec
from seqrl_ray.errors import EnvError

LEAVES = st.one_of(
    st.builds(
        lambda shape, dtype: spaces.Box(-3 if dtype != "uint8" else 0, 5, shape, dtype),
        st.sampled_from([(), (1,), (3,), (2, 2)]),
        st.sampled_from(["float32", "float64", "int32"]),
    ),
    st.builds(lambda n, start: spaces.Discrete(n, start=start), st.integers(1, 5), st.integers(-2, 3)),
    st.builds(
        lambda nvec, d: spaces.MultiDiscrete(nvec, start=[d] * len(nvec)),
        st.lists(st.integers(1, 4), min_size=1, max_size=3),
        st.integers(-1, 2),
    ),
    st.just(spaces.MultiDiscrete([[2, 3], [1, 4]])),
    st.builds(spaces.MultiBinary, st.sampled_from([1, 4, (2, 3)])),
)
SPACES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(spaces.Tuple),
        st.dictionaries(st.sampled_from("zyxab"), inner, min_size=1, max_size=3).map(spaces.Dict),
    ),
    max_leaves=5,
)
IMAGES = [
    spaces.Box(0, 255, (4, 5), np.uint8),
    spaces.Box(0, 255, (3, 4, 5), np.uint8),
    spaces.Box(0, 1, (3, 4, 5), np.bool_),
    spaces.Box(-1, 1, (3, 4, 5), np.float64),
]


def samples(space, count, seed):
    space.seed(seed)
    return [space.sample() for _ in range(count)]


def batch_of(space, obs):
    return concatenate(space, obs, create_empty_array(space, len(obs)))


def assert_equal_batches(a, b):
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert list(a) == list(b)
        a, b = tuple(a.values()), tuple(b.values())
    if isinstance(a, tuple):
        for inner_a, inner_b in zip(a, b, strict=True):
            assert_equal_batches(inner_a, inner_b)
        return
    assert a.dtype == b.dtype and a.shape == b.shape
    np.testing.assert_allclose(a, b, rtol=1e-6)


def check(space, count, seed):
    obs = samples(space, count, seed)
    codec = obs_codec(space, "test")
    one_by_one = np.zeros((count, *codec.spec.shape), codec.spec.dtype)
    for row, each in enumerate(obs):
        one_by_one[row] = codec.encode(each)
    batch = batch_of(space, obs)
    at_once = encode(space, batch, "test")
    assert at_once.dtype == codec.spec.dtype
    np.testing.assert_array_equal(at_once, one_by_one)
    assert_equal_batches(decode(space, at_once), batch)


@given(space=SPACES, count=st.integers(1, 4), seed=st.integers(0, 99))
@settings(max_examples=80, deadline=None)
def test_a_batch_is_its_observations(space, count, seed):
    check(space, count, seed)


@pytest.mark.parametrize("space", IMAGES, ids=str)
def test_a_batch_of_images_keeps_their_shape(space):
    check(space, 3, 0)


@pytest.mark.parametrize(
    "space",
    [spaces.Discrete(4, start=-1), spaces.Box(-2, 2, (3,)), spaces.Box(-2, 2, (2, 2), np.float64)],
    ids=str,
)
def test_actions_come_back_as_the_environment_takes_them(space):
    given_ = batch_of(space, samples(space, 5, 0))
    stored = encode_actions(space, given_, "test")
    codec = action_codec(space, "test")
    assert stored.shape == (5, *codec.spec.column.shape) and stored.dtype == codec.spec.column.dtype
    np.testing.assert_array_equal(np.array(codec.hand(stored)), given_.astype(np.float32))
    np.testing.assert_allclose(decode_actions(space, stored), given_, rtol=1e-6)
    assert decode_actions(space, stored).dtype == given_.dtype


def test_discrete_actions_may_stand_in_a_column():
    stored = encode_actions(spaces.Discrete(3), np.array([[0], [2]]), "test")
    assert stored.tolist() == [0, 2]


PAIR = spaces.Dict(a=spaces.Box(0, 1, (2,)), b=spaces.Discrete(3))
WRONG = {
    "an index outside": (spaces.Discrete(3), np.array([0, 3]), "a discrete value is outside of its space"),
    "an index below": (
        spaces.Discrete(3, start=1),
        np.array([0]),
        "a discrete value is outside of its space",
    ),
    "no integers": (spaces.Discrete(3), np.array([0.5]), "Give integers, one per part"),
    "another shape": (
        spaces.Box(0, 1, (2,)),
        np.zeros((4, 3)),
        r"has shape \(4, 3\) .*, not \(T, 2\) numbers",
    ),
    "no numbers": (spaces.Box(0, 1, (2,)), np.array([["a", "b"]]), "not .* numbers"),
    "no mapping": (PAIR, np.zeros((3, 2)), "is a ndarray of 3 parts"),
    "a part missing": (PAIR, {"a": np.zeros((1, 2)), "c": np.zeros(1)}, "part 'b' .* is missing"),
    "parts of different lengths": (
        PAIR,
        {"a": np.zeros((2, 2)), "b": np.zeros(1, int)},
        r"hold \[1, 2\] observations",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_not_of_the_space_is_refused(name):
    space, batch, message = WRONG[name]
    with pytest.raises(EnvError, match=message):
        encode(space, batch, "test")
