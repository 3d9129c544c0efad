"""The crew: how many rollout actors a run shall have now, where each stands, who joins and who leaves.

With `actors.count = [least, most]` the crew follows the cluster: it grows while nodes have free CPUs (where
an autoscaler runs, it asks for room for all by starting actors that wait; such a wish ends with the run,
which a call of `ray.autoscaler.sdk.request_resources` would not), and shrinks when nodes go. An actor whose
node's end was announced leaves before it. `seqrl scale` asks for another number; it writes `actors.json` into
the run folder, which is looked at here.

The crew only says who; the session makes, ends and feeds the processes.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray.exceptions import RaySystemError

from seqrl_ray.errors import RecipeError
from seqrl_ray.recipe import Recipe
from seqrl_ray.runtime import nodes
from seqrl_ray.runtime.nodes import Node

ASKED = "actors.json"
"""In the run folder: {"least", "most"} that a person asked for, and the range "of" the run asked."""

POLL_S = 2.0
"""How often the cluster is looked at."""

SETTLE_S = 5.0
"""How long after an actor began Ray may still count its CPUs as free."""

UNPLACED_S = 30.0
"""How long an actor above the least may wait for room that was thought to be there."""

PATIENT_S = 10.0
"""After how long people are told that an actor waits for room."""


@dataclass
class Member:
    """One actor of the crew."""

    handle: Any
    since: float
    """When it was made."""
    node: str | None = None
    """Where it stands; None: it waits for room, or nobody has looked yet."""
    placed_at: float = math.inf
    """When it was first seen to stand somewhere."""
    leaving: bool = False


@dataclass(frozen=True)
class Orders:
    """What the session shall do."""

    join: tuple[int, ...] = ()
    drop: tuple[int, ...] = ()
    """Actors that never found room."""
    ending: tuple[Node, ...] = ()
    """Nodes whose end has been announced."""
    notes: tuple[str, ...] = ()


class Crew:
    """Who acts; see the module docstring."""

    def __init__(
        self,
        recipe: Recipe,
        *,
        cpus: float,
        watch: bool,
        here: int | None = None,
        folder: Path | None = None,
        selector: Mapping[str, str] | None = None,
    ) -> None:
        """Begin with nobody.

        Args:
            recipe: says the least and the most.
            cpus: that one actor reserves.
            watch: the run shares a cluster whose nodes come and go; else it has a machine of its own.
            here: actors that a machine of our own carries; None: the least.
            folder: the run folder, where people ask for other numbers.
            selector: labels of the nodes that actors may stand on.
        """
        self.members: dict[int, Member] = {}
        self.allowed = (recipe.actors.count, recipe.actors.most)
        self.least, self.most = self.allowed
        self.watch, self._cpus, self._folder, self._selector = watch, cpus, folder, selector
        self._here = self.least if here is None else here
        self._asked_at = 0.0
        self._next_look = 0.0
        self._joined_at = time.monotonic()
        self._notes: list[str] = []
        self._told_waiting = False
        self._told_draining: set[str] = set()
        self._autoscales = False

    def first(self) -> range:
        """Return the actors that a session begins with."""
        self._notes = self._read_asked()
        return range(self.least if self.watch else self._target(0, 0))

    def joined(self, index: int, handle: Any) -> None:
        """Hear of a new actor (or a replacement)."""
        self._joined_at = time.monotonic()
        self.members[index] = Member(handle, self._joined_at)

    def left(self, index: int) -> None:
        """Hear that an actor is no more."""
        del self.members[index]

    @property
    def leaving(self) -> frozenset[int]:
        """Actors that shall send what they have, and nothing more."""
        return frozenset(i for i, member in self.members.items() if member.leaving)

    @property
    def unplaced(self) -> frozenset[int]:
        """Actors that wait for room: they are silent for no fault of theirs."""
        waits = self.watch and [i for i, member in self.members.items() if self._node_of(member) is None]
        return frozenset(waits or ())

    @property
    def waiting(self) -> frozenset[int]:
        """Actors that have had no place for longer than it takes to start a process where there is room."""
        since = time.monotonic() - SETTLE_S
        return frozenset(i for i in self.unplaced if self.members[i].since < since)

    @property
    def size(self) -> int:
        """Actors that stand somewhere."""
        return len(self.members) - len(self.unplaced)

    def placed_at(self, index: int) -> float:
        """Return since when an actor stands somewhere; infinite: it waits for room, which is not silence."""
        member = self.members.get(index)
        if not self.watch or member is None:
            return -math.inf
        self._node_of(member)
        return member.placed_at

    def places(self) -> dict[int, tuple[int, int]]:
        """Return actor -> (rank, of how many): exploration spreads over those who act and stay."""
        waits = self.unplaced
        staying = sorted(i for i, m in self.members.items() if not m.leaving and i not in waits)
        return {index: (rank, len(staying)) for rank, index in enumerate(staying)}

    def lost_node(self, index: int) -> str | None:
        """Return the node that a dead actor went down with; None if it died alone."""
        if not self.watch:
            return None
        node_id = self._node_of(self.members[index])
        return node_id if node_id is not None and nodes.gone(node_id) else None

    def rehires(self, index: int, *, node_lost: bool) -> bool:
        """Whether a dead actor is replaced at once. After a node's loss a crew above its least goes on
        smaller, and grows when there is room.
        """
        if self.members[index].leaving:
            return False
        return not node_lost or len(self._staying()) <= self.least

    def _node_of(self, member: Member) -> str | None:
        if member.node is None:
            member.node = nodes.place_of(member.handle).node_id
            if member.node is not None:
                member.placed_at = time.monotonic()
        return member.node

    def _staying(self) -> list[int]:
        return [i for i, member in self.members.items() if not member.leaving]

    def look(self) -> Orders:
        """Look at the cluster and at what people ask, now and then; mark who leaves, say who joins."""
        now = time.monotonic()
        if now < self._next_look:
            return Orders()
        self._next_look = now + POLL_S
        try:
            alive = nodes.look() if self.watch else {}
        except RaySystemError:
            return Orders()  # the head does not answer: Ray waits for it, and so do we
        notes, self._notes = self._notes + self._read_asked(), []
        self._autoscales = nodes.autoscales(alive.values())
        notes += self._leave_draining(alive)
        unplaced = self.unplaced
        notes += self._tell_of_waiting(unplaced, now)
        staying = self._staying()
        want = self._target(len(staying), nodes.room(alive.values(), self._cpus, self._selector))
        drop: list[int] = []
        if len(staying) > self.most:
            surplus = sorted(staying, key=lambda i: (i in unplaced, i))[self.most :]
            drop = [i for i in surplus if i in unplaced]
            for index in set(surplus) - set(drop):
                self.members[index].leaving = True
        elif self._fits_to_room:
            late = [i for i in unplaced if now - self.members[i].since > UNPLACED_S]
            drop = sorted(late)[max(0, self.least - (len(staying) - len(late))) :]
        join = self._joining(want, len(staying), bool(unplaced), now)
        ending = tuple(node for node in alive.values() if node.draining)
        return Orders(join, tuple(drop), ending, tuple(notes))

    @property
    def _fits_to_room(self) -> bool:
        """Whether the number of actors is what the cluster has room for."""
        return self.watch and self.least < self.most and not self._autoscales

    def _target(self, staying: int, room: int) -> int:
        """Return how many actors there shall be."""
        if self.least == self.most or self._autoscales:
            return self.most
        fit = staying + room if self.watch else self._here
        return min(self.most, max(self.least, fit))

    def _joining(self, want: int, staying: int, waits: bool, now: float) -> tuple[int, ...]:
        """Choose who joins: up to the least at once, above it when the last who joined have settled."""
        settled = not waits and now - self._joined_at >= SETTLE_S
        if self._fits_to_room and not settled:
            want = min(want, self.least)
        free = [i for i in range(self.allowed[1]) if i not in self.members]
        return tuple(free[: max(0, want - staying)])

    def _leave_draining(self, alive: Mapping[str, Node]) -> list[str]:
        """Send away who stands on a node whose end was announced."""
        notes = []
        for node in alive.values():
            if not node.draining:
                continue
            there = [m for m in self.members.values() if not m.leaving and self._node_of(m) == node.node_id]
            for member in there:
                member.leaving = True
            if node.node_id not in self._told_draining:
                self._told_draining.add(node.node_id)
                left = nodes.seconds_left(node)
                when = "at an unknown time" if math.isinf(left) else f"in {max(0.0, left):.0f} s"
                notes.append(
                    f"node {node.address} ({node.node_id[:8]}) ends {when}: {len(there)} actors leave"
                )
        return notes

    def _tell_of_waiting(self, unplaced: frozenset[int], now: float) -> list[str]:
        """Tell people once that actors wait for room."""
        waiting = [i for i in unplaced if now - self.members[i].since > PATIENT_S]
        if not waiting:
            self._told_waiting = bool(unplaced) and self._told_waiting
            return []
        if self._told_waiting:
            return []
        self._told_waiting = True
        return [f"{len(waiting)} of {len(self.members)} actors wait for {self._cpus:g} free CPUs each"]

    def _read_asked(self) -> list[str]:
        """Take over what people asked for, if it is new."""
        path = None if self._folder is None else self._folder / ASKED
        if path is None or not path.is_file() or path.stat().st_mtime == self._asked_at:
            return []
        self._asked_at = path.stat().st_mtime
        asked = json.loads(path.read_text(encoding="utf-8"))
        if asked["of"] != list(self.allowed):  # the run was resumed with another range since
            return []
        self.most = max(1, min(int(asked["most"]), self.allowed[1]))
        self.least = max(1, min(int(asked["least"]), self.most))
        return [f"asked for {self.least} to {self.most} actors"]


def ask(run: Path, recipe: Recipe, least: int, most: int) -> None:
    """Ask a living run (or the next resume of it) for another number of actors.

    Raises: RecipeError: more than the run was made for, or fewer than one.
    """
    if not 1 <= least <= most <= recipe.actors.most:
        raise RecipeError(
            f"{least} to {most} actors for a run of 1 to {recipe.actors.most}: its shards were made for so "
            "many. Ask for a number in between, or resume it with a larger actors.max_count."
        )
    if recipe.actors.in_flight == 1:
        raise RecipeError(
            "actors.in_flight=1: a lock-step run is a function of its seed, and nobody may change the number "
            "of its actors. Resume it with actors.in_flight=2."
        )
    wish = {"least": least, "most": most, "of": [recipe.actors.count, recipe.actors.most]}
    partial = run / f"{ASKED}.partial"
    partial.write_text(json.dumps(wish), encoding="utf-8")
    partial.replace(run / ASKED)
