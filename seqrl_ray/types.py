"""The nouns of seqrl-ray: what crosses the doors between rooms, as frozen dataclasses of numpy arrays.

One direction, four messages: an environment makes a `Step`, a rollout makes a `Trajectory` (a fragment of
rows of many streams), a replay shard makes a `Transitions` or `Windows` batch, a learner makes `Weights`. All
but the batches are in `types_env.py`, because no algorithm sees them. This file imports numpy only: every
process loads it.

Dims: S slots of one policy group, R stored rows, U updates in one draw, B batch, K window steps, A actions,
N agents, D features. A *row* is one agent decision, or the final observation after the last decision of a
stream.

Time: an action chosen at `obs_tm1` earns `reward_t` and leads to `obs_t`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
FloatArray = NDArray[np.floating[Any]]
IntArray = NDArray[np.integer[Any]]
BoolArray = NDArray[np.bool_]

Mode = Literal["explore", "greedy"]


# ------------------------------------------------------------------------------------------- spaces and slots


@dataclass(frozen=True)
class ArraySpec:
    """Shape, dtype and bounds of one array, without its leading (slot, row or batch) dimension."""

    shape: tuple[int, ...]
    dtype: str
    low: float = -np.inf
    high: float = np.inf

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        """Bytes of one such array."""
        return self.size * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class ActionSpec:
    """A discrete action in [0, n), or a continuous one of `shape` inside [low, high]."""

    kind: Literal["discrete", "box"]
    n: int = 0
    shape: tuple[int, ...] = ()
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()

    @property
    def column(self) -> ArraySpec:
        """How one action is stored."""
        return ArraySpec((), "int64") if self.kind == "discrete" else ArraySpec(self.shape, "float32")


@dataclass(frozen=True)
class Slot:
    """A place that acts: one agent of one environment copy. Fixed for the life of the environment."""

    env: int
    agent: str
    obs_size: int
    """Leading features that are this agent's own; the rest of the group's observation is padding (0)."""
    num_actions: int
    """Legal action indices are below this (discrete groups; 0 for box actions)."""


@dataclass(frozen=True)
class GroupSpec:
    """All slots that one policy id drives, padded to one observation and one action space."""

    policy_id: str
    slots: tuple[Slot, ...]
    obs: ArraySpec
    """ONE observation as stored: a single frame where `frame_stack` > 1."""
    action: ActionSpec
    frame_stack: int = 1
    """Frames the policy sees, oldest first, on a new leading axis; frames before an episode's first are 0."""
    masked: bool = False
    """True if some action can be illegal at some time: then steps, rows and batches carry `legal`."""

    @property
    def policy_obs(self) -> ArraySpec:
        """The observation as the policy sees it: `obs`, stacked."""
        if self.frame_stack == 1:
            return self.obs
        return ArraySpec((self.frame_stack, *self.obs.shape), self.obs.dtype, self.obs.low, self.obs.high)


# ------------------------------------------------------------------------------------------ replay -> learner


@dataclass(frozen=True)
class ColumnSpec:
    """An extra column an algorithm wants stored, filled from the `extras` of its `act`."""

    name: str
    array: ArraySpec
    period_steps: int = 1
    """Stored every this many decisions of a stream; other rows hold NaN / -1 and are never read."""


@dataclass(frozen=True)
class SampleSpec:
    """What an algorithm wants to be handed: which items, through which view, with which extra columns."""

    view: Literal["transitions", "windows"]
    n_step: int = 1
    gamma: float = 0.99
    window_steps: int = 1
    """K: decisions per window, burn-in included."""
    period_steps: int = 1
    """A window may start every this many decisions of a stream."""
    burn_in_steps: int = 0
    returns: bool = False
    """Windows carry returns-to-go: then only finished, uncut episodes serve."""
    return_gamma: float = 1.0
    """Discount of the returns-to-go."""
    extra: tuple[ColumnSpec, ...] = ()


@dataclass(frozen=True)
class ItemIds:
    """Names of drawn items, to write priorities back late: ignored where the row was overwritten since."""

    shard: IntArray  # [M] int32
    row: IntArray  # [M] int64
    generation: IntArray  # [M] int64

    def __len__(self) -> int:
        return int(self.row.shape[0])


@dataclass(frozen=True)
class Transitions:
    """U minibatches of B n-step transitions. Leading dimensions [U, B] throughout (ids are flat, [U*B])."""

    obs_tm1: Array  # [U, B, *policy_obs]
    action_tm1: Array  # [U, B] int64 or [U, B, *action] float32
    reward_t: FloatArray  # [U, B] float32: sum of gamma^i * reward over the n steps taken
    discount_t: FloatArray  # [U, B] float32: gamma^n, and 0 where the episode terminated within the n steps
    obs_t: Array  # [U, B, *policy_obs]
    probability: FloatArray  # [U, B] float64: chance of one draw hitting the item
    weight: FloatArray  # [U, B] float32: importance weight, at most 1
    weights_counter: IntArray  # [U, B] int64: counter of the weights that acted
    ids: ItemIds
    legal_tm1: BoolArray | None = None  # [U, B, A]
    legal_t: BoolArray | None = None  # [U, B, A]
    extra: Mapping[str, Array] = field(default_factory=dict)  # name -> [U, B, ...], at the item's first row


@dataclass(frozen=True)
class Windows:
    """U minibatches of B windows of K decisions: leading [U, B, K]; padding on the right is 0 / False."""

    obs: Array  # [U, B, K, *policy_obs]
    action: Array  # [U, B, K, ...]
    reward: FloatArray  # [U, B, K] float32, of the transition that starts at the step
    terminated: BoolArray  # [U, B, K]
    truncated: BoolArray  # [U, B, K]
    valid: BoolArray  # [U, B, K] the step exists
    learn: BoolArray  # [U, B, K] valid and past the burn-in
    timestep: IntArray  # [U, B, K] int64: decision number within the episode
    is_first: BoolArray  # [U, B, K]
    next_obs: Array  # [U, B, *policy_obs] the observation after the last valid step
    return_to_go: FloatArray | None  # [U, B, K] float32, if the spec asks for returns
    probability: FloatArray  # [U, B] float64
    weight: FloatArray  # [U, B] float32
    weights_counter: IntArray  # [U, B] int64, of the first step
    ids: ItemIds
    legal: BoolArray | None = None  # [U, B, K, A]
    next_legal: BoolArray | None = None  # [U, B, A]
    extra: Mapping[str, Array] = field(default_factory=dict)  # name -> [U, B, ...], at the window's first row


Batch = Transitions | Windows


# -------------------------------------------------------------------------------- what an algorithm is handed


@dataclass(frozen=True)
class DataFacts:
    """What is known of the offline data before the first update."""

    obs_mean: FloatArray  # [*policy_obs] over all decisions
    obs_std: FloatArray  # [*policy_obs]
    return_min: float
    """Lowest return from a decision to the episode's end, under the algorithm's discount."""
    return_max: float
    """Highest; both of whole episodes where the algorithm reads no returns."""


T = TypeVar("T")
"""A tensor type: this file never imports torch."""


@dataclass(frozen=True)
class ActInput:
    """What the S slots of a group know when they act. See `Algorithm.act`."""

    obs: Array  # [S, *policy_obs]
    prev_action: Array  # [S] int64 or [S, *action] float32; 0 where `is_first`
    prev_reward: FloatArray  # [S] float32; 0 where `is_first`
    is_first: BoolArray  # [S]
    legal: BoolArray | None  # [S, A] if the group is masked
    slot_params: Mapping[str, Array]  # name -> [S], from `Algorithm.slot_params`
    rng: np.random.Generator


@dataclass(frozen=True)
class TransitionTensors(Generic[T]):
    """`Transitions` as `loops.feed` puts them on the learner's device; shapes and meanings are the same."""

    obs_tm1: T
    action_tm1: T
    reward_t: T
    discount_t: T
    obs_t: T
    weight: T
    legal_tm1: T | None = None
    legal_t: T | None = None
    extra: Mapping[str, T] = field(default_factory=dict)


@dataclass(frozen=True)
class WindowTensors(Generic[T]):
    """`Windows` as `loops.feed` puts them on the learner's device; shapes and meanings are the same."""

    obs: T
    action: T
    reward: T
    terminated: T
    truncated: T
    valid: T
    learn: T
    timestep: T
    is_first: T
    next_obs: T
    return_to_go: T | None
    weight: T
    legal: T | None = None
    next_legal: T | None = None
    extra: Mapping[str, T] = field(default_factory=dict)


# ------------------------------------------------------------------------------ what an algorithm hands back


@dataclass(frozen=True)
class Update:
    """What U updates gave back."""

    priorities: NDArray[np.float32]  # [U, B] one per item, >= 0
    metrics: Mapping[str, float]
