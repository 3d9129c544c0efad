"""The Elastic Decision Transformer's network: (observation, return-to-go, action) tokens in; the return,
action and next observation to expect out; and the search for the history that promises most.

Source: Wu, Wang and Hamaya (2023), arXiv:2307.02484, and its code (github.com/kristery/Elastic-DT). As there,
every return token but the window's first is hidden from all queries (after Lee et al. 2022,
arXiv:2205.15241): a prediction follows from what was seen and done, and a step's own return reaches its
action through the residual stream alone. Departs from the source:
- Returns come as shares of the data's range, in [0, 1], and the same bins serve both ways: the network reads
  the middle of a return's bin and means it by that bin (there encoding counts one bin less than decoding).
- The search runs all slots and histories as one batch without padding, two histories to a row, and leaves
  out the returns that nobody hears. An observation's token does not see its own return, so the expectile is
  known after the first pass and the second one is for the chosen histories only; the history of one step is
  always tried; the expert's bias is added once (there twice); without noise the best return is taken, not
  drawn; there is no search around the last length only.
- Dropout also falls on attention weights. The last action of a window is no token: no prediction reads it.
- Images get a convolutional encoder and no prediction of the next one. Discrete actions get a table, and the
  next observation is predicted from the action taken; a continuous one's from the action predicted, as there.
- There is no reward head: the source trains none.

Dims: B batch, K window steps, Q asked steps, C histories, R rows of two histories, W steps of such a row,
E embedding, N return bins, A action values or dimensions, D observation features, T tokens.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from seqrl_ray.networks.encoders import ImageEncoder, encoder
from seqrl_ray.networks.transformer import (
    CausalTransformer,
    TransformerSettings,
    dropout_from,
    keep_all,
)
from seqrl_ray.types import GroupSpec


class ElasticDtSettings(TransformerSettings, Protocol):
    """The keys of an algorithm's settings that shape this network."""

    @property
    def return_bins(self) -> int:
        """N."""
        ...


class Expected(NamedTuple):
    """What the network says of a step. The first two follow from the past and the observation, `action` from
    these and the step's return, the next observation from these and the step's action.
    """

    return_logits: Tensor  # [B, Q, N] of the bins
    best_return: Tensor  # [B, Q] a high expectile of the return, as a share of the range
    action: Tensor  # [B, Q, A] logits, or means before the tanh
    surprise: Tensor | None
    """[B, K - 1] squared error of the next observation, mean over D; None for images, and unless all steps
    were asked for."""
    bins: Tensor  # [B, K] int64, those of the returns that were given


class ElasticNet(nn.Module):
    """Embeds three tokens per step, runs the transformer, and reads two of them."""

    def __init__(self, settings: ElasticDtSettings, group: GroupSpec) -> None:
        super().__init__()
        units, discrete = settings.units, group.action.kind == "discrete"
        actions = group.action.n if discrete else group.action.column.size
        features = encoder(group.policy_obs, group.obs, group.frame_stack)
        image = isinstance(features, ImageEncoder)
        self.embed_obs = nn.Sequential(
            features, nn.Linear(features.features, units), nn.Tanh() if image else nn.Identity()
        )
        self.embed_return = nn.Linear(1, units)
        self._discrete, self.bins = discrete, settings.return_bins
        self.embed_action = nn.Embedding(actions, units) if discrete else nn.Linear(actions, units)
        self.embed_timestep = nn.Embedding(settings.max_timesteps, units)
        self.embed_norm = nn.LayerNorm(units)
        self.body = CausalTransformer(units, settings.layers, settings.heads, norm="post", activation="gelu")
        self.return_head = nn.Linear(units, settings.return_bins)
        self.best_return_head = nn.Linear(units, 1)
        self.action_head = nn.Linear(units, actions)
        self.next_obs_head = (
            None if image else nn.Linear(units + (units if discrete else actions), features.features)
        )

    def forward(
        self,
        wanted: Tensor,
        obs: Tensor,
        action: Tensor,
        timestep: Tensor,
        at: Tensor | None = None,
        dropout: tuple[float, int] | None = None,
    ) -> Expected:
        """Map windows to what is expected at their steps; step k is a function of steps 0..k (of the returns
        of steps 0 and k only) and, but for the next observation, not of its own action.

        Args:
            wanted: [B, K] float32 returns-to-go, as shares of the range; those outside count as its ends.
            obs: [B, K, *policy_obs].
            action: [B, K] int64 or [B, K, *action] float32.
            timestep: [B, K] int64 number of the decision in its episode.
            at: [B, Q] int64 steps to answer for instead of all.
            dropout: (share, seed) for embeddings, attention and branches; None = none.
        """
        tokens, done, bins = self._embed(wanted, obs, action, timestep)  # [B, K, 3, E], [B, K, E], [B, K]
        drop = dropout_from(dropout, tokens.device)
        x = drop(tokens.flatten(1, 2)[:, :-1])  # [B, T, E]
        token = torch.arange(x.shape[1], device=x.device)  # [T]
        told = (token % 3 != 1) | (token == 1)  # [T]
        asked = torch.arange(wanted.shape[1], device=x.device) if at is None else at  # [K] or [B, Q]
        both = torch.stack([3 * asked, 3 * asked + 1], -1).flatten(-2)  # [2 K] or [B, 2 Q]
        x = self.body(x, both, drop, told & (token <= token[:, None]))  # [B, 2 Q, E]
        sees, asks = x.unflatten(1, (-1, 2)).unbind(2)  # [B, Q, E] each
        chosen, surprise = self.action_head(asks), None  # [B, Q, A]
        if at is None and self.next_obs_head is not None:
            does = done if self._discrete else torch.tanh(chosen)  # [B, K, E or A]
            expected = self.next_obs_head(torch.cat([asks, does], -1)[:, :-1])  # [B, K - 1, D]
            surprise = (expected - self.embed_obs[0](obs[:, 1:])).square().mean(-1)  # [B, K - 1]
        best_return = self.best_return_head(sees).squeeze(-1)  # [B, Q]
        return Expected(self.return_head(sees), best_return, chosen, surprise, bins)

    def promises(
        self, wanted: Tensor, obs: Tensor, action: Tensor, timestep: Tensor, at: Tensor, forget: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return `best_return` [B, C] and `return_logits` [B, C, N] at the newest step of several histories:
        those of `forward` for windows without their oldest steps.

        Args:
            wanted: [B, K], as for `forward`.
            obs: [B, K, *policy_obs].
            action: [B, K, ...].
            timestep: [B, K].
            at: [B, 1] int64 newest steps.
            forget: [B, C] int64 how many oldest steps each history is without, ascending, at most `at`.
        """
        tokens, _, _ = self._embed(wanted, obs, action, timestep)  # [B, K, 3, E]
        batch, pair = torch.arange(len(at), device=at.device)[:, None, None], at.new_tensor([0, 1])
        rows, odd = (forget.shape[1] + 1) // 2, forget.shape[1] % 2  # a long history, then a short one
        start = torch.stack([forget[:, :rows], forget.flip(1)[:, :rows]], -1)  # [B, R, 2] first steps
        end = (at[..., None] - start + 1).cumsum(-1)  # [B, R, 2] places in the row behind their last steps
        begin = end.roll(1, -1) * pair  # [B, R, 2] places of their first steps
        place = torch.arange(int(end.max()), device=at.device)  # [W]
        second = (place >= end[..., :1]).long()  # [B, R, W]
        step = ((start - begin).gather(2, second) + place).minimum(at[..., None])  # [B, R, W]
        body = tokens[:, :, ::2][batch, step].flatten(2, 3)  # [B, R, 2 W, E] observations and actions
        x = torch.cat([tokens[batch, start, 1], body], 2)  # [B, R, T, E] the two first returns before them
        whose = torch.cat([pair.expand_as(start), second.repeat_interleave(2, 2)], 2)  # [B, R, T]
        when = (3 * place[:, None] + 2 * pair).flatten()  # [2 W]
        when = torch.cat([3 * begin + 1, when.expand(*start.shape[:2], -1)], 2)  # [B, R, T]
        hears = (whose[..., None] == whose[..., None, :]) & (when[..., None] >= when[..., None, :])
        x = self.body(x.flatten(0, 1), 2 * end.flatten(0, 1), keep_all, hears.flatten(0, 1))  # [B R, 2, E]
        long, short = x.unflatten(0, (-1, rows)).unbind(2)  # [B, R, E] each
        sees = torch.cat([long, short.flip(1)[:, odd:]], 1)  # [B, C, E] the middle one was there twice
        return self.best_return_head(sees).squeeze(-1), self.return_head(sees)

    def _embed(
        self, wanted: Tensor, obs: Tensor, action: Tensor, timestep: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the tokens of windows [B, K, 3, E], their actions' embeddings [B, K, E], and the bins of
        their returns [B, K].
        """
        bins = (wanted * self.bins).long().clamp(0, self.bins - 1)  # [B, K]
        asks = self.embed_return((2.0 * self.middle(bins) - 1.0)[..., None])  # [B, K, E]
        done = self.embed_action(action if self._discrete else action.flatten(2))  # [B, K, E]
        last = self.embed_timestep.num_embeddings - 1
        now = self.embed_timestep(timestep.clamp(max=last))[:, :, None]  # [B, K, 1, E]
        tokens = torch.stack([self.embed_obs(obs), asks, done], 2) + now  # [B, K, 3, E]
        return self.embed_norm(tokens), done, bins

    def middle(self, bins: Tensor) -> Tensor:
        """Return the middle of bins [...], as a share of the range."""
        return (bins + 0.5) / self.bins

    def search(
        self,
        wanted: Tensor,
        obs: Tensor,
        action: Tensor,
        timestep: Tensor,
        at: Tensor,
        stride_steps: int,
        expert_bias: float,
        keep_share: float,
        noise: Tensor | None,
    ) -> Tensor:
        """Return what the action head says for the best return that the most promising history expects,
        [B, 1, A].

        Args:
            wanted: [B, K], as for `forward`.
            obs: [B, K, *policy_obs].
            action: [B, K, ...].
            timestep: [B, K].
            at: [B, 1] int64 the newest step of each row.
            stride_steps: histories tried are without 0, 1, 2, ... times this many of their oldest steps.
            expert_bias: the last bin's logit is raised by this, the first one's by nothing, linearly between.
            keep_share: with noise, this share of the bins, the least likely, is out of the question.
            noise: [B, N], e.g. Gumbel's to draw a return from its softmax; None = the best one.
        """
        tried = torch.arange(-(-int(at.max()) // stride_steps) + 1, device=at.device)  # [C]
        forget = torch.minimum(stride_steps * tried, at)  # [B, C]
        best_return, logits = self.promises(wanted, obs, action, timestep, at, forget)  # [B, C], [B, C, N]
        best = best_return.argmax(1, keepdim=True)  # [B, 1] the longest on a tie
        score = logits.take_along_dim(best[..., None], 1)[:, 0]  # [B, N]
        score = score + expert_bias * torch.linspace(0.0, 1.0, self.bins, device=at.device)  # [B, N]
        if noise is not None:
            least = torch.quantile(score, keep_share, 1, keepdim=True)  # [B, 1]
            score = score.masked_fill(score < least, -torch.inf) + noise  # [B, N]
        wanted = wanted.scatter(1, at, self.middle(score.argmax(1, keepdim=True)))  # [B, K]
        kept = forget.gather(1, best)  # [B, 1]
        row = torch.arange(len(at), device=at.device)[:, None]  # [B, 1]
        step = (kept + torch.arange(int((at - kept).max()) + 1, device=at.device)).minimum(at)  # [B, k]
        windows = (column[row, step] for column in (wanted, obs, action, timestep))  # [B, k, ...]
        acts: Expected = self(*windows, at - kept)
        return acts.action  # [B, 1, A]


def elastic_net(settings: ElasticDtSettings, group: GroupSpec) -> ElasticNet:
    """Return the network of a policy group."""
    return ElasticNet(settings, group)
