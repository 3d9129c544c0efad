"""A causal transformer whose last block works only for the tokens somebody asks for.

Sources: GPT-2's blocks (Radford et al. 2019) as Decision Transformer uses them (Chen et al. 2021,
arXiv:2106.01345); post-LN: Vaswani et al. (2017), arXiv:1706.03762. Departs from them: one fused map for
queries, keys and values; no position table here (the caller adds positions to its tokens); padding stands on
the right, behind every token that counts, so that the causal order alone hides it and no mask is built; in
the last block queries and MLP run for the asked tokens only, because nobody reads the others. Who hears whom
may also be told by a mask, at some cost.
Dropout is an argument and not a mode: nothing here remembers whether it is training.
Attention whose weights are dropped is computed as plain products: torch's fused kernel draws its own dropout,
and on the CPU there is none that does.

Dims: B batch, T tokens, Q asked tokens, E embedding, H heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

Norm = Literal["pre", "post"]
Activation = Literal["relu", "gelu"]
Dropout = Callable[[Tensor], Tensor]
"""Zeroes some elements of a tensor and scales the others so that the mean stays."""


def keep_all(x: Tensor) -> Tensor:
    """Return `x`: no dropout."""
    return x


def dropout_from(share_and_seed: tuple[float, int] | None, device: torch.device) -> Dropout:
    """Return dropout that is a function of its arguments and of the calls made before; None = `keep_all`.

    One 64-bit draw serves four elements: torch's Bernoulli takes several times longer on a CPU. The share
    zeroed is therefore the nearest multiple of 2^-16, and the scale the one that belongs to it.
    """
    if share_and_seed is None:
        return keep_all
    share, seed = share_and_seed
    random, zeroed = torch.Generator(device).manual_seed(seed), round(share * 65_536)

    def drop(x: Tensor) -> Tensor:
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=device)
        bits = words.random_(-(2**63), None, generator=random).view(torch.int16)[: x.numel()]
        return x * ((bits.view(x.shape) >= zeroed - 32_768) * (65_536 / (65_536 - zeroed)))

    return drop


class TransformerSettings(Protocol):
    """The keys of an algorithm's settings that shape every network of tokens."""

    @property
    def units(self) -> int:
        """Width E."""
        ...

    @property
    def layers(self) -> int:
        """Blocks."""
        ...

    @property
    def heads(self) -> int:
        """Attention heads."""
        ...

    @property
    def max_timesteps(self) -> int:
        """Rows of the timestep table; later decisions share the last one."""
        ...


class Block(nn.Module):
    """Self-attention and an MLP of width 4 E, each added to its input."""

    def __init__(self, units: int, heads: int, norm: Norm, activation: Activation) -> None:
        super().__init__()
        self.heads, self.norm = heads, norm
        self.activation = nn.ReLU() if activation == "relu" else nn.GELU()
        self.norm1, self.norm2 = nn.LayerNorm(units), nn.LayerNorm(units)
        self.qkv, self.out = nn.Linear(units, 3 * units), nn.Linear(units, units)
        self.up, self.down = nn.Linear(units, 4 * units), nn.Linear(4 * units, units)

    def forward(
        self, x: Tensor, at: Tensor | None = None, dropout: Dropout = keep_all, hears: Tensor | None = None
    ) -> Tensor:
        """Map tokens [B, T, E] to [B, T, E], or to [B, Q, E] for the tokens `at`.

        Args:
            x: float32.
            at: [Q] or [B, Q] int64 token positions, ascending; None = all.
            dropout: of attention weights and of both branches' outputs.
            hears: [T, T] or [B, T, T] bool, whether a token (row) hears another (column), at least one in
                each row; None = itself and those before it.
        """
        heard = self._attend(self.norm1(x) if self.norm == "pre" else x, at, dropout, hears)  # [B, Q, E]
        return self._add(x if at is None else take_tokens(x, at), heard, dropout)

    def go_on(
        self, x: Tensor, kept: Tensor, rows: slice | Tensor, row: Tensor, place: Tensor, hears: Tensor
    ) -> Tensor:
        """Map further tokens [B, N, E] to [B, N, E]: they hear what was read before, which is not read again.

        Args:
            x: float32.
            kept: [R, 2, T, E] keys and values; those of the further tokens are written there.
            rows: those of the B sequences.
            row: [B, 1] the same as numbers.
            place: [B, N] int64 of the further tokens among the T.
            hears: [B, 1, N, t] bool, whom of the first t tokens a further one hears, itself among them.
        """
        batch, _, units = x.shape
        query, told = self.qkv(self.norm1(x) if self.norm == "pre" else x).split((units, 2 * units), -1)
        kept[row, :, place] = told.unflatten(2, (2, units))  # [B, N, 2, E]
        shape = (batch, -1, self.heads, units // self.heads)
        key, value = kept[rows, :, : hears.shape[3]].unbind(1)  # [B, t, E] each
        query, key, value = (part.reshape(shape).transpose(1, 2) for part in (query, key, value))
        heard = functional.scaled_dot_product_attention(query, key, value, attn_mask=hears)  # [B, H, N, E/H]
        return self._add(x, self.out(heard.transpose(1, 2).reshape(x.shape)), keep_all)

    def _add(self, x: Tensor, heard: Tensor, dropout: Dropout) -> Tensor:
        """Return the sums of tokens [B, Q, E] with what they heard and with the MLP's word on that."""
        pre = self.norm == "pre"
        x = x + dropout(heard)  # [B, Q, E]
        if not pre:
            x = self.norm1(x)
        branch = self.down(self.activation(self.up(self.norm2(x) if pre else x)))  # [B, Q, E]
        x = x + dropout(branch)  # [B, Q, E]
        return x if pre else self.norm2(x)

    def _attend(self, x: Tensor, at: Tensor | None, dropout: Dropout, hears: Tensor | None) -> Tensor:
        """Return what the tokens `at` hear of those that they may hear, [B, Q, E]."""
        batch, tokens, units = x.shape
        shape = (batch, -1, self.heads, units // self.heads)
        if at is None:
            query, key, value = (part.view(shape).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
            mask = hears
        else:
            weight, bias = self.qkv.weight, self.qkv.bias
            asked = functional.linear(take_tokens(x, at), weight[:units], bias[:units])  # [B, Q, E]
            told = functional.linear(x, weight[units:], bias[units:])  # [B, T, 2 E]
            query = asked.view(shape).transpose(1, 2)  # [B, H, Q, E/H]
            key, value = (part.view(shape).transpose(1, 2) for part in told.chunk(2, -1))  # [B, H, T, E/H]
            if hears is None:
                mask = torch.arange(tokens, device=x.device) <= at[..., None]  # [Q, T] or [B, Q, T]
            else:
                mask = hears[at] if hears.dim() == 2 else take_tokens(hears, at)  # [Q, T] or [B, Q, T]
        if mask is not None and mask.dim() == 3:
            mask = mask[:, None]  # broadcasts to [B, H, Q, T]
        heard = _attention(query, key, value, mask, dropout)  # [B, H, Q, E/H]
        return self.out(heard.transpose(1, 2).reshape(batch, -1, units))  # type: ignore[no-any-return]


class CausalTransformer(nn.Module):
    """A stack of blocks; token t is a function of tokens 0..t only, unless a mask says otherwise."""

    def __init__(
        self, units: int, layers: int, heads: int, *, norm: Norm = "pre", activation: Activation = "relu"
    ) -> None:
        """Build the blocks; pre-LN ends in one more LayerNorm.

        Args:
            units: width E, a multiple of `heads`.
            layers: blocks, >= 1.
            heads: attention heads.
            norm: LayerNorm before each branch, or after each sum.
            activation: of the MLPs.
        """
        super().__init__()
        self.blocks = nn.ModuleList(Block(units, heads, norm, activation) for _ in range(layers))
        self.final = nn.LayerNorm(units) if norm == "pre" else nn.Identity()

    def forward(
        self, x: Tensor, at: Tensor | None = None, dropout: Dropout = keep_all, hears: Tensor | None = None
    ) -> Tensor:
        """Map tokens [B, T, E] to the states of all of them [B, T, E], or of the tokens `at` [B, Q, E].

        Arguments as for `Block.forward`.
        """
        for block in self.blocks[:-1]:
            x = block(x, None, dropout, hears)
        return self.final(self.blocks[-1](x, at, dropout, hears))  # type: ignore[no-any-return]

    def go_on(self, x: Tensor, kept: Tensor, rows: slice | Tensor, place: Tensor, hears: Tensor) -> Tensor:
        """Map further tokens [B, N, E] to their states.

        Args:
            x: float32.
            kept: [L, R, 2, T, E], of all blocks.
            rows: as for `Block.go_on`.
            place: [B, N].
            hears: [B, N, t].
        """
        row = torch.arange(kept.shape[1], device=x.device)[rows][:, None]  # [B, 1]
        for block, own in zip(self.blocks, kept, strict=True):
            x = cast(Block, block).go_on(x, own, rows, row, place, hears[:, None])
        return self.final(x)  # type: ignore[no-any-return]


def _attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: Dropout) -> Tensor:
    """Return softmax(query key' / sqrt(E/H)) value, [B, H, Q, E/H].

    Args:
        query: [B, H, Q, E/H].
        key: [B, H, T, E/H].
        value: [B, H, T, E/H].
        mask: bool, broadcasts to [B, H, Q, T], true = heard; None = Q is T, and the order is causal.
        dropout: of the weights.
    """
    tokens = key.shape[2]
    if dropout is keep_all:
        return functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None
        )
    if mask is None:
        mask = torch.ones(tokens, tokens, dtype=torch.bool, device=query.device).tril()  # [T, T]
    scores = query @ (key / math.sqrt(key.shape[3])).transpose(2, 3)  # [B, H, Q, T]
    return dropout(scores.masked_fill(~mask, -math.inf).softmax(-1)) @ value


def gpt2_init(module: nn.Module) -> None:
    """Draw the linear maps of `module` as GPT-2 does: weights normal of std 0.02, biases 0."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=0.02)
            nn.init.zeros_(part.bias)


def take_tokens(x: Tensor, at: Tensor) -> Tensor:
    """Return the tokens `at` ([Q] or [B, Q]) of [B, T, E], as [B, Q, E]."""
    if at.dim() == 1:
        return x.index_select(1, at)
    return x.gather(1, at[..., None].expand(-1, -1, x.shape[-1]))
