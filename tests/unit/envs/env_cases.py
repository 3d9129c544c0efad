"""Environments for the tests of the doors: scripted, odd, and wrong on purpose."""

from __future__ import annotations

from string import ascii_lowercase

import gymnasium
import numpy as np
from gymnasium import spaces
from pettingzoo import ParallelEnv


class Countdown(gymnasium.Env):
    """Observes [seed-drawn offset, step]; an action is its own reward; ends after `limit` steps."""

    def __init__(self, limit=3, truncates=False, action_space=None, observation_space=None, start=0):
        self.limit, self.truncates = limit, truncates
        self.observation_space = observation_space or spaces.Box(-np.inf, np.inf, (2,), np.float64)
        self.action_space = action_space or spaces.Discrete(4, start=start)
        self.received = []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.offset, self.t = float(self.np_random.integers(1000)), 0
        return np.array([self.offset, 0.0]), {}

    def step(self, action):
        self.t += 1
        self.received.append(action)
        over = self.t >= self.limit
        reward = float(np.sum(action))
        return (
            np.array([self.offset, self.t]),
            reward,
            over and not self.truncates,
            over and self.truncates,
            {},
        )


class Structured(gymnasium.Env):
    """A Dict observation of a vector and a Discrete."""

    observation_space = spaces.Dict({"b": spaces.Box(-1, 1, (2,), np.float32), "a": spaces.Discrete(3)})
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        return {"b": np.array([0.5, -0.5], np.float32), "a": 2}, {}

    def step(self, action):
        return {"b": np.array([0.25, 0.0], np.float32), "a": 0}, 0.0, False, False, {}


class Forgetful(Countdown):
    """Ignores its seed: not a function of seed and actions."""

    def reset(self, *, seed=None, options=None):
        return super().reset(seed=None)


class InfoMask(Countdown):
    """Gives its mask in the info: at even steps only action 0 is legal, at odd ones only 1 and 2."""

    def _info(self):
        return {"action_mask": np.array([0, 1, 1, 0] if self.t % 2 else [1, 0, 0, 0], np.int8)}

    def reset(self, *, seed=None, options=None):
        return super().reset(seed=seed)[0], self._info()

    def step(self, action):
        return *super().step(action)[:4], self._info()


class LosesMask(InfoMask):
    """Gives a mask at reset only."""

    def step(self, action):
        return *super().step(action)[:4], {}


class Scripted(ParallelEnv):
    """Plays a script: who is present after each step, who ends how, and who is silent as it goes.

    Agent number n observes n + 1 features, all equal to 10 * step + n; its reward is its action.
    """

    metadata = {"name": "scripted"}  # noqa: RUF012  # PettingZoo's own form

    def __init__(self, script, agents=("a", "b", "c"), masks=False):
        self.script, self.possible_agents, self.masks = script, list(agents), masks
        self.agents = []

    def observation_space(self, agent):
        return spaces.Box(-np.inf, np.inf, (self.possible_agents.index(agent) + 1,), np.float32)

    def action_space(self, agent):
        return spaces.Discrete(self.possible_agents.index(agent) + 2)

    def _see(self, agents):
        numbers = {agent: ascii_lowercase.index(agent) for agent in agents}
        return {agent: np.full(n + 1, 10.0 * self.t + n, np.float32) for agent, n in numbers.items()}

    def _infos(self, agents):
        if not self.masks:
            return {agent: {} for agent in agents}
        return {
            agent: {"action_mask": np.arange(self.action_space(agent).n) == self.t % 2} for agent in agents
        }

    def reset(self, seed=None, options=None):
        self.t = 0
        self.agents = list(self.script[0]["present"])
        return self._see(self.agents), self._infos(self.agents)

    def step(self, actions):
        assert set(actions) == set(self.agents), (actions, self.agents)
        self.t += 1
        now = self.script[self.t]
        acted, self.agents = self.agents, list(now["present"])
        ends = now.get("ends", {})
        speaking = [a for a in dict.fromkeys([*acted, *self.agents]) if a not in now.get("silent", ())]
        return (
            self._see(speaking),
            {a: float(actions[a]) for a in acted},
            {a: ends.get(a) == "terminated" for a in acted if a in ends or a in speaking},
            {a: ends.get(a) == "truncated" for a in acted if a in ends or a in speaking},
            self._infos(speaking),
        )


class Unblind(Scripted):
    """An agent is present without an observation."""

    def step(self, actions):
        result = super().step(actions)
        return ({}, *result[1:])


class NoSpaces(gymnasium.Env):
    """A user's first try: it steps, but says nothing about its spaces."""

    def reset(self, *, seed=None, options=None):
        return 0.0, {}

    def step(self, action):
        return 0.0, 0.0, False, False, {}


class Scored(Countdown):
    """Gives metrics of its own: by default its clock, so that each step's can be told from another's."""

    episode_metrics = ("clock",)

    def __init__(self, given=None, **kwargs):
        super().__init__(**kwargs)
        self.given = given

    def step(self, action):
        *step, info = super().step(action)
        given = {"clock": self.t, "early": np.bool_(self.t < 2)} if self.given is None else self.given
        return *step, {**info, "episode_metrics": given}
