"""Acting for many clients is acting for each: every algorithm, asked in sessions and in shared calls, decides
as it does when its rows play on as slots of one environment.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from seqrl_ray.algorithms import names
from seqrl_ray.serving.inputs import Ask, Shape
from seqrl_ray.serving.policies import Decision, Job, Policies, after
from seqrl_ray.serving.sessions import Session
from seqrl_ray.types import ActInput, Array, GroupSpec
from seqrl_ray.types_env import Weights
from tests.contract.algorithm_cases import GROUPS, build, drives, legal_of, observations

CLIENTS, STEPS = 4, 12
"""STEPS is more than the windows of the sequence policies hold."""
STOCHASTIC = {"random"}
CASES = [
    (name, kind)
    for name in names()
    for kind in GROUPS
    if drives(name, GROUPS[kind]) and name not in STOCHASTIC
]


def shape_of(algorithm: Any, group: GroupSpec) -> Shape:
    return Shape(group, algorithm.initial_state(1) is not None, target_return=None)


class World:
    """What all clients see and earn, drawn beforehand; client c begins an episode every c + 3 steps."""

    def __init__(self, group: GroupSpec) -> None:
        rng = np.random.default_rng(3)
        self.obs = observations(group, (STEPS, CLIENTS), rng)
        self.legal = legal_of(group, (STEPS, CLIENTS), rng)
        self.reward = rng.normal(size=(STEPS, CLIENTS)).astype(np.float32)
        self.is_first = np.array([[t % (c + 3) == 0 for c in range(CLIENTS)] for t in range(STEPS)])


def as_slots(algorithm: Any, group: GroupSpec, world: World) -> list[Array]:
    """The actions [STEPS][CLIENTS] of clients who are slots of one batch from beginning to end."""
    state, column = algorithm.initial_state(CLIENTS), group.action.column
    action = np.zeros((CLIENTS, *column.shape), column.dtype)
    found = []
    for t in range(STEPS):
        before, reward = action.copy(), world.reward[t].copy()
        before[world.is_first[t]], reward[world.is_first[t]] = 0, 0
        inputs = ActInput(
            obs=world.obs[t],
            prev_action=before,
            prev_reward=reward,
            is_first=world.is_first[t],
            legal=None if world.legal is None else world.legal[t],
            slot_params=algorithm.slot_params(1.0, np.zeros(CLIENTS, np.int64), 1),
            rng=np.random.default_rng(0),
        )
        action, state, _ = algorithm.act(inputs, state, "greedy")
        found.append(action)
    return found


def job(world: World, t: int, c: int, session: Session | None) -> Job:
    rows = slice(c, c + 1)
    legal = None if world.legal is None else world.legal[t, rows]
    if session is None:
        return Job(Ask("shared", world.obs[t, rows], legal), None)
    ask = Ask(
        "shared",
        world.obs[t, rows],
        legal,
        session=str(c),
        is_first=world.is_first[t, rows],
        reward=world.reward[t, rows],
    )
    return Job(ask, session)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_shared_calls_decide_as_slots_of_one_batch_do(name: str, kind: str):
    group = GROUPS[kind]
    algorithm = build(name, group)
    world = World(group)
    expected = as_slots(algorithm, group, world)
    policies = Policies({"shared": algorithm}, {"shared": shape_of(algorithm, group)})
    stateful = bool(policies.stateful)
    sessions = [policies.fresh("shared", 1) if stateful else None for _ in range(CLIENTS)]
    rng = np.random.default_rng(0)
    for t in range(STEPS):
        order = rng.permutation(CLIENTS).tolist()
        cut = int(rng.integers(1, CLIENTS))
        for together in (order[:cut], order[cut:]):
            jobs = [job(world, t, c, sessions[c]) for c in together]
            for c, own, decision in zip(together, jobs, policies.act(jobs), strict=True):
                np.testing.assert_allclose(decision.action[0], expected[t][c], atol=1e-5)
                if own.session is not None:
                    after(own.session, own.ask, decision)


def test_the_cases_hold_both_kinds():
    kinds = {(n, build(n, GROUPS[k]).initial_state(1) is not None) for n, k in CASES}
    assert {n for n, stateful in kinds if stateful} >= {"decision_transformer", "online_dt", "toy_recurrent"}
    assert {n for n, stateful in kinds if not stateful} >= {"double_dqn", "sac"}


def made(name: str, kind: str = "vector", **keys: Any) -> tuple[Policies, World]:
    group = GROUPS[kind]
    algorithm = build(name, group, **keys)
    shape = shape_of(algorithm, group)
    target = 5.0 if name == "decision_transformer" else None
    return Policies({"shared": algorithm}, {"shared": Shape(group, shape.stateful, target)}), World(group)


def test_a_request_that_failed_leaves_no_trace():
    """The session's state is what `after` says, whatever was computed meanwhile."""
    policies, world = made("decision_transformer")
    session = policies.fresh("shared", 1)
    jobs = [job(world, t, 0, session) for t in range(3)]
    (begun,) = policies.act(jobs[:1])
    after(session, jobs[0].ask, begun)
    lost = policies.act(jobs[1:2])[0]
    again = policies.act(jobs[1:2])[0]
    assert (lost.action == again.action).all()
    assert type(lost.state)._fields[-1] == "stamp"  # names the call that the network remembers
    for one, other in zip(lost.state[:-1], again.state[:-1], strict=True):
        assert (np.asarray(one) == np.asarray(other)).all()


def test_the_clients_word_goes_before_what_it_was_given():
    policies, world = made("decision_transformer")
    session = policies.fresh("shared", 1)
    first = job(world, 0, 0, session)
    after(session, first.ask, policies.act([first])[0])
    given = int(session.prev_action[0])
    second = job(world, 1, 0, session)
    taken = np.array([(given + 1) % 3])
    told = Job(Ask(**{**vars(second.ask), "prev_action": taken}), session)
    state, other = (policies.act([one])[0].state for one in (second, told))
    assert state.action[0, 0] == given and other.action[0, 0] == taken[0]


def test_the_return_that_is_asked_for_is_aimed_at():
    policies, world = made("decision_transformer")
    sessions = [policies.fresh("shared", 1) for _ in range(2)]
    jobs = [job(world, 0, c, session) for c, session in enumerate(sessions)]
    asked = Ask(**{**vars(jobs[1].ask), "target_return": np.array([77.0], np.float32)})
    by_default, aimed = policies.act([jobs[0], Job(asked, sessions[1])])
    assert by_default.state.wanted[0, 0] == 5.0 and aimed.state.wanted[0, 0] == 77.0


def test_exploring_and_greedy_requests_do_not_mix():
    policies, world = made("double_dqn", epsilon_end=1.0, epsilon_start=1.0)
    asks = [job(world, 0, 0, None).ask] * 60
    jobs = [Job(Ask(**{**vars(ask), "explore": i % 2 == 0}), None) for i, ask in enumerate(asks)]
    decided = policies.act(jobs)
    greedy = {int(d.action[0]) for d in decided[1::2]}
    assert len(greedy) == 1 and {int(d.action[0]) for d in decided[::2]} == {0, 1, 2}


class Spy:
    """An algorithm that keeps what it was handed."""

    def __init__(self, algorithm: Any) -> None:
        self.algorithm = algorithm
        self.seen: list[ActInput] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.algorithm, name)

    def act(self, inputs: ActInput, state: Any, mode: str) -> Any:
        self.seen.append(inputs)
        return self.algorithm.act(inputs, state, mode)


def test_rows_that_begin_have_no_past():
    """Whatever the client says of it: `ActInput` promises zeros there."""
    group = GROUPS["vector"]
    spy = Spy(build("toy_recurrent", group))
    policies = Policies({"shared": spy}, {"shared": Shape(group, True)})  # type: ignore[dict-item]
    asked = Ask(
        "shared",
        World(group).obs[0, :2],
        None,
        session="a",
        is_first=np.array([True, False]),
        reward=np.array([3.0, 4.0], np.float32),
        prev_action=np.array([2, 1]),
    )
    policies.act([Job(asked, policies.fresh("shared", 2))])
    (seen,) = spy.seen
    assert seen.prev_action.tolist() == [0, 1] and seen.prev_reward.tolist() == [0.0, 4.0]
    assert seen.is_first.tolist() == [True, False]


def test_continuous_actions_stay_inside_their_bounds():
    class Beyond(Spy):
        def act(self, inputs: ActInput, state: Any, mode: str) -> tuple[Array, Any, dict[str, Array]]:
            return np.full((len(inputs.obs), 2), 1e6), None, {}

    group = GROUPS["box"]
    algorithm = build("sac", group)
    policies = Policies({"shared": Beyond(algorithm)}, {"shared": Shape(group, False)})  # type: ignore[dict-item]
    (decision,) = policies.act([job(World(group), 0, 0, None)])
    assert decision.action.tolist() == [list(group.action.high)] and decision.action.dtype == np.float32


def test_new_weights_are_acted_with_and_named():
    policies, world = made("double_dqn")
    asked = [job(world, t, 0, None) for t in range(STEPS)]
    other = build("double_dqn", GROUPS["vector"], seed=9)
    policies.take({"shared": Weights("shared", 2, 7, other.weights())})
    named: list[Decision] = policies.act(asked)
    assert {decision.version for decision in named} == {(2, 7)}
    fresh = Policies({"shared": other}, policies.shapes).act(asked)
    assert [d.action.tolist() for d in named] == [d.action.tolist() for d in fresh]
