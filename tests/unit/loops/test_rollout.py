"""Rollout: fragments are checked against a slow, dictionary-shaped record of the same scripted
environment.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pytest

from seqrl_ray.algorithms import make_algorithm, settings_class
from seqrl_ray.envs.make import make_env
from seqrl_ray.envs.seeds import EpisodeSeeds
from seqrl_ray.errors import EnvError
from seqrl_ray.loops.rollout import FrameStack, Rollout
from seqrl_ray.recipe_env import GymSettings, PettingZooSettings, PolicySettings
from seqrl_ray.types import ActionSpec, ArraySpec, GroupSpec, Slot
from seqrl_ray.types_env import Step, VectorStep, Weights

SHARED = {"shared": PolicySettings()}


class Recording:
    """Passes an environment through and keeps, per stream, what happened in it, in plain lists."""

    def __init__(self, env: Any) -> None:
        self.env = env
        self.now: VectorStep | None = None
        self.streams: dict[tuple[str, int, int], list[dict[str, Any]]] = defaultdict(list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.env, name)

    def reset(self) -> VectorStep:
        self.now = self.env.reset()
        return self.now

    def step(self, actions: Any) -> VectorStep:
        before = {
            p: {k: np.array(v) for k, v in vars(s).items() if v is not None}
            for p, s in self.now.groups.items()
        }
        after = self.env.step(actions)
        for policy, step in after.groups.items():
            old = before[policy]
            for slot in np.flatnonzero(old["active"]):
                key = (policy, int(slot), int(old["episode_id"][slot]))
                self.streams[key].append(
                    {
                        "obs": old["obs"][slot].copy(),
                        "action": np.array(actions[policy][slot]),
                        "reward": step.reward[slot],
                        "terminated": bool(step.terminated[slot]),
                        "truncated": bool(step.truncated[slot]),
                    }
                )
            for place, slot in enumerate(step.final_slots):
                key = (policy, int(slot), int(old["episode_id"][slot]))
                self.streams[key].append({"final": step.final_obs[place].copy()})
        self.now = after
        return after


def rollout(env: Any, fragment_steps: int, seed: int = 0) -> Rollout:
    settings = settings_class("random")()
    algorithms = {p: make_algorithm("random", settings, g) for p, g in env.groups.items()}
    return Rollout(env, algorithms, writer="w", incarnation=3, fragment_steps=fragment_steps, seed=seed)


def make(kind: str, num_envs: int = 3, seed: int = 0) -> Any:
    if kind == "cartpole":
        settings: Any = GymSettings(id="CartPole-v1")
    else:
        settings = PettingZooSettings(
            id="seqrl_ray.envs.toys:DoorGrid", kwargs={"departing": kind == "departing"}
        )
    return make_env(settings, SHARED, num_envs=num_envs, seeds=EpisodeSeeds(seed))


@pytest.mark.parametrize("fragment_steps", [1, 7, 50])
@pytest.mark.parametrize("kind", ["cartpole", "together", "departing"])
def test_fragments_join_to_what_happened_in_every_stream(kind, fragment_steps):
    env = Recording(make(kind))
    roll = rollout(env, fragment_steps)
    joined: dict[tuple[str, int, int], list[dict[str, Any]]] = defaultdict(list)
    steps = 0
    while steps < 150:
        fragment = roll.fragment()
        steps += fragment_steps
        assert fragment.env_steps == fragment_steps * env.num_envs
        for t in fragment.trajectories:
            assert t.rows == t.length.sum()
            start = 0
            for slot, episode, offset, length in zip(t.slot, t.episode, t.offset, t.length, strict=True):
                stream = joined[(t.policy_id, int(slot), int(episode))]
                assert offset == len(stream), "a piece begins where the last one of its stream ended"
                stream.extend(
                    {name: c[i] for name, c in t.columns.items()} for i in range(start, start + length)
                )
                start += length
    assert joined.keys() == env.streams.keys()
    for key, rows in env.streams.items():
        assert len(rows) == len(joined[key])
        for want, got in zip(rows, joined[key], strict=True):
            if "final" in want:
                assert got["final"]
                np.testing.assert_array_equal(got["obs"], want["final"])
                continue
            assert not got["final"]
            for name, value in want.items():
                np.testing.assert_array_equal(got[name], value, err_msg=name)
    assert sum("final" in row for rows in env.streams.values() for row in rows) > 3


@pytest.mark.parametrize("kind", ["cartpole", "departing"])
def test_a_restored_rollout_goes_on_as_if_it_had_not_stopped(kind):
    whole = rollout(make(kind), 10)
    for _ in range(4):
        whole.fragment()
    saved = whole.state()
    want = whole.fragment()
    again = rollout(make(kind), 10, seed=99)
    again.restore(saved)
    got = again.fragment()
    for a, b in zip(want.trajectories, got.trajectories, strict=True):
        for name in a.columns:
            np.testing.assert_array_equal(a.columns[name], b.columns[name], err_msg=name)
        for name in ("slot", "episode", "offset", "length"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


def test_a_replay_that_leads_elsewhere_is_refused():
    roll = rollout(make("departing"), 10)
    roll.fragment()
    saved = roll.state()
    saved["groups"]["shared"]["obs"] = saved["groups"]["shared"]["obs"] + 1
    with pytest.raises(EnvError, match="lead to other observations than before"):
        rollout(make("departing"), 10).restore(saved)


def test_weights_are_named_in_what_they_made():
    roll = rollout(make("cartpole"), 5)
    roll.load(Weights("shared", epoch=2, counter=17, flat=np.zeros(0, np.float32)))
    assert roll.fragment().trajectories[0].weights == (2, 17)


def test_frames_before_an_episode_are_zero_and_the_newest_is_last():
    slots = (Slot(0, "agent", 2, 2), Slot(1, "agent", 2, 2))
    group = GroupSpec("shared", slots, ArraySpec((2,), "uint8"), ActionSpec("discrete", 2), frame_stack=3)
    stack = FrameStack(group)

    def step(value: int, first: list[bool]) -> Step:
        flags = np.zeros(2, bool)
        return Step(
            obs=np.full((2, 2), value, np.uint8),
            reward=np.zeros(2, np.float32),
            terminated=flags,
            truncated=flags,
            valid=flags,
            active=~flags,
            is_first=np.array(first),
            episode_id=np.zeros(2, np.int64),
            final_slots=np.zeros(0, np.int64),
            final_obs=np.zeros((0, 2), np.uint8),
        )

    stack.push(step(1, [True, True]))
    stack.push(step(2, [False, False]))
    frames = stack.push(step(3, [False, True]))
    assert frames[0, :, 0].tolist() == [1, 2, 3]
    assert frames[1, :, 0].tolist() == [0, 0, 3]


def remembering(seed: int = 0) -> Rollout:
    """A rollout whose policy remembers across decisions; the last bits of its actions show how contexts were
    read, and these span several fragments.
    """
    env = make_env(GymSettings(id="Pendulum-v1"), SHARED, num_envs=3, seeds=EpisodeSeeds(seed))
    settings = settings_class("decision_transformer")(
        units=16, layers=2, heads=2, window_steps=16, forget_steps=8, target_return=-200.0
    )
    algorithms = {
        p: make_algorithm("decision_transformer", settings, g, seed=1) for p, g in env.groups.items()
    }
    return Rollout(env, algorithms, writer="w", incarnation=1, fragment_steps=5, seed=seed)


def test_what_a_policy_remembers_changes_no_bit_of_a_run_that_is_saved_resumed_or_told_the_same_weights():
    """What actors are told and when they are saved follows the clock: no run may hang on it."""
    never, saved, told, resumed = (remembering() for _ in range(4))
    flat = told.acting["shared"].algorithm.weights()
    for turn in range(8):
        fragments = [never.fragment(), saved.fragment(), told.fragment()]
        if turn >= 4:
            fragments.append(resumed.fragment())
        columns = [fragment.trajectories[0].columns for fragment in fragments]
        for name, column in columns[0].items():
            for other in columns[1:]:
                np.testing.assert_array_equal(column, other[name])
        saved.state()
        if turn % 2:
            told.load(Weights("shared", 0, turn, flat))
        if turn == 3:
            resumed.restore(never.state())
    states = [r.state()["groups"]["shared"]["act_state"] for r in (never, saved, resumed)]
    for columns in zip(*states, strict=True):
        for other in columns[1:]:
            np.testing.assert_array_equal(columns[0], other)


def test_a_rollout_takes_acting_states_of_before_there_was_a_memory():
    ahead, behind = remembering(), remembering()
    ahead.fragment()
    state = ahead.state()
    state["groups"]["shared"]["act_state"] = tuple(state["groups"]["shared"]["act_state"])[:5]
    behind.restore(state)
    one, other = (r.fragment().trajectories[0].columns for r in (ahead, behind))
    np.testing.assert_array_equal(one["action"], other["action"])
    np.testing.assert_array_equal(one["obs"], other["obs"])
