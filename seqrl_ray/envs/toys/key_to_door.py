"""Key-to-Door: a key must be picked up in the first room for the door of the last to count, long after.

Source: Mesnard et al. 2021 (Counterfactual Credit Assignment, https://arxiv.org/abs/2011.09464), as used by
Chen et al. 2021 (Decision Transformer, https://arxiv.org/abs/2106.01345): three phases, the distractor room
empty, one binary reward at the end. No generator was published (kzl/decision-transformer#54): sizes are ours,
chosen so that the random policy succeeds as often as theirs does, in 3.1 % of episodes.

Dims: C = side * side cells of a room, T steps of a phase.
"""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces

from seqrl_ray.errors import EnvError
from seqrl_ray.types import Array

Info = dict[str, Any]

KEY_ROOM, EMPTY_ROOM, DOOR_ROOM = range(3)
MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))
"""Row and column of up, down, left, right."""


class KeyToDoor(gymnasium.Env[Array, int]):
    """Three square rooms, one after the other, a fixed number of steps in each.

    The key lies in the first room's upper left corner, the door is in the last one's lower right; walking
    onto them is all there is to do. In each room the agent begins in a random cell, never on the key or the
    door; walls are stays. Nobody leaves early: the phase's clock moves the agent on, and the last step pays 1
    if the door was reached by an agent that had the key, else 0.

    Observation: float32 vector [room, one-hot of 3; agent's cell, one-hot of C, row by row; key in sight].
    The key is in sight while it lies in the first room, so whether the agent has it is not to be seen in the
    other two. Actions: up, down, left, right.

    Metrics: `success` (the return), `picked_key`, `reached_door`.
    """

    episode_metrics: ClassVar[tuple[str, ...]] = ("success", "picked_key", "reached_door")
    optimum = 1.0
    """Return of going straight to key and door: each phase is long enough for the longest way."""

    def __init__(
        self, side: int = 4, key_steps: int = 8, distractor_steps: int = 4, door_steps: int = 8
    ) -> None:
        """Build the rooms.

        Args:
            side: cells along a room's wall, at least 2.
            key_steps: steps in the first room; at least the longest way, 2 * (side - 1).
            distractor_steps: steps in the empty room.
            door_steps: steps in the last room; at least the longest way.
        Raises: EnvError: a phase too short for its longest way.
        """
        longest = 2 * (side - 1)
        for name, steps in (("key_steps", key_steps), ("door_steps", door_steps)):
            if steps < max(longest, 1):
                raise EnvError(
                    f"{name}={steps} is below 2 * (side - 1) = {longest}: some starts could not succeed. "
                    "Give more steps or a smaller side."
                )
        self.side = side
        self.phase_steps = (key_steps, distractor_steps, door_steps)
        cells = side * side
        self._target = (0, None, cells - 1)
        self._rooms = np.repeat(np.arange(3), self.phase_steps)  # [T of all phases] room of each step
        self.observation_space = spaces.Box(0.0, 1.0, (3 + cells + 1,), np.float32)
        self.action_space = spaces.Discrete(len(MOVES))
        self._room = self._cell = self._steps = 0
        self._picked = self._reached = False

    def random_success(self) -> float:
        """Return the probability that uniformly random actions succeed, exactly.

        The phases are independent: P(key met within its steps) * P(door met within its steps).
        """
        return self._random_hit(KEY_ROOM) * self._random_hit(DOOR_ROOM)

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[Array, Info]:
        super().reset(seed=seed)
        self._steps = 0
        self._picked = self._reached = False
        self._enter(KEY_ROOM)
        return self._observe(), self._info()

    def step(self, action: int) -> tuple[Array, float, bool, bool, Info]:
        self._cell = self._moved(self._cell, action)
        if self._cell == self._target[self._room]:
            if self._room == KEY_ROOM:
                self._picked = True
            else:
                self._reached = True
        self._steps += 1
        over = self._steps == len(self._rooms)
        if not over and self._rooms[self._steps] != self._room:
            self._enter(int(self._rooms[self._steps]))
        reward = float(over and self._picked and self._reached)
        return self._observe(), reward, over, False, self._info()

    def _enter(self, room: int) -> None:
        """Put the agent into a random cell of `room`, none with something in it."""
        target = self._target[room]
        cells = [cell for cell in range(self.side**2) if cell != target]
        self._room, self._cell = room, cells[int(self.np_random.integers(len(cells)))]

    def _moved(self, cell: int, action: int) -> int:
        row, column = divmod(cell, self.side)
        row += MOVES[action][0]
        column += MOVES[action][1]
        inside = 0 <= row < self.side and 0 <= column < self.side
        return row * self.side + column if inside else cell

    def _random_hit(self, room: int) -> float:
        cells, target = self.side**2, self._target[room]
        chance = np.where(np.arange(cells) == target, 0.0, 1.0 / (cells - 1))  # [C] of being there, unmet
        for _ in range(self.phase_steps[room]):
            after = np.zeros(cells)  # [C]
            for cell in range(cells):
                for action in range(len(MOVES)):
                    after[self._moved(cell, action)] += chance[cell] / len(MOVES)
            after[target] = 0.0
            chance = after
        return 1.0 - float(chance.sum())

    def _observe(self) -> Array:
        seen = np.zeros(self.observation_space.shape or (), np.float32)
        seen[self._room] = 1.0
        seen[3 + self._cell] = 1.0
        seen[-1] = float(self._room == KEY_ROOM and not self._picked)
        return seen

    def _info(self) -> Info:
        numbers = (float(self._picked and self._reached), float(self._picked), float(self._reached))
        return {"episode_metrics": dict(zip(self.episode_metrics, numbers, strict=True))}
