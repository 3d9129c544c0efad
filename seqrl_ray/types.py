"""The nouns of seqrl-ray: what crosses the doors between rooms, as frozen dataclasses of numpy arrays.

One direction, four messages: an environment makes a `Step`, a rollout makes a `Trajectory` (a fragment of
rows of many streams), a replay shard makes a `Transitions` or `Windows` batch, a learner makes `Weights`.
This file imports numpy only, because every process loads it; it is long because all nouns stand in one place.

Dims: S slots of one policy group, R stored rows, U updates in one draw, B batch, K window steps, A actions,
N agents, D features. A *row* is one agent decision, or the final observation after the last decision of a
stream.

Time: an action chosen at `obs_tm1` earns `reward_t` and leads to `obs_t`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, Protocol, TypeVar

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


# ------------------------------------------------------------------------------------- environment -> rollout


@dataclass(frozen=True)
class EpisodeEnd:
    """One finished episode of one environment copy."""

    env: int
    seed: int
    steps: int
    """Vector-slot decisions taken (one per environment step, however many agents)."""
    metrics: Mapping[str, float]
    """Metric name (with unit) -> value; always holds `return` (mean over agents of the summed reward)."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """What a report draws and a table does not: per-trip arrays, series over time. Empty unless asked for."""


@dataclass(frozen=True)
class Step:
    """What one vectorised step did to the S slots of one policy group.

    `reward`, `terminated`, `truncated` belong to the transition just made and mean something where `valid`;
    `obs`, `legal`, `is_first` belong to the decision to be taken next and mean something where `active`.
    """

    obs: Array  # [S, *obs] the observation to act on next (an autoreset has already happened)
    reward: FloatArray  # [S] float32
    terminated: BoolArray  # [S]
    truncated: BoolArray  # [S]
    valid: BoolArray  # [S] a transition was made (the slot was active before this step)
    active: BoolArray  # [S] the slot must be given an action now
    is_first: BoolArray  # [S] `obs` opens a new stream
    episode_id: IntArray  # [S] int64: counts the lives of the slot; a new life is a new stream
    final_slots: IntArray  # [F] int64: slots whose stream ended with this transition
    final_obs: Array  # [F, *obs] the observation their last transition led to
    legal: BoolArray | None = None  # [S, A] if the group is masked
    final_legal: BoolArray | None = None  # [F, A] legal at `final_obs`; None: every action the slot has


@dataclass(frozen=True)
class VectorStep:
    """One step of the whole environment: a `Step` per policy id, and the episodes that ended in it."""

    groups: Mapping[str, Step]
    episodes: tuple[EpisodeEnd, ...] = ()
    env_steps: int = 0
    """Vector-slot steps made (environment copies that really stepped)."""


@dataclass(frozen=True)
class OpenEpisode:
    """An unfinished episode, as it can be rebuilt: reset with `seed`, then replay the joint actions."""

    env: int
    seed: int
    index: int
    """The how-manieth episode of this environment copy."""
    actions: Mapping[str, Array]
    """Policy id -> actions so far, [T, slots of this copy in the group, ...]."""
    streams: Mapping[str, IntArray] = field(default_factory=dict)
    """Policy id -> `episode_id` of the copy's slots as the episode began; empty where that is `index`."""
    digest: str = ""
    """Fingerprint of the current observations: a replay that leads elsewhere is refused. "" = unchecked."""


class SeedStream(Protocol):
    """Gives the seed of the `episode`-th episode (0, 1, ...) of environment copy `env`."""

    def __call__(self, env: int, episode: int) -> int: ...


class VectorEnv(Protocol):
    """E copies of an environment, a `Step` per policy group. Contract: `seqrl_ray.envs.check`."""

    @property
    def groups(self) -> Mapping[str, GroupSpec]: ...
    @property
    def num_envs(self) -> int: ...
    def reset(self) -> VectorStep: ...
    def step(self, actions: Mapping[str, Array]) -> VectorStep: ...
    def open_episodes(self) -> tuple[OpenEpisode, ...] | None:
        """The unfinished episodes, or None where the environment cannot rebuild one."""
        ...

    def restore(self, episodes: tuple[OpenEpisode, ...]) -> VectorStep:
        """Rebuild the unfinished episodes; returns the step that was current when they were saved."""
        ...

    def close(self) -> None: ...


# ------------------------------------------------------------------------------------------ rollout -> replay


@dataclass(frozen=True)
class Trajectory:
    """A fragment: consecutive rows of many streams of one policy id, stream after stream.

    Piece p is `length[p]` consecutive rows of the stream (writer, incarnation, slot[p], episode[p]), the
    first of which is that stream's row number `offset[p]`. Inserting the same piece twice changes nothing.
    """

    policy_id: str
    writer: str
    incarnation: int
    weights: tuple[int, int]
    """(lineage epoch, counter) of the weights that chose the actions."""
    slot: IntArray  # [P] int64
    episode: IntArray  # [P] int64
    offset: IntArray  # [P] int64
    length: IntArray  # [P] int64, sums to R
    columns: Mapping[str, Array]
    """Column name -> [R, ...]. Always: obs, action, reward (float32), terminated, truncated, final (bool).
    With a mask: legal [R, A]. Plus the extra columns the algorithm declared. A `final` row holds only obs
    (and legal): its action, reward and flags are padding. `reward`, `terminated`, `truncated` are of the
    transition that STARTS at the row."""
    env_steps: int
    """Vector-slot steps this fragment covers (counted once per environment step, also with many agents)."""

    @property
    def rows(self) -> int:
        """Number of rows R, final rows included."""
        return int(self.columns["final"].shape[0])

    @property
    def agent_steps(self) -> int:
        """Rows that are decisions."""
        return int(self.rows - np.count_nonzero(self.columns["final"]))


@dataclass(frozen=True)
class Fragment:
    """What a rollout made in one go: a Trajectory per policy id that has rows, and the episodes that
    ended.
    """

    trajectories: tuple[Trajectory, ...]
    episodes: tuple[EpisodeEnd, ...]
    env_steps: int


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
    return_max: float


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


# ---------------------------------------------------------------------------------------- learner -> everyone


@dataclass(frozen=True)
class Weights:
    """A policy's parameters as one flat vector, and the version that names them."""

    policy_id: str
    epoch: int
    """Lineage: raised by a learner restart or an exploit; work of an older lineage is dropped."""
    counter: int
    """Updates done in all when these weights were published."""
    flat: NDArray[np.float32]  # [P]
    progress: float = 0.0
    """Share of the run's budget that is spent, in [0, 1]; schedules of acting (epsilon) follow it."""

    @property
    def version(self) -> tuple[int, int]:
        """(epoch, counter)."""
        return (self.epoch, self.counter)


@dataclass(frozen=True)
class Update:
    """What U updates gave back."""

    priorities: NDArray[np.float32]  # [U, B] one per item, >= 0
    metrics: Mapping[str, float]
