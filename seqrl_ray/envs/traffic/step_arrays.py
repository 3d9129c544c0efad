"""Arrays of a traffic step that do not change from decision to decision, made once.

Dims: S slots of a policy.
"""

from __future__ import annotations

import numpy as np

from seqrl_ray.types import GroupSpec, IntArray


class StepArrays:
    """Of one policy's signals; read-only, because every step hands out the same ones."""

    def __init__(self, group: GroupSpec) -> None:
        size = len(group.slots)
        self.yes, self.no = np.ones(size, bool), np.zeros(size, bool)
        self.zeros = np.zeros(size, np.float32)
        self.nobody = np.zeros(0, np.int64)
        self.nothing = np.zeros((0, *group.obs.shape), group.obs.dtype)
        for array in (self.yes, self.no, self.zeros, self.nobody, self.nothing):
            array.flags.writeable = False
        self._episode = np.full(size, -1, np.int64)

    def episode(self, index: int) -> IntArray:
        """[S] the number of the running episode, read-only."""
        if self._episode.size and self._episode[0] != index:
            self._episode = np.full(len(self._episode), index, np.int64)
            self._episode.flags.writeable = False
        return self._episode
