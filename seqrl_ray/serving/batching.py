"""Many clients, one call: what arrives while the network is at work goes into its next call together.

No timer: a request that finds the network idle is answered at once, and the busier it is the larger its
calls become. `rows` bounds one call, and another bound what may wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from seqrl_ray.serving.refusals import BUSY, Refused

A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")


class _Call(Generic[A, B]):
    """One call to come: its items, and the task that will answer them."""

    def __init__(self) -> None:
        self.items: list[A] = []
        self.rows = 0
        self.done: asyncio.Task[list[B]]


class Batcher(Generic[A, B]):
    """Hands items from many coroutines to one thread, many at a time and one call after another."""

    def __init__(
        self,
        work: Callable[[Sequence[A]], list[B]],
        rows: Callable[[A], int],
        *,
        max_rows: int,
        max_waiting_rows: int,
    ) -> None:
        """Begin idle; belongs to the running event loop from its first item on.

        Args:
            work: items -> one result each, in order; runs in the one thread.
            rows: size of an item.
            max_rows: of one call; a single item may be larger.
            max_waiting_rows: of all items that have no result yet.
        """
        self._work, self._rows = work, rows
        self._max_rows, self._max_waiting = max_rows, max_waiting_rows
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="policy")
        self._turn = asyncio.Lock()
        self._open: _Call[A, B] | None = None
        self.waiting_rows = 0
        self.calls = 0
        """Made so far."""

    async def do(self, item: A) -> B:
        """Return the result of one item.

        Raises: Refused: too much waits already. What `work` raises, everybody in that call gets.
        """
        size = self._rows(item)
        if self.waiting_rows + size > self._max_waiting:
            raise Refused(f"{self.waiting_rows} rows wait already: come again later.", BUSY)
        call = self._open
        if call is None or call.rows + size > self._max_rows:
            call = self._open = _Call()
            call.done = asyncio.create_task(self._run(call))
        place = len(call.items)
        call.items.append(item)
        call.rows += size
        self.waiting_rows += size
        results = await asyncio.shield(call.done)  # who leaves does not take the others' answers along
        return results[place]

    async def between(self, change: Callable[[], C]) -> C:
        """Run something in the thread between two calls."""
        async with self._turn:
            return await asyncio.get_running_loop().run_in_executor(self._thread, change)

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _run(self, call: _Call[A, B]) -> list[B]:
        try:
            async with self._turn:  # first come, first served
                if self._open is call:
                    self._open = None
                self.calls += 1
                loop = asyncio.get_running_loop()
                return await loop.run_in_executor(self._thread, self._work, call.items)
        finally:
            self.waiting_rows -= call.rows
