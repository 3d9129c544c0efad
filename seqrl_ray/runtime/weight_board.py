"""The weight board: the newest two versions of every policy's weights, for whoever asks.

The board owns the arrays it serves (the learner sends them), so a dead learner takes no weights with it. It
may be restarted empty at any time: the learner publishes again.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import ray

from seqrl_ray.runtime.wire import GONE, pack
from seqrl_ray.types import Weights

KEPT = 2


class WeightBoard:
    """A plain object; the runtime makes a Ray actor of it."""

    def __init__(self) -> None:
        self._versions: dict[str, list[Weights]] = {}

    def publish(self, weights: Mapping[str, Weights]) -> None:
        """Take new weights of some policies; an older version than the newest held is ignored."""
        for policy_id, new in weights.items():
            held = self._versions.setdefault(policy_id, [])
            if not held or new.version >= held[-1].version:
                if held and held[-1].version == new.version:
                    held.pop()  # the same parameters, further progress
                self._versions[policy_id] = [*held, new][-KEPT:]

    def newest(self, have: Mapping[str, tuple[int, int]]) -> dict[str, Weights]:
        """Return the newest weights of every policy whose version is not the one the caller has."""
        return {p: held[-1] for p, held in self._versions.items() if held[-1].version != have.get(p)}

    def pull(self, have: Mapping[str, tuple[int, int]]) -> Any:
        """Return (`newest(have)`, share of the run's budget that is spent), packed for the way."""
        weights = self.newest(have)
        progress = max((held[-1].progress for held in self._versions.values()), default=0.0)
        return pack((weights, progress), [w.flat for w in weights.values()])

    def versions(self) -> dict[str, list[tuple[int, int]]]:
        """Versions held, oldest first."""
        return {p: [w.version for w in held] for p, held in self._versions.items()}

    def pid(self) -> int:
        """Process id, for kill tests and for people."""
        return os.getpid()


class Publisher:
    """A learner's side of the board: sends weights when it is time, and never waits for it."""

    def __init__(self, every_s: float) -> None:
        self.every_s = every_s
        self.board: Any = None
        self.bytes_sent = 0
        self._call: Any = None
        self._sent_at = -math.inf

    def use(self, board: Any) -> None:
        """Send to this board from now on; a new one is sent weights at once."""
        if board != self.board:
            self.board, self._call, self._sent_at = board, None, -math.inf

    def publish(self, weights: Callable[[], Mapping[str, Weights]], *, now: bool = False) -> bool:
        """Send `weights()` if it is time (or `now`) and the last ones have arrived. Returns True if the board
        is gone.
        """
        if self._call is not None:
            ready, _ = ray.wait([self._call], timeout=0)
            if not ready:
                return False
            call, self._call = self._call, None
            try:
                ray.get(call)
            except GONE:
                return True
        if now or time.monotonic() - self._sent_at >= self.every_s:
            self._sent_at = time.monotonic()
            newest = weights()
            self._call = self.board.publish.remote(newest)
            self.bytes_sent += sum(w.flat.nbytes for w in newest.values())
        return False
