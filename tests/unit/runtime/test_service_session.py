"""The supervisor's part of the service wiring without Ray: silence, deaths while mending, checkpoints."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from ray.exceptions import ActorDiedError, RayActorError, RayTaskError

from seqrl_ray.errors import WorkerError
from seqrl_ray.runtime import service
from seqrl_ray.runtime.actor import ActorReport
from seqrl_ray.runtime.crew import PATIENT_S, Crew
from seqrl_ray.runtime.service import ServiceSession, _Saving, _Stretch
from seqrl_ray.runtime.service_learner import ServiceReport
from seqrl_ray.runtime.spread import Spread
from seqrl_ray.runtime.supervisor import START_S, Budget, Supervisor
from tests.unit.runtime.service_world import recipe_of


@dataclass(eq=False)
class Call:
    """An answer that has come (or not)."""

    value: object = None
    ready: bool = True


def get(call, timeout=None):
    if isinstance(call, list):
        return [get(c) for c in call]
    assert call.ready, "waits for what never comes"
    if isinstance(call.value, Exception):
        raise call.value
    return call.value


def wait(calls, num_returns=1, timeout=None):
    assert 0 < num_returns <= len(calls), "Ray refuses this"
    return [c for c in calls if c.ready][:num_returns], [c for c in calls if not c.ready]


class Process:
    """Answers every method with the value of that name; an exception is raised by `get`."""

    def __init__(self, **answers):
        self.answers = answers

    def __getattr__(self, name):
        return SimpleNamespace(remote=lambda *a, **k: Call(self.answers.get(name)))


DEAD = Process(pid=RayActorError(), run_for=RayActorError(), counts=RayActorError(), hold=RayActorError())


def report(**changes):
    plain = {
        "row": {"env_steps": 0, "updates": 0}, "restored_updates": 5, "shard_steps": {}, "lost_shards": [],
        "board_lost": False, "notes": [], "done": False,
    }  # fmt: skip
    return ServiceReport(**{**plain, **changes})


@dataclass
class Hires:
    """Replacements in the order in which they will be made."""

    queue: list = field(default_factory=list)

    def __call__(self, *args):
        return self.queue.pop(0)


@pytest.fixture
def session(monkeypatch, tmp_path):
    monkeypatch.setattr(service.ray, "get", get)
    monkeypatch.setattr(service.ray, "wait", wait)
    monkeypatch.setattr(Supervisor, "end", lambda self, actor: None)
    made = object.__new__(ServiceSession)
    made.recipe = recipe_of("replay.shards=2", "actors.count=2", "actors.hang_timeout_s=5")
    made.root, made.epoch, made.last = tmp_path, 0, {"env_steps": 0, "updates": 9}
    made.supervisor = Supervisor(made.recipe, actor_cpus=1.0)
    made.supervisor.budget = Budget(3)
    made.supervisor.board = Process(pid=1)
    made.placement = SimpleNamespace(watch_nodes=False)
    made.crew = Crew(made.recipe, cpus=1.0, watch=False)
    made.spread, made._sends_to, made.node_losses = Spread(2), {}, {}
    made.supervisor.actors = dict.fromkeys(range(4), Process(pid=1))
    made._mended, made.actor_deaths, made._started = [], {}, time.monotonic()
    made._shards = {0: Process(pid=1), 1: Process(pid=1)}
    made._shard_lives, made._shard_steps = {0: 0, 1: 0}, {0: 100, 1: 100}
    made._dropped, made._dropped_steps = {0: 0, 1: 0}, 0
    made._learner, made._calls, made._saving = Process(run_for=report()), {}, None
    made._heard = {0, 1, 2, 3}
    made._waited_s, made._episodes, made._finished = 0.0, 0, []
    made.buried = []
    monkeypatch.setattr(made, "_bury", lambda i, cause, application_error: made.buried.append((i, cause)))
    return made


def died_at_birth(text):
    return ActorDiedError(RayTaskError("__init__", text, ValueError("no")))


def test_only_an_actor_that_has_not_answered_is_silent(session):
    long_ago = time.monotonic() - 1000.0
    session._calls = {
        Call(ready=True): _Stretch(0, 0, 0, long_ago),
        Call(ready=False): _Stretch(1, 1, 0, long_ago),
        Call(ready=False): _Stretch(2, 1, 0, time.monotonic()),
    }
    session._look_for_silence()
    assert session.buried == [(1, "hung")]
    assert sorted(s.actor for s in session._calls.values()) == [0, 2]


def test_an_actor_that_no_node_has_room_for_is_not_silent(session, monkeypatch):
    began = {}
    monkeypatch.setattr(session.crew, "placed_at", lambda index: began.get(index, math.inf))
    session._heard = set()
    now = time.monotonic()
    session._calls = {Call(ready=False): _Stretch(0, 0, 0, now - 1000.0)}
    session._look_for_silence()
    began[0] = now - 60.0  # a minute after it found room it may well be importing still
    session._look_for_silence()
    assert session.buried == []
    began[0] = now - 900.0
    session._look_for_silence()
    assert session.buried == [(0, "hung")]


def test_actors_that_wait_for_room_leave_no_shard_without_experience(session, monkeypatch):
    """Four actors on two shards; those of one shard wait."""
    session.follow_the_cluster = lambda: None
    session.supervisor.actors = {i: Process(run_for=ActorReport(), finish=ActorReport()) for i in range(4)}
    for index in range(4):
        session.spread.join(index)
    assert session.spread.of == {0: 0, 1: 1, 2: 0, 3: 1}
    session._sends_to = dict(session.spread.of)
    session._calls = {Call(ready=False): _Stretch(i, 1, 0, time.monotonic()) for i in (1, 3)}
    session._row = lambda row: row
    session.crew.members = {i: SimpleNamespace(leaving=False) for i in range(4)}
    monkeypatch.setattr(Crew, "waiting", frozenset({1, 3}))
    session.node_losses, session._interim, session._notes, session.save_wanted = {}, None, [], False
    session.advance(0.0)
    assert session.spread.standing == {0: 0, 2: 1}


@pytest.mark.parametrize(
    ("ready", "unplaced", "labels", "said"),
    [
        (True, {0}, {}, []),
        (False, {1}, {}, []),  # it stands, and is slow to start
        (False, {0, 1}, {}, ["the first actor waits for 2 free CPUs; the run begins when it stands"]),
        (
            False,
            {0},
            {"market": "spot"},
            [
                "the first actor waits for 2 free CPUs on a node with the labels {'market': 'spot'}; the run "
                "begins when it stands"
            ],
        ),
    ],
)
def test_people_hear_that_the_first_actor_waits_for_room(session, monkeypatch, ready, unplaced, labels, said):
    waited, heard = [], []
    call = Call({"shared": "what there is to learn"}, ready=ready)

    def wait_for(calls, num_returns=1, timeout=None):
        waited.append(timeout)
        answer = wait(calls, num_returns, timeout)
        call.ready = True  # in the end there is room
        return answer

    monkeypatch.setattr(service.ray, "wait", wait_for)
    monkeypatch.setattr(Crew, "unplaced", frozenset(unplaced))
    session.supervisor.actors = {0: SimpleNamespace(groups=SimpleNamespace(remote=lambda: call))}
    session.placement = SimpleNamespace(actor_cpus=2.0, actor_labels=labels)
    session._say = heard.append
    assert session.first_groups() == {"shared": "what there is to learn"}
    assert waited == [PATIENT_S]
    assert heard == said


def test_an_actor_that_has_never_answered_has_time_to_start(session):
    session._heard = {0}
    waited = session._patience(0) + 1.0
    sent_at = time.monotonic() - waited
    session._calls = {Call(ready=False): _Stretch(i, 0, 0, sent_at) for i in (0, 1)}
    session._look_for_silence()
    assert session.buried == [(0, "hung")]
    session._calls = {Call(ready=False): _Stretch(1, 0, 0, sent_at - START_S)}
    session._look_for_silence()
    assert session.buried == [(0, "hung"), (1, "hung")]


def test_an_error_in_an_actors_constructor_is_no_death(session):
    call = Call(died_at_birth("licence server says no"))
    session._calls = {call: _Stretch(0, 0, 0, 0.0)}
    session._actor_report(call)
    ((index, cause),) = session.buried
    assert index == 0
    assert "licence server says no" in cause


def test_the_end_without_actors_on_their_way_is_no_error(session):
    session._collect_actors()


def test_a_learner_that_dies_again_while_mending_is_mended_again(session, monkeypatch):
    monkeypatch.setattr(session, "_make_learner", Hires([DEAD, Process(run_for=report())]))
    assert session._replace_learner(1.0, RayActorError()).restored_updates == 5
    assert session.epoch == 2
    assert len(session.supervisor.budget.deaths) == 2
    (failure,) = session.take_failures()
    assert (failure.what, failure.lost_updates) == ("learner", 4)


def test_learners_that_go_on_dying_use_up_the_budget(session, monkeypatch):
    monkeypatch.setattr(session, "_make_learner", lambda resume: DEAD)
    with pytest.raises(WorkerError, match="used up by the death of learner"):
        session._replace_learner(1.0, RayActorError())


def test_an_error_that_repeats_in_the_replacement_ends_the_run(session, monkeypatch):
    error = RayTaskError("run_for", 'File "a.py", line 1, in f\nZeroDivisionError', ZeroDivisionError())
    monkeypatch.setattr(session, "_make_learner", lambda resume: Process(run_for=error))
    with pytest.raises(WorkerError, match=r"(?s)same error twice from learner.*ZeroDivisionError"):
        session._replace_learner(1.0, error)


def test_a_shard_is_mended_with_what_was_freshest_known_and_what_its_writers_dropped(session, monkeypatch):
    session._shards[1] = DEAD
    monkeypatch.setattr(session, "_make_shard", Hires([DEAD, Process(counts=(70, 70))]))
    first = Call(ActorReport(env_steps=8, shard_lost=True, dropped_steps=16, shard_steps=140))
    second = Call(ActorReport(env_steps=8, shard_lost=True, dropped_steps=4, shard_steps=150))
    session._calls = {first: _Stretch(1, 1, 0, 0.0), second: _Stretch(3, 1, 0, 0.0)}
    assert session._actor_report(first) == 1
    assert session._replace_shard(1)
    (failure,) = session.take_failures()
    assert (failure.what, failure.lost_steps) == ("shard", 150 - 70 + 16 + 4)
    assert session._shard_lives == {0: 0, 1: 2}
    assert len(session.supervisor.budget.deaths) == 2
    assert not session._replace_shard(1)
    late = Call(ActorReport(shard_lost=True, shard_steps=150))
    session._calls = {late: _Stretch(1, 1, 0, 0.0)}
    assert session._actor_report(late) is None


@pytest.mark.parametrize("who", ["shard", "learner"])
def test_a_checkpoint_that_a_death_costs_is_reported(session, who):
    lost = Call(RayActorError())
    writer = Process(write=RayActorError() if who == "learner" else None)
    session._saving = _Saving("000001-0", writer, {0: Call({}), 1: lost if who == "shard" else Call({})}, {})
    assert session._finish_saving(wait=True) is False
    assert session._saving is None


def test_the_last_checkpoint_is_begun_again_until_it_exists(session, monkeypatch):
    state = {"pacing": {}, "counted": {}}
    session._shards = {0: Process(pid=1, save=state), 1: Process(pid=RayActorError(), save=RayActorError())}
    session._learner = Process(pid=1, publish_to=True)
    monkeypatch.setattr(session, "_make_shard", Hires([Process(pid=1, counts=(0, 0), save=state)]))
    begun = []
    begin = session._begin_saving
    monkeypatch.setattr(session, "_begin_saving", lambda *args: (begun.append(1), begin(*args)))
    session.save(session.root, {}, wait=True)
    assert len(begun) == 2
    assert [f.what for f in session.take_failures()] == ["shard"]


def test_a_checkpoint_that_nobody_can_write_ends_the_run(session, monkeypatch):
    session._shards = {0: Process(pid=1, save=RayActorError()), 1: Process(pid=1, save=RayActorError())}
    with pytest.raises(WorkerError, match="used up by the death of a part of a checkpoint"):
        session.save(session.root, {}, wait=True)
