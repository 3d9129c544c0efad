"""The run folder: the one writer of `recipe.toml`, `metrics.jsonl`, TensorBoard events, `evaluation/` and
`summary.json`.

The local loop and the Ray driver hand it the same things, so a run looks the same whichever made it. Other
tools read `summary.json`; its keys are a contract and are listed in `docs/architecture.md`.

Every file is either appended to line by line or replaced whole, so a kill leaves a folder that can be read.
"""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from seqrl_ray import __version__
from seqrl_ray.errors import RunFolderError
from seqrl_ray.loops.evaluate import AT_TARGET, POLICY
from seqrl_ray.loops.listener import PROCESSES, Listener, Nobody
from seqrl_ray.loops.stats import paired, summarise
from seqrl_ray.recipe import Recipe, write
from seqrl_ray.types_env import EpisodeEnd

PACKAGES = ("ray", "torch", "numpy", "gymnasium", "pettingzoo", "ale-py", "mujoco", "libsumo", "pyarrow")


class LagCounter:
    """Counts integer lags; gives exact quantiles in memory bounded by the number of distinct lags."""

    def __init__(self, counts: Mapping[int, int] | None = None) -> None:
        self.counts: Counter[int] = Counter(counts or {})

    def add(self, lag: int, times: int = 1) -> None:
        """Count `lag` (in updates) `times` more."""
        self.counts[lag] += times

    def quantile(self, q: float) -> float | None:
        """Return the smallest lag that a share `q` of those counted does not exceed; None if none is."""
        total = sum(self.counts.values())
        reached = 0
        for lag in sorted(self.counts):
            reached += self.counts[lag]
            if reached >= q * total:
                return float(lag)
        return None


class RunFolder:
    """Writes one run's folder; see the module docstring."""

    def __init__(
        self,
        path: Path,
        recipe: Recipe,
        *,
        resumed: bool,
        clock_s: float = 0.0,
        data_returns: tuple[float, float] | None = None,
        listener: Listener | None = None,
    ) -> None:
        """Open a folder for writing.

        Args:
            path: the folder.
            recipe: the resolved recipe.
            resumed: go on in an existing run instead of starting a new one.
            clock_s: wall seconds the run had used before it was resumed.
            data_returns: lowest and highest return of the offline data.
            listener: is told every row too, and closed with the folder.
        Raises: RunFolderError: a new run's folder exists already and is not empty.
        """
        from tensorboardX import SummaryWriter  # a dependency of ray[tune]; imports no torch

        self.path, self.recipe, self.data_returns = path, recipe, data_returns
        self._listener: Listener = listener or Nobody()
        if not resumed:
            check_new(path)
            path.mkdir(parents=True, exist_ok=True)
        write(recipe, path / "recipe.toml")
        (path / "evaluation").mkdir(exist_ok=True)
        (path / "checkpoints").mkdir(exist_ok=True)
        self.started = time.monotonic() - clock_s
        _end_cut_line(path / "metrics.jsonl")
        self._metrics = open(path / "metrics.jsonl", "a", encoding="utf-8")  # noqa: SIM115  closed by close()
        self._board = SummaryWriter(str(path / "tensorboard"), flush_secs=10)
        self.recent: list[tuple[int, float]] = []  # (env_steps, headline), newest last
        self.failures: list[dict[str, Any]] = []
        self.restarts = dict.fromkeys(PROCESSES, 0)
        self.evaluations: dict[str, list[dict[str, Any]]] = {}
        self.best: dict[str, Any] | None = None
        """Of the evaluations in between: the one whose headline metric is best."""
        self.after_report: Callable[[], None] | None = None
        """Called after each report; `loops/mirror.py` copies the folder then."""
        if resumed:
            self._take_over()

    def at_s(self) -> float:
        """Wall seconds of the run so far, earlier sessions of a resumed run included."""
        return time.monotonic() - self.started

    def episodes(self, ends: Iterable[EpisodeEnd], *, actor: str, env_steps: int) -> None:
        """Write finished training episodes."""
        headline = self.recipe.evaluation.headline
        for end in ends:
            row = {"actor": actor, "env": end.env, "seed": end.seed, "steps": end.steps, **end.metrics}
            self._row("episode", env_steps=env_steps, **row)
            if headline in end.metrics:
                self.recent = [*self.recent[-99:], (env_steps, float(end.metrics[headline]))]
            for name, value in end.metrics.items():
                self._board.add_scalar(f"episode/{name}", value, env_steps)

    def report(self, row: Mapping[str, Any]) -> None:
        """Write one row of rates and losses; must hold `env_steps`."""
        self._row("report", **row)
        for name, value in row.items():
            if isinstance(value, int | float) and name != "env_steps" and math.isfinite(value):
                self._board.add_scalar(name if "/" in name else f"run/{name}", value, row["env_steps"])
        self._metrics.flush()
        if self.after_report is not None:
            self.after_report()

    def evaluation(
        self,
        name: str,
        episodes: Sequence[EpisodeEnd],
        *,
        env_steps: int,
        updates: int,
        final: bool,
    ) -> None:
        """Write the evaluation of the policy or of a controller; a final one also goes to `evaluation/`."""
        rows: list[dict[str, Any]] = [{"seed": e.seed, "steps": e.steps, **e.metrics} for e in episodes]
        self._row("evaluation", env_steps=env_steps, updates=updates, name=name, final=final, episodes=rows)
        headline = self.recipe.evaluation.headline
        self._board.add_scalar(
            f"evaluation/{name}/{headline}", float(np.mean([r[headline] for r in rows])), env_steps
        )
        self._metrics.flush()
        if not final:
            self._compare(rows, env_steps, updates)
            return
        self.evaluations[name] = rows
        file = self.path / "evaluation" / f"{name}.json"
        if name.startswith(AT_TARGET):
            file = self.path / "evaluation" / "targets" / f"{name.removeprefix(AT_TARGET)}.json"
            file.parent.mkdir(exist_ok=True)
        _replace(file, json.dumps({"name": name, "episodes": rows}, default=_plain))
        details = next((e.details for e in episodes if e.details), None)
        if details is not None:
            arrays: dict[str, Any] = {
                k: v if isinstance(v, np.ndarray) else np.array(json.dumps(v, default=_plain))
                for k, v in details.items()
            }
            np.savez_compressed(self.path / "evaluation" / f"{name}-details.npz", **arrays)

    def failure(
        self,
        what: str,
        *,
        at_s: float,
        recover_s: float | None,
        lost_steps: int,
        lost_updates: int,
        diverged: bool = False,
    ) -> None:
        """Write one death and what it cost."""
        row: dict[str, Any] = {"what": what, "at_s": round(at_s, 3), "recover_s": recover_s}
        row |= {"lost_steps": lost_steps, "lost_updates": lost_updates}
        self.failures.append(row)
        self._row("failure", **row, diverged=diverged)
        self._metrics.flush()

    def change(self, event: str, *, env_steps: int, **fields: Any) -> None:
        """Write what a sweep changed in this run."""
        self._row("sweep", event=event, env_steps=env_steps, **fields)
        self._metrics.flush()

    def flush(self) -> None:
        """Have everything written so far in the file."""
        self._metrics.flush()

    def summary(self, status: str, counters: Mapping[str, Any], lag: LagCounter) -> dict[str, Any]:
        """Write and return `summary.json`.

        Args:
            status: completed, interrupted or failed.
            counters: env_steps, agent_steps, updates, episodes, train_s, samples_per_insert, and what else is
                known.
            lag: policy lag of the fragments inserted, in updates.
        """
        train_s = float(counters.get("train_s", 0.0))
        summary = {
            "status": status,
            "name": self.recipe.name,
            "seed": self.recipe.seed,
            **counters,
            "wall_s": self.at_s(),
            "env_steps_per_s": _rate(counters["env_steps"], train_s),
            "updates_per_s": _rate(counters["updates"], train_s),
            "policy_lag": {"p50": lag.quantile(0.5), "p95": lag.quantile(0.95)},
            "headline": {
                "metric": self.recipe.evaluation.headline,
                "lower_is_better": self.recipe.evaluation.lower_is_better,
            },
            **summaries(self.evaluations),
            "best": self.best,
            "data_returns": self.data_returns,
            "restarts": dict(self.restarts),
            "failures": self.failures,
            "versions": versions(),
        }
        _replace(self.path / "summary.json", json.dumps(summary, indent=2, default=_plain))
        return summary

    def _compare(self, rows: Rows, env_steps: int, updates: int) -> None:
        """Keep an evaluation in between if it is the best so far; of equal ones the first."""
        found = {**_summaries(rows), "env_steps": env_steps, "updates": updates, "of": 1}
        headline, sign = self.recipe.evaluation.headline, -1 if self.recipe.evaluation.lower_is_better else 1
        if self.best is not None:
            found["of"] = self.best["of"] = self.best["of"] + 1
        new = found.get(headline, {}).get("mean")
        old = None if self.best is None else self.best[headline]["mean"]
        if new is not None and (old is None or sign * new > sign * old):
            self.best = found

    def _take_over(self) -> None:
        """Take over the failures, and the best evaluation, that earlier sessions of a resumed run wrote."""
        for line in (self.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue  # the line a kill cut short: the rows around it are whole
            if row.get("rolled_back"):
                continue  # a sweep took this run up again from before it
            if row.get("kind") == "evaluation" and not row["final"]:
                self._compare(row["episodes"], row["env_steps"], row["updates"])
            if row.get("kind") == "failure":
                self.failures.append(
                    {k: row[k] for k in ("what", "at_s", "recover_s", "lost_steps", "lost_updates")}
                )
                self.restarts[row["what"]] += 1

    def trained(self) -> None:
        """Say that training is over, or waits for an evaluation that is not final."""
        self._listener.trained()

    def close(self) -> None:
        """Flush and close the files, and the listener."""
        self._listener.close()
        self._metrics.close()
        self._board.close()

    def _row(self, kind: str, **fields: Any) -> None:
        row = {"kind": kind, "at_s": round(self.at_s(), 3), **fields}
        self._metrics.write(json.dumps({k: _finite(v) for k, v in row.items()}, default=_plain) + "\n")
        self._listener.row(kind, row)


def check_new(path: Path) -> None:
    """Raise RunFolderError if a new run at `path` would touch an existing one."""
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise RunFolderError(
            f"--run-dir={path} exists and is not an empty folder: a new run would overwrite it. "
            f"Name another folder, or give --resume {path} to go on with it."
        )


def open_run(path: Path) -> Path:
    """Return `path` if it is a run folder.

    Raises: RunFolderError: it is not there, or holds no `recipe.toml` and `metrics.jsonl`.
    """
    if not path.is_dir():
        raise RunFolderError(f"{path} is not a folder: there is no run there. Name a folder under runs/.")
    missing = [name for name in ("recipe.toml", "metrics.jsonl") if not (path / name).is_file()]
    if missing:
        raise RunFolderError(
            f"{path} is not a run folder: it has no {' and no '.join(missing)}. Name a run's own folder."
        )
    return path


def versions() -> dict[str, str]:
    """Versions of everything that can change a result."""
    found = {"seqrl_ray": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    commit = _commit()
    if commit:
        found["commit"] = commit
    return found


def _commit() -> str | None:
    """Commit of the checkout the package runs from, read without calling git; None from a wheel."""
    git = Path(__file__).resolve().parents[2] / ".git"
    head = git / "HEAD"
    if not head.is_file():
        return None
    text = head.read_text(encoding="utf-8").strip()
    if not text.startswith("ref: "):
        return text[:12]
    ref = git / text[5:]
    if ref.is_file():
        return ref.read_text(encoding="utf-8").strip()[:12]
    packed = git / "packed-refs"
    if packed.is_file():
        for line in packed.read_text(encoding="utf-8").splitlines():
            if line.endswith(text[5:]):
                return line[:12]
    return None


Rows = Sequence[Mapping[str, Any]]


def summaries(evaluations: Mapping[str, Rows]) -> dict[str, Any]:
    """Return the `evaluation`, `baselines`, `paired` and `targets` parts of a summary.

    Args:
        evaluations: name -> episodes of the policy, of the policy at its targets, of the controllers.
    """
    policy = evaluations.get(POLICY, [])
    targets = {name: rows for name, rows in evaluations.items() if name.startswith(AT_TARGET)}
    baselines = {n: rows for n, rows in evaluations.items() if n != POLICY and n not in targets}
    return {
        "targets": {name.removeprefix(AT_TARGET): _summaries(rows) for name, rows in targets.items()},
        "evaluation": _summaries(policy),
        "baselines": {name: _summaries(rows) for name, rows in baselines.items()},
        "paired": {name: _paired(policy, rows) for name, rows in baselines.items()} if policy else {},
    }


def _summaries(rows: Rows) -> dict[str, Any]:
    return {name: summarise(_column(rows, name)) for name in _metric_names(rows)}


def _paired(policy: Rows, other: Rows) -> dict[str, Any]:
    """Policy minus controller on the seeds both were judged on."""
    mine = {row["seed"]: row for row in policy}
    theirs = {row["seed"]: row for row in other}
    seeds = [seed for seed in mine if seed in theirs]
    if not seeds:
        return {}
    names = set(_metric_names(policy)) & set(_metric_names(other))
    return {
        name: paired(_column([mine[s] for s in seeds], name), _column([theirs[s] for s in seeds], name))
        for name in sorted(names)
    }


def _metric_names(rows: Rows) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row if name != "seed"))


def _column(rows: Rows, name: str) -> Any:
    return np.array([math.nan if row.get(name) is None else float(row[name]) for row in rows])


def _rate(count: Any, seconds: float) -> float:
    return float(count) / seconds if seconds > 0 else 0.0


def _finite(value: Any) -> Any:
    """JSON has no NaN: null stands for it."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return _finite(value.item())
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} does not belong in a run folder")


def _end_cut_line(path: Path) -> None:
    """If a kill cut the last line of `path` short, end it, so that the next row is a line of its own."""
    if path.is_file() and path.stat().st_size and not path.read_bytes().endswith(b"\n"):
        with path.open("ab") as file:
            file.write(b"\n")


def _replace(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old or the new one, never half of it."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
