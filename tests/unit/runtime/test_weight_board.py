"""How weights travel, without Ray: a large version is put once, sent once, and waited for by nobody."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from ray.exceptions import ObjectLostError

from seqrl_ray.runtime import weight_board
from seqrl_ray.runtime.weight_board import Publisher, Puller, WeightBoard
from seqrl_ray.runtime.wire import INLINE_BYTES, unpack
from seqrl_ray.types_env import Weights

LARGE = INLINE_BYTES  # floats: four times as many bytes


class Reference:
    """An object in the store, or an answer; here once `arrived`."""

    def __init__(self, value, arrived=True):
        self.value, self.arrived = value, arrived


class Store:
    """What `ray.put`, `get` and `wait` do, and how often something was put."""

    def __init__(self):
        self.puts = 0

    def put(self, value):
        self.puts += 1
        return Reference(np.array(value))  # a copy, as Ray makes one

    def get(self, reference):
        assert reference.arrived, "waits for what has not come"
        if isinstance(reference.value, Exception):
            raise reference.value
        return reference.value

    def wait(self, references, num_returns=1, timeout=None):
        assert timeout == 0, "an actor never waits here"
        return [r for r in references if r.arrived], [r for r in references if not r.arrived]


@pytest.fixture
def store(monkeypatch):
    made = Store()
    monkeypatch.setattr(weight_board, "ray", made)
    return made


def weights(counter, size=LARGE, progress=0.0):
    return {"shared": Weights("shared", 0, counter, np.full(size, counter, np.float32), progress)}


def pull(board, **have):
    return unpack(board.pull(have))


def test_a_large_version_is_put_once_for_everybody(store):
    board = WeightBoard()
    board.publish(weights(1))
    one, other = pull(board), pull(board)
    assert store.puts == 1
    assert one.arrays["shared"] is other.arrays["shared"]
    assert one.weights["shared"].flat.size == 0
    np.testing.assert_array_equal(one.whole()["shared"].flat, np.full(LARGE, 1.0))
    for counter in (2, 3, 4):
        board.publish(weights(counter))
    assert store.puts == 4
    assert pull(board).whole()["shared"].version == (0, 4)
    assert len(board._arrays) == weight_board.KEPT  # what nobody will ask for any more is let go
    assert pull(board, shared=(0, 4)).weights == {}


def test_a_small_version_comes_inside_the_answer(store):
    board = WeightBoard()
    board.publish(weights(1, size=10))
    came = pull(board)
    assert (store.puts, came.arrays) == (0, {})
    np.testing.assert_array_equal(came.whole()["shared"].flat, np.full(10, 1.0))


def test_a_version_is_sent_once_and_then_only_its_progress(store):
    boards = [WeightBoard(), WeightBoard()]
    sent = []

    def handle(board):
        def publish(message):
            sent.append({p: (w.version, w.flat.size, w.progress) for p, w in message.items()}["shared"])
            return Reference(board.publish(message))

        return SimpleNamespace(publish=SimpleNamespace(remote=publish))

    handles = [handle(board) for board in boards]
    publisher = Publisher(0.0)
    publisher.use(handles[0])
    for counter, progress in ((1, 0.1), (1, 0.2), (2, 0.3)):
        publisher.publish(lambda c=counter, p=progress: weights(c, progress=p), now=True)
    assert sent == [((0, 1), LARGE, 0.1), ((0, 1), 0, 0.2), ((0, 2), LARGE, 0.3)]
    assert store.puts == 2
    publisher.use(handles[1])  # it has nothing yet
    publisher.publish(lambda: weights(2, progress=0.4), now=True)
    assert sent[-1] == ((0, 2), LARGE, 0.4)
    for board, progress in zip(boards, (0.3, 0.4), strict=True):
        came = pull(board)
        assert came.progress == progress
        np.testing.assert_array_equal(came.whole()["shared"].flat, np.full(LARGE, 2.0))


class Asked:
    """A board's handle whose answers come when the test says."""

    def __init__(self, board):
        self.answers = []

        def remote(have):
            self.answers.append(Reference(board.pull(have), arrived=False))
            return self.answers[-1]

        self.pull = SimpleNamespace(remote=remote)


def test_an_actor_goes_on_until_answer_and_array_are_here(store):
    board = WeightBoard()
    board.publish(weights(1))
    asked, puller = Asked(board), Puller(0.0)
    puller.use(asked)
    assert puller.look({}) is None
    assert puller.look({}) is None
    assert len(asked.answers) == 1  # one question at a time
    array = board._arrays["shared", (0, 1)]
    array.arrived, asked.answers[0].arrived = False, True
    assert puller.look({}) is None  # the answer says where the array is
    assert puller.look({}) is None
    assert puller.awaited == [array]
    array.arrived = True
    came = puller.look({})
    assert came is not None
    np.testing.assert_array_equal(came.weights["shared"].flat, np.full(LARGE, 1.0))
    assert len(asked.answers) == 2  # and asks again, in time


def test_an_array_that_went_down_with_its_board_is_a_lost_board(store):
    board = WeightBoard()
    board.publish(weights(1))
    asked, puller = Asked(board), Puller(0.0)
    puller.use(asked)
    puller.look({})
    asked.answers[0].arrived = True
    puller.look({})
    board._arrays["shared", (0, 1)].value = ObjectLostError("0" * 56, "", "")
    with pytest.raises(ObjectLostError):
        puller.look({})
    other = WeightBoard()
    other.publish(weights(3, size=10))
    again = Asked(other)
    puller.use(again)
    assert puller.look({}) is None
    again.answers[0].arrived = True
    came = puller.look({})
    assert came is not None and came.weights["shared"].version == (0, 3)
