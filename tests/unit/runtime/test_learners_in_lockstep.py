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
    """Case -> (one learner's priorities and state, those of each of two)."""
    folder = str(tmp_path_factory.mktemp("recipes"))
    cases = [Case(name, double, folder) for name in CASES for double in (True, False)]
    single = {case: alone(case) for case in cases}
    shared = run_together([(case, single[case][0]) for case in cases])
    return {
        (case.name, case.double): (single[case][1:], [shared[rank, case] for rank in range(LEARNERS)])
        for case in cases
    }


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


def test_the_comparison_can_fail(runs, tmp_path_factory):
    """Parts whose importance weights are divided by the part's own largest learn something else."""
    case = Case("double_dqn", True, str(tmp_path_factory.mktemp("misled")))
    draws, _, learned = alone(case)
    misled = run_together([(case, draws)], misled=True)[0, case][1]
    assert largest_difference(learned, misled) > 1e-6
