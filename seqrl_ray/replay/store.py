"""The column store of one shard: rows of many streams, joined by links, inserted idempotently, evicted
safely.

A stream's rows need not lie side by side: `next_row` and `prev_row` join them (-1 = none), so fragments of
many streams can be written in one go. The observation after a transition is the observation of its
`next_row`. A final row links to itself: a walk of n steps that reaches the end stays there, and needs no test
per step. `generation` is raised when a row is evicted, so a name (row, generation) is never used twice.

Dims: N rows of capacity, R rows of a fragment, Q pieces kept of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqrl_ray.errors import ReplayError
from seqrl_ray.recipe_replay import Eviction
from seqrl_ray.replay import columns as cols
from seqrl_ray.replay.eviction import Allocator, Growth, Ring, Segments
from seqrl_ray.replay.streams import Admission, Streams
from seqrl_ray.types import Array, GroupSpec, SampleSpec
from seqrl_ray.types_env import Trajectory

Int64Array = NDArray[np.int64]


@dataclass(frozen=True)
class Stored:
    """What an insert stored."""

    rows: Int64Array  # [R] new rows, a stream's in order
    ends: Int64Array  # [E] those of them that are final
    duplicate_rows: int
    refused_rows: int


class Store:
    """Columns, links and streams. It knows nothing of items, views or sampling."""

    def __init__(
        self,
        group: GroupSpec,
        spec: SampleSpec,
        capacity: int,
        *,
        eviction: Eviction = "fifo_steps",
        before_evict: Callable[[Int64Array], None],
        memory_bytes: int | None = None,
        folder: Path | None = None,
    ) -> None:
        """Allocate the columns.

        Args:
            group: what a row holds.
            spec: extra columns and return-to-go.
            capacity: N rows.
            eviction: what leaves when the store is full.
            before_evict: called with live rows [E] just before they are overwritten or freed; links still
                hold.
            memory_bytes: RAM budget of the columns; None = no limit.
            folder: where the columns beyond the budget go.
        """
        self.group, self.spec, self.capacity, self._eviction = group, spec, capacity, eviction
        self.data_specs = cols.data_columns(group, spec)
        self.link_specs = cols.link_columns(spec)
        self.columns: dict[str, Array] = cols.allocate(
            self.data_specs | self.link_specs, capacity, memory_bytes=memory_bytes, folder=folder
        )
        self.columns["generation"][:] = 0
        self.next_row, self.prev_row = self.columns["next_row"], self.columns["prev_row"]
        self.generation, self.flags, self.offset = (
            self.columns[n] for n in ("generation", "flags", "offset")
        )
        self.streams = Streams()
        self._prev_view = memoryview(self.prev_row)  # type: ignore[arg-type]  # a Python-level walk is 5x faster than through numpy scalars
        self._before_evict = before_evict
        self.inserted_rows = self.evicted_rows = 0
        self._allocator: Allocator = (
            Ring(capacity)
            if eviction == "fifo_steps"
            else Segments(capacity, by_return=eviction == "lowest_return_first", chain=self.chain)
        )

    @property
    def used(self) -> int:
        """Rows in use."""
        return self._allocator.used

    @property
    def nbytes(self) -> int:
        """Bytes of all columns, memory-mapped ones included."""
        return sum(column.nbytes for column in self.columns.values())

    @property
    def memmap_bytes(self) -> int:
        """Bytes of the memory-mapped columns."""
        return sum(column.nbytes for column in self.columns.values() if isinstance(column, np.memmap))

    def chain(self, tail: int) -> list[int]:
        """Rows of the segment that ends at row `tail`, oldest first, as far back as they are stored."""
        previous = self._prev_view
        rows = []
        while tail >= 0:
            rows.append(tail)
            tail = previous[tail]
        rows.reverse()
        return rows

    def insert(self, trajectory: Trajectory) -> Stored:
        """Store the rows of a fragment that are not stored yet. Inserting it twice changes nothing.

        Raises: ReplayError: the fragment does not fit the columns or the capacity, or goes on after a final
            row.
        """
        cols.check_trajectory(trajectory, self.group, self.data_specs)
        admission, table = self.streams.admit(trajectory)
        count = int(admission.kept.sum())
        if count > self.capacity:
            raise ReplayError(
                f"capacity_steps={self.capacity} of this shard is less than the {count} rows of one "
                "fragment: it would overwrite itself. Raise capacity_steps, use fewer shards or send "
                "shorter fragments."
            )
        self._close(admission.cut[~admission.cut_grows])
        rows, evicted = self._allocator.allocate(count)
        self._evict(evicted)
        self._write(trajectory, admission, rows)
        last = np.cumsum(admission.kept) - 1  # [Q] place of each piece's last row in `rows`
        self._link(admission, rows, last)
        ends = rows[self.flags[rows] == cols.FINAL]
        if self._allocator.whole_segments:
            self._note_growth(admission, rows, last)
            self._close(admission.cut[admission.cut_grows])
        self.streams.commit(trajectory, admission, table, rows[last], self.generation[rows[last]])
        return Stored(rows, ends, admission.duplicate_rows, trajectory.rows if admission.refused else 0)

    def writer_gone(self, writer: str) -> int:
        """Close the streams of a dead writer as cut; returns how many were open."""
        cut = self.streams.writer_gone(writer)
        self._close(cut)
        return int(cut.size)

    def keep_best(self, rows: int) -> int:
        """Evict whole closed episodes, those of the lowest return first, until at most `rows` rows are in
        use; returns the rows evicted.

        Raises: ReplayError: this store evicts steps, not episodes.
        """
        if not isinstance(self._allocator, Segments):
            raise ReplayError(
                f"eviction={self._eviction!r} lets single steps leave, keep_best whole episodes. Set "
                "replay.eviction='fifo_episodes'."
            )
        reward = self.columns["reward"]
        freed = self._allocator.keep_best(rows, lambda chain: float(reward[chain].sum(dtype=np.float64)))
        self._evict(freed)
        return int(freed.size)

    def forget_writers(self) -> None:
        """Close every open stream as cut; what any writer sends from now on is new."""
        self._close(self.streams.forget())

    def live_rows(self) -> Int64Array:
        """Rows that hold something, ascending."""
        return np.flatnonzero(self.offset >= 0)

    def state(self) -> dict[str, Any]:
        """Everything but the columns, as numbers, strings and lists."""
        return {
            "eviction": self._eviction,
            "streams": self.streams.state(),
            "allocator": self._allocator.state(),
            "inserted_rows": self.inserted_rows,
            "evicted_rows": self.evicted_rows,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` returned; the columns must hold what they held then."""
        self.streams.restore(state["streams"])
        self._allocator.restore(state["allocator"])
        self.inserted_rows, self.evicted_rows = int(state["inserted_rows"]), int(state["evicted_rows"])

    def adopt(self, rows: int, tails: Int64Array, streams: Mapping[str, Any]) -> None:
        """Take the rows [0, rows), oldest first, with links and data already in the columns, as the store's
        content.

        Args:
            rows: how many.
            tails: last rows of their segments; none of them will grow.
            streams: writers' tables without tails (see `streams.merged_state`).
        """
        self.streams.restore(streams)
        self.inserted_rows = rows
        self._allocator.allocate(rows)
        if self._allocator.whole_segments:
            for number, tail in enumerate(
                tails.tolist()
            ):  # in order of age, which stands for the order of closing
                reward = float(self.columns["reward"][self.chain(tail)].sum(dtype=np.float64))
                self._allocator.grew(Growth(-1 - number, tail, reward, ended=True))

    def check(self) -> None:
        """Raise ReplayError if a link, an offset or the count of rows in use contradicts the others."""
        live = self.live_rows()
        if live.size != self.used:
            raise ReplayError(
                f"used={self.used} but {live.size} rows are written: rows leak. Report this as a defect."
            )
        final = self.flags[live] == cols.FINAL
        after, before = self.next_row[live], self.prev_row[live]
        if (after[final] != live[final]).any():
            raise ReplayError(
                "a final row does not link to itself: walks would leave it. Report this as a defect."
            )
        inner = (after >= 0) & ~final
        for ok in (
            (self.prev_row[after[inner]] == live[inner]).all(),
            (self.offset[after[inner]] == self.offset[live[inner]] + 1).all(),
            (self.next_row[before[before >= 0]] == live[before >= 0]).all(),
        ):
            if not ok:
                raise ReplayError(
                    "next_row and prev_row disagree: views would mix streams. Report this as a defect."
                )

    def _close(self, segments: Int64Array) -> None:
        if self._allocator.whole_segments:
            for segment in segments.tolist():
                self._allocator.closed(segment)

    def _evict(self, rows: Int64Array) -> None:
        if rows.size == 0:
            return
        self._before_evict(rows)
        after = self.next_row[rows]
        self.prev_row[after[after >= 0]] = -1
        before = self.prev_row[rows]
        self.next_row[before[before >= 0]] = -1
        self.next_row[rows] = -1
        self.prev_row[rows] = -1
        self.offset[rows] = -1
        self.generation[rows] += 1
        self.evicted_rows += rows.size

    def _write(self, trajectory: Trajectory, admission: Admission, rows: Int64Array) -> None:
        """Fill the data columns of `rows` [R]."""
        if rows.size == 0:
            return
        place: Int64Array | slice = slice(None)
        starts = np.cumsum(trajectory.length) - trajectory.length
        first = (starts[admission.piece] + admission.skip).repeat(admission.kept)
        within = np.arange(rows.size) - (np.cumsum(admission.kept) - admission.kept).repeat(admission.kept)
        if rows.size != trajectory.rows:
            place = first + within
        # side by side: a slice is copied several times faster than scattered rows
        target: Int64Array | slice = slice(int(rows[0]), int(rows[-1]) + 1)
        if rows[-1] - rows[0] != rows.size - 1 or (np.diff(rows) != 1).any():
            target = rows
        given = trajectory.columns
        for name in self.data_specs:
            if name in given:
                self.columns[name][target] = given[name][place]
        self.flags[target] = cols.pack_flags(given)[place]
        self.columns["reward"][target] = np.where(given["final"], 0.0, given["reward"])[place]
        offset = (trajectory.offset[admission.piece] + admission.skip).repeat(admission.kept)
        self.offset[target] = offset + within
        self.columns["serial"][target] = np.arange(self.inserted_rows, self.inserted_rows + rows.size)
        self.inserted_rows += rows.size
        self.columns["weights_epoch"][target] = trajectory.weights[0]
        self.columns["weights_counter"][target] = trajectory.weights[1]
        if "return_to_go" in self.columns:
            self.columns["return_to_go"][target] = np.nan

    def _link(self, admission: Admission, rows: Int64Array, last: Int64Array) -> None:
        """Join `rows` [R] to each other and to what is stored."""
        if rows.size == 0:
            return
        start = last - admission.kept + 1
        tail = admission.tail_row
        stored = (tail >= 0) & (
            self.generation[tail] == admission.tail_generation
        )  # it may have been evicted
        before = np.where(stored, tail, -1)
        before = np.where(admission.follows >= 0, rows[last[admission.follows]], before)  # [Q]
        previous = np.empty_like(rows)
        previous[1:] = rows[:-1]
        previous[start] = before
        after = np.empty_like(rows)
        after[:-1] = rows[1:]
        after[last] = -1
        self.prev_row[rows] = previous
        self.next_row[rows] = after
        joined = before >= 0
        self.next_row[before[joined]] = rows[start[joined]]
        ends = rows[self.flags[rows] == cols.FINAL]
        self.next_row[ends] = ends

    def _note_growth(self, admission: Admission, rows: Int64Array, last: Int64Array) -> None:
        """Tell the allocator what each segment gained."""
        reward = self.columns["reward"][rows].astype(np.float64)
        start = last - admission.kept + 1
        gained = np.add.reduceat(reward, start) if rows.size else reward
        for piece, segment in enumerate(admission.segment.tolist()):
            tail = int(rows[last[piece]])
            ended = bool(self.flags[tail] == cols.FINAL)
            self._allocator.grew(Growth(segment, tail, float(gained[piece]), ended))
