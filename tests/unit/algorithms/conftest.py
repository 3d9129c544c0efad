from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from seqrl_ray.algorithms import make_algorithm, settings_class
from seqrl_ray.algorithms.compiled import enable
from seqrl_ray.types import ActionSpec, ArraySpec, GroupSpec, Slot, TransitionTensors


@pytest.fixture
def group() -> GroupSpec:
    """Four slots, three features, two actions."""
    slots = tuple(Slot(env=i, agent="agent", obs_size=3, num_actions=2) for i in range(4))
    return GroupSpec("shared", slots, ArraySpec((3,), "float32"), ActionSpec("discrete", n=2))


@pytest.fixture
def learner(group: GroupSpec) -> Callable[..., Any]:
    """Build an algorithm of the DQN family by name, with settings as keywords."""

    def build(name: str = "double_dqn", seed: int = 0, compile_updates: int = 0, **settings: Any) -> Any:
        settings = {"hidden": (8,), **settings}
        algorithm = make_algorithm(name, settings_class(name)(**settings), group, seed=seed)
        if compile_updates:
            enable(algorithm, compile_updates)
        return algorithm

    return build


def transitions(u: int, b: int, seed: int = 0, masked: bool = False) -> TransitionTensors[Tensor]:
    """Random minibatches for `group`."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> Tensor:
        return torch.from_numpy(rng.normal(size=shape).astype(np.float32))

    legal = None
    if masked:
        legal = torch.from_numpy(rng.random((u, b, 2)) < 0.5)
        legal[..., 0] = True
    return TransitionTensors(
        obs_tm1=normal(u, b, 3),
        action_tm1=torch.from_numpy(rng.integers(0, 2, (u, b))),
        reward_t=normal(u, b),
        discount_t=torch.from_numpy((0.9 * (rng.random((u, b)) < 0.7)).astype(np.float32)),
        obs_t=normal(u, b, 3),
        weight=torch.from_numpy(rng.uniform(0.1, 1.0, (u, b)).astype(np.float32)),
        legal_tm1=legal,
        legal_t=legal,
    )
