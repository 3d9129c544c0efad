"""Label selectors on a cluster of three nodes: who stands where, and what is refused."""

from __future__ import annotations

import time

import pytest
import ray
from ray.cluster_utils import Cluster

from seqrl_ray import api
from seqrl_ray.errors import RecipeError
from seqrl_ray.recipe_labels import matches
from seqrl_ray.runtime import reserve
from seqrl_ray.runtime.launch import connected, open_session, place
from seqrl_ray.runtime.nodes import place_of
from tests.system.runs import SMALL

pytestmark = pytest.mark.system

NODES = {
    "head": {"place": "head"},
    "steady": {"place": "rack", "market": "on-demand"},
    "spot": {"place": "rack", "market": "spot"},
}
SELECTORS = (
    'actors.label_selector={market="spot"}',
    'learner.label_selector={market="on-demand"}',
    'replay.label_selector={market="on-demand"}',
    "replay.wiring=service",
    "replay.shards=2",
)


@pytest.fixture(scope="module")
def cluster():
    cluster = Cluster()
    for labels in NODES.values():
        cluster.add_node(num_cpus=8, labels=labels, include_dashboard=False, object_store_memory=100_000_000)
    with connected(cluster.address):
        yield cluster
    cluster.shutdown()


def recipe_of(*overrides: str):
    return api.read_recipe("classic/cartpole", [*SMALL, *overrides])


def standing() -> dict[str, set[str]]:
    """Class of each living actor -> names of the nodes it stands on."""
    names = {
        node["NodeID"]: name
        for node in ray.nodes()
        for name, labels in NODES.items()
        if matches(node["Labels"], labels)
    }
    found: dict[str, set[str]] = {}
    for actor in ray._private.state.actors().values():
        if actor["State"] == "ALIVE":
            found.setdefault(actor["ActorClassName"], set()).add(names[actor["Address"]["NodeID"]])
    return found


def test_learner_and_shards_stand_on_demand_and_actors_on_spot(cluster, tmp_path):
    session = open_session(
        recipe_of(*SELECTORS, "actors.count=2"), root=tmp_path / "run" / "checkpoints", local=False
    )
    try:
        session.advance(0.5)
        where = standing()
        assert where["ServiceLearner"] == where["ShardServer"] == {"steady"}
        assert where["RolloutActor"] == {"spot"}
    finally:
        session.close()


def test_without_selectors_the_learner_stands_where_the_command_runs(cluster):
    placed = place(recipe_of("replay.wiring=service"), local=False)
    assert placed.elsewhere == ()
    assert placed.actor_labels == {}


def test_a_folder_that_the_other_node_does_not_see_is_refused(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(reserve, "_see", lambda folder: False)
    with pytest.raises(RecipeError, match="is not the same folder on every node"):
        open_session(recipe_of(*SELECTORS), root=tmp_path / "run" / "checkpoints", local=False)
    assert list(tmp_path.iterdir()) == []  # the probe is gone, and nothing was made


def test_labels_that_no_node_has_are_refused(cluster):
    selector = 'learner.label_selector={market="spot", place="head"}'
    with pytest.raises(RecipeError, match="the run could never be placed"):
        place(recipe_of(selector), local=False)


def test_a_learner_that_no_single_node_can_hold_is_refused(cluster, monkeypatch):
    monkeypatch.setattr(reserve, "RESERVE_S", 0.5)
    nine = ('learner.label_selector={place="rack"}', "learner.threads=7", "replay.shards=2")
    with pytest.raises(RecipeError, match="the learner could not be placed"):
        place(recipe_of(*nine, "replay.wiring=service"), local=False)


def test_a_colocated_shard_has_no_place_of_its_own(cluster):
    with pytest.raises(RecipeError, match=r"Set learner\.label_selector instead"):
        reserve.hold(recipe_of('replay.label_selector={market="spot"}'), 0.0, threads=1, shards=0)


@ray.remote(num_cpus=0)
def node_id() -> str:
    return ray.get_runtime_context().get_node_id()


@pytest.mark.parametrize(
    ("selector", "name"),
    [
        ({"market": "!spot", "place": "head"}, "head"),  # a node without a label has none of its values
        ({"market": "in(spot, other)"}, "spot"),
        ({"market": "!in(spot, other)", "place": "rack"}, "steady"),
    ],
)
def test_ray_reads_selectors_as_we_do(cluster, selector, name):
    assert [n for n, labels in NODES.items() if matches(labels, selector)] == [name]
    found = ray.get(node_id.options(label_selector=selector).remote(), timeout=60)
    (node,) = [n for n in ray.nodes() if n["NodeID"] == found]
    assert matches(node["Labels"], NODES[name])


@ray.remote(num_cpus=0)
def asked_elsewhere(actor: list) -> bool:
    return place_of(actor[0]).node_id is None


@ray.remote(num_cpus=0)
class Slow:
    def __init__(self, seconds: float) -> None:
        time.sleep(seconds)

    def ping(self) -> None: ...


def test_an_actor_without_room_is_told_from_one_that_is_slow_to_start(cluster):
    nowhere = Slow.options(label_selector={"market": "none"}).remote(0.0)
    slow, quick = Slow.remote(600.0), Slow.remote(0.0)
    ray.get(quick.ping.remote(), timeout=60)
    until = time.monotonic() + 60
    while place_of(slow).node_id is None and time.monotonic() < until:
        time.sleep(0.1)
    assert [place_of(actor).node_id is None for actor in (nowhere, slow, quick)] == [True, False, False]
    assert ray.get(asked_elsewhere.remote([nowhere]), timeout=60)  # as the learner's process asks
    for actor in (nowhere, slow, quick):
        ray.kill(actor)
