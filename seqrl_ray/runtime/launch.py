"""Launching a run on Ray: connect, count resources, resolve what the recipe leaves to the launcher, start a
session.

On this machine Ray is started for the run and ended with it. With `--address` the run joins a cluster; then
every process reserves what it needs, and a run that could never be placed is refused with the arithmetic.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import AuthenticationError, RayActorError, RayTaskError

from seqrl_ray.errors import RecipeError
from seqrl_ray.recipe import Recipe
from seqrl_ray.runtime.colocated import ColocatedSession
from seqrl_ray.runtime.reserve import SERVER_CPUS, Held, check_shared, hold
from seqrl_ray.runtime.service import ServiceSession
from seqrl_ray.runtime.session import Placement, Say, cause_of, silent

LOCAL_CPUS = 0.01
"""What a process asks of a Ray of our own: it is there for this run alone, nobody else waits."""

SMALL_MACHINE_CORES = 4
"""Up to here the colocated wiring is faster (measured: docs/architecture.md)."""

OTHER_TOKEN = (
    "Where one does run, it may want another token than this shell's: RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or "
    ".ray/auth_token in your home."
)

KNOCK_S = 10.0
"""How long the head of a cluster may take to accept a connection."""


@contextlib.contextmanager
def connected(address: str | None, cpus: int | None = None) -> Iterator[None]:
    """Be connected to Ray inside the block: to the cluster at `address`, or to one of our own that ends with
    it.

    Args:
        address: `host:port`, `ray://host:port`, `auto` (the cluster this machine is part of), or None.
        cpus: that a Ray of our own shall count; None: as many as one run could ever ask for.
    Raises: RecipeError: no cluster answers at `address`.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if ray.is_initialized():  # a program (or a test) that has its own connection keeps it
        yield
        return
    options: dict[str, Any] = {"log_to_driver": True, "logging_level": logging.ERROR}
    if address in (None, "local"):
        # Ray's head would remember every call (25 MB/min were seen) for a dashboard that is not there
        os.environ.setdefault("RAY_task_events_report_interval_ms", "0")
        count = cpus or max(os.cpu_count() or 1, 64)
        options.update(address="local", include_dashboard=False, num_cpus=count)
    else:
        _knock(str(address))
        options["address"] = address
    logging.getLogger("ray").setLevel(logging.ERROR)  # before `init` reads the option it already warns
    try:
        ray.init(**options)
    except ConnectionError as error:
        raise RecipeError(f"{_no_cluster(str(address), error)} {OTHER_TOKEN}") from None
    except AuthenticationError as error:
        raise RecipeError(f"--address={address}: {' '.join(str(error).split())} {OTHER_TOKEN}") from None
    try:
        yield
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """See whether anyone listens at `address`: Ray itself would try for minutes.

    Raises: RecipeError: nobody does, or the address cannot be read.
    """
    if address == "auto":
        return
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not host or not port.isdigit():
        raise RecipeError(
            f"--address={address} is not an address: no cluster can be joined. "
            "Write host:port, ray://host:port or auto."
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=KNOCK_S).close()
    except (OSError, OverflowError) as error:
        raise _no_cluster(address, error) from None


def _no_cluster(address: str, error: Exception) -> RecipeError:
    return RecipeError(
        f"--address={address}: no Ray cluster answers there ({error}). "
        "Check the address, or leave it out to run here."
    )


def cluster_resources() -> dict[str, float]:
    """What the cluster has in all: CPU, GPU, memory, ... -> amount."""
    found: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return found


def place(recipe: Recipe, *, local: bool) -> Placement:
    """Resolve devices, threads and resource requests.

    Args:
        recipe: the run.
        local: Ray was started for this run on this machine; CPUs are then shares of what is there, not
            reservations.
    Raises: RecipeError: the cluster could never hold the run; the message shows the arithmetic.
    """
    total = cluster_resources()
    gpus = total.get("GPU", 0.0)
    asked, learners = recipe.learner.num_gpus, recipe.learner.count
    if asked == "auto":
        num_gpus = 1.0 if gpus >= 1.0 and recipe.learner.device != "cpu" else 0.0
    else:
        num_gpus = float(asked)
    num_gpus, server_gpus = share_gpus(recipe, gpus, num_gpus)
    if num_gpus * learners > gpus:
        each, lower = ("auto, one each,", "")
        if asked != "auto":
            each, lower = f"{num_gpus:g}", "learner.num_gpus or "
        raise RecipeError(
            f"learner.num_gpus={each} x learner.count={learners} and the cluster has {gpus:g} GPUs: the "
            f"learner could never start. Lower {lower}learner.count, add GPU nodes, or set "
            "learner.num_gpus=0 and learner.device=cpu."
        )
    cores = os.cpu_count() or 1
    here = min(recipe.actors.most, max(recipe.actors.count, cores - 1))
    threads = int(recipe.learner.threads) if recipe.learner.threads != "auto" else 1
    if recipe.learner.threads == "auto" and local:
        threads = max(1, (cores - here) // learners)
    shards = 0 if local or wiring(recipe, total.get("CPU", 0.0)) == "colocated" else recipe.replay.shards
    held = Held() if local else hold(recipe, num_gpus, threads, shards, server_gpus=server_gpus)
    return Placement(
        device=recipe.learner.device,
        num_gpus=num_gpus,
        learner_threads=threads,
        actor_cpus=LOCAL_CPUS if local else recipe.actors.cpus,
        learner_cpus=LOCAL_CPUS if local else float(threads),
        shard_cpus=LOCAL_CPUS if local else 1.0,
        evaluator_cpus=LOCAL_CPUS if local else 1.0,
        workers=cores if local else max(1, min(recipe.actors.most, int(total.get("CPU", 1.0)))),
        pin=held.learner,
        shard_pin=held.shards,
        actor_labels={} if local else recipe.actors.label_selector,
        follower_pins=held.followers,
        elsewhere=held.elsewhere,
        actors_here=here,
        watch_nodes=not local,
        server={
            "num_cpus": LOCAL_CPUS if local else SERVER_CPUS,
            "num_gpus": server_gpus,
            **held.server,
        },
    )


def share_gpus(recipe: Recipe, gpus: float, learner_gpus: float) -> tuple[float, float]:
    """Resolve `actors.inference_gpus`: GPUs of each learner, and of the policy server.

    Args:
        recipe: the run.
        gpus: of the cluster.
        learner_gpus: of each learner, if it need not share.
    Raises: RecipeError: there are not so many.
    """
    learners, asked = recipe.learner.count, recipe.actors.inference_gpus
    if recipe.actors.inference == "local":
        return learner_gpus, 0.0
    left = gpus - learner_gpus * learners
    if asked != "auto":
        if float(asked) > left:
            raise RecipeError(
                f"actors.inference_gpus={asked:g}, and of the cluster's {gpus:g} GPUs the learners leave "
                f"{left:g}: the policy server could never start. Lower it or learner.num_gpus, or add GPU "
                "nodes."
            )
        return learner_gpus, float(asked)
    if left >= 1.0 and recipe.learner.device != "cpu":
        return learner_gpus, 1.0
    if learners == 1 and learner_gpus == 1.0 and recipe.learner.num_gpus == "auto":
        return 0.5, 0.5
    return learner_gpus, 0.0


def wiring(recipe: Recipe, cpus: float) -> str:
    """Resolve `replay.wiring`: service for several shards or on a large machine, colocated otherwise and
    where the learner must own the shard.
    """
    if recipe.replay.wiring != "auto":
        return recipe.replay.wiring
    if recipe.colocated_only:
        return "colocated"
    several = recipe.replay.shards > 1 or recipe.learner.count > 1
    return "service" if several or cpus > SMALL_MACHINE_CORES else "colocated"


def open_session(
    recipe: Recipe,
    *,
    root: Path,
    local: bool,
    clock_s: float = 0.0,
    resume: Path | None = None,
    say: Say = silent,
) -> ColocatedSession | ServiceSession:
    """Start the processes of a run in the wiring that the recipe resolves to.

    `say` hears lines for people while they start.

    Raises: SeqrlError: what a process found wrong as it began; no traceback of a worker hides it.
    """
    cpus = float(os.cpu_count() or 1) if local else cluster_resources().get("CPU", 1.0)
    kind = ColocatedSession if wiring(recipe, cpus) == "colocated" else ServiceSession
    if kind is ColocatedSession and recipe.learner.count > 1:  # resumed: a checkpoint keeps its wiring
        raise RecipeError(
            f"learner.count={recipe.learner.count} and the checkpoint is of the colocated wiring, whose "
            "learner owns the shard: others could not draw from it. Resume with learner.count=1."
        )
    placement = place(recipe, local=local)
    check_shared(root, placement.elsewhere)
    try:
        return kind(recipe, placement, root=root, clock_s=clock_s, resume=resume, say=say)
    except (RayTaskError, RayActorError) as error:
        raise cause_of(error) from None
