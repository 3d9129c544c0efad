"""What transformers remember between decisions changes nothing but the work: every answer is that of reading
the whole context."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from seqrl_ray.algorithms.contract import rested
from seqrl_ray.loops.feed import feed
from seqrl_ray.networks import recall
from seqrl_ray.types import ActInput, GroupSpec
from tests.contract.algorithm_cases import GROUPS, actions, build, make_batch, observations

K, SLOTS, STEPS = 6, 4, 23
TOLERANCE = 2e-6


class Whole:
    """A network without its memory: reads every context whole."""

    def __init__(self, network: Any) -> None:
        self.network = network

    def __call__(self, *inputs: Any) -> Any:
        return self.network(*inputs)


class Tokens:
    """Counts the tokens that a network's body reads."""

    def __init__(self, network: Any) -> None:
        self.count = 0
        body = getattr(network, "policy", network).body
        for name in ("forward", "go_on"):
            setattr(body, name, self._counted(getattr(body, name)))

    def _counted(self, function: Any) -> Any:
        def counted(x: torch.Tensor, *rest: Any) -> Any:
            self.count += x.shape[0] * x.shape[1]
            return function(x, *rest)

        return counted


def inputs(group: GroupSpec, step: int, first: Any = None) -> ActInput:
    rng = np.random.default_rng((5, step))
    slots = len(group.slots)
    return ActInput(
        obs=observations(group, (slots,), rng),
        prev_action=actions(group, (slots,), rng),
        prev_reward=rng.normal(size=slots).astype(np.float32),
        is_first=np.full(slots, step == 0) if first is None else first,
        legal=None,
        slot_params={n: np.full(slots, 3.0, np.float32) for n in ("target_return", "explore")},
        rng=rng,
    )


def resets(step: int, slots: int) -> Any:
    """Episodes of different lengths, all of which begin at step 0."""
    return np.array([step % (5 + 4 * slot) == 0 for slot in range(slots)])


def scores(algorithm: Any, state: Any, given: ActInput) -> tuple[np.ndarray[Any, Any], Any]:
    """What the network says of every slot, and the state behind it."""
    with torch.inference_mode():
        state = algorithm.extend(state, given)
        return algorithm.ask(state, algorithm.network)[:, 0].numpy(), state


def pair(name: str, group: GroupSpec, **keys: Any) -> tuple[Any, Any]:
    """Two equal algorithms: one remembers, one reads whole contexts."""
    steps = {"acting_steps": K} if name == "online_dt" else {}
    one, other = (build(name, group, **{"window_steps": K, **steps, **keys}) for _ in range(2))
    other.network = Whole(other.network)
    return one, other


def three_steps_on(group: GroupSpec) -> tuple[Any, Any, Any, Any]:
    """A pair of algorithms, and the state of each after three decisions."""
    one, other = pair("decision_transformer", group)
    states = [algorithm.initial_state(SLOTS) for algorithm in (one, other)]
    for step in range(3):
        states = [scores(a, s, inputs(group, step))[1] for a, s in zip((one, other), states, strict=True)]
    return one, other, *states


CASES = [
    (name, group, positions, quantile, forget)
    for name, group in (
        ("decision_transformer", "vector"),
        ("decision_transformer", "box"),
        ("decision_transformer", "image"),
        ("online_dt", "vector"),
        ("online_dt", "box"),
    )
    for positions, quantile, forget in (
        ("timestep", 0.0, 1),
        ("window", 0.0, 3),
        ("none", 0.9, 4),
        ("timestep", 0.9, 6),
    )
]


@pytest.mark.parametrize(("name", "group", "positions", "quantile", "forget"), CASES)
def test_answers_are_those_of_whole_contexts(name, group, positions, quantile, forget):
    spec = GROUPS[group]
    one, other = pair(name, spec, positions=positions, return_quantile=quantile, forget_steps=forget)
    mine, whole = (a.initial_state(len(spec.slots)) for a in (one, other))
    counted, counted_whole = Tokens(one.network), Tokens(other.network.network)
    for step in range(STEPS):
        given = inputs(spec, step, resets(step, len(spec.slots)))
        for _ in range(1 + (step % 4 == 3)):  # a call may be repeated
            said, next_mine = scores(one, mine, given)
            expected, next_whole = scores(other, whole, given)
            np.testing.assert_allclose(said, expected, atol=TOLERANCE, rtol=1e-5)
        mine, whole = next_mine, next_whole
    assert counted.count <= counted_whole.count * (1.0 if forget == 1 else 0.5)


def test_two_futures_of_one_past_do_not_mix():
    group = GROUPS["box"]
    one, other, state, whole = three_steps_on(group)
    mine, others = [state, state], [whole, whole]
    for step in range(3, 6):
        for i in (0, 1, 0):  # the first is asked again after the second has gone on
            given = inputs(group, 100 * i + step, np.zeros(SLOTS, bool))
            said, after = scores(one, mine[i], given)
            expected, after_whole = scores(other, others[i], given)
            np.testing.assert_allclose(said, expected, atol=TOLERANCE)
        mine, others = (
            [after, scores(one, mine[1], inputs(group, 100 + step, np.zeros(SLOTS, bool)))[1]],
            [
                after_whole,
                scores(other, others[1], inputs(group, 100 + step, np.zeros(SLOTS, bool)))[1],
            ],
        )


def test_a_state_given_twice_in_one_batch_serves_both():
    group = GROUPS["box"]
    one, other, state, whole = three_steps_on(group)
    twice = [type(state)(*(column[[0, 0, 2, 2]] for column in s)) for s in (state, whole)]
    for step in range(3, 6):
        said, twice[0] = scores(one, twice[0], inputs(group, step, np.zeros(SLOTS, bool)))
        expected, twice[1] = scores(other, twice[1], inputs(group, step, np.zeros(SLOTS, bool)))
        np.testing.assert_allclose(said, expected, atol=TOLERANCE)


def test_slots_may_be_asked_in_any_company():
    group = GROUPS["vector"]
    one, other = pair("online_dt", group, forget_steps=2)
    parts = {slot: one.initial_state(1) for slot in range(SLOTS)}
    wholes = {slot: other.initial_state(1) for slot in range(SLOTS)}
    rng = np.random.default_rng(0)
    first = dict.fromkeys(range(SLOTS), True)
    for step in range(40):
        some = rng.permutation(SLOTS)[: rng.integers(1, SLOTS + 1)].tolist()
        given = inputs(group, step)
        given = replace(
            given,
            obs=given.obs[some],
            prev_action=given.prev_action[some],
            prev_reward=given.prev_reward[some],
            is_first=np.array([first[s] or rng.random() < 0.1 for s in some]),
            slot_params={n: v[some] for n, v in given.slot_params.items()},
        )
        answers = []
        for algorithm, states in ((one, parts), (other, wholes)):
            joined = type(states[0])(*map(np.concatenate, zip(*(states[s] for s in some), strict=True)))
            said, joined = scores(algorithm, joined, given)
            answers.append(said)
            for place, slot in enumerate(some):
                states[slot] = type(joined)(*(column[place : place + 1] for column in joined))
        first.update(dict.fromkeys(some, False))
        np.testing.assert_allclose(*answers, atol=TOLERANCE)


def test_other_weights_remember_nothing():
    group = GROUPS["box"]
    one, other = pair("online_dt", group)
    state, whole = one.initial_state(SLOTS), other.initial_state(SLOTS)
    good = one.weights()
    for step, weights in enumerate((good, good * 1.1, np.full_like(good, np.nan), good, good * 0.9)):
        for algorithm in (one, other):
            algorithm.load_weights(weights)
        said, state = scores(one, state, inputs(group, step))
        expected, whole = scores(other, whole, inputs(group, step))
        np.testing.assert_allclose(said, expected, atol=TOLERANCE)
        assert np.isfinite(said).all() == np.isfinite(weights).all()


def test_who_resumes_goes_on_as_who_was_never_stopped_bit_for_bit():
    group = GROUPS["box"]
    one, resumed = (build("decision_transformer", group) for _ in range(2))
    state = one.initial_state(SLOTS)
    for step in range(4):
        _, state = scores(one, state, inputs(group, step))
    state = rested(state)
    loaded = tuple(np.array(column) for column in state)  # as a checkpoint gives it back
    for step in range(4, 8):
        said, state = scores(one, state, inputs(group, step, np.zeros(SLOTS, bool)))
        again, loaded = scores(resumed, loaded, inputs(group, step, np.zeros(SLOTS, bool)))
        np.testing.assert_array_equal(said, again)


def test_rows_of_the_forgotten_are_used_again(monkeypatch):
    monkeypatch.setattr(recall, "IDLE_CALLS", 6)
    group = GROUPS["vector"]
    algorithm: Any = build("decision_transformer", group)
    for _ in range(30):
        state = algorithm.initial_state(SLOTS)
        for step in range(3):
            _, state = scores(algorithm, state, inputs(group, step))
    assert algorithm.network._recall.kept.shape[1] <= 4 * SLOTS


def test_memory_has_an_end(monkeypatch):
    group = GROUPS["vector"]
    one, other = pair("decision_transformer", group)
    scores(one, one.initial_state(SLOTS), inputs(group, 0))
    monkeypatch.setattr(recall, "LARGEST_BYTES", 2 * SLOTS * one.network._recall._row_bytes)
    states = [[a.initial_state(SLOTS) for _ in range(3)] for a in (one, other)]
    for step in range(5):
        for session in range(3):  # three sessions, room for two: one always comes too late
            given = inputs(group, 10 * session + step, np.full(SLOTS, step == 0))
            said, states[0][session] = scores(one, states[0][session], given)
            expected, states[1][session] = scores(other, states[1][session], given)
            np.testing.assert_allclose(said, expected, atol=TOLERANCE)
    assert one.network._recall.kept.shape[1] <= 2 * SLOTS


def test_what_is_not_finite_stays_with_whose_it_is(monkeypatch):
    monkeypatch.setattr(recall, "IDLE_CALLS", 2)
    group = GROUPS["vector"]
    one, other = pair("decision_transformer", group)
    ill = one.initial_state(SLOTS)
    for step in range(4):
        given = inputs(group, step)
        poisoned = replace(given, obs=np.full_like(given.obs, np.nan) if step == 2 else given.obs)
        said, ill = scores(one, ill, poisoned)
        assert np.isnan(said).any() == (step >= 2)
    for _ in range(4):  # the row of the ill one becomes idle
        scores(one, one.initial_state(1), one_slot(inputs(group, 0), 0))
    rows = one.network._recall.kept.shape[1]
    state, whole = one.initial_state(SLOTS), other.initial_state(SLOTS)
    for step in range(5):
        first = np.array([step == 0, step == 0, step in (0, 3), step == 0])
        said, state = scores(one, state, inputs(group, step, first))
        expected, whole = scores(other, whole, inputs(group, step, first))
        np.testing.assert_allclose(said, expected, atol=TOLERANCE)
    assert one.network._recall.kept.shape[1] == rows  # they were given rows that others had


def one_slot(given: ActInput, slot: int) -> ActInput:
    rows = slice(slot, slot + 1)
    return replace(
        given,
        obs=given.obs[rows],
        prev_action=given.prev_action[rows],
        prev_reward=given.prev_reward[rows],
        is_first=given.is_first[rows],
        slot_params={n: v[rows] for n, v in given.slot_params.items()},
    )


@pytest.mark.parametrize("how", ["update", "learned"])
def test_weights_that_were_learned_remember_nothing(how):
    group = GROUPS["box"]
    one, other = pair("decision_transformer", group, dropout=0.0, learning_rate=0.1, warmup_updates=0)
    state, whole = one.initial_state(SLOTS), other.initial_state(SLOTS)
    batch = feed(make_batch(one.sample_spec(), group, seed=3), "cpu")
    teacher: Any = build("decision_transformer", group, window_steps=K, seed=7)
    for step in range(4):
        for algorithm in (one, other):
            if step == 2 and how == "update":
                algorithm.network, network = (
                    getattr(algorithm.network, "network", algorithm.network),
                    (algorithm.network),
                )
                algorithm.update(batch, algorithm.hparams(0.0))
                algorithm.network = network
            elif step == 2:
                algorithm.load_learned(teacher.learned())
        said, state = scores(one, state, inputs(group, step))
        expected, whole = scores(other, whole, inputs(group, step))
        np.testing.assert_allclose(said, expected, atol=TOLERANCE)


def test_short_contexts_in_a_long_window_and_late_timesteps():
    group = GROUPS["vector"]
    for keys in ({"window_steps": 9, "positions": "window"}, {"positions": "timestep", "max_timesteps": 4}):
        one, other = pair("online_dt", group, forget_steps=3, **keys)
        mine, whole = one.initial_state(SLOTS), other.initial_state(SLOTS)
        for step in range(15):
            said, mine = scores(one, mine, inputs(group, step))
            expected, whole = scores(other, whole, inputs(group, step))
            np.testing.assert_allclose(said, expected, atol=TOLERANCE)


def test_a_context_of_one_step_has_no_past():
    one, other = pair("decision_transformer", GROUPS["box"], window_steps=1)
    mine, whole = one.initial_state(SLOTS), other.initial_state(SLOTS)
    for step in range(3):
        said, mine = scores(one, mine, inputs(GROUPS["box"], step))
        expected, whole = scores(other, whole, inputs(GROUPS["box"], step))
        np.testing.assert_array_equal(said, expected)
