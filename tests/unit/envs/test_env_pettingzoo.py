from pathlib import Path

import numpy as np
import pytest

from seqrl_ray.envs.make import make_env
from seqrl_ray.envs.seeds import EpisodeSeeds
from seqrl_ray.errors import EnvError
from seqrl_ray.recipe_env import PettingZooSettings, PolicySettings

HERE = Path(__file__).parent
ONE = {"p": PolicySettings()}


def make(script, *, name="Scripted", num_envs=1, policies=ONE, kwargs=None, **settings):
    table = PettingZooSettings(
        id=f"env_cases:{name}", kwargs={"script": script, **(kwargs or {})}, **settings
    )
    return make_env(table, policies, num_envs=num_envs, seeds=EpisodeSeeds(0), folder=HERE)


def everyone(*ends):
    """A script of three agents that all stay until they end together."""
    return [{"present": "abc"}, {"present": "abc"}, {"present": "", "ends": dict(ends)}]


ALL_DEAD = everyone(("a", "terminated"), ("b", "terminated"), ("c", "truncated"))


def act(env, *actions):
    return env.step({"p": np.array(actions)})


def test_agents_of_different_spaces_are_padded_and_masked():
    env = make(ALL_DEAD)
    group = env.groups["p"]
    assert [(s.agent, s.obs_size, s.num_actions) for s in group.slots] == [
        ("a", 1, 2),
        ("b", 2, 3),
        ("c", 3, 4),
    ]
    assert group.masked
    step = env.reset().groups["p"]
    assert step.obs.tolist() == [[0, 0, 0], [1, 1, 0], [2, 2, 2]]
    assert step.legal.sum(axis=1).tolist() == [2, 3, 4]
    assert step.is_first.all() and step.active.all() and not step.valid.any()


def test_an_episode_ends_with_its_agents_and_the_next_opens_in_the_same_step():
    env = make(ALL_DEAD)
    env.reset()
    act(env, 1, 1, 1)
    done = act(env, 0, 2, 3)
    step = done.groups["p"]
    assert step.terminated.tolist() == [True, True, False]
    assert step.truncated.tolist() == [False, False, True]
    assert step.final_slots.tolist() == [0, 1, 2]
    assert step.final_obs.tolist() == [[20, 0, 0], [21, 21, 0], [22, 22, 22]]
    assert step.obs.tolist() == [[0, 0, 0], [1, 1, 0], [2, 2, 2]]
    assert step.active.all() and step.is_first.all() and step.episode_id.tolist() == [1, 1, 1]
    (end,) = done.episodes
    assert end.steps == 2
    assert end.metrics == {"return": pytest.approx(8 / 3), "return_total": 8.0}
    assert done.env_steps == 1


DEPARTS = [
    {"present": "abc"},
    {"present": "ac", "silent": "b"},
    {"present": "c", "ends": {"a": "truncated"}, "silent": "a"},
    {"present": ""},
]


@pytest.mark.parametrize("departure", ["terminated", "truncated"])
def test_departures_end_streams_as_the_recipe_says(departure):
    env = make(DEPARTS, departure=departure)
    env.reset()
    step = act(env, 1, 2, 0).groups["p"]
    assert step.active.tolist() == [True, False, True]
    assert getattr(step, departure).tolist() == [False, True, False]
    assert not (step.terminated & step.truncated).any()
    assert step.reward.tolist() == [1, 2, 0]  # its last action was still paid
    assert step.final_slots.tolist() == [1]
    assert step.final_obs.tolist() == [[1, 1, 0]]  # the last it saw: it left without a last observation
    step = act(env, 0, 99, 0).groups["p"]  # b is away: its action is ignored, and makes no transition
    assert step.valid.tolist() == [True, False, True]
    assert step.truncated[0] and not step.terminated[0]  # said so itself: the recipe key does not apply
    assert step.final_obs.tolist() == [[10, 0, 0]]
    last = act(env, 0, 0, 3)
    step = last.groups["p"]
    assert step.final_slots.tolist() == [2] and getattr(step, departure)[2]
    assert step.final_obs.tolist() == [[32, 32, 32]]  # gone without a word, but not without an observation
    assert last.episodes[0].metrics["return_total"] == 6.0


COMES_BACK = [
    {"present": "b"},
    {"present": "ab"},
    {"present": "b", "ends": {"a": "terminated"}},
    {"present": "ab"},
    {"present": "", "ends": {"a": "terminated", "b": "terminated"}},
]


def test_agents_may_be_absent_at_first_and_come_back_as_a_new_stream():
    env = make(COMES_BACK)
    step = env.reset().groups["p"]
    assert step.active.tolist() == [False, True, False]
    firsts, ids = [step.is_first.copy()], [step.episode_id.copy()]
    for _ in range(4):
        now = act(env, 1, 1, 0)
        step = now.groups["p"]
        firsts.append(step.is_first)
        ids.append(step.episode_id)
    assert np.array(firsts)[:, 0].tolist() == [False, True, False, True, False]
    assert np.array(ids)[:, 0].tolist() == [-1, 0, 0, 1, 1]
    assert np.array(ids)[:, 1].tolist() == [0, 0, 0, 0, 1]  # the next episode: b is there from the start
    assert np.array(ids)[:, 2].tolist() == [-1] * 5  # c never came
    assert now.episodes[0].metrics == {"return": 3.0, "return_total": 6.0}  # of the two that took part


def test_masks_from_infos_cover_own_actions_and_the_final_observation():
    env = make(DEPARTS, kwargs={"masks": True})
    assert env.reset().groups["p"].legal.tolist() == [
        [True, False, False, False],
        [True, False, False, False],
        [True, False, False, False],
    ]
    step = act(env, 0, 0, 0).groups["p"]
    assert step.legal[[0, 2]].tolist() == [[False, True, False, False]] * 2
    assert step.legal[1].tolist() == [True, True, True, False]  # inactive: all its own
    assert step.final_legal.tolist() == [[True, False, False, False]]  # with the last it saw


def test_two_policies_get_their_own_groups_and_returns():
    policies = {"first": PolicySettings(agents=("a",)), "rest": PolicySettings(agent_one_hot=True)}
    env = make(ALL_DEAD, policies=policies, num_envs=2)
    now = env.reset()
    assert now.groups["first"].obs.shape == (2, 1)
    assert now.groups["rest"].obs[:2].tolist() == [[1, 1, 0, 1, 0], [2, 2, 2, 0, 1]]
    assert not env.groups["first"].masked
    for _ in range(2):
        now = env.step({"first": np.array([1, 0]), "rest": np.array([2, 3, 0, 1])})
    assert [e.metrics for e in now.episodes] == [
        {"return": 4.0, "return_total": 12.0, "return_first": 2.0, "return_rest": 5.0},
        {"return": pytest.approx(2 / 3), "return_total": 2.0, "return_first": 0.0, "return_rest": 1.0},
    ]


def test_observations_survive_the_next_step_and_padding_stays_clean():
    env = make(COMES_BACK)
    one = env.reset().groups["p"].obs
    kept = one.copy()
    for _ in range(12):
        now = act(env, 1, 1, 0).groups["p"].obs
        assert np.array_equal(one, kept)
        assert not now[0, 1:].any() and not now[1, 2:].any()
        one, kept = now, now.copy()


@pytest.mark.parametrize("at", [1, 3, 5, 7])
def test_restored_episodes_go_on_exactly(at):
    one, two = make(COMES_BACK, num_envs=2), make(COMES_BACK, num_envs=2)
    rng = np.random.default_rng(at)
    draw = np.stack([rng.integers(0, n, 10) for n in (2, 3, 4, 2, 3, 4)], axis=1)
    step = one.reset()
    for t in range(at):
        step = one.step({"p": draw[t]})
    restored = two.restore(one.open_episodes()).groups["p"]
    wanted = step.groups["p"]
    for name in ("is_first", "active", "episode_id", "legal"):
        assert np.array_equal(getattr(wanted, name)[wanted.active], getattr(restored, name)[wanted.active]), (
            name
        )
    assert np.array_equal(wanted.obs[wanted.active], restored.obs[wanted.active])
    assert not restored.valid.any() and not restored.final_slots.size
    for t in range(at, 10):
        a, b = one.step({"p": draw[t]}), two.step({"p": draw[t]})
        assert a.episodes == b.episodes
        x, y = a.groups["p"], b.groups["p"]
        assert np.array_equal(x.reward, y.reward) and np.array_equal(x.episode_id, y.episode_id)
        assert np.array_equal(x.obs[x.active], y.obs[y.active]) and np.array_equal(x.final_obs, y.final_obs)


def test_restoring_what_leads_elsewhere_is_refused():
    one = make(COMES_BACK)
    one.reset()
    act(one, 1, 1, 0)
    other = make([{"present": "b"}, {"present": "b"}, {"present": ""}])
    with pytest.raises(EnvError, match="its observations are others"):
        other.restore(one.open_episodes())
    shorter = make([{"present": "b"}, {"present": ""}])
    with pytest.raises(EnvError, match="it ended after 1 steps"):
        shorter.restore(one.open_episodes())
    assert make(COMES_BACK, restorable=False).open_episodes() is None


@pytest.mark.parametrize(
    ("script", "name", "words"),
    [
        ([{"present": ""}], "Scripted", "left env.agents empty"),
        (
            [{"present": "a"}, {"present": "a", "ends": {"a": "terminated"}}],
            "Scripted",
            "and still in env.agents",
        ),
        ([{"present": "a"}, {"present": "az"}], "Scripted", r"not in possible_agents \(a, b, c\)"),
        ([{"present": "a"}, {"present": "a"}], "Unblind", "in env.agents but has no observation"),
    ],
)
def test_broken_parallel_environments_are_named(script, name, words):
    env = make(script, name=name)
    with pytest.raises(EnvError, match=words):
        env.reset()
        act(env, 0, 0, 0)


def test_actions_are_checked_where_agents_act():
    env = make(ALL_DEAD)
    env.reset()
    with pytest.raises(EnvError, match=r"have shape \(2,\), not \(3,\)"):
        act(env, 0, 0)
    with pytest.raises(EnvError, match=r"actions=\[2\] are not all in \[0, 2\).*agent 'a'"):
        act(env, 2, 0, 0)


def test_a_gymnasium_environment_is_not_a_parallel_one():
    table = PettingZooSettings(id="env_cases:Countdown")
    with pytest.raises(EnvError, match="not a PettingZoo ParallelEnv"):
        make_env(table, ONE, num_envs=1, seeds=EpisodeSeeds(0), folder=HERE)
