"""Whole nodes go, with and without notice. Each prints seconds until training goes on, and what was lost."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import ray

from seqrl_ray.loops import checkpoints
from seqrl_ray.runtime import nodes
from tests.system.clusters import Screenplay, announce_end, cluster_of, incarnations_of, play
from tests.system.runs import SMALL

pytestmark = [pytest.mark.system, pytest.mark.kill]

WIRINGS = {  # learner and shards fill the head: actors stand on the other nodes
    "colocated": (2, ("replay.wiring=colocated", "learner.threads=2")),
    "service": (3, ("replay.wiring=service", "replay.shards=2", "learner.threads=1")),
}
ENDLESS = (
    *SMALL,
    "actors.count=2",
    "actors.max_restarts_per_10_min=0",  # nothing here counts as a crash
    "stop.env_steps=1000000",
    "learner.compile=off",
    "learner.report_every_s=0.25",
    "learner.checkpoint_every_s=0",
)


class Play(Screenplay):
    """A screenplay that ends the run when it is over, and knows where the actors stand."""

    session: Any
    made: list[tuple[int, int]]

    def watch(self, session: Any) -> None:
        self.session, self.made = session, incarnations_of(session)
        advance = session.advance
        session.advance = lambda seconds: replace(advance(seconds), done=self.over)

    def steps_made(self, more: int) -> Any:
        """Return a condition: so many more steps than now."""
        now = self.rows[-1]["env_steps"] if self.rows else 0
        return lambda: self.rows[-1]["env_steps"] >= now + more

    def node_of(self, index: int) -> str:
        found = nodes.place_of(self.session.supervisor.actors[index]).node_id
        assert found is not None
        return found


def node_named(cluster: Any, node_id: str) -> Any:
    return next(node for node in cluster.worker_nodes if node.node_id == node_id)


@pytest.mark.parametrize("wiring", WIRINGS)
def test_a_lost_node_is_done_without(tmp_path: Path, capsys: pytest.CaptureFixture[str], wiring: str) -> None:
    head_cpus, keys = WIRINGS[wiring]
    killed_at: list[float] = []
    with cluster_of(head_cpus) as cluster:
        for _ in range(3):  # one to spare
            cluster.add_node(num_cpus=1)

        def steps(screen: Screenplay) -> Iterator[Any]:
            assert isinstance(screen, Play)
            yield screen.steps_made(2000)
            lost = screen.node_of(1)
            assert lost != screen.node_of(0)
            killed_at.extend([screen.session.at_s(), screen.rows[-1]["at_s"]])  # two clocks
            cluster.remove_node(node_named(cluster, lost), allow_graceful=False)
            yield lambda: bool(screen.made)
            yield lambda: not screen.session.node_losses
            assert screen.node_of(1) != lost
            yield screen.steps_made(2000)

        screen = Play(steps)
        summary = play(tmp_path / "run", (*ENDLESS, *keys), screen, watch=screen.watch)
    (failure,) = summary["failures"]
    assert failure["what"] == "node"
    assert summary["restarts"]["node"] == 1
    assert screen.made == [(1, 1)]
    assert failure["lost_steps"] <= 2 * 4 * 8
    assert failure["lost_updates"] == 0
    updates = [row["updates"] for row in screen.rows]
    assert updates == sorted(updates)
    moving = [b for a, b in pairwise(screen.rows) if b["env_steps"] > a["env_steps"]]
    pause_s = max(b["at_s"] - a["at_s"] for a, b in pairwise(moving) if b["at_s"] > killed_at[1])
    back_s = failure["at_s"] + failure["recover_s"] - killed_at[0]
    with capsys.disabled():
        print(
            f"\n  {wiring}: node killed, noticed after {failure['at_s'] - killed_at[0]:.1f} s; its actor "
            f"works elsewhere after {back_s:.1f} s; the run as a whole was without new steps for "
            f"{pause_s:.1f} s at most; lost {failure['lost_steps']} steps, 0 updates"
        )


@pytest.mark.parametrize("wiring", WIRINGS)
def test_an_announced_end_costs_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], wiring: str
) -> None:
    """An actor's node is to go in half a minute: its actor leaves before, and nothing is lost with the node.
    Then the learner's own: a checkpoint is written at once, the only one before the run's end.
    """
    head_cpus, keys = WIRINGS[wiring]
    root = tmp_path / "run" / "checkpoints"
    times: dict[str, float] = {}
    with cluster_of(head_cpus) as cluster:
        for _ in range(3):
            cluster.add_node(num_cpus=1)
        head = cluster.head_node.node_id

        def steps(screen: Screenplay) -> Iterator[Any]:
            assert isinstance(screen, Play)
            yield screen.steps_made(2000)
            ending = screen.node_of(1)
            announce_end(ending, 30.0)
            times["announced"] = time.monotonic()
            yield lambda: bool(screen.made) and nodes.place_of(screen.session.supervisor.actors[1]).started
            times["moved"] = time.monotonic()
            assert screen.node_of(1) != ending
            cluster.remove_node(node_named(cluster, ending), allow_graceful=False)
            yield screen.steps_made(2000)
            assert not checkpoints.complete(root)
            announce_end(head, 600.0)
            times["announced head"] = time.monotonic()
            yield lambda: bool(checkpoints.complete(root))
            times["saved"] = time.monotonic()
            yield screen.steps_made(500)

        screen = Play(steps)
        summary = play(tmp_path / "run", (*ENDLESS, *keys), screen, watch=screen.watch)
        assert ray.is_initialized()
    assert summary["failures"] == []
    assert screen.made == [(1, 1)]
    assert any("1 actors leave" in note for note in screen.notes)
    assert sum("saving" in note for note in screen.notes) == 1
    with capsys.disabled():
        print(
            f"\n  {wiring}: node announced to end: its actor stood elsewhere after "
            f"{times['moved'] - times['announced']:.1f} s; learner's node: checkpoint after "
            f"{times['saved'] - times['announced head']:.1f} s; nothing lost"
        )
