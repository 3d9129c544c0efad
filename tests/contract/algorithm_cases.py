"""Groups and batches for the algorithm contract suite: vectors, masked agents, stacked images, boxes."""

from __future__ import annotations

from typing import Any

import numpy as np

from seqrl_ray.algorithms import make_algorithm, settings_class
from seqrl_ray.algorithms.contract import Algorithm
from seqrl_ray.types import (
    ActInput,
    ActionSpec,
    ArraySpec,
    GroupSpec,
    ItemIds,
    SampleSpec,
    Slot,
    Transitions,
    Windows,
)

U, B = 3, 5


def discrete_group(obs: ArraySpec, actions: int, own: tuple[int, ...], frame_stack: int = 1) -> GroupSpec:
    slots = tuple(Slot(env=i, agent="agent", obs_size=obs.size, num_actions=n) for i, n in enumerate(own))
    return GroupSpec(
        policy_id="shared",
        slots=slots,
        obs=obs,
        action=ActionSpec("discrete", n=actions),
        frame_stack=frame_stack,
        masked=any(n < actions for n in own),
    )


def box_group(
    obs: ArraySpec,
    shape: tuple[int, ...],
    low: tuple[float, ...],
    high: tuple[float, ...],
    frame_stack: int = 1,
) -> GroupSpec:
    slots = tuple(Slot(env=i, agent="agent", obs_size=obs.size, num_actions=0) for i in range(4))
    return GroupSpec("shared", slots, obs, ActionSpec("box", shape=shape, low=low, high=high), frame_stack)


GROUPS = {
    "vector": discrete_group(ArraySpec((6,), "float32"), 3, own=(3, 3, 3, 3)),
    "masked": discrete_group(ArraySpec((5,), "float32"), 4, own=(4, 2, 3, 1)),
    "image": discrete_group(ArraySpec((12, 12), "uint8"), 3, own=(3, 3), frame_stack=2),
    "box": box_group(ArraySpec((4,), "float32"), (2,), low=(-1.0, 0.0), high=(1.0, 5.0)),
    "box_stacked": box_group(ArraySpec((3,), "float32"), (1, 2), (-2.0, 0.5), (-1.0, 1.0), frame_stack=2),
}
BOX = GROUPS["box"]

ACTION_KINDS: dict[str, tuple[str, ...]] = {
    "behavior_cloning": ("discrete", "box"),
    "decision_transformer": ("discrete", "box"),
    "elastic_dt": ("discrete", "box"),
    "online_dt": ("discrete", "box"),
    "random": ("discrete", "box"),
    "sac": ("box",),
}
"""What each algorithm can choose; those that are not named here: discrete actions."""


QUIET: dict[str, dict[str, Any]] = {
    "decision_transformer": {"dropout": 0.0},
    "elastic_dt": {"dropout": 0.0},
    "online_dt": {"dropout": 0.0},
}
"""Keys that switch off noise which is drawn for a place in the batch and not for a row."""


def drives(name: str, group: GroupSpec) -> bool:
    """Whether the algorithm is for actions of the group's kind."""
    return group.action.kind in ACTION_KINDS.get(name, ("discrete",))


def group_for(name: str, wanted: str = "vector") -> GroupSpec:
    """The group of that name, or the first one whose kind of actions the algorithm is for."""
    fits = [group for group in GROUPS.values() if drives(name, group)]
    return GROUPS[wanted] if drives(name, GROUPS[wanted]) else fits[0]


SMALL: dict[str, dict[str, Any]] = {
    name: {"units": 16, "layers": 2, "heads": 2, "window_steps": 8}
    for name in ("decision_transformer", "elastic_dt", "online_dt")
}
"""Sizes: the contract holds at any, and the default ones take minutes."""


def build(name: str, group: GroupSpec, seed: int = 0, **kwargs: Any) -> Algorithm:
    settings = settings_class(name)(**{**SMALL.get(name, {}), **kwargs})
    return make_algorithm(name, settings, group, seed=seed)


def legal_of(
    group: GroupSpec, shape: tuple[int, ...], rng: np.random.Generator
) -> np.ndarray[Any, Any] | None:
    """A mask with at least action 0 legal in every row."""
    if not group.masked:
        return None
    legal = rng.random((*shape, group.action.n)) < 0.5
    legal[..., 0] = True
    return legal


def observations(group: GroupSpec, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray[Any, Any]:
    spec = group.policy_obs
    if spec.dtype == "uint8":
        return rng.integers(0, 256, (*shape, *spec.shape), dtype=np.uint8)
    return rng.normal(size=(*shape, *spec.shape)).astype(spec.dtype)


def actions(group: GroupSpec, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray[Any, Any]:
    """Actions that the group can take; with a mask, the one that is always legal."""
    action = group.action
    if action.kind == "box":
        low, high = (np.reshape(bound, action.shape) for bound in (action.low, action.high))
        return rng.uniform(low, high, (*shape, *action.shape)).astype(np.float32)
    return np.zeros(shape, np.int64) if group.masked else rng.integers(0, action.n, shape)


def act_input(
    algorithm: Algorithm, group: GroupSpec, seed: int, first: bool = True, progress: float = 0.5
) -> ActInput:
    rng = np.random.default_rng(seed)
    slots = len(group.slots)
    column = group.action.column
    legal = None
    if group.masked:
        legal = np.arange(group.action.n) < np.array([[s.num_actions] for s in group.slots])
    return ActInput(
        obs=observations(group, (slots,), rng),
        prev_action=np.zeros((slots, *column.shape), column.dtype),
        prev_reward=np.zeros(slots, np.float32),
        is_first=np.full(slots, first),
        legal=legal,
        slot_params=algorithm.slot_params(progress, np.arange(slots), slots),
        rng=np.random.default_rng(seed + 1),
    )


def make_batch(
    spec: SampleSpec, group: GroupSpec, seed: int, u: int = U, b: int = B
) -> Transitions | Windows:
    """Random items of the declared view; windows are between one step and K long, the rest padding."""
    rng = np.random.default_rng(seed)
    ids = ItemIds(np.zeros(u * b, np.int32), np.arange(u * b), np.zeros(u * b, np.int64))
    weight = rng.uniform(0.2, 1.0, (u, b)).astype(np.float32)
    probability, counter = np.full((u, b), 0.01), np.zeros((u, b), np.int64)
    extra = {c.name: rng.normal(size=(u, b, *c.array.shape)).astype(c.array.dtype) for c in spec.extra}
    if spec.view == "transitions":
        legal_tm1, legal_t = legal_of(group, (u, b), rng), legal_of(group, (u, b), rng)
        return Transitions(
            obs_tm1=observations(group, (u, b), rng),
            action_tm1=actions(group, (u, b), rng),
            reward_t=rng.normal(size=(u, b)).astype(np.float32),
            discount_t=(spec.gamma * (rng.random((u, b)) < 0.8)).astype(np.float32),
            obs_t=observations(group, (u, b), rng),
            probability=probability,
            weight=weight,
            weights_counter=counter,
            ids=ids,
            legal_tm1=legal_tm1,
            legal_t=legal_t,
            extra=extra,
        )
    k = spec.window_steps
    length = rng.integers(spec.burn_in_steps + 1, k + 1, (u, b, 1))
    step = np.arange(k)
    valid = step < length
    legal = legal_of(group, (u, b, k), rng)
    action = actions(group, (u, b, k), rng)
    return Windows(
        obs=zeroed(observations(group, (u, b, k), rng), valid),
        action=zeroed(action, valid),
        reward=zeroed(rng.normal(size=(u, b, k)).astype(np.float32), valid),
        terminated=(step == length - 1) & (rng.random((u, b, 1)) < 0.5),
        truncated=np.zeros((u, b, k), bool),
        valid=valid,
        learn=valid & (step >= spec.burn_in_steps),
        timestep=zeroed(np.broadcast_to(step, (u, b, k)).astype(np.int64), valid),
        is_first=np.broadcast_to(step == 0, (u, b, k)).copy(),
        next_obs=observations(group, (u, b), rng),
        return_to_go=zeroed(rng.normal(size=(u, b, k)).astype(np.float32), valid) if spec.returns else None,
        probability=probability,
        weight=weight,
        weights_counter=counter,
        ids=ids,
        legal=None if legal is None else legal & valid[..., None],
        next_legal=legal_of(group, (u, b), rng),
        extra=extra,
    )


def zeroed(values: np.ndarray[Any, Any], valid: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    mask = valid.reshape(valid.shape + (1,) * (values.ndim - valid.ndim))
    return np.where(mask, values, np.zeros((), values.dtype))
