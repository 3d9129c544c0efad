"""Ask a living cluster what `seqrl doctor` wants to know: a task on every node, a file for all to see.

Nothing stays: tasks reserve nothing and end, probe files are removed. A node that does not answer is
reported, not waited for.
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray import cloudpickle
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from seqrl_ray.runtime import machine

ANSWER_S = 90.0
"""How long a node may take: a cold one first starts a worker process."""

CLOCK_ROUNDS = 5


@dataclass(frozen=True)
class NodeReport:
    """What one node said."""

    address: str
    head: bool
    resources: dict[str, float]
    ports: dict[int, str]
    """Ports that Ray itself says it uses there."""
    facts: dict[str, Any] | None = None
    """Of `machine.facts`; None: no answer."""
    skew_s: float | None = None
    """Its clock minus this machine's."""
    skew_within_s: float = 0.0
    """How far `skew_s` may be off: half the shortest round trip."""
    folder: dict[str, Any] = field(default_factory=dict)
    """Of `machine.look`."""
    error: str = ""


@dataclass(frozen=True)
class ClusterReport:
    """What a cluster said."""

    address: str
    nodes: tuple[NodeReport, ...]
    run_dir: Path
    """The folder that was looked for: the nearest that exists, of where runs shall go."""
    run_dir_error: str = ""
    """Why no file could be written there from here; then no node was asked for it."""
    back: frozenset[str] = frozenset()
    """Addresses of the nodes whose own file was seen here."""


def probe(run_dir: Path, packages: Sequence[str]) -> ClusterReport:
    """Ask every node of the cluster that this process is connected to.

    Args:
        run_dir: where runs shall go.
        packages: distributions whose versions are wanted.
    """
    info: dict[str, Any] = ray.init(ignore_reinit_error=True).address_info  # type: ignore[attr-defined]
    folder = nearest(run_dir.absolute())
    known = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    name, content, error = f".seqrl-doctor-{uuid.uuid4().hex}", uuid.uuid4().hex, ""
    with _by_value(), _removed(folder, name, len(known)):
        try:
            (folder / name).write_text(content, encoding="utf-8")
        except OSError as failed:
            error = str(failed)
        asked = []
        for place, node in enumerate(known):
            where = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)

            def task(function: Callable[..., Any], where: Any = where) -> Any:
                return ray.remote(function).options(num_cpus=0, max_retries=0, scheduling_strategy=where)

            calls = [task(machine.facts).remote(packages, info.get("session_dir"))]
            if not error:
                calls.append(task(machine.look).remote(str(folder), name, content, f"{name}-{place}"))
            asked.append((calls, task(machine.now)))
        until = time.monotonic() + ANSWER_S
        nodes = [
            _answer(node, info, calls, clock, until=until)
            for node, (calls, clock) in zip(known, asked, strict=True)
        ]
        back = {
            report.address
            for place, report in enumerate(nodes)
            if _content(folder / f"{name}-{place}", content, wait=bool(report.folder.get("writes")))
        }
    return ClusterReport(str(info.get("gcs_address", "")), tuple(nodes), folder, error, frozenset(back))


def nearest(folder: Path) -> Path:
    """Return `folder`, or the nearest above it that exists."""
    while not folder.is_dir():
        folder = folder.parent
    return folder


def _answer(
    node: dict[str, Any], info: dict[str, Any], calls: Sequence[Any], clock: Any, *, until: float
) -> NodeReport:
    """Wait for a node's answers."""
    resources = dict(node["Resources"])
    head = "node:__internal_head__" in resources
    address, ports = str(node["NodeManagerAddress"]), _ports(node, info if head else {})
    try:
        left = max(1.0, until - time.monotonic())
        facts, *look = ray.get(list(calls), timeout=left)
        skew_s, within_s = _skew(clock, timeout_s=left)
        folder = look[0] if look else {}
        return NodeReport(address, head, resources, ports, facts, skew_s, within_s, folder)
    except GetTimeoutError:
        error = f"no answer in {ANSWER_S:.0f} s"
    except RayError as failed:
        error = str(failed).strip().splitlines()[-1]
    return NodeReport(address, head, resources, ports, error=error)


def _ports(node: dict[str, Any], info: dict[str, Any]) -> dict[int, str]:
    """Return port -> what Ray says it is, where that differs from the defaults."""
    found = {}
    if node.get("MetricsExportPort", -1) > 0:
        found[int(node["MetricsExportPort"])] = "metrics"
    if node.get("DashboardAgentListenPort", -1) > 0:
        found[int(node["DashboardAgentListenPort"])] = "agent"
    for key, what in (("gcs_address", "gcs"), ("webui_url", "dashboard")):
        _, colon, port = str(info.get(key) or "").rpartition(":")
        if colon and port.isdigit():
            found[int(port)] = what
    return found


def _skew(clock: Any, *, timeout_s: float) -> tuple[float, float]:
    """Return (a node's clock minus ours, half the round trip that it was told in), of the shortest one."""
    best = (0.0, float("inf"))
    for _ in range(CLOCK_ROUNDS):
        sent, began = time.time(), time.monotonic()
        there = ray.get(clock.remote(), timeout=timeout_s)
        half = (time.monotonic() - began) / 2
        if half < best[1]:
            best = (there - (sent + half), half)
    return best


def _content(path: Path, content: str, *, wait: bool) -> bool:
    """Whether a node's file is seen here; with `wait` it may take a moment."""
    until = time.monotonic() + (machine.SEEN_WITHIN_S if wait else 0.0)
    while True:
        with contextlib.suppress(OSError):
            if path.read_text(encoding="utf-8") == content:
                return True
        if time.monotonic() >= until:
            return False
        time.sleep(0.2)


@contextlib.contextmanager
def _by_value() -> Iterator[None]:
    """Have the functions of `machine` sent whole: a node may lack this package."""
    cloudpickle.register_pickle_by_value(machine)  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        cloudpickle.unregister_pickle_by_value(machine)  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def _removed(folder: Path, name: str, nodes: int) -> Iterator[None]:
    """Remove the probe files afterwards, those of the nodes too, where they can be seen from here."""
    try:
        yield
    finally:
        for file in (name, *(f"{name}-{place}" for place in range(nodes))):
            with contextlib.suppress(FileNotFoundError):
                os.remove(folder / file)
