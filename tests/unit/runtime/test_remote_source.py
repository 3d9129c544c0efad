"""The learner's side of actors that come and go, without Ray: who is asked, who is waited for."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from ray.exceptions import ActorDiedError, ObjectLostError

from seqrl_ray.runtime import learner as module
from seqrl_ray.runtime.learner import RemoteSource
from seqrl_ray.runtime.supervisor import START_S
from seqrl_ray.runtime.wire import pack
from tests.unit.runtime.service_world import recipe_of


class Call:
    def __init__(self):
        self.value = None

    @property
    def ready(self):
        return self.value is not None


class Actor:
    """Remembers its calls, which the test answers."""

    def __init__(self):
        self.calls = []
        self.fragment = SimpleNamespace(remote=self._asked)

    def _asked(self, weights, progress):
        self.calls.append(Call())
        return self.calls[-1]

    def answer(self, value="fragment"):
        call = next(c for c in self.calls if not c.ready)
        call.value = pack(value, []) if isinstance(value, str) else value


def get(call):
    if isinstance(call.value, Exception):
        raise call.value
    return call.value


def wait(calls, num_returns=1, timeout=None):
    return [c for c in calls if c.ready], [c for c in calls if not c.ready]


@pytest.fixture
def now(monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(module.ray, "get", get)
    monkeypatch.setattr(module.ray, "wait", wait)
    monkeypatch.setattr(
        module, "time", SimpleNamespace(monotonic=lambda: clock[0], sleep=lambda seconds: None)
    )
    return clock


@pytest.fixture
def source(now):
    made = RemoteSource(recipe_of("actors.count=2", "actors.in_flight=2", "actors.hang_timeout_s=5"))
    made.offer({})
    return made


def test_who_leaves_sends_what_is_on_its_way_and_is_asked_for_no_more(source):
    actors = [Actor(), Actor()]
    for index, actor in enumerate(actors):
        source.add(index, actor, replacement=False)
    source.poll()
    source.leaving = frozenset({1})
    actors[1].answer()
    assert source.poll() == [("actor-1", "fragment")]
    source.look_who_left()
    assert (source.left, len(actors[1].calls)) == ([], 2)
    actors[1].answer()
    assert source.poll() == [("actor-1", "fragment")]
    source.look_who_left()
    assert (source.left, list(source.actors), len(actors[1].calls)) == ([1], [0], 2)


def test_who_waits_for_room_is_not_silent(source, now):
    source.add(0, Actor(), replacement=False)
    source.unplaced = frozenset({0})
    source.poll()
    assert not source.waiting
    now[0] += 10 * START_S
    source.poll()
    assert source.lost == []
    source.unplaced = frozenset()
    now[0] += START_S
    source.poll()
    assert source.lost == []
    now[0] += 10.0
    source.poll()
    assert [lost.cause for lost in source.lost] == ["hung"]


def test_what_a_former_actor_of_the_same_number_owes_is_nobodys_fault(source):
    former, present = Actor(), Actor()
    source.add(0, former, replacement=False)
    source.poll()
    source.add(0, present, replacement=True)
    former.answer(ActorDiedError())
    present_was_asked = source.poll()
    assert (present_was_asked, source.lost) == ([], [])
    present.answer()
    assert source.poll() == [("actor-0", "fragment")]
    assert source.back == [0]


def test_an_actor_whose_answers_went_down_with_a_node_is_asked_again(source):
    actor = Actor()
    source.add(0, actor, replacement=False)
    source.poll()
    for _ in range(2):
        actor.answer(ObjectLostError("ab" * 28, None, "call site"))
    assert source.poll() == []
    assert len([c for c in actor.calls if not c.ready]) == 2
    actor.answer(ActorDiedError())
    source.poll()
    assert [lost.cause for lost in source.lost] == ["died"]
