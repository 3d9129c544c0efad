"""What a transformer has read before: keys and values of the tokens of many slots, kept between decisions.

A token of a causal transformer is a function of itself and those before it, so its keys and values stand as
long as nothing before it goes away. A *row* holds those of one slot's context. Whose they are is settled by
*stamps*: every call leaves a new one on the rows it wrote and in the states it gives back, and only a state
with a row's own stamp may go on from it. A state that was read from a checkpoint, that is older than the row
(two futures of one past), or of other weights finds nothing, and its context is read afresh.
A state at a row's last decision goes on from there; one at the decision before (the same call again) too, in
its place.

Dims: S slots, R rows, L blocks, T tokens of a row, E embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor

IDLE_CALLS = 10_000
"""A row that no call has touched for so long belongs to whoever needs one."""

NEVER = -(1 << 62)

LARGEST_BYTES = 1 << 30
"""Above this the rows that were idle longest are taken, unless one call needs more."""


class Recall:
    """The rows of one network, on its device. Rows, stamps and counts are int64 tensors on the CPU."""

    def __init__(self, blocks: int, tokens: int, units: int, device: torch.device) -> None:
        self.kept = torch.zeros(blocks, 0, 2, tokens, units, device=device)  # [L, R, 2, T, E]
        nobody = torch.zeros(0, dtype=torch.int64)
        self._stamp = nobody  # [R] of the call that wrote last; 0 = nobody's
        self._before = nobody  # [R] the one at the decision before
        self._steps = nobody  # [R] decisions held, the newest without its action
        self._touched = nobody  # [R] number of the call
        self._calls, self._weights = 0, -1

    def weights_are(self, version: int) -> None:
        """Forget everything if the weights are not those that it was read with."""
        if version != self._weights:
            self._weights = version
            self._stamp, self._before = torch.zeros_like(self._stamp), torch.zeros_like(self._stamp)
            self._touched = torch.full_like(self._stamp, NEVER)

    def known(self, row: Tensor, stamp: Tensor, used: Tensor) -> Tensor:
        """[S] bool, whether all but the newest of `used` decisions are held; the newest may have been read
        too, and is read again.
        """
        at, mine = self._own(row, stamp)
        if not len(self._stamp):
            return mine
        more = used - self._steps[at]
        goes_on = (more == 0) | ((more == 1) & (self._stamp[at] == stamp))
        return mine & (stamp > 0) & (used > 1) & goes_on

    def _own(self, row: Tensor, stamp: Tensor) -> tuple[Tensor, Tensor]:
        """Return rows [S], 0 where they are not the state's own, and whether they are."""
        if not len(self._stamp):
            return torch.zeros_like(row), torch.zeros_like(row, dtype=torch.bool)
        at, own = row.clamp(max=len(self._stamp) - 1), stamp.abs()
        mine = (stamp != 0) & ((self._stamp[at] == own) | (self._before[at] == own))
        places = at[mine].tolist()
        if len(set(places)) < len(places):  # one state given twice: its row serves one of them
            seen: set[int] = set()
            for slot in mine.nonzero()[:, 0].tolist():
                mine[slot] = int(at[slot]) not in seen
                seen.add(int(at[slot]))
        return at.where(mine, 0), mine

    def rows(self, row: Tensor, stamp: Tensor, held: bool) -> Tensor:
        """[S] rows to write to: their own where they have one, else others that nobody uses; unless they are
        `held`, emptied: nothing that is not finite may stay, not even unheard.
        """
        found, own = self._own(row, stamp)
        missing = int((~own).sum())
        if missing:
            self._touched[found[own]] = self._calls + 1  # not to be given away
            oldest = self._touched.argsort(stable=True)
            idle = oldest[self._touched[oldest] < self._calls - IDLE_CALLS][:missing]
            if (len(oldest) + missing - len(idle)) * self._row_bytes > LARGEST_BYTES:
                idle = oldest[self._touched[oldest] <= self._calls][:missing]
            new = torch.arange(len(oldest), len(oldest) + missing - len(idle))
            self._grow(len(new))
            self._stamp[idle] = self._before[idle] = self._steps[idle] = 0
            found[~own] = torch.cat([idle, new])
        if not held:
            self.kept[:, consecutive(found, self.kept.device)] = 0.0
        return found

    def wrote(self, rows: Tensor, used: Tensor, held: bool) -> int:
        """Take note that `rows` hold `used` decisions now, and `held` all but the newest before; returns the
        stamp that the states are given.
        """
        self._calls += 1
        again = self._steps[rows] == used
        self._before[rows] = self._before[rows].where(again, self._stamp[rows]) if held else 0
        self._stamp[rows] = self._touched[rows] = self._calls
        self._steps[rows] = used
        return self._calls

    @property
    def _row_bytes(self) -> int:
        blocks, _, two, tokens, units = self.kept.shape
        return blocks * two * tokens * units * self.kept.element_size()

    def _grow(self, count: int) -> None:
        if not count:
            return
        count = max(count, min(len(self._stamp), LARGEST_BYTES // self._row_bytes - len(self._stamp)))
        blocks, _, *rest = self.kept.shape
        self.kept = torch.cat([self.kept, self.kept.new_zeros(blocks, count, *rest)], 1)
        none = self._stamp.new_zeros(count)
        self._stamp, self._before, self._steps = (
            torch.cat([old, none]) for old in (self._stamp, self._before, self._steps)
        )
        self._touched = torch.cat([self._touched, none + NEVER])


def consecutive(rows: Tensor, device: torch.device) -> slice | Tensor:
    """Return rows [S] as a slice, through which torch looks without copying, where they are one; else on
    `device`.
    """
    first, count = int(rows[0]), len(rows)
    if torch.equal(rows, torch.arange(first, first + count)):
        return slice(first, first + count)
    return rows.to(device)
