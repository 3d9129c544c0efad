"""The supervisor: makes processes, replaces dead ones, and knows when a run must not go on.

A process death is answered by a new process, within a budget per ten minutes. An application error (a
traceback from our own or the user's code) is answered once; the same traceback again from the same kind of
place stops the run, because a restart would only repeat it. Every process is one Ray actor without Ray's own
restarts: the supervisor decides what a replacement is told (a new incarnation, a checkpoint, an empty board).
"""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from seqrl_ray.errors import WorkerError
from seqrl_ray.loops.behaviour import Behaviour
from seqrl_ray.recipe import Recipe
from seqrl_ray.runtime.actor import RolloutActor
from seqrl_ray.runtime.evaluator import Evaluator
from seqrl_ray.runtime.weight_board import WeightBoard

WINDOW_S = 600.0

START_S = 60.0
"""How much longer than a silent actor one is waited for that has never answered: its process, its imports and
its simulator have to start.
"""


def failed_to_start(error: Exception) -> bool:
    """Whether an actor's death is an error that its constructor raised."""
    return isinstance(error, RayActorError) and "creation task" in str(error)


def threads_env(threads: int = 1) -> dict[str, Any]:
    """Runtime environment of a process that shall use this many torch threads (and one for numpy)."""
    return {
        "env_vars": {
            "OMP_NUM_THREADS": str(threads),
            "MKL_NUM_THREADS": str(threads),
            "OPENBLAS_NUM_THREADS": "1",
        }
    }


@dataclass
class Budget:
    """Deaths that a run survives: at most `limit` in ten minutes, and no application error twice."""

    limit: int
    node_limit: int = 0
    deaths: deque[float] = field(default_factory=deque)
    errors: set[str] = field(default_factory=set)
    nodes: deque[float] = field(default_factory=deque)
    """When nodes were lost: each once, however many processes stood there."""

    def death(self, what: str) -> None:
        """Count the death of a process.

        Raises: WorkerError: more died in ten minutes than the recipe allows.
        """
        if _counted(self.deaths) > self.limit:
            raise WorkerError(
                f"actors.max_restarts_per_10_min={self.limit} is used up by the death of {what}: something "
                "kills the processes of this run. Look at memory and at the node's log, or raise the budget."
            )

    def node_loss(self, node_id: str) -> None:
        """Count the loss of a whole node: what stood there did nothing to deserve it.

        Raises: WorkerError: more were lost in ten minutes than the recipe allows.
        """
        if _counted(self.nodes) > self.node_limit:
            raise WorkerError(
                f"actors.max_node_losses_per_10_min={self.node_limit} is used up by the loss of node "
                f"{node_id[:8]}: the cluster's nodes do not last. Look at the cloud's notices, use nodes "
                "that stay, or raise the budget."
            )

    def application_error(self, what: str, traceback: str) -> None:
        """Count an application error.

        Raises: WorkerError: the same error came from the same place before; carries the worker's traceback.
        """
        place = f"{what}\n{_fingerprint(traceback)}"
        if place in self.errors:
            raise WorkerError(
                f"the same error twice from {what}, so a restart does not cure it:\n{traceback}"
            )
        self.errors.add(place)


def _counted(times: deque[float]) -> int:
    """Note that it happened now, and return how often it did in the last ten minutes."""
    now = time.monotonic()
    times.append(now)
    while now - times[0] > WINDOW_S:
        times.popleft()
    return len(times)


def _fingerprint(traceback: str) -> str:
    """The frames and the error of a traceback without what changes from process to process (ids,
    addresses).
    """
    frames = re.findall(r'File "([^"]+)", line (\d+), in (\S+)', traceback)
    last = traceback.strip().splitlines()[-1] if traceback.strip() else ""
    return f"{frames[-3:]} {re.sub(r'0x[0-9a-f]+|[0-9]+', '#', last)}"


class Supervisor:
    """Makes and ends the processes of one run."""

    def __init__(
        self,
        recipe: Recipe,
        *,
        actor_cpus: float,
        actor_labels: Mapping[str, str] | None = None,
        behaviour: Behaviour | None = None,
        pin: Mapping[str, Any] | None = None,
        actor_pins: Sequence[Mapping[str, Any]] = (),
        evaluator_pin: Mapping[str, Any] | None = None,
    ) -> None:
        self.recipe = recipe
        self._where = {"label_selector": dict(actor_labels)} if actor_labels else {}
        self.pin = dict(pin or {})
        """Ray options of the board: it stands where the learner does, and not on a node that may go."""
        self._actor_pins, self._evaluator_pin = actor_pins, dict(evaluator_pin or {})
        self.behaviour = behaviour
        self.actor_cpus = actor_cpus
        self.budget = Budget(recipe.actors.max_restarts_per_10_min, recipe.actors.max_node_losses_per_10_min)
        self.incarnations = dict.fromkeys(range(recipe.actors.most), -1)
        """Also of actors that are not there now: none is ever used again."""
        self.actors: dict[int, Any] = {}
        self.board: Any = None

    def state(self) -> dict[str, Any]:
        """Incarnations in use, for a checkpoint."""
        return {"incarnations": {str(i): n for i, n in self.incarnations.items()}}

    def go_on_from(self, state: Mapping[str, Any], *, exact: Set[int]) -> None:
        """Make actors of new incarnations, or of the same ones if their streams go on exactly."""
        for index, number in state["incarnations"].items():
            self.incarnations[int(index)] = int(number) - (int(index) in exact)

    def make_actor(self, index: int) -> Any:
        """Start rollout actor `index` (anew); it is not ready yet when this returns."""
        self.incarnations[index] += 1
        pin = self._actor_pins[index] if self._actor_pins else {}
        remote = ray.remote(RolloutActor).options(
            num_cpus=self.actor_cpus, runtime_env=threads_env(), **self._where, **pin
        )
        self.actors[index] = remote.remote(self.recipe, index, self.incarnations[index], self.behaviour)
        return self.actors[index]

    def make_board(self) -> Any:
        """Start an empty weight board."""
        remote = ray.remote(WeightBoard).options(num_cpus=0, runtime_env=threads_env(), **self.pin)
        self.board = remote.remote()
        return self.board

    def make_evaluator(self, cpus: float) -> Any:
        """Start an evaluator."""
        remote = ray.remote(Evaluator).options(
            num_cpus=cpus, runtime_env=threads_env(), **self._where, **self._evaluator_pin
        )
        return remote.remote(self.recipe)

    def count(self, what: str, error: Exception) -> None:
        """Count what ended a process: a death, or an application error (also one in its constructor).

        Raises: WorkerError: the run must not survive this.
        """
        if isinstance(error, RayTaskError) or failed_to_start(error):
            self.budget.application_error(what, str(error))
        else:
            self.budget.death(what)

    def end(self, actor: Any) -> None:
        """End a process of ours, dead or alive."""
        ray.kill(actor, no_restart=True)

    def close(self) -> None:
        """End every rollout actor and the board."""
        for actor in [*self.actors.values(), *([self.board] if self.board is not None else [])]:
            self.end(actor)
        self.actors.clear()
        self.board = None
