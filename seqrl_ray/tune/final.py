"""The last word of a sweep: the winner on held-out seeds, beside the base recipe as it stands, and
`summary.json`.

The winner was chosen by scores on other seeds, of which it had the best: those flatter it. What counts is
what it does on seeds that no score was made on, the same for both.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seqrl_ray.loops import checkpoints
from seqrl_ray.loops.evaluate import POLICY
from seqrl_ray.loops.judge import Job, chunk_size, play_jobs
from seqrl_ray.loops.stats import paired, summarise
from seqrl_ray.recipe import Recipe
from seqrl_ray.tune.plan import Plan, with_values
from seqrl_ray.tune.score import headline
from seqrl_ray.tune.space import Values


@dataclass(frozen=True)
class Contestant:
    """A trial that is judged: its checkpoint and the values it had."""

    name: str
    checkpoint: Path
    values: Values


def compare(plan: Plan, winner: Contestant, default: Contestant | None) -> dict[str, Any]:
    """Play the held-out seeds and return the `final` part of a sweep's summary."""
    metric, lower = plan.base.evaluation.headline, plan.base.evaluation.lower_is_better
    played = {one.name: _play(plan, one) for one in (winner, default) if one is not None}
    found: dict[str, Any] = {
        "metric": metric,
        "lower_is_better": lower,
        "seeds": [plan.final_seeds[0], len(plan.final_seeds)],
        "episodes": played,
        "winner": dict(summarise(played[winner.name])),
        "default": None,
        "paired": None,
        "verdict": "no default",
    }
    if default is not None:
        found["default"] = dict(summarise(played[default.name]))
        found["paired"] = dict(paired(played[winner.name], played[default.name]))
        found["verdict"] = verdict(found["paired"], lower_is_better=lower)
    return found


def verdict(difference: Mapping[str, Any], *, lower_is_better: bool) -> str:
    """Return better, worse, equal or unclear of a paired difference, winner minus default."""
    if difference["mean_difference"] == 0.0:
        return "equal"
    interval = difference["ci95"]
    if interval is None or interval[0] <= 0.0 <= interval[1]:
        return "unclear"
    return "better" if (interval[0] > 0.0) != lower_is_better else "worse"


def sentence(final: Mapping[str, Any] | None) -> str:
    """Say in words what the comparison came to."""
    if final is None:
        return "No trial has a finite score: there is no winner."
    metric, winner = final["metric"], final["winner"]
    head = f"The winner's {metric} on {winner['n']} held-out seeds is {_number(winner['mean'])}"
    if final["default"] is None:
        return f"{head}; the default recipe was not trained beside it."
    beside = f"{head}, the default recipe's {_number(final['default']['mean'])}"
    said = {
        "better": "The sweep beats the default recipe.",
        "worse": "The sweep does NOT beat the default recipe: it is worse.",
        "equal": "The sweep does NOT beat the default recipe: they are equal.",
        "unclear": "The sweep does NOT beat the default recipe: the 95 % interval of the difference holds 0.",
    }
    return f"{beside}. {said[final['verdict']]}"


def write_summary(path: Path, summary: Mapping[str, Any]) -> None:
    """Replace a sweep's `summary.json`."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(_plain(summary), indent=2), encoding="utf-8")
    os.replace(partial, path)


def _play(plan: Plan, one: Contestant) -> list[float]:
    recipe: Recipe = with_values(plan.base, one.values)
    checkpoints.verify(one.checkpoint)
    seeds = plan.final_seeds
    workers = (os.cpu_count() or 1) if recipe.env.kind == "traffic" else 0
    size = chunk_size(recipe, len(seeds), workers)
    jobs = [Job(POLICY, tuple(seeds[i : i + size])) for i in range(0, len(seeds), size)]
    ends = play_jobs(recipe, jobs, checkpoints.acting_weights(one.checkpoint), workers=workers)[POLICY]
    return headline(ends, recipe.evaluation.headline)


def _number(value: float | None) -> str:
    return "not a number" if value is None else f"{value:.4g}"


def _plain(value: Any) -> Any:
    """JSON has no NaN: null stands for it."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(v) for v in value]
    return value
