"""Compiled updates: several steps of a `FlatLearner` in one graph, a few times faster than eager on a small
network.

The graph is `FlatLearner.steps` itself, unrolled over a fixed number of minibatches: the same equations in
the same order as the eager path. Compiling takes tens of seconds the first time and about one afterwards,
because the generated code is kept in the user's cache folder between runs; `pays` says when that is worth it.
Dims: k updates in one graph, B batch, P parameters.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seqrl_ray.algorithms.flat_learner import FlatLearner, LearnedState, Progress, change, unbind
from seqrl_ray.errors import RecipeError

DEFAULT_UPDATES = 4
"""A longer graph runs hardly faster and compiles longer."""

COMPILE_S = 30.0
"""What a first compilation takes on a slow core: an upper estimate, to keep `pays` honest."""

SPEEDUP = 2.5
"""What a compiled update gains on a small network: a lower estimate."""


def pays(updates_left: int, eager_s: float) -> bool:
    """Return whether compiling now shortens the run, with a margin of two.

    Args:
        updates_left: updates the run will still do.
        eager_s: measured seconds of one eager update.
    """
    return updates_left * eager_s * (1.0 - 1.0 / SPEEDUP) > 2.0 * COMPILE_S


def compiler() -> str | None:
    """Return the C++ compiler that compiled CPU updates need, or None where there is none."""
    candidates = [os.environ.get("CXX", ""), "g++", "clang++", "c++"]
    return next((found for name in candidates if name and (found := shutil.which(name))), None)


def enable(algorithm: Any, updates: int = DEFAULT_UPDATES) -> None:
    """Let `algorithm.update` take `updates` steps at a time in one compiled graph; the first call compiles.

    Args:
        algorithm: a `FlatLearner`.
        updates: >= 1; what is left over in a call is done eagerly.
    Raises: RecipeError: the algorithm has no steps to compile, or there is no C++ compiler for a CPU graph.
    """
    if not isinstance(algorithm, FlatLearner) or not algorithm.compiles:
        raise RecipeError(
            f'learner.compile="on" does not fit {type(algorithm).__name__}: it has no gradient steps that '
            'one graph could take. Set learner.compile="off".'
        )
    if algorithm.device.type == "cpu" and compiler() is None:
        raise RecipeError(
            'learner.compile="on" needs a C++ compiler and none of $CXX, g++, clang++, c++ is on PATH: '
            'updates cannot be compiled. Install one, or set learner.compile="auto" or "off".'
        )
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "seqrl-ray" / "inductor"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache))
    algorithm.fused = CompiledSteps(algorithm, updates)


class CompiledSteps:
    """`FlatLearner.steps` over `updates` minibatches as one graph."""

    def __init__(self, algorithm: FlatLearner[Any], updates: int) -> None:
        self.updates = updates
        self._device = algorithm.device
        # One compile process: a pool of them costs more to start than these small kernels cost to build.
        options: dict[str, Any] = {"compile_threads": 1}
        if algorithm.device.type == "cpu":
            options["cpp_wrapper"] = True

        def steps(state: LearnedState, batch: Any, scalars: Tensor) -> Progress:
            return algorithm.steps(state, unbind(batch, updates), scalars.unbind(0), algorithm.gradients)

        self._steps = torch.compile(steps, fullgraph=True, dynamic=False, options=options)

    def __call__(self, state: LearnedState, batch: Any, scalars: Sequence[Sequence[float]]) -> Progress:
        """Take `updates` steps; see `FlatLearner.steps`. `batch` has leading dimensions [k, B]."""
        table = torch.tensor(scalars, dtype=torch.float32, device=self._device)  # [k, 5]
        progress: Progress = self._steps(state, change(batch, _contiguous), table)
        return progress


def _contiguous(column: Tensor) -> Tensor:
    """Strides are part of what a graph is compiled for."""
    return column.contiguous()
