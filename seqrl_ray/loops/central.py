"""Acting for many actors at once: one copy of every policy's network, and all actors' slots in one batch.

`CentralPolicies` is what a policy server does (`runtime/policy_server.py` gives it a process and a queue): it
takes the requests that wait, joins them policy by policy, calls `Algorithm.act` once for each, and cuts the
answers apart again. It keeps the acting state (a transformer's context, a recurrent state) of every slot, so
that only observations and actions travel.
Source: SEED RL, Espeholt et al. (2020), arXiv:1910.06591. Departs from it: trajectories are still cut by the
actors, which hold rewards and episodes anyway; nobody waits for a batch to fill: what waits is the batch.
Dims: S slots of one request, N slots of all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from seqrl_ray.algorithms.contract import Algorithm
from seqrl_ray.types import ActInput, Array
from seqrl_ray.types_env import Weights


@dataclass(frozen=True)
class Question:
    """What the slots of one policy group of one actor know; see `ActInput`."""

    obs: Array  # [S, *policy_obs]
    prev_action: Array  # [S, ...]
    prev_reward: Array  # [S]
    is_first: Array  # [S]
    legal: Array | None  # [S, A]
    slot_params: Mapping[str, Array]  # name -> [S]

    @classmethod
    def of(cls, inputs: ActInput) -> Question:
        """Leave out what does not travel: the actor's random numbers."""
        return cls(
            inputs.obs,
            inputs.prev_action,
            inputs.prev_reward,
            inputs.is_first,
            inputs.legal,
            inputs.slot_params,
        )

    def arrays(self) -> list[Array]:
        """Return the arrays that travel."""
        own = [self.obs, self.prev_action, self.prev_reward, self.is_first, *self.slot_params.values()]
        return own if self.legal is None else [*own, self.legal]


@dataclass(frozen=True)
class Request:
    """One decision of one actor."""

    actor: int
    incarnation: int
    questions: Mapping[str, Question]
    """Policy id -> its group's."""


@dataclass(frozen=True)
class Answer:
    """What one actor does."""

    actions: Mapping[str, tuple[Array, Mapping[str, Array]]]
    """Policy id -> (actions [S, ...], the algorithm's extra columns)."""
    versions: Mapping[str, tuple[int, int]]
    """Policy id -> the weights that chose them."""
    progress: float
    """Share of the run's budget that is spent."""


@dataclass
class Counts:
    """What has been done so far."""

    requests: int = 0
    batches: int = 0
    slots: int = 0


@dataclass
class CentralPolicies:
    """The policies of a run and the acting states of all its actors; see the module docstring."""

    algorithms: Mapping[str, Algorithm]
    rng: np.random.Generator
    progress: float = 0.0
    versions: dict[str, tuple[int, int]] = field(default_factory=dict)
    counts: Counts = field(default_factory=Counts)
    _states: dict[int, tuple[int, dict[str, Any]]] = field(default_factory=dict)
    """Actor -> (incarnation, policy id -> state of its slots)."""

    def load(self, weights: Mapping[str, Weights], progress: float) -> None:
        """Act with these from the next batch on."""
        for policy_id, new in weights.items():
            self.algorithms[policy_id].load_weights(new.flat)
            self.versions[policy_id] = new.version
        self.progress = progress

    def forget(self, actor: int) -> None:
        """Drop the acting states of an actor that is no more."""
        self._states.pop(actor, None)

    def act(self, requests: Sequence[Request]) -> list[Answer]:
        """Choose actions for all slots of all requests, each policy in one call.

        Slots of an actor that is not known (a new one, or the states were lost with an earlier server) begin
        afresh, in the middle of an episode too.
        """
        known = [self._known(request) for request in requests]
        actions: list[dict[str, tuple[Array, Mapping[str, Array]]]] = [{} for _ in requests]
        for policy_id, algorithm in self.algorithms.items():
            rows = [i for i, request in enumerate(requests) if policy_id in request.questions]
            if rows:
                asked = [requests[i].questions[policy_id] for i in rows]
                answers = self._act(policy_id, algorithm, asked, [known[i] for i in rows])
                for i, answer in zip(rows, answers, strict=True):
                    actions[i][policy_id] = answer
        self.counts.requests += len(requests)
        self.counts.batches += 1
        versions = dict(self.versions)
        return [Answer(own, versions, self.progress) for own in actions]

    def _known(self, request: Request) -> dict[str, Any]:
        """Return the states of a request's actor, by policy id; empty: it is not known yet."""
        incarnation, states = self._states.get(request.actor, (-1, {}))
        if incarnation == request.incarnation:
            return states
        fresh: dict[str, Any] = {}
        if incarnation < request.incarnation:  # else the last words of one that has been replaced
            self._states[request.actor] = (request.incarnation, fresh)
        return fresh

    def _act(
        self, policy_id: str, algorithm: Algorithm, asked: Sequence[Question], known: Sequence[dict[str, Any]]
    ) -> list[tuple[Array, Mapping[str, Array]]]:
        asked = list(asked)
        for i, states in enumerate(known):
            if policy_id not in states:
                states[policy_id] = algorithm.initial_state(len(asked[i].is_first))
                asked[i] = _afresh(asked[i])
        ends = np.cumsum([len(question.is_first) for question in asked]).tolist()
        slices = [slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
        state = join([states[policy_id] for states in known])
        action, state, extras = algorithm.act(self._joined(asked), state, "explore")
        for states, own in zip(known, slices, strict=True):
            states[policy_id] = part(state, own)
        self.counts.slots += ends[-1]
        return [(action[own], {name: column[own] for name, column in extras.items()}) for own in slices]

    def _joined(self, asked: Sequence[Question]) -> ActInput:
        legal = [question.legal for question in asked if question.legal is not None]
        return ActInput(
            obs=np.concatenate([question.obs for question in asked]),  # [N, *policy_obs]
            prev_action=np.concatenate([question.prev_action for question in asked]),  # [N, ...]
            prev_reward=np.concatenate([question.prev_reward for question in asked]),  # [N]
            is_first=np.concatenate([question.is_first for question in asked]),  # [N]
            legal=np.concatenate(legal) if legal else None,  # [N, A]
            slot_params={
                name: np.concatenate([question.slot_params[name] for question in asked])  # [N]
                for name in asked[0].slot_params
            },
            rng=self.rng,
        )


def _afresh(question: Question) -> Question:
    """Return a question of slots that have no past."""
    return replace(
        question,
        prev_action=np.zeros_like(question.prev_action),
        prev_reward=np.zeros_like(question.prev_reward),
        is_first=np.ones_like(question.is_first),
    )


def join(states: Sequence[Any]) -> Any:
    """Join acting states slot after slot: None, arrays [S, ...], and tuples and dicts of such.

    Raises: TypeError: a state is made of something else, which nobody knows how to join.
    """
    first = states[0]
    if first is None:
        return None
    if isinstance(first, np.ndarray):
        return np.concatenate(states)
    if isinstance(first, Mapping):
        return {name: join([state[name] for state in states]) for name in first}
    if isinstance(first, tuple):
        return _tuple_like(first, [join(columns) for columns in zip(*states, strict=True)])
    raise TypeError(
        f"an acting state holds {type(first).__name__}; it must be arrays [S, ...] in dicts or tuples"
    )


def part(state: Any, rows: slice) -> Any:
    """Return the slots `rows` of a joined state, as copies: the whole is let go."""
    if state is None:
        return None
    if isinstance(state, Mapping):
        return {name: part(column, rows) for name, column in state.items()}
    if isinstance(state, tuple):
        return _tuple_like(state, [part(column, rows) for column in state])
    return state[rows].copy()


def _tuple_like(example: Any, columns: Sequence[Any]) -> Any:
    """Return a plain or a named tuple."""
    return type(example)(*columns) if hasattr(example, "_fields") else tuple(columns)
