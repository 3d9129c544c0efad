"""Ray Tune's own schedulers and searches over real runs, and trials of several processes each.

pytest -m "slow or not slow" tests/system/test_tune_schedulers.py
"""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from seqrl_ray import api
from tests.system.sweeps import TINY, check_sweep, log

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(600)]

BOUNDS = {"algorithm.learning_rate": (1e-6, 1e-1), "algorithm.gamma": (0.5, 0.999)}


def swept(tmp_path, *overrides):
    (tmp_path / "tiny.toml").write_text(TINY)
    return api.tune(tmp_path / "tiny.toml", overrides, run_dir=tmp_path / "run", quiet=True)


def rows_of(root, event="report"):
    rows = [json.loads(line) for line in (root / "trials.jsonl").read_text().splitlines()]
    return [row for row in rows if row["event"] == event]


def check_search(done, trials=3):
    assert done.summary["status"] == "completed" and done.summary["errors"] == []
    rows = rows_of(done.folder)
    assert len({row["member"] for row in rows}) == trials
    for row in rows:
        for name, value in row["before"].items():
            low, high = BOUNDS[name]
            assert low <= value <= high, (name, value)
    for member in {row["member"] for row in rows}:
        told = [row for row in rows if row["member"] == member]
        assert [row["report"] for row in told] == list(range(1, len(told) + 1))
    best = max(m["score"] for m in done.summary["members"] if m["env_steps"] >= 3200)
    assert done.summary["winner"]["score"] == best
    assert done.summary["final"]["winner"]["n"] == done.summary["final"]["default"]["n"] == 4
    assert rows_of(done.folder, "default")[-1]["env_steps"] >= 3200
    assert (done.folder / "report.html").stat().st_size > 10_000
    return rows


def test_random_search_trains_every_trial_to_its_end(tmp_path):
    rows = check_search(swept(tmp_path, "scheduler.kind=none"))
    assert [r["env_steps"] >= 3200 for r in rows if r["last"]] == [True] * 3
    assert len({tuple(r["before"].values()) for r in rows}) == 3


def due_under_asha(rows, reduction=2.0, first=400, last=3200):
    """Whom asynchronous halving stops, by its rule, from scores in the order in which they came: at a rung,
    whoever scores less than the best 1/reduction of those who were there before.
    """
    rungs = {first * reduction**k: {} for k in range(int(math.log(last / first, reduction)) + 1)}
    due = set()
    for row in rows:
        for rung in sorted(rungs, reverse=True):
            there = rungs[rung]
            if row["env_steps"] < rung or row["member"] in there:
                continue
            scores = list(there.values())
            if scores and row["score"] < np.percentile(scores, 100.0 * (1.0 - 1.0 / reduction)):
                due.add(row["member"])
            there[row["member"]] = row["score"]
            break
    return due


def test_asha_stops_the_worse_ones_early(tmp_path):
    """Who they are hangs on the order in which trials come to a rung; the rule does not."""
    done = swept(tmp_path, "scheduler.kind=asha", "scheduler.reduction=2.0", "trials=8")
    rows = check_search(done, 8)
    ends = {m: max(r["env_steps"] for r in rows if r["member"] == m) for m in {r["member"] for r in rows}}
    due = due_under_asha([r for r in rows if r["env_steps"] < 3200])
    assert {m for m, end in ends.items() if end < 3200} == due
    assert max(ends.values()) >= 3200
    if not due:
        pytest.skip("in this order nobody was due: nothing was seen")


def test_optuna_proposes_within_the_bounds(tmp_path):
    pytest.importorskip("optuna", reason="pip install 'seqrl-ray[search]'")
    done = swept(tmp_path, "scheduler.kind=none", "scheduler.search=optuna", "trials=4")
    check_search(done, 4)


@pytest.mark.parametrize("kind", ["tune_pbt", "pb2"])
def test_tunes_populations_copy_and_stay_inside_the_bounds(tmp_path, kind):
    if kind == "pb2":
        pytest.importorskip("sklearn", reason="pip install 'seqrl-ray[search]'")
    done = swept(tmp_path, f"scheduler.kind={kind}", "scheduler.quantile=0.34", "trials=4")
    rows = check_search(done, 4)
    copies = 0
    for member in range(4):
        folder = done.folder / "members" / f"{member:02d}"
        changes = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for change in changes:
            if change["kind"] == "sweep" and change["event"] == "copy":
                copies += 1
                assert change["donor"] in set(range(4)) - {member}
    assert copies, "8 reports of 4 trials and nobody copied"
    changed = [m for m in range(4) if len({tuple(r["before"].items()) for r in rows if r["member"] == m}) > 1]
    assert changed


def test_trials_of_several_processes_live_and_copy_like_those_of_one(tmp_path):
    done = swept(tmp_path, "recipe.actors.count=2", "trials=2", "final.default=false", "trial.cpus=0.2")
    assert done.summary["status"] == "completed" and done.summary["errors"] == []
    check_sweep(done.folder, 2, 3200)
    assert any(r["decision"]["action"] == "copy" for r in log(done.folder) if r["event"] == "report")


def test_a_sweep_stops_when_its_time_is_up_and_goes_on_from_there(tmp_path):
    root = tmp_path / "run"
    done = swept(tmp_path, "budget.wall_s=40", "budget.env_steps=4000000", "scheduler.report_env_steps=800")
    assert done.summary["status"] == "out of time"
    told = [r for r in log(root) if r["event"] == "report"]
    assert told and not any(r["last"] for r in told)
    assert done.summary["final"]["winner"]["n"] == 4, "judged as far as it came"
    again = api.resume_tune(root, ["budget.wall_s=40"], quiet=True)
    assert again.summary["status"] == "out of time"
    rows = log(root)
    later = [r for r in rows if r["event"] == "report"][len(told) :]
    assert later, "and goes on"
    assert [r["event"] for r in rows].count("resumed") == 1
