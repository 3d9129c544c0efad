"""What a session does for its policy server: start it, tell it the board, hear its reports, notice that it
was restarted, and end one that hangs.

Ray restarts the process and repeats the calls it lost (`runtime/policy_server.py`); so a restart shows only
in the process id that the next report comes from.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from seqrl_ray.recipe import Recipe
from seqrl_ray.runtime import nodes
from seqrl_ray.runtime.policy_server import PolicyServer, ServerReport
from seqrl_ray.runtime.supervisor import threads_env
from seqrl_ray.types import GroupSpec

SPARE_CALLS = 16
"""Calls that a server answers beside one of every actor."""


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
        device: str,
        options: Mapping[str, Any],
    ) -> None:
        """Start the server and wait until it stands.

        Args:
            recipe: the run.
            groups: policy id -> slots of one actor and spaces.
            board: where weights are.
            device: torch device.
            options: of Ray.
        Raises: ray.exceptions.RayActorError: it could not start.
        """
        remote: Any = ray.remote(PolicyServer).options(
            max_restarts=-1,
            max_task_retries=-1,
            max_concurrency=recipe.actors.most + SPARE_CALLS,
            runtime_env=threads_env(),
            **options,
        )
        self.handle: Any = remote.remote(recipe, dict(groups), device=device, threads=1)
        self.patience_s = recipe.actors.hang_timeout_s / 2  # before the actors that wait for it seem to hang
        self.gone: set[int] = set()
        """Actors whose acting states are not needed any more."""
        self._report: ServerReport = ray.get(self.handle.serve.remote(board))
        self._heard_at = self._asked_at = time.monotonic()
        self._call: Any = None
        self._row: dict[str, float] = {"inference_slots": 0.0}

    def look(self, board: Any) -> Heard | None:
        """Ask for a report, and take the one asked for before if it has come; a server that owes one for too
        long is killed, for Ray to start it again.

        Raises: ray.exceptions.RayTaskError, RayActorError: an error of its own, or it cannot be restarted.
        """
        heard = None
        now = time.monotonic()
        if self._call is not None:
            ready, _ = ray.wait([self._call], timeout=0)
            if ready:
                call, self._call = self._call, None
                heard = self._take(ray.get(call), now)
            elif now - self._asked_at > self.patience_s:
                self._end_process()
                self._asked_at = now
        if self._call is None:
            gone, self.gone = sorted(self.gone), set()
            self._call, self._asked_at = self.handle.serve.remote(board, gone), now
        return heard

    def _end_process(self) -> None:
        """Kill the process, for Ray to start another; unless Ray is at it already.

        By its id, on its node: what `ray.kill` sends is heard by the process itself, if it hears anything.
        """
        place = nodes.place_of(self.handle)
        if place.started and place.node_id is not None:
            there = NodeAffinitySchedulingStrategy(place.node_id, soft=False)
            ray.remote(_kill).options(num_cpus=0, scheduling_strategy=there).remote(self._report.pid)

    def row(self) -> dict[str, float]:
        """Return what the run's reports say of the server."""
        return dict(self._row)

    def _take(self, report: ServerReport, now: float) -> Heard:
        before, since_s = self._report, max(now - self._heard_at, 1e-9)
        self._report, self._heard_at = report, now
        if report.pid != before.pid:
            return Heard(round(since_s, 3), report.board_lost)
        batches, slots = report.batches - before.batches, report.slots - before.slots
        requests = report.requests - before.requests
        self._row["inference_slots"] += slots
        if batches:
            self._row["inference_batch_slots"] = slots / batches
            self._row["inference_wait_s"] = (report.waited_s - before.waited_s) / requests
        self._row["inference_busy"] = (report.busy_s - before.busy_s) / since_s
        return Heard(None, report.board_lost)

    def end(self) -> None:
        """End the process for good."""
        ray.kill(self.handle, no_restart=True)


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
