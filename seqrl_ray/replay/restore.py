"""Read snapshots back: exactly onto as many shards of the same make, or spread over any other number of
shards.

Exact: every row goes to its place, counters, open streams and random states go on as they were.
Spread: streams go to shards whole, the longest first, each to the shard with the fewest rows; rows keep their
age order, items their priorities. Open streams become cut (they keep their place in the writers' tables, so
what a living writer sends twice is still dropped). Ids handed out earlier are stale if the new shards'
`incarnation` is higher. Rows are streamed from the files in batches: memory beyond the shards' own is the
links (about 100 bytes per row).

Dims: R rows over all snapshots, G streams.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from seqrl_ray.errors import CheckpointError
from seqrl_ray.replay.columns import FINAL
from seqrl_ray.replay.shard import ReplayShard
from seqrl_ray.replay.snapshot import FORMAT, MANIFEST, ROW, from_arrow
from seqrl_ray.replay.streams import merged_state
from seqrl_ray.types import Array, ArraySpec

Int64Array = NDArray[np.int64]
Columns = dict[str, Array]

_HASH_BYTES = 1 << 22


@dataclass(frozen=True)
class _Saved:
    """A snapshot whose files are whole."""

    folder: Path
    manifest: dict[str, Any]

    def specs(self, item_columns: Columns) -> dict[str, ArraySpec]:
        specs = {n: ArraySpec(tuple(c["shape"]), c["dtype"]) for n, c in self.manifest["columns"].items()}
        specs |= {name: ArraySpec((), str(column.dtype)) for name, column in item_columns.items()}
        return specs | {ROW: ArraySpec((), "int64")}

    def batches(self, specs: dict[str, ArraySpec]) -> Iterator[Columns]:
        """Columns named in `specs`, batch by batch, in order of row."""
        for file in self.manifest["files"]:
            with pa.memory_map(str(self.folder / file["name"])) as source:
                reader = pa.ipc.open_file(source)
                for number in range(reader.num_record_batches):
                    batch = reader.get_batch(number)
                    yield {name: from_arrow(batch.column(name), spec) for name, spec in specs.items()}

    def columns(self, specs: dict[str, ArraySpec]) -> Columns:
        """Columns named in `specs`, whole."""
        empty = [{name: np.zeros((0, *spec.shape), spec.dtype) for name, spec in specs.items()}]
        parts = empty + list(self.batches(specs))
        return {name: np.concatenate([part[name] for part in parts]) for name in specs}


def restore(folders: Sequence[Path], shards: Sequence[ReplayShard]) -> None:
    """Fill empty shards from snapshots.

    Args:
        folders: one per shard that was saved.
        shards: any number of new shards of the same policy and rules.

    Raises: CheckpointError: a file is missing, truncated or altered, or the rules differ; the shards are then
        unusable.
    """
    saved = [_open(folder) for folder in folders]
    for one in saved:
        for shard in shards:
            _check_rules(one, shard)
    if len(saved) == len(shards) and all(map(_same_make, saved, shards)):
        for one, shard in zip(saved, shards, strict=True):
            _restore_exactly(one, shard)
        return
    _Spread(saved, shards).run()


def _open(folder: Path) -> _Saved:
    """Read a manifest and verify its files."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"snapshot={folder} has no readable {MANIFEST} ({error}): it was never finished or is damaged. "
            "Restore another checkpoint."
        ) from error
    if manifest.get("format") != FORMAT:
        raise CheckpointError(
            f"snapshot={folder} has format {manifest.get('format')!r}, not {FORMAT!r}: its rows cannot be "
            "read. Use the version that wrote it."
        )
    for file in manifest["files"]:
        path = folder / file["name"]
        size = path.stat().st_size if path.is_file() else -1
        if size != file["bytes"] or _sha256(path) != file["sha256"]:
            what = "is missing" if size < 0 else f"has {size} bytes of {file['bytes']}, or other content"
            raise CheckpointError(
                f"file={path} {what}: the replay snapshot is damaged. Restore another checkpoint, or start "
                "without replay."
            )
    return _Saved(folder, manifest)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_HASH_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _check_rules(saved: _Saved, shard: ReplayShard) -> None:
    specs = shard.store.data_specs | shard.store.link_specs
    here = {name: {"dtype": s.dtype, "shape": list(s.shape)} for name, s in specs.items()}
    pairs = [(saved.manifest["rules"], shard.rules(), "setting"), (saved.manifest["columns"], here, "column")]
    for there, wanted, what in pairs:
        for name in sorted(set(there) | set(wanted)):
            if there.get(name) != wanted.get(name):
                raise CheckpointError(
                    f"snapshot={saved.folder}: {what} {name!r} was {there.get(name)!r} and is "
                    f"{wanted.get(name)!r} now: its items would mean something else. Restore with the "
                    "settings it was written with."
                )


def _same_make(saved: _Saved, shard: ReplayShard) -> bool:
    make = saved.manifest["state"]["store"]["eviction"]
    return bool(saved.manifest["capacity"] == shard.store.capacity and make == shard.settings.eviction)


def _restore_exactly(saved: _Saved, shard: ReplayShard) -> None:
    specs = saved.specs(shard.sampler.columns())
    item_specs = {name: specs[name] for name in [ROW, *shard.sampler.columns()]}
    row_specs = {name: spec for name, spec in specs.items() if name not in item_specs or name == ROW}
    for batch in saved.batches(row_specs):
        for name in shard.store.columns:
            shard.store.columns[name][batch[ROW]] = batch[name]
    shard.restore(saved.manifest["state"])
    items = saved.columns(item_specs)
    shard.sampler.load(items[ROW], items)


class _Spread:
    """Rows of several snapshots on their way to other shards. All rows carry one number, in [0, R)."""

    def __init__(self, saved: Sequence[_Saved], shards: Sequence[ReplayShard]) -> None:
        self._saved, self._shards = saved, shards
        item_columns = shards[0].sampler.columns()
        self._item_names = list(item_columns)
        links = [*shards[0].store.link_specs, "serial", "offset", "flags", "reward", *self._item_names, ROW]
        parts = [one.columns({name: one.specs(item_columns)[name] for name in links}) for one in saved]
        self._base = np.cumsum([0, *(part[ROW].size for part in parts)])
        joined = {name: np.concatenate([part[name] for part in parts]) for name in links}
        self._links: Columns = joined
        for name in ("next_row", "prev_row"):
            joined[name] = np.concatenate(
                [_numbers(part, name, base) for part, base in zip(parts, self._base, strict=False)]
            )
        inserted = [one.manifest["state"]["store"]["inserted_rows"] for one in saved]
        self._age = np.concatenate(
            [total - part["serial"] for total, part in zip(inserted, parts, strict=True)]
        )

    def run(self) -> None:
        shard_of = self._assign()
        place: Int64Array = np.full(shard_of.size, -1, np.int64)  # row in its new shard
        chosen = []
        for number, shard in enumerate(self._shards):
            mine = np.flatnonzero(shard_of == number)
            mine = self._fitting(mine[np.argsort(-self._age[mine], kind="stable")], shard)
            place[mine] = np.arange(mine.size)
            chosen.append(mine)
        self._copy_data(shard_of, place)
        states = [one.manifest["state"] for one in self._saved]
        for shard, mine in zip(self._shards, chosen, strict=True):
            self._fill(shard, mine, place, states)

    def _assign(self) -> Int64Array:
        """New shard of every row [R]; the rows of a stream go together."""
        root = np.arange(self._age.size)
        before = self._links["prev_row"]
        root[before >= 0] = before[before >= 0]
        while (root[root] != root).any():
            root = root[root]
        heads, stream, size = np.unique(root, return_inverse=True, return_counts=True)
        load = [(0, number) for number in range(len(self._shards))]
        shard_of_stream = np.zeros(heads.size, np.int64)
        for one in np.argsort(-size, kind="stable").tolist():
            rows, number = heapq.heappop(load)
            shard_of_stream[one] = number
            heapq.heappush(load, (rows + int(size[one]), number))
        self._stream: Int64Array = np.asarray(stream, np.int64)
        return np.asarray(shard_of_stream[stream])

    def _fitting(self, mine: Int64Array, shard: ReplayShard) -> Int64Array:
        """Those of a shard's rows (oldest first) that fit: the newest; whole streams if it keeps such."""
        excess = mine.size - shard.store.capacity
        if excess <= 0:
            return mine
        if shard.settings.eviction == "fifo_steps":
            return mine[excess:]
        streams, first, size = np.unique(self._stream[mine], return_index=True, return_counts=True)
        oldest = np.argsort(first, kind="stable")
        gone = streams[oldest[: int(np.searchsorted(np.cumsum(size[oldest]), excess)) + 1]]
        return mine[~np.isin(self._stream[mine], gone)]

    def _copy_data(self, shard_of: Int64Array, place: Int64Array) -> None:
        names = [name for name in self._shards[0].store.data_specs if name != "serial"]
        for one, base in zip(self._saved, self._base, strict=False):
            at, specs = int(base), one.specs({})
            for batch in one.batches({name: specs[name] for name in names}):
                part = slice(at, at + batch["flags"].size)
                at = part.stop
                for number, shard in enumerate(self._shards):
                    take = np.flatnonzero((shard_of[part] == number) & (place[part] >= 0))
                    for name in names:
                        shard.store.columns[name][place[part][take]] = batch[name][take]

    def _fill(
        self, shard: ReplayShard, mine: Int64Array, place: Int64Array, states: list[dict[str, Any]]
    ) -> None:
        """Links, items and state of one new shard from its rows `mine`, oldest first."""
        store, rows = shard.store, np.arange(mine.size)
        store.columns["serial"][rows] = rows
        for name in ("next_row", "prev_row"):
            at = self._links[name][mine]
            store.columns[name][rows] = np.where(at >= 0, place[at], -1)
        if "return_to_go" in store.columns:
            store.columns["return_to_go"][rows] = self._links["return_to_go"][mine]
        tails = rows[(store.next_row[rows] < 0) | (store.flags[rows] == FINAL)]
        store.adopt(mine.size, tails, merged_state([state["store"]["streams"] for state in states]))
        shard.raise_max_priority(max(float(state["max_priority"]) for state in states))
        kept = {name: self._links[name][mine] for name in self._item_names}
        shard.adopt_items(rows, kept)


def _numbers(part: Columns, name: str, base: np.int64) -> Int64Array:
    """A link column in numbers over all snapshots instead of rows of its own shard."""
    rows, link = part[ROW], part[name].astype(np.int64)
    found = np.searchsorted(rows, link)  # rows are in ascending order
    return np.where(link >= 0, found + base, -1)
