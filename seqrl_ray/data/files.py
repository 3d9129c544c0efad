"""Datasets from plain files: HDF5 as D4RL lays it out, and npz with the same keys or stable-baselines' own.

Sources: D4RL (https://github.com/Farama-Foundation/D4RL, `get_dataset`): `observations, actions, rewards,
terminals, timeouts`, optionally `next_observations`; `infos/` and `metadata/` are left out.
stable-baselines 2 (`gail/dataset/record_expert.py`): `obs, actions, rewards, episode_starts`.

Our rows need the observation after every episode's last decision, and such files often lack it:

| last row of an episode | next_observations given | without                                                |
|------------------------|-------------------------|--------------------------------------------------------|
| terminal               | kept                    | kept; its own observation stands for the one after it  |
| timeout                | kept                    | the decision is dropped, its observation is the final  |
| end of file, no flag   | kept as truncated       | the unfinished episode is dropped                      |

With episode_starts alone, an episode that reaches the environment's step limit was truncated, any other
terminated. What was dropped or guessed is said in `meta["notes"]`.

Dims: N rows of the file, E episodes.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from seqrl_ray.data.dataset import Dataset
from seqrl_ray.data.layout import Layout, layout_of, layout_of_env
from seqrl_ray.data.writer import DatasetWriter
from seqrl_ray.errors import DataError
from seqrl_ray.types import Array, BoolArray

Int64Array = NDArray[np.int64]

_AT_ONCE_BYTES = 64_000_000


def import_hdf5(source: Path | str, folder: Path | str, *, env: str | None = None) -> Dataset:
    """Write a D4RL HDF5 file as our dataset.

    Args:
        source: the file.
        folder: of the new dataset; must not exist.
        env: Gymnasium id whose spaces the file's arrays are of; None = guess them from the arrays.

    Returns: the new dataset; `meta["notes"]` says what was dropped or guessed.
    Raises: DataError: the file cannot be read, lacks an array, or holds what cannot be stored.
    """
    try:
        import h5py
    except ImportError:
        raise DataError(
            "format=hdf5 needs the package h5py, which is not installed: the file cannot be read. Run: pip "
            "install h5py"
        ) from None
    try:
        with h5py.File(source, "r") as file:
            arrays = {name: value for name, value in file.items() if isinstance(value, h5py.Dataset)}
            return _import(arrays, "hdf5", Path(source), folder, env)
    except OSError as error:
        raise _unreadable(source, error) from None


def import_npz(source: Path | str, folder: Path | str, *, env: str | None = None) -> Dataset:
    """Write an npz file as our dataset; its arrays are read whole. Arguments as for `import_hdf5`."""
    try:
        opened = np.load(source, allow_pickle=False)
        if not isinstance(opened, np.lib.npyio.NpzFile):
            raise ValueError("it holds one array, not several by name")
        with opened as file:
            wanted = {name for names in (_D4RL, _STARTS) for name in names}
            arrays = {name: file[name] for name in file.files if name in wanted}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise _unreadable(source, error) from None
    return _import(arrays, "npz", Path(source), folder, env)


_D4RL = ("observations", "actions", "rewards", "terminals", "timeouts", "next_observations")
_STARTS = ("obs", "actions", "rewards", "episode_starts")


@dataclass(frozen=True)
class _Plan:
    """Which rows of the file become which episodes."""

    first: Int64Array  # [E] first row
    stop: Int64Array  # [E] one past the last row
    terminated: BoolArray  # [E]
    truncated: BoolArray  # [E]
    shorter: BoolArray  # [E] the last row gives only its observation, as the final one
    notes: tuple[str, ...]


def _import(
    arrays: Mapping[str, Any], kind: str, source: Path, folder: Path | str, env: str | None
) -> Dataset:
    obs_name = "obs" if "episode_starts" in arrays and "obs" in arrays else "observations"
    _check_arrays(arrays, obs_name, source)
    meta: dict[str, Any] = {"source": {"kind": kind, "file": source.name}}
    limit: int | None = None
    guesses: list[str] = []
    if env is None:
        layout, guesses = _guessed(arrays[obs_name], arrays["actions"], source)
    else:
        layout, spec = layout_of_env(env)
        limit, meta["env"], meta["env_spec"] = spec.max_episode_steps, spec.id, spec.to_json()
        if layout.group.masked:
            raise DataError(
                f"env={env!r} masks actions and {source} holds no masks: what was legal is unknown. Import "
                "from a format that has them."
            )
    plan = _by_starts(arrays, limit) if obs_name == "obs" else _by_flags(arrays)
    meta["notes"] = [*guesses, *plan.notes]
    if plan.first.size == 0:
        raise DataError(
            f"source={source} holds no episode that can be kept: {' '.join(plan.notes)} Give a file with "
            "next_observations."
        )
    with DatasetWriter(folder, layout.group, meta=meta) as writer:
        _write(writer, plan, arrays, obs_name, layout)
    return Dataset.open(folder)


def _check_arrays(arrays: Mapping[str, Any], obs_name: str, source: Path) -> None:
    ends = ("episode_starts",) if obs_name == "obs" else ("terminals", "timeouts")
    for name in (obs_name, "actions", "rewards", *ends):
        if name not in arrays:
            why = ": episodes cut by a time limit would be joined" if name == "timeouts" else ""
            raise DataError(
                f"source={source} has no array {name!r}, it has {', '.join(sorted(arrays)) or 'none'}: it is "
                f"in no layout known here{why}. Add it, or see docs/data.md for the layouts."
            )
    rows = {name: len(arrays[name]) for name in (*_D4RL, *_STARTS) if name in arrays}
    if len(set(rows.values())) > 1 or 0 in rows.values():
        raise DataError(
            f"source={source} has arrays of different lengths, or none ({rows}): rows cannot be told apart. "
            "Correct the file."
        )


def _by_flags(arrays: Mapping[str, Any]) -> _Plan:
    """Episodes of a D4RL file."""
    terminal, timeout = (
        np.asarray(arrays[n]).reshape(-1).astype(np.bool_) for n in ("terminals", "timeouts")
    )
    stop = np.flatnonzero(terminal | timeout) + 1
    rows, known, notes = len(terminal), "next_observations" in arrays, []
    tail = rows - (int(stop[-1]) if stop.size else 0)
    if tail and known:
        stop = np.append(stop, rows)
        notes.append(f"Rows without an end, taken as a truncated episode: {tail}.")
    elif tail:
        notes.append(f"Rows without an end and without next_observations, dropped: {tail}.")
    first = np.concatenate(([0], stop[:-1])) if stop.size else stop
    terminated = terminal[stop - 1]
    return _planned(first, stop, terminated, timeout[stop - 1] | ~terminated, known, notes)


def _by_starts(arrays: Mapping[str, Any], limit: int | None) -> _Plan:
    """Episodes of a stable-baselines file."""
    first = np.flatnonzero(np.asarray(arrays["episode_starts"]).reshape(-1))
    rows, notes = len(arrays["rewards"]), []
    before = int(first[0]) if first.size else rows
    if before:
        notes.append(f"Rows before the first episode start, dropped: {before}.")
    stop = np.append(first[1:], rows) if first.size else first
    truncated = np.zeros(first.size, np.bool_) if limit is None else stop - first >= limit
    if limit is None:
        notes.append(
            "The file does not say how episodes ended: all count as terminated. Name the environment (--env) "
            "if it has a step limit."
        )
    return _planned(first, stop, ~truncated, truncated, False, notes)


def _planned(
    first: Int64Array,
    stop: Int64Array,
    terminated: BoolArray,
    truncated: BoolArray,
    known: bool,
    notes: list[str],
) -> _Plan:
    """The table of the module's docstring; `known`: next_observations are given."""
    shorter = np.zeros(first.size, np.bool_) if known else truncated & ~terminated
    lost = shorter & (stop - first == 1)
    if shorter.any():
        notes.append(
            "Truncated episodes without next_observations, whose last decision was dropped and gives the "
            f"final observation: {int((shorter & ~lost).sum())}."
        )
    if lost.any():
        notes.append(
            f"Truncated episodes of one decision without next_observations, dropped: {int(lost.sum())}."
        )
    if not known and (~shorter).any():
        notes.append(
            "Terminated episodes without next_observations, whose last observation stands for the final one: "
            f"{int((~shorter).sum())}."
        )
    kept = ~lost
    return _Plan(first[kept], stop[kept], terminated[kept], truncated[kept], shorter[kept], tuple(notes))


def _write(
    writer: DatasetWriter, plan: _Plan, arrays: Mapping[str, Any], obs_name: str, layout: Layout
) -> None:
    """Append the episodes, a bounded number of rows at a time."""
    obs, actions, after = arrays[obs_name], arrays["actions"], arrays.get("next_observations")
    row_bytes = sum(int(np.prod(a.shape[1:])) * a.dtype.itemsize for a in (obs, actions)) + 16
    at_once = max(1, _AT_ONCE_BYTES // row_bytes)
    episode = 0
    while episode < plan.first.size:
        begin = int(plan.first[episode])
        next_ = max(episode + 1, int(np.searchsorted(plan.stop, begin + at_once, side="right")))
        part = slice(episode, next_)
        first, stop, shorter = plan.first[part], plan.stop[part], plan.shorter[part]
        end = int(stop[-1])
        inside = _inside(first - begin, stop - begin, end - begin)
        kept = inside.copy()
        kept[(stop - 1 - begin)[shorter]] = False  # rows of the file that are decisions of ours
        rows = layout.encode_obs(np.asarray(obs[begin:end]))[0]
        last = stop - 1 - begin
        final = rows[last] if after is None else layout.encode_obs(np.asarray(after[begin:end])[last])[0]
        lengths = stop - first - shorter
        flags = {name: np.zeros(int(lengths.sum()), np.bool_) for name in ("terminated", "truncated")}
        ends = np.cumsum(lengths) - 1
        flags["terminated"][ends], flags["truncated"][ends] = plan.terminated[part], plan.truncated[part]
        columns = {
            "obs": rows[kept],
            "action": _actions(actions[begin:end], layout)[kept],
            "reward": np.asarray(arrays["rewards"][begin:end]).reshape(-1)[kept],
        }
        writer.append_many(columns | flags, lengths, final)
        episode = next_


def _inside(first: Int64Array, stop: Int64Array, rows: int) -> BoolArray:
    """Which of `rows` rows lie in one of the episodes [first, stop)."""
    edges = np.zeros(rows + 1, np.int64)
    np.add.at(edges, first, 1)
    np.add.at(edges, stop, -1)
    return np.cumsum(edges[:-1]) > 0


def _actions(values: Any, layout: Layout) -> Array:
    """Actions as stored, whether a file writes one number per row or a column of them."""
    values = np.asarray(values)
    shape = layout.action_space.shape or ()
    if values[:1].size == int(np.prod(shape)):
        values = values.reshape(len(values), *shape)
    return layout.encode_actions(values)


def _guessed(obs: Any, actions: Any, source: Path) -> tuple[Layout, list[str]]:
    """Spaces of arrays that come without any."""
    notes = []
    shape, kind = obs.shape[1:], obs.dtype.kind
    if kind not in "biuf" or (kind in "biu" and not shape):
        raise DataError(
            f"observations of {source} are single values of type {obs.dtype}: how many there are is not in "
            "the file. Name the environment they are of (--env)."
        )
    if obs.dtype == np.uint8 and len(shape) in (2, 3):
        obs_space = spaces.Box(0, 255, shape, np.uint8)
    else:
        obs_space = spaces.Box(-np.inf, np.inf, shape, np.float32)
    values = np.asarray(actions)
    action_space: spaces.Space[Any]
    if values.dtype.kind in "iu" and values[:1].size == 1:
        if values.min() < 0:
            raise DataError(
                f"actions of {source} start at {values.min()}: how many there are is not in the file. Name "
                "the environment they are of (--env)."
            )
        action_space = spaces.Discrete(int(values.max()) + 1)
        notes.append(f"The file has no action space: the largest action makes it {action_space}.")
    else:
        bound = 1.0 if np.abs(values).max() <= 1.0 else np.inf
        action_space = spaces.Box(-bound, bound, values.shape[1:] or (1,), np.float32)
        notes.append(f"The file has no action space: the values make it [{-bound}, {bound}].")
    return layout_of(obs_space, action_space, str(source)), notes


def _unreadable(source: Path | str, error: Exception) -> DataError:
    return DataError(
        f"source={str(source)!r} cannot be read ({' '.join(str(error).split())}): nothing was imported. "
        "Correct the path, or get the file again."
    )
