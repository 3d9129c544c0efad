"""A run that joined its cluster through `ray://` sees nodes come and go as any other does.

`pytest -m kill tests/system/test_client_nodes.py`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from tests.system.clusters import HEALTH_CHECKS
from tests.system.runs import SMALL

pytestmark = [pytest.mark.system, pytest.mark.kill]

KEYS = (
    *SMALL,
    "replay.wiring=colocated",
    "actors.count=[1,2]",
    "actors.max_restarts_per_10_min=0",  # whose node goes has not crashed
    "stop.env_steps=100000000",
    "learner.threads=1",
    "learner.compile=off",
    "learner.report_every_s=0.5",
)
PATIENCE_S = 120.0


def rows(folder: Path, kind: str) -> list[dict[str, Any]]:
    found = []
    with contextlib.suppress(OSError):
        for line in (folder / "metrics.jsonl").read_text().splitlines():
            with contextlib.suppress(ValueError):  # being written
                found.append(json.loads(line))
    return [row for row in found if row["kind"] == kind]


@pytest.mark.timeout(600)
def test_a_lost_node_is_no_crash_for_a_run_that_joined_from_outside(tmp_path, monkeypatch):
    for name, value in HEALTH_CHECKS.items():
        monkeypatch.setenv(name, value)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    head = {"num_cpus": 2, "include_dashboard": False, "ray_client_server_port": port}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "seqrl_ray.cli", "train", "classic/cartpole", *KEYS]
    command += ["--run-dir", str(folder), "--address", f"ray://127.0.0.1:{port}"]
    try:
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as run:

            def wait_for(what: Callable[[], object]) -> None:
                until = time.monotonic() + PATIENCE_S
                while not what():
                    assert run.poll() is None, run.communicate()[1]
                    assert time.monotonic() < until, rows(folder, "report")[-1:]
                    time.sleep(0.2)

            wait_for(lambda: rows(folder, "report"))
            assert {row["actors"] for row in rows(folder, "report")} == {1}
            node = cluster.add_node(num_cpus=1)
            wait_for(lambda: rows(folder, "report")[-1]["actors"] == 2)
            cluster.remove_node(node, allow_graceful=False)
            wait_for(lambda: rows(folder, "failure"))
            wait_for(lambda: rows(folder, "report")[-1]["actors"] == 1)
            os.kill(run.pid, signal.SIGINT)
            _, said = run.communicate(timeout=PATIENCE_S)
        assert run.returncode == 130, said
        assert {row["what"] for row in rows(folder, "failure")} == {"node"}
    finally:
        cluster.shutdown()
