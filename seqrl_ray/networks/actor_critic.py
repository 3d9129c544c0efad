"""A policy, two critics and a temperature as one module, so that one flat vector holds them all.

`forward` takes the name of the part that is wanted: what a learner calls is one function of one parameter
vector. The critics can be asked with their parameters held fixed: then only the action gets a gradient.
Source: Haarnoja et al. (2018), arXiv:1812.05905. Departs from it: log std is mapped into its bounds, not cut;
PyTorch's default initialisation. Both critics are one batched matrix product per layer.
Dims: ... leading dimensions (S slots or B batch), D features, I inputs and O outputs of a layer, A size of
the action.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from seqrl_ray.errors import RecipeError
from seqrl_ray.networks.encoders import VectorEncoder, encoder, mlp
from seqrl_ray.networks.tanh_gaussian import TanhGaussian, action_bounds, bounded_log_std
from seqrl_ray.types import GroupSpec

LOG_STD_LOW, LOG_STD_HIGH = -5.0, 2.0

Part = Literal["policy", "critics", "fixed_critics", "log_temperature"]


class ActorCriticSettings(Protocol):
    """The keys of an algorithm's settings that shape its network."""

    @property
    def hidden(self) -> tuple[int, ...]:
        """Widths of the hidden layers, of policy and critics alike."""
        ...

    @property
    def initial_temperature(self) -> float:
        """Weight of the entropy at the start."""
        ...


class TwinLinear(nn.Module):
    """Two linear layers side by side, on inputs of their own."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        both = [nn.Linear(width_in, width_out) for _ in range(2)]
        self.weight = nn.Parameter(torch.stack([layer.weight.detach().T for layer in both]))  # [2, I, O]
        self.bias = nn.Parameter(torch.stack([layer.bias.detach()[None] for layer in both]))  # [2, 1, O]

    def forward(self, inputs: Tensor, fixed: bool) -> Tensor:
        """Map [2, B, I] to [2, B, O]; if fixed, the parameters count as constants."""
        weight, bias = (self.weight.detach(), self.bias.detach()) if fixed else (self.weight, self.bias)
        return torch.baddbmm(bias, inputs, weight)  # [2, B, O]


class TwinCritics(nn.Module):
    """Two action values that start and learn apart."""

    def __init__(self, obs: VectorEncoder, actions: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.obs = obs
        self.layers = nn.ModuleList(
            TwinLinear(width_in, width_out)
            for width_in, width_out in pairwise([obs.features + actions, *hidden, 1])
        )

    def forward(self, obs: Tensor, action: Tensor, fixed: bool) -> Tensor:
        """Map observations [B, *obs] and actions [B, A] in [-1, 1] to values [2, B]."""
        both = torch.cat([self.obs(obs), action], -1)  # [B, D + A]
        x = both.expand(2, *both.shape)  # [2, B, D + A]
        for layer in self.layers[:-1]:
            x = layer(x, fixed).relu()  # [2, B, O]
        return self.layers[-1](x, fixed).squeeze(-1)  # type: ignore[no-any-return]  # [2, B]


class ActorCritic(nn.Module):
    """Policy, critics and temperature."""

    def __init__(self, obs: VectorEncoder, actions: int, settings: ActorCriticSettings) -> None:
        super().__init__()
        sizes = [obs.features, *settings.hidden]
        self.policy = nn.Sequential(obs, *mlp(sizes, layer_norm=False), nn.Linear(sizes[-1], 2 * actions))
        self.critics = TwinCritics(obs, actions, settings.hidden)
        self.log_temperature = nn.Parameter(torch.tensor(settings.initial_temperature).log())

    def forward(self, part: Part, *inputs: Tensor) -> Any:
        """Return what one part says.

        Args:
            part: "policy" of observations [..., *obs] -> `TanhGaussian` of [..., A]; "critics" of
                observations [B, *obs] and actions [B, A] in [-1, 1] -> [2, B]; "fixed_critics" the same, with
                no gradient to their parameters; "log_temperature" of nothing -> [].
            *inputs: of that part.
        """
        if part == "policy":
            mean, raw = self.policy(*inputs).chunk(2, -1)  # [..., A], [..., A]
            return TanhGaussian(mean, bounded_log_std(raw, LOG_STD_LOW, LOG_STD_HIGH))
        if part == "log_temperature":
            return self.log_temperature
        return self.critics(*inputs, fixed=part == "fixed_critics")  # [2, B]


def actor_critic(settings: ActorCriticSettings, group: GroupSpec) -> ActorCritic:
    """Build the network.

    Raises: RecipeError: the group's actions are no bounded box, or its observations are images.
    """
    low, _ = action_bounds(group, "sac")
    obs = encoder(group.policy_obs, group.obs, group.frame_stack)
    if not isinstance(obs, VectorEncoder):
        raise RecipeError(
            f"policies.{group.policy_id}: the environment's observations are images, of shape "
            f"{group.policy_obs.shape}: sac reads vectors. Choose another algorithm.name."
        )
    return ActorCritic(obs, len(low), settings)
