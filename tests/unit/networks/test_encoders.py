from __future__ import annotations

import pytest
import torch

from seqrl_ray.networks.encoders import (
    ImageEncoder,
    ImageLayout,
    VectorEncoder,
    as_float,
    encoder,
    image_layout,
    mlp,
)
from seqrl_ray.types import ArraySpec


@pytest.mark.parametrize(
    ("frame", "dtype", "stack", "expected"),
    [
        ((84, 84), "uint8", 4, ImageLayout("frames", 4, 84, 84)),
        ((10, 10, 4), "bool", 1, ImageLayout("channels_last", 4, 10, 10)),
        ((3, 64, 48), "uint8", 1, ImageLayout("channels_first", 3, 64, 48)),
        ((7, 7, 3), "uint8", 2, ImageLayout("channels_last", 6, 7, 7)),
        ((5,), "float32", 1, None),
        ((), "int64", 1, None),
        ((4, 6), "float32", 1, None),
    ],
)
def test_the_layout_follows_from_the_shape(
    frame: tuple[int, ...], dtype: str, stack: int, expected: object
) -> None:
    assert image_layout(frame, dtype, stack) == expected


@pytest.mark.parametrize(
    ("frame", "dtype", "stack", "features"),
    [
        ((84, 84), "uint8", 4, 512),
        ((36, 40), "uint8", 1, 512),
        ((10, 10, 4), "bool", 1, 1600),
        ((7, 7, 3), "uint8", 2, 784),
    ],
)
@pytest.mark.parametrize("lead", [(2,), (2, 3)])
def test_images_become_features(
    frame: tuple[int, ...], dtype: str, stack: int, features: int, lead: tuple[int, ...]
) -> None:
    one = ArraySpec(frame, dtype)
    seen = ArraySpec(frame if stack == 1 else (stack, *frame), dtype)
    network = encoder(seen, one, stack)
    assert isinstance(network, ImageEncoder) and network.features == features
    out = network(torch.ones(*lead, *seen.shape, dtype=getattr(torch, dtype)))
    assert out.shape == (*lead, features) and out.dtype == torch.float32


def test_channels_last_and_first_read_the_same_image() -> None:
    torch.manual_seed(0)
    last = encoder(ArraySpec((6, 5, 3), "uint8"), ArraySpec((6, 5, 3), "uint8"), 1)
    first = encoder(ArraySpec((3, 6, 5), "uint8"), ArraySpec((3, 6, 5), "uint8"), 1)
    first.load_state_dict(last.state_dict())
    image = torch.randint(0, 256, (2, 6, 5, 3), dtype=torch.uint8)
    torch.testing.assert_close(last(image), first(image.movedim(-1, 1)))


def test_stacked_frames_are_separate_channels() -> None:
    torch.manual_seed(0)
    spec = ArraySpec((8, 8), "uint8")
    network = encoder(ArraySpec((2, 8, 8), "uint8"), spec, 2)
    image = torch.randint(0, 256, (1, 2, 8, 8), dtype=torch.uint8)
    assert not torch.equal(network(image), network(image.flip(1)))


def test_vectors_are_flattened_and_cast() -> None:
    table = VectorEncoder(ArraySpec((2, 3), "float32"))
    assert table.features == 6 and table(torch.zeros(4, 5, 2, 3)).shape == (4, 5, 6)
    scalar = VectorEncoder(ArraySpec((), "int64"))
    assert scalar.features == 1 and scalar(torch.tensor([3, 4])).tolist() == [[3.0], [4.0]]


def test_bytes_are_scaled_and_others_only_cast() -> None:
    assert as_float(torch.tensor([0, 51, 255], dtype=torch.uint8)).tolist() == pytest.approx([0.0, 0.2, 1.0])
    assert as_float(torch.tensor([True, False])).tolist() == [1.0, 0.0]
    assert as_float(torch.tensor([7], dtype=torch.int64)).tolist() == [7.0]
    assert as_float(torch.tensor([1.5], dtype=torch.float64)).dtype == torch.float32


def test_mlp_norms_every_hidden_layer_if_asked() -> None:
    assert [type(m).__name__ for m in mlp([3, 4, 5], layer_norm=True)] == ["Linear", "LayerNorm", "ReLU"] * 2
    assert [type(m).__name__ for m in mlp([3, 4], layer_norm=False)] == ["Linear", "ReLU"]
