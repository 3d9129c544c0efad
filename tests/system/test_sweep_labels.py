"""A sweep on a cluster with labels: who of a trial stands where, and what is refused."""

from __future__ import annotations

import threading

import pytest
import ray
from ray.cluster_utils import Cluster

from seqrl_ray import api
from seqrl_ray.errors import RecipeError
from seqrl_ray.recipe_labels import matches
from seqrl_ray.runtime import reserve
from seqrl_ray.runtime.launch import connected
from tests.system.sweeps import TINY, check_sweep

pytestmark = [pytest.mark.system, pytest.mark.slow]

NODES = {
    "head": {"place": "head"},
    "steady": {"place": "rack", "market": "on-demand"},
    "spot": {"place": "rack", "market": "spot"},
}
SMALLER = ("trials=2", "budget.env_steps=1600", "final.default=false", "scheduler.quantile=0.5")
APART = (
    'recipe.actors.label_selector={market="spot"}',
    'recipe.learner.label_selector={market="on-demand"}',
)


@pytest.fixture(scope="module")
def cluster():
    cluster = Cluster()
    for labels in NODES.values():
        cluster.add_node(num_cpus=8, labels=labels, include_dashboard=False, object_store_memory=100_000_000)
    with connected(cluster.address):
        yield cluster
    cluster.shutdown()


class Watch:
    """Class of each actor that lived meanwhile -> names of the nodes it stood on."""

    def __init__(self) -> None:
        self.names = {
            node["NodeID"]: name
            for node in ray.nodes()
            for name, labels in NODES.items()
            if matches(node["Labels"], labels)
        }
        self.before = set(ray._private.state.actors())
        self.found: dict[str, set[str]] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.2):
            for actor_id, actor in ray._private.state.actors().items():
                if actor["State"] == "ALIVE" and actor_id not in self.before:
                    node = self.names[actor["Address"]["NodeID"]]
                    self.found.setdefault(actor["ActorClassName"], set()).add(node)


def tune(cluster, tmp_path, *overrides: str):
    (tmp_path / "tiny.toml").write_text(TINY)
    return api.tune(
        tmp_path / "tiny.toml",
        [*SMALLER, *overrides],
        run_dir=tmp_path / "run",
        address=cluster.address,
        quiet=True,
    )


@pytest.mark.timeout(400)
def test_each_process_of_a_trial_stands_where_its_labels_say(cluster, tmp_path):
    with Watch() as watch:
        done = tune(cluster, tmp_path, *APART, "recipe.actors.count=2")
    check_sweep(done.folder, 2, 1600)
    assert watch.found["ColocatedLearner"] == watch.found["WeightBoard"] == {"steady"}
    assert watch.found["RolloutActor"] == watch.found["Evaluator"] == {"spot"}


@pytest.mark.timeout(400)
def test_a_trial_of_one_process_stands_where_both_labels_say(cluster, tmp_path):
    overrides = (
        'recipe.actors.label_selector={market="spot"}',
        'recipe.learner.label_selector={place="rack"}',
    )
    with Watch() as watch:
        done = tune(cluster, tmp_path, *overrides)
    check_sweep(done.folder, 2, 1600)
    assert watch.found.pop("Board") == {"head"}
    assert list(watch.found.values()) == [{"spot"}], f"trials alone, whatever Tune calls them: {watch.found}"


def test_a_population_that_its_nodes_cannot_hold_is_refused(cluster, tmp_path):
    with pytest.raises(RecipeError, match=r"9 CPUs .* on nodes with actors\.label_selector.* 8 CPUs"):
        tune(cluster, tmp_path, *APART, "recipe.actors.count=2", "trials=3", "trial.cpus=1.0")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_a_node_does_not_see_is_refused(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(reserve, "_see", lambda folder: False)
    with pytest.raises(RecipeError, match="is not the same folder on every node"):
        tune(cluster, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.toml"]
