"""The Online Decision Transformer's network: a Decision Transformer whose answer is a distribution.

Source: Zheng, Zhang and Grover (2022), arXiv:2202.05607. Continuous actions: mean and log deviation of a
Gaussian before the tanh, from two linear maps drawn orthogonally, here the two halves of one; discrete
actions: logits, which the paper does not have. The temperature is a parameter, so that it is saved and
published with the rest.

Dims: B batch, K window steps, Q asked steps, A action values or dimensions.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from seqrl_ray.networks.decision_transformer import DecisionTransformerNet
from seqrl_ray.networks.tanh_gaussian import TanhGaussian, bounded_log_std
from seqrl_ray.types import GroupSpec


class OnlineNet(nn.Module):
    """Maps windows to distributions of actions; holds the temperature."""

    def __init__(self, settings: Any, group: GroupSpec) -> None:
        super().__init__()
        self.discrete = group.action.kind == "discrete"
        self._range = (settings.log_std_min, settings.log_std_max)
        actions = group.action.n if self.discrete else group.action.column.size
        outputs = actions if self.discrete else 2 * actions
        bins = settings.return_bins if settings.return_quantile else 0
        self.policy = DecisionTransformerNet(settings, group, outputs, return_bins=bins)
        with torch.no_grad():
            for part in torch.split(self.policy.head.weight, actions):
                nn.init.orthogonal_(part)
            self.policy.head.bias.zero_()
        self.log_temperature = nn.Parameter(torch.tensor([math.log(settings.initial_temperature)]))

    def forward(self, *inputs: Any) -> Tensor:
        """Return logits [B, Q, A], or means and raw log deviations [B, Q, 2 A], and behind them those of the
        return's bins, see `DecisionTransformerNet`; without inputs, the log temperature [1].
        """
        if not inputs:
            return self.log_temperature
        return self.policy(*inputs)  # type: ignore[no-any-return]

    def newest(self, *inputs: Any) -> Tensor:
        """Return what `forward` says at the newest steps, see `DecisionTransformerNet.newest`."""
        return self.policy.newest(*inputs)

    def gaussian(self, raw: Tensor) -> TanhGaussian:
        """Return the distribution that an answer [..., 2 A] stands for."""
        mean, log_std = raw.chunk(2, -1)  # [..., A] each
        return TanhGaussian(mean, bounded_log_std(log_std, *self._range))


def online_net(settings: Any, group: GroupSpec) -> OnlineNet:
    """Return the network of a policy group."""
    return OnlineNet(settings, group)
