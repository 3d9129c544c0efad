"""Three probes, each for one thing an algorithm can get wrong: memory, masks, and truncation.

Source: ours; `RecallCorridor` is the T-maze of Bakker 2002 ("Reinforcement Learning with Long Short-Term
Memory") with the walking taken out.

Dims: L cells of a corridor or chain, A actions.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from seqrl_ray.types import Array

Info = dict[str, Any]


class RecallCorridor(gymnasium.Env[Array, int]):
    """A cue is shown in the first cell only; in the last cell the action must name it.

    Observation: [cue (-1 or 1 in the first cell, else 0), place in [0, 1], 1 in the last cell]. Actions: 2,
    and only the last one counts: +1 if it names the cue, else -1. Without memory the cue is a coin toss.
    """

    optimum = 1.0
    """Return of a policy that remembers."""
    chance = 0.0
    """Expected return of every policy that does not."""

    def __init__(self, length: int = 6) -> None:
        """Build a corridor of L = `length` cells (at least 2)."""
        self.length = length
        self.observation_space = spaces.Box(-1.0, 1.0, (3,), np.float32)
        self.action_space = spaces.Discrete(2)
        self._cell = self._cue = 0

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[Array, Info]:
        super().reset(seed=seed)
        self._cell, self._cue = 0, int(self.np_random.integers(2))
        return self._observe(), {}

    def step(self, action: int) -> tuple[Array, float, bool, bool, Info]:
        self._cell += 1
        if self._cell < self.length:
            return self._observe(), 0.0, False, False, {}
        return np.zeros(3, np.float32), 1.0 if action == self._cue else -1.0, True, False, {}

    def _observe(self) -> Array:
        last = self.length - 1
        cue = 2.0 * self._cue - 1.0 if self._cell == 0 else 0.0
        return np.array([cue, self._cell / last, float(self._cell == last)], np.float32)


class MinedChain(gymnasium.Env[dict[str, Array], int]):
    """A chain to walk along: in every cell one action advances, one stays, the others are illegal: mines.

    Observation: Dict of a one-hot of the cell and the mask of legal actions. Advancing earns 1, staying 0, a
    mine -10 and the end. The episode terminates past the last cell, and is truncated after 4 L steps.
    """

    actions = 4
    mine_reward = -10.0

    def __init__(self, length: int = 8) -> None:
        """Build a chain of L = `length` cells; episodes start in its first half."""
        self.length = length
        self.observation_space = spaces.Dict(
            {"observation": spaces.MultiBinary(length), "action_mask": spaces.MultiBinary(self.actions)}
        )
        self.action_space = spaces.Discrete(self.actions)
        self._cell = self._steps = 0

    def optimum(self) -> float:
        """Return the expected return of always advancing."""
        return float(np.mean([self.length - start for start in range(self.length // 2)]))

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[dict[str, Array], Info]:
        super().reset(seed=seed)
        self._cell, self._steps = int(self.np_random.integers(self.length // 2)), 0
        return self._observe(), {}

    def step(self, action: int) -> tuple[dict[str, Array], float, bool, bool, Info]:
        self._steps += 1
        if action not in (self._cell % self.actions, (self._cell + 1) % self.actions):
            return self._observe(), self.mine_reward, True, False, {}
        advanced = action == self._cell % self.actions
        self._cell += int(advanced)
        out = self._cell == self.length
        return self._observe(), float(advanced), out, not out and self._steps >= 4 * self.length, {}

    def _observe(self) -> dict[str, Array]:
        cell = np.zeros(self.length, np.int8)
        mask = np.zeros(self.actions, np.int8)
        if self._cell < self.length:
            cell[self._cell] = 1
        mask[[self._cell % self.actions, (self._cell + 1) % self.actions]] = 1
        return {"observation": cell, "action_mask": mask}


class Endless(gymnasium.Env[Array, int]):
    """Every step earns 1 and nothing ever changes, but the clock cuts the episode.

    If the cut is a truncation, the value is 1 / (1 - gamma), whatever the limit; if it is a termination
    (`ends`), it is (1 - gamma^k) / (1 - gamma) with k steps left. An algorithm that mixes the two up shows it
    here.
    """

    def __init__(self, limit_steps: int = 10, ends: bool = False) -> None:
        """Cut after `limit_steps`, by termination if `ends`, else by truncation."""
        self.limit_steps, self.ends = limit_steps, ends
        self.observation_space = spaces.Box(0.0, 1.0, (1,), np.float32)
        self.action_space = spaces.Discrete(2)
        self._steps = 0

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[Array, Info]:
        super().reset(seed=seed)
        self._steps = 0
        return np.ones(1, np.float32), {}

    def step(self, action: int) -> tuple[Array, float, bool, bool, Info]:
        self._steps += 1
        cut = self._steps >= self.limit_steps
        return np.ones(1, np.float32), 1.0, cut and self.ends, cut and not self.ends, {}
