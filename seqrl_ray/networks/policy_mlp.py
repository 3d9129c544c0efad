"""A feed-forward policy: encoder, hidden layers, and one score per discrete action or per action dimension.

Source: `gym/decision_transformer/models/mlp_bc.py` of github.com/kzl/decision-transformer (Chen et al. 2021,
arXiv:2106.01345). Departs from it: no dropout; images go through a convolutional encoder.
Dims: ... leading dimensions (S slots or B batch), D features, A actions or action dimensions.
"""

from __future__ import annotations

from typing import Protocol

from torch import nn

from seqrl_ray.networks.encoders import encoder, mlp
from seqrl_ray.types import GroupSpec


class PolicyMlpSettings(Protocol):
    """The keys of an algorithm's settings that shape this network."""

    @property
    def hidden(self) -> tuple[int, ...]:
        """Widths of the hidden layers."""
        ...

    @property
    def layer_norm(self) -> bool:
        """Normalise every hidden layer."""
        ...


def policy_mlp(settings: PolicyMlpSettings, group: GroupSpec) -> nn.Module:
    """Return a network that maps observations [..., *policy_obs] to scores [..., A] float32."""
    body = encoder(group.policy_obs, group.obs, group.frame_stack)
    sizes = [body.features, *settings.hidden]
    outputs = group.action.n or group.action.column.size
    return nn.Sequential(body, *mlp(sizes, settings.layer_norm), nn.Linear(sizes[-1], outputs))
