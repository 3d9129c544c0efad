"""What a policy with a memory has seen of each of its clients: a bounded number of acting states, forgotten
when nobody asks for them any more.

A state is whatever the algorithm's `act` hands on, its rows first: an array or tensor [S, ...], or tuples and
mappings of such. States of several clients are joined for one call and parted after it.

Dims: S rows of a session.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from seqrl_ray.serving.refusals import BUSY, CONFLICT, NOT_FOUND, Refused
from seqrl_ray.types import Array, BoolArray


@dataclass
class Session:
    """One client's rows between two of its requests."""

    state: Any
    """As `Algorithm.act` gave it."""
    prev_action: Array  # [S] or [S, *action]
    used_s: float = 0.0
    """Clock at its last request."""
    busy: bool = False
    """A request of it waits for its answer."""
    begun: bool = False
    """It has been given an action."""

    @property
    def rows(self) -> int:
        """S."""
        return len(self.prev_action)


class Sessions:
    """All sessions of one replica, by (policy id, name)."""

    def __init__(self, max_states: int, idle_s: float, clock: Callable[[], float]) -> None:
        """Begin with none.

        Args:
            max_states: rows of all sessions together, at most.
            idle_s: a session not heard of for so long is forgotten.
            clock: seconds, monotonic.
        """
        self.max_states, self.idle_s, self.clock = max_states, idle_s, clock
        self._held: dict[tuple[str, str], Session] = {}

    def __len__(self) -> int:
        return len(self._held)

    @property
    def states(self) -> int:
        """Acting states held."""
        return sum(session.rows for session in self._held.values())

    def enter(
        self, policy_id: str, name: str, is_first: BoolArray, fresh: Callable[[int], Session]
    ) -> Session:
        """Return a session for one request, which must `leave` it; a new one where every row begins.

        Args:
            policy_id: whose.
            name: the client's word for it.
            is_first: [S].
            fresh: makes a session of so many rows.
        Raises: Refused: there is no such session, it has other rows, is being asked, or there is no room.
        """
        now, rows = self.clock(), len(is_first)
        self._forget(now)
        session = self._held.get((policy_id, name))
        if session is not None and session.busy:
            raise Refused(f"session {name!a} is being asked already: wait for its answer.", CONFLICT)
        if session is None and not is_first.all():
            raise Refused(
                f"session {name!a} is not known: never begun, not heard of for {self.idle_s:g} s, or "
                "the service began anew. Begin it with is_first=true.",
                NOT_FOUND,
            )
        if session is not None and session.rows != rows and not is_first.all():
            raise Refused(
                f"obs has {rows} rows, and session {name!a} has {session.rows}: begin it anew with "
                "is_first=true."
            )
        if session is None or session.rows != rows:
            others = self.states - (0 if session is None else session.rows)
            if others + rows > self.max_states:
                raise Refused(
                    f"{others} acting states are held of {self.max_states}: {rows} more do not fit. Come "
                    'again later, or end sessions with "end": true.',
                    BUSY,
                )
            session = self._held[policy_id, name] = fresh(rows)
        session.busy, session.used_s = True, now
        return session

    def leave(self, policy_id: str, name: str, session: Session, *, end: bool) -> None:
        """Take a session back after a request; with `end`, or if it never got an action, it is forgotten."""
        session.busy, session.used_s = False, self.clock()
        if end or not session.begun:
            del self._held[policy_id, name]

    def _forget(self, now: float) -> None:
        old = [k for k, s in self._held.items() if not s.busy and now - s.used_s > self.idle_s]
        for key in old:
            del self._held[key]


# ---------------------------------------------------------------------------------------------------- states


def joined(states: Sequence[Any]) -> Any:
    """Return the states of several clients as one, row after row; a copy, also of a single one."""
    first = states[0]
    if isinstance(first, np.ndarray):
        return np.concatenate(states)
    if isinstance(first, torch.Tensor):
        return torch.cat(list(states))
    if isinstance(first, Mapping):
        return {name: joined([state[name] for state in states]) for name in first}
    parts = [joined(column) for column in zip(*states, strict=True)]
    return type(first)(*parts) if hasattr(first, "_fields") else tuple(parts)


def part(state: Any, rows: slice) -> Any:
    """Return the state of some of the rows, as a copy that holds none of the others."""
    if isinstance(state, np.ndarray):
        return state[rows].copy()
    if isinstance(state, torch.Tensor):
        return state[rows].clone()
    if isinstance(state, Mapping):
        return {name: part(inner, rows) for name, inner in state.items()}
    parts = [part(inner, rows) for inner in state]
    return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)
