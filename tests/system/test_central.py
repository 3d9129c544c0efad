"""Runs whose actors act through a policy server, in both wirings; and what its death costs."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import ray

from seqrl_ray import api
from seqrl_ray.errors import RecipeError
from tests.system.runs import train
from tests.system.test_kills import WIRINGS, kill, run_with_a_death, survived

pytestmark = pytest.mark.system

CENTRAL = ("actors.inference=central", "actors.count=2")


def reports(run: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row.get("kind") == "report"]


@pytest.mark.parametrize("wiring", ["colocated", pytest.param("service", marks=pytest.mark.slow)])
def test_a_run_through_a_policy_server_ends_as_any_other(ray_here: None, tmp_path: Path, wiring: str) -> None:
    summary = train(tmp_path / "run", *CENTRAL, *WIRINGS[wiring], "learner.report_every_s=0.5")
    assert summary["status"] == "completed" and summary["failures"] == []
    assert summary["samples_per_insert"] == pytest.approx(4.0, rel=0.05)
    last = reports(tmp_path / "run")[-1]
    # what was decided for and not stored any more: the fragments under way at the end
    assert 0.5 * summary["agent_steps"] <= last["inference_slots"]
    assert 4 <= last["inference_batch_slots"] <= 8  # of one actor's four copies, or of both actors'
    assert 0.0 < last["inference_busy"] <= 1.0 and last["inference_wait_s"] >= 0.0
    assert summary["policy_lag"]["p95"] < 0.4 * summary["updates"]  # unknown weights would be of update 0


def test_the_local_loop_has_no_policy_server(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"^actors.inference='central' in the local loop"):
        api.train("classic/cartpole", list(CENTRAL[:1]), run_dir=tmp_path / "run", local=True, quiet=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.kill
@pytest.mark.parametrize("wiring", WIRINGS)
def test_a_killed_policy_server_is_back_and_no_actor_notices(
    tmp_path: Path, ray_here: None, wiring: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def strike(session: Any) -> None:
        os.kill(ray.get(session.server.handle.serve.remote(session.supervisor.board)).pid, signal.SIGKILL)

    overrides = (*CENTRAL, *WIRINGS[wiring], "actors.hang_timeout_s=60.0")
    summary = run_with_a_death(tmp_path, overrides, strike)
    failure = survived(summary, "policy_server", capsys)
    assert failure["lost_steps"] == 0 and failure["recover_s"] is not None


@pytest.mark.kill
@pytest.mark.parametrize("wiring", WIRINGS)
def test_a_killed_board_is_replaced_once_whoever_misses_it(
    tmp_path: Path, ray_here: None, wiring: str, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = (*CENTRAL, *WIRINGS[wiring], "actors.hang_timeout_s=60.0")
    summary = run_with_a_death(tmp_path, overrides, lambda session: kill(session.supervisor.board))
    survived(summary, "board", capsys)


@pytest.mark.kill
def test_a_policy_server_that_hangs_is_started_anew(
    tmp_path: Path, ray_here: None, capsys: pytest.CaptureFixture[str]
) -> None:
    def strike(session: Any) -> None:
        os.kill(ray.get(session.server.handle.serve.remote(session.supervisor.board)).pid, signal.SIGSTOP)

    overrides = (*CENTRAL, *WIRINGS["service"], "actors.hang_timeout_s=20.0")
    summary = run_with_a_death(tmp_path, overrides, strike)
    survived(summary, "policy_server", capsys)
