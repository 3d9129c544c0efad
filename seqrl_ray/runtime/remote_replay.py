"""One policy's replay shards, seen from the learner: one store, drawn from as a whole.

The learner draws from every shard in proportion to its mass, so that the number of shards changes no
probability; it asks ahead, and priorities and counts travel with the next request. A shard that dies is left
out until the supervisor hands over its replacement.

Dims: U updates, B batch, K shards, M items of one shard's part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import ray
from ray.exceptions import ObjectLostError, RayActorError

from seqrl_ray.recipe import Recipe
from seqrl_ray.replay.pacing import Pacing
from seqrl_ray.replay.sampling import Mass, merge, split_draw
from seqrl_ray.runtime.replay_service import Reply, Request
from seqrl_ray.runtime.wire import pack, unpack
from seqrl_ray.types import Batch, FloatArray, ItemIds

GONE = (RayActorError, ObjectLostError)
"""What a call ends with when its process, or the node that held its answer, has died."""


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

    def __init__(self, recipe: Recipe, policy_id: str, pacing: Pacing, seed: int, *, epoch: int = 0) -> None:
        """Begin without shards.

        Args:
            recipe: says how much is drawn at once, and how far ahead.
            policy_id: whose shards.
            pacing: counts what is drawn from all shards together.
            seed: of the split of draws over shards.
            epoch: the learner's lineage; shards serve the highest only.
        """
        self.recipe, self.policy_id, self.pacing, self.epoch = recipe, policy_id, pacing, epoch
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
        """Talk to these shards; what a lost one had counted stays counted.

        A shard that was found lost and is handed over again was looked at meanwhile and lives.
        """
        new = {
            i: h
            for i, h in handles.items()
            if i not in self.shards or self.shards[i].handle != h or i in self.lost
        }
        for index, handle in new.items():
            old = self.shards.get(index)
            replaced = old is not None and old.handle != handle
            if old is not None:
                self._abandon(index)
            if old is None or replaced:
                self.shards[index] = _Known(handle)
            if old is not None and replaced:
                for name in self._gone:
                    self._gone[name] += getattr(old, name)
            self.lost.discard(index)
            try:
                reply: Reply = unpack(ray.get(handle.exchange.remote(self._request(index, 0, 0.0, 0, None))))
            except GONE:
                self.lost.add(index)
                continue
            self._hear(index, reply)
            if replaced:
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
        """Ask for draws while pacing and prefetch allow; otherwise `listen`. Never waits."""
        alive = self._alive()
        while len(self._draws) < self.recipe.learner.prefetch and self.pacing.may_sample():
            masses = [self.shards[i].mass.mass for i in alive]
            if not sum(masses) > 0.0:
                break
            self._ask_draw(alive, masses, beta, updates)
        if not self._draws:
            self.listen(beta, updates)

    def listen(self, beta: float, updates: int) -> None:
        """Ask every shard to tell of new items, unless it has been asked. Never waits."""
        waiting = set(self._asking.values())
        for index in self._alive():
            if index not in waiting:
                message = self._request(index, 0, beta, updates, self.shards[index].inserted)
                self._asking[self.shards[index].handle.exchange.remote(message)] = index

    def _alive(self) -> list[int]:
        return [i for i in self.shards if i not in self.lost]

    def _ask_draw(self, alive: Sequence[int], masses: Sequence[float], beta: float, updates: int) -> None:
        items = self.updates_per_call * self.batch_size
        counts = split_draw(masses, items, self._rng)
        total = sum(masses)
        self.pacing.count_sampled(items)
        calls: dict[Any, int] = {}
        for index, count in zip(alive, counts.tolist(), strict=True):
            known = self.shards[index]
            message = self._request(index, count, beta, updates, None)
            calls[known.handle.exchange.remote(message)] = index
        share = {index: mass / total for index, mass in zip(alive, masses, strict=True)}
        self._draws.append(_Draw(calls, share, items, sum(self.shards[i].mass.items for i in alive), beta))

    def _request(self, index: int, draw: int, beta: float, updates: int, newer_than: int | None) -> bytes:
        known = self.shards[index]
        written, known.written = tuple(known.written), []
        request = Request(
            self.policy_id,
            self.epoch,
            draw,
            beta,
            updates,
            self.inserted,
            known.inserted,
            self.pacing.sampled,
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
            except GONE:
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
        known.sampled = max(known.sampled, reply.sampled)
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
        """Return shard -> env steps known to be in it; of a lost one, those it had when last heard."""
        return {i: s.env_steps for i, s in self.shards.items()}
