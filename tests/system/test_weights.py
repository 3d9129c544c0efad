"""How weights travel: a large version is put once, and no actor waits for any."""

from __future__ import annotations

import os
import signal

import numpy as np
import pytest
import ray

from seqrl_ray.runtime.actor import RolloutActor
from seqrl_ray.runtime.replay_service import ShardServer
from seqrl_ray.runtime.weight_board import Publisher, WeightBoard
from seqrl_ray.runtime.wire import INLINE_BYTES, unpack
from seqrl_ray.types import Weights
from tests.unit.runtime.service_world import GROUPS, SPECS, recipe_of

pytestmark = pytest.mark.system

LARGE = INLINE_BYTES  # floats: four times as many bytes


def weights(counter, size=LARGE, progress=0.0):
    return {"shared": Weights("shared", 0, counter, np.full(size, counter, np.float32), progress)}


@pytest.fixture
def board(ray_here):
    made = ray.remote(WeightBoard).options(num_cpus=0).remote()
    yield made
    ray.kill(made)


def pulled(board, have=()):
    return unpack(ray.get(board.pull.remote(dict(have))))


def test_a_large_version_is_put_once_for_everybody(board):
    ray.get(board.publish.remote(weights(1)))
    one, other = pulled(board), pulled(board)
    assert one.arrays == other.arrays  # the same object: whoever asks, it was put once
    assert one.weights["shared"].flat.size == 0
    np.testing.assert_array_equal(one.whole()["shared"].flat, np.full(LARGE, 1.0))
    ray.get(board.publish.remote(weights(2)))
    new = pulled(board)
    assert new.arrays != one.arrays
    assert new.whole()["shared"].version == (0, 2)
    np.testing.assert_array_equal(one.whole()["shared"].flat, np.full(LARGE, 1.0))  # who has it keeps it
    assert pulled(board, {"shared": (0, 2)}.items()).weights == {}


def test_a_small_version_comes_with_the_answer(board):
    ray.get(board.publish.remote(weights(1, size=10)))
    came = pulled(board)
    assert came.arrays == {}
    np.testing.assert_array_equal(came.whole()["shared"].flat, np.full(10, 1.0))


def test_a_version_is_sent_once_and_then_only_its_progress(ray_here):
    sent = []

    class Board:
        class publish:
            @staticmethod
            def remote(message):
                sent.append({p: (w.version, w.flat.size, w.progress) for p, w in message.items()})
                return ray.put(None)

    publisher = Publisher(0.0)
    publisher.use(Board)
    for counter, progress in ((1, 0.1), (1, 0.2), (2, 0.3)):
        assert not publisher.publish(lambda c=counter, p=progress: weights(c, progress=p), now=True)
    assert [m["shared"] for m in sent] == [((0, 1), LARGE, 0.1), ((0, 1), 0, 0.2), ((0, 2), LARGE, 0.3)]
    board = WeightBoard()
    board.publish(weights(1, progress=0.1))
    first = pulled_here(board)
    board.publish({"shared": Weights("shared", 0, 1, np.zeros(0, np.float32), 0.2)})
    again = pulled_here(board)
    assert again.progress == 0.2
    assert again.arrays == first.arrays
    publisher.use(object)
    publisher.use(Board)  # another board has nothing yet
    publisher.publish(lambda: weights(2), now=True)
    assert sent[-1]["shared"][1] == LARGE


def pulled_here(board):
    return unpack(board.pull({}))


def test_no_actor_waits_for_weights(board):
    """A board that does not answer costs no step, whether it has been asked or is about to be."""
    recipe = recipe_of("algorithm.hidden=[32]", "learner.publish_every_s=0.05", "replay.min_items=100000")
    actor = ray.remote(RolloutActor).options(num_cpus=0).remote(recipe, 0, 0)
    shard = ray.remote(ShardServer).options(num_cpus=0).remote(recipe, GROUPS, SPECS, 0, 0, None, None)
    ray.get([actor.groups.remote(), shard.pid.remote()])
    size = actor_parameters(recipe)
    ray.get(board.publish.remote(weights(1, size=size)))
    assert ray.get(actor.run_for.remote(0.5, shard, board)).env_steps > 0
    os.kill(pid := ray.get(board.pid.remote()), signal.SIGSTOP)
    try:
        for _ in range(3):
            report = ray.get(actor.run_for.remote(0.5, shard, board), timeout=60)
            assert report.env_steps > 0
            assert not report.board_lost
    finally:
        os.kill(pid, signal.SIGCONT)
    for process in (actor, shard):
        ray.kill(process)


def actor_parameters(recipe):
    """How many parameters the recipe's policy acts with."""
    from seqrl_ray.loops.build import algorithms

    return algorithms(recipe, GROUPS)["shared"].weights().size
