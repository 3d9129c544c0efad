import itertools

import numpy as np
import pytest

from seqrl_ray.envs.toys import DoorGrid, Endless, MinedChain, PaddleBricks, RecallCorridor
from seqrl_ray.envs.toys.door import AGENTS, DOOR, MOVES, OUT, SIDE, advance, best, starts


def test_door_grid_by_hand():
    near, corner = (SIDE - 2, SIDE - 1), (0, 0)
    assert advance((near, corner), (1, 0)) == ((OUT, corner), (pytest.approx(0.9), -0.1))
    assert advance((OUT, corner), (1, 1)) == ((OUT, (1, 0)), (0.0, -0.1))
    assert advance(((1, 0), corner), (0, 1)) == (((1, 0), corner), (-0.1, -0.1))  # the way is taken
    assert advance(((1, 0), corner), (1, 1)) == (((2, 0), (1, 0)), (-0.1, -0.1))  # the walker goes first
    assert advance((corner, (3, 0)), (3, 1)) == ((corner, (3, 0)), (-0.1, -0.1))  # walls
    assert best((OUT, near), 5) == pytest.approx(0.9)
    assert DOOR not in {cell for state in starts() for cell in state}


def policy(state, steps_left):
    """A joint action that the exact search calls best."""
    joint = itertools.product(*(range(len(MOVES[agent])) for agent in AGENTS))

    def value(actions):
        after, rewards = advance(state, actions)
        return sum(rewards) + best(after, steps_left - 1)

    return max(joint, key=value)


@pytest.mark.parametrize("departing", [False, True])
def test_door_grid_optimum_is_what_an_optimal_pair_earns(departing):
    env = DoorGrid(departing=departing)
    wanted, got = [], []
    for seed in range(60):
        env.reset(seed=seed)
        wanted.append(best(env._state, env.limit_steps) / 2)
        totals = dict.fromkeys(AGENTS, 0.0)
        while env.agents:
            actions = dict(zip(AGENTS, policy(env._state, env.limit_steps - env._steps), strict=True))
            _, rewards, *_ = env.step({agent: actions[agent] for agent in env.agents})
            for agent, reward in rewards.items():
                totals[agent] += reward
        got.append(sum(totals.values()) / 2)
    assert got == pytest.approx(wanted)
    assert env.optimum() == pytest.approx(np.mean([best(s, env.limit_steps) for s in starts()]) / 2)
    assert env.optimum() < 1.0 - 0.1  # nobody starts beside the door with nothing to pay


def test_door_grid_departing_agents_leave_without_a_word():
    env = DoorGrid(departing=True)
    env.reset(seed=0)
    env._state = ((SIDE - 2, SIDE - 1), (0, 0))
    observations, rewards, terminated, truncated, infos = env.step({"walker": 1, "climber": 0})
    assert env.agents == ["climber"]
    assert "walker" in rewards
    assert all("walker" not in part for part in (observations, terminated, truncated, infos))


def test_recall_corridor_pays_memory_and_not_guessing():
    env = RecallCorridor(length=4)
    returns = {True: [], False: []}
    for remembers, seed in itertools.product((True, False), range(200)):
        obs, _ = env.reset(seed=seed)
        cue, total, over = int(obs[0] > 0), 0.0, False
        while not over:
            last = obs
            obs, reward, over, _, _ = env.step(cue if remembers else 1)
            total += reward
        assert last[0] == 0.0 and last[2] == 1.0  # the cue is not to be seen where it counts
        returns[remembers].append(total)
    assert np.mean(returns[True]) == RecallCorridor.optimum
    assert abs(np.mean(returns[False]) - RecallCorridor.chance) < 0.25


def test_mined_chain_mask_is_exactly_what_does_not_end_in_the_mine():
    env = MinedChain(length=6)
    for seed, action in itertools.product(range(12), range(4)):
        obs, _ = env.reset(seed=seed)
        _, reward, terminated, _, _ = env.step(action)
        legal = bool(obs["action_mask"][action])
        assert legal == (reward != env.mine_reward)
        assert terminated == (not legal)


def test_mined_chain_optimum_is_always_advancing():
    env, returns = MinedChain(length=6), []
    for seed in range(300):
        env.reset(seed=seed)
        total, over = 0.0, False
        while not over:
            _, reward, over, _, _ = env.step(env._cell % 4)
            total += reward
        returns.append(total)
    assert set(returns) == {6.0, 5.0, 4.0}
    assert env.optimum() == 5.0


def test_endless_is_cut_as_asked():
    for ends in (False, True):
        env = Endless(limit_steps=3, ends=ends)
        env.reset(seed=0)
        assert [env.step(0)[2:4] for _ in range(3)] == [(False, False)] * 2 + [(ends, not ends)]


def chase(env):
    """Go to where the ball will come down; stay under it while it rises."""
    row, column, right = env._row, env._column, env._right
    while row < 9 and env._down > 0:
        right = right if 0 <= column + right < 10 else -right
        row, column = row + 1, column + right
    return 0 if column == env._paddle else 1 + int(column > env._paddle)


def test_paddle_bricks_rewards_skill_and_is_drawn_truly():
    def score(rule):
        env, scores = PaddleBricks(), []
        for seed in range(5):
            rng = np.random.default_rng(seed)
            obs, _ = env.reset(seed=seed)
            total = 0.0
            for _ in range(600):
                assert obs.dtype == np.uint8 and set(np.unique(obs)) == {0, 255}
                assert obs[..., 0].sum() == obs[..., 1].sum() == 255
                bricks = np.count_nonzero(obs[..., 3])
                obs, reward, over, _, _ = env.step(rule(env, rng))
                total += reward
                assert over or np.count_nonzero(obs[..., 3]) in (bricks - reward, 30)
                if over:
                    break
            scores.append(total)
        return np.mean(scores)

    assert score(lambda env, rng: chase(env)) > 5.0 + score(lambda env, rng: int(rng.integers(3)))
