"""Policy groups: which policy drives which agent, and one padded observation and action space per policy.

Source: ours; shared by the PettingZoo and the traffic doors (single-agent doors have the one agent "agent").
Rule: the first policy with a pattern that matches an agent's name drives it. Vectors are zero-padded on the
right to the widest of the group, then optionally followed by a one-hot of the agent. Discrete actions are
padded to the largest count and `legal` masks the rest. Arrays of two or more dimensions (images) are kept and
must agree.

Dims: E environment copies, N agents of one group, S = E * N slots (copy by copy, agents in the environment's
order), D features, A actions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from seqrl_ray.errors import RecipeError, did_you_mean
from seqrl_ray.recipe_env import PolicySettings
from seqrl_ray.types import ActionSpec, Array, ArraySpec, BoolArray, GroupSpec, Slot

AGENT = "agent"
"""The agent's name in an environment that has only one."""


@dataclass(frozen=True)
class AgentInfo:
    """One agent as an environment describes it."""

    name: str
    obs: ArraySpec
    action: ActionSpec
    masked: bool = False
    """True if some of its own actions can be illegal at some time."""


def assign(
    agents: Sequence[AgentInfo], policies: Mapping[str, PolicySettings], num_envs: int
) -> dict[str, GroupSpec]:
    """Give every agent to the first policy that matches its name, and pad each policy's spaces.

    Args:
        agents: the agents of one environment copy, in its own order; names are unique.
        policies: policy id -> settings, in the order in which they are tried.
        num_envs: E, number of copies.
    Returns: policy id -> GroupSpec, in the order of `policies`; slot e * N + n is agent n of copy e.
    Raises: RecipeError: an agent without a policy, a policy without an agent, or agents that cannot share
        one.
    """
    members: dict[str, list[AgentInfo]] = {policy_id: [] for policy_id in policies}
    for agent in agents:
        members[_policy_of(agent.name, policies)].append(agent)
    for policy_id, group in members.items():
        if not group:
            patterns = ", ".join(policies[policy_id].agents)
            names = [agent.name for agent in agents]
            raise RecipeError(
                f"policies.{policy_id}.agents={patterns!r} matches no agent that an earlier policy left "
                f"over: the policy would never act.{did_you_mean(patterns, names)} Agents here: "
                f"{_listed(names)}."
            )
    return {
        policy_id: _group(policy_id, group, policies[policy_id].agent_one_hot, num_envs)
        for policy_id, group in members.items()
    }


def agents_of(group: GroupSpec) -> tuple[str, ...]:
    """Names of the N agents of a group, in slot order within one copy."""
    return tuple(slot.agent for slot in group.slots if slot.env == 0)


def blank_rows(group: GroupSpec) -> Array:
    """Make the group's observation array with the padding (0) and the agents' one-hots already in place.

    Returns: [S, D] float32 for vectors, [S, *obs] for images; each slot's own leading features complete it.
    """
    rows = np.zeros((len(group.slots), *group.obs.shape), group.obs.dtype)
    if len(group.obs.shape) == 1:
        widest = max(slot.obs_size for slot in group.slots)
        agents = len(agents_of(group))
        if group.obs.shape[0] == widest + agents:  # `assign` makes two widths: this, or `widest`
            rows[np.arange(len(group.slots)), widest + np.arange(len(group.slots)) % agents] = 1.0
    return rows


def fill_row(rows: Array, slot: int, observation: Array) -> None:
    """Write one slot's observation into its row of an array made by `blank_rows`, in place.

    Args:
        rows: [S, D] or [S, *obs].
        slot: the row to write.
        observation: a vector of the slot's `obs_size`, or an image.
    """
    if rows.ndim == 2:
        rows[slot, : observation.shape[0]] = observation
    else:
        rows[slot] = observation


def own_actions(group: GroupSpec) -> BoolArray:
    """Mask of the action indices that are each slot's own, not padding: [S, A] bool."""
    counts = np.array([slot.num_actions for slot in group.slots])
    return np.arange(group.action.n) < counts[:, None]  # [S, A]


def _policy_of(agent: str, policies: Mapping[str, PolicySettings]) -> str:
    for policy_id, settings in policies.items():
        if any(fnmatchcase(agent, pattern) for pattern in settings.agents):
            return policy_id
    patterns = [pattern for settings in policies.values() for pattern in settings.agents]
    raise RecipeError(
        f"policies: no pattern of {', '.join(patterns) or '(no policy)'} matches agent {agent!r}: nothing "
        "would "
        'drive it. Add it to the `agents` of a policy, or add a last policy with agents = ["*"].'
    )


def _group(policy_id: str, agents: Sequence[AgentInfo], one_hot: bool, num_envs: int) -> GroupSpec:
    obs = _shared_obs(policy_id, agents, one_hot)
    action = _shared_action(policy_id, agents)
    counts = [agent.action.n for agent in agents]
    slots = tuple(
        Slot(env, agent.name, obs_size=agent.obs.size, num_actions=agent.action.n)
        for env in range(num_envs)
        for agent in agents
    )
    masked = action.kind == "discrete" and (len(set(counts)) > 1 or any(agent.masked for agent in agents))
    return GroupSpec(policy_id, slots, obs, action, masked=masked)


def _shared_obs(policy_id: str, agents: Sequence[AgentInfo], one_hot: bool) -> ArraySpec:
    shapes = {agent.obs.shape for agent in agents}
    low = min(agent.obs.low for agent in agents)
    high = max(agent.obs.high for agent in agents)
    if all(len(shape) == 1 for shape in shapes):
        widest = max(agent.obs.size for agent in agents)
        if len(shapes) > 1 or one_hot:  # padding holds 0, a one-hot 0 and 1
            low, high = min(low, 0.0), max(high, 1.0 if one_hot else 0.0)
        return ArraySpec((widest + (len(agents) if one_hot else 0),), "float32", low, high)
    if len(shapes) > 1:
        raise RecipeError(
            f"policies.{policy_id}: its agents see arrays of different shapes "
            f"{_listed(sorted(map(str, shapes)))}: images are not padded. Give each shape its own policy, or "
            "let the environment resize them."
        )
    if one_hot:
        raise RecipeError(
            f"policies.{policy_id}.agent_one_hot=true needs vector observations, these have shape "
            f"{shapes.pop()}: there is no place to append it. Set it to false, or draw the agent into the "
            "image."
        )
    dtypes = {agent.obs.dtype for agent in agents}
    if len(dtypes) > 1:
        raise RecipeError(
            f"policies.{policy_id}: its agents' images have different types {_listed(sorted(dtypes))}: they "
            "cannot share one column. Give each type its own policy, or convert them in the environment."
        )
    return ArraySpec(shapes.pop(), dtypes.pop(), low, high)


def _shared_action(policy_id: str, agents: Sequence[AgentInfo]) -> ActionSpec:
    kinds = {agent.action.kind for agent in agents}
    if kinds == {"discrete"}:
        return ActionSpec("discrete", n=max(agent.action.n for agent in agents))
    if len({agent.action for agent in agents}) > 1:
        raise RecipeError(
            f"policies.{policy_id}: its agents have different continuous actions, or some have discrete "
            "ones: they cannot share one network head. Give each kind of agent its own policy."
        )
    return agents[0].action


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:8])
    return shown if len(names) <= 8 else f"{shown}, ... ({len(names)} in all)"
