"""Two learners that share every minibatch do what one does with the whole: the same updates, to rounding."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from tests.unit.runtime.lockstep_world import CASES, LEARNERS, UPDATES, Case, alone, run_together


def largest_difference(one, other):
    assert one.keys() == other.keys()
    return max(float(np.abs(one[name].astype(float) - other[name]).max()) for name in one)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """(Algorithm, whether in float64) -> (one learner's priorities and state, those of each of two); and
    under "misled" those of two that got the importance weights wrong.
    """
    folder = str(tmp_path_factory.mktemp("recipes"))
    cases = [Case(name, double, folder) for name in CASES for double in (True, False)]
    single = {case: alone(case) for case in cases}
    misled = Case("double_dqn", True, folder, misled=True)
    work = [*((case, single[case][0]) for case in cases), (misled, single[cases[0]][0])]
    shared = run_together(work)
    found = {
        (case.name, case.double): (single[case][1:], [shared[rank, case] for rank in range(LEARNERS)])
        for case in cases
    }
    return {**found, "misled": shared[0, misled]}


@pytest.mark.parametrize("name", CASES)
def test_two_learners_equal_one(runs, name, capsys):
    differences = {}
    for double in (True, False):
        (priorities, learned), parts = runs[name, double]
        assert learned["online"].dtype == (np.float64 if double else np.float32)
        for (_, one), (_, other) in pairwise(parts):
            assert largest_difference(one, other) == 0.0  # all learners alike, to the last bit
        differences[double] = largest_difference(learned, parts[0][1])
        whole = np.concatenate([np.stack(own) for own, _ in parts], axis=-1)  # [50, 1, B]
        np.testing.assert_allclose(whole, np.stack(priorities), rtol=1e-9 if double else 1e-3)
    with capsys.disabled():
        print(
            f"\n  {name}: two learners against one after {UPDATES} updates, largest difference "
            f"{differences[True]:.1e} in float64, {differences[False]:.1e} in float32"
        )
    assert differences[True] <= 1e-9
    assert differences[False] <= 1e-2


def test_the_comparison_can_fail(runs):
    """Parts whose importance weights are divided by the part's own largest learn something else."""
    (_, learned), _ = runs["double_dqn", True]
    assert largest_difference(learned, runs["misled"][1]) > 1e-6
