"""The colocated wiring, seen from the supervisor's process: a learner that owns the shard, and rollout actors
it pulls from.

Learner and shard are one failure unit: its death restores weights and replay from the same checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, ObjectLostError, RayActorError, RayTaskError

from seqrl_ray.errors import DivergedError
from seqrl_ray.loops import checkpoints
from seqrl_ray.loops.drive import Advance
from seqrl_ray.loops.evaluate import POLICY
from seqrl_ray.loops.judge import Job
from seqrl_ray.loops.living import Replay, algorithm_part, changed
from seqrl_ray.loops.run_folder import LagCounter
from seqrl_ray.recipe import Recipe
from seqrl_ray.runtime.learner import ColocatedLearner, LearnerReport
from seqrl_ray.runtime.session import Death, Placement, RaySession, Say, cause_of, diverged, silent
from seqrl_ray.runtime.supervisor import threads_env
from seqrl_ray.types_env import EpisodeEnd, Weights


class ColocatedSession(RaySession):
    """A run in being; see `seqrl_ray.loops.drive.Session`."""

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
        self._new: dict[int, tuple[Any, bool]] = {}
        self.gives_up_diverged = False
        """Lost weights are the caller's concern, and not a death that a checkpoint mends."""
        self.hire_first()
        self._new = {index: (actor, False) for index, actor in self.supervisor.actors.items()}
        self.groups = self.first_groups()
        self.start_server()
        if resume is not None and self.exact:
            self.restore_rollouts(resume)
        self._learner = self._make_learner(resume)
        ray.get(
            self._learner.pid.remote()
        )  # what it finds wrong ends the run here, before the folder is touched

    def _make_learner(self, resume: Path | None) -> Any:
        p = self.placement
        remote = ray.remote(ColocatedLearner).options(
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

    def advance(self, seconds: float) -> Advance:
        """Let the learner run, and mend what broke."""
        return self.advance_to(0, seconds)

    def advance_to(self, env_steps: int, seconds: float) -> Advance:
        """Let the learner run until `env_steps` are made (0 = no limit), and mend what broke.

        Raises: DivergedError: the weights are lost, and `gives_up_diverged`.
        """
        self.follow_the_cluster()
        new, self._new = self._new, {}
        orders = (self.crew.leaving, self._excused(), self._server_handle())
        try:
            report: LearnerReport = ray.get(
                self._learner.run_for.remote(seconds, new, self.supervisor.board, env_steps, *orders)
            )
        except (RayTaskError, RayActorError) as error:
            if self.gives_up_diverged and isinstance(cause_of(error), DivergedError):
                raise cause_of(error) from None
            report = self._replace_learner(seconds, error)
        self.last = {k: int(report.row[k]) for k in self.last}
        self.lag = LagCounter(report.lag)
        for lost in report.lost:
            steps = self.recipe.actors.fragment_steps * self.recipe.actors.envs_per_actor
            actor = self.bury_actor(
                lost.index,
                lost.cause,
                application_error=lost.application_error,
                lost_steps=self.recipe.actors.in_flight * steps,
            )
            if actor is not None:
                self._new[lost.index] = (actor, True)
        for index in report.back:
            self.is_back(index)
        for index in report.left:
            self.let_go(index)
        self.mend_nodes()
        if self.tend_server(report.row) or report.board_lost:
            self.replace_board(lambda board: ray.get(self._learner.publish_to.remote(board)))
        report.row["actors"] = self.crew.size
        return Advance(
            report.row,
            report.finished,
            self.take_failures(),
            self.interim_results(),
            report.notes + self.take_notes(),
            report.done,
            self.take_save_wanted(),
        )

    def _server_handle(self) -> Any:
        return None if self.server is None else self.server.handle

    def _excused(self) -> frozenset[int]:
        """Return the actors that are silent for no fault of theirs."""
        if self.server is not None and math.isinf(self.server.back_at) and self.server.back_at > 0:
            return frozenset(self.supervisor.actors)
        return self.crew.unplaced

    def has_joined(self, index: int, actor: Any) -> None:
        """Have the learner pull from a new actor."""
        self._new[index] = (actor, False)

    def keepers(self) -> list[Any]:
        """Return the learner: it owns the shard."""
        return [self._learner]

    def _replace_learner(self, seconds: float, error: Exception) -> LearnerReport:
        """Restore learner and replay from the newest checkpoint, or from nothing where there is none yet.

        Raises: WorkerError: the replacements die as well, until the budget is spent or an error repeats.
        """
        death = Death("learner", self.at_s(), diverged=diverged(error))
        report: LearnerReport | None = None
        while report is None:
            if not self.went_with_its_node([self._learner]):
                self.supervisor.count("learner", error)
            self.supervisor.end(self._learner)
            found = checkpoints.complete(self.root)
            self.epoch += 1
            self._learner = self._make_learner(found[-1] if found else None)
            everyone = {i: (actor, self.awaited(i)) for i, actor in self.supervisor.actors.items()}
            try:
                orders = (0, self.crew.leaving, self._excused(), self._server_handle())
                call = self._learner.run_for.remote(seconds, everyone, self.supervisor.board, *orders)
                report = ray.get(call)
            except (RayTaskError, RayActorError) as again:
                error = again
        death.lost_steps = max(0, self.last["env_steps"] - report.restored["env_steps"])
        death.lost_updates = max(0, self.last["updates"] - report.restored["updates"])
        self.recovered(death)
        return report

    def save(self, root: Path, trees: Mapping[str, Any], *, wait: bool) -> None:
        """Write a checkpoint from the learner's process; open episodes too where the run is lock-step."""
        while True:
            try:
                rollouts: dict[str, Any] = {}
                if self.recipe.actors.in_flight == 1 and not self._new:
                    ray.get(self._learner.settle.remote())  # what exists is stored: one moment for all
                    rollouts = self.rollout_states()
                own = {"rollouts": rollouts, "supervisor": self.supervisor.state()}
                ray.get(self._learner.save.remote(root, {**trees, **own}, wait))
                return
            except (RayTaskError, RayActorError) as error:
                self._replace_learner(0.0, error)

    # ------------------------------------------------------------------------------------------- in a sweep

    def judge_now(self, seeds: Sequence[int]) -> list[EpisodeEnd]:
        """Play one greedy episode per seed with the present weights, and wait for them."""
        while self._interim is not None:  # an evaluation in between goes first
            ray.wait([self._interim[0]])
            self.interim_results()
        weights, job = self.judged_weights(), Job(POLICY, tuple(seeds))
        while True:
            if self._evaluator is None:
                self._evaluator = self.supervisor.make_evaluator(self.placement.evaluator_cpus)
            try:
                ends: list[EpisodeEnd] = ray.get(
                    self._evaluator.play.remote(job, weights), timeout=self.recipe.evaluation.hang_timeout_s
                )
                self._played(job)
                return ends
            except (RayTaskError, RayActorError, GetTimeoutError) as error:
                self.supervisor.count("evaluator", error)
                self._died_with(job)
                self.supervisor.end(self._evaluator)
                self._evaluator = None

    def judged_weights(self) -> dict[str, Weights]:
        """Return what the policies are judged with at this moment."""
        found: dict[str, Weights] = self._asked("judged_weights")
        return found

    def learned(self) -> list[Any]:
        """Return a reference to a copy of what was learned, in a list."""
        found: list[Any] = self._asked("learned")
        return found

    def adopt(self, learned: list[Any] | None, *, replay: Replay = "keep", donor: Path | None = None) -> None:
        """Go on from what another run's `learned()` refers to; see `seqrl_ray.loops.living`.

        Raises: ray.exceptions.ObjectLostError: the run that `learned` is of has gone, and it with it.
        """
        try:
            ray.get(self._learner.adopt.remote(learned, replay, donor))
        except RayTaskError as error:
            if isinstance(error.cause, ObjectLostError):
                raise error.cause from None
            raise

    def set_values(self, values: Mapping[str, Any]) -> None:
        """Change mutable recipe keys, dotted."""
        self.recipe = self.supervisor.recipe = changed(self.recipe, values)  # replacements begin with them
        self._asked("set_values", dict(values))
        for actor in self.supervisor.actors.values():  # a dead one is found so by the learner
            actor.set_hparams.remote(algorithm_part(values))
        if self._evaluator is not None:
            self._evaluator.use.remote(self.recipe)

    def _asked(self, method: str, *arguments: Any) -> Any:
        """Call the learner; if it is dead, replace it first."""
        while True:
            try:
                return ray.get(getattr(self._learner, method).remote(*arguments))
            except RayActorError as error:
                self._replace_learner(0.0, error)

    def close(self) -> None:
        """End every process of the run; closing twice is harmless."""
        super().close()
        if self._learner is not None:
            self.supervisor.end(self._learner)
        self._learner = None
