"""The policy server's queue: what waits is the batch, its errors reach everybody; and whose GPU it has."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from seqrl_ray import api
from seqrl_ray.errors import RecipeError
from seqrl_ray.loops.build import training_env
from seqrl_ray.loops.central import Answer, Question, Request
from seqrl_ray.runtime import launch
from seqrl_ray.runtime.policy_server import PolicyServer
from seqrl_ray.runtime.weight_board import NOWHERE, Pulled
from seqrl_ray.runtime.wire import GONE, pack, unpack
from seqrl_ray.types_env import Weights


class Board:
    """Answers as a board's handle does: `await board.pull.remote(have)`."""

    def __init__(self, *given: Pulled) -> None:
        self.given, self.dead = list(given), False
        self.pull = self

    async def remote(self, have: Any) -> Any:
        if self.dead:
            raise GONE[0]("the board died")
        return self.given.pop(0) if self.given else Pulled({}, {}, 0.3)


@pytest.fixture
def world() -> Any:
    recipe = api.read_recipe(
        "classic/cartpole",
        ["algorithm.hidden=[8]", "actors.envs_per_actor=2", "learner.publish_every_s=0.01"],
    )
    env = training_env(recipe, 0, 0)
    groups = dict(env.groups)
    env.close()

    def build() -> tuple[PolicyServer, Pulled]:
        server = PolicyServer(recipe, groups, device="cpu", threads=1)
        flat = server.policies.algorithms["shared"].weights()
        return server, Pulled({"shared": Weights("shared", 0, 7, flat, 0.25)}, {}, 0.3)

    return build


def request(actor: int) -> Any:
    question = Question(
        obs=np.full((2, 4), 0.1 * actor, np.float32),
        prev_action=np.zeros(2, np.int64),
        prev_reward=np.zeros(2, np.float32),
        is_first=np.ones(2, bool),
        legal=None,
        slot_params={"epsilon": np.zeros(2, np.float32)},
    )
    return pack(Request(actor, 0, {"shared": question}), question.arrays())


def test_what_waits_while_a_batch_is_computed_is_the_next_batch(world: Callable[[], Any]) -> None:
    async def run() -> None:
        server, pulled = world()
        board = Board(pulled)
        began, go_on = threading.Event(), threading.Event()
        act = server.policies.act

        def slow(requests: Sequence[Request]) -> list[Answer]:
            began.set()
            assert go_on.wait(30.0)
            return act(requests)

        server.policies.act = slow
        await server.serve(board)
        first = asyncio.ensure_future(server.act(request(0)))
        assert await asyncio.to_thread(began.wait, 30.0)
        others = [asyncio.ensure_future(server.act(request(i))) for i in range(1, 6)]
        await asyncio.sleep(0.05)
        assert not any(call.done() for call in (first, *others))
        report = await server.serve(board)  # heard while it computes
        assert report.batches == 0
        go_on.set()
        answers = [unpack(await call) for call in (first, *others)]
        report = await server.serve(board)
        assert (report.requests, report.batches, report.slots) == (6, 2, 12)
        assert report.busy_s > 0.0 and report.waited_s > 0.05 and not report.board_lost
        for answer in answers:
            assert (answer.versions, answer.progress) == ({"shared": (0, 7)}, 0.3)
            assert answer.actions["shared"][0].shape == (2,)

    asyncio.run(run())


def test_nobody_is_answered_before_there_are_weights(world: Callable[[], Any]) -> None:
    async def run() -> None:
        server, pulled = world()
        board = Board()
        present = asyncio.ensure_future(server.present())
        call = asyncio.ensure_future(server.act(request(0)))
        await asyncio.sleep(0.1)
        assert not call.done() and not present.done()  # no board
        await server.serve(board)
        await asyncio.sleep(0.1)
        assert not call.done() and not present.done()  # an empty one
        board.given.append(pulled)
        assert (await present).versions == {"shared": (0, 7)}
        assert unpack(await call).versions == {"shared": (0, 7)}

    asyncio.run(run())


def test_a_large_array_comes_by_its_reference(world: Callable[[], Any]) -> None:
    async def run() -> None:
        server, pulled = world()
        flat = pulled.weights["shared"].flat
        reference = asyncio.get_running_loop().create_future()
        reference.set_result(-flat)
        bare = replace(pulled.weights["shared"], flat=NOWHERE)
        await server.serve(Board(Pulled({"shared": bare}, {"shared": reference}, 0.3)))
        await server.present()
        np.testing.assert_array_equal(server.policies.algorithms["shared"].weights(), -flat)

    asyncio.run(run())


def test_a_dead_board_is_told_of_and_the_weights_stay(world: Callable[[], Any]) -> None:
    async def run() -> None:
        server, pulled = world()
        board, later = Board(pulled), replace(pulled.weights["shared"], counter=9)
        assert not (await server.serve(board)).board_lost
        await server.act(request(0))
        board.dead = True
        await asyncio.sleep(0.1)
        assert unpack(await server.act(request(0))).versions == {"shared": (0, 7)}
        assert (await server.serve(board)).board_lost
        other = Board(Pulled({"shared": later}, {}, 0.4))
        assert not (await server.serve(other)).board_lost  # the loss was the other board's
        await asyncio.sleep(0.1)
        assert not (await server.serve(other)).board_lost
        assert unpack(await server.act(request(0))).versions == {"shared": (0, 9)}

    asyncio.run(run())


def test_a_batch_that_fails_is_told_to_who_may_end_the_process_alone(world: Callable[[], Any]) -> None:
    async def run() -> None:
        server, pulled = world()
        board = Board(pulled)
        await server.serve(board)
        bad = Request(1, 0, {"shared": Question(np.zeros((2, 9), np.float32), *[np.zeros(2)] * 3, None, {})})
        calls = [asyncio.ensure_future(server.act(r)) for r in (request(0), pack(bad, []))]
        await asyncio.sleep(0.2)
        assert not any(call.done() for call in calls)  # Ray repeats them
        with pytest.raises((ValueError, RuntimeError, KeyError)):
            await server.serve(board)
        for call in calls:
            call.cancel()

    asyncio.run(run())


def test_a_batch_that_does_not_end_shows(world: Callable[[], Any]) -> None:
    async def run() -> None:
        server, pulled = world()
        go_on, board = threading.Event(), Board(pulled)
        server.policies.act = lambda requests: go_on.wait(30.0) and []
        assert (await server.serve(board)).computing_s == 0.0
        call = asyncio.ensure_future(server.act(request(0)))
        await asyncio.sleep(0.3)
        first = await server.serve(board)
        await asyncio.sleep(0.1)
        second = await server.serve(board)
        assert 0.1 <= first.computing_s < second.computing_s <= second.lived_s
        go_on.set()
        call.cancel()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("overrides", "gpus", "learner", "server"),
    [
        ((), 2.0, 1.0, 0.0),
        (("actors.inference=central",), 0.0, 0.0, 0.0),
        (("actors.inference=central",), 1.0, 0.5, 0.5),
        (("actors.inference=central",), 2.0, 1.0, 1.0),
        (("actors.inference=central", "learner.num_gpus=1"), 1.0, 1.0, 0.0),
        (("actors.inference=central", "learner.count=2", "replay.wiring=service"), 2.0, 1.0, 0.0),
        (("actors.inference=central", "learner.device=cpu"), 1.0, 0.0, 0.0),
        (
            ("actors.inference=central", "learner.num_gpus=0.25", "actors.inference_gpus=0.75"),
            1.0,
            0.25,
            0.75,
        ),
    ],
)
def test_the_server_takes_a_gpu_that_the_learners_leave(
    monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...], gpus: float, learner: float, server: float
) -> None:
    monkeypatch.setattr(launch, "cluster_resources", lambda: {"CPU": 8.0, "GPU": gpus})
    placement = launch.place(api.read_recipe("classic/cartpole", list(overrides)), local=True)
    assert (placement.num_gpus, placement.server["num_gpus"]) == (learner, server)


def test_more_gpus_than_there_are_left_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "cluster_resources", lambda: {"CPU": 8.0, "GPU": 1.0})
    recipe = api.read_recipe("classic/cartpole", ["actors.inference=central", "actors.inference_gpus=0.5"])
    with pytest.raises(RecipeError, match=r"^actors.inference_gpus=0.5, and of the cluster's 1 GPUs the"):
        launch.place(recipe, local=True)
