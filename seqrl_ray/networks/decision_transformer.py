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
from seqrl_ray.networks.recall import Recall, consecutive
from seqrl_ray.networks.transformer import (
    Activation,
    CausalTransformer,
    TransformerSettings,
    dropout_from,
    gpt2_init,
)
from seqrl_ray.types import GroupSpec, IntArray

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
        self.outputs = outputs + return_bins
        self._recall: Recall | None = None

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
        tokens = self._embed(wanted, obs, action, timestep)  # [B, K, 3, E]
        x = tokens.flatten(1, 2)[:, :-1]  # [B, T, E]
        drop = dropout_from(dropout, x.device)
        x = drop(x)  # [B, T, E]
        asked = torch.arange(wanted.shape[1], device=x.device) if at is None else at  # [K] or [B, Q]
        if self.return_head is None:
            return self.head(self.body(x, 3 * asked + 1, drop))  # type: ignore[no-any-return]  # [B, Q, A]
        both = torch.stack([3 * asked, 3 * asked + 1], -1).flatten(-2)  # [2K] or [B, 2Q]
        token = torch.arange(x.shape[1], device=x.device)  # [T]
        found = self.body(x, both, drop, self._hears(token, x.shape[1]))  # [B, 2Q, E]
        return torch.cat([self.head(found[:, 1::2]), self.return_head(found[:, ::2])], -1)  # [B, Q, A + N]

    @torch.inference_mode()
    def newest(
        self,
        wanted: Tensor,
        obs: Tensor,
        action: Tensor,
        timestep: Tensor,
        at: Tensor,
        past: tuple[IntArray, IntArray, IntArray, int, int],
    ) -> Tensor:
        """Return what `forward` says at the newest steps, [B, 1, A] or [B, 1, A + N], and reads only what it
        has not read before.

        Args:
            wanted: [B, K], as for `forward`.
            obs: [B, K, *policy_obs].
            action: [B, K, ...].
            timestep: [B, K].
            at: [B, 1] int64 newest steps.
            past: (row [B], stamp [B], at + 1 [B], steps of a full context, number of the weights): where
                contexts were read before, see `Recall`; row and stamp are renewed in place.
        """
        row, stamp, used = (torch.from_numpy(column) for column in past[:3])  # [B] each, the same memory
        columns, (full, weights) = (wanted, obs, action, timestep, at), past[3:]
        if full == used.min() and stamp.max() <= 0:  # the next decision will cut them: not worth keeping
            return self(*columns)  # type: ignore[no-any-return]
        if self._recall is None:
            units = self.head.in_features
            self._recall = Recall(len(self.body.blocks), 3 * full, units, wanted.device)
        recall = self._recall
        recall.weights_are(weights)
        known = recall.known(row, stamp, used)  # [B]
        if (~known & (used == full)).any():  # some must be read whole and not kept: all in one pass
            stamp.copy_(-stamp.abs())
            return self(*columns)  # type: ignore[no-any-return]
        answer = wanted.new_empty(len(used), 1, self.outputs)  # [B, 1, A (+ N)]
        for chosen, held in ((known, True), (~known, False)):
            if not chosen.any():
                continue
            own = slice(None) if chosen.all() else chosen.nonzero()[:, 0].to(at.device)
            longest = int(used[chosen].max())
            some = (*(column[own, :longest] for column in columns[:4]), at[own])
            rows = recall.rows(row[chosen], stamp[chosen], held)
            answer[own] = self._read(recall, consecutive(rows, at.device), held, longest, *some)
            row[chosen], stamp[chosen] = rows, recall.wrote(rows, used[chosen], held)
        return answer

    def _read(
        self,
        recall: Recall,
        rows: slice | Tensor,
        held: bool,
        longest: int,
        wanted: Tensor,
        obs: Tensor,
        action: Tensor,
        timestep: Tensor,
        at: Tensor,
    ) -> Tensor:
        """Return [B, 1, A (+ N)] at the newest steps of windows of `longest` steps at most; where they are
        `held`, `rows` have all that stands before the last action already, else nothing.
        """
        batch, newest = torch.arange(len(at), device=at.device)[:, None], 3 * at  # [B, 1], [B, 1]
        if held:  # the action of the step before, and the newest step's two tokens
            done = self._placed(self._does(action[batch, at - 1]), timestep[batch, at - 1], at - 1)
            pair = self._placed(self._pair(wanted[batch, at], obs[batch, at]), timestep[batch, at], at)
            x = torch.cat([done, pair], 2).flatten(1, 2)  # [B, 3, E]
            token = newest + torch.arange(-1, 2, device=at.device)  # [B, 3]
            asked = at.new_tensor([1, 2]).expand(len(at), -1)  # [B, 2]
        else:
            x = self._embed(wanted, obs, action, timestep).flatten(1, 2)[:, :-1]  # [B, T, E]
            token = torch.arange(x.shape[1], device=at.device).expand(len(at), -1)  # [B, T]
            asked = newest + at.new_tensor([0, 1])  # [B, 2]
        hears = self._hears(token, 3 * longest - 1)  # [B, 3 or T, t]
        found = self.body.go_on(x, recall.kept, rows, token, hears)[batch, asked]  # [B, 2, E]
        if self.return_head is None:
            return self.head(found[:, 1:])  # type: ignore[no-any-return]
        return torch.cat([self.head(found[:, 1:]), self.return_head(found[:, :1])], -1)

    def _embed(self, wanted: Tensor, obs: Tensor, action: Tensor, timestep: Tensor) -> Tensor:
        """Return the tokens of a window's steps, [B, K, 3, E]."""
        tokens = torch.cat([self._pair(wanted, obs), self._does(action)], 2)  # [B, K, 3, E]
        return self._placed(tokens, timestep, torch.arange(wanted.shape[1], device=wanted.device))

    def _pair(self, wanted: Tensor, obs: Tensor) -> Tensor:
        """Return the tokens of return and observation, in their order, [B, K, 2, E]."""
        asks, sees = self.embed_return(wanted[..., None]), self.embed_obs(obs)  # [B, K, E] each
        return torch.stack([asks, sees] if self.return_head is None else [sees, asks], 2)

    def _does(self, action: Tensor) -> Tensor:
        """Return the tokens of actions, [B, K, 1, E]."""
        embedded: Tensor = self.embed_action(action if self._discrete else action.flatten(2))  # [B, K, E]
        return embedded[:, :, None]

    def _placed(self, tokens: Tensor, timestep: Tensor, place: Tensor) -> Tensor:
        """Return tokens [B, K, n, E] of steps at `timestep` [B, K] that stand at `place` [K] or [B, K]."""
        if self.positions == "timestep":
            last = self.embed_position.num_embeddings - 1
            tokens = tokens + self.embed_position(timestep.clamp(max=last))[:, :, None]  # [B, K, n, E]
        elif self.positions == "window":
            tokens = tokens + self.embed_position(place)[..., None, :]  # [B, K, n, E]
        return self.embed_norm(tokens)  # type: ignore[no-any-return]

    def _hears(self, token: Tensor, count: int) -> Tensor:
        """Return whom of the first `count` tokens those at the places `token` [..., Q] hear, [..., Q, count]:
        those before and themselves, but no return where returns are generated.
        """
        other = torch.arange(count, device=token.device)  # [count]
        hears = other <= token[..., None]  # [..., Q, count]
        return hears if self.return_head is None else hears & (other % 3 != 1)


def decision_transformer_net(settings: Any, group: GroupSpec) -> DecisionTransformerNet:
    """Return a network with one output per discrete action, or one per dimension of a continuous one."""
    discrete = group.action.kind == "discrete"
    outputs = group.action.n if discrete else group.action.column.size
    bins = settings.return_bins if settings.return_quantile else 0
    return DecisionTransformerNet(settings, group, outputs, return_bins=bins)
