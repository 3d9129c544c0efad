"""Where a trainer's fragments come from: a rollout in this process, or (in `runtime`) actors elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from seqrl_ray.loops.rollout import Rollout
from seqrl_ray.types_env import Fragment, Weights


class FragmentSource(Protocol):
    """Where fragments come from: a rollout in this process, or actors elsewhere."""

    @property
    def overlaps(self) -> bool:
        """Whether fragments are made while this process does something else."""
        ...

    def poll(self, *, wait: bool = True) -> Sequence[tuple[str, Fragment]]:
        """Return (actor name, fragment) of what is ready; waits until there is something, or a short time has
        passed, unless told not to.
        """
        ...

    def offer(self, weights: Mapping[str, Weights]) -> None:
        """Use these weights for fragments begun from now on."""
        ...


class LocalSource:
    """A rollout in this process; each poll makes one fragment."""

    overlaps = False

    def __init__(self, rollout: Rollout) -> None:
        self.rollout = rollout

    def poll(self, *, wait: bool = True) -> Sequence[tuple[str, Fragment]]:
        return [(self.rollout.writer, self.rollout.fragment())]

    def offer(self, weights: Mapping[str, Weights]) -> None:
        for policy_weights in weights.values():
            self.rollout.load(policy_weights)
