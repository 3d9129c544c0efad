"""The learner actor of the colocated wiring: it owns the shard and pulls fragments from the rollout actors.

It is the local loop's `Trainer` with another source of fragments. The supervisor is another process: it calls
`run_for` again and again, hears which actors fell silent, and hands over their replacements.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
import torch
from ray.exceptions import ObjectLostError, RayActorError, RayTaskError

from seqrl_ray.loops import checkpoints, living
from seqrl_ray.loops.build import SHARDS, stream_seed
from seqrl_ray.loops.learner import Learner
from seqrl_ray.loops.trainer import Finished, make_trainer
from seqrl_ray.recipe import Recipe
from seqrl_ray.runtime.supervisor import START_S, failed_to_start
from seqrl_ray.runtime.weight_board import Publisher
from seqrl_ray.runtime.wire import INLINE_BYTES, pack, unpack
from seqrl_ray.types import GroupSpec
from seqrl_ray.types_env import Fragment, Weights


@dataclass(frozen=True)
class Lost:
    """An actor that will send no more."""

    index: int
    cause: str
    """died, hung, or the traceback of its application error."""
    application_error: bool


@dataclass
class LearnerReport:
    """What the learner did in one stretch."""

    row: dict[str, Any]
    restored: dict[str, int]
    """Counts that this learner began with: 0, or its checkpoint's."""
    lag: dict[int, int]
    finished: list[Finished] = field(default_factory=list)
    lost: list[Lost] = field(default_factory=list)
    back: list[int] = field(default_factory=list)
    """Replaced actors whose first fragment has come."""
    left: list[int] = field(default_factory=list)
    """Actors that were to leave and of which nothing is on its way any more."""
    board_lost: bool = False
    notes: list[str] = field(default_factory=list)
    done: bool = False


class RemoteSource:
    """Rollout actors, each with a bounded number of fragments on their way, taken as they finish."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.actors: dict[int, Any] = {}
        self.lost: list[Lost] = []
        self.back: list[int] = []
        self.left: list[int] = []
        self.leaving: frozenset[int] = frozenset()
        """Actors that are asked for nothing more."""
        self.unplaced: frozenset[int] = frozenset()
        """Actors that wait for room on the cluster: their silence means nothing."""
        self._awaited: set[int] = set()
        self._heard: set[int] = set()  # actors that have answered once
        self._new: set[int] = set()  # actors that were never asked
        self._calls: dict[Any, tuple[int, float]] = {}  # call -> (actor, sent at)
        self._sent_versions: dict[int, dict[str, tuple[int, int]]] = {}
        self._weights: dict[str, Weights] = {}
        self._payload: Any = None
        self._next_look = 0.0

    def add(self, index: int, actor: Any, *, replacement: bool) -> None:
        """Pull from this actor from the next `poll` on: in an offline phase nobody asks it for anything."""
        self.actors[index] = actor
        self._calls = {call: entry for call, entry in self._calls.items() if entry[0] != index}
        self._sent_versions.pop(index, None)
        self._heard.discard(index)
        self._new.add(index)
        if replacement:
            self._awaited.add(index)

    def offer(self, weights: Mapping[str, Weights]) -> None:
        """Send these weights with the next requests; serialised once per version."""
        old = {p: w.version for p, w in self._weights.items()}
        self._weights = dict(weights)
        if old != self._versions():
            self._payload = None

    @property
    def overlaps(self) -> bool:
        """Actors go on while the learner learns, unless the run is in lock-step."""
        return self.recipe.actors.in_flight > 1

    def poll(self, *, wait: bool = True) -> Sequence[tuple[str, Fragment]]:
        """Return the fragments that are ready, waiting a tenth of a second at most, or not at all."""
        # In lock-step all are asked only now, with the weights just offered; else those that never were.
        for index in list(self.actors) if self.recipe.actors.in_flight == 1 else self._new:
            self._arm(index)
        self._new.clear()
        if not self._calls:
            time.sleep(0.02 if wait else 0.0)
            return []
        return self.take(wait=wait)

    @property
    def waiting(self) -> bool:
        """Whether a fragment is on its way, from an actor that stands somewhere."""
        return any(index not in self.unplaced for index, _ in self._calls.values())

    @property
    def in_flight(self) -> int:
        """Fragments asked for and not taken yet."""
        return len(self._calls)

    def take(self, *, wait: bool = True) -> Sequence[tuple[str, Fragment]]:
        """Return fragments that are ready, waiting a tenth of a second at most, or not at all; in lock-step
        ask for none.
        """
        ready, _ = ray.wait(list(self._calls), num_returns=1, timeout=0.1 if wait else 0)
        if ready and len(self._calls) > 1:
            ready, _ = ray.wait(list(self._calls), num_returns=len(self._calls), timeout=0)
        fragments = [f for call in ready if (f := self._settle(call)) is not None]
        self._look_for_silence()
        return fragments

    def _settle(self, call: Any) -> tuple[str, Fragment] | None:
        if call not in self._calls:
            return None  # of an actor that was found lost while this list of ready calls was gone through
        index, _ = self._calls.pop(call)
        try:
            fragment: Fragment = unpack(ray.get(call))
        except RayTaskError as error:
            self._drop(Lost(index, str(error), application_error=True))
            return None
        except ObjectLostError:
            self._arm(index)  # the reply went down with a node; if the actor did too, the next call shows it
            return None
        except RayActorError as error:
            created = failed_to_start(error)
            self._drop(Lost(index, str(error) if created else "died", application_error=created))
            return None
        self._heard.add(index)
        if index in self._awaited:
            self._awaited.discard(index)
            self.back.append(index)
        if self.recipe.actors.in_flight > 1:
            self._arm(index)
        return f"actor-{index}", fragment

    def _arm(self, index: int) -> None:
        actor = self.actors.get(index)
        if actor is None or index in self.leaving:
            return
        on_their_way = sum(1 for i, _ in self._calls.values() if i == index)
        progress = next(iter(self._weights.values())).progress if self._weights else 0.0
        while on_their_way < self.recipe.actors.in_flight:
            payload = None
            if self.recipe.actors.inference == "local" and self._sent_versions.get(index) != self._versions():
                payload = self._packed()
                self._sent_versions[index] = self._versions()
            self._calls[actor.fragment.remote(payload, progress)] = (index, time.monotonic())
            on_their_way += 1

    def _versions(self) -> dict[str, tuple[int, int]]:
        return {p: w.version for p, w in self._weights.items()}

    def _packed(self) -> Any:
        if self._payload is None:
            arrays = [w.flat for w in self._weights.values()]
            packed = pack(self._weights, arrays)
            self._payload = packed if sum(a.nbytes for a in arrays) < INLINE_BYTES else ray.put(packed)
        return self._payload

    def _look_for_silence(self) -> None:
        """Find, once a second, actors whose oldest call is out for too long (what is ready has been
        taken).
        """
        if time.monotonic() < self._next_look:
            return
        now = time.monotonic()
        self._next_look = now + 1.0
        # an actor's time to answer begins when it has found room
        self._calls = {c: (i, now if i in self.unplaced else sent) for c, (i, sent) in self._calls.items()}
        oldest: dict[int, float] = {}
        for index, sent in self._calls.values():
            oldest[index] = min(sent, oldest.get(index, sent))
        for index, sent in oldest.items():
            patience = self.recipe.actors.hang_timeout_s + (0.0 if index in self._heard else START_S)
            if now - sent > patience and index in self.actors:
                self._drop(Lost(index, "hung", application_error=False))

    def look_who_left(self) -> None:
        """Forget leaving actors of which no fragment is on its way any more."""
        busy = {index for index, _ in self._calls.values()}
        for index in [i for i in self.leaving if i in self.actors and i not in busy]:
            del self.actors[index]
            self._awaited.discard(index)
            self.left.append(index)

    def _drop(self, lost: Lost) -> None:
        """Forget an actor and everything on its way, once."""
        if lost.index not in self.actors:
            return
        del self.actors[lost.index]
        self._awaited.discard(lost.index)
        self._calls = {call: entry for call, entry in self._calls.items() if entry[0] != lost.index}
        self.lost.append(lost)


class ColocatedLearner:
    """Wraps a Trainer; the runtime makes a Ray actor of it."""

    def __init__(
        self,
        recipe: Recipe,
        groups: Mapping[str, GroupSpec],
        *,
        device: str,
        threads: int,
        epoch: int,
        resume: Path | None,
    ) -> None:
        torch.set_num_threads(threads)
        self.recipe = recipe
        self.source = RemoteSource(recipe)
        learner = Learner(recipe, groups, device=device)
        self.trainer = make_trainer(recipe, learner, groups, self.source, stream_seed(recipe, SHARDS, 0))
        if resume is not None:
            checkpoints.verify(resume)
            self.trainer.load(resume)
        else:
            self.trainer.load_data()
        learner.epoch += epoch
        self.restored = {"env_steps": self.trainer.counters.env_steps, "updates": learner.updates}
        self.publisher = Publisher(recipe.learner.publish_every_s)
        self._departed: set[str] = set()  # actors that left or died, whose streams are still open
        self.source.offer(learner.all_weights(self.trainer.progress))

    def pid(self) -> int:
        """Process id, for kill tests and for people."""
        return os.getpid()

    def run_for(
        self,
        seconds: float,
        actors: Mapping[int, tuple[Any, bool]],
        board: Any,
        env_steps: int = 0,
        leaving: frozenset[int] = frozenset(),
        unplaced: frozenset[int] = frozenset(),
        server: Any = None,
    ) -> LearnerReport:
        """Train for about this long; or until the budget is spent, an actor is lost, or there is news.

        Args:
            seconds: wall time.
            actors: new or replaced actors: index -> (handle, whether it replaces a lost one).
            board: where weights go.
            env_steps: come back when so many are made; 0 = no limit.
            leaving: actors that are asked for nothing more.
            unplaced: actors that wait for room: they are not called silent.
            server: who acts for all actors; None: they act themselves.
        """
        self.source.leaving, self.source.unplaced = leaving, unplaced
        self._departed -= {f"actor-{index}" for index in actors}  # a new incarnation closes the old streams
        for index, (actor, replacement) in actors.items():
            if server is not None:
                actor.act_through.remote(server)  # by us, so that it goes before our first request
            self.source.add(index, actor, replacement=replacement)
        self.publisher.use(board)
        until = time.monotonic() + seconds
        board_lost = False
        compiling = self.trainer.learner.compiling
        while (
            time.monotonic() < until
            and not self.trainer.done
            and not 0 < env_steps <= self.trainer.counters.env_steps
            and not self.source.lost
            and not self.source.left
            and not compiling.notes
        ):
            self.trainer.turn()
            self.source.look_who_left()
            self._close_streams()
            if self.recipe.actors.in_flight > 1:  # a lock-step run is a function of its seed, not of a clock
                compiling.consider(self.trainer.progress)
            board_lost = board_lost or self.publisher.publish(self._weights)
        if self.trainer.done:
            board_lost = board_lost or self.publisher.publish(self._weights, now=True)
        lost, self.source.lost = self.source.lost, []
        back, self.source.back = self.source.back, []
        row = self.trainer.report()
        row["fragments_in_flight"] = self.source.in_flight
        row["published_bytes"] = self.publisher.bytes_sent
        left, self.source.left = self.source.left, []
        self._departed |= {f"actor-{index}" for index in [actor.index for actor in lost] + left}
        self._close_streams()
        return LearnerReport(
            row=row,
            restored=self.restored,
            lag=dict(self.trainer.lag.counts),
            finished=self.trainer.take_finished(),
            lost=lost,
            back=back,
            left=left,
            board_lost=board_lost,
            notes=compiling.take_notes(),
            done=self.trainer.done,
        )

    def _close_streams(self) -> None:
        """Close the streams of actors that are no more, once all they sent has been let in."""
        held = {writer for writer, _ in self.trainer.arrived}
        for writer in [w for w in self._departed if w not in held]:
            self._departed.discard(writer)
            for shard in self.trainer.shards.values():
                shard.writer_gone(writer)

    def _weights(self) -> dict[str, Weights]:
        return self.trainer.learner.all_weights(self.trainer.progress)

    def publish_to(self, board: Any) -> None:
        """Fill a new board."""
        ray.get(board.publish.remote(self._weights()))

    def judged_weights(self) -> dict[str, Weights]:
        """Return what the policies are judged with at this moment."""
        return self.trainer.learner.judged_weights(self.trainer.progress)

    def learned(self) -> list[Any]:
        """Return a reference to a copy of what was learned, in a list so that Ray hands the reference on."""
        return [ray.put(living.learned(self.trainer))]

    def adopt(self, learned: list[Any] | None, replay: living.Replay, donor: Path | None) -> None:
        """Go on from what another run's `learned` refers to; see `seqrl_ray.loops.living`."""
        given = None if learned is None else ray.get(learned[0])
        living.adopt(self.trainer, given, replay=replay, donor=donor)

    def set_values(self, values: Mapping[str, Any]) -> None:
        """Change mutable recipe keys, dotted."""
        living.set_values(self.trainer, values)
        self.recipe = self.trainer.recipe
        self.publisher.every_s = self.recipe.learner.publish_every_s

    def settle(self) -> None:
        """Take the fragments on their way and learn from them, asking for no more."""
        while self.source.waiting and not self.source.lost:
            for actor, fragment in self.source.take():
                self.trainer.insert(actor, fragment)
                self.trainer.learn()
        self.source.offer(self._weights())

    def save(self, root: Path, trees: Mapping[str, Any], wait: bool) -> None:
        """Write a checkpoint; learner and replay are one unit here, so both are of the same moment."""
        self.trainer.save(root, trees, wait=wait)
