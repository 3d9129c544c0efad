"""The service wiring, seen from the supervisor's process: shard actors between rollout actors and the
learner.

Rollout actors push to their shard (`index % shards`) and pull weights from the board; the learner draws from
all shards. The supervisor holds one `run_for` call with each of them, hears their counts, and replaces
whoever dies: an actor as a new incarnation, a shard from the newest checkpoint's snapshot, the learner from
its checkpoint, the board empty.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from seqrl_ray.loops import checkpoints
from seqrl_ray.loops.drive import Advance
from seqrl_ray.loops.run_folder import LagCounter
from seqrl_ray.loops.trainer import Finished
from seqrl_ray.recipe import Recipe
from seqrl_ray.runtime.actor import ActorReport
from seqrl_ray.runtime.replay_service import ShardServer, reshard, saved_shards
from seqrl_ray.runtime.service_learner import ServiceLearner, ServiceReport
from seqrl_ray.runtime.session import Death, Placement, RaySession
from seqrl_ray.runtime.supervisor import threads_env

ACTOR_STRETCH_S = 1.0
"""How long an actor runs between two reports to the supervisor."""


@dataclass
class _Saving:
    """A checkpoint whose shards are still writing."""

    name: str
    shards: dict[int, Any]
    trees: dict[str, Any]


class ServiceSession(RaySession):
    """A run in being; see `seqrl_ray.loops.drive.Session`."""

    def __init__(
        self,
        recipe: Recipe,
        placement: Placement,
        *,
        root: Path,
        clock_s: float = 0.0,
        resume: Path | None = None,
    ) -> None:
        """Start the processes; arguments as in `RaySession`."""
        super().__init__(recipe, placement, root=root, clock_s=clock_s, resume=resume)
        for index in range(recipe.actors.count):
            self.supervisor.make_actor(index)
        self.groups = self.first_groups()
        self._learner = self._make_learner(resume)
        self._specs = ray.get(self._learner.specs.remote())
        self._shard_lives = dict.fromkeys(range(recipe.replay.shards), 0)
        self._shards: dict[int, Any] = {}
        self._shard_steps = dict.fromkeys(self._shard_lives, 0)
        replay, states = self._replay_to_go_on_from(resume)
        for index in self._shard_lives:
            self._shards[index] = self._make_shard(index, replay, states)
        ray.get([shard.pid.remote() for shard in self._shards.values()])
        if resume is not None and self.exact:
            self.restore_rollouts(resume)
        self._calls: dict[Any, tuple[int, float]] = {}  # an actor's call -> (actor, sent at)
        self._finished: list[Finished] = []
        self._episodes = 0 if resume is None else int(checkpoints.load(resume, "supervisor")["episodes"])
        self._saving: _Saving | None = None
        self._waited_s = 0.0

    # --------------------------------------------------------------------------------------- making processes

    def _make_learner(self, resume: Path | None) -> Any:
        p = self.placement
        remote = ray.remote(ServiceLearner).options(
            num_cpus=p.learner_cpus, num_gpus=p.num_gpus, runtime_env=threads_env(p.learner_threads), **p.pin
        )
        return remote.remote(
            self.recipe,
            self.groups,
            device=p.device,
            threads=p.learner_threads,
            epoch=self.epoch,
            resume=resume,
        )

    def _make_shard(self, index: int, replay: Path | None, states: Mapping[str, Any]) -> Any:
        remote = ray.remote(ShardServer).options(
            num_cpus=self.placement.shard_cpus, max_concurrency=1000, runtime_env=threads_env()
        )
        state = states.get(str(index))
        folder = replay if state is not None else None
        return remote.remote(
            self.recipe, self.groups, self._specs, index, self._shard_lives[index], folder, state
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
        task = ray.remote(reshard).options(num_cpus=self.placement.shard_cpus, runtime_env=threads_env())
        ray.get(task.remote(self.recipe, self.groups, self._specs, replay, out))
        return out, _spread(states, self.recipe.replay.shards)

    # ----------------------------------------------------------------------------------------------- training

    def advance(self, seconds: float) -> Advance:
        """Let learner and actors run, and mend what broke."""
        call = self._learner.run_for.remote(seconds, self._shards, self.supervisor.board)
        report: ServiceReport | None = None
        while report is None:
            for index in self.supervisor.actors:
                if all(i != index for i, _ in self._calls.values()):
                    self._send(index)
            ready, _ = ray.wait([call, *self._calls], num_returns=1, timeout=1.0)
            for done in ready:
                if done is call:
                    report = self._learner_report(call, seconds)
                else:
                    self._actor_report(done)
            self._look_for_silence()
        if report.done:
            self._collect_actors()
        for index in report.lost_shards:
            self._replace_shard(index)
        if report.board_lost:
            self._replace_board()
        self._finish_saving(wait=False)
        row = self._row(report.row)
        self.last = {k: int(row[k]) for k in self.last}
        finished, self._finished = self._finished, []
        return Advance(row, finished, self.take_failures(), self.interim_results(), report.notes, report.done)

    def _send(self, index: int) -> None:
        shard = self._shards[index % len(self._shards)]
        call = self.supervisor.actors[index].run_for.remote(ACTOR_STRETCH_S, shard, self.supervisor.board)
        self._calls[call] = (index, time.monotonic())

    def _learner_report(self, call: Any, seconds: float) -> ServiceReport:
        try:
            report: ServiceReport = ray.get(call)
            return report
        except RayTaskError as error:
            self.supervisor.budget.application_error("learner", str(error))
        except RayActorError:
            self.supervisor.budget.death("the learner")
        return self._replace_learner(seconds)

    def _actor_report(self, call: Any) -> None:
        index, _ = self._calls.pop(call)
        try:
            report: ActorReport = ray.get(call)
        except RayTaskError as error:
            self._bury(index, str(error), application_error=True)
            return
        except RayActorError:
            self._bury(index, "died", application_error=False)
            return
        if index in self.actor_deaths and report.env_steps:
            self.recovered(self.actor_deaths.pop(index))
        self._waited_s += report.waited_s
        if report.episodes:
            self._episodes += len(report.episodes)
            self._finished.append(Finished(f"actor-{index}", tuple(report.episodes)))
        if report.shard_lost:
            self._replace_shard(index % len(self._shards))
        if report.board_lost:
            self._replace_board()

    def _collect_actors(self) -> None:
        """At the end of the budget: hear what the actors' last stretches brought, and send no more."""
        ready, _ = ray.wait(list(self._calls), num_returns=len(self._calls), timeout=2 * ACTOR_STRETCH_S)
        for call in ready:
            self._actor_report(call)

    def _look_for_silence(self) -> None:
        patience = ACTOR_STRETCH_S + self.recipe.actors.hang_timeout_s
        for call, (index, sent) in list(self._calls.items()):
            if time.monotonic() - sent > patience:
                del self._calls[call]
                self._bury(index, "hung", application_error=False)

    def _row(self, row: dict[str, Any]) -> dict[str, Any]:
        row["episodes"] = self._episodes
        row["actors_waited_s"] = self._waited_s
        lag: LagCounter = LagCounter()
        calls = {i: (s.stats.remote(), s.counts.remote()) for i, s in self._shards.items()}
        for index, (stats_call, counts_call) in calls.items():
            try:
                stats, counts = ray.get([stats_call, counts_call])
            except RayActorError:
                continue  # the next stretch of the learner or of an actor reports it lost
            row.update(stats["row"])
            self._shard_steps[index] = int(counts[0])
            for value, times in stats["lag"].items():
                lag.add(int(value), times)
        self.lag = lag
        row["policy_lag_p50"], row["policy_lag_p95"] = lag.quantile(0.5), lag.quantile(0.95)
        return row

    # ------------------------------------------------------------------------------------------------ mending

    def _bury(self, index: int, cause: str, *, application_error: bool) -> None:
        steps = self.recipe.actors.fragment_steps * self.recipe.actors.envs_per_actor
        self.bury_actor(index, cause, application_error=application_error, lost_steps=steps)
        shard = self._shards[index % len(self._shards)]
        shard.writer_gone.remote(f"actor-{index}")

    def _replace_shard(self, index: int) -> None:
        """Restart a shard from the newest checkpoint, unless it turns out to be alive (or replaced
        already).
        """
        try:
            ray.get(self._shards[index].pid.remote(), timeout=60.0)
            return
        except (RayActorError, GetTimeoutError):
            pass
        self.supervisor.budget.death(f"shard {index}")
        death = Death("shard", self.at_s())
        self.supervisor.end(self._shards[index])
        found = checkpoints.complete(self.root)
        replay, states = self._replay_to_go_on_from(found[-1]) if found else (None, {})
        self._shard_lives[index] += 1
        self._shards[index] = self._make_shard(index, replay, states)
        kept, _ = ray.get(self._shards[index].counts.remote())
        death.lost_steps = max(0, self._shard_steps[index] - int(kept))
        if self._saving is not None and index in self._saving.shards:
            self._saving = None  # that checkpoint will never be whole; the next one will
        self.recovered(death)

    def _replace_board(self) -> None:
        try:
            ray.get(self.supervisor.board.pid.remote(), timeout=60.0)
            return
        except (RayActorError, GetTimeoutError):
            self.replace_board(lambda board: ray.get(self._learner.publish_to.remote(board)))

    def _replace_learner(self, seconds: float) -> ServiceReport:
        death = Death("learner", self.at_s())
        self.supervisor.end(self._learner)
        found = checkpoints.complete(self.root)
        self.epoch += 1
        self._learner = self._make_learner(found[-1] if found else None)
        report: ServiceReport = ray.get(
            self._learner.run_for.remote(seconds, self._shards, self.supervisor.board)
        )
        death.lost_updates = max(0, self.last["updates"] - report.restored["updates"])
        self._saving = None
        self.recovered(death)
        return report

    # -------------------------------------------------------------------------------------------- checkpoints

    def save(self, root: Path, trees: Mapping[str, Any], *, wait: bool) -> None:
        """Begin a checkpoint: the learner freezes its state, the shards write between requests."""
        self._finish_saving(wait=True)
        name = checkpoints.new_name(root, self.last["env_steps"])
        try:
            ray.get(self._learner.hold.remote(dict(trees)))
        except RayActorError:
            self.supervisor.budget.death("the learner")
            self._replace_learner(0.0)
            ray.get(self._learner.hold.remote(dict(trees)))
        rollouts = self.rollout_states() if self.recipe.actors.in_flight == 1 and not self._calls else {}
        own = {"rollouts": rollouts, "supervisor": {**self.supervisor.state(), "episodes": self._episodes}}
        calls = {i: s.save.remote(root / name / "replay") for i, s in self._shards.items()}
        self._saving = _Saving(name, calls, own)
        if wait:
            self._finish_saving(wait=True)

    def _finish_saving(self, *, wait: bool) -> None:
        """Write the manifest once every shard has written."""
        saving = self._saving
        if saving is None:
            return
        calls = list(saving.shards.values())
        ready, _ = ray.wait(calls, num_returns=len(calls), timeout=None if wait else 0)
        if len(ready) < len(calls):
            return
        self._saving = None
        try:
            states = {str(i): ray.get(call) for i, call in saving.shards.items()}
            ray.get(self._learner.write.remote(self.root, saving.name, {**saving.trees, "shards": states}))
        except RayActorError:
            return  # someone died meanwhile: its own report mends it, the next checkpoint is whole

    def close(self) -> None:
        """End every process of the run; closing twice is harmless."""
        super().close()
        self._calls.clear()
        for actor in [*self._shards.values(), *([self._learner] if self._learner is not None else [])]:
            self.supervisor.end(actor)
        self._shards.clear()
        self._learner = None


def _spread(states: Mapping[str, Any], shards: int) -> dict[str, Any]:
    """Give the counts of the saved shards to shard 0 of a new number of shards: only their sums matter."""
    first: dict[str, Any] = {"pacing": {}, "env_steps": 0, "agent_steps": 0}
    for state in states.values():
        first["env_steps"] += state["env_steps"]
        first["agent_steps"] += state["agent_steps"]
        for policy_id, pacing in state["pacing"].items():
            held = first["pacing"].setdefault(
                policy_id, {**pacing, "inserted": 0, "sampled": 0, "elsewhere": [0, 0]}
            )
            held["inserted"] += pacing["inserted"]
            held["sampled"] += pacing["sampled"]
    empty = {
        "pacing": {p: {**s, "inserted": 0, "sampled": 0} for p, s in first["pacing"].items()},
        "env_steps": 0,
        "agent_steps": 0,
    }
    return {str(i): first if i == 0 else empty for i in range(shards)}
