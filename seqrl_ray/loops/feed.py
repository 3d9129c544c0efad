"""The feed: alone turns a numpy batch into tensors on the learner's device.

On the CPU a tensor shares the array's memory. On CUDA the array is pinned and copied without blocking the
host, so the copy of one batch overlaps with the updates of the one before. Images stay uint8: a quarter of
the bytes cross the bus, and the encoder scales them on the device.
Dims: U updates in one draw, B batch, K window steps.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar, overload

import numpy as np
import torch
from torch import Tensor

from seqrl_ray.types import Transitions, TransitionTensors, Windows, WindowTensors

Twin = TypeVar("Twin")

# A reply of a shard is a view of received bytes, hence read-only. Nothing here or in an update writes to it.
warnings.filterwarnings("ignore", message="The given NumPy array is not writable", category=UserWarning)


@overload
def feed(batch: Transitions, device: torch.device | str) -> TransitionTensors[Tensor]: ...
@overload
def feed(batch: Windows, device: torch.device | str) -> WindowTensors[Tensor]: ...
def feed(
    batch: Transitions | Windows, device: torch.device | str
) -> TransitionTensors[Tensor] | WindowTensors[Tensor]:
    """Return the part of a batch that an update reads, as tensors on `device`.

    Args:
        batch: leading dimensions [U, B, ...]; on the CPU it must stay unchanged while the tensors are in use.
        device: where the algorithm lives.
    """
    where = torch.device(device)
    if isinstance(batch, Transitions):
        return _twin(TransitionTensors, batch, where)
    return _twin(WindowTensors, batch, where)


def _twin(cls: type[Twin], batch: Transitions | Windows, device: torch.device) -> Twin:
    """Build the tensor twin, whose fields are named as the numpy batch's."""
    names = [item.name for item in fields(cls)]  # type: ignore[arg-type]
    return cls(**{name: _move(getattr(batch, name), device) for name in names})


def _move(value: Any, device: torch.device) -> Any:
    if value is None:
        return None
    if isinstance(value, Mapping):
        return {name: _move(array, device) for name, array in value.items()}
    tensor = torch.from_numpy(np.ascontiguousarray(value))  # [U, B, ...]
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)
