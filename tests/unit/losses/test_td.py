"""Golden values by hand, with an ordinary, a truncated and a terminal row in one batch."""

from __future__ import annotations

import pytest
import torch
from torch import tensor
from torch.testing import assert_close

from seqrl_ray.losses.td import double_q_error, huber, q_error

# Row 0 is ordinary (one step), row 1 was cut after two steps (discount gamma**2), row 2 terminated.
Q_TM1 = tensor([[1.0, 5.0], [2.0, 0.5], [2.0, 0.0]])
ACTION_TM1 = tensor([1, 1, 0])
REWARD_T = tensor([1.0, 3.0, -1.0])
DISCOUNT_T = tensor([0.5, 0.25, 0.0])
Q_T = tensor([[10.0, 4.0], [8.0, 2.0], [9.0, 9.0]])
SELECTOR_T = tensor([[0.0, 1.0], [3.0, 1.0], [0.0, 1.0]])  # row 0 picks 1 although the target prefers 0


def test_q_error_matches_hand_computed_values() -> None:
    error = q_error(Q_TM1, ACTION_TM1, REWARD_T, DISCOUNT_T, Q_T)
    assert_close(error, tensor([1.0 + 0.5 * 10.0 - 5.0, 3.0 + 0.25 * 8.0 - 0.5, -1.0 - 2.0]))


def test_double_q_error_lets_the_selector_choose_and_the_target_judge() -> None:
    error = double_q_error(Q_TM1, ACTION_TM1, REWARD_T, DISCOUNT_T, Q_T, SELECTOR_T)
    assert_close(error, tensor([1.0 + 0.5 * 4.0 - 5.0, 3.0 + 0.25 * 8.0 - 0.5, -1.0 - 2.0]))


def test_an_illegal_action_is_never_the_best_next_one() -> None:
    legal = tensor([[False, True], [False, True], [True, True]])
    assert_close(
        q_error(Q_TM1, ACTION_TM1, REWARD_T, DISCOUNT_T, Q_T, legal),
        tensor([1.0 + 0.5 * 4.0 - 5.0, 3.0 + 0.25 * 2.0 - 0.5, -3.0]),
    )
    changed = Q_T.masked_fill(~legal, torch.inf)
    assert_close(
        q_error(Q_TM1, ACTION_TM1, REWARD_T, DISCOUNT_T, changed, legal),
        q_error(Q_TM1, ACTION_TM1, REWARD_T, DISCOUNT_T, Q_T, legal),
    )


def test_a_row_without_legal_actions_bootstraps_from_zero() -> None:
    legal = tensor([[False, False], [True, True], [False, False]])
    error = double_q_error(Q_TM1, ACTION_TM1, REWARD_T, DISCOUNT_T, Q_T, SELECTOR_T, legal)
    assert_close(error, tensor([1.0 - 5.0, 3.0 + 0.25 * 8.0 - 0.5, -3.0]))


def test_leading_dimensions_are_free() -> None:
    flat = double_q_error(Q_TM1, ACTION_TM1, REWARD_T, DISCOUNT_T, Q_T, SELECTOR_T)
    stacked = double_q_error(
        Q_TM1.view(3, 1, 2),
        *(x.view(3, 1) for x in (ACTION_TM1, REWARD_T, DISCOUNT_T)),
        Q_T[:, None],
        SELECTOR_T[:, None],
    )
    assert_close(stacked, flat[:, None])


def test_gradients_reach_the_taken_action_and_nothing_else() -> None:
    q_tm1, q_t, selector = (x.clone().requires_grad_() for x in (Q_TM1, Q_T, SELECTOR_T))
    double_q_error(q_tm1, ACTION_TM1, REWARD_T, DISCOUNT_T, q_t, selector).sum().backward()
    assert_close(q_tm1.grad, tensor([[0.0, -1.0], [0.0, -1.0], [-1.0, 0.0]]))
    assert q_t.grad is None and selector.grad is None


@pytest.mark.parametrize("argument", ["action_tm1", "reward_t", "discount_t", "q_t", "selector_t", "legal_t"])
def test_a_wrong_shape_is_named(argument: str) -> None:
    values = {
        "q_tm1": Q_TM1,
        "action_tm1": ACTION_TM1,
        "reward_t": REWARD_T,
        "discount_t": DISCOUNT_T,
        "q_t": Q_T,
        "selector_t": SELECTOR_T,
        "legal_t": torch.ones(3, 2, dtype=torch.bool),
    }
    values[argument] = values[argument][:2]
    with pytest.raises(ValueError, match=f"^{argument} has shape"):
        double_q_error(**values)


@pytest.mark.parametrize(
    ("error", "delta", "expected"),
    [
        (0.5, 1.0, 0.125),
        (-0.5, 1.0, 0.125),
        (3.0, 1.0, 2.5),
        (-3.0, 2.0, 4.0),
        (2.0, 2.0, 2.0),
        (0.0, 1.0, 0.0),
    ],
)
def test_huber_matches_hand_computed_values(error: float, delta: float, expected: float) -> None:
    assert_close(huber(tensor([error]), delta), tensor([expected]))


def test_huber_slope_is_the_error_clipped_to_delta() -> None:
    error = tensor([-5.0, -0.5, 0.0, 0.5, 5.0], requires_grad=True)
    huber(error, 2.0).sum().backward()
    assert_close(error.grad, tensor([-2.0, -0.5, 0.0, 0.5, 2.0]))
