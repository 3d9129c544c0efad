"""The weight board: the newest two versions of every policy's weights, for whoever asks.

The board owns the arrays it serves (the learner sends them), so a dead learner takes no weights with it. It
may be restarted empty at any time: the learner publishes again.

A version is one flat array. A small one goes inside the answer to whoever asks; a large one is put into the
object store once, and everybody is told where it is: each node fetches it once, and its actors read the same
memory.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import ray

from seqrl_ray.runtime.wire import GONE, INLINE_BYTES, pack, unpack
from seqrl_ray.types_env import Weights

KEPT = 2

NOWHERE = np.zeros(0, np.float32)
"""Stands for an array that comes another way, or is there already."""


@dataclass(frozen=True)
class Pulled:
    """What the board answers."""

    weights: dict[str, Weights]
    """Policy id -> weights, those without their array that `arrays` has."""
    arrays: dict[str, Any]
    """Policy id -> reference to the array, of large ones."""
    progress: float
    """Share of the run's budget that is spent."""

    def whole(self) -> dict[str, Weights]:
        """Return the weights with their arrays; waits for those that are on their way.

        Raises: ray.exceptions.ObjectLostError, RayActorError: the board that owns them has died.
        """
        return {
            p: replace(w, flat=ray.get(self.arrays[p])) if p in self.arrays else w
            for p, w in self.weights.items()
        }


class WeightBoard:
    """A plain object; the runtime makes a Ray actor of it."""

    def __init__(self) -> None:
        self._versions: dict[str, list[Weights]] = {}
        self._arrays: dict[tuple[str, tuple[int, int]], Any] = {}

    def publish(self, weights: Mapping[str, Weights]) -> None:
        """Take new weights of some policies; an older version than the newest held is ignored, and of that
        same version only the progress is news.
        """
        for policy_id, new in weights.items():
            held = self._versions.setdefault(policy_id, [])
            if not held or new.version >= held[-1].version:
                if held and held[-1].version == new.version:
                    new = replace(new, flat=held.pop().flat)  # the same parameters, further progress
                elif new.flat.nbytes >= INLINE_BYTES:
                    reference = ray.put(new.flat)
                    self._arrays[policy_id, new.version] = reference
                    new = replace(new, flat=ray.get(reference))  # a view of it, in place of a second copy
                self._versions[policy_id] = [*held, new][-KEPT:]
        kept = {(p, w.version) for p, held in self._versions.items() for w in held}
        self._arrays = {key: reference for key, reference in self._arrays.items() if key in kept}

    def newest(self, have: Mapping[str, tuple[int, int]]) -> dict[str, Weights]:
        """Return the newest weights of every policy whose version is not the one the caller has."""
        return {p: held[-1] for p, held in self._versions.items() if held[-1].version != have.get(p)}

    def pull(self, have: Mapping[str, tuple[int, int]]) -> Any:
        """Return `newest(have)` as `Pulled`, packed for the way."""
        weights = self.newest(have)
        progress = max((held[-1].progress for held in self._versions.values()), default=0.0)
        arrays = {p: self._arrays[p, w.version] for p, w in weights.items() if (p, w.version) in self._arrays}
        told = {p: replace(w, flat=NOWHERE) if p in arrays else w for p, w in weights.items()}
        pulled = Pulled(told, arrays, progress)
        return pulled if arrays else pack(pulled, [w.flat for w in told.values()])

    def versions(self) -> dict[str, list[tuple[int, int]]]:
        """Versions held, oldest first."""
        return {p: [w.version for w in held] for p, held in self._versions.items()}

    def pid(self) -> int:
        """Process id, for kill tests and for people."""
        return os.getpid()


class Puller:
    """An actor's side of the board: asks for new weights when it is time, and never waits for them."""

    def __init__(self, every_s: float) -> None:
        self.every_s = every_s
        self._board: Any = None
        self._call: Any = None
        self._pulled: Pulled | None = None
        self._asked_at = -math.inf

    def use(self, board: Any) -> None:
        """Ask this board from now on: what was asked of an earlier one may never be answered."""
        if board != self._board:
            self._board, self._call, self._pulled, self._asked_at = board, None, None, -math.inf

    def soon(self) -> None:
        """Ask at the next look, whenever the last time was."""
        self._asked_at = -math.inf

    @property
    def awaited(self) -> list[Any]:
        """What is on its way."""
        if self._pulled is not None:
            return list(self._pulled.arrays.values())
        return [] if self._call is None else [self._call]

    def look(self, have: Mapping[str, tuple[int, int]]) -> Pulled | None:
        """Return weights that were asked for and are here, arrays and all, or None; ask when it is time.

        Raises: ray.exceptions.RayActorError, ObjectLostError: the board is gone.
        """
        came, awaited = None, self.awaited
        if awaited and not ray.wait(awaited, num_returns=len(awaited), timeout=0)[1]:
            came = self._take()
        if not self.awaited and time.monotonic() - self._asked_at >= self.every_s:
            self._asked_at = time.monotonic()
            self._call = self._board.pull.remote(have)
        return came

    def _take(self) -> Pulled | None:
        """Take what has come: an answer, or after it the arrays that it told of."""
        if self._pulled is None:
            call, self._call = self._call, None
            pulled: Pulled = unpack(ray.get(call))
            if not pulled.arrays:
                return pulled
            self._pulled = pulled
            return None
        pulled, self._pulled = self._pulled, None
        return replace(pulled, weights=pulled.whole(), arrays={})


class Publisher:
    """A learner's side of the board: sends weights when it is time, and never waits for it."""

    def __init__(self, every_s: float) -> None:
        self.every_s = every_s
        self.board: Any = None
        self.bytes_sent = 0
        self._call: Any = None
        self._sent_at = -math.inf
        self._sent: dict[str, tuple[int, int]] = {}

    def use(self, board: Any) -> None:
        """Send to this board from now on; a new one is sent weights at once."""
        if board != self.board:
            self.board, self._call, self._sent_at = board, None, -math.inf
            self._sent.clear()

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
                self._sent.clear()
                return True
        if now or time.monotonic() - self._sent_at >= self.every_s:
            self._sent_at = time.monotonic()
            newest = weights()
            known = [p for p, w in newest.items() if self._sent.get(p) == w.version]  # progress is news
            self._sent = {p: w.version for p, w in newest.items()}
            sent = {p: replace(w, flat=NOWHERE) if p in known else w for p, w in newest.items()}
            self._call = self.board.publish.remote(sent)
            self.bytes_sent += sum(w.flat.nbytes for w in sent.values())
        return False
