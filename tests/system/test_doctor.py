"""`seqrl doctor` on a living Ray: an open port fails, a closed one does not."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from seqrl_ray.doctor import examine
from seqrl_ray.doctor.findings import Finding
from seqrl_ray.runtime.machine import listening

pytestmark = pytest.mark.system


def free_port() -> int:
    """One of the doors that must not stand open, which nobody on this machine has now."""
    taken = {port for _, port in listening() or ()}
    for port in (8000, 8265, 10001):
        with socket.socket() as tried, contextlib.suppress(OSError):
            tried.bind(("127.0.0.1", port))
            if port not in taken:
                return port
    pytest.skip("somebody has all of these ports")


@contextlib.contextmanager
def open_at(address: str, port: int) -> Iterator[None]:
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((address, port))
        server.listen()
        yield


def about(findings: tuple[Finding, ...], port: int) -> list[str]:
    return [f.level for f in findings if f.check == "ports" and f"port {port} listens" in f.text]


def test_an_open_port_fails_and_a_closed_one_does_not(ray_here: None, tmp_path: Path) -> None:
    port = free_port()
    with open_at("127.0.0.1", port):
        closed = examine("auto", tmp_path)
    assert about(closed.findings, port) == []
    with open_at("0.0.0.0", port):
        opened = examine("auto", tmp_path)
    assert about(opened.findings, port) == ["FAIL"]
    assert not opened.ok
    again = examine("auto", tmp_path)
    assert about(again.findings, port) == []
    assert not list(tmp_path.iterdir()), "probe files stayed"
    told = {f.check: f for f in again.findings}
    assert told["storage"].level == told["clock"].level == told["nodes"].level == "OK"
    assert told["versions"].level == "OK", told["versions"].text
    assert any(f.check == "auth" and "asks for a token" in f.text for f in again.findings)
    gcs = [f for f in again.findings if "Ray's control store" in f.text]
    assert gcs and all(f.level == "OK" for f in gcs), "Ray opens it everywhere; the token guards it"


def test_the_command_joins_a_cluster_and_its_exit_code_is_the_verdict(ray_here: None, tmp_path: Path) -> None:
    import ray

    address = ray.get_runtime_context().gcs_address
    port = free_port()
    command = [sys.executable, "-m", "seqrl_ray.cli", "doctor", "--address", address, "--json"]
    with open_at("0.0.0.0", port):
        done = subprocess.run(
            [*command, "--run-dir", str(tmp_path)], capture_output=True, text=True, timeout=200, check=False
        )
    assert done.returncode == 1, done.stderr
    told = json.loads(done.stdout)
    assert told["cluster"] == address
    assert [f["level"] for f in told["findings"] if f"port {port} listens" in f["text"]] == ["FAIL"]
