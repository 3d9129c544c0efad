"""Clusters on this machine whose nodes come and go as a test wants, and runs that live on them."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ray
from ray._private.worker import global_worker
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2

from seqrl_ray import api
from seqrl_ray.loops.drive import drive
from seqrl_ray.loops.judge import final_jobs
from seqrl_ray.loops.progress import Silence
from seqrl_ray.loops.run_folder import RunFolder
from seqrl_ray.runtime.launch import connected, open_session

HEALTH_CHECKS = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}
"""With these Ray calls a node dead after about four seconds instead of fifteen."""


@contextlib.contextmanager
def cluster_of(head_cpus: int) -> Iterator[Cluster]:
    """A cluster with a head node, which its last moment ends with everything on it."""
    old = {name: os.environ.get(name) for name in HEALTH_CHECKS}
    os.environ.update(HEALTH_CHECKS)
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": head_cpus, "include_dashboard": False}
    )
    try:
        with connected(cluster.address):
            yield cluster
    finally:
        cluster.shutdown()
        for name, value in old.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def announce_end(node_id: str, seconds: float) -> None:
    """Do what `ray drain-node` does: tell Ray that a node is taken away in so many seconds."""
    accepted, why = global_worker.gcs_client.drain_node(
        node_id,
        autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION"),
        "a test takes the node away",
        int((time.time() + seconds) * 1000),
    )
    assert accepted, why


class Screenplay(Silence):
    """Hears of every report; what a test does to the cluster happens between two, step by step.

    With SEQRL_TELL=1 in the environment (and pytest -s) it prints what it hears.
    """

    def __init__(self, steps: Callable[[Screenplay], Iterator[Callable[[], bool]]]) -> None:
        """Args: steps: yields conditions; goes on when the last one has come true."""
        self.rows: list[dict[str, Any]] = []
        self.notes: list[str] = []
        self.over = False
        self._steps = steps(self)
        self._until = next(self._steps)

    @property
    def actors(self) -> int:
        """Actors of the last report."""
        return int(self.rows[-1]["actors"]) if self.rows else 0

    def train(self, row: Mapping[str, Any], at_s: float, headline: float | None) -> None:
        self.rows.append({**row, "at_s": at_s})
        self._tell(f"{at_s:.1f} s, {row['actors']} actors, {row['env_steps']:,} steps")
        while not self.over and self._until():
            try:
                self._until = next(self._steps)
            except StopIteration:
                self.over = True

    def note(self, text: str) -> None:
        self.notes.append(text)
        self._tell(text)

    def _tell(self, text: str) -> None:
        if os.environ.get("SEQRL_TELL"):
            print(text, flush=True)


def play(
    path: Path, overrides: tuple[str, ...], screen: Any, *, watch: Callable[[Any], None]
) -> dict[str, Any]:
    """Run a recipe on the cluster that this process is connected to; `watch` is shown the session first."""
    recipe = api.read_recipe("classic/cartpole", overrides)
    session = open_session(recipe, root=path / "checkpoints", local=False)
    folder = RunFolder(path, recipe, resumed=False)
    watch(session)
    try:
        return drive(session, folder, screen, jobs_of=lambda chunk: final_jobs(recipe, chunk=chunk))
    finally:
        session.close()
        folder.close()


def incarnations_of(session: Any) -> list[tuple[int, int]]:
    """Return a list that grows with (actor, incarnation) of every actor made from now on."""
    made: list[tuple[int, int]] = []
    make = session.supervisor.make_actor

    def recorded(index: int) -> Any:
        actor = make(index)
        made.append((index, session.supervisor.incarnations[index]))
        return actor

    session.supervisor.make_actor = recorded
    return made


def node_ids() -> set[str]:
    """Return the ids of the living nodes."""
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}
