"""The learner actor of the service wiring: it draws from shard actors and knows no rollout actor.

Of several learners it is the one that leads; see `runtime.learner_group`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch

from seqrl_ray.loops import checkpoints
from seqrl_ray.loops.build import SHARDS, stream_seed
from seqrl_ray.loops.learner import Learner
from seqrl_ray.loops.parts import parameters
from seqrl_ray.loops.trainer import make_pacing, pacing_row
from seqrl_ray.recipe import Recipe
from seqrl_ray.runtime.collective import Collective, Kind, LearnerLost
from seqrl_ray.runtime.learner_group import CHECK_UPDATES, LEARNER, Followers, Word, arrived
from seqrl_ray.runtime.remote_replay import RemoteReplay
from seqrl_ray.runtime.supervisor import START_S
from seqrl_ray.runtime.weight_board import Publisher
from seqrl_ray.runtime.wire import GONE
from seqrl_ray.types import GroupSpec, SampleSpec
from seqrl_ray.types_env import Weights


@dataclass
class ServiceReport:
    """What the learner did in one stretch."""

    row: dict[str, Any]
    restored_updates: int
    """Updates that this learner began with: 0, or its checkpoint's."""
    shard_steps: dict[int, int]
    """Env steps of every shard when it was last heard."""
    lost_shards: list[int]
    board_lost: bool
    notes: list[str]
    done: bool


class ServiceLearner:
    """Learner and its view of the shards; the runtime makes a Ray actor of it."""

    def __init__(
        self,
        recipe: Recipe,
        groups: Mapping[str, GroupSpec],
        *,
        device: str,
        threads: int,
        epoch: int,
        resume: Path | None,
        followers: Sequence[Any] = (),
        kind: Kind = "gloo",
    ) -> None:
        """Prepare; what is trained together with `followers` begins with the first `run_for`.

        Args:
            recipe: the run.
            groups: policy id -> spaces.
            device: torch device.
            threads: of torch.
            epoch: raised by every restart.
            resume: checkpoint to go on from.
            followers: handles of the other learners, ranks 1, 2, ...
            kind: how gradients travel between learners.
        """
        torch.set_num_threads(threads)
        self.recipe = recipe
        self.learner = Learner(recipe, groups, device=device)
        saved: dict[str, Any] = {}
        if resume is not None:
            checkpoints.verify(resume)
            saved = checkpoints.load(resume, "trainer")
            self.learner.restore(saved["learner"])
        self.learner.epoch += epoch
        self.restored_updates = self.learner.updates
        self.replays: dict[str, RemoteReplay] = {}
        for place, policy_id in enumerate(sorted(groups)):
            paced = self.learner.algorithms[policy_id].learns
            pacing = make_pacing(recipe, self.specs()[policy_id], len(groups[policy_id].slots), paced=paced)
            if saved:
                pacing.restore(saved["pacing"][policy_id])
            seed = stream_seed(recipe, SHARDS, LEARNER, place)
            self.replays[policy_id] = RemoteReplay(recipe, policy_id, pacing, seed, epoch=self.learner.epoch)
        self.publisher = Publisher(recipe.learner.publish_every_s)
        self.followers, self.kind = Followers(followers), kind
        self.collective: Collective | None = None
        self._checked_at = -CHECK_UPDATES  # updates: the first learned from together is looked at
        self._held: dict[str, Any] = {}

    def specs(self) -> dict[str, SampleSpec]:
        """Return what every policy wants of replay: the shards are made for it."""
        return {p: a.sample_spec() for p, a in self.learner.algorithms.items()}

    def unpaced(self) -> list[str]:
        """Return the policies that learn nothing: nobody draws from their shards."""
        return [p for p, a in self.learner.algorithms.items() if not a.learns]

    def pid(self) -> int:
        """Process id, for kill tests and for people."""
        return os.getpid()

    @property
    def progress(self) -> float:
        """Share of the run's step budget that is spent."""
        steps = max((r.env_steps for r in self.replays.values()), default=0)
        return min(1.0, steps / self.recipe.stop.env_steps)

    @property
    def done(self) -> bool:
        """The budget is spent."""
        limit = self.recipe.stop.updates
        return self.progress >= 1.0 or bool(limit and self.learner.updates >= limit)

    def run_for(self, seconds: float, shards: Mapping[int, Any], board: Any) -> ServiceReport:
        """Train for about this long; or until the budget is spent, a shard is lost, or there is news.

        Args:
            seconds: wall time.
            shards: every shard's present handle.
            board: where weights go.
        """
        for replay in self.replays.values():
            replay.use(shards)
        self.publisher.use(board)
        if self.collective is None:
            if not self.followers.started(START_S):
                wanted = self.recipe.learner.count
                return self._report([f"waiting for all {wanted} learners to start: is there room for them?"])
            self.collective = self.followers.gather(self.learner, self.kind)
        self.followers.hand_over(shards, self._word())
        until = time.monotonic() + seconds
        known_lost = self._lost()
        board_lost = False
        compiling = self.learner.compiling
        while (
            time.monotonic() < until and not self.done and self._lost() <= known_lost and not compiling.notes
        ):
            self._turn()
            if self.recipe.actors.in_flight > 1:  # a lock-step run is a function of its seed, not of a clock
                compiling.consider(self.progress)
            board_lost = board_lost or self.publisher.publish(self._weights)
        if self.done:
            board_lost = board_lost or self.publisher.publish(self._weights, now=True)
        return self._report(compiling.take_notes(), board_lost=board_lost)

    def _report(self, notes: list[str], *, board_lost: bool = False) -> ServiceReport:
        lost, steps = sorted(self._lost()), dict[int, int]()
        for replay in self.replays.values():
            for index, counted in replay.counts().items():
                steps[index] = max(counted, steps.get(index, 0))
        return ServiceReport(self._row(), self.restored_updates, steps, lost, board_lost, notes, self.done)

    def _lost(self) -> set[int]:
        return set().union(self.followers.lost, *(r.lost for r in self.replays.values()))

    def _turn(self) -> None:
        """Ask, take what has come, learn from every draw that is whole."""
        beta = self.recipe.replay.beta(self.progress)
        for policy_id, replay in self.replays.items():
            ask = replay.pump if self.learner.algorithms[policy_id].learns else replay.listen
            ask(beta, self.learner.algorithms[policy_id].updates)
        self.followers.prepare(self._word())
        calls = [call for replay in self.replays.values() for call in replay.calls()]
        calls += self.followers.calls()
        if not calls:
            time.sleep(0.02)
            return
        came = arrived(calls, 0.1)
        self.followers.settle(came)
        for policy_id, replay in self.replays.items():
            replay.settle([call for call in replay.calls() if call in came])
            while replay.ready() and self.followers.ready(policy_id) and not self.done:
                self._learn(policy_id, replay, beta)

    def _learn(self, policy_id: str, replay: RemoteReplay, beta: float) -> None:
        """Learn from the oldest draw, and have the others learn from theirs.

        Raises: LearnerLost: one of the others has died meanwhile; or what it raised.
        """
        due = self.learner.updates - self._checked_at >= CHECK_UPDATES
        word = self._word(policy_id, check=due)
        self.followers.tell(word)
        try:
            batch = replay.next_batch(self.collective.largest if self.collective else None)
            assert batch is not None
            replay.pump(beta, self.learner.algorithms[policy_id].updates)  # the shards work while we do
            priorities = self.learner.update(policy_id, batch, word.progress)
            if due and self.collective:
                self.collective.check_alike(parameters(self.learner.algorithms), self.learner.updates)
                self._checked_at = self.learner.updates
        except LearnerLost:
            self.followers.say_why()
            raise
        replay.write_back(batch.ids, priorities)

    def _word(self, learn: str | None = None, *, check: bool = False) -> Word:
        """What the others are told of this moment."""
        ahead = {policy_id: replay.ahead for policy_id, replay in self.replays.items()}
        return Word(self.progress, self.recipe.replay.beta(self.progress), ahead, learn, check)

    def _weights(self) -> dict[str, Weights]:
        return self.learner.all_weights(self.progress)

    def judged_weights(self) -> dict[str, Weights]:
        """Return what the policies are judged with at this moment."""
        return self.learner.judged_weights(self.progress)

    def publish_to(self, board: Any) -> bool:
        """Fill a new board. Returns False if it is dead already."""
        try:
            ray.get(board.publish.remote(self._weights()))
        except GONE:
            return False
        return True

    def _row(self) -> dict[str, Any]:
        row: dict[str, Any] = {
            "env_steps": max((r.env_steps for r in self.replays.values()), default=0),
            "agent_steps": max((r.agent_steps for r in self.replays.values()), default=0),
            "updates": self.learner.updates,
            "progress": self.progress,
            "stale_priorities": self.followers.stale_priorities
            + sum(r.stale_priorities for r in self.replays.values()),
            "published_bytes": self.publisher.bytes_sent,
            **{f"{p}/queued_draws": r.ahead for p, r in self.replays.items()},
        }
        if self.collective is not None:
            row["all_reduce_s"] = self.collective.seconds
        row.update(pacing_row({p: r.pacing for p, r in self.replays.items()}))
        row.update(self.learner.metrics())
        return row

    def hold(self, trees: Mapping[str, Any]) -> None:
        """Freeze this moment's state; `write` makes the checkpoint exist once the shards have written."""
        self._held = {
            **trees,
            "trainer": {
                "counters": {"env_steps": self._row()["env_steps"]},
                "pacing": {p: r.pacing.state() for p, r in self.replays.items()},
                "learner": self.learner.state(),
            },
        }

    def write(self, root: Path, name: str, trees: Mapping[str, Any]) -> None:
        """Write the frozen state and the manifest."""
        checkpoints.save(root, name, {**self._held, **trees}, self.recipe.learner.keep_checkpoints)
        self._held = {}
