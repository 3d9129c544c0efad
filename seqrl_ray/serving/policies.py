"""The policies of a run as a replica acts with them: many clients' requests, one call of each network.

Dims: S rows of all requests of one call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from seqrl_ray.algorithms.contract import Algorithm
from seqrl_ray.serving.inputs import Ask, Shape
from seqrl_ray.serving.sessions import Session, joined, part
from seqrl_ray.types import ActInput, Array
from seqrl_ray.types_env import Weights

TARGET = "target_return"
"""The acting parameter of policies that are told what to aim at."""


@dataclass(frozen=True)
class Job:
    """One request on its way into a call of the network."""

    ask: Ask
    session: Session | None


@dataclass(frozen=True)
class Decision:
    """What one request gets."""

    action: Array  # [S] int64 or [S, *action] float32
    state: Any
    """Of its rows, after it; None of a policy that keeps none."""
    version: tuple[int, int]
    """(lineage epoch, updates) of the weights."""


class Policies:
    """All policies of a run, and the version of the weights they act with."""

    def __init__(
        self, algorithms: Mapping[str, Algorithm], shapes: Mapping[str, Shape], seed: int = 0
    ) -> None:
        """Begin with the weights that the algorithms have.

        Args:
            algorithms: policy id -> algorithm.
            shapes: policy id -> what it takes and gives.
            seed: of what is random in acting.
        """
        self.algorithms, self.shapes = algorithms, shapes
        self.versions = dict.fromkeys(algorithms, (0, 0))
        """Policy id -> (lineage epoch, updates)."""
        self._rng = np.random.default_rng(seed)

    @property
    def stateful(self) -> list[str]:
        """Ids of the policies that keep a state between decisions."""
        return [policy_id for policy_id, shape in self.shapes.items() if shape.stateful]

    def take(self, weights: Mapping[str, Weights]) -> None:
        """Act with these weights from now on.

        Raises: CheckpointError: they are of another network.
        """
        for policy_id, algorithm in self.algorithms.items():
            algorithm.load_weights(weights[policy_id].flat)
            self.versions[policy_id] = weights[policy_id].version

    def fresh(self, policy_id: str, rows: int) -> Session:
        """Return a session of a policy that has seen nothing."""
        algorithm, action = self.algorithms[policy_id], self.shapes[policy_id].group.action
        return Session(
            state=algorithm.initial_state(rows),
            prev_action=np.zeros((rows, *action.column.shape), action.column.dtype),
        )

    def act(self, jobs: Sequence[Job]) -> list[Decision]:
        """Choose the actions of several requests: one call per policy and mode."""
        together: dict[tuple[str, bool], list[int]] = {}
        for i, job in enumerate(jobs):
            together.setdefault((job.ask.policy_id, job.ask.explore), []).append(i)
        decided: dict[int, Decision] = {}
        for places in together.values():
            decided.update(zip(places, self._act([jobs[i] for i in places]), strict=True))
        return [decided[i] for i in range(len(jobs))]

    def _act(self, jobs: Sequence[Job]) -> list[Decision]:
        policy_id, explore = jobs[0].ask.policy_id, jobs[0].ask.explore
        algorithm, shape = self.algorithms[policy_id], self.shapes[policy_id]
        ends = np.cumsum([job.ask.rows for job in jobs])
        rows = [slice(end - job.ask.rows, end) for end, job in zip(ends.tolist(), jobs, strict=True)]
        count = int(ends[-1])
        state = joined([job.session.state for job in jobs if job.session]) if shape.stateful else None
        action, state, _ = algorithm.act(
            self._inputs(jobs, algorithm, shape, count), state, "explore" if explore else "greedy"
        )
        action = _handed(action, shape)
        version = self.versions[policy_id]
        return [Decision(action[own], part(state, own) if shape.stateful else None, version) for own in rows]

    def _inputs(self, jobs: Sequence[Job], algorithm: Algorithm, shape: Shape, count: int) -> ActInput:
        asks = [job.ask for job in jobs]
        params = algorithm.slot_params(1.0, np.zeros(count, np.int64), 1)
        column = shape.group.action.column
        prev_action = np.zeros((count, *column.shape), column.dtype)
        prev_reward = np.zeros(count, np.float32)
        is_first = np.ones(count, np.bool_)
        if shape.stateful:
            is_first = np.concatenate([ask.is_first for ask in asks if ask.is_first is not None])
            prev_action = np.concatenate([_before(job) for job in jobs])
            given = [ask.reward if ask.reward is not None else np.zeros(ask.rows) for ask in asks]
            prev_reward = np.concatenate(given).astype(np.float32)
            prev_action[is_first], prev_reward[is_first] = 0, 0
            if shape.target_return is not None:
                params = {
                    **params,
                    TARGET: np.concatenate([_target(job, shape.target_return) for job in jobs]),
                }
        return ActInput(
            obs=np.concatenate([ask.obs for ask in asks]),
            prev_action=prev_action,
            prev_reward=prev_reward,
            is_first=is_first,
            legal=np.concatenate([ask.legal for ask in asks if ask.legal is not None])
            if shape.group.masked
            else None,
            slot_params=params,
            rng=self._rng,
        )


def after(session: Session, ask: Ask, decision: Decision) -> None:
    """Let a session remember what it was given."""
    session.state, session.prev_action, session.begun = decision.state, decision.action, True


def _before(job: Job) -> Array:
    """Return the action before this one: the client's word, or what it was given."""
    if job.ask.prev_action is not None:
        return job.ask.prev_action
    assert job.session is not None
    return job.session.prev_action


def _target(job: Job, default: float) -> Array:
    """Return the return that each row aims at, [S]; it counts where a row begins."""
    wanted = job.ask.target_return
    return np.full(job.ask.rows, default, np.float32) if wanted is None else wanted


def _handed(action: Array, shape: Shape) -> Array:
    """Return actions as an environment is handed them: continuous ones inside their bounds."""
    spec = shape.group.action
    if spec.kind == "discrete":
        return action.astype(np.int64)
    low, high = (np.array(bound, np.float32).reshape(spec.shape) for bound in (spec.low, spec.high))
    return np.clip(action.astype(np.float32), low, high)
