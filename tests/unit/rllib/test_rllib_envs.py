"""Our doors as RLlib steps them, against the doors themselves."""

from __future__ import annotations

import numpy as np
import pytest
from ray.rllib.env.env_context import EnvContext
from ray.rllib.env.multi_agent_episode import MultiAgentEpisode
from rllib_world import recipe_of

from seqrl_ray.envs.make import make_env
from seqrl_ray.envs.seeds import EpisodeSeeds
from seqrl_ray.errors import EnvError
from seqrl_ray.rllib.envs import MultiEnv, SingleEnv, create, take_ended
from seqrl_ray.rllib.spaces import observe
from seqrl_ray.types import ActionSpec, ArraySpec, GroupSpec, Slot
from seqrl_ray.types_env import Step, VectorStep


@pytest.fixture(autouse=True)
def nothing_left():
    take_ended()
    yield
    take_ended()


def door(name: str, *overrides: str):
    recipe = recipe_of(name, "PPO", *overrides)
    return make_env(recipe.env, recipe.policies, num_envs=1, seeds=EpisodeSeeds(7, 1))


def test_one_agent_sees_and_earns_what_the_door_gives():
    """Step for step beside a second door of the same seeds, over several episodes."""
    ours, theirs = door("classic/cartpole"), SingleEnv(door("classic/cartpole"))
    rng = np.random.default_rng(0)
    step, (seen, _) = ours.reset(), theirs.reset(seed=123)
    assert np.array_equal(step.groups["shared"].obs[0], seen)
    episodes = []
    for _ in range(200):
        action = int(rng.integers(2))
        step = ours.step({"shared": np.array([action])})
        mine = step.groups["shared"]
        seen, reward, terminated, truncated, info = theirs.step(action)
        assert theirs.observation_space.contains(seen) and info == {}
        assert (reward, terminated, truncated) == (mine.reward[0], mine.terminated[0], mine.truncated[0])
        if terminated or truncated:
            assert np.array_equal(seen, mine.final_obs[0])
            seen, _ = theirs.reset()
        assert np.array_equal(seen, mine.obs[0])
        episodes += step.episodes
    told = take_ended()
    assert len(told) > 3
    assert [(e["seed"], e["steps"], e["metrics"]["return"]) for e in told] == [
        (e.seed, e.steps, e.metrics["return"]) for e in episodes
    ]


def test_what_was_seen_stays_untouched_by_later_steps():
    env = SingleEnv(door("classic/cartpole"))
    first, _ = env.reset()
    kept = first.copy()
    for _ in range(5):
        env.step(0)
    assert np.array_equal(first, kept)


def test_a_reset_before_the_end_begins_another_episode():
    env = SingleEnv(door("classic/cartpole"))
    first, _ = env.reset()
    again, _ = env.reset()
    assert np.array_equal(first, again), "nobody has acted: the episode that stands open is given"
    env.step(0)
    other, _ = env.reset()
    assert not np.array_equal(first, other)
    assert take_ended() == []


def test_a_mask_stands_at_the_end_of_the_observation():
    ours, env = door("classic/mined_chain"), SingleEnv(door("classic/mined_chain"))
    (group,) = ours.groups.values()
    step = ours.reset().groups[group.policy_id]
    seen, _ = env.reset()
    assert group.masked and seen.shape == (group.obs.size + group.action.n,) == env.observation_space.shape
    assert np.array_equal(seen[: -group.action.n], step.obs[0])
    assert np.array_equal(seen[-group.action.n :], step.legal[0].astype(np.float32))


def played(env: MultiEnv, policy) -> MultiAgentEpisode:
    """One whole episode, as RLlib keeps it."""
    obs, _ = env.reset()
    episode = MultiAgentEpisode(
        observation_space=env.observation_spaces,
        action_space=env.action_spaces,
        agent_to_module_mapping_fn=lambda agent, episode: "shared",
    )
    episode.add_env_reset(observations=obs)
    while not episode.is_done:
        actions = {agent: policy(obs[agent]) for agent in episode.get_agents_to_act()}
        obs, rewards, terminated, truncated, infos = env.step(actions)
        episode.add_env_step(
            obs, actions, rewards, infos, terminateds=dict(terminated), truncateds=dict(truncated)
        )
    return episode


def test_time_that_is_up_for_all_agents_is_no_termination_in_rllibs_episode():
    """RLlib 2.60 would take it for one if each agent were flagged: no value would be bootstrapped."""
    env = MultiEnv(door("multi_agent/door_grid"))
    episode = played(env, lambda obs: 0)  # all stand still
    assert set(episode.agent_episodes) == {"walker", "climber"}
    for agent in episode.agent_episodes.values():
        assert agent.is_truncated and not agent.is_terminated and len(agent) == 16
    (end,) = take_ended()
    assert end["steps"] == 16
    mean = np.mean([agent.get_return() for agent in episode.agent_episodes.values()])
    assert end["metrics"]["return"] == pytest.approx(mean)


def test_agents_that_leave_one_by_one_are_terminated_where_they_left():
    env = MultiEnv(door("multi_agent/door_grid_departing"))
    rng = np.random.default_rng(1)
    lengths = []
    for _ in range(60):
        episode = played(env, lambda obs: int(rng.choice(np.flatnonzero(obs[-5:]))))  # a legal one
        (end,) = take_ended()
        own = {name: agent for name, agent in episode.agent_episodes.items()}
        assert max(len(agent) for agent in own.values()) == end["steps"]
        mean = np.mean([agent.get_return() for agent in own.values()])
        assert end["metrics"]["return"] == pytest.approx(mean, abs=1e-6)
        for agent in own.values():
            if len(agent) < end["steps"]:
                assert agent.is_terminated and not agent.is_truncated
        lengths.append(sorted(len(agent) for agent in own.values()))
    assert any(short < long for short, long in lengths), "nobody ever left before the other"


class Scripted:
    """A door that plays given steps; one agent, two frames."""

    def __init__(self, group: GroupSpec, steps: list[Step]) -> None:
        self.groups, self.num_envs, self._steps = {group.policy_id: group}, 1, iter(steps)

    def reset(self) -> VectorStep:
        return VectorStep({"shared": next(self._steps)})

    def step(self, actions) -> VectorStep:
        return VectorStep({"shared": next(self._steps)}, (), 1)


def scripted_step(value: int, *, first: bool = False, final: int | None = None, active: bool = True) -> Step:
    flags = np.array([first]), np.array([final is not None])
    return Step(
        obs=np.array([[value]], np.float32),
        reward=np.ones(1, np.float32),
        terminated=flags[1],
        truncated=np.zeros(1, np.bool_),
        valid=np.array([not first or final is not None]),
        active=np.array([active]),
        is_first=flags[0],
        episode_id=np.zeros(1, np.int64),
        final_slots=np.array([0] if final is not None else [], np.int64),
        final_obs=np.array([[final]] if final is not None else np.zeros((0, 1)), np.float32),
    )


STACKED = GroupSpec(
    "shared",
    (Slot(0, "agent", 1, 2),),
    ArraySpec((1,), "float32"),
    ActionSpec("discrete", n=2),
    frame_stack=3,
)


def test_stacked_frames_end_with_the_last_one_of_their_own_episode():
    steps = [scripted_step(1, first=True), scripted_step(2), scripted_step(9, first=True, final=3)]
    env = SingleEnv(Scripted(STACKED, [*steps, scripted_step(10)]))
    assert env.reset()[0].tolist() == [0, 0, 1]
    assert env.step(0)[0].tolist() == [0, 1, 2]
    assert env.step(0)[0].tolist() == [1, 2, 3]
    assert env.reset()[0].tolist() == [0, 0, 9]
    assert env.step(0)[0].tolist() == [0, 9, 10]


def test_an_agent_that_comes_back_within_an_episode_is_refused():
    steps = [
        scripted_step(1, first=True),
        scripted_step(0, final=2, active=False),
        scripted_step(5, first=True),
    ]
    env = MultiEnv(Scripted(STACKED, steps))
    env.reset()
    _, _, terminated, truncated, _ = env.step({"agent": 0})
    assert terminated == {"agent": True, "__all__": False} and truncated == {"__all__": False}
    with pytest.raises(EnvError, match="'agent' came back within an episode"):
        env.step({})


@pytest.mark.parametrize(
    ("shape", "stack", "expected"),
    [((4, 5), 3, (4, 5, 3)), ((2, 4, 5), 1, (4, 5, 2)), ((6, 5, 3), 1, (6, 5, 3)), ((6, 5, 3), 2, (6, 5, 6))],
)
def test_images_have_their_channels_last(shape, stack, expected):
    group = GroupSpec(
        "shared",
        (Slot(0, "agent", 0, 2),),
        ArraySpec(shape, "uint8", 0.0, 255.0),
        ActionSpec("discrete", n=2),
        frame_stack=stack,
    )
    full = (stack, *shape) if stack > 1 else shape
    image = np.random.default_rng(0).integers(0, 256, full).astype(np.uint8)
    (seen,) = observe(group, image[None], None)
    assert seen.shape == expected and seen.dtype == np.float32
    assert sorted(seen.ravel() * 255) == pytest.approx(sorted(image.ravel().tolist()), abs=1e-3)
    frames = image if stack > 1 else image[None]
    channels_last = [
        f
        if len(shape) == 3 and shape[0] > shape[2]
        else np.moveaxis(np.atleast_3d(f), 0, -1)
        if len(shape) == 3
        else f[..., None]
        for f in frames
    ]
    assert np.allclose(seen, np.concatenate(channels_last, -1) / 255.0)


def test_every_copy_has_episodes_of_its_own_and_every_session_others():
    recipe = recipe_of("classic/cartpole")

    def first(session: int) -> list[float]:
        context = EnvContext({"recipe": recipe, "session": session, "errors": None}, worker_index=1)
        return create(context).reset()[0].tolist()

    assert len({tuple(first(session)) for session in (0, 0, 1)}) == 3
