"""A stitching probe: two behaviours that cross once, and a best return that takes half of each.

Source: ours; the question is that of Wu et al. 2023 (Elastic Decision Transformer,
https://arxiv.org/abs/2307.02484), figure 1.

An hourglass of 13 columns; every step goes one column to the right and up, down or straight on. All ways meet
in its waist, column 6. Path a takes the better coin before it and the worse one after it, path b the other
way round:

    column  0   3   6   9   12          return
    row 0       3       2               a: 3 + 1 = 4    b: 1 + 2 = 3
    row 2   S       X                   best: 3 + 2 = 5 (a, then b)    worst of the four: 1 + 1 = 2
    row 4       1       1

Why it separates a Decision Transformer from an Elastic one: in the data the waist is left by a with
return-to-go 1 after a's history and by b with return-to-go 2 after b's, never otherwise. A DT told the best
return in the data, 4, is on path a with return-to-go 1 at the waist, and everything it sees says a: 4. (Told
5, it is asked for what no data show; history and return-to-go then disagree, and which one it heeds is not
determined.) An EDT that drops its history at the waist sees there the observation and the time that b sees,
expects 2 instead of 1, and goes on as b: 5. Both halves take the same number of steps, so the time tells
nothing; and that number is even, so that dropping two steps at a time can leave the waist alone. At the start
a promises more (4 > 3), so what is best in the data is also the right beginning.

Dims: 13 columns, 5 rows, 12 steps.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import gymnasium
import numpy as np
from gymnasium import spaces

from seqrl_ray.errors import EnvError
from seqrl_ray.types import Array

ROWS, HALF = 5, 6
STEPS = 2 * HALF
START_ROW = ROWS // 2
REACH = (0, 1, 2, 2, 2, 1, 0, 1, 2, 2, 2, 2, 2)
"""Per column, how far from the middle row the hourglass is open."""
COINS = {(3, 0): 3.0, (3, 4): 1.0, (9, 0): 2.0, (9, 4): 1.0}
"""(column, row) -> what entering it pays. A column is entered once, so nothing is paid twice."""

UP, STRAIGHT, DOWN = range(3)
_RISE = (UP, UP, STRAIGHT, STRAIGHT, DOWN, DOWN)  # out to row 0 and back
_FALL = (DOWN, DOWN, STRAIGHT, STRAIGHT, UP, UP)
PATHS = {
    "a": (*_RISE, *_FALL[:4], STRAIGHT, STRAIGHT),
    "b": (*_FALL, *_RISE[:4], STRAIGHT, STRAIGHT),
}
"""The two behaviours: an action per column."""
PATH_RETURNS = {"a": 4.0, "b": 3.0}

Behaviour = Literal["a", "b", "both"]
Info = dict[str, Any]


def behaviour_action(path: str, obs: Array) -> int:
    """Return what behaviour "a" or "b" does at an observation.

    The path must be told: at the start and in the waist the observation is the same on both.
    """
    return PATHS[path][int(obs[0])]


class StitchGrid(gymnasium.Env[Array, int]):
    """The hourglass. Moves out of it slide along its wall: they end in the nearest open row.

    Observation: [column, row] (MultiDiscrete; every door of ours stores it as two one-hots). Actions: up,
    straight, down. The episode terminates in the last column.

    With `behaviour` it is there to collect data from: each episode follows path a or b ("both": a fair coin
    per episode), and `action_mask` leaves exactly that path's action legal, so that a random policy records
    it as its own choice. Which path it is stands nowhere else. Without, every action is legal and there is no
    mask.

    Metric: `stitched`, 1 if the episode earned the optimum.
    """

    episode_metrics: ClassVar[tuple[str, ...]] = ("stitched",)
    optimum = 5.0
    """Best return of all; path a earns 4, path b 3 (`PATH_RETURNS`)."""
    chance = 28 / 27
    """Expected return of uniformly random actions (a test works it out)."""

    def __init__(self, behaviour: Behaviour | None = None) -> None:
        """Build the hourglass.

        Args:
            behaviour: whose actions alone are legal: "a", "b", or "both", one of the two per episode; None
                leaves the agent free.
        Raises: EnvError: another behaviour.
        """
        choices = {None: (), "a": ("a",), "b": ("b",), "both": ("a", "b")}
        if behaviour not in choices:
            raise EnvError(
                f"behaviour={behaviour!r} is not one of a, b, both: there is no such path to follow. Name "
                "one of them, or leave it out to let the agent act."
            )
        self._paths = choices[behaviour]
        self._path: str | None = None
        self.observation_space = spaces.MultiDiscrete([STEPS + 1, ROWS])
        self.action_space = spaces.Discrete(3)
        self._column, self._row, self._return = 0, START_ROW, 0.0

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[Array, Info]:
        super().reset(seed=seed)
        self._path = self._paths[int(self.np_random.integers(len(self._paths)))] if self._paths else None
        self._column, self._row, self._return = 0, START_ROW, 0.0
        return self._observe(), self._info()

    def step(self, action: int) -> tuple[Array, float, bool, bool, Info]:
        self._column += 1
        reach = REACH[self._column]
        self._row = min(max(self._row + (-1, 0, 1)[action], START_ROW - reach), START_ROW + reach)
        reward = COINS.get((self._column, self._row), 0.0)
        self._return += reward
        return self._observe(), reward, self._column == STEPS, False, self._info()

    def _observe(self) -> Array:
        return np.array([self._column, self._row], np.int64)

    def _info(self) -> Info:
        info: Info = {"episode_metrics": {"stitched": float(self._return == self.optimum)}}
        if self._path is not None:
            action = STRAIGHT if self._column == STEPS else behaviour_action(self._path, self._observe())
            info["action_mask"] = np.arange(3) == action
        return info
