"""Launching a run of RLlib's: what it takes of this machine, of a cluster, or of a sweep's trial."""

from __future__ import annotations

import os
from pathlib import Path

import ray
from ray.exceptions import RayActorError, RayTaskError

from seqrl_ray.errors import RecipeError
from seqrl_ray.recipe import Recipe
from seqrl_ray.rllib.config import is_offline, remote_learners
from seqrl_ray.rllib.session import RllibSession, Room
from seqrl_ray.runtime.launch import LOCAL_CPUS, cluster_resources
from seqrl_ray.runtime.reserve import NODES_COME_S
from seqrl_ray.runtime.room import check_room
from seqrl_ray.runtime.session import Placement, cause_of


def open_session(
    recipe: Recipe, *, root: Path, local: bool, clock_s: float = 0.0, resume: Path | None = None
) -> RllibSession:
    """Start the processes of a run.

    Args:
        recipe: the run.
        root: its checkpoints.
        local: Ray was started for this run on this machine.
        clock_s: wall seconds the run had used before it was resumed.
        resume: checkpoint to go on from.
    Raises: RecipeError: the cluster could never hold it. SeqrlError: what a process found wrong as it began.
    """
    return _open(recipe, room_of(recipe, local=local), root, clock_s, resume)


def trial_session(
    recipe: Recipe, placement: Placement | None, *, root: Path, clock_s: float, resume: Path | None
) -> RllibSession:
    """Start the run of a sweep's trial.

    Args:
        recipe: of the trial.
        placement: of its processes; None: this one steps the environments too.
        root: its checkpoints.
        clock_s: wall seconds it had used before.
        resume: checkpoint to go on from.
    Raises: RecipeError: its bundles do not hold it.
    """
    if placement is None:
        import torch

        room = Room(runners=0, learner_threads=torch.get_num_threads())
    else:
        learners = remote_learners(recipe, placement.num_gpus)
        if learners > 1:
            raise RecipeError(
                f"algorithm.config.num_learners={learners} in a sweep: a trial reserves one learner, the "
                "others would never start. Leave it out."
            )
        room = Room(
            runners=recipe.actors.count,
            runner_cpus=placement.actor_cpus,
            num_gpus=placement.num_gpus,
            learner_threads=placement.learner_threads,
            learner_cpus=placement.learner_cpus,
            evaluator_cpus=placement.evaluator_cpus,
        )
    return _open(recipe, room, root, clock_s, resume)


def room_of(recipe: Recipe, *, local: bool) -> Room:
    """Resolve what the recipe leaves to the launcher.

    On a cluster a learner process has one CPU for each of its threads; a learner that is the driver asks for
    none.

    Raises: RecipeError: the cluster could never hold the run; the message shows the arithmetic.
    """
    total = cluster_resources()
    gpus, cpus = total.get("GPU", 0.0), total.get("CPU", 0.0)
    asked = recipe.learner.num_gpus
    if asked == "auto":
        num_gpus = 1.0 if gpus >= 1.0 and recipe.learner.device != "cpu" else 0.0
    else:
        num_gpus = float(asked)
    learners = remote_learners(recipe, num_gpus)
    if num_gpus * max(1, learners) > gpus:
        raise RecipeError(
            f"learner.num_gpus={num_gpus:g} for {max(1, learners)} learners, and the cluster has {gpus:g} "
            "GPUs: the learner could never start. Set learner.num_gpus=auto, or add a GPU node."
        )
    if recipe.learner.device == "cuda" and not num_gpus:
        raise RecipeError(
            "learner.device='cuda' and no GPU for the learner: it would learn on the CPU. Set "
            "learner.num_gpus, or learner.device=auto."
        )
    count, each = recipe.actors.count, recipe.actors.cpus
    cores, threads = os.cpu_count() or 1, recipe.learner.threads
    if threads != "auto":
        each_learns = int(threads)
    elif learners and not local:  # on whichever node has room
        each_learns = 1
    else:
        each_learns = max(1, (cores - count) // max(1, learners))
    if not local and not is_offline(recipe.algorithm["name"]):
        come = check_room(recipe, learners * each_learns, 0)
        if come and learners:  # Ray Train, which places the learner, would give up after 100 s
            os.environ.setdefault("TRAIN_PLACEMENT_GROUP_TIMEOUT_S", f"{NODES_COME_S:.0f}")
    return Room(
        runners=count,
        runner_cpus=LOCAL_CPUS if local else each,
        num_gpus=num_gpus,
        learner_threads=each_learns,
        learner_cpus=1.0 if local else float(each_learns),
        evaluator_cpus=LOCAL_CPUS if local else 1.0,
        evaluators=cores if local else max(1, min(count, int(count * each), int(cpus))),
    )


def _open(recipe: Recipe, room: Room, root: Path, clock_s: float, resume: Path | None) -> RllibSession:
    assert ray.is_initialized()
    try:
        return RllibSession(recipe, room, root=root, clock_s=clock_s, resume=resume)
    except (RayTaskError, RayActorError) as error:
        raise cause_of(error) from None
