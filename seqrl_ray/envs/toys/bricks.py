"""A small image game: a paddle, a ball and a wall of bricks on a 10 x 10 board.

Source: ours, in the spirit of Atari's Breakout (1976) and of the size of the MinAtar games (Young & Tian
2019, https://arxiv.org/abs/1903.03176). It is none of them: rules and scores are its own and compare with
nothing else.

Dims: H = W = 10 cells, C = 4 channels: paddle, ball, the ball's last place, bricks.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from seqrl_ray.types import Array

SIDE = 10
BRICK_ROWS = slice(1, 4)
FLOOR = SIDE - 1


class PaddleBricks(gymnasium.Env[Array, int]):
    """Keep the ball in play and break bricks with it.

    Observation: [H, W, C] uint8, 0 or 255. Actions: stay, left, right. The ball moves one cell diagonally per
    step and bounces off the side walls, the ceiling, bricks and the paddle; a moving paddle sends it its own
    way. A brick earns 1 and is gone; a cleared wall is built anew. The episode terminates when the ball
    reaches the floor beside the paddle; a time limit is the recipe's.
    """

    def __init__(self) -> None:
        """Build the board."""
        self.observation_space = spaces.Box(0, 255, (SIDE, SIDE, 4), np.uint8)
        self.action_space = spaces.Discrete(3)
        self._bricks: Array = np.zeros((SIDE, SIDE), np.bool_)
        self._paddle = self._row = self._column = self._down = self._right = 0
        self._trail = (0, 0)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        super().reset(seed=seed)
        self._bricks[:] = False
        self._bricks[BRICK_ROWS] = True
        self._paddle = SIDE // 2
        self._row, self._column = BRICK_ROWS.stop, int(self.np_random.integers(SIDE))
        self._down, self._right = 1, int(self.np_random.choice([-1, 1]))
        self._trail = (self._row, self._column)
        return self._observe(), {}

    def step(self, action: int) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        self._paddle = min(max(self._paddle + (0, -1, 1)[action], 0), FLOOR)
        self._trail = (self._row, self._column)
        if not 0 <= self._column + self._right < SIDE:
            self._right = -self._right
        if self._row + self._down < 0:
            self._down = 1
        row, column = self._row + self._down, self._column + self._right
        reward, lost = 0.0, False
        if self._bricks[row, column]:  # the ball bounces back from it, in its own cell
            self._bricks[row, column] = False
            self._down, row, column, reward = -self._down, self._row, self._column, 1.0
        elif row == FLOOR:
            lost = column != self._paddle
            if not lost:
                self._down, row = -1, self._row
                self._right = (self._right, -1, 1)[action]
        self._row, self._column = row, column
        if not self._bricks.any() and self._row >= BRICK_ROWS.stop:  # never onto the ball
            self._bricks[BRICK_ROWS] = True
        return self._observe(), reward, lost, False, {}

    def _observe(self) -> Array:
        board = np.zeros((SIDE, SIDE, 4), np.uint8)  # [H, W, C]
        board[FLOOR, self._paddle, 0] = 255
        board[self._row, self._column, 1] = 255
        board[(*self._trail, 2)] = 255
        board[self._bricks, 3] = 255
        return board
