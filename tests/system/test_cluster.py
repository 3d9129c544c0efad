"""The same recipe on a cluster: two nodes behind an address, and what the launcher asks of it."""

from __future__ import annotations

import json

import pytest
import ray
from ray.cluster_utils import Cluster

from seqrl_ray import api
from seqrl_ray.errors import RecipeError
from seqrl_ray.runtime.launch import connected, place
from tests.system.runs import SMALL

pytestmark = pytest.mark.system


@pytest.fixture
def two_nodes():
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 3, "include_dashboard": False})
    cluster.add_node(num_cpus=3, num_gpus=0)
    yield cluster
    cluster.shutdown()


def test_a_run_joins_a_cluster_and_spreads_over_its_nodes(two_nodes, tmp_path):
    overrides = [*SMALL, "actors.count=3", "replay.wiring=service", "replay.shards=2"]
    result = api.train(
        "classic/cartpole", overrides, run_dir=tmp_path / "run", address=two_nodes.address, quiet=True
    )
    assert result.summary["status"] == "completed"
    assert result.summary["env_steps"] >= 4000
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {r["actor"] for r in rows if r["kind"] == "episode"} == {"actor-0", "actor-1", "actor-2"}
    assert not ray.is_initialized()  # the run has left the cluster it joined


def test_a_run_that_could_never_be_placed_is_refused_with_the_arithmetic(two_nodes, tmp_path):
    with pytest.raises(RecipeError) as error:
        api.train(
            "classic/cartpole",
            ["actors.count=9"],
            run_dir=tmp_path / "run",
            address=two_nodes.address,
            quiet=True,
        )
    assert str(error.value) == (
        "actors.count=9 x actors.cpus=1 + 1 for the learner + 1 shards = 11 CPUs, and the cluster has 6: the "
        "run could never be placed. Lower actors.count or add nodes."
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("gpus", "asked", "want"), [(0, "auto", 0.0), (1, "auto", 1.0), (1, "0.5", 0.5)])
def test_the_launcher_asks_for_the_gpus_the_cluster_has(gpus, asked, want):
    ray.init(address="local", num_cpus=2, num_gpus=gpus, include_dashboard=False)
    try:
        recipe = api.read_recipe(
            "classic/cartpole", [f"learner.num_gpus={asked if asked != 'auto' else repr(asked)}"]
        )
        assert place(recipe, local=True).num_gpus == want
    finally:
        ray.shutdown()


def test_more_gpus_than_the_cluster_has_are_refused(tmp_path):
    with connected("local"), pytest.raises(RecipeError, match="the learner could never start"):
        place(api.read_recipe("classic/cartpole", ["learner.num_gpus=1"]), local=True)


def test_the_learner_process_is_given_the_gpu(tmp_path):
    """With a faked GPU resource: the learner's actor holds it while the run goes on."""
    from seqrl_ray.runtime.launch import open_session

    ray.init(address="local", num_cpus=8, num_gpus=1, include_dashboard=False)
    try:
        recipe = api.read_recipe("classic/cartpole", [*SMALL, "replay.wiring=colocated"])
        session = open_session(recipe, root=tmp_path / "checkpoints", local=True)
        session.advance(0.1)
        assert ray.available_resources().get("GPU", 0.0) == 0.0
        session.close()
    finally:
        ray.shutdown()
