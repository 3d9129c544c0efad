import numpy as np
import pytest

from seqrl_ray.envs.make import make_env
from seqrl_ray.envs.seeds import EpisodeSeeds, FixedSeeds
from seqrl_ray.errors import EnvError
from seqrl_ray.recipe_env import AtariSettings, PolicySettings

vector_env = pytest.importorskip("ale_py.vector_env")
P = {"p": PolicySettings()}


def make(num_envs=2, seeds=None, evaluation=False, **settings):
    table = AtariSettings(**{"game": "breakout", **settings})
    return make_env(table, P, num_envs=num_envs, seeds=seeds or EpisodeSeeds(0), evaluation=evaluation)


def play(env, steps, seed=0):
    rng = np.random.default_rng(seed)
    now = env.reset()
    slots, actions = len(env.groups["p"].slots), env.groups["p"].action.n
    for _ in range(steps):
        yield now
        now = env.step({"p": rng.integers(0, actions, slots)})
    yield now


def test_frames_come_one_by_one_and_equal_the_emulators_own_stack():
    env = make(noop_max=5, repeat_action_probability=0.0, frame_stack=4)
    group = env.groups["p"]
    assert (group.obs.shape, group.obs.dtype, group.frame_stack) == ((84, 84), "uint8", 4)
    assert group.policy_obs.shape == (4, 84, 84)
    seeds = np.array([EpisodeSeeds(0)(e, 0) for e in range(2)])
    bare = vector_env.AtariVectorEnv("breakout", 2, num_threads=1, noop_max=5, repeat_action_probability=0.0)
    rng = np.random.default_rng(0)
    stacked, _ = bare.reset(seed=seeds)
    for t, now in enumerate(play(env, 30)):
        step = now.groups["p"]
        assert step.obs.flags.c_contiguous
        assert np.array_equal(step.obs, stacked[:, -1])
        if t < 30:
            stacked, *_ = bare.step(rng.integers(0, 4, 2))


def test_a_frame_cap_truncates_and_the_next_game_opens_in_the_same_step():
    env = make(max_episode_frames=40)
    seen = list(play(env, 21))
    ended = [t for t, now in enumerate(seen) if now.episodes]
    assert ended == [10, 20]
    step = seen[10].groups["p"]
    assert step.truncated.all() and not step.terminated.any()
    assert step.final_slots.tolist() == [0, 1] and step.is_first.all()
    assert (step.final_obs != step.obs).any()
    assert [e.steps for e in seen[20].episodes] == [10, 10]
    assert seen[20].groups["p"].episode_id.tolist() == [2, 2]


def test_life_loss_ends_the_stream_and_the_game_goes_on():
    env = make(num_envs=4, episodic_life=True, repeat_action_probability=0.0)
    lost, games = 0, []
    for now in play(env, 260):
        step = now.groups["p"]
        over = {e.env for e in now.episodes}
        games += now.episodes
        for slot, final in zip(step.final_slots, step.final_obs, strict=True):
            assert step.terminated[slot] and step.is_first[slot]
            if slot not in over:
                lost += 1
                assert np.array_equal(final, step.obs[slot])  # nothing was reset
            else:
                assert not np.array_equal(final, step.obs[slot])
    assert games and lost >= 4 * len(games)  # five lives a game, the last one is the game's end
    assert step.episode_id.sum() == lost + len(games)


def test_evaluation_plays_whole_games_raw_each_from_its_own_seed():
    env = make(evaluation=True, episodic_life=True, seeds=FixedSeeds([3, 4, 5], 2), max_episode_frames=16)
    firsts = [now.groups["p"].obs.copy() for now in play(env, 12) if now.groups["p"].is_first.all()]
    again = make(num_envs=1, seeds=FixedSeeds([5], 1), evaluation=True)
    assert len(firsts) == 4
    assert np.array_equal(firsts[1][0], again.reset().groups["p"].obs[0])  # copy 0, second game: seed 5
    assert np.array_equal(firsts[0][0], firsts[1][1])  # the list starts again: seed 3
    ends = [e.seed for now in play(env, 4) for e in now.episodes]
    assert ends == [FixedSeeds([3, 4, 5], 2)(e, 4) for e in range(2)]  # a reset drops the running games


def test_rewards_are_clipped_for_learning_and_scores_are_raw():
    def total(env, steps=110):
        rewards = [now.groups["p"].reward.copy() for now in play(env, steps)]
        return np.array(rewards)

    game = {"game": "space_invaders", "repeat_action_probability": 0.0}
    raw = total(make(**game, evaluation=True, reward_clipping=True))
    clipped = total(make(**game, reward_clipping=True))
    assert raw.max() >= 5 and clipped.max() == 1.0
    assert np.array_equal(np.clip(raw, -1, 1), clipped)
    env = make(**game, reward_clipping=True, max_episode_frames=400)
    (score, _), *_ = ([e.metrics["return"] for e in now.episodes] for now in play(env, 100) if now.episodes)
    assert score == raw[:101, 0].sum()


def test_the_same_seeds_play_the_same_games_with_sticky_actions():
    one, two, other = (
        np.array(
            [now.groups["p"].obs for now in play(make(seeds=EpisodeSeeds(s), max_episode_frames=60), 30)]
        )
        for s in (1, 1, 2)
    )
    assert np.array_equal(one, two)
    assert not np.array_equal(one, other)


def test_what_cannot_be_is_refused():
    with pytest.raises(EnvError, match='Did you mean "ms_pacman"'):
        make(game="mspacman")
    env = make()
    env.reset()
    with pytest.raises(EnvError, match="no such joystick"):
        env.step({"p": np.array([0, 4])})
    assert env.open_episodes() is None
    with pytest.raises(EnvError, match="cannot rebuild"):
        env.restore(())
    env.close()
    env.close()


def test_the_full_action_space_is_a_key():
    assert make(num_envs=1, full_action_space=True).groups["p"].action.n == 18
