"""Which rows a new fragment may take: a ring of steps, or a pool of rows that whole episodes leave.

`fifo_steps` overwrites the oldest rows, whatever episode they are of: constant work per fragment, all
vectorised. `fifo_episodes` and `lowest_return_first` free whole segments: closed ones first, in order of
closing or of return (a segment that was cut counts with the rewards it holds), and the oldest open one only
when nothing is closed.

Dims: N rows of capacity, R rows asked for.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Int64Array = NDArray[np.int64]


@dataclass(frozen=True)
class Growth:
    """What a fragment added to one segment."""

    segment: int
    tail_row: int
    reward: float
    ended: bool


class Allocator(Protocol):
    """Gives rows to fragments and says which live rows must go for that. `rows` <= capacity always."""

    whole_segments: bool
    """Whole segments leave, so `grew` and `closed` must be told."""

    def allocate(self, rows: int) -> tuple[Int64Array, Int64Array]:
        """Rows to write [R], and those that were live and must be evicted first."""
        ...

    def grew(self, growth: Growth) -> None: ...
    def closed(self, segment: int) -> None: ...
    @property
    def used(self) -> int: ...
    def state(self) -> dict[str, Any]: ...
    def restore(self, state: Mapping[str, Any]) -> None: ...


class Ring:
    """Rows in writing order; the oldest are overwritten."""

    whole_segments = False

    def __init__(self, capacity: int) -> None:
        """Start empty."""
        self._capacity = capacity
        self._cursor = 0
        self._used = 0

    def allocate(self, rows: int) -> tuple[Int64Array, Int64Array]:
        """The next `rows` rows of the ring; those of them that are in use leave."""
        taken = np.arange(self._cursor, self._cursor + rows)
        taken[taken >= self._capacity] -= self._capacity
        free = self._capacity - self._used
        self._cursor = (self._cursor + rows) % self._capacity
        self._used = min(self._used + rows, self._capacity)
        return taken, taken[free:]

    def grew(self, growth: Growth) -> None:
        """Nothing to note: age alone decides."""

    def closed(self, segment: int) -> None:
        """Nothing to note: age alone decides."""

    @property
    def used(self) -> int:
        """Rows in use."""
        return self._used

    def state(self) -> dict[str, Any]:
        """Cursor and fill."""
        return {"cursor": self._cursor, "used": self._used}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` returned."""
        self._cursor, self._used = int(state["cursor"]), int(state["used"])


class Segments:
    """A pool of rows; whole segments leave, by order of closing or lowest return first."""

    whole_segments = True

    def __init__(self, capacity: int, *, by_return: bool, chain: Callable[[int], list[int]]) -> None:
        """Start empty.

        Args:
            capacity: N rows.
            by_return: the lowest return leaves first, else the first closed.
            chain: rows of the segment that ends at a row, up to it.
        """
        self._by_return = by_return
        self._chain = chain
        self._free = list(range(capacity - 1, -1, -1))  # a stack: row 0 is taken first
        self._capacity = capacity
        self._open: dict[int, list[float]] = {}  # segment -> [tail row, return]
        self._closed: list[tuple[float, int, int]] = []  # heap of (key, order of closing, tail row)
        self._closings = 0

    def allocate(self, rows: int) -> tuple[Int64Array, Int64Array]:
        """`rows` free rows; segments leave until there are as many."""
        evicted: list[int] = []
        while len(self._free) + len(evicted) < rows:
            if self._closed:
                tail = heapq.heappop(self._closed)[2]
            else:
                tail = int(self._open.pop(next(iter(self._open)))[0])
            evicted += self._chain(tail)
        self._free += reversed(evicted)
        taken = self._free[len(self._free) - rows :][::-1]
        del self._free[len(self._free) - rows :]
        return np.array(taken, np.int64), np.array(evicted, np.int64)

    def grew(self, growth: Growth) -> None:
        """Note a segment's new tail and rewards."""
        earlier = self._open.get(growth.segment, [0.0, 0.0])[1]
        self._open[growth.segment] = [float(growth.tail_row), earlier + growth.reward]
        if growth.ended:
            self.closed(growth.segment)

    def closed(self, segment: int) -> None:
        """Note that a segment will not grow any more."""
        record = self._open.pop(segment, None)
        if record is None:  # it left while it was open
            return
        key = record[1] if self._by_return else 0.0
        heapq.heappush(self._closed, (key, self._closings, int(record[0])))
        self._closings += 1

    @property
    def used(self) -> int:
        """Rows in use."""
        return self._capacity - len(self._free)

    def keep_best(self, rows: int, total: Callable[[list[int]], float]) -> Int64Array:
        """Free the rows of closed segments, those of the lowest total first, until at most `rows` are in use
        or nothing is closed; returns them.
        """
        chains = [self._chain(entry[2]) for entry in self._closed]
        freed: list[int] = []
        for _, place in sorted((total(chain), place) for place, chain in enumerate(chains)):
            if self.used - len(freed) <= rows:
                break
            freed += chains[place]
            chains[place] = []
        kept = zip(self._closed, chains, strict=True)
        self._closed = [entry for entry, chain in kept if chain]
        heapq.heapify(self._closed)
        self._free += reversed(freed)
        return np.array(freed, np.int64)

    def state(self) -> dict[str, Any]:
        """Free rows and segments."""
        return {
            "free": list(self._free),
            "open": [[segment, *record] for segment, record in self._open.items()],
            "closed": [list(entry) for entry in self._closed],
            "closings": self._closings,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` returned."""
        self._free = [int(row) for row in state["free"]]
        self._open = {int(segment): [tail, total] for segment, tail, total in state["open"]}
        self._closed = [(float(key), int(order), int(tail)) for key, order, tail in state["closed"]]
        self._closings = int(state["closings"])
