"""A tiny population through a real Ray and a real Tune."""

from __future__ import annotations

import json
import math

import pytest

from seqrl_ray import api
from seqrl_ray.loops import checkpoints
from tests.system.sweeps import TINY, check_sweep, log, metrics

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A sweep that has been run."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "tiny.toml").write_text(TINY)
    return api.tune(folder / "tiny.toml", run_dir=folder / "run", quiet=True)


def test_a_population_runs_to_its_end_and_its_log_is_what_happened(tiny):
    assert tiny.summary["status"] == "completed"
    assert tiny.summary["errors"] == []
    check_sweep(tiny.folder, 3, 3200)
    rows = log(tiny.folder)
    copies = [r for r in rows if r["event"] == "report" and r["decision"]["action"] == "copy"]
    assert copies, "3 members, 8 reports each, and nobody copied"
    assert tiny.summary["copies"] == len(copies)
    for row in copies:
        noted = metrics(tiny.folder / "members" / f"{row['member']:02d}")
        noted = [r for r in noted if r["kind"] == "sweep" and r["env_steps"] == row["env_steps"]]
        assert [(r["event"], r["donor"], r["values"]) for r in noted] == [
            ("copy", row["decision"]["donor"], row["decision"]["values"])
        ]


def test_no_process_was_started_for_a_copy(tiny):
    trials = list((tiny.folder / "tune" / "session-1").glob("PopulationTrial_*"))
    assert len(trials) == 4, "three members and the default"
    for trial in trials:
        rows = [json.loads(line) for line in (trial / "result.json").read_text().splitlines()]
        assert len({row["pid"] for row in rows}) == 1
        assert [row["training_iteration"] for row in rows] == list(range(1, len(rows) + 1))


def test_the_winner_is_judged_beside_the_default_on_seeds_that_no_score_was_made_on(tiny):
    final, winner = tiny.summary["final"], tiny.summary["winner"]
    assert final["winner"]["n"] == final["default"]["n"] == 4
    assert final["verdict"] in ("better", "worse", "equal", "unclear")
    scored = range(tiny.summary["score"]["first_seed"], tiny.summary["score"]["first_seed"] + 3)
    assert not set(scored) & set(range(final["seeds"][0], final["seeds"][0] + 4))
    best = max(m["score"] for m in tiny.summary["members"] if m["score"] is not None)
    assert winner["score"] == best and math.isfinite(best)
    again = api.evaluate(tiny.folder / winner["folder"], episodes=4)["evaluation"]["return"]["mean"]
    assert again == final["winner"]["mean"], "the winner's folder is a run like any other"


def test_the_winning_schedule_trains_one_run(tiny, tmp_path):
    done = api.replay_schedule(tiny.folder, run_dir=tmp_path / "replay", quiet=True)
    assert done.summary["status"] == "completed"
    made = json.loads((tmp_path / "replay" / "schedule.json").read_text())
    wanted = tiny.summary["winner"]["schedule"]
    assert [values for _, values in made["made"]] == [values for _, values in wanted]
    for (at, _), (should, _) in zip(made["made"], wanted, strict=True):
        assert should <= at <= should + 32, "in force from the fragment that reaches the step"
    last = checkpoints.load(checkpoints.latest(tmp_path / "replay" / "checkpoints"), "trainer")
    private = last["learner"]["policies"]["shared"]["private"]["hparams"]
    assert {f"algorithm.{k}": v for k, v in private.items()} == wanted[-1][1]


def test_a_finished_sweep_resumed_is_still_what_it_was(tiny):
    before = log(tiny.folder)
    again = api.resume_tune(tiny.folder, quiet=True)
    after = log(tiny.folder)
    assert after[: len(before)] == before
    assert [r["event"] for r in after[len(before) :]] == ["resumed"]
    assert again.summary["winner"] == tiny.summary["winner"]
    assert again.summary["final"] == tiny.summary["final"]
