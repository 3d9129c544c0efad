"""What a session does for its policy server: start it, tell it the board, hear its reports, notice that it
was restarted, and end one that hangs or has failed.

Ray restarts the process and repeats the calls it lost (`runtime/policy_server.py`); so a restart shows only
in the process id that the next report comes from. While it is away, actors are silent for no fault of theirs.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from seqrl_ray.errors import WorkerError
from seqrl_ray.recipe import Recipe
from seqrl_ray.runtime import nodes
from seqrl_ray.runtime.policy_server import PolicyServer, ServerReport
from seqrl_ray.runtime.supervisor import START_S, Budget, threads_env
from seqrl_ray.types import GroupSpec

SPARE_CALLS = 16
"""Calls that a server answers beside one of every actor."""

ANSWER_S = 0.2
"""A living server answers in milliseconds: so long a report is waited for, so that it is of this moment."""

AWAY_S = 2.0
"""One that owes a report for so long is away: it starts, or hangs."""


@dataclass(frozen=True)
class Heard:
    """News of the server."""

    restarted_after_s: float | None
    """Seconds from the last report of the process before to the first of this one; None: it is the same."""
    board_lost: bool


class ServerCare:
    """The policy server of one run."""

    def __init__(
        self,
        recipe: Recipe,
        groups: Mapping[str, GroupSpec],
        board: Any,
        *,
        budget: Budget,
        options: Mapping[str, Any],
    ) -> None:
        """Start the server and wait until it stands.

        Args:
            recipe: the run.
            groups: policy id -> slots of one actor and spaces.
            board: where weights are.
            budget: of errors.
            options: of Ray; with GPUs the server uses one where torch finds it.
        Raises: ray.exceptions.RayActorError: it could not start. WorkerError: nor is it about to.
        """
        remote: Any = ray.remote(PolicyServer).options(
            max_restarts=-1,
            max_task_retries=-1,
            max_concurrency=recipe.actors.most + SPARE_CALLS,
            runtime_env=threads_env(),
            **options,
        )
        device = "auto" if options.get("num_gpus") else "cpu"
        self.handle: Any = remote.remote(recipe, dict(groups), device=device, threads=1)
        self.patience_s = recipe.actors.hang_timeout_s / 2  # before the actors that wait for it seem to hang
        self.gone: set[int] = set()
        """Actors whose acting states are not needed any more."""
        self._budget = budget
        try:
            self._report: ServerReport = ray.get(self.handle.serve.remote(board), timeout=2 * START_S)
        except GetTimeoutError:
            raise WorkerError(
                f"actors.inference='central': the policy server has not started in {2 * START_S:.0f} s. Look "
                "at the cluster with `ray status`, or set it to 'local'."
            ) from None
        self._heard_at = self._asked_at = time.monotonic()
        self._back_at = -math.inf
        self._call: Any = None
        self._ended: int | None = None
        """Process that was killed."""
        self._row: dict[str, float] = {"inference_slots": 0.0}

    def look(self, board: Any) -> Heard | None:
        """Ask for a report, and take it if it comes at once, or the one that is owed. A server that owes one
        for too long, computes at one batch for too long, or has failed, is killed, for Ray to start another.

        Raises: WorkerError: it failed twice in the same way.
            ray.exceptions.RayActorError: it cannot be restarted.
        """
        if self._call is None:
            gone, self.gone = sorted(self.gone), set()
            self._call, self._asked_at = self.handle.serve.remote(board, gone), time.monotonic()
        ready, _ = ray.wait([self._call], timeout=ANSWER_S)
        now = time.monotonic()
        if not ready:
            if now - self._asked_at > self.patience_s:
                self._end_process()
                self._asked_at = now
            return None
        call, self._call = self._call, None
        try:
            report: ServerReport = ray.get(call)
        except RayTaskError as error:
            if self._ended != self._report.pid:  # one that was killed may still say why
                self._budget.application_error("the policy server", str(error))
                self._end_process()
            return None
        if report.computing_s > self.patience_s:
            self._end_process()
        return self._take(report, now)

    @property
    def back_at(self) -> float:
        """Since when it has not been away: infinite while it is, minus infinite if it never was."""
        away = self._call is not None and time.monotonic() - self._asked_at > AWAY_S
        return math.inf if away or self._ended == self._report.pid else self._back_at

    def row(self) -> dict[str, float]:
        """Return what the run's reports say of the server."""
        return dict(self._row)

    def _end_process(self) -> None:
        """Kill the process, for Ray to start another; unless Ray is at it already.

        By its id, on its node: what `ray.kill` sends is heard by the process itself, if it hears anything.
        """
        self._ended = self._report.pid
        place = nodes.place_of(self.handle)
        if place.started and place.node_id is not None:
            there = NodeAffinitySchedulingStrategy(place.node_id, soft=False)
            ray.remote(_kill).options(num_cpus=0, scheduling_strategy=there).remote(place.pid)

    def _take(self, report: ServerReport, now: float) -> Heard:
        before, since_s = self._report, now - self._heard_at
        self._report, self._heard_at = report, now
        if report.pid != before.pid:
            self._back_at, self._ended = now, None
            return Heard(round(since_s, 3), report.board_lost)
        batches, slots = report.batches - before.batches, report.slots - before.slots
        self._row["inference_slots"] += slots
        if batches:
            self._row["inference_batch_slots"] = slots / batches
            requests = report.requests - before.requests
            self._row["inference_wait_s"] = (report.waited_s - before.waited_s) / requests
        if report.lived_s > before.lived_s:
            # of batches that have ended: a long one may have begun before
            busy = (report.busy_s - before.busy_s) / (report.lived_s - before.lived_s)
            self._row["inference_busy"] = min(1.0, busy)
        return Heard(None, report.board_lost)

    def end(self) -> None:
        """End the process for good."""
        ray.kill(self.handle, no_restart=True)


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
