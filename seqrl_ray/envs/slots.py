"""The arrays of one policy group whose agents come and go, between two steps and while one is made.

Source: ours; used by the PettingZoo door. Two observation buffers are used in turn: what a caller holds stays
untouched during the next step.

Dims: N agents of the group in one copy, S slots, A actions, F ended streams.
"""

from __future__ import annotations

import numpy as np

from seqrl_ray.envs.grouping import agents_of, blank_rows, own_actions
from seqrl_ray.types import Array, GroupSpec
from seqrl_ray.types_env import Step


class GroupArrays:
    """The arrays of one policy group, between two steps and while one is made."""

    def __init__(self, spec: GroupSpec) -> None:
        slots = len(spec.slots)
        self.spec = spec
        self.agents = len(agents_of(spec))
        self.buffers = (blank_rows(spec), blank_rows(spec))
        self.rows = self.buffers[0]
        self.own = own_actions(spec) if spec.masked else None
        self.legal = None if self.own is None else self.own.copy()
        self.active = np.zeros(slots, np.bool_)
        self.episode_id = np.full(slots, -1, np.int64)
        self.clear()

    def clear(self) -> None:
        """Forget the last transition."""
        slots = len(self.spec.slots)
        self.reward = np.zeros(slots, np.float32)
        self.terminated, self.truncated, self.valid, self.is_first = np.zeros((4, slots), np.bool_)
        self.final_slots: list[int] = []
        self.final_obs: list[Array] = []
        self.final_legal: list[Array] = []

    def leave(self, slot: int) -> None:
        """End the stream of `slot` with what its row and mask hold now."""
        self.final_slots.append(slot)
        self.final_obs.append(self.rows[slot].copy())
        if self.legal is not None:
            self.final_legal.append(self.legal[slot].copy())
        self.empty(slice(slot, slot + 1))

    def enter(self, slot: int) -> None:
        """Open a new stream in `slot`."""
        self.active[slot] = self.is_first[slot] = True
        self.episode_id[slot] += 1

    def empty(self, slots: slice) -> None:
        """Drop what goes on in these slots."""
        self.active[slots] = False
        if self.legal is not None and self.own is not None:
            self.legal[slots] = self.own[slots]

    def turn(self) -> None:
        """Go to the other buffer: what the caller holds stays, and slots that get nothing new keep what "
        "they saw.
        """
        before = self.rows
        self.rows = self.buffers[1] if before is self.buffers[0] else self.buffers[0]
        self.rows[:] = before
        if self.legal is not None:
            self.legal = self.legal.copy()
        self.clear()

    def step(self) -> Step:
        """Return the arrays as a Step."""
        obs = self.spec.obs
        finals = len(self.final_slots)
        return Step(
            obs=self.rows,
            reward=self.reward,
            terminated=self.terminated,
            truncated=self.truncated,
            valid=self.valid,
            active=self.active.copy(),
            is_first=self.is_first,
            episode_id=self.episode_id.copy(),
            final_slots=np.array(self.final_slots, np.int64),
            final_obs=np.array(self.final_obs, obs.dtype).reshape(finals, *obs.shape),
            legal=self.legal,
            final_legal=None
            if self.legal is None
            else np.array(self.final_legal, np.bool_).reshape(finals, self.spec.action.n),
        )
