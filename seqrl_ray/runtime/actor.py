"""The rollout actor: one process that steps environments and sends fragments.

In the colocated wiring the learner pulls (`fragment`); in the service wiring the actor pushes to its shard
and pulls weights from the board (`run_for`); it acts with the learner's weights or not at all. Either way new
weights are taken between two fragments only. With a policy server (`act_through`) it has no weights: the
server acts, with the newest it has, and a fragment is of the oldest that acted in it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import ray
import torch

from seqrl_ray.loops.behaviour import Behaviour
from seqrl_ray.loops.build import rollout
from seqrl_ray.recipe import Recipe
from seqrl_ray.runtime.policy_server import ActsThrough
from seqrl_ray.runtime.turns import Source
from seqrl_ray.runtime.weight_board import Puller
from seqrl_ray.runtime.wire import GONE, pack_fragment, unpack
from seqrl_ray.types import GroupSpec
from seqrl_ray.types_env import EpisodeEnd, Fragment, Weights

WEIGHTS_WAIT_S = 30.0
"""How long an actor waits for its first weights before it has the board looked at."""


@dataclass
class ActorReport:
    """What a pushing actor did in one stretch."""

    env_steps: int = 0
    episodes: list[EpisodeEnd] = field(default_factory=list)
    shard_lost: bool = False
    board_lost: bool = False
    dropped_steps: int = 0
    """Steps whose fragment a dead shard did not take."""
    shard_steps: int = 0
    """Env steps the shard had taken when it last answered; 0 = it has not."""
    waited_s: float = 0.0
    """Seconds held back by pacing (or by a slow shard)."""


class RolloutActor:
    """Wraps a Rollout; the runtime makes a Ray actor of it."""

    def __init__(
        self, recipe: Recipe, index: int, incarnation: int, behaviour: Behaviour | None = None
    ) -> None:
        torch.set_num_threads(1)
        self.recipe, self.index = recipe, index
        self.rollout = rollout(recipe, index, incarnation, behaviour)
        self.have: dict[str, tuple[int, int]] = {}
        self._source: Source = (f"actor-{index}", incarnation, 0)
        self._shard: Any = None
        self._sent_here = 0  # fragments sent as this source
        self._sent: list[tuple[Any, int]] = []  # (insert call, its steps), oldest first
        self._puller = Puller(recipe.learner.publish_every_s)
        self._waits_since: float | None = None
        self._through: ActsThrough | None = None

    def groups(self) -> dict[str, GroupSpec]:
        """Return the policy groups of the environment."""
        return dict(self.rollout.env.groups)

    def pid(self) -> int:
        """Process id, for kill tests and for people."""
        return os.getpid()

    def act_through(self, server: Any) -> None:
        """Have this policy server act from now on."""
        if self._through is None:
            self.rollout.acts = self._through = ActsThrough(server, self.index, self.rollout.incarnation)

    def fragment(self, weights: Any, progress: float) -> Any:
        """Take weights if any are sent, make one fragment and return it packed."""
        if self._through is None:
            self._take({} if weights is None else unpack(weights), progress)
        return pack_fragment(self._fragment())

    def set_hparams(self, values: Mapping[str, Any]) -> None:
        """Act with changed mutable hyper-parameters."""
        self.rollout.set_hparams(values)

    def take_place(self, rank: int, total: int) -> None:
        """Explore as actor `rank` of `total` from the next fragment on: others joined or left."""
        copies = self.recipe.actors.envs_per_actor
        self.rollout.set_place(rank * copies, total * copies)

    def open_episodes(self) -> Any:
        """Return the rollout's state, or None where the environment cannot rebuild an episode."""
        return self.rollout.state()

    def go_on_from(self, state: Any) -> None:
        """Take over a rollout state saved by the same actor of an earlier session."""
        self.rollout.restore(state)

    def run_for(self, seconds: float, shard: Any, board: Any) -> ActorReport:
        """Make fragments and push them to `shard` for about this long; without any weights yet, wait for
        them.
        """
        report = ActorReport()
        until = time.monotonic() + seconds
        self._puller.use(board)
        if shard != self._shard:
            self._open(shard, report)
        if not self.have and self._through is None:
            self._await_weights(report, until)
            if not self.have:
                return report
        while time.monotonic() < until and not report.shard_lost:
            if len(self._sent) >= self.recipe.actors.in_flight:
                self._settle_oldest(report, until)
                continue
            if self._through is None:
                self._look(report)
            fragment = self._fragment()
            report.env_steps += fragment.env_steps
            report.episodes.extend(fragment.episodes)
            call = shard.insert.remote(pack_fragment(fragment), self._source, self._sent_here)
            self._sent_here += 1
            self._sent.append((call, fragment.env_steps))
        return report

    def finish(self, seconds: float) -> ActorReport:
        """Wait until what was sent is stored, for about this long; what comes next is a source of its own."""
        report = ActorReport()
        until = time.monotonic() + seconds
        while self._sent and not report.shard_lost and time.monotonic() < until:
            self._settle_oldest(report, until)
        self._open(None, report)
        return report

    def _fragment(self) -> Fragment:
        """Make one fragment."""
        if self._through is not None:
            known = self._through.present()
            self.rollout.acts_with(known.versions, known.progress)
        return self.rollout.fragment()

    def _await_weights(self, report: ActorReport, until: float) -> None:
        """Ask the board until it has weights, at most until `until`: random weights are nobody's policy."""
        if self._waits_since is None:
            self._waits_since = time.monotonic()
        while not self.have and not report.board_lost and time.monotonic() < until:
            self._look(report)
            if awaited := self._puller.awaited:
                ray.wait(awaited, num_returns=len(awaited), timeout=max(0.01, until - time.monotonic()))
            elif not self.have:
                self._puller.soon()
                time.sleep(0.02)  # an empty board: the learner is about to fill it
        if not self.have and time.monotonic() - self._waits_since > WEIGHTS_WAIT_S:
            self._waits_since, report.board_lost = None, True
            self._puller = Puller(self._puller.every_s)

    def _settle_oldest(self, report: ActorReport, until: float) -> None:
        call, steps = self._sent[0]
        began = time.monotonic()
        ready, _ = ray.wait([call], timeout=max(0.01, until - began))
        report.waited_s += time.monotonic() - began
        if not ready:
            return
        self._sent.pop(0)
        try:
            report.shard_steps = int(ray.get(call))
        except GONE:
            report.shard_lost = True
            report.dropped_steps += steps
            self._open(self._shard, report)

    def _open(self, shard: Any, report: ActorReport) -> None:
        """Send to `shard` as a new source; what is on its way may never arrive."""
        self._shard, self._sent_here = shard, 0
        self._source = (self._source[0], self._source[1], self._source[2] + 1)
        report.dropped_steps += sum(steps for _, steps in self._sent)
        self._sent.clear()

    def _look(self, report: ActorReport) -> None:
        """Take the weights asked for earlier if they are there. Never waits."""
        try:
            pulled = self._puller.look(self.have)
        except GONE:
            report.board_lost = True
            return
        if pulled is not None:
            self._take(pulled.weights, pulled.progress)

    def _take(self, weights: Mapping[str, Weights], progress: float) -> None:
        for policy_id, new in weights.items():
            self.rollout.load(new)
            self.have[policy_id] = new.version
        self.rollout.set_progress(progress)

    def close(self) -> None:
        """Close the environment."""
        self.rollout.close()
