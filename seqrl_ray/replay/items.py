"""Which rows are items, and when: the moment an item has everything its view reads, and the moment it loses
some.

An item is named by its first row i. It reads `lookback` earlier rows of the stream (frame stack) and up to
`horizon` later ones (n steps, or K window steps and the observation after them), fewer only where the stream
ended: at a final row. A stream that was cut has no final row, so items that need rows beyond the cut are
never live. Specs with returns, and samplers that choose by episode, wait for the end of the episode.

Dims: R rows, I items, L rows of an episode.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from seqrl_ray.replay.columns import FINAL
from seqrl_ray.replay.store import Store, Stored
from seqrl_ray.types import FloatArray, SampleSpec
from seqrl_ray.types_env import Trajectory

Int64Array = NDArray[np.int64]
Float64Array = NDArray[np.float64]


@dataclass(frozen=True)
class NewItems:
    """Items that became sampleable."""

    rows: Int64Array  # [I]
    episode_steps: Int64Array | None = None  # [I] decisions of the item's episode that are stored
    episode_return: Float64Array | None = None  # [I] undiscounted sum of its rewards that are stored
    episode_items: Int64Array | None = None  # [I] items of its episode


class ItemRule:
    """The rule of one spec on one store."""

    def __init__(self, store: Store, spec: SampleSpec, *, by_episode: bool) -> None:
        """Fix the rule.

        Args:
            store: where the rows are.
            spec: what an item is.
            by_episode: items wait for the end of their episode, and come with its length and return.
        """
        self._store, self._spec = store, spec
        self._horizon = spec.n_step if spec.view == "transitions" else spec.window_steps
        self._period = spec.period_steps if spec.view == "windows" else 1
        self._lookback = store.group.frame_stack - 1
        self.by_episode = by_episode or spec.returns

    def completed(self, stored: Stored) -> NewItems:
        """Items that the rows just stored made sampleable."""
        if self.by_episode:
            return self._whole_episodes(stored.ends)
        return NewItems(self.still_serving(self._reached(stored)))

    def ended(self, trajectory: Trajectory) -> int | None:
        """Return the most items that the episodes which end in a fragment can release; None where items do
        not wait for the end.
        """
        if not self.by_episode:
            return None
        last = trajectory.columns["final"][np.cumsum(trajectory.length) - 1]  # [P]
        steps = (trajectory.offset + trajectory.length - 1)[last]
        return int((-(-steps // self._period)).sum())

    def readers(self, rows: Int64Array) -> Int64Array:
        """Items that read one of `rows` [R] and are not later than it: themselves and those that look back at
        them.

        Rows leave oldest first or with their whole segment, so items that look *ahead* at them have left
        already.
        """
        reached, at = [rows], rows
        for _ in range(self._lookback):
            at = self._store.next_row[at]
            at = at[at >= 0]
            reached.append(at)
        return np.concatenate(reached) if self._lookback else rows

    def _reached(self, stored: Stored) -> Int64Array:
        """Rows `horizon` behind a new row, and all decisions up to `horizon` behind a new final row."""
        previous = self._store.prev_row
        at, end = stored.rows, stored.ends
        reached = []
        for step in range(1, self._horizon + 1):
            at = previous[at]
            at = at[at >= 0]
            if end.size and step < self._horizon:
                end = previous[end]
                end = end[end >= 0]
                reached.append(end)
        return np.concatenate([*reached, at]) if reached else at

    def still_serving(self, rows: Int64Array) -> Int64Array:
        """Those of `rows` [R] where an item may start: on the period, with the rows it looks back at."""
        if self._period > 1:
            rows = rows[self._store.offset[rows] % self._period == 0]
        if self._lookback == 0:
            return rows
        whole = np.ones(rows.size, bool)
        at = rows
        for _ in range(self._lookback):
            before = self._store.prev_row[at]
            whole &= (before >= 0) | (self._store.offset[at] == 0)
            at = np.where(
                before >= 0, before, at
            )  # stay put: an offset of 0 keeps passing, a lost row keeps failing
        return rows[whole]

    def _whole_episodes(self, ends: Int64Array) -> NewItems:
        none = np.zeros(0, np.int64)
        rows, steps, counts, returns = [none], [none], [none], [np.zeros(0)]
        for end in ends.tolist():
            chain = np.array(self._store.chain(end), np.int64)  # [L]
            reward = self._store.columns["reward"][chain].astype(np.float64)
            if self._spec.returns:
                self._store.columns["return_to_go"][chain] = discounted_sums(reward, self._spec.return_gamma)
            serving = self.still_serving(chain[:-1])
            rows.append(serving)
            steps.append(np.full(serving.size, chain.size - 1))
            returns.append(np.full(serving.size, reward.sum()))
            counts.append(np.full(serving.size, serving.size))
        return NewItems(
            np.concatenate(rows), np.concatenate(steps), np.concatenate(returns), np.concatenate(counts)
        )

    def check(self, live: Int64Array) -> None:
        """Raise AssertionError if a live item lacks a row it reads."""
        store = self._store
        assert (store.offset[live] >= 0).all(), "a live item's row is not stored"
        assert (store.flags[live] != FINAL).all(), "a final row is an item"
        assert self.still_serving(live).size == live.size, (
            "a live item lacks an earlier row or is off the period"
        )
        at = live
        for _ in range(self._horizon):
            at = store.next_row[at]
            assert (at >= 0).all(), "a live item lacks a later row"


def discounted_sums(reward: FloatArray, gamma: float) -> Float64Array:
    """Return-to-go R_t = r_t + gamma R_{t+1} of every step of an episode.

    A linear recurrence by doubling: after round j each element holds the sum of its next 2^j rewards, so a
    long episode costs O(L log L) vectorised operations and no Python step per reward.

    Args:
        reward: [L] any float dtype, oldest first.
        gamma: discount in [0, 1].

    Returns: [L] float64.
    """
    total = reward.astype(np.float64)
    if gamma == 1.0:
        return np.asarray(np.cumsum(total[::-1])[::-1])
    reach, factor = 1, gamma
    while reach < total.size and factor > 0.0:
        total[:-reach] += factor * total[reach:].copy()
        reach, factor = reach * 2, factor * factor
    return total
