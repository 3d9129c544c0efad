"""The nouns on the way from an environment to a store, and back: what algorithms and networks never see.

An environment makes a `Step`, a rollout makes a `Trajectory` (a fragment of rows of many streams), a learner
makes `Weights`. The other nouns, and the letters of the dimensions, are in `types.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from seqrl_ray.types import Array, BoolArray, FloatArray, GroupSpec, IntArray


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
