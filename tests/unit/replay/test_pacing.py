"""Samples per insert: the equation, refused settings, bursts, and what survives a restart."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seqrl_ray.errors import RecipeError
from seqrl_ray.replay import Pacing


def run(pacing, *, items, burst, draw, rng, eager=0.5):
    """Writers and a learner that take turns at random, until `items` were inserted; returns errors row by
    row.
    """
    errors, stuck = [], 0
    while pacing.inserted < items:
        moved = False
        for side in ("insert", "sample") if rng.random() < eager else ("sample", "insert"):
            if side == "insert" and pacing.may_insert():
                pacing.count_inserted(int(rng.integers(0, burst + 1)))
                moved = True
            elif side == "sample" and pacing.may_sample(draw):
                pacing.count_sampled(draw)
                moved = True
        stuck = 0 if moved else stuck + 1
        assert stuck < 2, "both sides are held: deadlock"
        errors.append((pacing.inserted, pacing.report().error))
    return errors


@pytest.mark.parametrize(
    ("spi", "draw", "burst"), [(32.0, 512, 64), (8.0, 512, 64), (4.0, 256, 100), (0.5, 32, 50)]
)
@pytest.mark.parametrize("eager", [0.0, 0.5, 1.0])
def test_error_stays_within_one_percent_from_20000_items_on(spi, draw, burst, eager):
    pacing = Pacing(spi, 1_000, draw_items=draw, burst_items=burst)
    errors = run(pacing, items=30_000, burst=burst, draw=draw, rng=np.random.default_rng(0), eager=eager)
    assert max(error for inserted, error in errors if inserted >= 20_000) <= 0.01


@settings(max_examples=60, deadline=None)
@given(
    spi=st.floats(0.1, 64),
    draw=st.integers(1, 600),
    burst=st.integers(1, 200),
    slack=st.floats(1.0, 3.0),
    seed=st.integers(0, 9),
)
def test_the_least_band_never_deadlocks_and_bounds_the_error(spi, draw, burst, slack, seed):
    least = (draw / spi + burst) / 2
    pacing = Pacing(spi, 20, draw_items=draw, burst_items=burst, band_items=least * slack)
    for inserted, error in run(pacing, items=3_000, burst=burst, draw=draw, rng=np.random.default_rng(seed)):
        if inserted > 20 + 2 * burst:
            assert error * (inserted - 20) <= pacing.band_items + 1e-3 + (
                burst if inserted < 20 + 3 * burst else 0
            )


@pytest.mark.parametrize(
    ("spi", "draw", "burst", "band"),
    [
        (1.0, 512, 1, 200),  # band smaller than half a draw
        (1.0, 1, 500, 200),  # band smaller than half a burst
        (8.0, 512, 64, 63.9),  # each alone fits, together they do not
        (0.25, 32, 8, 64),
    ],
)
def test_bands_that_deadlock_are_refused_and_named(spi, draw, burst, band):
    with pytest.raises(RecipeError, match=r"deadlock.*Set replay.band_items to"):
        Pacing(spi, 10, draw_items=draw, burst_items=burst, band_items=band)
    least = (draw / spi + burst) / 2
    assert Pacing(spi, 10, draw_items=draw, burst_items=burst, band_items=least).band_items == least


def test_nothing_is_drawn_before_min_items_and_nothing_held_during_warm_up():
    pacing = Pacing(1.0, 100, draw_items=10, burst_items=10)
    for _ in range(10):
        assert pacing.may_insert()
        assert not pacing.may_sample()
        assert math.isnan(pacing.report().samples_per_insert)
        pacing.count_inserted(10)
    assert pacing.may_sample()


def test_both_sides_are_held_at_the_ends_of_the_band():
    pacing = Pacing(2.0, 10, draw_items=20, burst_items=10, band_items=10)
    pacing.count_inserted(10)
    pacing.count_sampled(20)
    assert (pacing.credit, pacing.may_sample(), pacing.may_insert()) == (-20, False, True)
    pacing.count_inserted(20)
    assert (pacing.credit, pacing.may_sample(), pacing.may_insert()) == (20, True, False)


def test_unpaced_holds_neither_side_after_warm_up():
    pacing = Pacing(None, 5, draw_items=100, burst_items=100)
    assert not pacing.may_sample()
    pacing.count_inserted(5)
    pacing.count_sampled(1_000_000)
    assert pacing.may_sample() and pacing.may_insert()
    assert math.isnan(pacing.report().error)


def test_waits_are_live_and_add_up():
    now = [0.0]
    pacing = Pacing(1.0, 10, draw_items=10, burst_items=10, clock=lambda: now[0])
    assert not pacing.may_sample()
    now[0] = 2.5
    assert pacing.report().sample_wait_s == 2.5  # still waiting
    pacing.count_inserted(30)
    assert pacing.may_sample() and not pacing.may_insert()
    now[0] = 4.0
    pacing.count_sampled(20)
    assert pacing.may_insert()
    now[0] = 9.0
    report = pacing.report()
    assert (report.sample_wait_s, report.insert_wait_s) == (2.5, 1.5)


def test_several_shards_hold_one_global_equation():
    rng = np.random.default_rng(0)
    shards = [Pacing(8.0, 500, draw_items=512, burst_items=64) for _ in range(3)]

    def exchange():  # every message carries the counts of the others
        for one in shards:
            others = [other for other in shards if other is not one]
            one.elsewhere(sum(o.inserted_here for o in others), sum(o.sampled_here for o in others))

    errors = []
    while shards[0].inserted < 25_000:
        one = shards[int(rng.choice(3, p=[0.7, 0.2, 0.1]))]
        if one.may_insert():
            one.count_inserted(int(rng.integers(0, 65)))
        exchange()
        one = shards[int(rng.integers(3))]
        if one.may_sample():
            one.count_sampled(512)
        exchange()
        errors.append((shards[0].inserted, shards[0].report().error))
        assert len({(s.inserted, s.sampled) for s in shards}) == 1
    assert max(error for inserted, error in errors if inserted >= 20_000) <= 0.01


def test_state_survives_a_restart():
    a = Pacing(8.0, 100, draw_items=64, burst_items=16)
    run(a, items=700, burst=16, draw=64, rng=np.random.default_rng(0))
    b = Pacing(8.0, 100, draw_items=64, burst_items=16)
    b.restore(a.state())
    assert b.credit == a.credit
    assert (b.report().inserted, b.report().sampled) == (a.report().inserted, a.report().sampled)
    assert (b.may_insert(), b.may_sample()) == (a.may_insert(), a.may_sample())


def test_retuning_counts_from_here_on():
    pacing = Pacing(8.0, 100, draw_items=64, burst_items=16)
    run(pacing, items=5_000, burst=16, draw=64, rng=np.random.default_rng(0))
    pacing.retune(2.0)
    assert pacing.credit == 0.0
    run(pacing, items=10_000, burst=16, draw=64, rng=np.random.default_rng(0))
    assert pacing.report().samples_per_insert == pytest.approx(2.0, rel=0.02)
    with pytest.raises(RecipeError, match="deadlock"):
        pacing.retune(1.0, band_items=1.0)
    assert pacing.samples_per_insert == 2.0
