"""The safety layer and the audit, without SUMO: a second-by-second display stands in for it."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import repeat

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqrl_ray.envs.traffic.audit import Shown, Violation, violations
from seqrl_ray.envs.traffic.net import Movement, Signal
from seqrl_ray.envs.traffic.safety import SafetyLayer, yellow_state
from seqrl_ray.recipe_traffic import TrafficSettings

BEGIN_S = 100
NEVER = repeat(0)


def signal(name: str, greens: tuple[str, ...]) -> Signal:
    movements = tuple(Movement(i, f"in{i}", f"out{i}", f":{name}{i}") for i in range(len(greens[0])))
    return Signal(name, (name,), (), greens, movements, (), ())


FOUR = signal("four", ("GGrr", "Ggrr", "rrGG", "srrG"))
TWO = signal("two", ("Gr", "rG"))


def timing(**keys: object) -> TrafficSettings:
    return TrafficSettings.model_validate(
        {"net": "n", "route": "r", "begin_s": BEGIN_S, "end_s": BEGIN_S + 1200, "reward_samples": 1, **keys}
    )


def drive(
    rules: TrafficSettings, wishes: np.ndarray, stuck_s: Iterator[int] = NEVER
) -> tuple[SafetyLayer, list[Shown], int]:
    """Show what the layer commands; returns it, the record, and how many wishes were illegal.

    Before each green with lanes to clear, vehicles stand there for the next of `stuck_s` seconds.
    """
    layer = SafetyLayer((FOUR, TWO), rules)
    shown = [Shown(BEGIN_S, c.signal, c.state) for c in layer.start(BEGIN_S)]
    illegal = 0
    for t, wish in enumerate(wishes):
        now_s = BEGIN_S + t * rules.decision_s
        legal = layer.legal
        assert legal.any(axis=1).all()
        illegal += sum(not legal[n, w] for n, w in enumerate(wish))
        commands = sorted(layer.decide(wish), key=lambda c: c.after_s)
        assert all(0 <= c.after_s < rules.decision_s for c in commands)
        for c in commands:
            at_s, left_s = c.after_s, next(stuck_s) if c.clears else 0
            while left_s and layer.held(c, at_s):
                shown.append(Shown(now_s + at_s, c.signal, c.meanwhile))
                at_s, left_s = at_s + 1, left_s - 1
            assert at_s < rules.decision_s
            shown.append(Shown(now_s + at_s, c.signal, c.state))
        layer.advance(now_s + rules.decision_s)
    return layer, shown, illegal


def test_yellow_only_where_green_is_lost() -> None:
    assert yellow_state("GgrsG", "rsGrG") == "yyrsG"


def test_first_decision_counts_the_first_green_from_one_change_on() -> None:
    layer = SafetyLayer((TWO,), timing(decision_s=5, yellow_s=2, min_green_s=5))
    layer.start(BEGIN_S)
    free = []
    for t in range(4):
        layer.advance(BEGIN_S + 5 * t)
        free.append(bool(layer.legal[0, 1]))
    assert free == [False, False, True, True]  # 0, 5, 10 s: 7 s = yellow + min green must have passed


def test_change_shows_yellow_then_clearance_then_green() -> None:
    layer = SafetyLayer((FOUR,), timing(yellow_s=3, all_red_s=2, min_green_s=0, decision_s=10))
    layer.start(BEGIN_S)
    layer.advance(BEGIN_S + 10)
    commands = layer.decide(np.array([3]))
    assert [(c.after_s, c.state) for c in commands] == [(0, "yyrr"), (3, "rrrr"), (5, "srrG")]


def test_a_green_waits_for_the_junction_to_clear_but_not_for_ever() -> None:
    rules = timing(yellow_s=3, red_extension_s=4, min_green_s=5, decision_s=10)
    layer = SafetyLayer((FOUR,), rules)
    layer.start(BEGIN_S)
    layer.advance(BEGIN_S + 10)
    yellow, green = layer.decide(np.array([3]))
    assert (yellow.after_s, yellow.state, yellow.clears) == (0, "yyrr", ())
    assert (green.after_s, green.state, green.meanwhile) == (3, "srrG", "rrrr")
    assert green.clears == (":four0", ":four1")  # of the links that lost their green, and no others
    assert [layer.held(green, at_s) for at_s in (3, 4, 5, 6, 7)] == [True, True, True, True, False]
    layer.advance(BEGIN_S + 20)
    assert layer.legal[0].tolist() == [False, False, False, True]  # shown from 17 s on, for 5 s
    layer.advance(BEGIN_S + 30)
    assert layer.legal[0].all()


def test_illegal_wish_is_refused_and_keeps_the_green() -> None:
    layer = SafetyLayer((TWO,), timing(min_green_s=20))
    layer.start(BEGIN_S)
    assert layer.decide(np.array([1])) == []
    assert layer.decide(np.array([7])) == []
    assert layer.refusals == 2
    assert layer.phase.tolist() == [0]


def test_max_green_forbids_holding_and_moves_on() -> None:
    layer = SafetyLayer((FOUR,), timing(max_green_s=30, min_green_s=5))
    layer.start(BEGIN_S)
    held = []
    for t in range(4):
        layer.advance(BEGIN_S + 10 * t)
        held.append(bool(layer.legal[0, 0]))
        layer.decide(np.array([0]))
    assert held == [True, True, True, False]  # at 30 s the green has lasted 30 s
    assert layer.phase.tolist() == [1]
    assert layer.refusals == 1


def test_cyclic_transitions_allow_the_next_only() -> None:
    layer = SafetyLayer((FOUR, TWO), timing(transitions="cyclic", min_green_s=0))
    layer.start(BEGIN_S)
    layer.advance(BEGIN_S + 10)
    assert layer.legal.tolist() == [[True, True, False, False], [True, True, False, False]]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    decision_s=st.integers(5, 15),
    yellow_s=st.integers(1, 4),
    min_green_s=st.integers(0, 25),
    spare_s=st.one_of(st.none(), st.integers(0, 30)),
    transitions=st.sampled_from(["any", "cyclic"]),
)
def test_no_wish_can_make_it_show_anything_unsafe(
    seed: int, decision_s: int, yellow_s: int, min_green_s: int, spare_s: int | None, transitions: str
) -> None:
    rng = np.random.default_rng(seed)
    all_red_s = int(rng.integers(min(decision_s - yellow_s, 6)))
    red_extension_s = int(rng.integers(decision_s - yellow_s - all_red_s))
    change_s = yellow_s + all_red_s + red_extension_s
    rules = timing(
        decision_s=decision_s,
        yellow_s=yellow_s,
        all_red_s=all_red_s,
        min_green_s=min_green_s,
        red_extension_s=red_extension_s,
        max_green_s=None if spare_s is None else min_green_s + change_s + decision_s + spare_s,
        transitions=transitions,
        end_s=BEGIN_S + 60 * decision_s,
    )
    wishes = rng.integers(-1, 6, (60, 2)).clip(0, 3)
    layer, shown, illegal = drive(rules, wishes, iter(rng.integers(0, 20, 10_000).tolist()))
    assert violations(shown, rules, programme=False) == []
    assert layer.refusals == illegal


RULES = timing(decision_s=10, yellow_s=3, all_red_s=2, min_green_s=5, max_green_s=40)
GOOD = ((0, "Gr"), (20, "yr"), (23, "rr"), (25, "rG"), (45, "ry"), (48, "rr"), (50, "Gr"))


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (GOOD, []),
        (((0, "Gr"), (20, "rG")), [(20, 0, "no_yellow")]),
        (((0, "Gr"), (20, "yr"), (22, "rr"), (25, "rG")), [(22, 0, "short_yellow")]),
        (((0, "Gr"), (20, "yr"), (23, "Gr")), [(23, 0, "yellow_to_green"), (23, 0, "all_red")]),
        (((0, "Gr"), (20, "yr"), (23, "rr"), (24, "rG")), [(24, 1, "all_red")]),
        (((0, "Gr"), (20, "yr"), (23, "rG")), [(23, 1, "all_red")]),
        ((*GOOD[:4], (29, "ry")), [(29, 1, "min_green")]),
        (((0, "Gr"), (46, "yr")), [(46, -1, "max_green")]),
    ],
)
def test_audit_names_each_broken_rule(
    record: tuple[tuple[int, str], ...], expected: list[tuple[int, int, str]]
) -> None:
    shown = [Shown(time, "x", state) for time, state in record]
    assert violations(shown, RULES, programme=False) == [
        Violation(t, "x", link, rule) for t, link, rule in expected
    ]


def test_audit_lets_a_programme_choose_its_seconds_but_not_skip_yellow() -> None:
    shown = [Shown(t, "x", s) for t, s in ((0, "Gr"), (2, "yr"), (3, "rG"), (90, "Gr"))]
    assert [v.rule for v in violations(shown, RULES, programme=True)] == ["no_yellow"]


def test_audit_keeps_signals_apart() -> None:
    shown = [Shown(0, "a", "Gr"), Shown(0, "b", "rG"), Shown(20, "a", "yr"), Shown(20, "b", "rr")]
    found = violations(shown, RULES, programme=False)
    assert [(v.signal, v.rule) for v in found] == [("b", "no_yellow")]


def test_dropping_the_yellow_is_seen_by_the_audit() -> None:
    rules = timing(min_green_s=0)
    wishes = np.tile([[2, 1], [0, 0]], (10, 1))
    _, shown, _ = drive(rules, wishes)
    assert violations(shown, rules, programme=False) == []
    reckless = [replace(row, state=row.state.replace("y", "G")) for row in shown]
    assert {v.rule for v in violations(reckless, rules, programme=False)} == {"no_yellow"}
