"""The learner: every policy's algorithm, its schedules and its weight versions. Knows no replay, no actor, no
Ray.

It is handed numpy batches (by whoever wires it), turns them into device tensors, updates, and gives
priorities back.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from seqrl_ray.algorithms.contract import Algorithm
from seqrl_ray.algorithms.flat_learner import FlatLearner, Gradients
from seqrl_ray.errors import CheckpointError
from seqrl_ray.loops.build import algorithms
from seqrl_ray.loops.compiling import Compiling
from seqrl_ray.loops.feed import feed
from seqrl_ray.loops.parts import Part, check_sharing, with_own_draws
from seqrl_ray.recipe import Recipe
from seqrl_ray.types import Batch, GroupSpec
from seqrl_ray.types_env import Weights


class Learner:
    """Takes gradient steps for all policies of a run."""

    def __init__(self, recipe: Recipe, groups: Mapping[str, GroupSpec], *, device: str = "cpu") -> None:
        """Make the algorithms.

        Args:
            recipe: the run.
            groups: policy id -> its slots and spaces.
            device: torch device of parameters and batches; auto = CUDA where there is one.
        Raises: RecipeError: `learner.compile` is on and cannot be, or `learner.count` learners cannot share
            the batches of these algorithms.
        """
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.recipe, self.device = recipe, device
        self.algorithms: dict[str, Algorithm] = algorithms(recipe, groups, device=device)
        check_sharing(self.algorithms, recipe.learner.count)
        self.part = Part()
        self.compiling = Compiling(recipe, self.algorithms)
        self.epoch = 0
        self._published: dict[str, Weights] = {}
        self._sums: dict[str, float] = defaultdict(float)
        self._counts: dict[str, int] = defaultdict(int)

    @property
    def updates(self) -> int:
        """Updates of all policies together."""
        return sum(a.updates for a in self.algorithms.values())

    def share(self, part: Part, add_up: Callable[[Gradients], Gradients]) -> None:
        """Learn from a part of every minibatch from now on, with learners whose parts are the rest.

        Args:
            part: which one.
            add_up: returns the sum over all learners; every one calls it once per update, in the same order.
        """
        self.part = part
        for algorithm in self.algorithms.values():
            if isinstance(algorithm, FlatLearner):
                algorithm.add_up = add_up

    def update(self, policy_id: str, batch: Batch, progress: float) -> NDArray[np.float32]:
        """Take U updates on `batch`.

        Args:
            policy_id: whose batch it is.
            batch: numpy arrays with leading dimensions [U, B]; of a part, its own rows.
            progress: share of the run's budget that is spent, for schedules.
        Returns: priorities [U, B].
        """
        algorithm = self.algorithms[policy_id]
        tensors, hparams = feed(batch, self.device), algorithm.hparams(progress)
        if isinstance(algorithm, FlatLearner):
            tensors = with_own_draws(algorithm, tensors, self.part)
        update = self.compiling.update(policy_id, tensors, hparams)
        for name, value in update.metrics.items():
            self._sums[f"{policy_id}/{name}"] += value
            self._counts[f"{policy_id}/{name}"] += 1
        return update.priorities

    def weights(self, policy_id: str, progress: float) -> Weights:
        """Return one policy's acting parameters with their version; copied once per version, never written
        to.
        """
        algorithm = self.algorithms[policy_id]
        last = self._published.get(policy_id)
        if last is not None and last.version == (self.epoch, algorithm.updates):
            return replace(last, progress=progress)
        weights = Weights(policy_id, self.epoch, algorithm.updates, algorithm.weights(), progress)
        self._published[policy_id] = weights
        return weights

    def all_weights(self, progress: float) -> dict[str, Weights]:
        """Return every policy's weights."""
        return {policy_id: self.weights(policy_id, progress) for policy_id in self.algorithms}

    def judged_weights(self, progress: float) -> dict[str, Weights]:
        """Return what every policy is judged with: its acting parameters, or an average of them."""
        return {
            policy_id: Weights(policy_id, self.epoch, a.updates, a.judged_weights(), progress)
            for policy_id, a in self.algorithms.items()
        }

    def metrics(self) -> dict[str, float]:
        """Return the means of the updates' metrics since the last call, named `<policy>/<metric>`."""
        means = {name: self._sums[name] / self._counts[name] for name in self._sums}
        self._sums.clear()
        self._counts.clear()
        size = sum(weights.flat.nbytes for weights in self._published.values())
        return {**means, "compile_s": self.compiling.compile_s, "weights_bytes": size}

    def state(self) -> dict[str, Any]:
        """Everything a later learner needs to go on bit for bit: arrays and plain values."""
        return {
            "epoch": self.epoch,
            "policies": {
                policy_id: {"learned": a.learned(), "private": a.private(), "acting": a.judged_weights()}
                for policy_id, a in self.algorithms.items()
            },
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over a saved state.

        Raises: CheckpointError: it is of other policies, or of networks of another shape.
        """
        if set(state["policies"]) != set(self.algorithms):
            raise CheckpointError(
                f"checkpoint has policies {sorted(state['policies'])}, the recipe has "
                f"{sorted(self.algorithms)}: "
                "their weights cannot be matched. Use the recipe the run was started with."
            )
        self.epoch = int(state["epoch"])
        self._published.clear()
        for policy_id, saved in state["policies"].items():
            self.algorithms[policy_id].load_learned(saved["learned"])
            self.algorithms[policy_id].load_private(saved["private"])
