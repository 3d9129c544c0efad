"""Looking after a policy server: restarts, hanging ones, failing ones, and whom their silence excuses."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from ray.exceptions import GetTimeoutError, RayTaskError

from seqrl_ray import api
from seqrl_ray.errors import WorkerError
from seqrl_ray.runtime import server_care
from seqrl_ray.runtime.nodes import Place
from seqrl_ray.runtime.policy_server import PolicyServer, ServerReport
from seqrl_ray.runtime.server_care import ServerCare
from seqrl_ray.runtime.supervisor import Budget

FIRST = ServerReport(
    pid=10,
    requests=0,
    batches=0,
    slots=0,
    busy_s=0.0,
    waited_s=0.0,
    computing_s=0.0,
    lived_s=0.0,
    board_lost=False,
)


class Made:
    """Anything that is called through `.remote(...)`, whatever its options."""

    serve: Made

    def __init__(self, does: Callable[..., Any]) -> None:
        self.remote = does

    def options(self, **given: Any) -> Made:
        return self


class World:
    """In place of Ray and of the clock: one server, which says what the test has put into `answer`."""

    def __init__(self) -> None:
        self.now = 100.0
        self.answer: Any = FIRST
        self.killed: list[int] = []
        self.asked: list[tuple[Any, ...]] = []
        self.place = Place("ab" * 28, started=True, pid=10)
        self.handle = Made(lambda *_: self.asked.append(_) or "a call")
        self.handle.serve = self.handle

    def monotonic(self) -> float:
        return self.now

    def remote(self, target: Any) -> Made:
        """What `ray.remote` makes of the server's class, and of the task that kills."""
        return Made(lambda *_, **__: self.handle if target is PolicyServer else self.killed.append(*_))

    def wait(self, calls: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        return ([], calls) if self.answer is None else (calls, [])

    def get(self, call: Any, timeout: float | None = None) -> Any:
        if self.answer is None:
            raise GetTimeoutError("nothing came")
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    found = World()
    monkeypatch.setattr(server_care, "ray", found)
    monkeypatch.setattr(server_care, "time", found)
    monkeypatch.setattr(server_care.nodes, "place_of", lambda handle: found.place)
    return found


@pytest.fixture
def care(world: World) -> Callable[[], ServerCare]:
    recipe = api.read_recipe("classic/cartpole", ["actors.inference=central", "actors.hang_timeout_s=20"])
    return lambda: ServerCare(recipe, {}, "a board", budget=Budget(20), options={})


def test_figures_are_of_the_time_between_two_reports(world: World, care: Callable[[], ServerCare]) -> None:
    one = care()
    world.answer = replace(FIRST, requests=10, batches=4, slots=80, busy_s=1.0, waited_s=0.5, lived_s=2.0)
    world.now += 30.0  # a checkpoint, say: the server's own clock counts
    heard = one.look("a board")
    assert heard is not None and heard.restarted_after_s is None
    assert one.row() == {
        "inference_slots": 80.0,
        "inference_batch_slots": 20.0,
        "inference_wait_s": 0.05,
        "inference_busy": 0.5,
    }
    one.gone.update({3, 1})
    one.look("another")
    one.look("another")
    assert world.asked[-2:] == [("another", [1, 3]), ("another", [])]  # told once
    assert one.back_at == -math.inf


def test_a_restart_shows_in_the_process_id_and_excuses_who_waited(
    world: World, care: Callable[[], ServerCare]
) -> None:
    one = care()
    world.answer, world.place = None, Place(None)
    assert one.look("a board") is None
    world.now += 3.0
    assert one.back_at == math.inf
    world.now += 60.0
    assert one.look("a board") is None
    assert world.killed == []  # Ray is at it already
    world.answer = replace(FIRST, pid=11)
    heard = one.look("a board")
    assert heard is not None and heard.restarted_after_s == 63.0
    assert one.back_at == world.now
    world.now += 5.0
    heard = one.look("a board")
    assert heard is not None and heard.restarted_after_s is None and one.back_at == world.now - 5.0


def test_one_that_does_not_answer_is_killed_by_its_present_id(
    world: World, care: Callable[[], ServerCare]
) -> None:
    one = care()
    world.answer, world.place = None, Place("cd" * 28, started=True, pid=77)
    one.look("a board")
    world.now += 9.0
    one.look("a board")
    assert world.killed == []  # half of actors.hang_timeout_s
    world.now += 2.0
    one.look("a board")
    assert world.killed == [77]


def test_one_that_answers_and_computes_at_one_batch_for_ever_is_killed(
    world: World, care: Callable[[], ServerCare]
) -> None:
    one = care()
    world.answer = replace(FIRST, computing_s=9.0)
    one.look("a board")
    assert world.killed == [] and one.back_at == -math.inf
    world.answer = replace(FIRST, computing_s=11.0)
    one.look("a board")
    assert world.killed == [10] and one.back_at == math.inf
    world.answer = replace(FIRST, pid=11)
    one.look("a board")
    assert one.back_at == world.now


def test_one_that_failed_is_killed_once_and_ends_the_run_the_second_time(
    world: World, care: Callable[[], ServerCare]
) -> None:
    one = care()
    world.answer = RayTaskError(
        "serve", 'File "x.py", line 3, in act\nValueError: no such shape', ValueError()
    )
    assert one.look("a board") is None and one.look("a board") is None
    assert world.killed == [10]
    world.answer, world.place = replace(FIRST, pid=11), Place("ab" * 28, started=True, pid=11)
    one.look("a board")
    world.answer = RayTaskError(
        "serve", 'File "x.py", line 3, in act\nValueError: no such shape', ValueError()
    )
    with pytest.raises(WorkerError, match="the same error twice from the policy server"):
        one.look("a board")


def test_one_that_never_starts_is_one_clear_line(world: World, care: Callable[[], ServerCare]) -> None:
    world.answer = None
    with pytest.raises(WorkerError, match="the policy server has not started in 120 s"):
        care()
