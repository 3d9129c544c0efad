"""A cooperative grid for two different agents, with its optimum by exact search.

Source: ours. On a 4 x 4 board a walker (5 actions) and a climber (3 actions) leave by one door in the corner;
two agents never share a cell, so who is in the way matters. Both see the whole state, so the joint optimum is
within reach of two separate policies, and of one shared one.

Dims: N = 2 agents, 16 cells and one place outside each, T steps.
"""

from __future__ import annotations

import itertools
from functools import cache
from typing import Any

import numpy as np
from gymnasium import spaces
from pettingzoo import ParallelEnv

from seqrl_ray.types import Array

SIDE = 4
DOOR = (SIDE - 1, SIDE - 1)
OUT = (-1, -1)
STEP_REWARD = -0.1
EXIT_REWARD = 1.0
AGENTS = ("walker", "climber")
MOVES = {
    "walker": ((0, 0), (1, 0), (0, 1), (-1, 0), (0, -1)),
    "climber": ((0, 0), (1, 0), (0, 1)),
}

Cell = tuple[int, int]
State = tuple[Cell, Cell]


def advance(state: State, actions: tuple[int, int]) -> tuple[State, tuple[float, float]]:
    """Move both agents, the walker first: into a wall or onto the other is a stay, into the door is out.

    Returns: the new cells, and each agent's own reward: STEP_REWARD while inside, plus EXIT_REWARD as it
        leaves.
    """
    cells = list(state)
    rewards = [0.0, 0.0]
    for n, (agent, action) in enumerate(zip(AGENTS, actions, strict=True)):
        if cells[n] == OUT:
            continue
        rewards[n] = STEP_REWARD
        (x, y), (dx, dy) = cells[n], MOVES[agent][action]
        to = (x + dx, y + dy)
        if to == DOOR:
            cells[n] = OUT
            rewards[n] += EXIT_REWARD
        elif 0 <= to[0] < SIDE and 0 <= to[1] < SIDE and to != cells[1 - n]:
            cells[n] = to
    return (cells[0], cells[1]), (rewards[0], rewards[1])


def starts() -> list[State]:
    """List the equally likely first states: two different cells, neither the door."""
    cells = [(x, y) for x in range(SIDE) for y in range(SIDE) if (x, y) != DOOR]
    return [(a, b) for a in cells for b in cells if a != b]


@cache
def best(state: State, steps_left: int) -> float:
    """Return the largest sum of both agents' rewards from `state`, by exhaustive search over joint "
    "actions.
    """
    if steps_left == 0 or state == (OUT, OUT):
        return 0.0
    values = []
    for actions in itertools.product(*(range(len(MOVES[agent])) for agent in AGENTS)):
        after, rewards = advance(state, (actions[0], actions[1]))
        values.append(sum(rewards) + best(after, steps_left - 1))
    return max(values)


class DoorGrid(ParallelEnv):  # type: ignore[misc]  # pettingzoo is untyped
    """The door grid as a PettingZoo parallel environment.

    Observations (cells in [0, 1], outside = -1): the walker sees [own x, y, climber's x, y, climber inside],
    the climber [own x, y, walker's x, y].
    Every agent earns the mean of both agents' rewards. With `departing` it earns its own, and as it goes out
    it leaves without a word or a last observation. The return (mean over agents of the summed reward), and so
    its optimum, are the same in both. Time is up after `limit_steps`: a truncation.
    """

    metadata = {"name": "door_grid"}  # noqa: RUF012  # PettingZoo's own form

    def __init__(self, departing: bool = False, limit_steps: int = 16) -> None:
        """Build the grid; see the class."""
        self.departing, self.limit_steps = departing, limit_steps
        self.possible_agents = list(AGENTS)
        self.agents: list[str] = []
        features = {"walker": 5, "climber": 4}
        self._obs_spaces = {agent: spaces.Box(-1.0, 1.0, (features[agent],), np.float32) for agent in AGENTS}
        self._action_spaces: dict[str, spaces.Discrete[np.int64]] = {
            agent: spaces.Discrete(len(MOVES[agent])) for agent in AGENTS
        }
        self._state: State = (OUT, OUT)
        self._steps = 0

    def optimum(self) -> float:
        """Return the expected best return over the first states, exactly."""
        return float(np.mean([best(state, self.limit_steps) for state in starts()])) / len(AGENTS)

    def observation_space(self, agent: str) -> spaces.Box:
        return self._obs_spaces[agent]

    def action_space(self, agent: str) -> spaces.Discrete[np.int64]:
        return self._action_spaces[agent]

    def reset(
        self, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Array], dict[str, dict[str, Any]]]:
        first = starts()
        self._state = first[int(np.random.default_rng(seed).integers(len(first)))]
        self._steps = 0
        self.agents = list(AGENTS)
        return self._observe(), {agent: {} for agent in self.agents}

    def step(
        self, actions: dict[str, int]
    ) -> tuple[
        dict[str, Array], dict[str, float], dict[str, bool], dict[str, bool], dict[str, dict[str, Any]]
    ]:
        acted = self.agents
        self._state, own = advance(self._state, (actions.get("walker", 0), actions.get("climber", 0)))
        self._steps += 1
        over, late = self._state == (OUT, OUT), self._steps >= self.limit_steps
        inside = {agent: cell != OUT for agent, cell in zip(AGENTS, self._state, strict=True)}
        rewards = (
            dict(zip(AGENTS, own, strict=True))
            if self.departing
            else dict.fromkeys(AGENTS, sum(own) / len(AGENTS))
        )
        self.agents = [agent for agent in acted if inside[agent] or not self.departing]
        flagged = self.agents
        if over or late:
            self.agents = []
        return (
            self._observe(flagged),
            {agent: rewards[agent] for agent in acted},
            {agent: over for agent in flagged},
            {agent: late and not over for agent in flagged},
            {agent: {} for agent in flagged},
        )

    def _observe(self, agents: list[str] | None = None) -> dict[str, Array]:
        walker, climber = ((x / (SIDE - 1), y / (SIDE - 1)) if (x, y) != OUT else OUT for x, y in self._state)
        seen = {
            "walker": np.array([*walker, *climber, float(climber != OUT)], np.float32),
            "climber": np.array([*climber, *walker], np.float32),
        }
        return {agent: seen[agent] for agent in (self.agents if agents is None else agents)}
