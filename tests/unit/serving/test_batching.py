"""The batcher: nothing waits for a timer, what comes meanwhile goes together, and bounds are kept."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from seqrl_ray.serving.batching import Batcher
from seqrl_ray.serving.refusals import BUSY, Refused


class Work:
    """Doubles its items; waits for `gate` in each call."""

    def __init__(self) -> None:
        self.gate = threading.Semaphore(0)
        self.calls: list[list[int]] = []

    def __call__(self, items: Sequence[int]) -> list[int]:
        self.calls.append(list(items))
        assert self.gate.acquire(timeout=30.0)
        if 13 in items:
            raise ValueError("thirteen")
        return [2 * item for item in items]


def batcher(work: Work, max_rows: int = 10, max_waiting_rows: int = 100) -> Batcher[int, int]:
    return Batcher(work, lambda item: item, max_rows=max_rows, max_waiting_rows=max_waiting_rows)


async def begun(work: Work, calls: int) -> None:
    for _ in range(3000):
        if len(work.calls) >= calls:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(work.calls)


def test_what_comes_while_the_network_works_goes_together():
    async def run() -> None:
        first = asyncio.create_task(desk.do(1))
        await begun(work, 1)  # alone, at once
        rest = [asyncio.create_task(desk.do(i)) for i in (2, 3, 4, 5)]
        await asyncio.sleep(0.05)
        assert work.calls == [[1]] and desk.waiting_rows == 15
        work.gate.release(10)
        assert await first == 2
        assert await asyncio.gather(*rest) == [4, 6, 8, 10]
        # 2 + 3 + 4 rows are a call of at most 10, 5 begins another
        assert work.calls == [[1], [2, 3, 4], [5]] and desk.calls == 3
        assert desk.waiting_rows == 0
        desk.close()

    work = Work()
    desk = batcher(work)
    asyncio.run(run())


def test_a_large_item_is_a_call_of_its_own():
    async def run() -> None:
        work.gate.release(10)
        assert await asyncio.gather(desk.do(4), desk.do(50), desk.do(3)) == [8, 100, 6]
        assert work.calls == [[4], [50], [3]]
        desk.close()

    work = Work()
    desk = batcher(work)
    asyncio.run(run())


def test_too_much_waiting_is_refused_and_room_comes_back():
    async def run() -> None:
        waiting = [asyncio.create_task(desk.do(i)) for i in (6, 4)]
        await asyncio.sleep(0)
        with pytest.raises(Refused) as caught:
            await desk.do(1)
        assert caught.value.status == BUSY and "10 rows" in str(caught.value)
        work.gate.release(10)
        await asyncio.gather(*waiting)
        assert await desk.do(1) == 2
        desk.close()

    work = Work()
    desk = batcher(work, max_waiting_rows=10)
    asyncio.run(run())


def test_an_error_reaches_its_own_call_alone():
    async def run() -> None:
        work.gate.release(10)
        first = asyncio.create_task(desk.do(5))
        results = await asyncio.gather(desk.do(13), desk.do(2), return_exceptions=True)
        assert await first == 10
        assert isinstance(results[0], ValueError) and results[1] == 4
        assert desk.waiting_rows == 0
        desk.close()

    work = Work()
    desk = batcher(work)
    asyncio.run(run())


def test_who_leaves_takes_nobody_along():
    async def run() -> None:
        one, two = (asyncio.create_task(desk.do(i)) for i in (1, 2))
        await begun(work, 1)
        one.cancel()
        work.gate.release(10)
        assert await two == 4
        with pytest.raises(asyncio.CancelledError):
            await one
        assert work.calls == [[1, 2]] and desk.waiting_rows == 0
        desk.close()

    work = Work()
    desk = batcher(work)
    asyncio.run(run())


def test_a_change_comes_between_two_calls():
    async def run() -> None:
        first = asyncio.create_task(desk.do(1))
        await begun(work, 1)
        changed = asyncio.create_task(desk.between(lambda: (list(work.calls), threading.current_thread())))
        await asyncio.sleep(0.02)
        second = asyncio.create_task(desk.do(2))
        await asyncio.sleep(0.02)
        assert not changed.done()
        work.gate.release(10)
        seen, thread = await changed
        assert seen == [[1]] and thread is not threading.main_thread()
        assert await first == 2 and await second == 4
        desk.close()

    work = Work()
    desk = batcher(work)
    asyncio.run(run())
