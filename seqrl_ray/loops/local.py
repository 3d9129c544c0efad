"""The whole system in one process, without Ray: the debugger, the reference, the unit of the tests.

The same rollout, shards, learner and trainer that the Ray runtime spreads over processes run here in turn.
With a seed the run is a function of its recipe, and a run that is saved and resumed goes on bit for bit
(large networks: under the same `learner.threads`, because torch's sums follow the number of threads).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from seqrl_ray.errors import CheckpointError, RecipeError
from seqrl_ray.loops import checkpoints, living
from seqrl_ray.loops.build import SHARDS, rollout, stream_seed
from seqrl_ray.loops.drive import Advance, Failure
from seqrl_ray.loops.evaluate import POLICY
from seqrl_ray.loops.judge import Job, before_acting, chunk_size, play_jobs, playable
from seqrl_ray.loops.learner import Learner
from seqrl_ray.loops.run_folder import LagCounter
from seqrl_ray.loops.source import LocalSource
from seqrl_ray.loops.trainer import make_trainer
from seqrl_ray.recipe import Recipe
from seqrl_ray.types_env import EpisodeEnd


class LocalSession:
    """A run in this process; see `seqrl_ray.loops.drive.Session`."""

    def __init__(self, recipe: Recipe, *, resume: Path | None = None) -> None:
        """Build everything, and go on from a checkpoint where one is given.

        `learner.compile` = auto stays eager here: a moment that a clock chose would not be the same again.

        Raises: RecipeError: the recipe asks for more than one actor or learner, which this loop has not.
            CheckpointError: the checkpoint cannot be gone on from.
        """
        if recipe.actors.most != 1:
            raise RecipeError(
                f"actors.count={recipe.actors.most} in the local loop: one process has one actor. "
                "Set actors.count=1 (and raise actors.envs_per_actor), or run without --local."
            )
        if recipe.learner.count != 1:
            raise RecipeError(
                f"learner.count={recipe.learner.count} in the local loop: one process has one learner. "
                "Set learner.count=1, or run without --local."
            )
        if recipe.actors.inference == "central":
            raise RecipeError(
                "actors.inference='central' in the local loop: one process has no policy server. Set it to "
                "'local', or run without --local."
            )
        self.recipe = recipe
        if recipe.learner.threads != "auto":
            torch.set_num_threads(int(recipe.learner.threads))
        if resume is not None:
            checkpoints.verify(resume)
            self.incarnation = int(checkpoints.load(resume, "supervisor")["incarnations"]["0"])
        else:
            self.incarnation = 0
        self.rollout = rollout(recipe, 0, self.incarnation)
        groups = self.rollout.env.groups
        learner = Learner(recipe, groups, device=recipe.learner.device)
        self.trainer = make_trainer(
            recipe, learner, groups, LocalSource(self.rollout), stream_seed(recipe, SHARDS, 0)
        )
        self._judged: list[tuple[dict[str, int], list[EpisodeEnd]]] = []
        if resume is not None:
            self._restore(resume)
        else:
            self.trainer.load_data()
            self.trainer.source.offer(learner.all_weights(0.0))

    @property
    def lag(self) -> LagCounter:
        """Policy lag of the fragments inserted."""
        return self.trainer.lag

    def advance(self, seconds: float) -> Advance:
        """Take turns for about `seconds`."""
        return self.advance_to(0, seconds)

    def advance_to(self, env_steps: int, seconds: float) -> Advance:
        """Take turns until `env_steps` are made (0 = no limit), for about `seconds` at most."""
        until, notes = time.monotonic() + seconds, self.trainer.learner.compiling.notes
        while not (
            self.trainer.done
            or notes
            or time.monotonic() >= until
            or 0 < env_steps <= self.trainer.counters.env_steps
        ):
            self.trainer.turn()
        judged, self._judged = self._judged, []
        return Advance(
            self.trainer.report(),
            self.trainer.take_finished(),
            judged=judged,
            notes=self.trainer.learner.compiling.take_notes(),
            done=self.trainer.done,
        )

    def save(self, root: Path, trees: Mapping[str, Any], *, wait: bool) -> None:
        """Write a checkpoint of the moment between two turns, so that everything in it belongs together."""
        own = {
            "rollouts": {"0": self.rollout.state()},
            "supervisor": {
                "incarnations": {"0": self.incarnation},
                "episodes": self.trainer.counters.episodes,
            },
        }
        self.trainer.save(root, {**trees, **own}, wait=wait)

    def judge_interim(self, seeds: Sequence[int]) -> None:
        """Evaluate the present weights now: here, or in a process of its own beside a running simulation."""
        at = {"env_steps": self.trainer.counters.env_steps, "updates": self.trainer.learner.updates}
        self._judged.append((at, self.judge_now(seeds)))

    def judge_now(self, seeds: Sequence[int]) -> list[EpisodeEnd]:
        """Play one greedy episode per seed with the present weights."""
        weights = self.trainer.learner.judged_weights(self.trainer.progress)
        workers = 1 if self.recipe.env.kind == "traffic" else 0
        return play_jobs(self.recipe, [Job(POLICY, tuple(seeds))], weights, workers=workers)[POLICY]

    def learned(self) -> living.Learned:
        """Return a copy of what was learned."""
        return living.learned(self.trainer)

    def adopt(
        self,
        learned: living.Learned | None,
        *,
        replay: living.Replay = "keep",
        donor: Path | None = None,
    ) -> None:
        """Go on from another run's `learned()`; see `seqrl_ray.loops.living`."""
        living.adopt(self.trainer, learned, replay=replay, donor=donor)

    def set_values(self, values: Mapping[str, Any]) -> None:
        """Change mutable recipe keys, dotted."""
        living.set_values(self.trainer, values)
        self.recipe = self.trainer.recipe
        self.rollout.set_hparams(living.algorithm_part(values))
        self.trainer.source.offer(self.trainer.learner.all_weights(self.trainer.progress))

    def judge_final(
        self, jobs_of: Callable[[int], list[Job]], on_job: Callable[[Job, int], None]
    ) -> dict[str, list[EpisodeEnd]]:
        """Close the training environment and play the final jobs."""
        self.rollout.close()
        weights = self.trainer.learner.judged_weights(self.trainer.progress)
        weights |= before_acting(self.trainer.pretrained)
        workers = (os.cpu_count() or 1) if self.recipe.env.kind == "traffic" else 0
        jobs = playable(jobs_of(chunk_size(self.recipe, self.recipe.evaluation.episodes, workers)), weights)
        return play_jobs(
            self.recipe, jobs, weights, workers=workers, on_job=lambda job: on_job(job, len(jobs))
        )

    def take_failures(self, *, final: bool = False) -> list[Failure]:
        """Return nothing: what dies in the only process ends the run."""
        return []

    def close(self) -> None:
        """Close the environment (again, if the final evaluation has done so: closing twice is harmless)."""
        self.rollout.close()

    def _restore(self, folder: Path) -> None:
        self.trainer.load(folder)
        saved = checkpoints.load(folder, "rollouts").get("0")
        if saved is None:
            raise CheckpointError(
                f"{folder} holds no open episodes (its environment cannot rebuild one, or its run was not in "
                "lock-step): the local loop could not go on exactly. Resume without --local; they are cut."
            )
        self.rollout.restore(saved)
        self.trainer.source.offer(self.trainer.learner.all_weights(self.trainer.progress))
