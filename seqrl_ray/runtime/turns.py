"""Order among the fragments of one actor.

Source: ours. Ray starts the calls of one caller in order only where an actor runs one at a time. An asyncio
actor may start them as their arguments arrive: measured with two calls under way, now and then for small
messages and in one of fifteen where small and large ones (above `wire.INLINE_BYTES`) alternate. So fragments
are numbered by the actor, and one that came too early waits.

A *source* is (writer, incarnation, opened): an actor opens a new one for every shard it sends to, and after
every call that was lost, because what would be missing then must not be waited for.
"""

from __future__ import annotations

import math

Source = tuple[str, int, int]


class Turns:
    """Which fragment of each source may be taken next."""

    def __init__(self) -> None:
        self._next: dict[Source, float] = {}  # inf: a source that is over waits for nothing
        self._dead: dict[str, int] = {}  # writer -> its latest incarnation that is known to be dead

    def open(self, source: Source) -> None:
        """Hear of a source; earlier ones of the same writer are over."""
        if source in self._next:
            return
        writer, incarnation, _ = source
        others = [other for other in self._next if other[0] == writer]
        late = incarnation <= self._dead.get(writer, -1) or any(other > source for other in others)
        self._next[source] = math.inf if late else 0
        for other in others:
            if other < source:
                self._next[other] = math.inf

    def may_take(self, source: Source, number: int) -> bool:
        """Whether every fragment of `source` before `number` has been taken, or will never come."""
        return number <= self._next[source]

    def take(self, source: Source, number: int) -> None:
        """Let the next one come."""
        self._next[source] = max(self._next[source], number + 1)

    def end(self, writer: str, incarnation: int) -> None:
        """Hear that a writer died, in this incarnation at the latest."""
        self._dead[writer] = max(incarnation, self._dead.get(writer, -1))
        for source in self._next:
            if source[0] == writer and source[1] <= incarnation:
                self._next[source] = math.inf
