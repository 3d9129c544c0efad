"""The service wiring with a real Ray: a policy that does not learn, an actor that cannot start, deaths while
a checkpoint is written, and weights before the first step.
"""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest
import ray

from seqrl_ray import api
from seqrl_ray.errors import WorkerError
from seqrl_ray.loops import checkpoints
from seqrl_ray.recipe import find
from seqrl_ray.runtime.actor import RolloutActor
from seqrl_ray.runtime.launch import open_session
from seqrl_ray.runtime.replay_service import ShardServer
from seqrl_ray.runtime.wire import INLINE_BYTES, pack_fragment
from tests.system.runs import SMALL
from tests.unit.runtime.service_world import GROUPS, SPECS, fragment, recipe_of

pytestmark = pytest.mark.system

SERVICE = (*SMALL, "replay.wiring=service", "replay.shards=2", "actors.count=2")

BREAKS = """\
from pathlib import Path

import gymnasium


def make():
    if Path({flag!r}).exists():
        raise ValueError("licence server says no")
    return gymnasium.make("CartPole-v1")
"""


@pytest.fixture
def session(ray_here, tmp_path):
    made = open_session(api.read_recipe("classic/cartpole", SERVICE), root=tmp_path, local=True)
    yield made
    made.close()


def kill(actor):
    os.kill(ray.get(actor.pid.remote()), signal.SIGKILL)


def test_a_policy_that_does_not_learn_comes_to_its_end(ray_here, tmp_path):
    overrides = (
        "algorithm.name=random",
        "actors.fragment_steps=16",
        "replay.min_items=100",
        "stop.env_steps=6000",
        "replay.wiring=service",
        "replay.shards=2",
        "actors.count=2",
    )
    session = open_session(api.read_recipe("mujoco/hopper", overrides), root=tmp_path, local=True)
    try:
        advances = []
        while len(advances) < 60 and not (advances and advances[-1].done):
            advances.append(session.advance(0.5))
    finally:
        session.close()
    assert advances[-1].done
    assert advances[-1].row["env_steps"] >= 6000
    assert advances[-1].row["updates"] == 0


def test_fragments_are_stored_in_the_order_they_were_sent_in(ray_here):
    class Sender:  # small and large fragments in turn, several under way, as an actor may send them
        def send(self, shard, messages):
            under_way = []
            for number, message in enumerate(messages):
                under_way.append(shard.insert.remote(message, ("actor-0", 0, 0), number))
                if len(under_way) == 4:
                    ray.get(under_way.pop(0))
            ray.get(under_way)

    recipe = recipe_of("replay.capacity_steps=1000000", "replay.min_items=900000")  # nothing is held back
    remote = ray.remote(ShardServer).options(max_concurrency=100)
    shard = remote.remote(recipe, GROUPS, SPECS, 0, 0, None, None)
    steps = [2, 10_000] * 50
    offsets = np.cumsum([0, *steps[:-1]]).tolist()
    messages = [pack_fragment(fragment("actor-0", o, n)) for o, n in zip(offsets, steps, strict=True)]
    ray.get(ray.remote(Sender).remote().send.remote(shard, messages))
    row = ray.get(shard.stats.remote())["row"]
    assert row["shared/replay0_inserted_rows"] == sum(steps)
    assert (row["shared/replay0_duplicate_rows"], row["shared/replay0_open_streams"]) == (0, 1)


def test_actors_have_weights_before_their_first_step(ray_here):
    """The board is empty: no step is made, until the learner has published."""
    from seqrl_ray.runtime.replay_service import ShardServer
    from seqrl_ray.runtime.service_learner import ServiceLearner
    from seqrl_ray.runtime.weight_board import WeightBoard

    recipe = api.read_recipe("classic/cartpole", SERVICE)
    board = ray.remote(WeightBoard).options(num_cpus=0).remote()
    actor = ray.remote(RolloutActor).options(num_cpus=0).remote(recipe, 0, 0)
    groups = ray.get(actor.groups.remote())
    learner = (
        ray.remote(ServiceLearner)
        .options(num_cpus=0)
        .remote(recipe, groups, device="cpu", threads=1, epoch=0, resume=None)
    )
    specs = ray.get(learner.specs.remote())
    shard = ray.remote(ShardServer).options(num_cpus=0).remote(recipe, groups, specs, 0, 0, None, None)
    before = ray.get(actor.run_for.remote(0.5, shard, board))
    assert (before.env_steps, before.board_lost) == (0, False)
    assert ray.get(learner.publish_to.remote(board))
    ray.get(shard.pid.remote())
    after = ray.get(actor.run_for.remote(0.5, shard, board))
    assert after.env_steps > 0
    assert after.shard_steps > 0
    kill(board)
    ray.get(actor.run_for.remote(0.1, shard, board))
    assert ray.get(learner.publish_to.remote(board)) is False
    for process in (board, actor, learner, shard):
        ray.kill(process)


def test_an_actor_whose_constructor_raises_is_an_application_error(ray_here, tmp_path):
    flag = tmp_path / "broken"
    (tmp_path / "breaks_later.py").write_text(BREAKS.format(flag=str(flag)))
    recipe = tmp_path / "mine.toml"
    recipe.write_text(find("classic/cartpole").read_text())
    overrides = (*SERVICE, "env.id=breaks_later:make", "stop.env_steps=1000000")
    session = open_session(api.read_recipe(recipe, overrides), root=tmp_path / "c", local=True)
    flag.touch()
    try:
        kill(session.supervisor.actors[0])
        with pytest.raises(WorkerError, match=r"(?s)same error twice.*licence server says no"):
            for _ in range(60):
                session.advance(0.5)
    finally:
        session.close()


@pytest.mark.kill
@pytest.mark.parametrize("what", ["learner", "shard"])
def test_a_death_while_the_last_checkpoint_is_written_costs_none(session, tmp_path, what, monkeypatch):
    for _ in range(3):
        session.advance(0.5)
    begin, struck = session._begin_saving, []

    def begin_and_kill(root, trees):
        if not struck:
            struck.append(what)
            kill(session._learner if what == "learner" else session._shards[1])
        begin(root, trees)
        if len(struck) == 1:
            struck.append(what)
            kill(session._learner if what == "learner" else session._shards[0])

    monkeypatch.setattr(session, "_begin_saving", begin_and_kill)
    session.save(tmp_path, {}, wait=True)
    saved = checkpoints.latest(tmp_path)
    checkpoints.verify(saved)
    assert {f.what for f in session.take_failures()} == {what}


@pytest.mark.kill
def test_a_second_death_while_mending_is_mended_too(session, monkeypatch):
    session.advance(0.5)
    make, made = session._make_learner, []

    def short_lived(resume):
        learner = make(resume)
        made.append(learner)
        if len(made) == 1:
            ray.kill(learner)
        return learner

    monkeypatch.setattr(session, "_make_learner", short_lived)
    kill(session._learner)
    row = session.advance(0.5).row
    assert len(made) == 2
    assert len(session.supervisor.budget.deaths) == 2
    assert row["env_steps"] > 0


def test_no_actor_waits_for_weights(ray_here):
    """A board that has stopped answering costs no step: actors go on with the weights they have."""
    from seqrl_ray.loops.build import algorithms
    from seqrl_ray.runtime.weight_board import WeightBoard
    from seqrl_ray.types_env import Weights

    recipe = recipe_of(
        "algorithm.hidden=[256, 256]", "learner.publish_every_s=0.05", "replay.min_items=100000"
    )
    flat = algorithms(recipe, GROUPS)["shared"].weights()
    assert flat.nbytes > INLINE_BYTES  # such as go through the object store
    board = ray.remote(WeightBoard).options(num_cpus=0).remote()
    actor = ray.remote(RolloutActor).options(num_cpus=0).remote(recipe, 0, 0)
    groups = ray.get(actor.groups.remote())
    shard = ray.remote(ShardServer).options(num_cpus=0).remote(recipe, groups, SPECS, 0, 0, None, None)
    ray.get(shard.pid.remote())
    ray.get(board.publish.remote({"shared": Weights("shared", 0, 1, flat)}))
    assert ray.get(actor.run_for.remote(1.0, shard, board)).env_steps > 0
    pid = ray.get(board.pid.remote())
    os.kill(pid, signal.SIGSTOP)
    try:
        for _ in range(2):
            report = ray.get(actor.run_for.remote(0.5, shard, board), timeout=60)
            assert report.env_steps > 0
            assert not report.board_lost
    finally:
        os.kill(pid, signal.SIGCONT)
    for process in (board, actor, shard):
        ray.kill(process)
