"""The service wiring, seen from the supervisor's process: shard actors between rollout actors and the
learner.

Rollout actors push to their shard (`runtime.spread`) and pull weights from the board; the learner draws from
all shards. The supervisor holds one `run_for` call with each of them, hears their counts, and replaces
whoever dies: an actor as a new incarnation, a shard from the newest checkpoint's snapshot, the learner from
its checkpoint, the board empty.
This file is long because what is done about each kind of death stands in one place,
beside the loop that notices it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayTaskError

from seqrl_ray.loops import checkpoints
from seqrl_ray.loops.drive import Advance
from seqrl_ray.loops.run_folder import LagCounter
from seqrl_ray.loops.trainer import Finished
from seqrl_ray.recipe import Recipe
from seqrl_ray.runtime.actor import ActorReport
from seqrl_ray.runtime.collective import LearnerLost
from seqrl_ray.runtime.learner_group import Follower
from seqrl_ray.runtime.replay_service import ShardServer, reshard, saved_shards, spread
from seqrl_ray.runtime.service_learner import ServiceLearner, ServiceReport
from seqrl_ray.runtime.session import Death, Placement, RaySession, Say, cause_of, diverged, silent
from seqrl_ray.runtime.spread import Spread
from seqrl_ray.runtime.supervisor import START_S, failed_to_start, threads_env
from seqrl_ray.runtime.wire import GONE
from seqrl_ray.types_env import Weights

ACTOR_STRETCH_S = 1.0
"""How long an actor runs between two reports to the supervisor."""


FINISH_S = 5.0
"""How long an actor that leaves, or changes its shard, waits for what it sent."""

ANSWER_S = 60.0
"""How long a process that was reported lost may take to show that it lives."""

SPARE_CALLS = 100
"""Calls a shard answers beside the inserts that may wait in it: exchanges, counts, a dead actor's inserts."""


@dataclass
class _Saving:
    """A checkpoint whose shards are still writing; any death of theirs or of the learner costs it."""

    name: str
    learner: Any
    """Who holds the rest of it."""
    shards: dict[int, Any]
    trees: dict[str, Any]


@dataclass(frozen=True)
class _Stretch:
    """What an actor was sent off to do."""

    actor: int
    shard: int
    life: int
    """How often that shard had been restarted: news of an earlier life is old news."""
    sent_at: float
    last: bool = False
    """It was to wait until this shard had stored what it sent: it leaves, or changes to another."""


class ServiceSession(RaySession):
    """A run in being; see `seqrl_ray.loops.drive.Session`."""

    _followers: Sequence[Any] = ()
    """Learners beside the one that leads; they live and die with it."""

    def __init__(
        self,
        recipe: Recipe,
        placement: Placement,
        *,
        root: Path,
        clock_s: float = 0.0,
        resume: Path | None = None,
        say: Say = silent,
    ) -> None:
        """Start the processes; arguments as in `RaySession`."""
        super().__init__(recipe, placement, root=root, clock_s=clock_s, resume=resume, say=say)
        self.spread = Spread(recipe.replay.shards, rotates=recipe.actors.in_flight > 1)
        self._sends_to: dict[int, int] = {}  # actor -> the shard it has sent to
        self.hire_first()
        self.groups = self.first_groups()
        self.start_server()
        self._learner = self._make_learner(resume)
        self._specs = ray.get(self._learner.specs.remote())
        self._unpaced = ray.get(self._learner.unpaced.remote())
        self._shard_lives = dict.fromkeys(range(recipe.replay.shards), 0)
        self._shards: dict[int, Any] = {}
        self._shard_steps = dict.fromkeys(self._shard_lives, 0)
        replay, states = self._replay_to_go_on_from(resume)
        for index in self._shard_lives:
            self._shards[index] = self._make_shard(index, 0, replay, states)
        ray.get([shard.pid.remote() for shard in self._shards.values()])
        if resume is not None and self.exact:
            self.restore_rollouts(resume)
        self._calls: dict[Any, _Stretch] = {}
        self._heard: set[int] = set()  # actors that have answered once
        self._finished: list[Finished] = []
        self._episodes = 0 if resume is None else int(checkpoints.load(resume, "supervisor")["episodes"])
        self._saving: _Saving | None = None
        self._waited_s = 0.0
        self._dropped = dict.fromkeys(self._shard_lives, 0)  # steps a dead shard did not take, not yet told
        self._dropped_steps = 0
        self._fill(self.supervisor.board)  # before any actor is sent off: it waits for weights

    # --------------------------------------------------------------------------------------- making processes

    def _make_learner(self, resume: Path | None) -> Any:
        p = self.placement
        options = {
            "num_cpus": p.learner_cpus,
            "num_gpus": p.num_gpus,
            "runtime_env": threads_env(p.learner_threads),
        }
        pins = p.follower_pins or ({},) * (self.recipe.learner.count - 1)
        self._followers = [
            ray.remote(Follower)
            .options(**options, **pins[rank - 1])
            .remote(self.recipe, self.groups, rank, device=p.device, threads=p.learner_threads)
            for rank in range(1, self.recipe.learner.count)
        ]
        return (
            ray.remote(ServiceLearner)
            .options(**options, **p.pin)
            .remote(
                self.recipe,
                self.groups,
                device=p.device,
                threads=p.learner_threads,
                epoch=self.epoch,
                resume=resume,
                followers=self._followers,
                kind="nccl" if p.num_gpus >= 1.0 and p.device != "cpu" else "gloo",
            )
        )

    def _end_learners(self) -> None:
        for learner in [*self._followers, *([self._learner] if self._learner is not None else [])]:
            self.supervisor.end(learner)

    def _make_shard(self, index: int, life: int, replay: Path | None, states: Mapping[str, Any]) -> Any:
        actors = self.recipe.actors
        waiting = -(-actors.most * actors.in_flight // self.recipe.replay.shards)
        if actors.elastic:  # on their way from shard to shard, all may come to one
            waiting = actors.most * actors.in_flight
        remote = ray.remote(ShardServer).options(
            num_cpus=self.placement.shard_cpus,
            max_concurrency=waiting + SPARE_CALLS,
            runtime_env=threads_env(),
            **self.placement.shard_pin,
        )
        state = states.get(str(index))
        folder = replay if state is not None else None
        return remote.remote(
            self.recipe, self.groups, self._specs, index, life, folder, state, unpaced=self._unpaced
        )

    def _replay_to_go_on_from(self, checkpoint: Path | None) -> tuple[Path | None, dict[str, Any]]:
        """Return (replay folder, shard -> state) of a checkpoint, spread over the present number of
        shards.
        """
        if checkpoint is None:
            return None, {}
        states: dict[str, Any] = checkpoints.load(checkpoint, "shards")
        replay = checkpoint / "replay"
        saved = len(saved_shards(replay, next(iter(self.groups))))
        if saved == self.recipe.replay.shards:
            return replay, states
        out = checkpoint / f"replay-{self.recipe.replay.shards}"
        task = ray.remote(reshard).options(
            num_cpus=self.placement.shard_cpus, runtime_env=threads_env(), **self.placement.shard_pin
        )
        ray.get(task.remote(self.recipe, self.groups, self._specs, replay, out))
        return out, spread(states, self.recipe.replay.shards)

    # ----------------------------------------------------------------------------------------------- training

    def advance(self, seconds: float) -> Advance:
        """Let learner and actors run, and mend what broke."""
        call = self._learner.run_for.remote(seconds, self._shards, self.supervisor.board)
        report: ServiceReport | None = None
        while report is None:
            self.follow_the_cluster()
            busy = {stretch.actor for stretch in self._calls.values()}
            free = [i for i in self.supervisor.actors if i not in busy]
            if free:
                self.spread.waits = self.crew.waiting
            for index in free:
                self._send(index)
            calls = [call, *self._calls]
            ready, _ = ray.wait(calls, num_returns=1, timeout=1.0)
            if ready:
                ready, _ = ray.wait(calls, num_returns=len(calls), timeout=0)
            for done in ready:
                if done == call:
                    report = self._learner_report(call, seconds)
                elif done in self._calls and (lost := self._actor_report(done)) is not None:
                    self._replace_shard(lost)  # which may hear more of `ready`
            self._look_for_silence()
        if report.done:
            self._collect_actors()
        self._shard_steps = {i: max(n, report.shard_steps.get(i, 0)) for i, n in self._shard_steps.items()}
        for index in report.lost_shards:
            self._replace_shard(index)
        row = self._row(report.row)
        if self.tend_server(row) or report.board_lost:
            self._replace_board()
        self._finish_saving(wait=False)
        self.last = {k: int(row[k]) for k in self.last}
        self.mend_nodes()
        row["actors"] = self.crew.size
        finished, self._finished = self._finished, []
        notes = report.notes + self.take_notes()
        failures, judged = self.take_failures(), self.interim_results()
        return Advance(row, finished, failures, judged, notes, report.done, self.take_save_wanted())

    def keepers(self) -> list[Any]:
        """Return learners and shards."""
        return [self._learner, *self._followers, *self._shards.values()]

    def let_go(self, index: int) -> None:
        """End an actor that has left, or never began; nobody replaces it."""
        super().let_go(index)
        self._calls = {call: stretch for call, stretch in self._calls.items() if stretch.actor != index}
        self._forget(index, self.supervisor.incarnations[index])
        self.spread.leave(index)

    def _forget(self, index: int, incarnation: int) -> None:
        """Have every shard close the streams of an actor that is no more."""
        self._heard.discard(index)
        self._sends_to.pop(index, None)
        for shard in self._shards.values():
            shard.writer_gone.remote(f"actor-{index}", incarnation)

    def _send(self, index: int) -> None:
        """Send an actor off; one that leaves, or changes its shard, first waits for what it sent."""
        self.spread.join(index)
        self.spread.balance(time.monotonic())
        leaving, before = index in self.crew.leaving, self._sends_to.get(index)
        if before is not None and (leaving or before != self.spread.of[index]):
            call = self.supervisor.actors[index].finish.remote(FINISH_S)
            life = self._shard_lives[before]
            self._calls[call] = _Stretch(index, before, life, time.monotonic(), last=True)
            return
        if leaving:  # it has sent nothing
            self.let_go(index)
            return
        shard = self._sends_to[index] = self.spread.of[index]
        call = self.supervisor.actors[index].run_for.remote(
            ACTOR_STRETCH_S, self._shards[shard], self.supervisor.board
        )
        self._calls[call] = _Stretch(index, shard, self._shard_lives[shard], time.monotonic())

    def _learner_report(self, call: Any, seconds: float) -> ServiceReport:
        try:
            report: ServiceReport = ray.get(call)
            return report
        except (RayTaskError, *GONE) as error:
            return self._replace_learner(seconds, error)

    def _actor_report(self, call: Any) -> int | None:
        """Take what an actor's stretch brought. Returns the shard that it found dead."""
        stretch = self._calls.pop(call)
        index, shard = stretch.actor, stretch.shard
        try:
            report: ActorReport = ray.get(call)
        except RayTaskError as error:
            self._bury(index, str(error), application_error=True)
            return None
        except GONE as error:
            failed = failed_to_start(error)
            self._bury(index, str(error) if failed else "died", application_error=failed)
            return None
        self._heard.add(index)
        if report.env_steps:
            self.is_back(index)
        self._waited_s += report.waited_s
        self._dropped_steps += report.dropped_steps
        if report.episodes:
            self._episodes += len(report.episodes)
            self._finished.append(Finished(f"actor-{index}", tuple(report.episodes)))
        if report.board_lost:
            self._replace_board()
        self._dropped[shard] += report.dropped_steps
        if stretch.last:
            self._sends_to.pop(index, None)
            if index in self.crew.leaving:
                self.let_go(index)
        if stretch.life != self._shard_lives[shard]:
            return None
        self._shard_steps[shard] = max(self._shard_steps[shard], report.shard_steps)
        return shard if report.shard_lost else None

    def _collect_actors(self) -> None:
        """At the end of the budget: hear what the actors' last stretches brought, and send no more."""
        self._hear(list(self._calls), timeout=2 * ACTOR_STRETCH_S)

    def _look_for_silence(self) -> None:
        """Bury actors that let a call wait for too long; one that has answered is not silent, however late
        this process is to hear it.
        """
        now = time.monotonic()
        late = [c for c, s in self._calls.items() if self._is_late(s, s.sent_at, now)]
        late = [c for c in late if self._is_late(self._calls[c], self._placed_at(c), now)]
        if not late:
            return
        _, silent = ray.wait(late, num_returns=len(late), timeout=0)
        for call in silent:
            self._bury(self._calls.pop(call).actor, "hung", application_error=False)

    def _placed_at(self, call: Any) -> float:
        """Since when an actor could answer: waiting for room, or for the policy server, is not silence."""
        placed_at = self.crew.placed_at(self._calls[call].actor)
        return placed_at if self.server is None else max(placed_at, self.server.back_at)

    def _is_late(self, stretch: _Stretch, since: float, now: float) -> bool:
        return now - since > self._patience(stretch.actor, stretch.last)

    def _patience(self, index: int, last: bool = False) -> float:
        stretch_s = FINISH_S if last else ACTOR_STRETCH_S
        start_s = 0.0 if index in self._heard else START_S
        return stretch_s + self.recipe.actors.hang_timeout_s + start_s

    def _row(self, row: dict[str, Any]) -> dict[str, Any]:
        row["episodes"] = self._episodes
        row["actors_waited_s"] = self._waited_s
        row["dropped_steps"] = self._dropped_steps
        row["stale_rows"] = row["other_epoch_rows"] = 0
        lag: LagCounter = LagCounter()
        calls = {i: (s.stats.remote(), s.counts.remote()) for i, s in self._shards.items()}
        for index, (stats_call, counts_call) in calls.items():
            try:
                stats, counts = ray.get([stats_call, counts_call])
            except GONE:
                continue  # the next stretch of the learner or of an actor reports it lost
            row.update(stats["row"])
            self._shard_steps[index] = int(counts[0])
            for name in ("stale_rows", "other_epoch_rows"):
                row[name] += stats["counted"][name]
            for value, times in stats["lag"].items():
                lag.add(int(value), times)
        self.lag = lag
        row["policy_lag_p50"], row["policy_lag_p95"] = lag.quantile(0.5), lag.quantile(0.95)
        return row

    # ------------------------------------------------------------------------------------------------ mending

    def _bury(self, index: int, cause: str, *, application_error: bool) -> None:
        steps = self.recipe.actors.fragment_steps * self.recipe.actors.envs_per_actor
        died = self.supervisor.incarnations[index]
        rehired = self.bury_actor(index, cause, application_error=application_error, lost_steps=steps)
        self._forget(index, died)
        if rehired is None:
            self.spread.leave(index)

    def _answers(self, process: Any) -> bool:
        """Whether a process that was reported lost lives after all (or has been replaced already)."""
        try:
            ray.get(process.pid.remote(), timeout=ANSWER_S)
        except (GetTimeoutError, *GONE):
            return False
        return True

    def _replace_shard(self, index: int) -> bool:
        """Restart a shard from the newest checkpoint, if it is dead. Returns whether it was.

        Raises: WorkerError: the replacements die as well, until the budget is spent or an error repeats.
        """
        if self._answers(self._shards[index]):
            return False
        death, life, kept = Death("shard", self.at_s()), self._shard_lives[index], -1
        self.count_death(f"shard {index}", self._shards[index])
        while kept < 0:
            self.supervisor.end(self._shards[index])
            found = checkpoints.complete(self.root)
            replay, states = self._replay_to_go_on_from(found[-1]) if found else (None, {})
            life += 1
            self._shards[index] = self._make_shard(index, life, replay, states)
            try:
                kept, _ = ray.get(self._shards[index].counts.remote())
            except (RayTaskError, *GONE) as error:
                self.supervisor.count("shard", error)
        self._hear([c for c, stretch in self._calls.items() if stretch.shard == index], timeout=0)
        self._shard_lives[index] = life
        death.lost_steps = max(0, self._shard_steps[index] - kept) + self._dropped[index]
        self._shard_steps[index], self._dropped[index] = kept, 0
        self.recovered(death)
        return True

    def _hear(self, calls: Sequence[Any], timeout: float) -> None:
        """Take the reports of these calls of actors that come within `timeout` seconds."""
        if calls:
            ready, _ = ray.wait(list(calls), num_returns=len(calls), timeout=timeout)
            for call in ready:
                self._actor_report(call)

    def _replace_board(self) -> None:
        if not self._answers(self.supervisor.board):
            self.replace_board(self._fill)

    def _fill(self, board: Any) -> None:
        """Have the learner fill an empty board; one that died meanwhile is reported anew by the learner."""
        try:
            ray.get(self._learner.publish_to.remote(board))
        except (RayTaskError, *GONE) as error:
            self._replace_learner(0.0, error)  # the new one publishes as it begins

    def _replace_learner(self, seconds: float, error: Exception) -> ServiceReport:
        """Restart the learner from the newest checkpoint, or from nothing where there is none yet.

        Of several learners all begin anew, whichever died: they would not be alike.

        Raises: WorkerError: the replacements die as well, until the budget is spent or an error repeats.
        """
        death = Death("learner", self.at_s(), diverged=diverged(error))
        report: ServiceReport | None = None
        while report is None:
            if self.went_with_its_node([self._learner, *self._followers]):
                pass
            elif isinstance(getattr(error, "cause", None), LearnerLost):
                self.supervisor.budget.death("a learner")
            else:
                self.supervisor.count("learner", error)
            self._end_learners()
            found = checkpoints.complete(self.root)
            self.epoch += 1
            self._learner = self._make_learner(found[-1] if found else None)
            try:
                report = ray.get(self._learner.run_for.remote(seconds, self._shards, self.supervisor.board))
            except (RayTaskError, *GONE) as again:
                error = again
        death.lost_updates = max(0, self.last["updates"] - report.restored_updates)
        self.recovered(death)
        return report

    # -------------------------------------------------------------------------------------------- checkpoints

    def save(self, root: Path, trees: Mapping[str, Any], *, wait: bool) -> None:
        """Begin a checkpoint: the learner freezes its state, the shards write between requests.

        With `wait`, who dies meanwhile is replaced and another checkpoint begun, until one exists.

        Raises: WorkerError: deaths have used up their budget. CheckpointError: the folder cannot be written.
        """
        self._finish_saving(wait=True)  # if a death cost it, this one is whole
        self._begin_saving(root, trees)
        while wait and not self._finish_saving(wait=True):
            if not any([self._mend_learner(), *(self._replace_shard(i) for i in self._shards)]):
                self.supervisor.budget.death("a part of a checkpoint")
            self._begin_saving(root, trees)

    def _begin_saving(self, root: Path, trees: Mapping[str, Any]) -> None:
        name = checkpoints.new_name(root, self.last["env_steps"])
        lock_step = self.recipe.actors.in_flight == 1 and not self._calls
        rollouts = self.rollout_states() if lock_step else {}
        own = {"rollouts": rollouts, "supervisor": {**self.supervisor.state(), "episodes": self._episodes}}
        held = False
        while not held:
            try:
                ray.get(self._learner.hold.remote(dict(trees)))
                held = True
            except (RayTaskError, *GONE) as error:
                self._replace_learner(0.0, error)
        calls = {i: s.save.remote(root / name / "replay") for i, s in self._shards.items()}
        self._saving = _Saving(name, self._learner, calls, own)

    def judged_weights(self) -> dict[str, Weights]:
        """Return what the policies are judged with at this moment; a dead learner is replaced first."""
        while True:
            try:
                found: dict[str, Weights] = ray.get(self._learner.judged_weights.remote())
                return found
            except (RayTaskError, *GONE) as error:
                self._replace_learner(0.0, error)

    def _mend_learner(self) -> bool:
        """Replace the learner if it is dead. Returns whether it was."""
        try:
            ray.get(self._learner.pid.remote())
        except GONE as error:
            self._replace_learner(0.0, error)
            return True
        return False

    def _finish_saving(self, *, wait: bool) -> bool:
        """Write the manifest once every shard has written. Returns False if a death cost the checkpoint.

        Its half folder has no manifest, so it is none; the next checkpoint that is whole removes it.
        """
        saving = self._saving
        if saving is None:
            return True
        calls = list(saving.shards.values())
        ready, _ = ray.wait(calls, num_returns=len(calls), timeout=None if wait else 0)
        if len(ready) < len(calls):
            return True
        self._saving = None
        try:
            states = {str(i): ray.get(call) for i, call in saving.shards.items()}
            ray.get(saving.learner.write.remote(self.root, saving.name, {**saving.trees, "shards": states}))
        except GONE:
            return False
        except RayTaskError as error:
            raise cause_of(error) from None
        return True

    def close(self) -> None:
        """End every process of the run; closing twice is harmless."""
        super().close()
        self._calls.clear()
        for shard in self._shards.values():
            self.supervisor.end(shard)
        self._end_learners()
        self._shards.clear()
        self._learner, self._followers = None, ()
