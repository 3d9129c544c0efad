"""Encoders: an observation becomes a feature vector. Which encoder applies follows from the observation's
shape.

Sources: Nature CNN: Mnih et al. (2015), doi:10.1038/nature14236; small-image CNN: Young and Tian (2019),
arXiv:1903.03176 (one 3x3 convolution of 16 channels). Departs from them: PyTorch's default initialisation;
any image of at least 36x36 takes the Nature network; the small one pads, so that no border is lost.
Dims: ... leading dimensions (S slots or B batch), F frames, H height, W width, C channels, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from seqrl_ray.types import ArraySpec

NATURE_MIN_SIDE = 36
"""The three strided convolutions of the Nature network need this many pixels on each side."""

NATURE_FEATURES = 512
SMALL_CHANNELS = 16


class ImageLayout(NamedTuple):
    """How an image observation reads as [channels, height, width]."""

    order: Literal["frames", "channels_first", "channels_last"]
    channels: int
    height: int
    width: int


def image_layout(frame: tuple[int, ...], dtype: str, frame_stack: int = 1) -> ImageLayout | None:
    """Return how one frame reads as an image, or None if it is a vector.

    Three dimensions are an image: channels first if the first is smaller than the last, else channels last.
    Two dimensions are a grey image if they are uint8, else a table that is flattened. Stacked frames become
    channels.

    Args:
        frame: shape of ONE frame, without the stack.
        dtype: its dtype.
        frame_stack: frames the policy sees.
    """
    if len(frame) == 2 and dtype == "uint8":
        return ImageLayout("frames", frame_stack, *frame)
    if len(frame) != 3:
        return None
    if frame[0] < frame[2]:
        return ImageLayout("channels_first", frame_stack * frame[0], frame[1], frame[2])
    return ImageLayout("channels_last", frame_stack * frame[2], frame[0], frame[1])


class VectorEncoder(nn.Module):
    """Flattens an observation to float32; uint8 is scaled to [0, 1]. No parameters."""

    def __init__(self, obs: ArraySpec) -> None:
        super().__init__()
        self.features = max(obs.size, 1)
        self._dims = len(obs.shape)

    def forward(self, obs: Tensor) -> Tensor:
        """Map [..., *obs] of any dtype to [..., D] float32."""
        if self._dims != 1:
            obs = obs.flatten(-self._dims) if self._dims else obs.unsqueeze(-1)  # [..., D]
        return as_float(obs)  # [..., D]


class ImageEncoder(nn.Module):
    """A convolutional network: Nature's for large images, one 3x3 convolution for small ones."""

    def __init__(self, obs: ArraySpec, layout: ImageLayout) -> None:
        super().__init__()
        self._layout = layout
        self._dims = len(obs.shape)
        if min(layout.height, layout.width) >= NATURE_MIN_SIDE:
            side = [((((n - 8) // 4 + 1) - 4) // 2 + 1) - 2 for n in (layout.height, layout.width)]
            self.features = NATURE_FEATURES
            self.body = nn.Sequential(
                nn.Conv2d(layout.channels, 32, 8, 4),
                nn.ReLU(),
                nn.Conv2d(32, 64, 4, 2),
                nn.ReLU(),
                nn.Conv2d(64, 64, 3, 1),
                nn.ReLU(),
                nn.Flatten(),
                nn.Linear(64 * side[0] * side[1], NATURE_FEATURES),
                nn.ReLU(),
            )
        else:
            self.features = SMALL_CHANNELS * layout.height * layout.width
            self.body = nn.Sequential(
                nn.Conv2d(layout.channels, SMALL_CHANNELS, 3, padding=1), nn.ReLU(), nn.Flatten()
            )

    def forward(self, obs: Tensor) -> Tensor:
        """Map [..., *obs] (uint8 is scaled to [0, 1]) to [..., D] float32."""
        lead, order, size = obs.shape[: -self._dims], self._layout.order, self._layout
        if order == "channels_last":
            obs = obs.movedim(-1, -3)  # [..., (F,) C, H, W]
        image = obs.reshape(-1, size.channels, size.height, size.width)  # [N, F*C, H, W]
        return self.body(as_float(image)).unflatten(0, lead)  # type: ignore[no-any-return]  # [..., D]


def as_float(obs: Tensor) -> Tensor:
    """Return torch's default floats of the same shape and device; uint8 goes from [0, 255] to [0, 1]."""
    kind = torch.get_default_dtype()
    if obs.dtype == torch.uint8:
        return obs.to(kind) / 255.0
    return obs if obs.dtype == kind else obs.to(kind)


def encoder(obs: ArraySpec, frame: ArraySpec, frame_stack: int) -> VectorEncoder | ImageEncoder:
    """Return the encoder for the observation a policy sees.

    Args:
        obs: the observation as the policy sees it, frames stacked.
        frame: one frame, as stored.
        frame_stack: frames in `obs`.
    """
    layout = image_layout(frame.shape, frame.dtype, frame_stack)
    return VectorEncoder(obs) if layout is None else ImageEncoder(obs, layout)


def mlp(sizes: Sequence[int], layer_norm: bool) -> list[nn.Module]:
    """Return linear layers sizes[0] -> ... -> sizes[-1], each followed by ReLU (LayerNorm before it)."""
    layers: list[nn.Module] = []
    for width_in, width_out in pairwise(sizes):
        layers += [nn.Linear(width_in, width_out)]
        layers += [nn.LayerNorm(width_out)] if layer_norm else []
        layers += [nn.ReLU()]
    return layers
