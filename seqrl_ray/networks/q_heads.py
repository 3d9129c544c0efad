"""Action-value networks: encoder, hidden layers, and a plain or dueling head.

Sources: Mnih et al. (2015), doi:10.1038/nature14236; dueling: Wang et al. (2016), arXiv:1511.06581, equation
9. Departs from them: both dueling streams are one linear map (one matrix product, for speed). The mean that
equation 9 subtracts runs over ALL A outputs, also where some actions are illegal: values are then a function
of the observation alone, and which action is best among the legal ones does not depend on what is subtracted.
Dims: ... leading dimensions (S slots or B batch), D features, A actions.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor, nn

from seqrl_ray.errors import RecipeError
from seqrl_ray.networks.encoders import encoder, mlp
from seqrl_ray.types import GroupSpec


class QNetworkSettings(Protocol):
    """The keys of an algorithm's settings that shape its network."""

    @property
    def hidden(self) -> tuple[int, ...]:
        """Widths of the hidden layers."""
        ...

    @property
    def dueling(self) -> bool:
        """Two streams instead of one."""
        ...

    @property
    def layer_norm(self) -> bool:
        """Normalise every hidden layer."""
        ...


class DuelingHead(nn.Module):
    """value + advantage - mean(advantage)."""

    def __init__(self, features: int, actions: int) -> None:
        super().__init__()
        self.streams = nn.Linear(features, 1 + actions)

    def forward(self, features: Tensor) -> Tensor:
        """Map [..., D] to action values [..., A]."""
        streams = self.streams(features)  # [..., 1 + A]
        value, advantage = streams[..., :1], streams[..., 1:]  # [..., 1], [..., A]
        return value + advantage - advantage.mean(-1, keepdim=True)  # type: ignore[no-any-return]  # [..., A]


def q_network(settings: QNetworkSettings, group: GroupSpec) -> nn.Module:
    """Return a network that maps observations [..., *policy_obs] to action values [..., A] float32.

    Raises: RecipeError: the group's actions are not discrete.
    """
    if group.action.kind != "discrete":
        raise RecipeError(
            f"policies.{group.policy_id}: the environment's actions are continuous, of shape "
            f"{group.action.shape}: action values need a discrete set. Choose another algorithm.name, or an "
            "environment with discrete actions."
        )
    body = encoder(group.policy_obs, group.obs, group.frame_stack)
    sizes = [body.features, *settings.hidden]
    head = DuelingHead if settings.dueling else nn.Linear
    return nn.Sequential(body, *mlp(sizes, settings.layer_norm), head(sizes[-1], group.action.n))
