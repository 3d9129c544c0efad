"""Sessions: bounded, forgotten when idle, one request at a time; states joined and parted without a trace."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch

from seqrl_ray.serving.refusals import BUSY, CONFLICT, NOT_FOUND, Refused
from seqrl_ray.serving.sessions import Session, Sessions, joined, part


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def fresh(rows: int) -> Session:
    return Session(state=np.zeros((rows, 2)), prev_action=np.zeros(rows, np.int64))


def first(rows: int, value: bool = True):
    return np.full(rows, value)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sessions(clock: Clock) -> Sessions:
    return Sessions(max_states=4, idle_s=10.0, clock=clock)


def visit(sessions: Sessions, name: str, rows: int = 1, begins: bool = True, end: bool = False) -> Session:
    session = sessions.enter("p", name, first(rows, begins), fresh)
    session.begun = True
    sessions.leave("p", name, session, end=end)
    return session


def refused(status: int, sessions: Sessions, name: str, rows: int = 1, begins: bool = True) -> str:
    with pytest.raises(Refused) as caught:
        sessions.enter("p", name, first(rows, begins), fresh)
    assert caught.value.status == status
    return str(caught.value)


def test_a_session_goes_on_where_it_was(sessions):
    begun = visit(sessions, "a")
    assert visit(sessions, "a", begins=False) is begun
    assert visit(sessions, "a") is begun  # begun anew: the rows' is_first says so to the policy
    assert "not known" in refused(NOT_FOUND, sessions, "b", begins=False)
    with pytest.raises(Refused):  # of another policy
        sessions.enter("q", "a", first(1, False), fresh)


def test_an_idle_session_is_forgotten_and_makes_room(sessions, clock):
    visit(sessions, "a", rows=3)
    clock.now += 9.0
    visit(sessions, "a", rows=3, begins=False)  # heard of again
    clock.now += 9.0
    assert "do not fit" in refused(BUSY, sessions, "b", rows=2)
    clock.now += 2.0
    assert "10 s" in refused(NOT_FOUND, sessions, "a", rows=3, begins=False)
    assert sessions.states == 0
    visit(sessions, "b", rows=4)
    assert "do not fit" in refused(BUSY, sessions, "c")


def test_an_ended_session_makes_room(sessions):
    visit(sessions, "a", rows=4)
    visit(sessions, "a", rows=4, begins=False, end=True)
    assert len(sessions) == 0
    visit(sessions, "b", rows=4)


def test_a_busy_session_is_not_asked_twice_nor_forgotten(sessions, clock):
    session = sessions.enter("p", "a", first(1), fresh)
    clock.now += 1000.0
    assert "already" in refused(CONFLICT, sessions, "a", begins=False)
    visit(sessions, "b")
    assert len(sessions) == 2
    session.begun = True
    sessions.leave("p", "a", session, end=False)
    visit(sessions, "a", begins=False)


def test_what_never_got_an_action_is_not_kept(sessions):
    session = sessions.enter("p", "a", first(1), fresh)
    sessions.leave("p", "a", session, end=False)  # its request failed
    refused(NOT_FOUND, sessions, "a", begins=False)


def test_rows_change_only_at_the_beginning(sessions):
    visit(sessions, "a", rows=2)
    assert "has 2" in refused(400, sessions, "a", rows=3, begins=False)
    mixed = np.array([True, False, True])
    with pytest.raises(Refused):
        sessions.enter("p", "a", mixed, fresh)
    assert visit(sessions, "a", rows=3).rows == 3
    assert sessions.states == 3  # the two of before are gone
    assert visit(sessions, "a", rows=4).rows == 4
    refused(BUSY, sessions, "a", rows=5)


class Pair(NamedTuple):
    a: np.ndarray
    b: torch.Tensor


def state(rows: int, start: int) -> dict:
    a = np.arange(start, start + rows * 3).reshape(rows, 3)
    return {"x": Pair(a, torch.from_numpy(a + 0.5)), "y": (a.astype(np.uint8), {"z": a[:, 0]})}


def test_states_are_joined_and_parted_as_they_were():
    one, two = state(2, 0), state(1, 100)
    both = joined([one, two])
    assert isinstance(both["x"], Pair) and both["x"].b.shape == (3, 3) and both["y"][0].dtype == np.uint8
    for given, rows in ((one, slice(0, 2)), (two, slice(2, 3))):
        back = part(both, rows)
        assert (back["x"].a == given["x"].a).all() and torch.equal(back["x"].b, given["x"].b)
        assert (back["y"][0] == given["y"][0]).all() and (back["y"][1]["z"] == given["y"][1]["z"]).all()


def test_joined_and_parted_states_share_no_memory():
    one = state(2, 0)
    single = joined([one])
    assert not np.shares_memory(single["x"].a, one["x"].a)
    own = part(single, slice(0, 1))
    assert not np.shares_memory(own["x"].a, single["x"].a)
    single["x"].b[0] = -1
    assert own["x"].b[0, 0] == 0.5 == one["x"].b[0, 0]
