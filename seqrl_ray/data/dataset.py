"""An offline dataset on disk, and how it becomes experience: open, choose episodes, yield trajectories.

A dataset is a folder: `manifest.json` and one memory-mappable `.npy` per column, rows stream after stream in
the store's layout (see `types_env.Trajectory`): every episode's decisions, then one `final` row that holds
only its observation. Frames are stored once each, also where the policy sees a stack of them. The format in
full: docs/data.md. Writing it: `writer.py`.

Dims: E episodes, N decisions, R = N + E rows, P pieces of a fragment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqrl_ray.data.manifest import (
    EPISODE_FILES,
    MANIFEST,
    column_specs,
    group_from_json,
    read_manifest,
)
from seqrl_ray.data.npy import open_npy
from seqrl_ray.errors import DataError
from seqrl_ray.types import Array, FloatArray, GroupSpec, IntArray
from seqrl_ray.types_env import Trajectory

Int64Array = NDArray[np.int64]
Float64Array = NDArray[np.float64]

STD_FLOOR = 1e-6
"""Added to every standard deviation, so that a constant feature divides by something."""

LANES = 4_096
"""Episode e is inserted as a life of slot e % LANES. The name of a stream depends on the episode alone, and a
shard, which takes the lives of one slot one after the other, admits the episodes of a fragment at once.
"""

_STATISTICS_BYTES = 32_000_000


@dataclass(frozen=True)
class Dataset:
    """An opened dataset. Columns are memory-mapped, read only; it travels to other processes by its path."""

    folder: Path
    group: GroupSpec
    columns: Mapping[str, Array]
    """Name -> [R, ...]: obs, action, reward, terminated, truncated, final, and legal in a masked group."""
    episode_start: Int64Array  # [E] first row
    episode_rows: Int64Array  # [E] rows, the final one included
    episode_seed: Int64Array  # [E] reset seed, -1 = unknown
    episode_return: Float64Array  # [E] summed reward
    meta: Mapping[str, Any]
    created_by: str

    @classmethod
    def open(cls, folder: Path | str, *, verify: bool = False) -> Dataset:
        """Open a dataset folder.

        Args:
            folder: what a `DatasetWriter` closed.
            verify: also compare every file's hash, which reads all of it. Sizes are always compared.
        Raises: DataError: it is no dataset, of another format, cut short or changed.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        group = group_from_json(manifest["group"])
        wanted = column_specs(group)
        files: dict[str, Array] = {}
        for name, spec in (wanted | EPISODE_FILES).items():
            entry = manifest["files"].get(name, {})
            count = manifest["rows" if name in wanted else "episodes"]
            if entry.get("dtype") != spec.dtype or entry.get("shape") != [count, *spec.shape]:
                raise DataError(
                    f"file={folder / MANIFEST} describes column {name!r} as {entry.get('dtype')} "
                    f"{entry.get('shape')}, not {spec.dtype} {[count, *spec.shape]}: the dataset contradicts "
                    "its group. Import it again."
                )
            files[name] = open_npy(folder / f"{name}.npy", entry, verify=verify)
        index = {name: np.array(files[name]) for name in EPISODE_FILES}
        dataset = cls(
            folder,
            group,
            {name: files[name] for name in wanted},
            **index,
            meta=manifest["meta"],
            created_by=str(manifest.get("created_by", "")),
        )
        dataset._check_index()
        return dataset

    @property
    def episodes(self) -> int:
        """E."""
        return int(self.episode_rows.size)

    @property
    def rows(self) -> int:
        """R: decisions and final rows."""
        return int(self.columns["final"].shape[0])

    @property
    def steps(self) -> int:
        """N: decisions."""
        return self.rows - self.episodes

    @property
    def nbytes(self) -> int:
        """Bytes of all columns."""
        return sum(int(column.nbytes) for column in self.columns.values())

    def returns(self) -> Float64Array:
        """Undiscounted return of every episode, [E]."""
        return self.episode_return

    def lengths(self) -> Int64Array:
        """Decisions of every episode, [E]."""
        return self.episode_rows - 1

    def _check_index(self) -> None:
        """Raise DataError if the index does not cut the rows into episodes."""
        start, rows = self.episode_start, self.episode_rows
        ends = np.cumsum(rows)
        if (rows < 2).any() or int(ends[-1]) != self.rows or (start != ends - rows).any():
            raise DataError(
                f"folder={self.folder}: episode_start and episode_rows do not cut the {self.rows} rows into "
                "episodes: they would be read across their ends. Import the dataset again."
            )

    def __reduce__(self) -> tuple[Callable[[Path], Dataset], tuple[Path]]:
        return Dataset.open, (self.folder.absolute(),)


def trajectories(
    dataset: Dataset,
    *,
    episodes: IntArray | None = None,
    chunk_rows: int = 65_536,
    policy_id: str | None = None,
    writer: str = "dataset",
) -> Iterator[Trajectory]:
    """Yield episodes as fragments a replay shard inserts, in the dataset's order.

    Args:
        dataset: where they are.
        episodes: [E'] numbers of the episodes, each once, in any order; None = all.
        chunk_rows: most rows of one fragment (a longer episode is a fragment of its own).
        policy_id: whose experience it becomes; None = the dataset's own.
        writer: name under which the rows are inserted.

    Yields: fragments whose pieces are whole episodes. Columns of neighbouring episodes are views of the
        memory map, read only.
    Raises: DataError: an episode that does not exist, or is named twice.
    """
    numbers = _numbers(dataset, episodes)
    ends = np.cumsum(dataset.episode_rows[numbers])  # [E'] rows up to and with each
    first = 0
    while first < numbers.size:
        before = int(ends[first - 1]) if first else 0
        stop = max(first + 1, int(np.searchsorted(ends, before + chunk_rows, side="right")))
        chosen = numbers[first:stop]  # [P]
        place = _places(dataset, chosen)
        count = chosen.size
        yield Trajectory(
            policy_id=dataset.group.policy_id if policy_id is None else policy_id,
            writer=writer,
            incarnation=0,
            weights=(0, 0),
            slot=chosen % LANES,
            episode=chosen,
            offset=np.zeros(count, np.int64),
            length=dataset.episode_rows[chosen],
            columns={name: np.asarray(column[place]) for name, column in dataset.columns.items()},
            env_steps=0,
        )
        first = stop


def select(
    dataset: Dataset,
    *,
    min_return: float | None = None,
    top_share: float | None = None,
    top_episodes: int | None = None,
    max_episodes: int | None = None,
) -> Int64Array:
    """Choose episodes. Each filter applies to what the one before it left, in the order of the arguments.

    Source: `top_share` is the %BC rule of Decision Transformer (kzl/decision-transformer, gym/experiment.py):
    the best episodes by return while their steps sum to at most the share of all steps, and at least one.
    Among equal returns the earlier episode is better.

    Args:
        dataset: where the episodes are.
        min_return: leave out episodes below this return.
        top_share: share of the steps, in (0, 1].
        top_episodes: number of best episodes by return, at least 1.
        max_episodes: the first so many, in the dataset's order, at least 1.

    Returns: episode numbers, ascending.
    Raises: DataError: a bound is out of range, or nothing is left.
    """
    if top_share is not None and not 0.0 < top_share <= 1.0:
        raise DataError(
            f"top_share={top_share} is not in (0, 1]: it is a share of the steps. Change top_share."
        )
    for name, value in (("top_episodes", top_episodes), ("max_episodes", max_episodes)):
        if value is not None and value < 1:
            raise DataError(f"{name}={value} is below 1: no episode would be left. Raise {name}.")
    returns, lengths = dataset.returns(), dataset.lengths()
    kept = np.arange(dataset.episodes)
    if min_return is not None:
        kept = kept[returns >= min_return]
        if kept.size == 0:
            raise DataError(
                f"min_return={min_return} is above the best return {returns.max():g} of {dataset.folder}: no "
                "episode is left. Lower min_return."
            )
    if top_share is not None:
        best = kept[np.argsort(-returns[kept], kind="stable")]
        budget = int(top_share * int(lengths[kept].sum()))
        kept = np.sort(best[: max(1, int(np.searchsorted(np.cumsum(lengths[best]), budget, side="right")))])
    if top_episodes is not None:
        kept = np.sort(kept[np.argsort(-returns[kept], kind="stable")[:top_episodes]])
    return kept[:max_episodes]


def obs_mean_std(dataset: Dataset, episodes: IntArray | None = None) -> tuple[Float64Array, Float64Array]:
    """Mean and standard deviation of every feature over the decisions of the episodes.

    Exact in float64 and in bounded memory: chunks are merged by the formula of Chan, Golub and LeVeque (1983,
    https://doi.org/10.2307/2683386), which does not lose digits where the mean is large.

    Args:
        dataset: where they are.
        episodes: [E'] numbers of the episodes, each once; None = all.

    Returns: mean [*obs] and std [*obs] (of the population, plus `STD_FLOOR`), float64.
    """
    obs, final = dataset.columns["obs"], dataset.columns["final"]
    mean, square = np.zeros(obs.shape[1:]), np.zeros(obs.shape[1:])
    seen = 0
    chunk_rows = max(1, _STATISTICS_BYTES // max(8, 8 * dataset.group.obs.size))
    for begin, end in _runs(dataset, _numbers(dataset, episodes)):
        for at in range(begin, end, chunk_rows):
            part = slice(at, min(at + chunk_rows, end))
            values = obs[part][~final[part]].astype(np.float64)  # [n, *obs]
            count = len(values)
            if count == 0:
                continue
            part_mean = values.mean(axis=0)
            values -= part_mean
            shift = part_mean - mean
            seen += count
            mean += shift * (count / seen)
            square += np.square(values, out=values).sum(axis=0) + shift**2 * (count * (seen - count) / seen)
    return mean, np.sqrt(square / seen) + STD_FLOOR


def check_flags(dataset: Dataset) -> None:
    """Raise DataError if final rows, flags or returns contradict the index. Reads three small columns."""
    flags = {name: np.asarray(dataset.columns[name]) for name in ("terminated", "truncated", "final")}
    ends = dataset.episode_start + dataset.episode_rows - 1
    at_end, before = np.zeros((2, dataset.rows), np.bool_)
    at_end[ends], before[ends - 1] = True, True
    done = (flags["terminated"] | flags["truncated"]) & ~flags["final"]
    reward = np.where(flags["final"], 0.0, dataset.columns["reward"]).astype(np.float64)
    returns: FloatArray = np.add.reduceat(reward, dataset.episode_start)
    if (flags["final"] != at_end).any() or (done != before).any():
        raise DataError(
            f"folder={dataset.folder}: a flag stands where no episode ends, or is missing at an end: views "
            "would bootstrap wrongly. Import the dataset again."
        )
    if not np.allclose(returns, dataset.episode_return, rtol=1e-9, atol=1e-9):
        raise DataError(
            f"folder={dataset.folder}: episode_return is not the sum of the rewards: episodes would be "
            "chosen wrongly. Import the dataset again."
        )


def _numbers(dataset: Dataset, episodes: IntArray | None) -> Int64Array:
    """The episodes asked for, ascending: a stream's newer episode closes the older ones of its slot."""
    if episodes is None:
        return np.arange(dataset.episodes)
    numbers = np.sort(np.asarray(episodes, np.int64))
    if (
        numbers.size == 0
        or numbers[0] < 0
        or numbers[-1] >= dataset.episodes
        or (np.diff(numbers) == 0).any()
    ):
        raise DataError(
            f"episodes={numbers.tolist()[:8]}{'...' if numbers.size > 8 else ''} are not distinct numbers in "
            f"[0, {dataset.episodes}), at least one: they cannot be read. Take them from `select`."
        )
    return numbers


def _runs(dataset: Dataset, numbers: Int64Array) -> list[tuple[int, int]]:
    """Rows [begin, end) of neighbouring episodes."""
    breaks = np.flatnonzero(np.diff(numbers) != 1) + 1
    first = numbers[np.concatenate(([0], breaks))]
    last = numbers[np.concatenate((breaks - 1, [numbers.size - 1]))]
    begin = dataset.episode_start[first]
    end = dataset.episode_start[last] + dataset.episode_rows[last]
    return list(zip(begin.tolist(), end.tolist(), strict=True))


def _places(dataset: Dataset, numbers: Int64Array) -> slice | Int64Array:
    """Rows of ascending episodes: a slice where they are neighbours, else their numbers."""
    runs = _runs(dataset, numbers)
    if len(runs) == 1:
        return slice(*runs[0])
    return np.concatenate([np.arange(begin, end) for begin, end in runs])
