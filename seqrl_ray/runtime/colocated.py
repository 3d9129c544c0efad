"""The colocated wiring, seen from the supervisor's process: a learner that owns the shard, and rollout actors
it pulls from.

Learner and shard are one failure unit: its death restores weights and replay from the same checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from seqrl_ray.loops import checkpoints
from seqrl_ray.loops.drive import Advance
from seqrl_ray.loops.run_folder import LagCounter
from seqrl_ray.recipe import Recipe
from seqrl_ray.runtime.learner import ColocatedLearner, LearnerReport
from seqrl_ray.runtime.session import Death, Placement, RaySession
from seqrl_ray.runtime.supervisor import threads_env


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
    ) -> None:
        """Start the processes; arguments as in `RaySession`."""
        super().__init__(recipe, placement, root=root, clock_s=clock_s, resume=resume)
        self._new: dict[int, tuple[Any, bool]] = {}
        for index in range(recipe.actors.count):
            self._new[index] = (self.supervisor.make_actor(index), False)
        self.groups = self.first_groups()
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
        new, self._new = self._new, {}
        try:
            report: LearnerReport = ray.get(self._learner.run_for.remote(seconds, new, self.supervisor.board))
        except (RayTaskError, RayActorError) as error:
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
            self._new[lost.index] = (actor, True)
        for index in report.back:
            self.recovered(self.actor_deaths.pop(index))
        if report.board_lost:
            self.replace_board(lambda board: ray.get(self._learner.publish_to.remote(board)))
        return Advance(
            report.row,
            report.finished,
            self.take_failures(),
            self.interim_results(),
            report.notes,
            report.done,
        )

    def _replace_learner(self, seconds: float, error: Exception) -> LearnerReport:
        """Restore learner and replay from the newest checkpoint, or from nothing where there is none yet.

        Raises: WorkerError: the replacements die as well, until the budget is spent or an error repeats.
        """
        death = Death("learner", self.at_s())
        report: LearnerReport | None = None
        while report is None:
            self.supervisor.count("learner", error)
            self.supervisor.end(self._learner)
            found = checkpoints.complete(self.root)
            self.epoch += 1
            self._learner = self._make_learner(found[-1] if found else None)
            everyone = {i: (actor, i in self.actor_deaths) for i, actor in self.supervisor.actors.items()}
            try:
                report = ray.get(self._learner.run_for.remote(seconds, everyone, self.supervisor.board))
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

    def close(self) -> None:
        """End every process of the run; closing twice is harmless."""
        super().close()
        if self._learner is not None:
            self.supervisor.end(self._learner)
        self._learner = None
