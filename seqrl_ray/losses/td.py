"""Temporal-difference errors of action values, one signed value per row.

Sources: Mnih et al. (2015), doi:10.1038/nature14236; van Hasselt et al. (2016), arXiv:1509.06461. Departs
from them: rewards and discounts arrive already summed over n steps, and illegal next actions are never the
best.
Dims: ... any leading dimensions (B batch, or B, K batch and window), A actions.
"""

from __future__ import annotations

import torch
from torch import Tensor


def q_error(
    q_tm1: Tensor,
    action_tm1: Tensor,
    reward_t: Tensor,
    discount_t: Tensor,
    q_t: Tensor,
    legal_t: Tensor | None = None,
) -> Tensor:
    """Return how far each taken action's value lies below its Q-learning target.

        target = reward_t + discount_t * max over legal a of q_t[a]

    Args:
        q_tm1: online values before the step, [..., A] float; gradients flow here only.
        action_tm1: action taken, [...] int64 in [0, A).
        reward_t: reward discounted and summed over the n steps, [...] float, in the recipe's reward unit.
        discount_t: gamma**n, and 0 where the episode terminated (not where it was cut), [...].
        q_t: target-network values after the step, [..., A].
        legal_t: actions allowed after the step, [..., A] bool; None = all. A row with none bootstraps from 0.
    Returns: target - q_tm1[action_tm1], [...], signed.
    Raises: ValueError: a leading shape differs from q_tm1's; the message names the argument.
    Source: Mnih et al. (2015), Algorithm 1.
    """
    return double_q_error(q_tm1, action_tm1, reward_t, discount_t, q_t, q_t, legal_t)


def double_q_error(
    q_tm1: Tensor,
    action_tm1: Tensor,
    reward_t: Tensor,
    discount_t: Tensor,
    q_t: Tensor,
    selector_t: Tensor,
    legal_t: Tensor | None = None,
) -> Tensor:
    """Return how far each taken action's value lies below its Double-Q target.

        target = reward_t + discount_t * q_t[argmax over legal a of selector_t[a]]

    Args:
        q_tm1: online values before the step, [..., A] float; gradients flow here only.
        action_tm1: action taken, [...] int64 in [0, A).
        reward_t: reward discounted and summed over the n steps, [...] float, in the recipe's reward unit.
        discount_t: gamma**n, and 0 where the episode terminated (not where it was cut), [...].
        q_t: target-network values after the step, [..., A].
        selector_t: the online network's values after the step, [..., A]; they choose the action only.
        legal_t: actions allowed after the step, [..., A] bool; None = all. A row with none bootstraps from 0.
    Returns: target - q_tm1[action_tm1], [...], signed.
    Raises: ValueError: a leading shape differs from q_tm1's; the message names the argument.
    Source: van Hasselt et al. (2016), section "Double DQN".
    """
    rows = q_tm1.shape[:-1]
    for name, value in (("action_tm1", action_tm1), ("reward_t", reward_t), ("discount_t", discount_t)):
        if value.shape != rows:
            raise ValueError(f"{name} has shape {tuple(value.shape)}, q_tm1 asks for {tuple(rows)}")
    for name, table in (("q_t", q_t), ("selector_t", selector_t), ("legal_t", legal_t)):
        if table is not None and table.shape != q_tm1.shape:
            raise ValueError(f"{name} has shape {tuple(table.shape)}, q_tm1 has {tuple(q_tm1.shape)}")
    chosen = q_tm1.gather(-1, action_tm1.unsqueeze(-1)).squeeze(-1)  # [...]
    if legal_t is not None:
        selector_t = selector_t.masked_fill(~legal_t, -torch.inf)  # [..., A]
    best_t = selector_t.argmax(-1, keepdim=True)  # [..., 1]
    bootstrap = q_t.gather(-1, best_t).squeeze(-1)  # [...]
    if legal_t is not None:
        bootstrap = bootstrap.masked_fill(
            ~legal_t.any(-1), 0.0
        )  # [...] a terminal row may have no legal action
    return torch.addcmul(reward_t, discount_t, bootstrap).detach() - chosen  # [...]


def huber(error: Tensor, delta: float) -> Tensor:
    """Return the Huber loss of each error: quadratic within delta, linear beyond, slope at most delta.

    Args:
        error: any shape, float.
        delta: > 0, in the unit of error.
    Returns: same shape; `error**2 / 2` where |error| <= delta, else `delta * (|error| - delta / 2)`.
    Source: Huber (1964), doi:10.1214/aoms/1177703732.
    """
    return torch.nn.functional.huber_loss(
        error, torch.zeros_like(error), reduction="none", delta=delta
    )  # [...]
