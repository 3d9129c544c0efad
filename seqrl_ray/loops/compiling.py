"""Whether and when updates are compiled: `learner.compile` = auto | on | off.

Several learners stay eager: a graph of several updates has no place to add up gradients over processes.
`on` compiles with the first update. `auto` begins eagerly, measures what an update costs and how many the
budget still asks for, and compiles once that pays (`algorithms.compiled.pays`); if the graph cannot be made,
or turns out slower than eager, it goes back and says so. Either way the same equations go on from the same
state. `auto` only ever acts when `consider` is called: a loop that promises the same numbers for the same
seed never calls it, because a switch at a moment that a clock chose breaks that promise in the seventh digit.

What people should know is left in `notes`: a loop that finds one returns to its caller, so that it is read
before the slow update begins.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from seqrl_ray.algorithms.compiled import DEFAULT_UPDATES, compiler, enable, pays
from seqrl_ray.algorithms.contract import Algorithm, TensorBatch
from seqrl_ray.algorithms.flat_learner import FlatLearner
from seqrl_ray.recipe import Recipe
from seqrl_ray.types import Update

ENOUGH_UPDATES, ENOUGH_S = 64, 2.0
"""A mean over this many updates, or over this long, is a measurement."""


@dataclass
class _Measure:
    """Cost of one policy's updates; the first call is left out, it warms caches up."""

    calls: int = 0
    updates: int = 0
    seconds: float = 0.0
    base: tuple[float, int] | None = None
    """(share of the run spent, updates done) between two turns, the first time after a call."""

    def add(self, updates: int, seconds: float) -> None:
        if self.calls:
            self.updates += updates
            self.seconds += seconds
        self.calls += 1

    @property
    def enough(self) -> bool:
        return self.updates >= ENOUGH_UPDATES or (self.updates > 0 and self.seconds >= ENOUGH_S)

    @property
    def update_s(self) -> float:
        return self.seconds / self.updates


class Compiling:
    """Runs the updates of a learner's algorithms, eagerly or compiled."""

    def __init__(self, recipe: Recipe, algorithms: Mapping[str, Algorithm]) -> None:
        """Prepare.

        Raises: RecipeError: `learner.compile` is on, and an algorithm or this machine does not allow it.
        """
        self.recipe, self.algorithms = recipe, algorithms
        self.notes: list[str] = []
        self.compile_s = 0.0
        """Seconds spent in first calls of compiled updates, all policies together."""
        self._graph_updates = min(DEFAULT_UPDATES, recipe.learner.updates_per_call)
        self._eager: dict[str, _Measure] = {}
        self._waiting: set[str] = set()  # the next update compiles
        self._compiled: dict[str, _Measure] = {}
        if recipe.learner.compile == "on":
            for policy_id in algorithms:
                self._begin(policy_id, "learner.compile=on")
        elif recipe.learner.compile == "auto" and recipe.learner.count == 1:
            able = {p: a for p, a in algorithms.items() if isinstance(a, FlatLearner) and a.compiles}
            self._eager = {policy_id: _Measure() for policy_id in able if compiler() is not None}

    def update(self, policy_id: str, batch: TensorBatch, hparams: Mapping[str, float]) -> Update:
        """Update one policy; see `Algorithm.update`. Takes long where it compiles."""
        if policy_id in self._waiting:
            return self._first_compiled(policy_id, batch, hparams)
        algorithm = self.algorithms[policy_id]
        measure = self._compiled.get(policy_id) or self._eager.get(policy_id)
        if measure is None:
            return algorithm.update(batch, hparams)
        began = time.perf_counter()
        update = algorithm.update(batch, hparams)
        measure.add(len(update.priorities), time.perf_counter() - began)
        if policy_id in self._compiled and measure.enough:
            self._judge(policy_id, measure)
        return update

    def take_notes(self) -> list[str]:
        """Return what has happened since the last call."""
        taken = self.notes.copy()
        self.notes.clear()
        return taken

    def consider(self, progress: float) -> None:
        """Begin to compile what is measured to pay; for loops that are no functions of their seed."""
        for policy_id, eager in self._eager.items():
            if policy_id in self._waiting or policy_id in self._compiled or not eager.calls:
                continue
            if eager.base is None:
                eager.base = (progress, self.algorithms[policy_id].updates)
            if not eager.enough:
                continue
            left = self._updates_left(policy_id, eager, eager.base, progress)
            if pays(left, eager.update_s):
                reason = f"{left:,} updates of {1e3 * eager.update_s:.2f} ms are left"
                self._begin(policy_id, reason)
                return  # one at a time: each is announced before it is slow

    def _updates_left(self, policy_id: str, eager: _Measure, base: tuple[float, int], progress: float) -> int:
        """Extrapolate from the updates that the run asked for per share of its budget, which pacing sets."""
        stop, updates = self.recipe.stop, self.algorithms[policy_id].updates
        spent = progress - base[0]
        left = (updates - base[1]) / spent * (1.0 - progress) if spent > 0.0 else 0.0
        if stop.updates:
            left = min(left, stop.updates - updates)
        if stop.wall_s:
            left = min(left, stop.wall_s / eager.update_s)
        return int(left)

    def _begin(self, policy_id: str, reason: str) -> None:
        enable(self.algorithms[policy_id], self._graph_updates)
        self._waiting.add(policy_id)
        self.notes.append(
            f"compiling the updates of {policy_id} ({reason}): the next one takes up to a minute"
        )

    def _first_compiled(self, policy_id: str, batch: TensorBatch, hparams: Mapping[str, float]) -> Update:
        from torch._dynamo.exc import TorchDynamoException  # loads the compiler: seconds, and only here

        self._waiting.discard(policy_id)
        algorithm = self.algorithms[policy_id]
        began = time.perf_counter()
        try:
            update = algorithm.update(batch, hparams)
        except TorchDynamoException as error:
            if self.recipe.learner.compile == "on":
                raise
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            self._back_to_eager(policy_id, f"they cannot be compiled: {reason}")
            return algorithm.update(batch, hparams)  # nothing had changed: only a whole state is taken over
        took = time.perf_counter() - began
        self.compile_s += took
        self._compiled[policy_id] = _Measure()
        self.notes.append(f"compiled the updates of {policy_id} in {took:.1f} s")
        return update

    def _judge(self, policy_id: str, compiled: _Measure) -> None:
        """Compare with eager where that was measured; from here on nothing is timed."""
        del self._compiled[policy_id]
        eager = self._eager.pop(policy_id, None)
        if eager is not None and compiled.update_s > eager.update_s:
            self._back_to_eager(policy_id, f"compiled ones take {1e3 * compiled.update_s:.2f} ms")

    def _back_to_eager(self, policy_id: str, reason: str) -> None:
        algorithm: Any = self.algorithms[policy_id]
        algorithm.fused = None
        self._eager.pop(policy_id, None)
        self.notes.append(f"the updates of {policy_id} stay eager: {reason}")
