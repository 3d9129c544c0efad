"""A diagonal Gaussian squashed by tanh into (-1, 1), and where that interval lies in an environment's box.

    u ~ Normal(mean, std),  unit = tanh(u),  log p(unit) = sum over A of log N(u) - log(1 - tanh(u)^2)

The noise is an argument: nothing here draws. Scaling to the box is affine and costs a constant of the
log-probability, which is left out: densities are those of `unit`, whatever the environment's units are.
Sources: Haarnoja et al. (2018), arXiv:1812.05905, appendix C; log(1 - tanh(u)^2) = 2 (log 2 - u -
softplus(-2 u)), which neither overflows nor cancels. Departs from it: log std is not cut but mapped smoothly.
Dims: ... any leading dimensions, A size of the action.
"""

from __future__ import annotations

import math
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from seqrl_ray.errors import RecipeError
from seqrl_ray.types import FloatArray, GroupSpec

EDGE = 1.0 - 1e-6
"""Actions nearer to the edge than this are taken for this: the density has no finite value at +-1."""

HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)

ArrayOrTensor = TypeVar("ArrayOrTensor", FloatArray, Tensor)


class TanhGaussian(NamedTuple):
    """The distribution of an action in (-1, 1)."""

    mean: Tensor  # [..., A] before the squashing
    log_std: Tensor  # [..., A]

    @property
    def mode(self) -> Tensor:
        """The action without noise, tanh(mean), [..., A]."""
        return self.mean.tanh()

    def draw(self, noise: Tensor) -> Tensor:
        """Return u = mean + std * noise [..., A]; the action is tanh(u). Gradients flow to both parameters.

        Args:
            noise: standard normal [..., A].
        """
        return torch.addcmul(self.mean, self.log_std.exp(), noise)  # [..., A]

    def log_prob(self, pre_tanh: Tensor) -> Tensor:
        """Return the log-density of the action tanh(u), in nats, [...].

        Args:
            pre_tanh: u [..., A], as from `draw`.
        """
        scaled = (pre_tanh - self.mean) * (-self.log_std).exp()  # [..., A]
        normal = -0.5 * scaled.square() - self.log_std - HALF_LOG_2PI  # [..., A]
        shrink = 2.0 * (math.log(2.0) - pre_tanh - functional.softplus(-2.0 * pre_tanh))  # [..., A]
        return (normal - shrink).sum(-1)  # [...]

    def log_prob_of(self, action: Tensor) -> Tensor:
        """Return the log-density of a given action, in nats, [...].

        Args:
            action: [..., A] in [-1, 1]; what lies beyond +-EDGE counts as lying there.
        """
        return self.log_prob(action.clamp(-EDGE, EDGE).atanh())  # [...]


def bounded_log_std(raw: Tensor, low: float, high: float) -> Tensor:
    """Map a network's output [..., A] smoothly into (low, high), 0 to the middle."""
    return low + 0.5 * (high - low) * (raw.tanh() + 1.0)  # [..., A]


# ----------------------------------------------------------------------------------- the environment's box


def action_bounds(group: GroupSpec, algorithm: str) -> tuple[Tensor, Tensor]:
    """Return the lower and the upper bound of the group's actions, each [A] float32.

    Args:
        group: whose actions.
        algorithm: its name, for messages.
    Raises: RecipeError: the actions are discrete, or a bound is not finite.
    """
    if group.action.kind != "box":
        raise RecipeError(
            f"policies.{group.policy_id}: the environment's actions are discrete: {algorithm} needs a box of "
            "real numbers. Choose another algorithm.name."
        )
    low, high = torch.tensor(group.action.low), torch.tensor(group.action.high)  # [A], [A]
    if not (torch.isfinite(high - low) & (low < high)).all():
        raise RecipeError(
            f"policies.{group.policy_id}: the action box has bounds {list(group.action.low)} and "
            f"{list(group.action.high)}: {algorithm} scales its actions to them and needs finite ones, the "
            "lower below the upper. Bound the environment's actions, or choose another algorithm.name."
        )
    return low, high


def to_box(unit: ArrayOrTensor, low: ArrayOrTensor, high: ArrayOrTensor) -> ArrayOrTensor:
    """Scale actions [..., A] from [-1, 1] to [low, high], never beyond; numpy arrays or tensors alike."""
    return (low + (unit + 1.0) * (0.5 * (high - low))).clip(low, high)  # [..., A]


def to_unit(action: ArrayOrTensor, low: ArrayOrTensor, high: ArrayOrTensor) -> ArrayOrTensor:
    """Scale actions [..., A] from [low, high] to [-1, 1]: the inverse of `to_box`."""
    return (action - low) * (2.0 / (high - low)) - 1.0  # [..., A]
