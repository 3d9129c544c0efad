"""A sweep in remote storage whose machine is lost: `kill -9`, then another machine goes on from the place.

`pytest -m kill tests/system/test_remote_sweep.py`. "Another machine" is a fresh working folder, the storage a
`file://` place that is copied to without a pause, so that the kill falls into a copy as well.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from seqrl_ray import api
from seqrl_ray.loops import mirror
from seqrl_ray.loops.remote import Remote
from seqrl_ray.tune.board import LOG, rows_of
from seqrl_ray.tune.mirror import checkpoint_of, needed
from tests.system.sweeps import TINY, check_sweep, log

pytestmark = [pytest.mark.system, pytest.mark.kill]

ROOT = Path(__file__).resolve().parents[2]
DRIVER = """
import sys
from seqrl_ray import cli
from seqrl_ray.loops import mirror
mirror.EVERY_S = 0.0
sys.argv = ["seqrl", "tune", *sys.argv[1:]]
cli.main()
"""
BEGIN_S = 200.0


def started(here: Path, *arguments: str) -> subprocess.Popen[str]:
    here.mkdir()
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, *arguments],
        cwd=here,
        env=env,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for_rows(place: Remote, count: int, driver: subprocess.Popen[str]) -> None:
    until = time.monotonic() + BEGIN_S
    while len(rows_of(place.read_whole(LOG) or b"")) < count:
        assert driver.poll() is None, "the sweep ended by itself"
        assert time.monotonic() < until, "no log arrived"
        time.sleep(0.05)


@pytest.mark.timeout(900)
def test_a_lost_machine_leaves_a_sweep_that_goes_on_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"file://{tmp_path}/storage/sweeps/first"
    place, chance = Remote(url), random.Random()
    (tmp_path / "tiny.toml").write_text(TINY)
    keys = (
        "scheduler.report_env_steps=1200",
        "budget.env_steps=9600",
    )
    with started(tmp_path / "one", str(tmp_path / "tiny.toml"), *keys, "--run-dir", url) as driver:
        wait_for_rows(place, chance.randint(3, 12), driver)
        time.sleep(chance.uniform(0.0, 0.5))
        driver.kill()
    there = rows_of(place.read_whole(LOG) or b"")
    time.sleep(5.0)  # what is left of its trials dies with its Ray
    made = log(tmp_path / "one" / "runs" / "first")
    assert made[: len(there)] == there
    (two := tmp_path / "two").mkdir()
    monkeypatch.chdir(two)
    monkeypatch.setattr(mirror, "EVERY_S", 0.0)
    done = api.resume_tune(url, quiet=True)
    assert done.folder == Path("runs/first")
    assert done.summary["status"] == "completed"
    rows = log(two / "runs" / "first")
    assert rows[: len(there)] == there
    assert [r["event"] for r in rows].count("resumed") == 1
    # what lies there is the whole sweep
    for folder in (two / "runs" / "first", tmp_path / "storage" / "sweeps" / "first"):
        check_sweep(folder, 3, 9600)
        told = json.loads((folder / "summary.json").read_text())
        assert told["winner"] == json.loads(json.dumps(done.summary["winner"]))
    winner = done.summary["winner"]["folder"]
    assert api.evaluate(f"{url}/{winner}", episodes=2) == api.evaluate(done.folder / winner, episodes=2)
    names = place.files()
    assert "report.html" in names
    assert {checkpoint_of(name) for name in names} - {None} == needed(place.read(LOG) or b"")
    again = api.replay_schedule(url, run_dir=f"file://{tmp_path}/storage/runs/again", quiet=True)
    kept = Remote(f"file://{tmp_path}/storage/runs/again")
    assert json.loads(kept.read("schedule.json") or b"{}")["sweep"] == url
    assert json.loads(kept.read("summary.json") or b"{}")["env_steps"] == again.summary["env_steps"]
    with capsys.disabled():
        lost = sum(r["event"] == "report" for r in made) - sum(r["event"] == "report" for r in there)
        print(f"\n  machine lost after {len(there)} rows had arrived; {lost} reports went with it")


@pytest.mark.timeout(600)
def test_a_sweep_that_was_taken_over_stops(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/storage/sweeps/first"
    place = Remote(url)
    (tmp_path / "tiny.toml").write_text(TINY)
    command = (str(tmp_path / "tiny.toml"), "budget.env_steps=1000000", "--run-dir", url)
    with started(tmp_path / "one", *command) as driver:
        wait_for_rows(place, 3, driver)
        place.take("another machine")
        _, said = driver.communicate(timeout=200)
    assert driver.returncode == 1, said
    assert f"another session has taken {url} over" in said
    assert "Traceback" not in said
    assert (tmp_path / "one" / "runs" / "first" / LOG).is_file()
