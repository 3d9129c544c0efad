"""Actors join and leave a living run as the cluster's nodes do: one, three, and one again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import ray

from seqrl_ray.api import read_recipe
from seqrl_ray.loops import checkpoints
from seqrl_ray.runtime import session
from seqrl_ray.runtime.launch import open_session
from tests.system.clusters import Screenplay, announce_end, cluster_of, incarnations_of, play
from tests.system.runs import SMALL

pytestmark = [pytest.mark.system, pytest.mark.slow]

WIRINGS = {
    "colocated": (2, ("replay.wiring=colocated",)),
    "service": (4, ("replay.wiring=service", "replay.shards=2")),
}
STAGE_ITEMS = 12_000
FROM_ITEMS = 10_000


def items(screen: Screenplay) -> int:
    return int(screen.rows[-1]["shared/pacing_inserted"]) if screen.rows else 0


@pytest.mark.parametrize("wiring", WIRINGS)
def test_actors_come_and_go_with_the_nodes_and_the_ratio_holds(tmp_path, capsys, wiring):
    head_cpus, keys = WIRINGS[wiring]  # learner, shards and one actor fit on the head
    overrides = (
        *SMALL,
        *keys,
        "actors.count=[1,3]",
        "actors.max_restarts_per_10_min=0",  # whose node goes has not crashed
        "stop.env_steps=1000000",
        "learner.threads=1",
        "learner.compile=off",
        "learner.report_every_s=0.5",
        "learner.checkpoint_every_s=5.0",
    )
    with cluster_of(head_cpus) as cluster:

        def steps(screen: Screenplay) -> Iterator[Any]:
            yield lambda: items(screen) > STAGE_ITEMS
            assert screen.actors == 1
            nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
            yield lambda: screen.actors == 3
            reached = items(screen) + STAGE_ITEMS
            yield lambda: items(screen) > reached
            assert screen.actors == 3
            announce_end(nodes[0].node_id, 60.0)
            yield lambda: screen.actors == 2
            cluster.remove_node(nodes[0])
            cluster.remove_node(nodes[1], allow_graceful=False)  # without notice
            yield lambda: screen.actors == 1
            reached = items(screen) + STAGE_ITEMS
            yield lambda: items(screen) > reached

        screen = Screenplay(steps)
        made: list[tuple[int, int]] = []

        def watch(session: Any) -> None:
            made.extend(session.supervisor.incarnations.items())
            made[:] = [(index, number) for index, number in made if number >= 0]
            made_later = incarnations_of(session)
            advance = session.advance
            session.advance = lambda seconds: replace(advance(seconds), done=screen.over)
            session.made_later = made_later
            screen.session = session

        summary = play(tmp_path / "run", overrides, screen, watch=watch)
        made.extend(screen.session.made_later)
    judged = [
        abs(r["samples_per_insert"] / 4.0 - 1.0)
        for r in screen.rows
        if r["shared/pacing_inserted"] >= FROM_ITEMS
    ]
    with capsys.disabled():
        print(f"\n  {wiring}: at s, actors, items inserted, samples per insert")
        last = 0
        for row in screen.rows:
            if row["actors"] != last or row is screen.rows[-1]:
                ratio = row["samples_per_insert"] or float("nan")
                print(
                    f"  {row['at_s']:6.1f} {row['actors']:3} {row['shared/pacing_inserted']:8,} {ratio:8.4f}"
                )
                last = row["actors"]
        print(f"  largest error {max(judged):.2%} over {len(judged)} rows from {FROM_ITEMS:,} items on")
        print(f"  {summary['failures']}")
    assert screen.over
    assert summary["status"] == "completed"
    assert max(judged) <= 0.01
    assert summary["restarts"] == {**dict.fromkeys(summary["restarts"], 0), "node": 1}
    for kind in ("duplicate_rows", "refused_rows"):
        assert sum(v for r in screen.rows for k, v in r.items() if k.endswith(kind)) == 0
    assert len(set(made)) == len(made)  # no incarnation was used twice
    saved = checkpoints.load(checkpoints.latest(tmp_path / "run" / "checkpoints"), "supervisor")
    assert {int(i): n for i, n in saved["incarnations"].items()} == dict(made)


@ray.remote(num_cpus=1)
class Somebody:
    """Takes a CPU."""

    def ping(self) -> None: ...


def test_people_hear_that_a_full_cluster_lets_the_first_actor_wait(tmp_path, monkeypatch):
    monkeypatch.setattr(session, "PATIENT_S", 2.0)
    recipe = read_recipe("classic/cartpole", [*SMALL, "replay.wiring=colocated", "learner.threads=1"])
    with cluster_of(2):
        other = Somebody.remote()
        ray.get(other.ping.remote(), timeout=60)
        heard: list[str] = []

        def hears(line: str) -> None:
            heard.append(line)
            ray.kill(other)  # and now there is room

        run = open_session(recipe, root=tmp_path / "run" / "checkpoints", local=False, say=hears)
        try:
            assert heard == ["the first actor waits for 1 free CPUs; the run begins when it stands"]
            assert run.advance(1.0).row["env_steps"] >= 0
        finally:
            run.close()
