import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqrl_ray.envs.seeds import EpisodeSeeds, FixedSeeds
from seqrl_ray.errors import EnvError

small = st.integers(0, 2**16)


@given(small, small, small, small)
def test_a_seed_is_a_function_of_its_place_and_fits_31_bits(root, key, env, episode):
    seed = EpisodeSeeds(root, key)(env, episode)
    assert 0 <= seed < 2**31
    assert seed == EpisodeSeeds(root, key)(env, episode)


def test_actors_copies_and_episodes_differ():
    seeds = {
        EpisodeSeeds(7, actor)(env, episode)
        for actor in range(4)
        for env in range(8)
        for episode in range(50)
    }
    assert len(seeds) >= 4 * 8 * 50 - 2  # a birthday collision in 2**31 is rare, two are news


def test_key_length_matters():
    assert EpisodeSeeds(7)(0, 0) != EpisodeSeeds(7, 0)(0, 0)


def test_fixed_seeds_are_dealt_to_copies_and_start_again():
    seeds = FixedSeeds([10, 11, 12, 13, 14], num_envs=2)
    assert [seeds(env, episode) for episode in range(3) for env in range(2)] == [10, 11, 12, 13, 14, 10]


@pytest.mark.parametrize("make", [lambda: EpisodeSeeds(-1), lambda: EpisodeSeeds(1, -2)])
def test_negative_seeds_are_refused(make):
    with pytest.raises(EnvError, match="is negative"):
        make()


def test_fixed_seeds_refuse_an_empty_list_and_large_seeds():
    with pytest.raises(EnvError, match="nothing to deal"):
        FixedSeeds([], 1)
    with pytest.raises(EnvError, match="outside"):
        FixedSeeds([2**31], 1)
