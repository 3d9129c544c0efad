import itertools
import json
import math

import numpy as np
import pytest

from seqrl_ray.errors import EnvError
from seqrl_ray.loops.stats import paired, summarise, t_quantile


@pytest.mark.parametrize(
    ("degrees", "table"),  # two-sided 95 % points as printed in Abramowitz & Stegun, table 26.10
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (9, 2.262), (10, 2.228), (30, 2.042), (120, 1.980)],
)
def test_t_quantile_matches_the_printed_table(degrees, table):
    assert t_quantile(degrees) == pytest.approx(table, abs=5.1e-4)


def test_t_quantile_in_closed_form_and_in_the_limit():
    assert t_quantile(1) == pytest.approx(math.tan(math.pi * 0.475), rel=1e-12)
    assert t_quantile(2) == pytest.approx(0.95 * math.sqrt(2 / (1 - 0.95**2)), rel=1e-12)
    assert t_quantile(100_001) == pytest.approx(1.959964, abs=3e-5)
    falling = [t_quantile(d) for d in range(1, 300)]
    assert all(a > b for a, b in itertools.pairwise(falling))


def test_t_quantile_agrees_with_scipy():
    stats = pytest.importorskip("scipy.stats")
    for degrees in (1, 2, 3, 5, 8, 13, 99, 1000):
        assert t_quantile(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=1e-9)


def test_t_quantile_refuses_zero_degrees():
    with pytest.raises(ValueError, match="degrees=0 is below 1: an interval needs two values"):
        t_quantile(0)


def test_summarise_by_hand():
    summary = summarise([1.0, 2.0, 3.0, 4.0, 10.0])
    assert summary["mean"] == 4.0
    assert summary["median"] == 3.0
    assert summary["p95"] == pytest.approx(4.0 + 0.8 * 6.0)  # place 0.95 * 4 = 3.8, counted from 0
    half = 2.7764451 * math.sqrt(50 / 4) / math.sqrt(5)  # squared deviations 9 + 4 + 1 + 0 + 36
    assert summary["ci95"] == pytest.approx([4.0 - half, 4.0 + half], rel=1e-7)
    assert (summary["n"], summary["missing"]) == (5, 0)


def test_missing_values_are_counted_never_averaged():
    assert summarise([1.0, math.nan, 3.0]) == {**summarise([1.0, 3.0]), "missing": 1}


@pytest.mark.parametrize("values", [[], [math.nan], [math.nan, math.nan]])
def test_nothing_to_summarise_is_null_and_valid_json(values):
    summary = summarise(values)
    figures = {"mean": None, "median": None, "p95": None, "ci95": None}
    assert summary == {**figures, "n": 0, "missing": len(values)}
    json.dumps(summary, allow_nan=False)


def test_one_value_has_no_interval():
    assert summarise([7.5]) == {"mean": 7.5, "median": 7.5, "p95": 7.5, "ci95": None, "n": 1, "missing": 0}


def test_infinite_value_is_refused():
    with pytest.raises(EnvError, match=r"values\[1\]=inf is infinite: no mean or interval exists"):
        summarise([1.0, math.inf])
    with pytest.raises(EnvError, match="is infinite"):
        paired([math.inf], [math.inf])


def test_paired_by_hand_and_antisymmetric():
    policy, other = [10.0, 20.0, 30.0], [11.0, 23.0, 35.0]  # differences -1 -3 -5: mean -3, deviation 2
    result = paired(policy, other)
    half = 4.3026527 * 2 / math.sqrt(3)
    assert result["mean_difference"] == -3.0
    assert result["ci95"] == pytest.approx([-3 - half, -3 + half], rel=1e-7)
    back = paired(other, policy)
    assert back["mean_difference"] == 3.0
    assert back["ci95"] == pytest.approx([3 - half, 3 + half], rel=1e-7)


def test_pairing_removes_what_the_seeds_share():
    rng = np.random.default_rng(0)
    demand = rng.normal(0.0, 50.0, 12)  # a large effect of the seed that both controllers feel
    policy, other = 100 + demand + rng.normal(0, 1, 12), 105 + demand + rng.normal(0, 1, 12)
    low, high = paired(policy, other)["ci95"]
    assert high < 0
    separate = summarise(policy)["ci95"]
    assert high - low < 0.1 * (separate[1] - separate[0])


def test_paired_drops_whole_pairs_and_refuses_unequal_lengths():
    assert paired([1.0, math.nan, 5.0], [0.0, 9.0, math.nan]) == {
        "mean_difference": 1.0,
        "ci95": None,
        "n": 1,
        "missing": 2,
    }
    with pytest.raises(ValueError, match="other has 1 values and policy 2: pairs would mix seeds"):
        paired([1.0, 2.0], [1.0])


def test_the_interval_covers_what_it_says():
    rng = np.random.default_rng(1)
    intervals = [summarise(row)["ci95"] for row in rng.normal(3.0, 2.0, (2000, 6))]
    covered = np.mean([low <= 3.0 <= high for low, high in intervals])
    assert 0.935 < covered < 0.965  # three standard errors of 2000 trials at 0.95
