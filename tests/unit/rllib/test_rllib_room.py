"""What a run of RLlib's takes of a cluster, and when it could never be placed."""

from __future__ import annotations

import os

import pytest
from rllib_world import recipe_of

from seqrl_ray.errors import RecipeError
from seqrl_ray.rllib import launch
from seqrl_ray.rllib.launch import room_of, trial_session
from seqrl_ray.runtime import room
from seqrl_ray.runtime.nodes import NODE_GROUP
from seqrl_ray.runtime.room import Nodes
from seqrl_ray.runtime.session import Placement

FILE = {
    "max_workers": 3,
    "head_node_type": "head",
    "available_node_types": {
        "head": {"resources": {"CPU": 2}, "max_workers": 0},
        "actors": {"resources": {"CPU": 4}, "max_workers": 2},
    },
}


@pytest.fixture
def cluster(monkeypatch):
    monkeypatch.setenv("TRAIN_PLACEMENT_GROUP_TIMEOUT_S", "100")  # taken back after the test
    monkeypatch.delenv("TRAIN_PLACEMENT_GROUP_TIMEOUT_S")

    def make(cpus: float, *, file: dict | None = None, gpus: float = 0.0) -> None:
        monkeypatch.setattr(launch, "cluster_resources", lambda: {"CPU": cpus, "GPU": gpus})
        monkeypatch.setattr(room, "present", lambda: [Nodes({NODE_GROUP: "head"}, cpus)])
        monkeypatch.setattr(room, "_cluster_file", lambda: file)

    return make


def test_the_cpus_of_a_learner_process_are_counted(cluster):
    cluster(2.0)
    overrides = ("actors.count=2", "actors.cpus=1.0")
    assert room_of(recipe_of("classic/cartpole", "PPO", *overrides), local=False).runners == 2
    with pytest.raises(RecipeError, match=r"2 x actors.cpus=1 \+ 1 for the learner .* = 3 CPUs.* has 2: "):
        room_of(recipe_of("classic/cartpole", "IMPALA", *overrides), local=False)
    cluster(3.0)
    found = room_of(recipe_of("classic/cartpole", "IMPALA", *overrides), local=False)
    assert (found.learner_cpus, found.learner_threads) == (1.0, 1)
    cluster(5.0)
    found = room_of(recipe_of("classic/cartpole", "APPO", *overrides, "learner.threads=3"), local=False)
    assert (found.learner_cpus, found.learner_threads) == (3.0, 3)
    with pytest.raises(RecipeError, match="= 6 CPUs, and the cluster has 5: "):
        room_of(recipe_of("classic/cartpole", "APPO", *overrides, "learner.threads=4"), local=False)


def test_several_learners_of_rllibs_are_counted(cluster):
    cluster(3.0)
    recipe = recipe_of("classic/cartpole", "IMPALA", "actors.count=2", config={"num_learners": 2})
    with pytest.raises(RecipeError, match=r"\+ 2 for the learner .* = 4 CPUs"):
        room_of(recipe, local=False)


def test_nodes_to_come_are_room(cluster):
    cluster(2.0, file=FILE)
    big = recipe_of("classic/cartpole", "IMPALA", "actors.count=9")
    assert room_of(big, local=False).runners == 9
    assert float(os.environ["TRAIN_PLACEMENT_GROUP_TIMEOUT_S"]) >= 600, "the learner's node needs its time"
    with pytest.raises(RecipeError, match="= 11 CPUs, and the cluster has 2 and may grow to 10"):
        room_of(recipe_of("classic/cartpole", "IMPALA", "actors.count=10"), local=False)


def test_who_learns_from_data_alone_needs_no_actors(cluster, tmp_path):
    cluster(1.0)
    offline = (
        f'data={{ source = "{tmp_path}" }}',
        'phase=[{ kind = "offline", updates = 10 }]',
        "stop.env_steps=0",
        "actors.count=8",
    )
    room_of(recipe_of("classic/mined_chain", "BC", *offline), local=False)


def test_cuda_without_a_gpu_is_refused(cluster):
    cluster(4.0)
    with pytest.raises(RecipeError, match=r"learner.device='cuda' and no GPU for the learner"):
        room_of(recipe_of("classic/cartpole", "PPO", "learner.device=cuda"), local=False)


def placement(cpus: float) -> Placement:
    return Placement(
        device="cpu",
        num_gpus=0.0,
        learner_threads=2,
        actor_cpus=cpus,
        learner_cpus=cpus,
        shard_cpus=cpus,
        evaluator_cpus=cpus,
        workers=1,
    )


def test_a_trials_learner_fits_its_bundle(monkeypatch, tmp_path):
    found: list[launch.Room] = []
    monkeypatch.setattr(launch, "_open", lambda recipe, room, *rest: found.append(room))
    trial_session(
        recipe_of("classic/cartpole", "IMPALA"), placement(0.25), root=tmp_path, clock_s=0.0, resume=None
    )
    assert (found[0].learner_cpus, found[0].learner_threads) == (0.25, 2)
    several = recipe_of("classic/cartpole", "IMPALA", config={"num_learners": 2})
    with pytest.raises(RecipeError, match=r"algorithm.config.num_learners=2 in a sweep"):
        trial_session(several, placement(0.25), root=tmp_path, clock_s=0.0, resume=None)


def test_evaluators_take_what_the_runners_leave(cluster):
    cluster(8.0)
    assert room_of(recipe_of("classic/cartpole", "PPO", "actors.count=4"), local=False).evaluators == 4
    halves = recipe_of("classic/cartpole", "PPO", "actors.count=4", "actors.cpus=0.5")
    assert room_of(halves, local=False).evaluators == 2
