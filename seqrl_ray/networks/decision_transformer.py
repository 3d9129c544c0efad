"""The Decision Transformer's network: (return-to-go, observation, action) tokens in, action scores out.

Source: Chen et al. (2021), arXiv:2106.01345, and its code (github.com/kzl/decision-transformer, `gym/`).
Departs from it: the action is predicted from the observation's token alone and nothing else is predicted (its
state and return heads are never trained); the last action of a window is no token, because no prediction
reads it; images and masked discrete actions use the same network, with a convolutional encoder and a Tanh as
in its `atari/`, an action table instead of a linear map, and LayerNorm over the tokens in both cases.
Positions: the number of the decision in the episode (as the source), its place in the window, or none.
With `return_bins` the tokens are (observation, return-to-go, action): the action is predicted from the
return's token, and the observation's predicts the return itself; returns are hidden from all other tokens,
because one would tell the next (after Lee et al. 2022, arXiv:2205.15241).

Dims: B batch, K window steps, Q asked steps, E embedding, N return bins, A action values or
dimensions, T = 3K - 1 tokens.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from seqrl_ray.networks.encoders import ImageEncoder, encoder
from seqrl_ray.networks.transformer import (
    Activation,
    CausalTransformer,
    TransformerSettings,
    dropout_from,
    gpt2_init,
)
from seqrl_ray.types import GroupSpec

Positions = Literal["timestep", "window", "none"]


class DecisionTransformerSettings(TransformerSettings, Protocol):
    """The keys of an algorithm's settings that shape this network."""

    @property
    def activation(self) -> Activation:
        """Of the MLPs."""
        ...

    @property
    def window_steps(self) -> int:
        """K."""
        ...

    @property
    def positions(self) -> Positions:
        """What is added to the tokens of a step."""
        ...


class DecisionTransformerNet(nn.Module):
    """Embeds three tokens per step, runs the transformer, and maps each observation's token to `outputs`."""

    def __init__(
        self,
        settings: DecisionTransformerSettings,
        group: GroupSpec,
        outputs: int,
        *,
        return_bins: int = 0,
    ) -> None:
        super().__init__()
        units = settings.units
        self.positions = settings.positions
        features = encoder(group.policy_obs, group.obs, group.frame_stack)
        image = isinstance(features, ImageEncoder)
        self.embed_obs = nn.Sequential(
            features, nn.Linear(features.features, units), nn.Tanh() if image else nn.Identity()
        )
        self.embed_return = nn.Linear(1, units)
        self._discrete = group.action.kind == "discrete"
        self.embed_action = (
            nn.Embedding(group.action.n, units)
            if self._discrete
            else nn.Linear(group.action.column.size, units)
        )
        if settings.positions != "none":
            rows = settings.max_timesteps if settings.positions == "timestep" else settings.window_steps
            self.embed_position = nn.Embedding(rows, units)
        self.embed_norm = nn.LayerNorm(units)
        self.body = CausalTransformer(units, settings.layers, settings.heads, activation=settings.activation)
        gpt2_init(self.body)
        self.head = nn.Linear(units, outputs)
        self.return_head = nn.Linear(units, return_bins) if return_bins else None

    def forward(
        self,
        wanted: Tensor,
        obs: Tensor,
        action: Tensor,
        timestep: Tensor,
        at: Tensor | None = None,
        dropout: tuple[float, int] | None = None,
    ) -> Tensor:
        """Map windows to what the head says at their steps, [B, K, A]; step k is a function of steps 0..k and
        not of its own action. With `return_bins`, the logits of the return's N bins stand behind that,
        [B, K, A + N]; they are no function of the step's own return either.

        Args:
            wanted: [B, K] float32 returns-to-go, scaled.
            obs: [B, K, *policy_obs].
            action: [B, K] int64 or [B, K, *action] float32.
            timestep: [B, K] int64 number of the decision in its episode.
            at: [B, Q] int64 steps to answer for instead of all; returns [B, Q, A].
            dropout: (share, seed) for embeddings, attention and branches; None = none.
        """
        steps = wanted.shape[1]
        taken = self.embed_action(action if self._discrete else action.flatten(2))  # [B, K, E]
        asks, sees = self.embed_return(wanted[..., None]), self.embed_obs(obs)  # [B, K, E] each
        first, second = (asks, sees) if self.return_head is None else (sees, asks)
        tokens = torch.stack([first, second, taken], 2)  # [B, K, 3, E]
        if self.positions == "timestep":
            last = self.embed_position.num_embeddings - 1
            tokens = tokens + self.embed_position(timestep.clamp(max=last))[:, :, None]  # [B, K, 3, E]
        elif self.positions == "window":
            tokens = tokens + self.embed_position.weight[:steps, None]  # [B, K, 3, E]
        x = tokens.flatten(1, 2)[:, :-1]  # [B, T, E]
        drop = dropout_from(dropout, x.device)
        x = drop(self.embed_norm(x))  # [B, T, E]
        asked = torch.arange(steps, device=x.device) if at is None else at  # [K] or [B, Q]
        if self.return_head is None:
            return self.head(self.body(x, 3 * asked + 1, drop))  # type: ignore[no-any-return]  # [B, Q, A]
        both = torch.stack([3 * asked, 3 * asked + 1], -1).flatten(-2)  # [2K] or [B, 2Q]
        token = torch.arange(x.shape[1], device=x.device)  # [T]
        hears = (token % 3 != 1) & (token <= token[:, None])  # [T, T] every return is hidden from the rest
        found = self.body(x, both, drop, hears)  # [B, 2Q, E]
        return torch.cat([self.head(found[:, 1::2]), self.return_head(found[:, ::2])], -1)  # [B, Q, A + N]


def decision_transformer_net(settings: Any, group: GroupSpec) -> DecisionTransformerNet:
    """Return a network with one output per discrete action, or one per dimension of a continuous one."""
    discrete = group.action.kind == "discrete"
    outputs = group.action.n if discrete else group.action.column.size
    bins = settings.return_bins if settings.return_quantile else 0
    return DecisionTransformerNet(settings, group, outputs, return_bins=bins)
