"""The policy server: one process, on a GPU where there is one, acts for all rollout actors of a run
(`actors.inference = "central"`), and what an actor has of it.

Requests wait while a batch is being computed, and the next batch is all that wait: nobody waits for a batch
to fill, and the busier the server, the larger its batches. Weights come from the board, between two batches.

It is the one process that Ray itself restarts, and whose lost calls Ray repeats: so an actor that waits in
the middle of a fragment goes on where it stood, and never hears of the death. Acting states go with it: their
slots begin afresh. The session asks it for a report now and then, and so learns of its restarts.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import ray
import torch

from seqrl_ray.loops.build import ACTING, algorithms, stream_seed
from seqrl_ray.loops.central import Answer, CentralPolicies, Question, Request
from seqrl_ray.recipe import Recipe
from seqrl_ray.runtime.weight_board import Pulled
from seqrl_ray.runtime.wire import GONE, pack, unpack
from seqrl_ray.types import ActInput, Array, GroupSpec
from seqrl_ray.types_env import Weights

EMPTY_S = 0.02
"""How often a board that has no weights yet is asked."""


@dataclass(frozen=True)
class ServerReport:
    """What a policy server has done since it began."""

    pid: int
    """Another one than before: it was restarted."""
    requests: int
    batches: int
    slots: int
    busy_s: float
    """Seconds spent computing."""
    waited_s: float
    """Seconds that requests waited for their batch to begin, added up."""
    computing_s: float
    """Seconds that the batch under way has taken so far; 0: none is."""
    lived_s: float
    """Seconds since it began."""
    board_lost: bool
    """The board that it was told of before this report is dead."""


@dataclass
class _Batch:
    """Requests that will be answered together."""

    requests: list[Request] = field(default_factory=list)
    since: list[float] = field(default_factory=list)
    answers: asyncio.Future[list[Answer]] | None = None


class PolicyServer:
    """A plain object with coroutines; the runtime makes a Ray actor of it."""

    def __init__(self, recipe: Recipe, groups: Mapping[str, GroupSpec], *, device: str, threads: int) -> None:
        """Make the policies, without weights yet: `serve` says where these come from.

        Args:
            recipe: the run.
            groups: policy id -> slots of one actor and spaces.
            device: torch device; auto = CUDA where there is one.
            threads: of torch.
        """
        torch.set_num_threads(threads)
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        # every start has its own stream: a restarted server must not repeat the noise of the one before
        seed = np.random.SeedSequence((stream_seed(recipe, ACTING), os.getpid(), time.time_ns()))
        self.policies = CentralPolicies(
            algorithms(recipe, groups, device=device), np.random.default_rng(seed)
        )
        self._thread = ThreadPoolExecutor(1)  # for batches: the event loop goes on taking requests
        self._turn = asyncio.Lock()
        self._gathering: _Batch | None = None
        self._every_s = recipe.learner.publish_every_s
        self._board: Any = None
        self._board_lost = False
        self._following: asyncio.Task[None] | None = None
        self._news: dict[str, Weights] = {}
        self._progress = 0.0
        self._ready = asyncio.Event()
        self._busy_s = self._waited_s = 0.0
        self._born = time.monotonic()
        self._began: float | None = None  # the batch under way
        self._failed: asyncio.Future[list[Answer]] | None = None
        self._never = asyncio.Event()

    async def act(self, request: Any) -> Any:
        """Answer a packed `Request` with a packed `Answer`.

        Of a batch that fails nobody hears: the next `serve` raises the error, and Ray repeats the calls that
        wait when this process has ended.
        """
        batch = self._gathering
        if batch is None:
            batch = self._gathering = _Batch()
            batch.answers = asyncio.ensure_future(self._answer(batch))
        place = len(batch.requests)
        batch.requests.append(unpack(request))
        batch.since.append(time.monotonic())
        assert batch.answers is not None
        await asyncio.wait([batch.answers])
        if batch.answers.exception() is not None:
            self._failed = batch.answers
            await self._never.wait()
        answer = batch.answers.result()[place]
        arrays = [a for action, extras in answer.actions.values() for a in (action, *extras.values())]
        return pack(answer, arrays)

    async def present(self) -> Answer:
        """Return the versions and the progress acted with; waits for the first weights."""
        await self._ready.wait()
        async with self._turn:
            self._load()
        return Answer({}, dict(self.policies.versions), self.policies.progress)

    async def serve(self, board: Any, gone: Sequence[int] = ()) -> ServerReport:
        """Take weights from this board, drop the states of actors that are `gone`, and report.

        Raises: whatever a batch, or looking for weights, failed with: this process is of no more use.
        """
        if self._failed is not None:
            self._failed.result()
        lost = self._board_lost and board == self._board
        if board != self._board:
            self._board, self._board_lost = board, False
        if self._following is None:
            self._following = asyncio.ensure_future(self._follow())
        elif self._following.done():
            self._following.result()  # raises what ended it
        for actor in gone:
            self.policies.forget(actor)
        counts, now = self.policies.counts, time.monotonic()
        return ServerReport(
            pid=os.getpid(),
            requests=counts.requests,
            batches=counts.batches,
            slots=counts.slots,
            busy_s=self._busy_s,
            waited_s=self._waited_s,
            computing_s=0.0 if self._began is None else now - self._began,
            lived_s=now - self._born,
            board_lost=lost,
        )

    async def _answer(self, batch: _Batch) -> list[Answer]:
        await self._ready.wait()
        async with self._turn:
            self._gathering = None  # who asks from now on is in the next one
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._compute, batch)

    def _compute(self, batch: _Batch) -> list[Answer]:
        self._load()
        began = self._began = time.monotonic()
        answers = self.policies.act(batch.requests)
        self._began = None
        self._busy_s += time.monotonic() - began
        self._waited_s += sum(began - since for since in batch.since)
        return answers

    def _load(self) -> None:
        """Act with what has come, between two batches."""
        news, self._news = self._news, {}
        self.policies.load(news, self._progress)

    async def _follow(self) -> None:
        """Ask the board for new weights now and then; an empty one often."""
        have: dict[str, tuple[int, int]] = {}
        while True:
            board = self._board
            try:
                pulled: Pulled = unpack(await board.pull.remote(have))
                arrays = await asyncio.gather(*pulled.arrays.values())
            except GONE:
                self._board_lost = self._board == board
                while self._board == board:  # until we are told of another
                    await asyncio.sleep(EMPTY_S)
                continue
            large = dict(zip(pulled.arrays, arrays, strict=True))
            came = {p: replace(w, flat=large[p]) if p in large else w for p, w in pulled.weights.items()}
            have |= {p: weights.version for p, weights in came.items()}
            self._news, self._progress = {**self._news, **came}, pulled.progress
            if have:
                self._ready.set()
            await asyncio.sleep(self._every_s if have else EMPTY_S)


class ActsThrough:
    """An actor's side of the server: chooses actions by asking it; see `Rollout.acts`."""

    def __init__(self, server: Any, actor: int, incarnation: int) -> None:
        self._server, self._actor, self._incarnation = server, actor, incarnation
        self.newest: Answer | None = None

    def __call__(self, inputs: Mapping[str, ActInput]) -> Mapping[str, tuple[Array, Mapping[str, Array]]]:
        """Ask for the actions of all groups, and wait for them."""
        questions = {policy_id: Question.of(own) for policy_id, own in inputs.items()}
        request = Request(self._actor, self._incarnation, questions)
        arrays = [array for question in questions.values() for array in question.arrays()]
        self.newest = unpack(ray.get(self._server.act.remote(pack(request, arrays))))
        assert self.newest is not None
        return self.newest.actions

    def present(self) -> Answer:
        """Return the newest versions and progress that are known here; at first, ask and wait for them."""
        if self.newest is None:
            self.newest = ray.get(self._server.present.remote())
        assert self.newest is not None
        return self.newest
