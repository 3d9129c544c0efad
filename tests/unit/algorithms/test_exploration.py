from __future__ import annotations

import numpy as np
import pytest

from seqrl_ray.algorithms.flat_learner import epsilon_greedy, epsilon_of_slots, greedy


@pytest.mark.parametrize(("progress", "expected"), [(0.0, 1.0), (0.25, 0.55), (0.5, 0.1), (0.9, 0.1)])
def test_epsilon_falls_linearly_over_its_share_of_the_run(progress: float, expected: float) -> None:
    epsilon = epsilon_of_slots(progress, np.arange(3), 3, start=1.0, end=0.1, fraction=0.5, alpha=0.0)
    assert epsilon.dtype == np.float32
    np.testing.assert_allclose(epsilon, expected, rtol=1e-6)


def test_the_ladder_is_that_of_ape_x() -> None:
    """Horgan et al. (2018): epsilon_i = 0.4 ** (1 + 7 i / (N - 1))."""
    epsilon = epsilon_of_slots(0.3, np.array([0, 3, 7, 3]), 8, start=0.4, end=0.4, fraction=0.5, alpha=7.0)
    np.testing.assert_allclose(epsilon, [0.4, 0.4**4, 0.4**8, 0.4**4], rtol=1e-5)


def test_a_lone_copy_has_the_ladders_base() -> None:
    assert epsilon_of_slots(
        0.0, np.array([0]), 1, start=0.4, end=0.4, fraction=0.0, alpha=7.0
    ) == pytest.approx(0.4)


def test_greedy_takes_the_best_legal_action_even_if_all_legal_values_are_lower() -> None:
    q = np.array([[9.0, -5.0, -3.0], [9.0, -5.0, -3.0], [1.0, 1.0, 0.0], [3.0, 2.0, 1.0]], np.float32)
    legal = np.array([[False, True, True], [True, True, True], [True, True, True], [False, False, False]])
    assert greedy(q, legal).tolist() == [2, 0, 0, 0]
    assert greedy(q, None).tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("masked", [False, True])
def test_exploring_is_uniform_over_the_legal_actions(masked: bool) -> None:
    slots = 30_000
    q = np.tile(np.array([0.0, 3.0, 2.0], np.float32), (slots, 1))
    legal = np.tile(np.array([True, False, True]), (slots, 1)) if masked else None
    action = epsilon_greedy(q, legal, np.full(slots, 0.5, np.float32), np.random.default_rng(0))
    share = np.bincount(action, minlength=3) / slots
    expected = [0.25, 0.0, 0.75] if masked else [1 / 6, 0.5 + 1 / 6, 1 / 6]
    np.testing.assert_allclose(share, expected, atol=0.01)


def test_epsilon_zero_is_greedy_and_one_is_not() -> None:
    rng = np.random.default_rng(1)
    q = rng.normal(size=(500, 4)).astype(np.float32)
    never = epsilon_greedy(q, None, np.zeros(500, np.float32), rng)
    np.testing.assert_array_equal(never, q.argmax(1))
    always = epsilon_greedy(q, None, np.ones(500, np.float32), rng)
    assert 0.15 < (always == q.argmax(1)).mean() < 0.35


def test_the_generator_moves_alike_whatever_epsilon_is() -> None:
    q = np.zeros((5, 3), np.float32)
    rngs = [np.random.default_rng(2) for _ in range(2)]
    for rng, epsilon in zip(rngs, (0.0, 1.0), strict=True):
        epsilon_greedy(q, None, np.full(5, epsilon, np.float32), rng)
    assert rngs[0].random() == rngs[1].random()
