"""Evaluation at several target returns, and the best of the evaluations in between."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from seqrl_ray import api
from seqrl_ray.errors import RecipeError
from seqrl_ray.loops.drive import _Clock
from seqrl_ray.loops.judge import Job, check_targets, final_jobs, with_weights
from seqrl_ray.loops.run_folder import LagCounter, RunFolder, summaries
from seqrl_ray.report import html
from seqrl_ray.report.run_folder import read_run
from seqrl_ray.report.tables import BEST, controller_rows
from seqrl_ray.report.wording import best_note, headline
from seqrl_ray.types import ActionSpec, ArraySpec, GroupSpec, Slot
from seqrl_ray.types_env import EpisodeEnd

GRAPH = "classic/graph_decision_transformer"
PLAIN = ("algorithm.return_quantile=0.0", "algorithm.target_return=-3", "evaluation.episodes=2")
COUNTS = {"env_steps": 0, "agent_steps": 0, "updates": 9, "episodes": 0}


def recipe(*overrides: str, name: str = GRAPH) -> Any:
    return api.read_recipe(name, [*(PLAIN if name == GRAPH else ()), *overrides])


def ends(*values: float) -> list[EpisodeEnd]:
    return [EpisodeEnd(0, seed, 1, {"return": value}) for seed, value in enumerate(values)]


def test_a_target_named_twice_is_refused() -> None:
    with pytest.raises(RecipeError, match="names a return twice"):
        recipe("evaluation.targets=[1, 2, 1.0]")


@pytest.mark.parametrize(
    ("name", "overrides", "why"),
    [
        ("classic/cartpole", (), "is asked for no return"),
        (GRAPH, ("algorithm.return_quantile=0.9",), "itself"),
    ],
)
def test_only_a_policy_that_is_asked_for_a_return_has_targets(name: str, overrides: Any, why: str) -> None:
    check_targets(recipe(*overrides, name=name))
    with pytest.raises(RecipeError, match=rf"evaluation.targets=\[5.0\] .*{why}"):
        check_targets(recipe(*overrides, "evaluation.targets=[5]", name=name))


def test_targets_are_played_on_the_seeds_of_all_others() -> None:
    seeds = (1_000_000, 1_000_001)
    assert final_jobs(recipe("evaluation.targets=[-2, -4.5]")) == [
        Job("policy", seeds, details=True),
        Job("random", seeds, details=True),
        Job("policy at -2", seeds, target_return=-2.0),
        Job("policy at -4.5", seeds, target_return=-4.5),
    ]


def test_a_changed_target_is_what_the_slots_ask_for() -> None:
    group = GroupSpec(
        "shared", (Slot(0, "agent", 4, 3),), ArraySpec((4,), "float32"), ActionSpec("discrete", n=3)
    )
    made = with_weights(recipe(), {}, {"shared": group}, hparams={"target_return": -7.0})["shared"]
    assert made.slot_params(1.0, np.zeros(2, np.int64), 1)["target_return"].tolist() == [-7.0, -7.0]


def test_targets_are_a_part_of_their_own() -> None:
    rows = {
        name: [{"seed": 0, "return": v}] for name, v in (("policy", 1), ("random", 2), ("policy at 3", 4))
    }
    found = summaries(rows)
    assert list(found["baselines"]) == list(found["paired"]) == ["random"]
    assert found["targets"]["3"]["return"]["mean"] == 4.0
    assert found["evaluation"]["return"]["mean"] == 1.0


@pytest.mark.parametrize(("lower", "updates"), [(False, 20), (True, 40)])
def test_the_best_evaluation_in_between(lower: bool, updates: int, tmp_path: Path) -> None:
    run = recipe("evaluation.headline=return", f"evaluation.lower_is_better={str(lower).lower()}")
    folder = RunFolder(tmp_path, run, resumed=False)
    scores = {10: (2.0, 4.0), 20: (5.0, 7.0), 30: (6.0, 6.0), 40: (1.0, 0.0)}
    for at, values in scores.items():
        folder.evaluation("policy", ends(*values), env_steps=0, updates=at, final=False)
    folder.evaluation("policy", ends(3.0, 3.0), env_steps=0, updates=50, final=True)
    folder.close()
    again = RunFolder(tmp_path, run, resumed=True, data_returns=(-9.0, 0.0))
    again.evaluation("policy", ends(3.0, 3.0), env_steps=0, updates=50, final=True)
    again.evaluation("policy at 2", ends(2.0, 4.0), env_steps=0, updates=50, final=True)
    summary = again.summary("completed", COUNTS, LagCounter())
    again.close()
    assert summary["best"] == folder.best
    assert summary["best"]["updates"] == updates
    assert summary["best"]["of"] == 4
    assert summary["best"]["return"]["mean"] == np.mean(scores[updates])
    shown = read_run(tmp_path)
    assert [row.name for row in controller_rows(shown)] == ["policy", BEST]
    assert headline(shown).startswith("Return 3")
    assert "Not the headline" in best_note(shown)
    assert shown.targets[2.0]["return"].mean == 3.0
    page = html(tmp_path).read_text(encoding="utf-8")
    assert 'id="targets"' in page
    assert "Asked for 2: 3" in page
    assert "returns in the data" in page


def test_without_evaluations_in_between_there_is_no_best(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, recipe("evaluation.headline=return"), resumed=False)
    folder.evaluation("policy", ends(3.0), env_steps=0, updates=50, final=True)
    assert folder.summary("completed", COUNTS, LagCounter())["best"] is None
    folder.close()
    assert best_note(read_run(tmp_path)) == ""


def test_updates_count_in_the_offline_phase_only() -> None:
    run = SimpleNamespace(
        offline_updates=100, evaluation=SimpleNamespace(every_env_steps=50, every_updates=30)
    )
    clock = _Clock(0.0, 50, 30)
    given = [(0, 29), (0, 31), (0, 59), (0, 95), (0, 100), (49, 130), (120, 160), (149, 170), (150, 171)]
    due = [clock.due(run, {"env_steps": steps, "updates": updates}) for steps, updates in given]  # type: ignore[arg-type]
    assert due == [False, True, False, True, False, False, True, False, True]


def test_a_run_from_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    overrides = [
        *PLAIN,
        "data.collect_steps=600",
        'phase=[{kind="offline", updates=6}]',
        "evaluation.targets=[-2, -8]",
        "evaluation.every_updates=2",
        "evaluation.interim_episodes=2",
        "learner.updates_per_call=1",
        "learner.report_every_s=0.001",
    ]
    result = api.train(GRAPH, overrides, run_dir=tmp_path / "run", local=True, quiet=True)
    assert list(result.summary["targets"]) == ["-2", "-8"]
    assert list(result.summary["baselines"]) == ["random"]
    assert result.summary["best"]["of"] == 2
    assert result.summary["data_returns"][1] <= 0.0
    played = json.loads((tmp_path / "run/evaluation/targets/-8.json").read_text(encoding="utf-8"))
    assert [row["seed"] for row in played["episodes"]] == [1_000_000, 1_000_001]
    again = api.evaluate(tmp_path / "run")
    assert again["targets"] == result.summary["targets"]
