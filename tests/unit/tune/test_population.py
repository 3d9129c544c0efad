"""The population board: bounds, selection, divergence, and a log that gives the same board again."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from seqrl_ray.tune.population import Population, Rules
from seqrl_ray.tune.settings import DimensionSettings
from seqrl_ray.tune.space import Space, move

SPACE = Space(
    {
        "rate": DimensionSettings(kind="log_uniform", low=1e-5, high=1e-2),
        "gamma": DimensionSettings(kind="uniform", low=0.9, high=0.999),
        "steps": DimensionSettings(kind="uniform", low=1, high=5, integer=True),
        "batch": DimensionSettings(kind="log_uniform", low=16, high=256, integer=True),
        "kind": DimensionSettings(kind="choice", values=("a", "b", 3)),
    }
)


def population(size=4, seed=0, **rules):
    return Population(SPACE, Rules(**rules), size, seed)


def report(board, scores, number, **options):
    """Every member reports once, in order; returns the decisions."""
    return [
        board.report(i, number, 1000 * number, s, last=options.get("last", False))[0]
        for i, s in enumerate(scores)
    ]


@pytest.mark.parametrize("seed", range(5))
def test_a_thousand_explores_stay_inside(seed):
    rng = np.random.default_rng(seed)
    values, seen = SPACE.draw(rng), []
    for _ in range(1000):
        values = SPACE.explore(values, rng, resample=0.1, factor=float(rng.uniform(1.01, 10.0)))
        assert SPACE.holds(values), values
        assert isinstance(values["steps"], int) and isinstance(values["batch"], int)
        seen.append(values)
    rates = [v["rate"] for v in seen]
    assert min(rates) == 1e-5 and max(rates) == 1e-2, "the bounds are reached, not avoided"
    assert {v["kind"] for v in seen} == {"a", "b", 3}
    assert {v["steps"] for v in seen} == {1, 2, 3, 4, 5}


def test_what_is_outside_is_noticed():
    inside = SPACE.draw(np.random.default_rng(0))
    for key, bad in (("rate", 2e-2), ("gamma", 0.5), ("steps", 2.5), ("kind", "c")):
        assert not SPACE.holds({**inside, key: bad})
    assert not SPACE.holds({"rate": 1e-3})


def test_a_log_uniform_value_moves_by_a_factor_and_a_uniform_one_by_a_share_of_its_range():
    rate, gamma = SPACE.dimensions["rate"], SPACE.dimensions["gamma"]
    assert move(rate, 1e-3, up=True, factor=1.25) == pytest.approx(1.25e-3)
    assert move(rate, 1e-3, up=False, factor=1.25) == pytest.approx(0.8e-3)
    assert move(gamma, 0.95, up=True, factor=1.2) == pytest.approx(0.95 + 0.2 * 0.099)
    assert move(gamma, 0.99, up=True, factor=1.2) == 0.999
    assert move(SPACE.dimensions["steps"], 3, up=True, factor=1.01) == 4, "a whole number moves at all"
    assert move(SPACE.dimensions["kind"], "b", up=True, factor=2.0) == "b"


def test_log_uniform_draws_are_even_in_the_logarithm():
    rng = np.random.default_rng(0)
    drawn = np.log10([SPACE.draw(rng)["rate"] for _ in range(4000)])
    counts, _ = np.histogram(drawn, bins=[-5, -4, -3, -2])
    assert counts.sum() == 4000
    assert np.abs(counts / 4000 - 1 / 3).max() < 0.04


def test_the_worst_copies_the_best_and_nobody_else_does():
    board = population()
    decisions = report(board, [1.0, 4.0, 2.0, 3.0], 1)
    assert [d.action for d in decisions] == ["go on"] * 4, "nobody is judged before all have a score"
    decisions = report(board, [1.0, 4.0, 2.0, 3.0], 2)
    assert [d.action for d in decisions] == ["copy", "go on", "go on", "go on"]
    assert (decisions[0].donor, decisions[0].donor_report) == (1, 1), "the donor's newest report"
    assert board.members[0].values == decisions[0].values
    assert board.members[1].values == decisions[1].values != decisions[0].values
    assert SPACE.holds(decisions[0].values)


def test_where_lower_is_better_the_highest_copies_the_lowest():
    board = population(lower_is_better=True)
    report(board, [1.0, 4.0, 2.0, 3.0], 1)
    decisions = report(board, [1.0, 4.0, 2.0, 3.0], 2)
    assert [(d.action, d.donor) for d in decisions] == [
        ("go on", None), ("copy", 0), ("go on", None), ("go on", None)
    ]


def test_equals_copy_nobody():
    board = population()
    for number in (1, 2, 3):
        assert {d.action for d in report(board, [500.0] * 4, number)} == {"go on"}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("lower_is_better", [False, True])
def test_a_member_without_a_finite_score_is_replaced_at_once(bad, lower_is_better):
    board = population(
        quantile=0.25, interval_reports=10, burn_in_reports=10, lower_is_better=lower_is_better
    )
    board.report(0, 1, 100, 5.0, last=False)
    decision, row = board.report(1, 1, 100, bad, last=False)
    assert (decision.action, decision.donor) == ("copy", 0)
    assert json.loads(json.dumps(row))["score"] is None
    assert board.winner() == 0


def test_a_bad_score_is_nobodys_donor_and_wins_nothing():
    board = population(size=3, quantile=0.5)
    for number in range(1, 6):
        decisions = report(board, [math.inf, 1.0, 2.0], number)
        assert all(d.donor != 0 for d in decisions)
    assert board.winner() == 2


def test_where_nobody_is_sound_all_begin_anew_with_other_values():
    board = population(size=2)
    first = [dict(m.values) for m in board.members]
    decisions = report(board, [math.nan, math.nan], 1)
    assert [d.action for d in decisions] == ["anew", "anew"]
    assert [m.values for m in board.members] != first
    assert board.winner() is None


def test_the_interval_counts_from_the_last_change_and_the_burn_in_from_the_start():
    board = population(interval_reports=3, burn_in_reports=2)
    actions = [report(board, [1.0, 4.0, 2.0, 3.0], n)[0].action for n in range(1, 10)]
    assert actions == ["go on", "go on", "copy", "go on", "go on", "copy", "go on", "go on", "copy"]


def test_who_copied_is_nobodys_donor_until_it_reports_itself():
    board = population(size=2, quantile=0.5)
    report(board, [1.0, 3.0], 1)
    assert board.report(0, 2, 2000, 1.0, last=False)[0].donor == 1
    decision, _ = board.report(1, 2, 2000, 0.5, last=False)
    assert decision.action == "go on", "0's better score is of weights that it has no longer"
    assert board.winner() == 1
    board.report(0, 3, 3000, 1.0, last=False)
    assert board.report(1, 3, 3000, 0.5, last=False)[0].donor == 0


def test_one_copy_does_not_make_the_next_in_line_the_worst():
    board = population(size=8, quantile=0.25)
    scores = [float(s) for s in range(8)]
    report(board, scores, 1)
    assert [d.action for d in report(board, scores, 2)] == ["copy"] * 2 + ["go on"] * 6


def test_the_last_report_changes_nothing():
    board = population()
    report(board, [1.0, 4.0, 2.0, 3.0], 1)
    assert {d.action for d in report(board, [1.0, 4.0, 2.0, 3.0], 2, last=True)} == {"go on"}
    assert board.winner() == 1


def test_a_report_heard_twice_gets_the_same_answer_and_no_row():
    board = population()
    report(board, [1.0, 4.0, 2.0, 3.0], 1)
    first, row = board.report(0, 2, 2000, 1.0, last=False)
    again, nothing = board.report(0, 2, 2000, 99.0, last=False)
    assert first == again and row and nothing == {}
    with pytest.raises(ValueError, match="one is missing"):
        board.report(0, 4, 4000, 1.0, last=False)


def test_checkpoints_that_a_copy_stands_on_are_pinned_until_the_copy_reports():
    board = population()
    report(board, [1.0, 4.0, 2.0, 3.0], 1)
    board.report(0, 2, 2000, 1.0, last=False)
    assert board.pinned(1) == {1}
    board.report(1, 2, 2000, 5.0, last=False)
    assert board.pinned(1) == {1}
    board.report(0, 3, 3000, 4.5, last=False)
    assert board.pinned(1) == set()


def play(board, rng, reports):
    """A random history: members in any order, some scores not finite; returns the log's rows."""
    rows = []
    for _ in range(reports):
        i = int(rng.integers(len(board.members)))
        score = float(rng.choice([rng.normal(), math.nan, math.inf], p=[0.9, 0.05, 0.05]))
        one = board.members[i]
        rows.append(board.report(i, one.report + 1, one.env_steps + 10, score, last=False)[1])
    return rows


@pytest.mark.parametrize("cut", [0, 1, 17, 60])
def test_a_board_read_from_its_log_goes_on_as_the_first_would_have(cut):
    board, rng = population(size=5, seed=3, quantile=0.4), np.random.default_rng(7)
    log = [board.begin_row(), *play(board, rng, 60)]
    again = Population.from_rows(SPACE, board.rules, json.loads(json.dumps(log[: cut + 1])))
    rng = np.random.default_rng(7)
    twin = population(size=5, seed=3, quantile=0.4)
    assert [again_m.values for again_m in again.members] == [
        m.values for m in twin.members
    ] or cut, "cut 0 is the beginning"
    rows = play(twin, rng, cut)
    assert json.dumps(rows) == json.dumps(log[1 : cut + 1])
    rest = play(again, rng, 60 - cut)
    assert json.dumps(rest) == json.dumps(log[cut + 1 :])


def test_ten_thousand_decisions_keep_the_bounds():
    board = population(size=8, seed=1, quantile=0.5)
    rows = play(board, np.random.default_rng(2), 10_000)
    copies = [r for r in rows if r["decision"]["action"] == "copy"]
    assert len(copies) > 1000
    assert all(SPACE.holds(r["decision"]["values"]) for r in rows)
    assert all(r["decision"]["donor"] != r["member"] for r in copies)
