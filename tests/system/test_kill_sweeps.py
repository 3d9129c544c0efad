"""A sweep whose driver, or one of whose trials, is really killed goes on with the same lineage."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.system.sweeps import TINY, check_sweep, log, metrics

pytestmark = [pytest.mark.system, pytest.mark.kill]

COMMAND = [sys.executable, "-m", "seqrl_ray.cli", "tune"]


def rows_so_far(root: Path) -> int:
    path = root / "board.jsonl"
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def wait_for_rows(root: Path, count: int, driver: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 200
    while rows_so_far(root) < count and time.monotonic() < until and driver.poll() is None:
        time.sleep(0.02)
    assert rows_so_far(root) >= count


@pytest.mark.timeout(900)
@pytest.mark.parametrize("attempt", range(3))
def test_a_killed_driver_leaves_a_sweep_that_goes_on_with_the_same_lineage(tmp_path, capsys, attempt):
    (tmp_path / "tiny.toml").write_text(TINY)
    root, rng = tmp_path / "run", random.Random()
    moment, delay_s = rng.randint(2, 20), rng.uniform(0.0, 0.5)
    with subprocess.Popen(
        [*COMMAND, str(tmp_path / "tiny.toml"), "--run-dir", str(root)],
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as driver:
        wait_for_rows(root, moment, driver)
        time.sleep(delay_s)
        driver.kill()
    # the trials die with the driver's Ray; what they still log until then counts as well
    done = subprocess.run([*COMMAND, "--resume", str(root)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    rows = log(root)
    resumed = [i for i, r in enumerate(rows) if r["event"] == "resumed"]
    assert len(resumed) == 1
    before = [r for r in rows[: resumed[0]] if r["event"] == "report"]
    assert len(before) >= moment - 1
    check_sweep(root, 3, 3200)
    assert json.loads((root / "summary.json").read_text())["status"] == "completed"
    undone = sum(len(metrics(root / "members" / f"{i:02d}", rolled_back=True)) for i in range(3))
    with capsys.disabled():
        copies = sum(r["decision"]["action"] == "copy" for r in before)
        print(
            f"\n  driver killed after {len(before)} reports and {copies} copies: the log went on from there, "
            f"{undone} later rows of members rolled back"
        )


@pytest.mark.timeout(600)
def test_a_killed_trial_is_taken_up_again(tmp_path, capsys):
    (tmp_path / "tiny.toml").write_text(TINY)
    root = tmp_path / "run"
    with subprocess.Popen(
        [*COMMAND, str(tmp_path / "tiny.toml"), "budget.env_steps=16000", "--run-dir", str(root)],
        stderr=subprocess.PIPE,
        text=True,
    ) as driver:  # long enough to be caught at work
        until = time.monotonic() + 200
        victim = None
        while victim is None and time.monotonic() < until and driver.poll() is None:
            time.sleep(0.05)
            for result in (root / "tune").glob("session-1/PopulationTrial_*trial=1*/result.json"):
                lines = result.read_text().splitlines()
                row = json.loads(lines[-1]) if lines else {"done": True}
                victim = None if row["done"] else int(row["pid"])
        assert victim is not None
        os.kill(victim, signal.SIGKILL)
        _, said = driver.communicate(timeout=500)
    assert driver.returncode == 0, said
    check_sweep(root, 3, 16000)
    trial = next((root / "tune" / "session-1").glob("PopulationTrial_*trial=1*"))
    pids = {json.loads(line)["pid"] for line in (trial / "result.json").read_text().splitlines()}
    assert len(pids) == 2
    with capsys.disabled():
        undone = len(metrics(root / "members" / "01", rolled_back=True))
        print(f"\n  trial killed: taken up again by another process, {undone} rows rolled back")
