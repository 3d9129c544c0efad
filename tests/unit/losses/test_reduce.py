from __future__ import annotations

import pytest
import torch
from torch import tensor
from torch.nn import functional
from torch.testing import assert_close

from seqrl_ray.losses.reduce import weighted_mean, weighted_sum


def test_weights_scale_and_do_not_normalise() -> None:
    total, count = weighted_sum(tensor([2.0, 4.0]), tensor([0.5, 0.25]))
    assert_close(total, tensor(2.0))
    assert_close(count, tensor(2.0))
    assert_close(weighted_mean(tensor([2.0, 4.0]), tensor([0.5, 0.25])), tensor(1.0))


@pytest.mark.parametrize("padding", [0, 1, 7])
@pytest.mark.parametrize("poison", [1e6, float("nan"), float("inf")])
def test_padding_changes_neither_value_nor_gradient(padding: int, poison: float) -> None:
    loss = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    padded = functional.pad(loss, (0, padding), value=poison).requires_grad_()
    valid = functional.pad(torch.ones(2, 5), (0, padding)) > 0
    mean = weighted_mean(padded, torch.ones(2, 1), valid)
    assert_close(mean, loss.mean())
    mean.backward()
    assert padded.grad is not None
    assert_close(padded.grad, torch.where(valid, 0.1, 0.0))


def test_nothing_valid_gives_zero() -> None:
    assert weighted_mean(tensor([float("nan")]), tensor([1.0]), tensor([False])).item() == 0.0


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"^weight has shape"):
        weighted_sum(torch.zeros(2, 3), torch.zeros(2))
    with pytest.raises(ValueError, match=r"^weight has shape"):
        weighted_sum(torch.zeros(2, 3), torch.zeros(2, 2))
    with pytest.raises(ValueError, match=r"^valid is torch.float32"):
        weighted_sum(torch.zeros(2), torch.zeros(2), torch.ones(2))
    with pytest.raises(ValueError, match=r"^valid is torch.bool"):
        weighted_sum(torch.zeros(2), torch.zeros(2), torch.ones(1, dtype=torch.bool))
