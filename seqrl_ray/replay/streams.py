"""Which rows of a fragment are new: the open stream of every slot of every writer, and idempotent admission.

A stream is (writer, incarnation, slot, episode). Per slot only its newest stream can be open. The rules:
rows at offsets already held are duplicates and dropped; a piece that starts past the next offset expected
opens a new *segment* (the rows before the gap are cut: nothing joins the two); rows of an older episode are
dropped, those of an older incarnation refused; a newer episode, a newer incarnation or a writer's death cuts
what was open.

Dims: S slots of a writer, P pieces of a fragment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqrl_ray.errors import ReplayError
from seqrl_ray.types_env import Trajectory

Int64Array = NDArray[np.int64]

_EPISODE, _NEXT, _TAIL, _TAIL_GENERATION, _SEGMENT, _ENDED = range(6)
_FIELDS = 6


@dataclass
class _Writer:
    incarnation: int
    gone: bool = False
    slots: Int64Array = field(default_factory=lambda: np.full((_FIELDS, 0), -1, np.int64))  # [6, S]


@dataclass(frozen=True)
class Admission:
    """What to keep of a fragment: Q <= P pieces, in order; those dropped whole are left out."""

    piece: Int64Array  # [Q] which piece
    skip: Int64Array  # [Q] rows to drop at its front
    kept: Int64Array  # [Q] rows to store
    follows: Int64Array  # [Q] index in [0, Q) of the piece of this very fragment that it goes on from, or -1
    tail_row: Int64Array  # [Q] stored row that it goes on from, or -1
    tail_generation: Int64Array  # [Q] generation of that row when it was written
    segment: Int64Array  # [Q] serial number of the segment it belongs to
    opened: int  # segments opened
    cut: Int64Array  # segments that were open and are now closed without an end
    cut_grows: NDArray[np.bool_]  # those of them that gain rows from this very fragment before they are cut
    duplicate_rows: int
    refused: bool = False  # all of it: the writer is dead or was replaced


class Streams:
    """The open streams of all writers of one shard."""

    def __init__(self) -> None:
        """Start without writers."""
        self._writers: dict[str, _Writer] = {}
        self._next_segment = 0

    def admit(self, trajectory: Trajectory) -> tuple[Admission, Int64Array]:
        """Decide what of a fragment is new. Nothing changes until `commit`.

        Returns: the admission, and the writer's slot table [6, S] as it will be, for `commit`.
        Raises: ReplayError: rows follow a stream's final row.
        """
        writer = self._writers.get(trajectory.writer)
        if writer is not None and (
            trajectory.incarnation < writer.incarnation
            or (writer.gone and trajectory.incarnation == writer.incarnation)
        ):
            return _refused(), writer.slots
        cut: Int64Array = np.zeros(0, np.int64)
        if writer is None or trajectory.incarnation > writer.incarnation:
            cut = cut if writer is None else _open_segments(writer.slots)
            table: Int64Array = np.full((_FIELDS, 0), -1, np.int64)
        else:
            table = writer.slots.copy()
        table = _widen(table, int(trajectory.slot.max(initial=-1)) + 1)
        return _Walk(trajectory, table, self._next_segment, cut).admission(), table

    def commit(
        self,
        trajectory: Trajectory,
        admission: Admission,
        table: Int64Array,
        tails: Int64Array,
        generations: Int64Array,
    ) -> None:
        """Make an admission real.

        Args:
            trajectory: the fragment admitted.
            admission: what `admit` returned.
            table: [6, S] what `admit` returned.
            tails: [Q] stored row of the last row of every piece kept.
            generations: [Q] their generations.
        """
        if admission.refused:
            return
        slot = trajectory.slot[admission.piece]
        table[_TAIL, slot] = tails  # a slot's later piece comes later: the last write holds
        table[_TAIL_GENERATION, slot] = generations
        self._next_segment += admission.opened
        self._writers[trajectory.writer] = _Writer(trajectory.incarnation, slots=table)

    def writer_gone(self, name: str) -> Int64Array:
        """Close the open streams of a dead writer as cut and refuse what this incarnation still sends.

        Returns: the segments that were open. An unknown writer had none.
        """
        writer = self._writers.get(name)
        if writer is None or writer.gone:
            return np.zeros(0, np.int64)
        cut = _open_segments(writer.slots)
        self._writers[name] = _Writer(writer.incarnation, True)
        return cut

    def forget(self) -> Int64Array:
        """Forget all writers, dead ones too: what any of them sends from now on opens new segments.

        Returns: the segments that were open.
        """
        cut = [_open_segments(writer.slots) for writer in self._writers.values() if not writer.gone]
        self._writers.clear()
        return np.concatenate([np.zeros(0, np.int64), *cut])

    @property
    def open(self) -> int:
        """Streams that may still grow."""
        return sum(_open_segments(writer.slots).size for writer in self._writers.values())

    def state(self) -> dict[str, Any]:
        """Everything, as numbers, strings and lists."""
        writers = {
            name: {"incarnation": w.incarnation, "gone": w.gone, "slots": w.slots.tolist()}
            for name, w in self._writers.items()
        }
        return {"next_segment": self._next_segment, "writers": writers}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` returned."""
        self._next_segment = int(state["next_segment"])
        self._writers = {
            name: _Writer(w["incarnation"], w["gone"], np.array(w["slots"], np.int64).reshape(_FIELDS, -1))
            for name, w in state["writers"].items()
        }


def merged_state(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One state for shards that take over the rows of several: what is held is known, nothing can be joined.

    Of a writer's incarnations the newest counts; of a slot's streams the newest, and of that the furthest
    offset.
    """
    writers: dict[str, dict[str, Any]] = {}
    for state in states:
        for name, new in state["writers"].items():
            table = np.array(new["slots"], np.int64).reshape(_FIELDS, -1)
            table[[_TAIL, _TAIL_GENERATION]] = -1
            old = writers.get(name)
            if old is None or old["incarnation"] < new["incarnation"]:
                writers[name] = {"incarnation": new["incarnation"], "gone": new["gone"], "slots": table}
            elif old["incarnation"] == new["incarnation"]:
                slots = max(table.shape[1], old["slots"].shape[1])
                table, held = _widen(table, slots), _widen(old["slots"], slots)
                newer = (table[_EPISODE] > held[_EPISODE]) | (
                    (table[_EPISODE] == held[_EPISODE]) & (table[_NEXT] > held[_NEXT])
                )
                old["slots"] = np.where(newer, table, held)
                old["gone"] = old["gone"] or new["gone"]
    listed = {name: writer | {"slots": writer["slots"].tolist()} for name, writer in writers.items()}
    return {"next_segment": max(int(state["next_segment"]) for state in states), "writers": listed}


class _Walk:
    """One pass over the pieces of a fragment: pieces of distinct slots at once, a slot's pieces in order."""

    def __init__(self, trajectory: Trajectory, table: Int64Array, next_segment: int, cut: Int64Array) -> None:
        self._trajectory = trajectory
        self._table = table
        self._first_segment = next_segment
        self._opened = 0
        self._cut = [cut]
        self._cut_by: list[Int64Array] = [np.full(cut.size, -1, np.int64)]  # the piece that cut it
        pieces = trajectory.slot.shape[0]
        self._last_piece: Int64Array = np.full(table.shape[1], -1, np.int64)
        self._skip = np.zeros(pieces, np.int64)
        self._follows: Int64Array = np.full(pieces, -1, np.int64)
        self._tail_row: Int64Array = np.full(pieces, -1, np.int64)
        self._tail_generation: Int64Array = np.full(pieces, -1, np.int64)
        self._segment: Int64Array = np.full(pieces, -1, np.int64)

    def admission(self) -> Admission:
        length = self._trajectory.length
        ends = self._trajectory.columns["final"][np.cumsum(length) - 1] if length.size else np.zeros(0, bool)
        for pieces in _rounds(self._trajectory.slot):
            self._round(pieces, ends[pieces])
        kept = length - self._skip
        piece = np.flatnonzero(kept)
        place = np.cumsum(kept > 0) - 1  # piece -> index among the kept ones
        follows = self._follows[piece]
        segment = self._segment[piece]
        cut = np.concatenate(self._cut)
        if cut.size:
            cut = cut[np.argsort(np.concatenate(self._cut_by), kind="stable")]
        return Admission(
            piece=piece,
            skip=self._skip[piece],
            kept=kept[piece],
            follows=np.where(follows >= 0, place[follows], -1),
            tail_row=self._tail_row[piece],
            tail_generation=self._tail_generation[piece],
            segment=segment,
            opened=self._opened,
            cut=cut,
            cut_grows=np.isin(cut, segment) if cut.size else np.zeros(0, bool),
            duplicate_rows=int(self._skip.sum()),
        )

    def _round(self, pieces: Int64Array, ends: NDArray[np.bool_]) -> None:
        """Admit `pieces`, whose slots are distinct."""
        t, table = self._trajectory, self._table
        slot, episode, offset, length = t.slot[pieces], t.episode[pieces], t.offset[pieces], t.length[pieces]
        current = table[:, slot]  # [6, pieces]
        same, newer = current[_EPISODE] == episode, current[_EPISODE] < episode
        held = np.clip(current[_NEXT] - offset, 0, length)
        skip = np.where(same, held, np.where(newer, 0, length))
        new = skip < length
        if (same & new & (current[_ENDED] == 1)).any():
            bad = int(np.flatnonzero(same & new & (current[_ENDED] == 1))[0])
            raise ReplayError(
                f"writer={t.writer!r} slot={slot[bad]} episode={episode[bad]} offset={offset[bad]}: rows "
                "follow the final row: the stream has no end. Give a new life of a slot a new episode "
                "number."
            )
        joins = new & same & (offset <= current[_NEXT])
        opens = new & ~joins
        cuts = opens & _is_open(current)
        self._cut.append(current[_SEGMENT, cuts])
        self._cut_by.append(pieces[cuts])
        self._skip[pieces] = skip
        followed = np.where(joins, self._last_piece[slot], -1)
        self._follows[pieces] = followed
        stored = joins & (followed < 0)
        self._tail_row[pieces] = np.where(stored, current[_TAIL], -1)
        self._tail_generation[pieces] = np.where(stored, current[_TAIL_GENERATION], -1)
        serial = self._first_segment + self._opened + np.cumsum(opens) - 1
        segment = np.where(opens, serial, current[_SEGMENT])
        self._segment[pieces] = segment
        self._opened += int(np.count_nonzero(opens))
        slot = slot[new]
        self._last_piece[slot] = pieces[new]
        table[_EPISODE, slot] = episode[new]
        table[_NEXT, slot] = (offset + length)[new]
        table[_SEGMENT, slot] = segment[new]
        table[_ENDED, slot] = ends[new]


def _rounds(slot: NDArray[np.integer[Any]]) -> list[Int64Array]:
    """Cut [0, P) into lists of pieces with distinct slots, the k-th piece of a slot in the k-th list."""
    pieces = slot.shape[0]
    order = np.argsort(slot, kind="stable")
    sorted_slot = slot[order]
    first = np.ones(pieces, bool)
    first[1:] = sorted_slot[1:] != sorted_slot[:-1]
    if first.all():
        return [np.arange(pieces)]
    start = np.maximum.accumulate(np.where(first, np.arange(pieces), 0))
    rank: Int64Array = np.empty(pieces, np.int64)
    rank[order] = np.arange(pieces) - start
    return [np.flatnonzero(rank == k) for k in range(int(rank.max()) + 1)]


def _widen(table: Int64Array, slots: int) -> Int64Array:
    """The table with room for `slots` slots."""
    if table.shape[1] >= slots:
        return table
    wide: Int64Array = np.full((_FIELDS, slots), -1, np.int64)
    wide[:, : table.shape[1]] = table
    return wide


def _is_open(table: Int64Array) -> NDArray[np.bool_]:
    return np.asarray((table[_EPISODE] >= 0) & (table[_ENDED] != 1))


def _open_segments(table: Int64Array) -> Int64Array:
    return np.asarray(table[_SEGMENT, _is_open(table)])


def _refused() -> Admission:
    none = np.zeros(0, np.int64)
    return Admission(none, none, none, none, none, none, none, 0, none, np.zeros(0, bool), 0, refused=True)
