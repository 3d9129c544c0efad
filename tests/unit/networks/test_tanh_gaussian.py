"""The squashed Gaussian against torch.distributions, where that is finite and where it is not."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Normal, TanhTransform, TransformedDistribution

from seqrl_ray.errors import RecipeError
from seqrl_ray.networks.tanh_gaussian import (
    EDGE,
    TanhGaussian,
    action_bounds,
    bounded_log_std,
    to_box,
    to_unit,
)
from seqrl_ray.types import ActionSpec, ArraySpec, GroupSpec


def parameters(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Means, log stds and noise [7, 5, 3], in float64."""
    generator = torch.Generator().manual_seed(seed)
    mean, raw, noise = torch.randn(3, 7, 5, 3, generator=generator, dtype=torch.float64)
    return mean.requires_grad_(), (0.5 * raw - 0.5).requires_grad_(), noise


def peer(mean: Tensor, log_std: Tensor) -> TransformedDistribution:
    return TransformedDistribution(Independent(Normal(mean, log_std.exp()), 1), TanhTransform(cache_size=1))


def test_a_draw_and_its_density_are_those_of_torch_in_value_and_gradient() -> None:
    mean, log_std, noise = parameters(seed=0)
    ours = TanhGaussian(mean, log_std)
    pre_tanh = ours.draw(noise)
    action = (mean + log_std.exp() * noise).tanh()
    theirs = peer(mean, log_std).log_prob(action)  # [7, 5]
    torch.testing.assert_close(pre_tanh.tanh(), action)
    torch.testing.assert_close(ours.log_prob(pre_tanh), theirs)
    weight = 1.0 + torch.arange(35.0).view(7, 5)
    for one, two in zip(
        torch.autograd.grad((weight * ours.log_prob(pre_tanh)).sum(), (mean, log_std), retain_graph=True),
        torch.autograd.grad((weight * theirs).sum(), (mean, log_std)),
        strict=True,
    ):
        torch.testing.assert_close(one, two)
        assert one.abs().min() > 0.0


def test_the_density_of_a_given_action_is_that_of_torch_in_value_and_gradient() -> None:
    mean, log_std, noise = parameters(seed=1)
    action = (0.5 * noise).tanh()
    ours, theirs = TanhGaussian(mean, log_std).log_prob_of(action), peer(mean, log_std).log_prob(action)
    torch.testing.assert_close(ours, theirs)
    for one, two in zip(
        torch.autograd.grad(ours.sum(), (mean, log_std)),
        torch.autograd.grad(theirs.sum(), (mean, log_std)),
        strict=True,
    ):
        torch.testing.assert_close(one, two)


def test_the_density_integrates_to_one() -> None:
    unit = torch.linspace(-EDGE, EDGE, 200_001, dtype=torch.float64)
    density = TanhGaussian(torch.full((1,), 0.3), torch.full((1,), -0.7)).log_prob_of(unit[:, None]).exp()
    assert torch.trapezoid(density, unit).item() == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("u", [-60.0, -15.0, 15.0, 60.0])
def test_far_out_the_density_of_a_draw_is_the_exact_limit(u: float) -> None:
    """In float32 1 - tanh(u)^2 is 0 there; log(1 - tanh(u)^2) tends to 2 log 2 - 2 |u|."""
    mean = torch.full((1,), u, requires_grad=True)
    distribution = TanhGaussian(mean, torch.zeros(1))
    log_prob = distribution.log_prob(distribution.draw(torch.zeros(1)))
    expected = -0.5 * math.log(2 * math.pi) - 2 * math.log(2) + 2 * abs(u)
    assert log_prob.item() == pytest.approx(expected, rel=1e-6)
    log_prob.backward()  # type: ignore[no-untyped-call]
    assert mean.grad is not None and mean.grad.item() == pytest.approx(math.copysign(2.0, u), abs=1e-4)


@pytest.mark.parametrize("action", [-1.0, 1.0])
def test_the_edge_itself_counts_as_lying_just_inside(action: float) -> None:
    distribution = TanhGaussian(torch.zeros(1), torch.zeros(1))
    at, inside = (distribution.log_prob_of(torch.tensor([a])) for a in (action, action * EDGE))
    assert at.isfinite() and at == inside


def test_the_mode_is_the_squashed_mean_and_log_std_keeps_its_bounds() -> None:
    mean = torch.tensor([[0.0, -2.0, 30.0]])
    assert torch.equal(TanhGaussian(mean, mean).mode, mean.tanh())
    log_std = bounded_log_std(torch.tensor([-1e9, 0.0, 1e9]), -5.0, 2.0)
    assert log_std.tolist() == [-5.0, -1.5, 2.0]


LOW, HIGH = [-1.0, 0.0, -0.4], [1.0, 5.0, 0.1]


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_the_ends_and_the_middle_of_the_box(kind: str) -> None:
    def make(values: list[Any]) -> Any:
        return np.array(values, np.float32) if kind == "numpy" else torch.tensor(values)

    low, high = make(LOW), make(HIGH)
    unit = make([[-1.0, -1.0, -1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.5, -0.5, 0.25]])
    box = to_box(unit, low, high)
    assert type(box) is type(unit) and box.dtype == unit.dtype
    middle = [0.0, 2.5, -0.15]
    expected = [LOW, middle, HIGH, [0.5, 1.25, -0.0875]]
    np.testing.assert_allclose(np.asarray(box), expected, atol=1e-6)
    np.testing.assert_allclose(np.asarray(to_unit(box, low, high)), np.asarray(unit), atol=1e-6)


def test_rounding_never_leaves_the_box() -> None:
    generator = np.random.default_rng(0)
    low = generator.normal(size=2_000).astype(np.float32)
    high = low + generator.uniform(1e-3, 3.0, 2_000).astype(np.float32)
    for unit in (-1.0, 1.0):
        box = to_box(np.full(2_000, unit, np.float32), low, high)
        assert (low <= box).all() and (box <= high).all()


def group(action: ActionSpec) -> GroupSpec:
    return GroupSpec(policy_id="arm", slots=(), obs=ArraySpec((4,), "float32"), action=action)


def test_bounds_are_flat_whatever_the_shape_of_an_action() -> None:
    low, high = action_bounds(group(ActionSpec("box", shape=(2, 1), low=(-1.0, 0.0), high=(1.0, 5.0))), "sac")
    assert low.tolist() == [-1.0, 0.0] and high.tolist() == [1.0, 5.0]


@pytest.mark.parametrize(
    ("low", "high"), [((-1.0, 0.0), (1.0, math.inf)), ((-math.inf,), (math.inf,)), ((0.0, 1.0), (1.0, 1.0))]
)
def test_a_box_that_nothing_can_be_scaled_to_is_refused(
    low: tuple[float, ...], high: tuple[float, ...]
) -> None:
    with pytest.raises(RecipeError) as error:
        action_bounds(group(ActionSpec("box", shape=(len(low),), low=low, high=high)), "sac")
    assert str(error.value) == (
        f"policies.arm: the action box has bounds {list(low)} and {list(high)}: sac scales its actions to "
        "them and needs finite ones, the lower below the upper. Bound the environment's actions, or choose "
        "another algorithm.name."
    )


def test_discrete_actions_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"^policies.arm: the environment's actions are discrete: sac "):
        action_bounds(group(ActionSpec("discrete", n=3)), "sac")
