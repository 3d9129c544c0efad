"""Which actor sends to which shard, while actors come and go.

A new actor goes to the shard that the fewest send to; actors are moved where that leaves two shards more than
one actor apart. With fewer actors than shards some shard would get nothing new and its old items would be
drawn for ever: then the actors change shards now and then (`ROTATE_S`), each to the one that has waited
longest. What an actor had begun when it changes is cut there. In lock-step nothing goes by the clock.

An actor that waits for room on the cluster has a shard, to which it will send first, but it does not count
before it stands somewhere: a shard whose actors all wait would be left out.

With actors 0 to N-1 and nobody leaving, actor i sends to shard i modulo K.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Set

ROTATE_S = 30.0
"""How long an actor stays with a shard while there are fewer actors than shards."""


class Spread:
    """Actors over shards; see the module docstring."""

    def __init__(self, shards: int, *, rotates: bool = True) -> None:
        self.of: dict[int, int] = {}
        """Actor -> its shard."""
        self.waits: Set[int] = frozenset()
        """Actors that wait for room."""
        self._since = dict.fromkeys(range(shards), 0.0)  # when somebody last began to send to a shard
        self._rotated_at = -math.inf if rotates else math.inf

    def join(self, index: int) -> int:
        """Take an actor in; one that is replaced stays where it was. Returns its shard."""
        if index not in self.of:
            stands, all_of = self._load(self.standing), self._load(self.of)
            known = all_of if index in self.waits else stands
            self.of[index] = min(self._since, key=lambda shard: (known[shard], all_of[shard], shard))
        return self.of[index]

    @property
    def standing(self) -> dict[int, int]:
        """Actor -> its shard, of those that stand somewhere."""
        return {index: shard for index, shard in self.of.items() if index not in self.waits}

    def leave(self, index: int) -> None:
        """Forget an actor."""
        self.of.pop(index, None)

    def balance(self, now: float) -> None:
        """Move actors so that no two shards are more than one apart, and none is left out for long."""
        load = self._load(self.standing)
        while max(load.values()) - min(load.values()) > 1:
            fullest, emptiest = max(load, key=load.__getitem__), min(load, key=load.__getitem__)
            self.of[max(i for i, shard in self.standing.items() if shard == fullest)] = emptiest
            load = self._load(self.standing)
        if len(self.standing) >= len(load) or now - self._rotated_at < ROTATE_S:
            return
        first, self._rotated_at = math.isinf(self._rotated_at), now
        if first:
            return
        for shard in self.standing.values():
            self._since[shard] = now
        for index in sorted(self.standing):
            idle = [shard for shard in self._since if shard not in self.standing.values()]
            self.of[index] = min(idle, key=lambda shard: (self._since[shard], shard))

    def _load(self, of: Mapping[int, int]) -> dict[int, int]:
        counts = Counter(of.values())
        return {shard: counts[shard] for shard in self._since}
