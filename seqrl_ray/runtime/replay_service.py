"""The replay service: shard actors, and what one of them is told and tells.

A shard server owns one `ReplayShard` per policy id. Actors call `insert`, the learner calls `exchange`:
priorities of earlier draws and global counts ride in, a draw and this shard's counts ride out. An insert
waits until pacing lets it in; an exchange that asks to hear of new items waits for them `PATIENCE_S` at most
and is then answered with the counts as they are. Shards do not know one another: the learner's
`runtime.remote_replay` tells each what the others counted. Between two exchanges a shard takes the others to
have inserted as much as it did itself, so that K shards do not each use the whole room of the band: the ratio
is off by at most the band and one burst of each other shard.

Every request names the learner's lineage epoch. A shard serves the highest it has seen; an older one belongs
to a learner that was replaced, and is answered without a write, a draw or a count.

Dims: M items drawn from one shard.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from seqrl_ray.loops.build import SHARDS, stream_seed
from seqrl_ray.loops.run_folder import LagCounter
from seqrl_ray.loops.trainer import make_pacing
from seqrl_ray.recipe import Recipe
from seqrl_ray.replay.pacing import Pacing
from seqrl_ray.replay.restore import restore
from seqrl_ray.replay.sampling import Mass
from seqrl_ray.replay.shard import ReplayShard
from seqrl_ray.runtime.turns import Source, Turns
from seqrl_ray.runtime.wire import pack, unpack
from seqrl_ray.types import Array, Batch, FloatArray, GroupSpec, ItemIds, SampleSpec
from seqrl_ray.types_env import Fragment, Trajectory

PATIENCE_S = 0.2
"""Longest time a call that waits for pacing is kept before it is answered anyway."""


@dataclass(frozen=True)
class Request:
    """What the learner tells and asks one shard."""

    policy_id: str
    epoch: int
    """Lineage of the learner that asks."""
    draws: tuple[int, ...]
    """Items wanted for each draw; () = only counts."""
    beta: float
    updates: int
    """Updates the learner has done: policy lag is counted against it."""
    inserted: int
    """Items inserted into all shards, as far as the learner knows."""
    heard: int
    """Those of `inserted` that are this shard's."""
    sampled: int
    """Items drawn from all shards, these draws included: nobody else knows the total."""
    max_priority: float
    written: tuple[tuple[ItemIds, FloatArray], ...] = ()
    """Priorities of earlier draws."""
    newer_than: int | None = None
    """Answer when more than this many items are inserted here, or after `PATIENCE_S`."""
    leads: bool = True
    """False: of a learner that draws its part of what another one has counted for all learners."""


@dataclass
class Counts:
    """What was inserted into one shard server since the run began."""

    env_steps: int = 0
    agent_steps: int = 0
    """Agent decisions stored (of a piece that was stored in part: at most as many as its rows)."""
    stale_rows: int = 0
    """Agent decisions dropped because of learner.max_policy_lag_updates."""
    other_epoch_rows: int = 0
    """Agent decisions made with weights of another lineage than the learner's: their lag is not known."""


@dataclass(frozen=True)
class Reply:
    """What one shard gives and tells."""

    batches: tuple[Batch | None, ...]  # of every draw, [1, M]; None where it took nothing from here
    mass: Mass
    inserted: int
    sampled: int
    env_steps: int
    agent_steps: int
    stale_priorities: int
    max_priority: float


def _arrays(batches: Iterable[Batch | None]) -> list[Array]:
    return [v for b in batches if b is not None for v in vars(b).values() if isinstance(v, np.ndarray)]


class ShardServer:
    """One shard of every policy; the runtime makes an asyncio Ray actor of it."""

    def __init__(
        self,
        recipe: Recipe,
        groups: Mapping[str, GroupSpec],
        specs: Mapping[str, SampleSpec],
        index: int,
        incarnation: int,
        folder: Path | None,
        state: Mapping[str, Any] | None,
        *,
        unpaced: Collection[str] = (),
    ) -> None:
        """Make the shards, filled from a checkpoint where one is given.

        Args:
            recipe: says capacity, sampler, pacing.
            groups: policy id -> spaces.
            specs: policy id -> items and view.
            index: number of this shard.
            incarnation: how often it was restarted: ids of an earlier life are stale.
            folder: `replay/` of a checkpoint that was saved with as many shards.
            state: what `save` gave for that checkpoint.
            unpaced: policies that learn nothing: nobody draws, so nothing may wait for a draw.
        """
        self.recipe, self.index = recipe, index
        self.shards = {
            p: make_shard(recipe, p, groups[p], specs[p], index, incarnation) for p in sorted(groups)
        }
        self.pacing = {
            p: make_pacing(recipe, specs[p], len(g.slots), paced=p not in unpaced) for p, g in groups.items()
        }
        self.counted = Counts()
        self.epochs: dict[str, int | None] = dict.fromkeys(groups)  # None: no learner has spoken yet
        self.updates = dict.fromkeys(groups, 0)
        self.lag = LagCounter()
        self._heard = dict.fromkeys(groups, 0)  # of the items inserted here, those the learner knows of
        self._moved = asyncio.Condition()
        self._saving = asyncio.Lock()
        self._inserting: list[object] = []  # inserts that wait or run, in order
        self._turns = Turns()
        if folder is not None and state is not None:
            for policy_id, shard in self.shards.items():
                restore([shard_folder(folder, policy_id, index)], [shard])
                self.pacing[policy_id].restore(state["pacing"][policy_id])
            self._heard = {p: pacing.inserted_here for p, pacing in self.pacing.items()}
            self.counted = Counts(**state["counted"])

    async def pid(self) -> int:
        """Process id; answered once the shard is filled."""
        return os.getpid()

    async def counts(self) -> tuple[int, int]:
        """Return (env steps, agent steps) inserted."""
        return self.counted.env_steps, self.counted.agent_steps

    async def writer_gone(self, writer: str, incarnation: int) -> None:
        """Close a dead actor's open streams; `incarnation` is the one that died."""
        for shard in self.shards.values():
            shard.writer_gone(writer)
        async with self._moved:
            self._turns.end(writer, incarnation)
            self._moved.notify_all()

    async def insert(self, message: Any, source: Source, number: int) -> int:
        """Store a fragment once pacing lets it in; return the env steps this shard has taken so far.

        A fragment that overtook an earlier one of its stream would make the earlier one's rows look like
        duplicates: so it waits for the earlier one.

        Args:
            message: a packed Fragment.
            source: who sends it; see `seqrl_ray.runtime.turns`.
            number: how many fragments this source has sent here before.
        """
        fragment: Fragment = unpack(message)
        policies = {t.policy_id for t in fragment.trajectories}
        turn = object()
        async with self._moved:
            self._turns.open(source)
            self._moved.notify_all()  # earlier sources of this writer wait for nothing any more
            while not self._turns.may_take(source, number):
                await self._moved.wait()
            self._inserting.append(turn)
            self._turns.take(source, number)
            try:
                while self._inserting[0] is not turn or not all(self._may_insert(p) for p in policies):
                    await self._moved.wait()
                taken = [self._insert(t) for t in fragment.trajectories]
                if all(taken):
                    self.counted.env_steps += fragment.env_steps
            finally:
                self._inserting.remove(turn)
                self._moved.notify_all()
        return self.counted.env_steps

    def _may_insert(self, policy_id: str) -> bool:
        """Whether a burst fits the band if the other shards inserted as much as this one since the learner
        heard of it.
        """
        pacing = self.pacing[policy_id]
        unheard = pacing.inserted_here - self._heard[policy_id]
        return pacing.may_insert(pacing.burst_items + (self.recipe.replay.shards - 1) * unheard)

    def _insert(self, trajectory: Trajectory) -> bool:
        """Store and count one trajectory. Returns False if its steps were counted before, or its writer is
        dead.
        """
        policy_id, steps = trajectory.policy_id, trajectory.agent_steps
        limit = self.recipe.learner.max_policy_lag_updates
        epoch, counter = trajectory.weights
        lag = max(0, self.updates[policy_id] - counter)
        same = epoch == self.epochs[policy_id]
        foreign = not same and self.epochs[policy_id] is not None
        if foreign:
            self.counted.other_epoch_rows += steps
        if limit and (foreign or (same and lag > limit)):
            self.counted.stale_rows += steps
            return True
        if same:
            self.lag.add(lag)
        reply = self.shards[policy_id].insert(trajectory)
        self.pacing[policy_id].count_inserted(reply.items)
        self.counted.agent_steps += min(steps, reply.rows)
        return reply.rows > 0 or reply.duplicate_rows + reply.refused_rows == 0

    async def exchange(self, message: bytes) -> Any:
        """Take priorities and counts, give draws and counts."""
        request: Request = unpack(message)
        policy_id = request.policy_id
        shard, pacing = self.shards[policy_id], self.pacing[policy_id]
        batches: tuple[Batch | None, ...] = (None,) * len(request.draws)
        stale = 0
        async with self._moved:
            if request.epoch >= (self.epochs[policy_id] or 0):
                if request.leads:
                    self.epochs[policy_id], self.updates[policy_id] = request.epoch, request.updates
                    self._heard[policy_id] = request.heard
                    sampled_before = request.sampled - sum(request.draws)
                    pacing.elsewhere(request.inserted - request.heard, sampled_before - pacing.sampled_here)
                stale = sum(shard.update_priorities(ids, priorities) for ids, priorities in request.written)
                shard.raise_max_priority(request.max_priority)
                self._moved.notify_all()
                if request.newer_than is not None and pacing.inserted_here <= request.newer_than:
                    await self._wait_for_more(pacing, request.newer_than)
                if shard.items:
                    batches = tuple(
                        shard.sample(1, items, beta=request.beta) if items else None
                        for items in request.draws
                    )
                    count = pacing.count_sampled if request.leads else pacing.count_shared
                    count(sum(request.draws))
            reply = Reply(
                batches,
                shard.mass,
                pacing.inserted_here,
                pacing.sampled_here,
                self.counted.env_steps,
                self.counted.agent_steps,
                stale,
                shard.max_priority,
            )
        return pack(reply, _arrays(batches))

    async def _wait_for_more(self, pacing: Pacing, newer_than: int) -> None:
        """Let inserts in until there are more than `newer_than` items; holds `_moved` before and after."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                while pacing.inserted_here <= newer_than:
                    await self._moved.wait()
        except TimeoutError:
            return

    async def stats(self) -> dict[str, Any]:
        """Return what the shards hold and did, and how long pacing held the actors back."""
        row: dict[str, Any] = {}
        for policy_id, shard in self.shards.items():
            row.update({f"{policy_id}/replay{self.index}_{k}": v for k, v in vars(shard.stats()).items()})
            row[f"{policy_id}/replay{self.index}_insert_wait_s"] = (
                self.pacing[policy_id].report().insert_wait_s
            )
        row[f"queued_fragments{self.index}"] = len(self._inserting)
        return {"row": row, "lag": dict(self.lag.counts), "counted": vars(self.counted)}

    async def save(self, folder: Path) -> dict[str, Any]:
        """Write snapshots under `folder` between requests; return the state that belongs beside them.

        A snapshot that is still being written, for a checkpoint given up meanwhile, is finished first.
        """
        async with self._saving:
            state = {
                "pacing": {p: pacing.state() for p, pacing in self.pacing.items()},
                "counted": dict(vars(self.counted)),
            }
            begun = [s.begin_snapshot(shard_folder(folder, p, self.index)) for p, s in self.shards.items()]
            for snapshot in begun:
                while not snapshot.write_slice():
                    await asyncio.sleep(0)  # requests go first
        return state


def make_shard(
    recipe: Recipe, policy_id: str, group: GroupSpec, spec: SampleSpec, index: int, incarnation: int
) -> ReplayShard:
    """Make shard `index` of one policy, empty."""
    seed = stream_seed(recipe, SHARDS, index, sorted(recipe.policies).index(policy_id))
    return ReplayShard(group, spec, recipe.replay, seed, index=index, incarnation=incarnation)


def shard_folder(replay: Path, policy_id: str, index: int) -> Path:
    """Where a checkpoint keeps one shard's snapshot."""
    return replay / policy_id / f"shard-{index:04d}"


def saved_shards(replay: Path, policy_id: str) -> list[Path]:
    """Snapshots of one policy in a checkpoint, in order of shard."""
    return sorted((replay / policy_id).glob("shard-*"))


def reshard(
    recipe: Recipe, groups: Mapping[str, GroupSpec], specs: Mapping[str, SampleSpec], replay: Path, out: Path
) -> None:
    """Spread a checkpoint's replay over the recipe's number of shards and write it under `out`.

    One process holds the whole store while it does, once per change of the number of shards.
    """
    for policy_id, group in groups.items():
        shards = [
            make_shard(recipe, policy_id, group, specs[policy_id], i, 0) for i in range(recipe.replay.shards)
        ]
        restore(saved_shards(replay, policy_id), shards)
        for i, shard in enumerate(shards):
            shard.begin_snapshot(shard_folder(out, policy_id, i)).write_all()


def spread(states: Mapping[str, Any], shards: int) -> dict[str, Any]:
    """Give the counts of the saved shards to shard 0 of a new number of shards: only their sums matter."""
    counted = Counts()
    pacing: dict[str, Any] = {}
    for state in states.values():
        counted = Counts(**{k: v + state["counted"][k] for k, v in vars(counted).items()})
        for policy_id, saved in state["pacing"].items():
            sums = pacing.setdefault(policy_id, {**saved, "inserted": 0, "sampled": 0, "elsewhere": [0, 0]})
            sums["inserted"] += saved["inserted"]
            sums["sampled"] += saved["sampled"]
    empty = {p: {**s, "inserted": 0, "sampled": 0} for p, s in pacing.items()}
    first = {"pacing": pacing, "counted": vars(counted)}
    other = {"pacing": empty, "counted": vars(Counts())}
    return {str(i): first if i == 0 else other for i in range(shards)}
