"""Ctrl-C of a sweep: what it leaves, and that it goes on from there.

`pytest -m kill tests/system/test_sweep_interrupted.py`.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.system.sweeps import TINY, check_sweep, log

pytestmark = [pytest.mark.system, pytest.mark.kill]

COMMAND = [sys.executable, "-m", "seqrl_ray.cli", "tune"]
LONG = "budget.env_steps=16000"
BEGIN_S, END_S = 200.0, 120.0


def begun(folder: Path, *keys: str) -> subprocess.Popen[str]:
    (folder / "tiny.toml").write_text(TINY)
    return subprocess.Popen(
        [*COMMAND, str(folder / "tiny.toml"), *keys, "--run-dir", str(folder / "run")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_reports(root: Path, count: int, driver: subprocess.Popen[str]) -> None:
    until = time.monotonic() + BEGIN_S
    while not (root / "board.jsonl").is_file() or len(log(root)) <= count:
        assert driver.poll() is None, driver.communicate()[1]
        assert time.monotonic() < until, "nobody reports"
        time.sleep(0.05)


def running() -> dict[int, tuple[int, str]]:
    """Process id -> (its parent's, when it began), of all that have not ended."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            if fields[0] != "Z":
                found[int(path.parent.name)] = (int(fields[1]), fields[19])
    return found


def family(driver: subprocess.Popen[str]) -> dict[int, str]:
    """The driver, its Ray, and the trials: all it has started."""
    there, found = running(), {driver.pid}
    while more := {pid for pid, (parent, _) in there.items() if parent in found} - found:
        found |= more
    return {pid: there[pid][1] for pid in found}


def left_of(processes: dict[int, str]) -> set[int]:
    """Those that still run half a minute later."""
    until = time.monotonic() + 30.0
    while True:
        there = running()
        left = {pid for pid, began in processes.items() if pid in there and there[pid][1] == began}
        if not left or time.monotonic() > until:
            return left
        time.sleep(0.2)


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("kind", "number"), [("pbt", signal.SIGINT), ("pbt", signal.SIGTERM), ("asha", signal.SIGINT)]
)
def test_an_interrupted_sweep_says_so_leaves_nothing_behind_and_goes_on(tmp_path, capsys, kind, number):
    root = tmp_path / "run"
    with begun(tmp_path, LONG, f"scheduler.kind={kind}") as driver:
        if kind == "pbt":
            wait_for_reports(root, random.randint(2, 12), driver)
        else:
            wait_for_lines(root / "trials.jsonl", 3, driver)
        processes = family(driver)
        assert len(processes) > 5, "Ray and three trials"
        sent = time.monotonic()
        os.kill(driver.pid, number)
        _, said = driver.communicate(timeout=END_S)
        took = time.monotonic() - sent
    assert driver.returncode == 130, said
    assert "Traceback" not in said
    assert f"interrupted; go on with: seqrl tune --resume {root}" in said
    assert left_of(processes) == set()
    summary = json.loads((root / "summary.json").read_text())
    assert summary["status"] == "interrupted"
    assert summary["final"] is None
    assert "conclusion" not in summary
    assert (root / "report.html").is_file()
    before = log(root) if kind == "pbt" else lines(root / "trials.jsonl")
    done = subprocess.run([*COMMAND, "--resume", str(root)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    after = log(root) if kind == "pbt" else lines(root / "trials.jsonl")
    assert after[: len(before)] == before
    summary = json.loads((root / "summary.json").read_text())
    assert summary["status"] == "completed"
    assert summary["final"] is not None
    if kind == "pbt":
        check_sweep(root, 3, 16000)
        assert summary["sessions"] == 2
    with capsys.disabled():
        print(f"\n  {kind}, {number.name}: interrupted after {len(before)} rows, ended {took:.1f} s later")


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def wait_for_lines(path: Path, count: int, driver: subprocess.Popen[str]) -> None:
    until = time.monotonic() + BEGIN_S
    while not path.is_file() or len(lines(path)) < count:
        assert driver.poll() is None, driver.communicate()[1]
        assert time.monotonic() < until, "nobody reports"
        time.sleep(0.05)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("delay_s", [0.0, 3.0])
def test_a_sweep_that_is_interrupted_as_it_begins_ends(tmp_path, delay_s):
    """Before Tune has any trial: nothing was made yet that could be gone on with, or little."""
    root = tmp_path / "run"
    with begun(tmp_path, LONG) as driver:
        until = time.monotonic() + BEGIN_S
        while not (root / "sweep.toml").is_file():
            assert driver.poll() is None, driver.communicate()[1]
            assert time.monotonic() < until
            time.sleep(0.05)
        time.sleep(delay_s)
        processes = family(driver)
        os.kill(driver.pid, signal.SIGINT)
        _, said = driver.communicate(timeout=END_S)
    assert driver.returncode == 130, said
    assert "Traceback" not in said
    assert left_of(processes) == set()
