"""Really kill every kind of process of a living run, in both wirings. Each prints seconds to recover and what
was lost.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import ray

from seqrl_ray import api
from seqrl_ray.loops import checkpoints
from seqrl_ray.loops.drive import drive
from seqrl_ray.loops.judge import final_jobs
from seqrl_ray.loops.progress import Silence
from seqrl_ray.loops.run_folder import RunFolder
from tests.system.runs import SMALL

pytestmark = [pytest.mark.system, pytest.mark.kill]

WIRINGS = {
    "colocated": ("replay.wiring=colocated",),
    "service": ("replay.wiring=service", "replay.shards=2"),
}
LONG = (
    *SMALL,
    "actors.count=2",
    "stop.env_steps=30000",
    "replay.samples_per_insert=16.0",
    "learner.report_every_s=0.5",
    "learner.checkpoint_every_s=1.0",
    "actors.hang_timeout_s=5.0",
)
CALM = {"actor": 0, "shard": 0, "learner": 0, "board": 0, "evaluator": 0, "policy_server": 0, "node": 0}


class Saboteur(Silence):
    """Calls `strike` once, when the run has come far enough and a checkpoint exists."""

    def __init__(self, root: Path, strike: Callable[[], None]) -> None:
        self.root, self.strike, self.struck = root, strike, False

    def train(self, row: Mapping[str, Any], at_s: float, headline: float | None) -> None:
        if not self.struck and row["progress"] > 0.2 and checkpoints.complete(self.root):
            self.struck = True
            self.strike()


def kill(actor: Any, number: signal.Signals = signal.SIGKILL) -> None:
    os.kill(ray.get(actor.pid.remote()), number)


def run_with_a_death(
    tmp_path: Path, overrides: tuple[str, ...], strike: Callable[[Any], None]
) -> dict[str, Any]:
    from seqrl_ray.runtime.launch import open_session

    recipe = api.read_recipe("classic/cartpole", [*LONG, *overrides])
    path = tmp_path / "run"
    session = open_session(recipe, root=path / "checkpoints", local=True)
    folder = RunFolder(path, recipe, resumed=False)
    screen = Saboteur(path / "checkpoints", lambda: strike(session))
    try:
        drive(session, folder, screen, jobs_of=lambda chunk: final_jobs(recipe, chunk=chunk))
    finally:
        session.close()
        folder.close()
    assert screen.struck
    summary: dict[str, Any] = json.loads((path / "summary.json").read_text())
    return summary


def survived(summary: Mapping[str, Any], what: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert summary["status"] == "completed"
    assert summary["restarts"] == {**CALM, what: 1}
    assert summary["env_steps"] >= 30000
    assert summary["samples_per_insert"] == pytest.approx(16.0, rel=0.05)
    assert summary["evaluation"]["return"]["n"] == 2
    failure: dict[str, Any] = summary["failures"][0]
    assert len(summary["failures"]) == 1
    assert failure["what"] == what
    assert failure["recover_s"] > 0
    with capsys.disabled():
        print(
            f"\n  {what} killed: back after {failure['recover_s']:.1f} s, "
            f"lost {failure['lost_steps']} steps, {failure['lost_updates']} updates"
        )
    return failure


@pytest.mark.parametrize("wiring", WIRINGS)
def test_a_killed_actor_is_replaced(ray_here, tmp_path, capsys, wiring):
    summary = run_with_a_death(tmp_path, WIRINGS[wiring], lambda s: kill(s.supervisor.actors[1]))
    failure = survived(summary, "actor", capsys)
    assert failure["lost_steps"] <= 2 * 4 * 8  # fragments in flight x copies x steps of a fragment
    assert failure["lost_updates"] == 0


@pytest.mark.parametrize("wiring", WIRINGS)
def test_a_hanging_actor_is_replaced(ray_here, tmp_path, capsys, wiring):
    longer = (*WIRINGS[wiring], "actors.hang_timeout_s=3.0", "stop.env_steps=60000")
    summary = run_with_a_death(tmp_path, longer, lambda s: kill(s.supervisor.actors[1], signal.SIGSTOP))
    survived(summary, "actor", capsys)


@pytest.mark.parametrize("wiring", WIRINGS)
def test_a_killed_learner_goes_on_from_its_checkpoint(ray_here, tmp_path, capsys, wiring):
    summary = run_with_a_death(tmp_path, WIRINGS[wiring], lambda s: kill(s._learner))
    failure = survived(summary, "learner", capsys)
    assert 0 < failure["lost_updates"] < summary["updates"]


@pytest.mark.parametrize("wiring", WIRINGS)
def test_a_killed_board_is_refilled(ray_here, tmp_path, capsys, wiring):
    summary = run_with_a_death(tmp_path, WIRINGS[wiring], lambda s: kill(s.supervisor.board))
    failure = survived(summary, "board", capsys)
    assert (failure["lost_steps"], failure["lost_updates"]) == (0, 0)


def test_a_killed_shard_goes_on_from_its_snapshot(ray_here, tmp_path, capsys):
    summary = run_with_a_death(tmp_path, WIRINGS["service"], lambda s: kill(s._shards[1]))
    failure = survived(summary, "shard", capsys)
    assert failure["lost_updates"] == 0
    assert failure["lost_steps"] < summary["env_steps"] / 2


def kill_the_first_evaluator_at_work(session: Any) -> None:
    """Have the next evaluator stopped as soon as it stands, so that it dies half a second into its job."""
    make = session.supervisor.make_evaluator

    def doomed(cpus: float) -> Any:
        session.supervisor.make_evaluator = make
        evaluator = make(cpus)
        pid = ray.get(evaluator.pid.remote())
        os.kill(pid, signal.SIGSTOP)
        threading.Timer(0.5, os.kill, (pid, signal.SIGKILL)).start()
        return evaluator

    session.supervisor.make_evaluator = doomed


@pytest.mark.parametrize("when", ["beside the training", "at the end"])
def test_a_killed_evaluator_is_replaced_and_plays_its_job_again(ray_here, tmp_path, capsys, when):
    def strike(session: Any) -> None:
        kill_the_first_evaluator_at_work(session)
        if when == "beside the training":
            session.judge_interim(range(900, 902))
            ray.wait([session._interim[0]], timeout=30.0)

    longer = (*WIRINGS["colocated"], "stop.env_steps=60000")  # for another to start and play beside it
    summary = run_with_a_death(tmp_path, longer, strike)
    failure = survived(summary, "evaluator", capsys)
    assert (failure["lost_steps"], failure["lost_updates"]) == (0, 0)


@pytest.mark.parametrize("wiring", WIRINGS)
def test_a_killed_driver_leaves_a_run_that_resumes_and_no_process(tmp_path, capsys, wiring):
    path = tmp_path / "run"
    command = [sys.executable, "-m", "seqrl_ray.cli", "train", "classic/cartpole", *LONG, *WIRINGS[wiring]]
    with subprocess.Popen(
        [*command, "--run-dir", str(path)], stderr=subprocess.DEVNULL, start_new_session=True
    ) as driver:
        until = time.monotonic() + 120
        while not checkpoints.complete(path / "checkpoints") and time.monotonic() < until:
            time.sleep(0.2)
        driver.kill()
    kept = checkpoints.steps_of(checkpoints.latest(path / "checkpoints"))
    made = [json.loads(line)["env_steps"] for line in (path / "metrics.jsonl").read_text().splitlines()[:-1]]
    assert 0 < kept < 30000
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "seqrl_ray.cli", "train", "--resume", str(path)],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads((path / "summary.json").read_text())
    assert summary["status"] == "completed"
    assert summary["env_steps"] >= 30000
    with capsys.disabled():
        print(
            f"\n  driver killed ({wiring}): resumed and finished {time.monotonic() - began:.1f} s after "
            "the second start, "
            f"lost {max(made) - kept} steps"
        )


def test_a_hanging_sumo_is_replaced(ray_here, tmp_path, capsys):
    from seqrl_ray.runtime.launch import open_session

    overrides = (
        "algorithm.hidden=[32]",
        "stop.env_steps=1500",
        "learner.report_every_s=0.5",
        "learner.checkpoint_every_s=1.0",
        "actors.hang_timeout_s=5.0",
        "evaluation.controllers=['fixed']",
        "evaluation.episodes=1",
        "replay.wiring=colocated",
        "replay.min_items=500",
    )
    recipe = api.read_recipe("traffic/cologne1", overrides)
    path = tmp_path / "run"
    session = open_session(recipe, root=path / "checkpoints", local=True)
    folder = RunFolder(path, recipe, resumed=False)
    screen = Saboteur(path / "checkpoints", lambda: kill(session.supervisor.actors[0], signal.SIGSTOP))
    try:
        summary = drive(session, folder, screen, jobs_of=lambda chunk: final_jobs(recipe, chunk=chunk))
    finally:
        session.close()
        folder.close()
    assert screen.struck
    assert summary["status"] == "completed"
    assert summary["restarts"]["actor"] == 1
    assert summary["evaluation"]["safety_violations"]["mean"] == 0
    with capsys.disabled():
        print(f"\n  hanging SUMO: back after {summary['failures'][0]['recover_s']:.1f} s")
