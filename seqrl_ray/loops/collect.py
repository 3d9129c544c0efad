"""Collecting offline data: fragments in, whole episodes out to a dataset on disk.

Fragments come from the same rollouts that training uses, in this process or through Ray. An episode is
written once its last row is there; what has not ended when enough is collected is dropped, and so is what a
lost actor had begun.
Dims: P pieces of a fragment, R rows.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from seqrl_ray.data.writer import UNKNOWN_SEED, DatasetWriter
from seqrl_ray.loops.source import FragmentSource
from seqrl_ray.types import Array, GroupSpec
from seqrl_ray.types_env import EpisodeEnd, Fragment, Trajectory

Stream = tuple[str, int, int, int]
"""(writer, incarnation, slot, episode)."""


@dataclass
class Collector:
    """Puts fragments together to episodes, and writes them."""

    writer: DatasetWriter
    group: GroupSpec
    """As one actor has it: all its slots."""
    max_steps: int
    steps: int = 0
    """Decisions written."""
    _open: dict[Stream, list[Mapping[str, Array]]] = field(default_factory=dict)
    _seeds: dict[tuple[str, int], deque[EpisodeEnd]] = field(default_factory=lambda: defaultdict(deque))

    @property
    def done(self) -> bool:
        """Enough is collected."""
        return self.steps >= self.max_steps

    def take(self, actor: str, fragment: Fragment) -> None:
        """Write the episodes that this fragment completes."""
        for end in fragment.episodes:
            self._seeds[actor, end.env].append(end)
        for trajectory in fragment.trajectories:
            self._take(trajectory)

    def lost(self, actor: str) -> None:
        """Forget what a lost actor had begun."""
        for stream in [s for s in self._open if s[0] == actor]:
            del self._open[stream]
        for key in [k for k in self._seeds if k[0] == actor]:
            del self._seeds[key]

    def _take(self, trajectory: Trajectory) -> None:
        whole: list[tuple[int, Mapping[str, Array]]] = []
        stop = np.cumsum(trajectory.length)
        for p, (end, rows) in enumerate(zip(stop.tolist(), trajectory.length.tolist(), strict=True)):
            slot = int(trajectory.slot[p])
            stream = (trajectory.writer, trajectory.incarnation, slot, int(trajectory.episode[p]))
            piece = {name: column[end - rows : end] for name, column in trajectory.columns.items()}
            pieces = self._open.setdefault(stream, [])
            pieces.append(piece)
            if piece["final"][-1]:
                del self._open[stream]
                joined = {name: np.concatenate([part[name] for part in pieces]) for name in piece}
                whole.append((self._seed_of(trajectory.writer, slot, len(joined["final"]) - 1), joined))
        if whole:
            self._write(whole)

    def _seed_of(self, actor: str, slot: int, steps: int) -> int:
        """Return the seed of the episode a stream was; unknown where an environment's streams are many."""
        env = self.group.slots[slot].env
        if sum(s.env == env for s in self.group.slots) != 1 or not self._seeds[actor, env]:
            return UNKNOWN_SEED
        end = self._seeds[actor, env].popleft()
        return end.seed if end.steps == steps else UNKNOWN_SEED

    def _write(self, whole: list[tuple[int, Mapping[str, Array]]]) -> None:
        names = ["obs", "action", "reward", "terminated", "truncated"]
        names += ["legal"] if self.group.masked else []
        parts = [columns for _, columns in whole]
        self.writer.append_many(
            {name: np.concatenate([c[name][:-1] for c in parts]) for name in names},
            np.array([len(c["final"]) - 1 for c in parts]),
            np.stack([c["obs"][-1] for c in parts]),
            final_legal=np.stack([c["legal"][-1] for c in parts]) if self.group.masked else None,
            seeds=np.array([seed for seed, _ in whole]),
        )
        self.steps += sum(len(c["final"]) - 1 for c in parts)


def collect(
    collector: Collector,
    source: FragmentSource,
    *,
    heard: Callable[[int, int], None] = lambda steps, episodes: None,
) -> dict[str, Any]:
    """Take fragments until there is enough; returns what was collected.

    Args:
        collector: where they go.
        source: where they come from; already has the weights to act with.
        heard: called with (steps, episodes) after every poll.
    """
    while not collector.done:
        for actor, fragment in source.poll():
            if not collector.done:
                collector.take(actor, fragment)
        heard(collector.steps, collector.writer.episodes)
    return {"steps": collector.steps, "episodes": collector.writer.episodes}
