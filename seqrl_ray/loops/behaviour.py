"""Who acts while data is collected: a trained policy, or a rule of the environment, with noise if asked for.

It stands where a rollout expects an algorithm; it acts and does nothing else.
Dims: S slots.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from seqrl_ray.algorithms.contract import Algorithm
from seqrl_ray.algorithms.random import uniform_actions
from seqrl_ray.types import ActInput, Array, GroupSpec, Mode, SampleSpec
from seqrl_ray.types_env import VectorEnv


@dataclass(frozen=True)
class Behaviour:
    """What acts, as a run folder's metadata can say it."""

    controller: str | None = None
    """A built-in rule; None: the recipe's algorithm."""
    noise: float = 0.0
    """Chance of a uniformly drawn (legal) action instead, per slot and decision."""
    mode: Mode = "explore"


class Collecting:
    """An algorithm as data is collected with it: its actions, or a rule's, some replaced by random ones."""

    def __init__(self, inner: Algorithm, behaviour: Behaviour, env: VectorEnv, group: GroupSpec) -> None:
        self._inner, self._behaviour, self._env, self._group = inner, behaviour, env, group

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def sample_spec(self) -> SampleSpec:
        """Return the algorithm's, without columns of its own: a dataset is for any algorithm."""
        return replace(self._inner.sample_spec(), extra=())

    def act(self, inputs: ActInput, state: Any, mode: Mode) -> tuple[Array, Any, Mapping[str, Array]]:
        """Choose an action for every slot; see `Algorithm.act`."""
        action: Array
        if self._behaviour.controller is not None:
            rules: Any = self._env  # made with a controller, it has one
            action = rules.controller_actions()[self._group.policy_id]
        else:
            action, state, _ = self._inner.act(inputs, state, self._behaviour.mode)
        if self._behaviour.noise:
            other = inputs.rng.random(len(action)) < self._behaviour.noise  # [S]
            action = np.array(action, copy=True)
            action[other] = uniform_actions(self._group.action, inputs)[other]
        return action, state, {}
