"""Writing a dataset folder: whole episodes, appended in bounded memory.

Rows go straight to one growing `.npy` file per column; only the episode index (32 bytes per episode) is held.
`close` writes the manifest last, so a kill at any earlier moment leaves a folder that is no dataset. What is
appended is checked as it comes: shapes, finite numbers, action indices, and that flags stand at an episode's
last decision and nowhere else.

Dims: E episodes, N decisions, R = N + E rows, T decisions of one episode, A actions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqrl_ray import __version__
from seqrl_ray.data import folders
from seqrl_ray.data.manifest import EPISODE_FILES, column_specs, write_manifest
from seqrl_ray.data.npy import GrowingNpy
from seqrl_ray.errors import DataError
from seqrl_ray.types import Array, BoolArray, GroupSpec, IntArray

Int64Array = NDArray[np.int64]

UNKNOWN_SEED = -1


class DatasetWriter:
    """Makes one dataset. As a context manager it closes at the end, and removes its files on an error."""

    def __init__(
        self, folder: Path | str, group: GroupSpec, *, meta: Mapping[str, Any] | None = None
    ) -> None:
        """Make the folder and its files.

        Args:
            folder: must not exist; its parents are made.
            group: what a row holds (`obs` is one frame where frames are stacked).
            meta: JSON values kept in the manifest, see docs/data.md; `self.meta` may be changed until
                `close`.
        Raises: DataError: the folder exists or cannot be written, or `meta` is not JSON.
        """
        self.folder, self.group = Path(folder), group
        self.meta: dict[str, Any] = dict(meta or {})
        _check_json(self.meta)
        self._specs = column_specs(group)
        self._episodes: dict[str, list[Array]] = {name: [] for name in EPISODE_FILES}
        self.rows = self.episodes = 0
        self._files: dict[str, GrowingNpy] = {}
        try:
            self._made = folders.make(self.folder)
            for name, spec in self._specs.items():
                self._files[name] = GrowingNpy(self.folder / f"{name}.npy", spec)
        except FileExistsError:
            raise DataError(
                f"folder={self.folder} exists: writing there would mix two datasets. Name a new folder, or "
                "remove this one."
            ) from None
        except OSError as error:
            raise self._unwritable(error) from None

    @property
    def steps(self) -> int:
        """Decisions written so far."""
        return self.rows - self.episodes

    def append(
        self,
        columns: Mapping[str, Array],
        final_obs: Array,
        *,
        final_legal: BoolArray | None = None,
        seed: int | None = None,
    ) -> None:
        """Write one whole episode of T decisions.

        Args:
            columns: obs [T, *obs], action [T, ...], reward [T], terminated [T], truncated [T], and legal
                [T, A] in a masked group.
            final_obs: [*obs] the observation after the last decision.
            final_legal: [A] what is legal there; None = everything.
            seed: the episode's reset seed; None = unknown.
        Raises: DataError: see `append_many`.
        """
        self.append_many(
            columns,
            np.array([len(columns["reward"])]),
            np.asarray(final_obs)[None],
            final_legal=None if final_legal is None else np.asarray(final_legal)[None],
            seeds=np.array([UNKNOWN_SEED if seed is None else seed]),
        )

    def append_many(
        self,
        columns: Mapping[str, Array],
        lengths: IntArray,
        final_obs: Array,
        *,
        final_legal: BoolArray | None = None,
        seeds: IntArray | None = None,
    ) -> None:
        """Write E whole episodes at once: as `append`, which is one of them, without a loop over episodes.

        Args:
            columns: name -> [N, ...], the decisions of all episodes, episode after episode.
            lengths: [E] decisions of each, at least 1; they sum to N.
            final_obs: [E, *obs].
            final_legal: [E, A] or None = everything is legal.
            seeds: [E], -1 where unknown, or None = all unknown.
        Raises: DataError: a column is missing or does not fit the group, a number is not finite, an action
            does not exist, or an episode does not end exactly where its flags say.
        """
        lengths = np.asarray(lengths).astype(np.int64)
        if lengths.size == 0:
            return
        count, total = lengths.size, int(lengths.sum())
        self._check_lengths(lengths)
        rows = total + count
        ends = np.cumsum(lengths + 1) - 1  # [E] place of each final row
        decision = np.ones(rows, np.bool_)
        decision[ends] = False
        finals: dict[str, Array | bool | int] = {"obs": final_obs, "final": True}
        finals["legal"] = True if final_legal is None else final_legal
        given = {"final": np.zeros(total, np.bool_), **columns}
        written: dict[str, Array] = {}
        for name, spec in self._specs.items():
            values = self._fitting(name, given.get(name), (total, *spec.shape))
            column = np.zeros((rows, *spec.shape), spec.dtype)  # [R, ...]
            column[decision] = values
            final = finals.get(name)
            if final is not None:
                if not isinstance(final, bool):
                    final = self._fitting(f"final {name}", np.asarray(final), (count, *spec.shape))
                column[ends] = final
            written[name] = column
        self._check_values(written, ends)
        returns = np.add.reduceat(written["reward"].astype(np.float64), ends - lengths)
        seeds = np.full(count, UNKNOWN_SEED) if seeds is None else np.asarray(seeds)
        seeds = self._fitting("seed", seeds, (count,))
        try:
            for name, file in self._files.items():
                file.append(written[name])
        except OSError as error:
            raise self._unwritable(error) from None
        for name, values in (
            ("episode_start", self.rows + ends - lengths),
            ("episode_rows", lengths + 1),
            ("episode_seed", seeds),
            ("episode_return", returns),
        ):
            self._episodes[name].append(values.astype(EPISODE_FILES[name].dtype))
        self.rows += rows
        self.episodes += count

    def close(self) -> Path:
        """Finish the files and write the manifest; the folder is a dataset now.

        Returns: the folder.
        Raises: DataError: nothing was appended, `meta` is not JSON, or the disk refuses.
        """
        _check_json(self.meta)
        if self.episodes == 0:
            raise DataError(
                f"folder={self.folder}: no episode was written: an empty dataset cannot be drawn from. "
                "Append at least one episode."
            )
        try:
            entries = {name: file.close() for name, file in self._files.items()}
            for name, spec in EPISODE_FILES.items():
                index = self._files[name] = GrowingNpy(self.folder / f"{name}.npy", spec)
                index.append(np.concatenate(self._episodes[name]))
                entries[name] = index.close()
            counts = {"episodes": self.episodes, "steps": self.steps, "rows": self.rows}
            rest = {"created_by": f"seqrl-ray {__version__}", "meta": self.meta}
            write_manifest(self.folder, self.group, counts, entries, rest)
        except OSError as error:
            raise self._unwritable(error) from None
        return self.folder

    def abort(self) -> None:
        """Remove what was written."""
        for file in self._files.values():
            file.abandon()
        folders.unmake(self._made)

    def __enter__(self) -> DatasetWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.abort()
            return
        try:
            self.close()
        except DataError:
            self.abort()
            raise

    def _fitting(self, name: str, values: Array | None, shape: tuple[int, ...]) -> Array:
        """`values` if they can be stored as the column `name` without loss."""
        if values is None:
            raise DataError(
                f"column {name!r} is missing from what is appended to {self.folder}: its rows cannot be "
                "stored. Add the column."
            )
        values = np.asarray(values)
        if values.shape != shape:
            raise DataError(
                f"column {name!r} has shape {values.shape}, not {shape}: its rows cannot be stored in "
                f"{self.folder}. Make the columns and the group's spec agree."
            )
        dtype = {"seed": "int64"}.get(name) or self._specs[name.removeprefix("final ")].dtype
        if not np.can_cast(values.dtype, dtype, "same_kind"):
            raise DataError(
                f"column {name!r} has dtype {values.dtype}, which does not fit {dtype}: values would be lost "
                f"in {self.folder}. Convert them before."
            )
        return values

    def _check_lengths(self, lengths: IntArray) -> None:
        if lengths.ndim != 1 or (lengths < 1).any():
            raise DataError(
                f"lengths={lengths.tolist()[:8]} are not all at least 1: an episode without a decision has "
                "nothing to learn. Leave it out."
            )

    def _check_values(self, written: Mapping[str, Array], ends: IntArray) -> None:
        """Refuse rows [R] that would do harm later, where nobody could tell where they came from."""
        for name in ("obs", "action", "reward"):
            column = written[name]
            if column.dtype.kind == "f" and not np.isfinite(column).all():
                bad = int(np.argmin(np.isfinite(column.reshape(len(column), -1)).all(axis=1)))
                raise self._wrong(name, bad, ends, "is not finite", "every weight it reaches would be lost")
        action = self.group.action
        if action.kind == "discrete":
            outside = (written["action"] < 0) | (written["action"] >= action.n)
            if outside.any():
                raise self._wrong(
                    "action",
                    int(np.argmax(outside)),
                    ends,
                    f"is not in [0, {action.n})",
                    "there is no such action",
                )
        done = written["terminated"] | written["truncated"]
        last = np.zeros(done.size, np.bool_)
        last[ends - 1] = True
        if (done != last).any():
            bad = int(np.argmax(done != last))
            rule = "is set before the last decision" if done[bad] else "is not set at the last decision"
            raise self._wrong(
                "terminated or truncated", bad, ends, rule, "an episode must end where it stops"
            )

    def _wrong(self, name: str, row: int, ends: IntArray, rule: str, consequence: str) -> DataError:
        place = int(np.searchsorted(ends, row))
        step = row - (int(ends[place - 1]) + 1 if place else 0)
        return DataError(
            f"{name} of episode {self.episodes + place}, step {step} {rule}: {consequence}. Correct or leave "
            "out the episode."
        )

    def _unwritable(self, error: OSError) -> DataError:
        return DataError(
            f"folder={self.folder} cannot be written ({error}): the dataset does not exist. Free space or "
            "change the folder."
        )


def _check_json(meta: Mapping[str, Any]) -> None:
    try:
        json.dumps(meta, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"meta cannot be written as JSON ({error}): it would not be found again. Give it strings, "
            "finite numbers, lists and mappings only."
        ) from None
