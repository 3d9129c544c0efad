"""A run of an RLlib algorithm, as `loops.drive` and a sweep's trial hold it.

RLlib's Algorithm lives in this process; its runners step our environments in processes of their own
(`actors.count`), its learner is here, or a process where a GPU or the algorithm wants one. What we add around
it: counts and losses under the names of our run folder, finished episodes with the environment's own metrics,
checkpoints without a pickle, our evaluator, and an account of deaths.

Departs from RLlib: its checkpoints are pickles, ours hold the same state (networks, optimisers, the
adaptive coefficients that RLlib leaves out) as safetensors and JSON, beside the acting weights that every
evaluation of ours reads. As in RLlib, a replay buffer is in no checkpoint.

This file is long because all that a `Session` promises stands in one place.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch

from seqrl_ray.errors import DivergedError, RecipeError, WorkerError
from seqrl_ray.loops import checkpoints
from seqrl_ray.loops.drive import Advance, Failure
from seqrl_ray.loops.evaluate import POLICY
from seqrl_ray.loops.judge import Job, play_jobs
from seqrl_ray.loops.living import Replay
from seqrl_ray.loops.run_folder import LagCounter
from seqrl_ray.loops.trainer import Finished
from seqrl_ray.recipe import Recipe
from seqrl_ray.rllib.acting import flat
from seqrl_ray.rllib.callbacks import EPISODES, UPDATES
from seqrl_ray.rllib.config import is_offline, make_config, modules_of
from seqrl_ray.rllib.judging import Judges, failure_of
from seqrl_ray.rllib.pace import Pace
from seqrl_ray.rllib.preflight import groups_of, unused_keys
from seqrl_ray.rllib.state import learner_state, restore_learner
from seqrl_ray.runtime.session import Death
from seqrl_ray.runtime.supervisor import Budget
from seqrl_ray.types_env import EpisodeEnd, Weights

IDLE_S = 0.2
"""Pause after an iteration that got nothing from any runner: they are being started anew."""


@dataclass(frozen=True)
class Room:
    """What a run takes of the machine or cluster."""

    runners: int
    """Processes that step environments; 0 = this one does."""
    runner_cpus: float = 1.0
    num_gpus: float = 0.0
    learner_threads: int = 1
    learner_cpus: float = 1.0
    """Of a learner that is a process of its own."""
    evaluator_cpus: float = 1.0
    """Of each of the final evaluation."""
    evaluators: int = 1
    """Processes of the final evaluation."""


class ErrorBox:
    """Keeps the tracebacks of environments until the driver asks; a small Ray actor."""

    def __init__(self) -> None:
        self._texts: list[str] = []

    def tell(self, text: str) -> None:
        """Keep a traceback."""
        self._texts.append(text)

    def take(self) -> list[str]:
        """Return, and forget, what was told."""
        taken, self._texts = self._texts, []
        return taken


class RllibSession:
    """See the module docstring; implements `loops.drive.Session` and what a sweep's trial asks of a run."""

    def __init__(
        self, recipe: Recipe, room: Room, *, root: Path, clock_s: float = 0.0, resume: Path | None = None
    ) -> None:
        """Build RLlib's Algorithm: runners start, and the learner.

        Args:
            recipe: the run.
            room: what it takes.
            root: the run's checkpoints.
            clock_s: wall seconds the run had used before it was resumed.
            resume: checkpoint to go on from.
        Raises: RecipeError: RLlib refuses the configuration. CheckpointError: the checkpoint is of another
            run.
        """
        if is_offline(recipe.algorithm["name"]):
            room = replace(room, runners=0)  # nobody acts
        self.recipe, self.room = recipe, room
        self.groups = groups_of(recipe)
        self.modules = modules_of(recipe.algorithm["name"], self.groups)
        """Policy id -> RLlib's name of its network."""
        self.lag = LagCounter()
        self.budget = Budget(recipe.actors.max_restarts_per_10_min)
        self.counts = dict.fromkeys(("env_steps", "agent_steps", "updates", "episodes", "iterations"), 0)
        self._taken_up = 0
        self._kept: dict[str, Weights] = {}  # of the checkpoint made since the last iteration, if any
        saved: Mapping[str, Any] = {}
        if resume is not None:
            checkpoints.verify(resume)
            saved = checkpoints.load(resume, "rllib")
            self.counts.update(checkpoints.load(resume, "trainer")["counters"])
            self._taken_up = int(saved["taken_up"]) + 1
        torch.set_num_threads(room.learner_threads)
        self._box: Any = None
        box = None
        if room.runners:
            box = f"seqrl-errors-{time.time_ns()}"
            self._box = ray.remote(ErrorBox).options(num_cpus=0, name=box).remote()
            ray.get(self._box.take.remote())
        config = make_config(
            recipe,
            self.groups,
            runners=room.runners,
            runner_cpus=room.runner_cpus,
            num_gpus=room.num_gpus,
            learner_cpus=room.learner_cpus,
            learner_threads=room.learner_threads,
            one_process=room.runners == 0,
            session=self._taken_up,
            sampled=self.counts["env_steps"],
            errors=box,
        )
        self.algorithm: Any = None
        self._closed = False
        try:
            self.algorithm = _in_folder(config.algo_class, root.parent)(config=config)
            if saved:
                restore_learner(self.algorithm, saved["learner"])
        except BaseException:
            self._end()
            raise
        most_s = self.algorithm.config.min_time_s_per_iteration
        self._pace = Pace(most_s) if most_s else None
        self._seen_steps = self._lifetime_steps()
        self._finished: list[Finished] = []
        self._losses: dict[str, float] = {}
        self._deaths: list[Death] = []
        self._mended: list[Failure] = []
        self._notes = unused_keys(recipe)
        self._judges = Judges(
            recipe, self.budget, cpus=room.evaluator_cpus, workers=room.evaluators, at_s=self.at_s
        )
        self._started = time.monotonic() - clock_s
        self._last_step_at = time.monotonic()

    # ----------------------------------------------------------------------------------------------- training

    @property
    def env_steps(self) -> int:
        """Vector-slot steps made."""
        return self.counts["env_steps"]

    @property
    def done(self) -> bool:
        """Whether the budget of steps or updates is spent."""
        stop, updates = self.recipe.stop, self.counts["updates"]
        if is_offline(self.recipe.algorithm["name"]):
            return updates >= (stop.updates or self.recipe.offline_updates)
        return self.env_steps >= stop.env_steps or 0 < stop.updates <= updates

    @property
    def progress(self) -> float:
        """Share of the run that is over."""
        return self.recipe.spent(self.counts["updates"], self.env_steps)

    def advance(self, seconds: float) -> Advance:
        """Train for about `seconds`: whole iterations of RLlib's."""
        return self.advance_to(0, seconds)

    def advance_to(self, env_steps: int, seconds: float) -> Advance:
        """Train until `env_steps` are made (0 = no limit), for about `seconds` at most.

        Raises: DivergedError: a loss is not finite. WorkerError: runners die, or an environment fails, again
            and again.
        """
        until = time.monotonic() + seconds
        while not self.done and not 0 < env_steps <= self.env_steps:
            self._iterate(env_steps)
            if time.monotonic() >= until or self._notes:
                break
        finished, self._finished = self._finished, []
        notes, self._notes = self._notes, []
        return Advance(
            self._row(),
            finished,
            failures=self.take_failures(),
            judged=self._judges.results(),
            notes=notes,
            done=self.done,
        )

    def _left(self, env_steps: int) -> dict[str, int]:
        """Return what may still be made; env_steps: nearer than the run's end, 0 = no."""
        stop, counts = self.recipe.stop, self.counts
        most = {"env_steps": min(env_steps or stop.env_steps, stop.env_steps), "updates": stop.updates}
        return {name: amount - counts[name] for name, amount in most.items() if amount}

    def _iterate(self, until_steps: int) -> None:
        began, before = time.monotonic(), dict(self.counts)
        self._kept = {}
        if self._pace is not None:
            _set_iteration_s(self.algorithm.config, self._pace.next_s(self._left(until_steps)))
        result = self.algorithm.train()
        runners, learners = result.get("env_runners", {}), result.get("learners", {})
        lifetime = self._lifetime_steps()
        made, self._seen_steps = lifetime - self._seen_steps, lifetime
        self.counts["iterations"] += 1
        self.counts["env_steps"] += made
        self.counts["agent_steps"] += _whole(runners.get("num_agent_steps_sampled", made))
        # Every learner of several does each update.
        several = max(1, self.algorithm.config.num_learners)
        self.counts["updates"] += _whole(learners.get("__all_modules__", {}).get(UPDATES, 0)) // several
        ended = runners.get(EPISODES) or []
        if isinstance(ended, list) and ended:
            self.counts["episodes"] += len(ended)
            ends = tuple(EpisodeEnd(0, e["seed"], e["steps"], e["metrics"]) for e in ended)
            self._finished.append(Finished("rllib", ends))
        if self._pace is not None:
            self._pace.made({n: c - before[n] for n, c in self.counts.items()}, time.monotonic() - began)
        self._take_losses(learners)
        self._look_after_runners(made)

    def _take_losses(self, learners: Mapping[str, Any]) -> None:
        """Keep the newest losses under our policies' names; raise DivergedError if one is lost."""
        for policy_id in self.groups:
            found = learners.get(self.modules[policy_id], {})
            for name, value in found.items():
                if isinstance(value, Mapping | list | str) or "lifetime" in name or "throughput" in name:
                    continue
                number = float(value)
                # NaN is also what RLlib says of an iteration in which no update came to an end (IMPALA, APPO)
                lost = name == "total_loss" and not math.isfinite(number)
                if lost and not np.isfinite(self.weights()[policy_id].flat).all():
                    raise DivergedError(
                        f"the loss of policy {policy_id!r} is {number} after {self.counts['updates']:,} "
                        "updates: going on would spread it to every weight. Lower algorithm.config.lr, or "
                        "set grad_clip."
                    )
                if math.isfinite(number):
                    self._losses[f"{policy_id}/{name.removeprefix('default_optimizer_')}"] = number
            lag = float(found.get("diff_num_grad_updates_vs_sampler_policy", math.nan))
            if math.isfinite(lag):
                self.lag.add(round(lag))

    def _row(self) -> dict[str, Any]:
        return {
            **self.counts,
            "progress": self.progress,
            "samples_per_insert": None,
            **self._losses,
            "policy_lag_p50": self.lag.quantile(0.5),
            "policy_lag_p95": self.lag.quantile(0.95),
        }

    def _lifetime_steps(self) -> int:
        found = self.algorithm.metrics.peek(("env_runners", "num_env_steps_sampled_lifetime"), default=0)
        return _whole(found)

    # ------------------------------------------------------------------------------------------------- deaths

    def at_s(self) -> float:
        """Wall seconds of the run so far."""
        return time.monotonic() - self._started

    def _look_after_runners(self, made: int) -> None:
        """Account for runners that died or are back, and for what their environments said.

        Raises: WorkerError: the run must not survive this.
        """
        if not self.room.runners:
            return
        for text in ray.get(self._box.take.remote()):
            self.budget.application_error("actor", text)
        missing = self.room.runners - self.algorithm.env_runner_group.num_healthy_remote_workers()
        for _ in range(missing - len(self._deaths)):
            self.budget.death("an env runner")
            config = self.algorithm.config
            most = config.get_rollout_fragment_length() * config.num_envs_per_env_runner
            self._deaths.append(Death("actor", self.at_s(), lost_steps=most))
        for _ in range(len(self._deaths) - missing):
            death = self._deaths.pop(0)
            self._mended.append(failure_of(death, self.at_s()))
        if made:
            self._last_step_at = time.monotonic()
            return
        silent = time.monotonic() - self._last_step_at
        if silent > 60.0 + 2 * self.recipe.actors.hang_timeout_s:
            raise WorkerError(
                f"no env runner of RLlib's has made a step for {silent:.0f} s: nothing can be learned. Raise "
                "actors.hang_timeout_s if a batch takes longer than that, or look at the log of the runners."
            )
        time.sleep(IDLE_S)

    def take_failures(self, *, final: bool = False) -> list[Failure]:
        """Return the deaths mended since the last call; with `final` also those that never were."""
        if final:
            self._mended += [failure_of(death, None) for death in self._deaths]
            self._deaths = []
        mended, self._mended = self._mended, []
        return mended + self._judges.take_failures()

    # ------------------------------------------------------------------------------------------- what is kept

    def weights(self) -> dict[str, Weights]:
        """Return policy id -> what its network acts with."""
        found = self.algorithm.learner_group.get_state(components="learner/rl_module", inference_only=True)
        modules = found["learner"]["rl_module"]
        updates, progress = self.counts["updates"], self.progress
        return {p: Weights(p, 0, updates, flat(modules[self.modules[p]]), progress) for p in self.groups}

    def save(self, root: Path, trees: Mapping[str, Any], *, wait: bool) -> None:
        """Write a checkpoint of the moment between two iterations; it exists when this returns."""
        self._kept = self.weights()
        acting = {policy_id: {"acting": weights.flat} for policy_id, weights in self._kept.items()}
        own = {
            "trainer": {"counters": dict(self.counts), "learner": {"policies": acting}},
            "rllib": {"taken_up": self._taken_up, "learner": learner_state(self.algorithm)},
        }
        name = checkpoints.new_name(root, self.env_steps)
        checkpoints.save(root, name, {**trees, **own}, keep=self.recipe.learner.keep_checkpoints)

    def learned(self) -> Any:
        """Refuse: see `adopt`. Raises: RecipeError: always."""
        raise self._frozen()

    def adopt(self, learned: Any, *, replay: Replay = "keep", donor: Path | None = None) -> None:
        """Refuse: who copies goes on with changed values. Raises: RecipeError: always."""
        raise self._frozen()

    def _frozen(self) -> RecipeError:
        return RecipeError(
            f"a living run of {self.recipe.algorithm['name']} cannot take over another's weights and values: "
            "RLlib's configuration is frozen as it begins. Use scheduler.kind='asha' or 'none'."
        )

    def set_values(self, values: Mapping[str, Any]) -> None:
        """Refuse to change a living run; values that it has already are fine.

        Raises: RecipeError: a value differs.
        """
        for name, value in values.items():
            has: Any = self.recipe.model_dump(mode="json")
            for part in name.split("."):
                has = has.get(part) if isinstance(has, Mapping) else None
            if has != value:
                raise RecipeError(
                    f"{name}={value!r} in a living run of {self.recipe.algorithm['name']}, which began with "
                    f"{has!r}: RLlib's configuration is frozen as it begins. Begin a new run."
                )

    # --------------------------------------------------------------------------------------------- evaluation

    def judge_interim(self, seeds: Sequence[int]) -> None:
        """Begin an evaluation of the present weights in a process of its own."""
        at = {"env_steps": self.env_steps, "updates": self.counts["updates"]}
        self._judges.begin(seeds, self.weights(), at)

    def judge_now(self, seeds: Sequence[int]) -> list[EpisodeEnd]:
        """Play one greedy episode per seed with the present weights, and wait for them."""
        workers = 1 if self.recipe.env.kind == "traffic" else 0
        return play_jobs(self.recipe, [Job(POLICY, tuple(seeds))], self.weights(), workers=workers)[POLICY]

    def judge_final(
        self, jobs_of: Callable[[int], list[Job]], on_job: Callable[[Job, int], None]
    ) -> dict[str, list[EpisodeEnd]]:
        """End RLlib's processes and play the final jobs with what was kept: some learners (APPO's) go on
        between two iterations.
        """
        weights = self._kept or self.weights()
        self.close()
        return self._judges.final(jobs_of, on_job, weights)

    def close(self) -> None:
        """End RLlib's processes and ours; closing twice is harmless."""
        if self._closed:
            return
        self._closed = True
        self._judges.close()
        self._end()

    def _end(self) -> None:
        if self.algorithm is not None:
            self.algorithm.stop()
        if self._box is not None:
            ray.kill(self._box, no_restart=True)


def _in_folder(cls: Any, folder: Path) -> Any:
    """Return the Algorithm class with the run's folder for its own: RLlib's would be in the user's home."""

    def _setup_logdir(self: Any) -> None:
        self._logdir = str(folder)

    return type(cls.__name__, (cls,), {"_setup_logdir": _setup_logdir})


def _set_iteration_s(config: Any, seconds: float) -> None:
    """Say how long the next iteration lasts at least: RLlib asks its configuration anew before each."""
    config._is_frozen = False
    config.min_time_s_per_iteration = seconds
    config._is_frozen = True


def _whole(value: Any) -> int:
    """Return a count of RLlib's, which may be a number, a table of numbers by agent, or NaN for none yet."""
    if isinstance(value, Mapping):
        return sum(_whole(v) for v in value.values())
    number = float(value)
    return int(number) if math.isfinite(number) else 0
