"""Merging datasets: the episodes of several, one after the other, as one dataset.

What a policy of one quality never shows, several together do: a mixed dataset is collected part by part (each
with a policy or a noise of its own) and merged.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seqrl_ray.data.dataset import Dataset, trajectories
from seqrl_ray.data.writer import DatasetWriter
from seqrl_ray.errors import DataError


def merge(sources: Sequence[Path | str], folder: Path | str) -> Dataset:
    """Write the episodes of `sources`, in their order, into a new dataset; in bounded memory.

    Metadata that all sources agree on stays; `merged` lists each source's folder, episodes, steps, and the
    metadata that is its own.

    Args:
        sources: dataset folders, at least two, of equal observations, actions and agents.
        folder: the new dataset's; must not exist.

    Returns: the new dataset.
    Raises: DataError: fewer than two sources, one that is no dataset or of another group, or `folder` exists.
    """
    if len(sources) < 2:
        raise DataError(
            f"sources={[str(s) for s in sources]} are fewer than two datasets: there is nothing to merge. "
            "Name more of them before the new folder."
        )
    parts = [Dataset.open(source) for source in sources]
    for part in parts[1:]:
        if part.group != parts[0].group:
            raise DataError(
                f"source={part.folder} has {part.group}, {parts[0].folder} has {parts[0].group}: no policy "
                "is for both. Collect them with the same environment."
            )
    with DatasetWriter(folder, parts[0].group, meta=_meta(parts)) as writer:
        for part in parts:
            for fragment in trajectories(part):
                final = fragment.columns["final"]  # [R]
                ends = {name: column[final] for name, column in fragment.columns.items()}
                writer.append_many(
                    {name: c[~final] for name, c in fragment.columns.items() if name != "final"},
                    fragment.length - 1,
                    ends["obs"],
                    final_legal=ends.get("legal"),
                    seeds=part.episode_seed[fragment.episode],
                )
    return Dataset.open(folder)


def _meta(parts: Sequence[Dataset]) -> dict[str, Any]:
    first, *others = (part.meta for part in parts)
    common = {k: v for k, v in first.items() if all(k in o and o[k] == v for o in others)}
    merged = [
        {
            "source": str(part.folder),
            "episodes": part.episodes,
            "steps": part.steps,
            **{key: value for key, value in part.meta.items() if key not in common},
        }
        for part in parts
    ]
    return {**common, "merged": merged}
