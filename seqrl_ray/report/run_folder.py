"""Reads a run folder into one frozen object. Files may be missing; files that are there must be sound.

A killed run can leave a half-written last line in `metrics.jsonl`: it is left out and named in `notes`.

Dims: T samples in time, N signals, P phases, V trips, C changes of what a signal shows.
"""

from __future__ import annotations

import json
import math
import tomllib
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from seqrl_ray.errors import RunFolderError
from seqrl_ray.types import Array

Row = Mapping[str, Any]
Interval = tuple[float, float]

POLICY = "policy"
PRETRAINED = "pretrained"
"""The policy as it was when its offline phase ended and acting began."""
CONTROLLERS = (POLICY, PRETRAINED, "fixed", "actuated", "max_pressure", "occupancy", "greedy", "random")
"""The known names, in the order in which every table and plot shows them; others follow by alphabet."""

DETAIL_COLUMNS = {
    "signal_names": 1,
    "time_s": 1,
    "queue": 2,
    "delay_rate": 2,
    "trip_delay_s": 1,
    "change_time_s": 1,
    "change_signal": 1,
    "change_state": 1,
    "phase_states": 2,
}
"""Name -> dimensions of the arrays in `evaluation/<name>-details.npz`; see `RunFolder.details`."""


@dataclass(frozen=True)
class Stat:
    """One metric over the seeds of one evaluation; None where `summary.json` has no value."""

    mean: float | None
    median: float | None
    p95: float | None
    ci95: Interval | None
    n: int


@dataclass(frozen=True)
class Difference:
    """Policy minus a controller on the same seeds."""

    mean: float
    ci95: Interval | None
    n: int


@dataclass(frozen=True)
class RunFolder:
    """What a run left behind."""

    path: Path
    recipe: Mapping[str, Any] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)
    reports: tuple[Row, ...] = ()
    episodes: tuple[Row, ...] = ()
    evaluations: tuple[Row, ...] = ()
    failures: tuple[Row, ...] = ()
    stats: Mapping[str, Mapping[str, Stat]] = field(default_factory=dict)
    """Controller (`policy` among them) -> metric -> statistics over seeds."""
    targets: Mapping[float, Mapping[str, Stat]] = field(default_factory=dict)
    """Return asked for -> metric -> statistics over seeds, of `evaluation.targets`."""
    best: Mapping[str, Stat] = field(default_factory=dict)
    """Metric -> statistics of the best evaluation in between (never the headline); empty without one."""
    paired: Mapping[str, Mapping[str, Difference]] = field(default_factory=dict)
    by_seed: Mapping[str, Mapping[int, Row]] = field(default_factory=dict)
    """Controller -> seed -> metrics of that episode."""
    details: Mapping[str, Mapping[str, Array]] = field(default_factory=dict)
    """Controller -> the arrays of one episode: signal_names [N], time_s [T], queue [T, N] vehicles,
    delay_rate [T, N] vehicles lost per second, trip_delay_s [V], every change of what a signal shows as
    change_time_s, change_signal (index) and change_state [C], and the greens of each signal in
    phase_states [N, P], padded with ""."""
    notes: tuple[str, ...] = ()
    """What a reader must know about the files themselves."""

    @property
    def metric(self) -> str:
        """The metric the run is judged by."""
        for table in (self.summary.get("headline"), self.recipe.get("evaluation")):
            name = (table or {}).get("metric") or (table or {}).get("headline")
            if name:
                return str(name)
        return "return"

    @property
    def lower_is_better(self) -> bool:
        """Direction of the judging metric."""
        for table in (self.summary.get("headline"), self.recipe.get("evaluation")):
            if table and "lower_is_better" in table:
                return bool(table["lower_is_better"])
        return False

    @property
    def data_returns(self) -> Interval | None:
        """Lowest and highest return of the offline data."""
        return _interval(self.summary.get("data_returns"))

    @property
    def baselines(self) -> tuple[str, ...]:
        """Controllers with statistics, without the policy."""
        return tuple(name for name in self.stats if name != POLICY)

    def mean(self, controller: str) -> float | None:
        """Mean of the judging metric, or None."""
        stat = self.stats.get(controller, {}).get(self.metric)
        return None if stat is None else stat.mean


def read_run(path: Path) -> RunFolder:
    """Read everything a report shows.

    Raises:
        RunFolderError: no folder, none of a run's files in it, or a file that is not what its name says.
    """
    if not path.is_dir():
        raise RunFolderError(
            f"run={path} is no folder: there is nothing to report. Give the folder of a run."
        )
    found = [name for name in ("recipe.toml", "summary.json", "metrics.jsonl") if (path / name).is_file()]
    if not found:
        raise RunFolderError(
            f"run={path} holds no recipe.toml, summary.json or metrics.jsonl: it is not a run. "
            "Give the folder that `seqrl train` printed."
        )
    notes: list[str] = []
    rows = [row for row in _rows(path / "metrics.jsonl", notes) if not row.get("rolled_back")]
    summary = _json(path / "summary.json")
    failures = [row for row in rows if row.get("kind") == "failure"] or summary.get("failures") or []
    return RunFolder(
        path=path,
        recipe=_toml(path / "recipe.toml"),
        summary=summary,
        reports=tuple(row for row in rows if row.get("kind") == "report"),
        episodes=tuple(row for row in rows if row.get("kind") == "episode"),
        evaluations=tuple(row for row in rows if row.get("kind") == "evaluation"),
        failures=tuple(failures),
        stats=_stats(summary),
        targets={
            float(target): {metric: _stat(v) for metric, v in table.items()}
            for target, table in (summary.get("targets") or {}).items()
        },
        best={m: _stat(v) for m, v in (summary.get("best") or {}).items() if isinstance(v, Mapping)},
        paired={
            name: {metric: d for metric, v in metrics.items() if (d := _difference(v)) is not None}
            for name, metrics in _ordered(summary.get("paired") or {}).items()
        },
        by_seed=_by_seed(path / "evaluation"),
        details=_details(path / "evaluation"),
        notes=tuple(notes),
    )


def number_or_none(value: Any) -> float | None:
    """`value` as a finite float; None for anything else (null, NaN, text, a flag is 0 or 1)."""
    if not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def controller_order(names: Iterable[str]) -> list[str]:
    """The names in the order every table and plot uses."""
    return sorted(names, key=lambda n: (CONTROLLERS.index(n) if n in CONTROLLERS else len(CONTROLLERS), n))


def _ordered(table: Mapping[str, Any]) -> dict[str, Any]:
    return {name: table[name] for name in controller_order(table)}


def _stats(summary: Mapping[str, Any]) -> dict[str, dict[str, Stat]]:
    tables = dict(summary.get("baselines") or {})
    if summary.get("evaluation"):
        tables[POLICY] = summary["evaluation"]
    return {n: {metric: _stat(v) for metric, v in table.items()} for n, table in _ordered(tables).items()}


def _stat(value: Mapping[str, Any]) -> Stat:
    mean, median, p95 = (number_or_none(value.get(name)) for name in ("mean", "median", "p95"))
    return Stat(mean, median, p95, _interval(value.get("ci95")), int(value.get("n") or 0))


def _difference(value: Mapping[str, Any]) -> Difference | None:
    mean = number_or_none(value.get("mean_difference"))
    return None if mean is None else Difference(mean, _interval(value.get("ci95")), int(value.get("n") or 0))


def _interval(value: Any) -> Interval | None:
    if not isinstance(value, list) or len(value) != 2:
        return None
    low, high = number_or_none(value[0]), number_or_none(value[1])
    return None if low is None or high is None else (low, high)


def _by_seed(folder: Path) -> dict[str, dict[int, Row]]:
    tables = {}
    for file in sorted(folder.glob("*.json")):
        content = _json(file)
        if "episodes" not in content:
            raise RunFolderError(
                f"{file} lacks `episodes`: it is no evaluation. Delete it or evaluate again."
            )
        tables[str(content.get("name", file.stem))] = {int(row["seed"]): row for row in content["episodes"]}
    return _ordered(tables)


def _details(folder: Path) -> dict[str, dict[str, Array]]:
    tables = {}
    for file in sorted(folder.glob("*-details.npz")):
        try:
            with np.load(file, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in DETAIL_COLUMNS if name in archive}
            if "phase_states" in arrays:
                arrays["phase_states"] = _padded(json.loads(str(arrays["phase_states"])))
        except (ValueError, zipfile.BadZipFile, OSError) as error:
            raise RunFolderError(
                f"{file} is unreadable ({error}): the episode cannot be drawn. "
                "Evaluate again, or delete the file."
            ) from error
        for name, array in arrays.items():
            if array.ndim != DETAIL_COLUMNS[name]:
                raise RunFolderError(
                    f"{file}: {name} has shape {array.shape}, not {DETAIL_COLUMNS[name]} dimensions: "
                    "the episode cannot be drawn. Evaluate again, or delete the file."
                )
        tables[file.name.removesuffix("-details.npz")] = arrays
    return _ordered(tables)


def _padded(rows: list[list[str]]) -> Array:
    """Ragged rows of text as one array; they are stored as JSON, since no array can hold them."""
    width = max((len(row) for row in rows), default=0)
    return np.array([row + [""] * (width - len(row)) for row in rows], np.str_).reshape(len(rows), width)


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RunFolderError(
            f"{file} is not valid JSON ({error}): no report. Restore or delete it."
        ) from error
    if not isinstance(content, dict):
        raise RunFolderError(f"{file} holds no JSON object: no report. Restore or delete it.")
    return content


def _toml(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RunFolderError(
            f"{file} is not valid TOML ({error}): no report. Restore or delete it."
        ) from error


def _rows(file: Path, notes: list[str]) -> list[Row]:
    if not file.is_file():
        return []
    lines = file.read_text(encoding="utf-8").splitlines()
    rows: list[Row] = []
    for place, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            if place < len(lines):
                raise RunFolderError(
                    f"{file}:{place} is not valid JSON ({error.msg}): rows are lost. "
                    "Repair or delete the line."
                ) from error
            notes.append(
                f"The last line of {file.name} is half-written (the run was killed while writing it)."
            )
    return rows
