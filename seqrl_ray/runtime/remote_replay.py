"""One policy's replay shards, seen from the learner: one store, drawn from as a whole.

The learner draws from every shard in proportion to its mass, so that the number of shards changes no
probability; it asks ahead, and priorities and counts travel with the next request. A shard that dies is left
out until the supervisor hands over its replacement.

Several learners each draw their part of every minibatch. The first one leads: its pacing counts whole
minibatches and says when they are drawn; the others draw as many as they are told and count nothing.

Dims: U updates, B batch, K shards, M items of one shard's part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import ray

from seqrl_ray.recipe import Recipe
from seqrl_ray.replay.pacing import Pacing
from seqrl_ray.replay.sampling import Largest, Mass, merge, split_draw
from seqrl_ray.runtime.replay_service import Reply, Request
from seqrl_ray.runtime.wire import GONE, pack, unpack
from seqrl_ray.types import Batch, FloatArray, ItemIds


@dataclass(eq=False)
class _Draw:
    """One draw on its way: a part from every shard."""

    awaited: set[int]
    """Shards that have not answered yet."""
    share: dict[int, float]
    items: int
    total_items: int
    beta: float
    parts: dict[int, Batch] = field(default_factory=dict)

    @property
    def short(self) -> bool:
        """Whether the parts that came hold fewer items than were asked for."""
        return sum(len(p.ids) for p in self.parts.values()) < self.items


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

    def __init__(
        self,
        recipe: Recipe,
        policy_id: str,
        pacing: Pacing,
        seed: int,
        *,
        epoch: int = 0,
        leads: bool = True,
    ) -> None:
        """Begin without shards.

        Args:
            recipe: says how much is drawn at once, and how far ahead.
            policy_id: whose shards.
            pacing: counts what is drawn from all shards together; of one who does not lead, nothing.
            seed: of the split of draws over shards.
            epoch: the learner's lineage; shards serve the highest only.
            leads: whether this learner decides when is drawn, and counts for all.
        """
        self.recipe, self.policy_id, self.pacing, self.epoch = recipe, policy_id, pacing, epoch
        self.leads, self.learners = leads, recipe.learner.count
        self.updates_per_call = recipe.learner.updates_per_call
        self.batch_size = recipe.learner.batch_size // self.learners
        self.shards: dict[int, _Known] = {}
        self.lost: set[int] = set()
        self.stale_priorities = 0
        self._gone = {"inserted": 0, "env_steps": 0, "agent_steps": 0}  # counted by shards that died since
        self._rng = np.random.default_rng(seed)
        self._draws: list[_Draw] = []
        self._calls: dict[Any, tuple[int, tuple[_Draw, ...]]] = {}  # call -> shard, draws (none: news only)
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
                reply: Reply = unpack(ray.get(handle.exchange.remote(self._request(index, (), 0.0, 0, None))))
            except GONE:
                self.lost.add(index)
                continue
            self._hear(index, reply)
            if replaced:
                for name in self._gone:
                    self._gone[name] -= getattr(reply, name)
        if new and self.leads:
            # A learner restored from a checkpoint has forgotten draws that the shards have made.
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

    @property
    def ahead(self) -> int:
        """Draws asked for and not handed out."""
        return len(self._draws)

    def ready(self) -> int:
        """Return how many of these are whole, from the oldest on; those that lack items are given up."""
        for draw in [d for d in self._draws if not d.awaited and d.short]:
            self._draws.remove(draw)
            self._count(-draw.items)  # a shard lost its last item after it had told its mass
        return next((n for n, draw in enumerate(self._draws) if draw.awaited), len(self._draws))

    def pump(self, beta: float, updates: int) -> None:
        """Ask for draws while pacing and prefetch allow; otherwise `listen`. Never waits.

        A Ray call costs more than what a shard does in it, so draws are asked for together once half of
        those ahead have been used up.
        """
        prefetch = self.recipe.learner.prefetch
        room = prefetch - len(self._draws)
        if room >= max(1, prefetch // 2) and self._any_items():
            draws = 0
            while draws < room and self.pacing.may_sample():
                self._count(self._draw_items)
                draws += 1
            if draws:
                self._ask(draws, beta, updates)
        if not self._draws:
            self.listen(beta, updates)

    def follow(self, ahead: int, beta: float, updates: int) -> None:
        """Ask for draws until there are `ahead` of them, as the learner who leads has. Never waits."""
        if ahead > len(self._draws) and self._any_items():
            self._ask(ahead - len(self._draws), beta, updates)
        elif ahead > len(self._draws):
            self.listen(beta, updates)

    @property
    def _draw_items(self) -> int:
        """Items of this learner's part of a draw."""
        return self.updates_per_call * self.batch_size

    def _count(self, items: int) -> None:
        """Count items of this learner's part, and those of the others' parts with them."""
        if self.leads:
            self.pacing.count_sampled(items * self.learners)

    def _any_items(self) -> bool:
        return any(self.shards[i].mass.mass > 0.0 for i in self._alive())

    def listen(self, beta: float, updates: int) -> None:
        """Ask every shard to tell of new items, unless it has been asked. Never waits."""
        waiting = {index for index, draws in self._calls.values() if not draws}
        for index in self._alive():
            if index not in waiting:
                message = self._request(index, (), beta, updates, self.shards[index].inserted)
                self._calls[self.shards[index].handle.exchange.remote(message)] = (index, ())

    def _alive(self) -> list[int]:
        return [i for i in self.shards if i not in self.lost]

    def _ask(self, draws: int, beta: float, updates: int) -> None:
        """Ask every shard, in one call, for its parts of some draws that pacing has counted."""
        alive, items = self._alive(), self._draw_items
        masses = [self.shards[i].mass.mass for i in alive]
        total, total_items = sum(masses), sum(self.shards[i].mass.items for i in alive)
        share = {index: mass / total for index, mass in zip(alive, masses, strict=True)}
        counts = [split_draw(masses, items, self._rng).tolist() for _ in range(draws)]  # [draws][K]
        asked = tuple(_Draw(set(alive), share, items, total_items, beta) for _ in range(draws))
        for index, wanted in zip(alive, zip(*counts, strict=True), strict=True):
            message = self._request(index, wanted, beta, updates, None)
            self._calls[self.shards[index].handle.exchange.remote(message)] = (index, asked)
        self._draws.extend(asked)

    def _request(
        self, index: int, draws: tuple[int, ...], beta: float, updates: int, newer_than: int | None
    ) -> bytes:
        known = self.shards[index]
        written, known.written = tuple(known.written), []
        request = Request(
            self.policy_id,
            self.epoch,
            draws,
            beta,
            updates,
            self.inserted,
            known.inserted,
            self.pacing.sampled,
            self._max_priority,
            written,
            newer_than,
            self.leads,
        )
        message: bytes = pack(request, [])
        return message

    def calls(self) -> list[Any]:
        """Every call on its way."""
        return list(self._calls)

    def settle(self, ready: Sequence[Any]) -> None:
        """Take the answers of calls that are ready."""
        for call in ready:
            if call not in self._calls:
                continue  # given up while this list of ready calls was gone through
            index, draws = self._calls.pop(call)
            try:
                reply: Reply = unpack(ray.get(call))
            except GONE:
                self.lost.add(index)
                self._abandon(index)
                continue
            self._hear(index, reply)
            for draw, batch in zip(draws, reply.batches, strict=True):
                draw.awaited.discard(index)
                if batch is not None:
                    draw.parts[index] = batch

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
        """Give up draws that a dead shard's part is missing of: their items count as not drawn."""
        self._calls = {call: entry for call, entry in self._calls.items() if entry[0] != index}
        for draw in [d for d in self._draws if index in d.awaited]:
            self._draws.remove(draw)
            self._count(-draw.items)

    def next_batch(self, largest: Largest | None = None) -> Batch | None:
        """Return the oldest draw if all its parts have come; `largest` as in `sampling.global_weights`."""
        if not self.ready():
            return None
        draw = self._draws.pop(0)
        indices = list(draw.parts)
        return merge(
            [draw.parts[i] for i in indices],
            [draw.share[i] for i in indices],
            updates=self.updates_per_call,
            batch=self.batch_size,
            total_items=draw.total_items,
            beta=draw.beta,
            rng=self._rng,
            largest=largest,
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
