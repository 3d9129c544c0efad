"""Several learners of one run: one leads (`runtime.service_learner`), the others follow it.

The leader decides when is learned, counts for all, publishes the weights and writes the checkpoints. A
follower draws its own part of every minibatch from the shards, adds its gradients to the others'
(`runtime.collective`), takes the same steps, and writes the priorities of its own part back. So all hold the
same parameters, and a follower's death costs no more than the leader's: the group begins anew from the newest
checkpoint.

What the leader tells rides on one Ray call per draw. It sends nobody into an update whose part of the draw is
not there yet: whoever waits for experience waits where a lost shard can be noticed and replaced, and in a
collective nobody waits longer than the slowest takes to compute.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
import torch
from ray.exceptions import RayActorError, RayTaskError
from ray.util import get_node_ip_address

from seqrl_ray.loops.build import SHARDS, stream_seed
from seqrl_ray.loops.learner import Learner
from seqrl_ray.loops.parts import Part, parameters
from seqrl_ray.loops.trainer import make_pacing
from seqrl_ray.recipe import Recipe
from seqrl_ray.runtime.collective import Collective, Kind, LearnerLost, find_store, open_store
from seqrl_ray.runtime.remote_replay import RemoteReplay
from seqrl_ray.runtime.session import cause_of
from seqrl_ray.runtime.supervisor import failed_to_start
from seqrl_ray.runtime.wire import GONE
from seqrl_ray.types import GroupSpec

LEARNER = 1_000_000
"""Keys the learners' own streams of draws apart from the shards'; the rank is added."""

CHECK_UPDATES = 2_000
"""How many updates go by between two looks at whether all learners hold the same parameters."""

WAIT_S = 0.05
"""How long a follower waits for its part of a draw before it says that it has none."""

REASON_S = 5.0
"""How long the leader waits to hear what a broken collective was broken by."""


@dataclass(frozen=True)
class Word:
    """What the leader tells a follower."""

    progress: float
    """Share of the run that is over: all schedules follow the leader's."""
    beta: float
    ahead: Mapping[str, int]
    """Policy id -> draws that the leader has asked for and not learned from yet."""
    learn: str | None = None
    """The policy to learn from the oldest draw for; None = only ask for draws."""
    check: bool = False
    """See afterwards whether all learners are alike."""
    shards: Mapping[int, Any] | None = None
    """Every shard's handle, where they have changed."""


@dataclass(frozen=True)
class Said:
    """What a follower answers."""

    ready: Mapping[str, int]
    """Policy id -> draws whose part is here."""
    lost: frozenset[int]
    """Shards that do not answer."""
    stale_priorities: int
    """Late priorities of this follower so far."""


def arrived(calls: Sequence[Any], timeout_s: float) -> set[Any]:
    """Return the calls that are answered: all that are, as soon as one is; none after `timeout_s`."""
    if not calls:
        return set()
    ready, _ = ray.wait(list(calls), num_returns=1, timeout=timeout_s)
    if ready and len(calls) > 1:
        ready, _ = ray.wait(list(calls), num_returns=len(calls), timeout=0)
    return set(ready)


def _own_address() -> str:
    """Return the address at which other nodes reach this one."""
    address: str = get_node_ip_address()  # type: ignore[no-untyped-call]
    return address


class Follower:
    """A learner that does what the leader says; the runtime makes a Ray actor of it."""

    def __init__(
        self, recipe: Recipe, groups: Mapping[str, GroupSpec], rank: int, *, device: str, threads: int
    ) -> None:
        torch.set_num_threads(threads)
        self.recipe, self.groups, self.rank = recipe, groups, rank
        self.learner = Learner(recipe, groups, device=device)
        self.replays: dict[str, RemoteReplay] = {}
        self.collective: Collective

    def pid(self) -> int:
        """Process id, for kill tests and for people."""
        return os.getpid()

    def join(self, host: str, port: int, kind: Kind, state: Mapping[str, Any]) -> None:
        """Take over the leader's state and join its group."""
        learners = self.recipe.learner.count
        self.learner.restore(state)
        self.collective = Collective(
            find_store(host, port),
            self.rank,
            learners,
            kind=kind,
            host=_own_address(),
            device=self.learner.device,
        )
        self.learner.share(Part(self.rank, learners), self.collective.add_up)
        for place, (policy_id, group) in enumerate(sorted(self.groups.items())):
            spec = self.learner.algorithms[policy_id].sample_spec()
            self.replays[policy_id] = RemoteReplay(
                self.recipe,
                policy_id,
                make_pacing(self.recipe, spec, len(group.slots), paced=False),
                stream_seed(self.recipe, SHARDS, LEARNER + self.rank, place),
                epoch=self.learner.epoch,
                leads=False,
            )

    def step(self, word: Word) -> Said:
        """Do what the leader says, and say what there is to learn from."""
        with contextlib.ExitStack() as failed:
            failed.callback(self.collective.close)  # or the leader would wait for us in the next collective
            self._step(word)
            failed.pop_all()
        return Said(
            {policy_id: replay.ready() for policy_id, replay in self.replays.items()},
            frozenset().union(*(replay.lost for replay in self.replays.values())),
            sum(replay.stale_priorities for replay in self.replays.values()),
        )

    def _step(self, word: Word) -> None:
        if word.shards is not None:
            for replay in self.replays.values():
                replay.use(word.shards)
        left = dict(word.ahead)
        self._ask(word, left)
        if word.learn is not None:
            self._learn(word.learn, word)
            left[word.learn] -= 1
        self._settle(0.0)
        until = time.monotonic() + WAIT_S
        while any(left[p] and not replay.ready() for p, replay in self.replays.items()):
            self._settle(max(0.0, until - time.monotonic()))
            if time.monotonic() >= until:
                return
            self._ask(word, left)

    def _ask(self, word: Word, ahead: Mapping[str, int]) -> None:
        for policy_id, replay in self.replays.items():
            replay.follow(ahead[policy_id], word.beta, self.learner.algorithms[policy_id].updates)

    def _settle(self, timeout_s: float) -> None:
        calls = [call for replay in self.replays.values() for call in replay.calls()]
        if not calls:
            time.sleep(timeout_s)  # every shard is lost, or empty
        came = arrived(calls, timeout_s)
        for replay in self.replays.values():
            replay.settle([call for call in replay.calls() if call in came])

    def _learn(self, policy_id: str, word: Word) -> None:
        replay = self.replays[policy_id]
        batch = replay.next_batch(self.collective.largest)
        assert batch is not None  # it was said to be ready, and what is whole stays
        priorities = self.learner.update(policy_id, batch, word.progress)
        replay.write_back(batch.ids, priorities)
        if word.check:
            self.collective.check_alike(parameters(self.learner.algorithms), self.learner.updates)


class Followers:
    """All followers, seen from the leader; none where it is alone."""

    def __init__(self, handles: Sequence[Any]) -> None:
        self._handles = dict(enumerate(handles, 1))  # rank -> handle
        self._told: dict[int, deque[tuple[Any, Word]]] = {rank: deque() for rank in self._handles}
        self._said: dict[int, Said] = {rank: Said({}, frozenset(), 0) for rank in self._handles}
        self._shards: Mapping[int, Any] = {}
        self._starts: dict[int, Any] = {}

    def started(self, timeout_s: float) -> bool:
        """Whether all stand, within this time: a cluster may have to make room for them first."""
        if len(self._starts) < len(self._handles):
            self._starts = {rank: follower.pid.remote() for rank, follower in self._handles.items()}
        calls = list(self._starts.values())
        return not calls or not ray.wait(calls, num_returns=len(calls), timeout=timeout_s)[1]

    @property
    def lost(self) -> set[int]:
        """Shards that do not answer a follower that was last told of them."""
        return set().union(*(said.lost for rank, said in self._said.items() if not self._handing(rank)))

    @property
    def stale_priorities(self) -> int:
        """Late priorities of all followers."""
        return sum(said.stale_priorities for said in self._said.values())

    def gather(self, learner: Learner, kind: Kind) -> Collective | None:
        """Form the group around the leader once all have `started`; all with its state. None where it is
        alone.

        Raises: LearnerLost: a follower died meanwhile; or what its constructor raised.
        """
        if not self._handles:
            return None
        learners, host = len(self._handles) + 1, _own_address()
        kind = kind if torch.device(learner.device).type == "cuda" else "gloo"
        self._answers(self._starts)
        store, state = open_store(host), ray.put(learner.state())
        joins = {
            rank: follower.join.remote(host, store.port, kind, state)
            for rank, follower in self._handles.items()
        }
        try:
            collective = Collective(store, 0, learners, kind=kind, host=host, device=learner.device)
        except LearnerLost:
            came = arrived(list(joins.values()), REASON_S)
            self._answers({rank: call for rank, call in joins.items() if call in came})  # why, if one knows
            raise
        self._answers(joins)
        learner.share(Part(0, learners), collective.add_up)
        return collective

    def ready(self, policy_id: str) -> bool:
        """Whether every follower has its part of a draw that it was not sent to learn from yet."""
        return all(
            said.ready.get(policy_id, 0) > sum(word.learn == policy_id for _, word in self._told[rank])
            for rank, said in self._said.items()
        )

    def hand_over(self, shards: Mapping[int, Any], word: Word) -> None:
        """Tell of the shards' handles, where they changed or somebody had found one of them lost."""
        if self._handles and (shards != self._shards or self.lost):
            self._shards = dict(shards)
            self.tell(word, self._shards)

    def prepare(self, word: Word) -> None:
        """Have those who are idle get what the leader has asked for and they have not."""
        for rank, said in self._said.items():
            missing = any(draws and not said.ready.get(p, 0) for p, draws in word.ahead.items())
            if missing and not self._told[rank]:
                self._tell(rank, word)

    def tell(self, word: Word, shards: Mapping[int, Any] | None = None) -> None:
        """Tell all."""
        for rank in self._handles:
            self._tell(rank, word if shards is None else replace(word, shards=shards))

    def _tell(self, rank: int, word: Word) -> None:
        self._told[rank].append((self._handles[rank].step.remote(word), word))

    def _handing(self, rank: int) -> bool:
        return any(word.shards is not None for _, word in self._told[rank])

    def calls(self) -> list[Any]:
        """The next answer awaited of every follower."""
        return [told[0][0] for told in self._told.values() if told]

    def settle(self, came: Collection[Any]) -> None:
        """Take answers that have come.

        Raises: LearnerLost: a follower has died; or what a follower's step raised.
        """
        for rank, told in self._told.items():
            if told and told[0][0] in came:
                call, _ = told.popleft()
                (self._said[rank],) = self._answers({rank: call})

    def say_why(self) -> None:
        """After a collective broke: raise what the followers know of it, if they know anything; what one of
        them raised itself before a mere loss of contact.
        """
        lost: LearnerLost | None = None
        until = time.monotonic() + REASON_S
        while came := arrived(self.calls(), max(0.0, until - time.monotonic())):
            try:
                self.settle(came)
            except LearnerLost as error:
                lost = lost or error
        if lost is not None:
            raise lost

    @staticmethod
    def _answers(calls: Mapping[int, Any]) -> list[Any]:
        """Return what the followers answer; see `settle` for what is raised."""
        answers = []
        for rank, call in calls.items():
            try:
                answers.append(ray.get(call))
            except RayTaskError as error:
                if isinstance(error.cause, LearnerLost):
                    raise LearnerLost(str(error.cause)) from None
                raise cause_of(error) from None
            except GONE as error:
                if isinstance(error, RayActorError) and failed_to_start(error):
                    raise cause_of(error) from None
                raise LearnerLost(f"learner {rank} has died: {error}") from None
        return answers
