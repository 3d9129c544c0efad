"""From a run's replay to a dataset: the episodes that a checkpoint stored whole.

What a policy did while it learned, from its first bad episodes on, is data of mixed quality for another. An
episode is written if all of its rows are there: not one that had not ended, was cut, or lost its beginning to
newer rows. Rewards are those that were learned from.
Dims: E episodes, R rows.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from seqrl_ray.data.writer import DatasetWriter
from seqrl_ray.recipe_replay import ReplaySettings
from seqrl_ray.replay.columns import FINAL, TERMINATED, TRUNCATED
from seqrl_ray.replay.restore import restore
from seqrl_ray.replay.shard import ReplayShard
from seqrl_ray.replay.store import Store
from seqrl_ray.types import IntArray, SampleSpec

CHUNK_ROWS = 65_536
"""Most rows written at once; a longer episode is written alone."""


def write_replay(
    snapshots: Sequence[Path], spec: SampleSpec, settings: ReplaySettings, writer: DatasetWriter
) -> int:
    """Write the whole episodes of one policy's replay, in the order in which they ended.

    Args:
        snapshots: of all its shards.
        spec: of the algorithm they were stored for.
        settings: as the run had them.
        writer: of an open dataset of the policy's group.
    Returns: decisions that are stored and were left out.
    Raises: CheckpointError: a snapshot is damaged, or was written with other settings.
    """
    with tempfile.TemporaryDirectory(dir=writer.folder.parent) as spare:
        # one shard for all; a living run may have its columns in the folder that the settings name
        alone = {"shards": 1, "memmap_folder": spare if settings.memmap_folder else None}
        shard = ReplayShard(writer.group, spec, settings.model_copy(update=alone), seed=0)
        restore(snapshots, [shard])
        live = shard.store.live_rows()  # [R]
        decisions = int(np.count_nonzero(shard.store.flags[live] != FINAL))
        chunk: list[IntArray] = []
        for rows in _whole_episodes(shard.store):
            if chunk and sum(map(len, chunk)) + len(rows) > CHUNK_ROWS:
                _write(shard.store, chunk, writer)
                chunk = []
            chunk.append(rows)
        _write(shard.store, chunk, writer)
    return decisions - writer.steps


def _whole_episodes(store: Store) -> Iterator[IntArray]:
    """Yield the rows of every whole episode, its final row last."""
    live = store.live_rows()
    tails = live[store.flags[live] == FINAL]  # [E]
    for tail in tails[np.argsort(store.columns["serial"][tails])].tolist():
        rows = np.array(store.chain(tail))
        if store.offset[rows[0]] == 0 and len(rows) > 1:
            yield rows


def _write(store: Store, episodes: Sequence[IntArray], writer: DatasetWriter) -> None:
    if not episodes:
        return
    ends = np.array([rows[-1] for rows in episodes])  # [E]
    rows = np.concatenate([rows[:-1] for rows in episodes])  # [R]
    names = ["obs", "action", "reward", *(["legal"] if writer.group.masked else [])]
    flags = store.flags[rows]
    writer.append_many(
        {
            **{name: store.columns[name][rows] for name in names},
            "terminated": (flags & TERMINATED) != 0,
            "truncated": (flags & TRUNCATED) != 0,
        },
        np.array([len(episode) - 1 for episode in episodes]),
        store.columns["obs"][ends],
        final_legal=store.columns["legal"][ends] if writer.group.masked else None,
    )
