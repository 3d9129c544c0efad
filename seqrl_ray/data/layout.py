"""How a source's spaces become a group and its columns: the same rule as an environment's (`envs/spaces.py`).

A dataset of an environment and a run on it therefore have equal groups, and a policy trained on the one acts
in the other.

Dims: T observations, A actions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

from seqrl_ray.data.manifest import column_specs
from seqrl_ray.envs import batches
from seqrl_ray.envs.grouping import AGENT, AgentInfo, assign
from seqrl_ray.envs.spaces import OBSERVATION_KEY, action_codec, obs_codec, split_mask
from seqrl_ray.errors import DataError, did_you_mean
from seqrl_ray.recipe_env import GymSettings, PolicySettings
from seqrl_ray.types import ActionSpec, Array, ArraySpec, BoolArray, GroupSpec

POLICY_ID = "shared"
MASK_KEY: str = GymSettings.model_fields["mask_key"].default


@dataclass(frozen=True)
class Layout:
    """Spaces of one agent, and its group."""

    group: GroupSpec
    obs_space: spaces.Space[Any]
    """The whole observation space; with a mask inside: Dict {"observation", mask key}."""
    action_space: spaces.Space[Any]
    where: str
    """Whose it is, for messages."""

    def encode_obs(self, batch: Any) -> tuple[Array, BoolArray | None]:
        """Return T observations as stored, [T, *obs], and what is legal at them, [T, A], if they say so."""
        space, masked = split_mask(self.obs_space, MASK_KEY)
        if not masked:
            return batches.encode(space, batch, self.where), None
        legal = np.asarray(batch[MASK_KEY], np.bool_)
        return batches.encode(space, batch[OBSERVATION_KEY], self.where), legal

    def decode_obs(self, rows: Array, legal: BoolArray | None) -> Any:
        """Return stored observations as a batch of `obs_space`."""
        space, masked = split_mask(self.obs_space, MASK_KEY)
        if not masked:
            return batches.decode(space, rows)
        assert legal is not None and isinstance(self.obs_space, spaces.Dict)
        return {
            OBSERVATION_KEY: batches.decode(space, rows),
            MASK_KEY: legal.astype(self.obs_space[MASK_KEY].dtype),
        }

    def encode_actions(self, batch: Any) -> Array:
        """Return T actions as stored."""
        return batches.encode_actions(self.action_space, batch, self.where)

    def decode_actions(self, rows: Array) -> Array:
        """Return stored actions as a batch of `action_space`."""
        return batches.decode_actions(self.action_space, rows)


def layout_of(obs_space: spaces.Space[Any], action_space: spaces.Space[Any], where: str) -> Layout:
    """Return how an environment's data is stored.

    Args:
        obs_space: its observation space; a Dict {"observation", "action_mask"} carries a legal-action mask.
        action_space: Discrete, or a Box of floats.
        where: whose they are, for messages.
    Raises: EnvError: a space that cannot be stored.
    """
    inner, masked = split_mask(obs_space, MASK_KEY)
    agent = AgentInfo(AGENT, obs_codec(inner, where).spec, action_codec(action_space, where).spec, masked)
    (group,) = assign([agent], {POLICY_ID: PolicySettings()}, 1).values()
    return Layout(group, obs_space, action_space, where)


def spaces_of(group: GroupSpec) -> tuple[spaces.Space[Any], spaces.Space[Any]]:
    """Observation and action space of a group as it is stored, where no source recorded them."""
    obs: spaces.Space[Any] = _box(group.obs)
    if group.masked:
        obs = spaces.Dict({OBSERVATION_KEY: obs, MASK_KEY: spaces.MultiBinary(group.action.n)})
    return obs, _action_space(group.action)


def same_columns(one: GroupSpec, other: GroupSpec) -> bool:
    """Whether rows of the two groups have the same columns, whatever bounds and names they declare."""
    shapes = [
        {name: (spec.shape, spec.dtype) for name, spec in column_specs(g).items()} for g in (one, other)
    ]
    return shapes[0] == shapes[1] and (one.action.kind, one.action.n) == (other.action.kind, other.action.n)


def layout_of_env(env_id: str) -> tuple[Layout, EnvSpec]:
    """Return the layout of a registered Gymnasium environment, and its spec.

    Raises: DataError: it is not registered, or cannot be made. EnvError: its spaces cannot be stored.
    """
    try:
        env = gymnasium.make(env_id)
    except (gymnasium.error.Error, ModuleNotFoundError, TypeError) as error:
        raise DataError(
            f"env={env_id!r} cannot be made ({error}): its spaces are unknown."
            f"{did_you_mean(env_id, gymnasium.registry)} Install what it needs, or name another."
        ) from None
    assert env.spec is not None  # `make` sets it
    layout = layout_of(env.observation_space, env.action_space, env_id)
    env.close()  # type: ignore[no-untyped-call]
    return layout, env.spec


def _box(spec: ArraySpec) -> spaces.Box:
    return spaces.Box(spec.low, spec.high, spec.shape, np.dtype(spec.dtype).type)


def _action_space(action: ActionSpec) -> spaces.Space[Any]:
    if action.kind == "discrete":
        return spaces.Discrete(action.n)
    low, high = (np.array(bound, np.float32).reshape(action.shape) for bound in (action.low, action.high))
    return spaces.Box(low, high, dtype=np.float32)
