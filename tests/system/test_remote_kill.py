"""A run in remote storage whose machine is lost, again and again: `kill -9`, then another machine goes on.

`pytest -m kill tests/system/test_remote_kill.py`. "Another machine" is a fresh working folder, the storage a
`file://` place that is copied to without a pause, so that kills fall into copies too.
"""

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

from seqrl_ray import api
from seqrl_ray.loops import checkpoints, mirror
from seqrl_ray.loops.remote import Remote
from tests.unit.loops.small_cartpole import SMALL

pytestmark = pytest.mark.kill

ROOT = Path(__file__).resolve().parents[2]
DRIVER = """
import sys
from seqrl_ray import api
from seqrl_ray.loops import mirror
mirror.EVERY_S = 0.0
verb, url, *keys = sys.argv[1:]
if verb == "train":
    api.train("classic/cartpole", keys, run_dir=url, local=True, quiet=True)
else:
    api.resume(url, keys, local=True, quiet=True)
"""
KEYS = (*SMALL[:-1], "learner.checkpoint_every_s=0.2", "learner.report_every_s=0.1", "evaluation.episodes=2")
KILLS = 4
BEGIN_S = 240.0


def started(verb: str, url: str, here: Path, *keys: str) -> subprocess.Popen[bytes]:
    here.mkdir()
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", DRIVER, verb, url, *keys], cwd=here, env=env)


def test_every_lost_machine_leaves_a_run_that_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_here: None
) -> None:
    url = f"file://{tmp_path}/storage/runs/first"
    place, chance = Remote(url), random.Random(7)
    steps, halves = [0], 0
    for kill in range(KILLS):
        verb = "resume" if kill else "train"
        run = started(verb, url, tmp_path / f"machine-{kill}", *KEYS, "stop.env_steps=100000000")
        try:
            until = time.monotonic() + BEGIN_S
            while int((mirror.complete(place.files()) or ["0-0"])[-1].partition("-")[2]) <= steps[-1]:
                assert run.poll() is None, "the run ended by itself"
                assert time.monotonic() < until, "no checkpoint arrived"
                time.sleep(0.05)
            time.sleep(chance.random())  # into whatever is going on then
        finally:
            run.send_signal(signal.SIGKILL)
            run.wait()
        names = place.files()
        whole = mirror.complete(names)
        begun = {name.split("/")[1] for name in names if name.startswith("checkpoints/")}
        halves += len(begun - set(whole))
        steps.append(int(whole[-1].partition("-")[2]))
    assert steps == sorted(set(steps)), steps
    # the last machine goes on through Ray, and to the end
    (last := tmp_path / "last").mkdir()
    monkeypatch.chdir(last)
    monkeypatch.setattr(mirror, "EVERY_S", 0.0)
    end = steps[-1] + 2_000
    done = api.resume(url, [f"stop.env_steps={end}"], quiet=True)
    assert done.summary["status"] == "completed"
    assert done.summary["env_steps"] >= end
    assert json.loads(place.read("summary.json") or b"{}") == json.loads(
        (done.folder / "summary.json").read_text()
    )
    newest = checkpoints.latest(done.folder / "checkpoints")
    assert mirror.complete(place.files())[-1] == newest.name
    print(f"\n  {KILLS} machines lost at {steps[1:]} steps, {halves} kills inside a copy; ended at {end}")
