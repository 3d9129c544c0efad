"""The replay service: shard actors, and one policy's shards seen from the learner.

A shard server owns one `ReplayShard` per policy id. Actors call `insert`, the learner calls `exchange`:
priorities of earlier draws and global counts ride in, a draw and this shard's counts ride out. Both are
answered late rather than refused when pacing asks for patience, so nobody polls. Shards do not know one
another: the learner tells each what the others counted, and draws from each in proportion to its mass.

Dims: U updates, B batch, K shards, M items of one shard's part.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayActorError

from seqrl_ray.loops.build import SHARDS, stream_seed
from seqrl_ray.loops.run_folder import LagCounter
from seqrl_ray.loops.trainer import make_pacing
from seqrl_ray.recipe import Recipe
from seqrl_ray.replay.pacing import Pacing
from seqrl_ray.replay.restore import restore
from seqrl_ray.replay.sampling import Mass, merge, split_draw
from seqrl_ray.replay.shard import ReplayShard
from seqrl_ray.runtime.wire import pack, unpack
from seqrl_ray.types import Array, Batch, FloatArray, Fragment, GroupSpec, ItemIds, SampleSpec

PATIENCE_S = 0.2
"""Longest time a call that waits for pacing is kept before it is answered anyway."""


@dataclass(frozen=True)
class Request:
    """What the learner tells and asks one shard."""

    policy_id: str
    draw: int
    """Items wanted; 0 = only counts."""
    beta: float
    updates: int
    """Updates the learner has done: policy lag is counted against it."""
    inserted_elsewhere: int
    sampled_elsewhere: int
    max_priority: float
    written: tuple[tuple[ItemIds, FloatArray], ...] = ()
    """Priorities of earlier draws."""
    newer_than: int | None = None
    """Answer when more than this many items are inserted here, or after `PATIENCE_S`."""


@dataclass(frozen=True)
class Reply:
    """What one shard gives and tells."""

    batch: Batch | None  # [1, M]
    mass: Mass
    inserted: int
    sampled: int
    env_steps: int
    agent_steps: int
    stale_priorities: int
    max_priority: float


def _arrays(batch: Batch | None) -> list[Array]:
    return [] if batch is None else [v for v in vars(batch).values() if isinstance(v, np.ndarray)]


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
        """
        self.recipe, self.index = recipe, index
        self.shards = {
            p: make_shard(recipe, p, groups[p], specs[p], index, incarnation) for p in sorted(groups)
        }
        self.pacing = {p: make_pacing(recipe, specs[p], len(g.slots)) for p, g in groups.items()}
        self.env_steps = self.agent_steps = 0
        self.updates = dict.fromkeys(groups, 0)
        self.lag = LagCounter()
        self._moved = asyncio.Condition()
        if folder is not None and state is not None:
            for policy_id, shard in self.shards.items():
                restore([shard_folder(folder, policy_id, index)], [shard])
                self.pacing[policy_id].restore(state["pacing"][policy_id])
            self.env_steps, self.agent_steps = int(state["env_steps"]), int(state["agent_steps"])

    async def pid(self) -> int:
        """Process id; answered once the shard is filled."""
        return os.getpid()

    async def counts(self) -> tuple[int, int]:
        """Return (env steps, agent steps) inserted."""
        return self.env_steps, self.agent_steps

    async def writer_gone(self, writer: str) -> None:
        """Close a dead actor's open streams."""
        for shard in self.shards.values():
            shard.writer_gone(writer)

    async def insert(self, message: Any) -> int:
        """Store a fragment once pacing lets it in; return the items it released."""
        fragment: Fragment = unpack(message)
        policies = [t.policy_id for t in fragment.trajectories]
        async with self._moved:
            while not all(self.pacing[p].may_insert() for p in policies):
                await self._moved.wait()
            items = 0
            limit = self.recipe.learner.max_policy_lag_updates
            for trajectory in fragment.trajectories:
                lag = max(0, self.updates[trajectory.policy_id] - trajectory.weights[1])
                if limit and lag > limit:
                    continue
                self.lag.add(lag)
                reply = self.shards[trajectory.policy_id].insert(trajectory)
                self.pacing[trajectory.policy_id].count_inserted(reply.items)
                self.agent_steps += trajectory.agent_steps
                items += reply.items
            self.env_steps += fragment.env_steps
            self._moved.notify_all()
        return items

    async def exchange(self, message: bytes) -> Any:
        """Take priorities and counts, give a draw and counts."""
        request: Request = unpack(message)
        shard, pacing = self.shards[request.policy_id], self.pacing[request.policy_id]
        async with self._moved:
            pacing.elsewhere(request.inserted_elsewhere, request.sampled_elsewhere)
            self.updates[request.policy_id] = request.updates
            self._moved.notify_all()
            if request.newer_than is not None and pacing.inserted_here <= request.newer_than:
                await self._wait_for_more(pacing, request.newer_than)
            stale = sum(shard.update_priorities(ids, priorities) for ids, priorities in request.written)
            shard.raise_max_priority(request.max_priority)
            batch = None
            if request.draw and shard.items:
                batch = shard.sample(1, request.draw, beta=request.beta)
                pacing.count_sampled(request.draw)
                self._moved.notify_all()
            reply = Reply(
                batch,
                shard.mass,
                pacing.inserted_here,
                pacing.sampled_here,
                self.env_steps,
                self.agent_steps,
                stale,
                shard.max_priority,
            )
        return pack(reply, _arrays(batch))

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
        return {"row": row, "lag": dict(self.lag.counts)}

    async def save(self, folder: Path) -> dict[str, Any]:
        """Write snapshots under `folder` between requests; return the state that belongs beside them."""
        state = {
            "pacing": {p: pacing.state() for p, pacing in self.pacing.items()},
            "env_steps": self.env_steps,
            "agent_steps": self.agent_steps,
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


@dataclass
class _Draw:
    """One draw on its way: a part from every shard."""

    calls: dict[Any, int]  # call -> shard
    share: dict[int, float]
    items: int
    total_items: int
    beta: float
    parts: dict[int, Batch] = field(default_factory=dict)


@dataclass
class _Known:
    """What the learner knows of one shard."""

    handle: Any
    mass: Mass = field(default_factory=lambda: Mass(0.0, 0, 0))
    inserted: int = 0
    env_steps: int = 0
    agent_steps: int = 0
    sampled: int = 0
    written: list[tuple[ItemIds, FloatArray]] = field(default_factory=list)


class RemoteReplay:
    """One policy's shards, seen from the learner: global draws, prefetched, paced over all shards."""

    def __init__(self, recipe: Recipe, policy_id: str, pacing: Pacing, seed: int) -> None:
        self.recipe, self.policy_id, self.pacing = recipe, policy_id, pacing
        self.updates_per_call, self.batch_size = recipe.learner.updates_per_call, recipe.learner.batch_size
        self.shards: dict[int, _Known] = {}
        self.lost: set[int] = set()
        self.stale_priorities = 0
        self._gone = {"inserted": 0, "env_steps": 0, "agent_steps": 0}  # counted by shards that died since
        self._rng = np.random.default_rng(seed)
        self._draws: list[_Draw] = []
        self._asking: dict[Any, int] = {}
        self._max_priority = 1.0

    def use(self, handles: Mapping[int, Any]) -> None:
        """Talk to these shards; what a lost one had counted stays counted."""
        new = {i: h for i, h in handles.items() if i not in self.shards or self.shards[i].handle != h}
        for index, handle in new.items():
            old = self.shards.get(index)
            if old is not None:
                self._abandon(index)
                for name in self._gone:
                    self._gone[name] += getattr(old, name)
            self.shards[index] = _Known(handle)
            self.lost.discard(index)
            try:
                reply: Reply = unpack(ray.get(handle.exchange.remote(self._request(index, 0, 0.0, 0, None))))
            except RayActorError:
                self.lost.add(index)
                continue
            self._hear(index, reply)
            self.shards[index].sampled = reply.sampled
            if old is not None:
                for name in self._gone:
                    self._gone[name] -= getattr(reply, name)
        if new:  # a learner restored from a checkpoint has forgotten draws that the shards have made
            drawn = sum(s.sampled for s in self.shards.values())
            self.pacing.count_sampled(max(0, drawn - self.pacing.sampled))

    @property
    def env_steps(self) -> int:
        """Vector-slot steps inserted into all shards, those that died included."""
        return self._gone["env_steps"] + sum(s.env_steps for s in self.shards.values())

    @property
    def agent_steps(self) -> int:
        """Agent steps likewise."""
        return self._gone["agent_steps"] + sum(s.agent_steps for s in self.shards.values())

    @property
    def inserted(self) -> int:
        """Items likewise."""
        return self._gone["inserted"] + sum(s.inserted for s in self.shards.values())

    def pump(self, beta: float, updates: int) -> None:
        """Ask for draws while pacing and prefetch allow; otherwise ask to be told of new items. Never
        waits.
        """
        alive = [i for i in self.shards if i not in self.lost]
        while len(self._draws) < self.recipe.learner.prefetch and self.pacing.may_sample():
            masses = [self.shards[i].mass.mass for i in alive]
            if not sum(masses) > 0.0:
                break
            self._ask_draw(alive, masses, beta, updates)
        if not self._draws:
            waiting = set(self._asking.values())
            for index in alive:
                if index not in waiting:
                    message = self._request(index, 0, beta, updates, self.shards[index].inserted)
                    self._asking[self.shards[index].handle.exchange.remote(message)] = index

    def _ask_draw(self, alive: Sequence[int], masses: Sequence[float], beta: float, updates: int) -> None:
        items = self.updates_per_call * self.batch_size
        counts = split_draw(masses, items, self._rng)
        total = sum(masses)
        self.pacing.count_sampled(items)
        calls: dict[Any, int] = {}
        for index, count in zip(alive, counts.tolist(), strict=True):
            known = self.shards[index]
            message = self._request(index, count, beta, updates, None)
            known.sampled += count
            calls[known.handle.exchange.remote(message)] = index
        share = {index: mass / total for index, mass in zip(alive, masses, strict=True)}
        self._draws.append(_Draw(calls, share, items, sum(self.shards[i].mass.items for i in alive), beta))

    def _request(self, index: int, draw: int, beta: float, updates: int, newer_than: int | None) -> bytes:
        known = self.shards[index]
        written, known.written = tuple(known.written), []
        request = Request(
            self.policy_id,
            draw,
            beta,
            updates,
            self.inserted - known.inserted,
            self.pacing.sampled - known.sampled,
            self._max_priority,
            written,
            newer_than,
        )
        message: bytes = pack(request, [])
        return message

    def calls(self) -> list[Any]:
        """Every call on its way."""
        return [*self._asking, *(call for draw in self._draws for call in draw.calls)]

    def settle(self, ready: Sequence[Any]) -> None:
        """Take the answers of calls that are ready."""
        for call in ready:
            owner = next((d for d in self._draws if call in d.calls), None)
            if owner is None and call not in self._asking:
                continue  # given up while this list of ready calls was gone through
            index = self._asking.pop(call) if owner is None else owner.calls.pop(call)
            try:
                reply: Reply = unpack(ray.get(call))
            except RayActorError:
                self.lost.add(index)
                self._abandon(index)
                continue
            if index in self.lost:
                continue
            self._hear(index, reply)
            if owner is not None and reply.batch is not None:
                owner.parts[index] = reply.batch

    def _hear(self, index: int, reply: Reply) -> None:
        known = self.shards[index]
        if reply.mass.version >= known.mass.version:
            known.mass = reply.mass
        known.inserted = max(known.inserted, reply.inserted)
        known.env_steps = max(known.env_steps, reply.env_steps)
        known.agent_steps = max(known.agent_steps, reply.agent_steps)
        self.stale_priorities += reply.stale_priorities
        self._max_priority = max(self._max_priority, reply.max_priority)
        self.pacing.elsewhere(self.inserted, 0)

    def _abandon(self, index: int) -> None:
        """Give up draws that a dead shard has a part in: their items count as not drawn."""
        self._asking = {call: i for call, i in self._asking.items() if i != index}
        for draw in [d for d in self._draws if index in d.share]:
            self._draws.remove(draw)
            self.pacing.count_sampled(-draw.items)

    def next_batch(self) -> Batch | None:
        """Return the oldest draw if all its parts have come."""
        if not self._draws or self._draws[0].calls:
            return None
        draw = self._draws.pop(0)
        indices = list(draw.parts)
        missing = draw.items - sum(len(p.ids) for p in draw.parts.values())
        if missing:  # a shard lost its last item between the snapshot of masses and the draw
            self.pacing.count_sampled(-draw.items)
            return None
        return merge(
            [draw.parts[i] for i in indices],
            [draw.share[i] for i in indices],
            updates=self.updates_per_call,
            batch=self.batch_size,
            total_items=draw.total_items,
            beta=draw.beta,
            rng=self._rng,
        )

    def write_back(self, ids: ItemIds, priorities: FloatArray) -> None:
        """Keep priorities for the next request to each shard."""
        flat = np.asarray(priorities, np.float32).reshape(-1)
        for index, known in self.shards.items():
            mine = ids.shard == index
            if mine.any():
                part = replace(ids, shard=ids.shard[mine], row=ids.row[mine], generation=ids.generation[mine])
                known.written.append((part, flat[mine]))

    def counts(self) -> dict[int, int]:
        """Return shard -> env steps known to be in it."""
        return {i: s.env_steps for i, s in self.shards.items()}
