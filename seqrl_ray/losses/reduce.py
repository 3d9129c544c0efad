"""The only reduction of losses: a weighted sum over what is valid, and the count to divide it by.

Losses give one value per element; the mask, the weight and the denominator are applied here and nowhere else.
Values behind the mask are selected away with `where`, never multiplied by zero: a NaN there changes neither
the sum nor the gradient that any element gets (exactly 0 behind the mask). What computed a NaN may still turn
that 0 into a NaN on its own way back (0 * inf), so a loss also selects its *inputs* with the mask, once,
where it reads them.
"""

from __future__ import annotations

import torch
from torch import Tensor


def weighted_sum(loss: Tensor, weight: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return `sum(weight * loss)` over the valid elements, and how many there are.

    Args:
        loss: one value per element, float, any shape.
        weight: importance of each element, same shape or with trailing dimensions of 1; it scales an element
            and does not normalise: the denominator counts elements.
        valid: bool, same shape as loss; None = all are valid.
    Returns: the sum, and the number of valid elements (float; a part of a batch may have none), both [].
    Raises: ValueError: shapes differ; the message names the argument.
    """
    if weight.dim() != loss.dim() or any(
        w not in (1, n) for w, n in zip(weight.shape, loss.shape, strict=True)
    ):
        raise ValueError(f"weight has shape {tuple(weight.shape)}, loss has {tuple(loss.shape)}")
    if valid is None:
        return (weight * loss).sum(), torch.full((), float(loss.numel()), device=loss.device)  # [], []
    if valid.shape != loss.shape or valid.dtype != torch.bool:
        raise ValueError(f"valid is {valid.dtype} {tuple(valid.shape)}, must be bool {tuple(loss.shape)}")
    zero = torch.zeros((), dtype=loss.dtype, device=loss.device)  # []
    return torch.where(valid, weight * loss, zero).sum(), valid.sum().to(loss.dtype)  # [], []


def weighted_mean(loss: Tensor, weight: Tensor, valid: Tensor | None = None) -> Tensor:
    """Return the weighted sum over the number of valid elements, 0 of none; arguments: see `weighted_sum`."""
    total, count = weighted_sum(loss, weight, valid)
    return total / count.clamp(min=1)  # []
