"""What the traffic recipes promise, on final policies and held-out seeds. Minutes per seed; a line is printed
for each.

`pytest -m learning tests/learning/test_traffic_learns.py -s`
"""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

import pytest

from seqrl_ray import api

pytestmark = [pytest.mark.learning, pytest.mark.timeout(7200)]

RULES = ("actuated", "max_pressure", "occupancy", "greedy")


def judged(tmp_path: Path, recipe: str, seed: int, *overrides: str) -> dict[str, Any]:
    """Train one seed through Ray and print its result."""
    summary = api.train(
        f"traffic/{recipe}", [f"seed={seed}", *overrides], run_dir=tmp_path / f"{recipe}-{seed}", quiet=True
    ).summary
    for name, metrics in {f"policy of seed {seed}": summary["evaluation"], **summary["baselines"]}.items():
        delay, inside, outside = (
            metrics["delay_s"],
            metrics["jam_controlled"]["mean"],
            metrics["jam_elsewhere"]["mean"],
        )
        print(
            f"\n{recipe} {name}: delay mean {delay['mean']:.2f} median {delay['median']:.2f} s, n "
            f"{delay['n']}, "
            f"jams inside/outside a signal {inside:.2f}/{outside:.2f}",
            end="",
        )
    print(f"\n{recipe} seed {seed}: training {summary['train_s']:.0f} s, all {summary['wall_s']:.0f} s")
    assert summary["status"] == "completed"
    assert summary["evaluation"]["safety_violations"]["mean"] == 0
    return summary


def seeds(tmp_path: Path, recipe: str, count: int) -> list[dict[str, Any]]:
    """Train `count` seeds; the rules are judged with the first and stand beside all: their seeds are the
    same.
    """
    runs = [judged(tmp_path, recipe, 0)]
    runs += [judged(tmp_path, recipe, seed, "evaluation.controllers=['fixed']") for seed in range(1, count)]
    for run in runs[1:]:  # equal up to SUMO: not always a function of its seed (docs/traffic.md)
        plan = run["baselines"]["fixed"]["delay_s"]["mean"]
        assert plan == pytest.approx(runs[0]["baselines"]["fixed"]["delay_s"]["mean"], rel=0.03)
        run["baselines"] = runs[0]["baselines"]
    return runs


def to_fixed(summary: dict[str, Any], figure: str = "mean") -> float:
    return float(summary["evaluation"]["delay_s"][figure] / summary["baselines"]["fixed"]["delay_s"][figure])


def to_best_rule(summary: dict[str, Any], figure: str = "mean") -> float:
    best = min(summary["baselines"][name]["delay_s"][figure] for name in RULES)
    return float(summary["evaluation"]["delay_s"][figure] / best)


def test_cologne8_beats_the_plan_and_the_rules_on_five_seeds(tmp_path):
    runs = seeds(tmp_path, "cologne8", 5)
    assert all(to_fixed(run) <= 0.50 for run in runs)
    assert median(to_best_rule(run) for run in runs) <= 0.90


def test_cologne8_gridlocks_no_more_often_than_the_best_rule(tmp_path):
    summary = judged(
        tmp_path, "cologne8", 0, "evaluation.episodes=50", "evaluation.controllers=['max_pressure']"
    )
    rule = summary["baselines"]["max_pressure"]["gridlocked"]["mean"]
    assert summary["evaluation"]["gridlocked"]["mean"] <= rule


def test_cologne1_beats_the_best_rule_on_three_seeds(tmp_path):
    runs = seeds(tmp_path, "cologne1", 3)
    assert all(to_best_rule(run) <= 0.95 for run in runs)


def test_cologne3_is_at_least_level_with_the_best_rule_in_the_median(tmp_path):
    runs = seeds(tmp_path, "cologne3", 3)
    assert median(to_fixed(run, "median") for run in runs) <= 0.70
    assert median(to_best_rule(run, "median") for run in runs) <= 1.0
