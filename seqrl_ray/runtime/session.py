"""What both wirings share, seen from the supervisor's process: the crew, board, evaluators, the account of
deaths.

This file is long because what a death of any kind costs, and what a node takes with it, is accounted for in
one place.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from seqrl_ray import errors
from seqrl_ray.errors import DivergedError, SeqrlError
from seqrl_ray.loops import checkpoints
from seqrl_ray.loops.drive import Failure
from seqrl_ray.loops.evaluate import POLICY
from seqrl_ray.loops.judge import Job, before_acting, chunk_size, playable
from seqrl_ray.loops.run_folder import LagCounter
from seqrl_ray.recipe import Recipe
from seqrl_ray.runtime import nodes
from seqrl_ray.runtime.crew import PATIENT_S, Crew
from seqrl_ray.runtime.evaluator import play_jobs
from seqrl_ray.runtime.server_care import ServerCare
from seqrl_ray.runtime.supervisor import Supervisor
from seqrl_ray.types import GroupSpec
from seqrl_ray.types_env import EpisodeEnd, Weights


@dataclass(frozen=True)
class Placement:
    """What the launcher resolved: where things run and with how much."""

    device: str
    num_gpus: float
    learner_threads: int
    actor_cpus: float
    learner_cpus: float
    shard_cpus: float
    evaluator_cpus: float
    workers: int
    """Evaluators of the final evaluation."""
    pin: dict[str, Any] = field(default_factory=dict)
    """Ray options of the learner: on a cluster it stands on the driver's node, or where its labels say."""
    shard_pin: dict[str, Any] = field(default_factory=dict)
    """Ray options of shards that are processes of their own."""
    actor_labels: Mapping[str, str] = field(default_factory=dict)
    """What the nodes of actors and evaluators must have."""
    actor_pins: tuple[dict[str, Any], ...] = ()
    """Ray options of each actor by its number, where places are reserved; () = wherever there is room."""
    evaluator_pin: dict[str, Any] = field(default_factory=dict)
    """Ray options of the evaluator, where it has a place reserved."""
    follower_pins: tuple[dict[str, Any], ...] = ()
    """Ray options of each learner beside the first; () = of our own machine."""
    elsewhere: tuple[str, ...] = ()
    """Ids of other nodes than the driver's on which checkpoints are written."""
    actors_here: int | None = None
    """Actors that a machine of our own carries, where the recipe leaves the number open."""
    watch_nodes: bool = False
    """Nodes may come and go: the number of actors follows them."""
    server: Mapping[str, Any] = field(default_factory=dict)
    """Ray options of the policy server."""


@dataclass
class Death:
    """A death that has been noticed and not mended yet."""

    what: str
    noticed: float
    lost_steps: int = 0
    lost_updates: int = 0
    diverged: bool = False


@dataclass
class NodeLoss:
    """A node that was lost with what stood on it; mended when training goes on without it."""

    death: Death
    env_steps: int | None = None
    """Of the run in the first report since."""
    awaited: set[int] = field(default_factory=set)
    """Actors whose replacements have not been heard yet."""


Say = Callable[[str], None]
"""Hears lines for people."""


def silent(line: str) -> None:
    """Tell nobody."""


LAST_SAVE_S = 15.0
"""How long before the announced end of the learner's node a last checkpoint is begun."""


def cause_of(error: RayTaskError | RayActorError) -> Exception:
    """Return the error of ours that a remote call failed with, or else `error` itself with the worker's
    traceback.

    Of an actor whose constructor raised, Ray keeps the text alone, so a kind of ours is read back from its
    last line.
    """
    if isinstance(error, RayTaskError) and isinstance(error.cause, SeqrlError):
        return error.cause
    last = str(error).strip().splitlines()[-1]
    kind, _, message = last.removeprefix(f"{errors.__name__}.").partition(": ")
    if last.startswith(errors.__name__) and issubclass(getattr(errors, kind, object), SeqrlError):
        ours: Exception = getattr(errors, kind)(message)
        return ours
    return error


def diverged(error: Exception) -> bool:
    """Whether a learner ended because its weights were lost to NaN or infinity."""
    return isinstance(error, RayTaskError) and isinstance(error.cause, DivergedError)


class RaySession:
    """What does not depend on the wiring; `ColocatedSession` and `ServiceSession` add the rest."""

    groups: Mapping[str, GroupSpec]
    server: ServerCare | None = None
    """Who acts for all actors, where one does."""

    def __init__(
        self,
        recipe: Recipe,
        placement: Placement,
        *,
        root: Path,
        clock_s: float,
        resume: Path | None,
        say: Say,
    ) -> None:
        """Start the board.

        Args:
            recipe: the run.
            placement: from the launcher.
            root: the run's checkpoints; a dead learner is restored from the newest.
            clock_s: wall seconds the run had used before it was resumed.
            resume: checkpoint to go on from.
            say: hears lines for people while the session begins; later ones come with `Advance`.
        """
        self.recipe, self.placement, self.root, self._say = recipe, placement, root, say
        self.supervisor = Supervisor(
            recipe,
            actor_cpus=placement.actor_cpus,
            actor_labels=placement.actor_labels,
            pin=placement.pin,
            actor_pins=placement.actor_pins,
            evaluator_pin=placement.evaluator_pin,
        )
        self.crew = Crew(
            recipe,
            cpus=placement.actor_cpus,
            watch=placement.watch_nodes,
            here=placement.actors_here,
            folder=root.parent,
            selector=placement.actor_labels,
        )
        self.exact: set[int] = set()
        """Actors that go on inside their open episodes: in lock-step, where the checkpoint holds them."""
        if resume is not None:
            checkpoints.verify(resume)
            if recipe.actors.in_flight == 1:
                self.exact = {int(i) for i, state in checkpoints.load(resume, "rollouts").items() if state}
            self.supervisor.go_on_from(checkpoints.load(resume, "supervisor"), exact=self.exact)
        self.lag = LagCounter()
        self.epoch = 0
        self.last = {"env_steps": 0, "updates": 0}
        self.actor_deaths: dict[int, Death] = {}
        self.node_losses: dict[str, NodeLoss] = {}
        self._lost_nodes: set[str] = set()
        self.save_wanted = False
        """The learner's node is about to go: a checkpoint is wanted now."""
        self._notes: list[str] = []
        self._told: dict[int, tuple[Any, int, int]] = {}  # actor -> its process, rank, of how many
        self._last_saves: dict[str, bool] = {}  # ending node of ours -> whether its last save was asked for
        self.judge_deaths: dict[Job, Death] = {}
        """By the job that died with its evaluator; mended when another has played it."""
        self._started = time.monotonic() - clock_s
        self._mended: list[Failure] = []
        self._interim: tuple[Any, Job, dict[str, int]] | None = None
        self._evaluator: Any = None
        self.supervisor.make_board()

    def at_s(self) -> float:
        """Wall seconds of the run so far."""
        return time.monotonic() - self._started

    # ----------------------------------------------------------------------------------------------- the crew

    def follow_the_cluster(self) -> None:
        """Now and then: let actors join and leave as the cluster and people want it; heed announced ends."""
        orders = self.crew.look()
        for index in orders.drop:
            self.let_go(index)
        for index in orders.join:
            self.has_joined(index, self.hire(index))
        if orders.ending:
            self._heed({node.node_id: node for node in orders.ending})
        self.tell_places()  # some may have found room since
        self._notes += orders.notes

    def has_joined(self, index: int, actor: Any) -> None:
        """Feed a new actor: the wirings say how."""

    def judged_weights(self) -> dict[str, Weights]:
        """Return what the policies are judged with at this moment."""
        raise NotImplementedError

    def keepers(self) -> list[Any]:
        """Return the processes whose state a checkpoint holds."""
        raise NotImplementedError

    def hire_first(self) -> None:
        """Start the actors that the session begins with."""
        for index in self.crew.first():
            self.crew.joined(index, self.supervisor.make_actor(index))
        self.tell_places()

    def start_server(self) -> None:
        """Start the policy server, if the run has one, and have the actors act through it."""
        if self.recipe.actors.inference == "central":
            self.server = ServerCare(
                self.recipe,
                self.groups,
                self.supervisor.board,
                budget=self.supervisor.budget,
                options=self.placement.server,
            )
            for actor in self.supervisor.actors.values():
                actor.act_through.remote(self.server.handle)

    def tend_server(self, row: dict[str, Any]) -> bool:
        """Look after the policy server; its figures go into `row`. Returns whether it found a dead board."""
        if self.server is None:
            return False
        try:
            heard = self.server.look(self.supervisor.board)
        except RayActorError as error:
            raise cause_of(error) from None
        row.update(self.server.row())
        if heard is not None and heard.restarted_after_s is not None:
            self.count_death("the policy server", self.server.handle)
            at_s = round(self.at_s() - heard.restarted_after_s, 3)
            self._mended.append(Failure("policy_server", at_s, heard.restarted_after_s))
        return heard is not None and heard.board_lost

    def hire(self, index: int) -> Any:
        """Start actor `index` as its next incarnation."""
        actor = self.supervisor.make_actor(index)
        if self.server is not None:
            self.server.gone.discard(index)
            actor.act_through.remote(self.server.handle)
        self.crew.joined(index, actor)
        self.tell_places()
        return actor

    def let_go(self, index: int) -> None:
        """End an actor that has left, or never began; nobody replaces it."""
        self.supervisor.end(self.supervisor.actors.pop(index))
        self._is_no_more(index)
        self.tell_places()

    def _is_no_more(self, index: int) -> None:
        self.crew.left(index)
        if self.server is not None:
            self.server.gone.add(index)
        self._told.pop(index, None)
        if index in self.actor_deaths:
            self._never_back(self.actor_deaths.pop(index))
        for loss in self.node_losses.values():
            loss.awaited.discard(index)

    def tell_places(self) -> None:
        """Tell the actors that stay their rank among them: exploration spreads over those there are."""
        most = self.recipe.actors.most
        for index, (rank, total) in self.crew.places().items():
            actor = self.supervisor.actors[index]
            known = self._told.get(index, (None, 0, 0))
            if known[0] is not actor:
                known = (actor, index, most)  # as its constructor takes it
            if known != (actor, rank, total):
                actor.take_place.remote(rank, total)  # a dead one is found so by the wiring
            self._told[index] = (actor, rank, total)

    def awaited(self, index: int) -> bool:
        """Whether an actor replaces a dead one and has not been heard yet."""
        return index in self.actor_deaths or any(index in loss.awaited for loss in self.node_losses.values())

    def is_back(self, index: int) -> None:
        """Hear from an actor that replaced a dead one."""
        if index in self.actor_deaths:
            self.recovered(self.actor_deaths.pop(index))
        for loss in self.node_losses.values():
            loss.awaited.discard(index)

    def mend_nodes(self) -> None:
        """Account for lost nodes without which training goes on."""
        for node_id, loss in list(self.node_losses.items()):
            if loss.env_steps is None:  # the row of this moment has steps from before the loss
                loss.env_steps = self.last["env_steps"]
            elif not loss.awaited and self.last["env_steps"] > loss.env_steps:
                self.recovered(self.node_losses.pop(node_id).death)

    def take_notes(self) -> list[str]:
        """Return lines for people since the last call."""
        notes, self._notes = self._notes, []
        return notes

    def take_save_wanted(self) -> bool:
        """Whether a checkpoint has been wanted since the last call."""
        wanted, self.save_wanted = self.save_wanted, False
        return wanted

    def _heed(self, ending: Mapping[str, nodes.Node]) -> None:
        """Before the node of learner or shards ends, have what they hold saved: at once, and late again."""
        for node_id in {nodes.place_of(process).node_id for process in self.keepers()} & set(ending):
            assert node_id is not None
            left = nodes.seconds_left(ending[node_id])
            if node_id not in self._last_saves:
                self._last_saves[node_id] = left < LAST_SAVE_S
                self.save_wanted = True
                self._notes.append(
                    f"learner or shards stand on node {ending[node_id].address}, which ends: saving; go on "
                    "elsewhere with --resume"
                )
            elif not self._last_saves[node_id] and left < LAST_SAVE_S:
                self._last_saves[node_id] = self.save_wanted = True

    def first_groups(self) -> dict[str, GroupSpec]:
        """Wait for the first actor: its environment says what there is to learn. Say if there is no room."""
        call = self.supervisor.actors[0].groups.remote()
        ready, _ = ray.wait([call], timeout=PATIENT_S)
        if not ready and 0 in self.crew.unplaced:
            labels = self.placement.actor_labels
            where = f" on a node with the labels {dict(labels)}" if labels else ""
            self._say(
                f"the first actor waits for {self.placement.actor_cpus:g} free CPUs{where}; the run begins "
                "when it stands"
            )
        groups: dict[str, GroupSpec] = ray.get(call)
        return groups

    def restore_rollouts(self, resume: Path) -> None:
        """Hand their open episodes back to the actors that go on exactly."""
        saved = checkpoints.load(resume, "rollouts")
        ray.get([self.supervisor.actors[i].go_on_from.remote(saved[str(i)]) for i in self.exact])

    def rollout_states(self) -> dict[str, Any]:
        """Return every actor's open episodes (lock-step runs); None for one that cannot tell, or has died."""
        states: dict[str, Any] = {}
        for index, actor in self.supervisor.actors.items():
            if index in self.crew.unplaced:
                states[str(index)] = None
                continue
            try:
                states[str(index)] = ray.get(actor.open_episodes.remote())
            except RayActorError:
                states[str(index)] = None  # found lost, and replaced, by the wiring's next look
        return states

    # ------------------------------------------------------------------------------------------------- deaths

    def take_failures(self, *, final: bool = False) -> list[Failure]:
        """Return the deaths mended since the last call; if training is over, also those that never were."""
        if final:
            for index in list(self.actor_deaths):
                self._never_back(self.actor_deaths.pop(index))
            for job in list(self.judge_deaths):
                self._never_back(self.judge_deaths.pop(job))
            for node_id in list(self.node_losses):
                self._never_back(self.node_losses.pop(node_id).death)
        mended, self._mended = self._mended, []
        return mended

    def recovered(self, death: Death) -> None:
        """Account for a death that has been mended now."""
        took = round(self.at_s() - death.noticed, 3)
        self._mended.append(
            Failure(
                death.what,
                round(death.noticed, 3),
                took,
                death.lost_steps,
                death.lost_updates,
                death.diverged,
            )
        )

    def _never_back(self, death: Death) -> None:
        """Account for a death that was not mended: its replacement died too, or the run ended first."""
        noticed = round(death.noticed, 3)
        self._mended.append(Failure(death.what, noticed, None, death.lost_steps, death.lost_updates))

    def bury_actor(self, index: int, cause: str, *, application_error: bool, lost_steps: int) -> Any:
        """Count an actor's death, make sure it is dead, and start its replacement.

        Returns: the replacement; None if there is none: it was let go, or its node was lost with it and the
            run may go on smaller.
        Raises: WorkerError: the run must not survive this.
        """
        if index not in self.crew.members:
            return None
        node_id = None if application_error else self.crew.lost_node(index)
        if application_error:
            self.supervisor.budget.application_error("actor", cause)
        elif node_id is None:
            self.supervisor.budget.death(f"actor {index} ({cause})")
        else:
            self._lose(node_id, lost_steps)
        rehired = self.crew.rehires(index, node_lost=node_id is not None)
        self.supervisor.end(self.supervisor.actors.pop(index))
        self._is_no_more(index)
        if node_id is None:
            self.actor_deaths[index] = Death("actor", self.at_s(), lost_steps=lost_steps)
        if not rehired:
            if index in self.actor_deaths:
                self._never_back(self.actor_deaths.pop(index))
            self.tell_places()
            return None
        if node_id is not None:
            self.node_losses[node_id].awaited.add(index)
        return self.hire(index)

    def _lose(self, node_id: str, lost_steps: int = 0) -> None:
        """Note that a node was lost; it counts once, however much stood there."""
        if node_id not in self._lost_nodes:
            self._lost_nodes.add(node_id)
            self.supervisor.budget.node_loss(node_id)
            self.node_losses[node_id] = NodeLoss(Death("node", self.at_s()))
        if node_id in self.node_losses:
            self.node_losses[node_id].death.lost_steps += lost_steps

    def count_death(self, what: str, process: Any) -> None:
        """Count the death of a process that is no actor: on its own account, or with its node.

        Raises: WorkerError: the run must not survive this.
        """
        if not self.went_with_its_node([process]):
            self.supervisor.budget.death(what)

    def went_with_its_node(self, processes: Sequence[Any]) -> bool:
        """Whether one of these processes went down with its node, whose loss is then noted."""
        found = {nodes.place_of(process).node_id for process in processes if self.placement.watch_nodes}
        lost = [node_id for node_id in found if node_id is not None and nodes.gone(node_id)]
        for node_id in lost:
            self._lose(node_id)
        return bool(lost)

    def replace_board(self, publish: Callable[[Any], None]) -> None:
        """Start an empty board and have it filled."""
        death = Death("board", self.at_s())
        self.count_death("the weight board", self.supervisor.board)
        with contextlib.suppress(RayActorError):  # if board or learner died meanwhile, that is reported anew
            publish(self.supervisor.make_board())
        self.recovered(death)

    # ------------------------------------------------------------------------------------------------ judging

    def judge_interim(self, seeds: Sequence[int]) -> None:
        """Evaluate the present weights on an evaluator beside the training; skipped while one is at it."""
        if self._interim is not None:
            return
        if self._evaluator is None:
            self._evaluator = self.supervisor.make_evaluator(0.0)
        job = Job(POLICY, tuple(seeds))
        self._interim = (self._evaluator.play.remote(job, self.judged_weights()), job, dict(self.last))

    def interim_results(self) -> list[tuple[dict[str, int], list[EpisodeEnd]]]:
        """Return the evaluation in between if it has ended; a dead evaluator is replaced and begins anew."""
        if self._interim is None:
            return []
        call, job, at = self._interim
        ready, _ = ray.wait([call], timeout=0)
        if not ready:
            return []
        self._interim = None
        try:
            ends = ray.get(call)
            self._played(job)
            return [(at, ends)]
        except RayTaskError as error:
            self.supervisor.budget.application_error("evaluator", str(error))
        except RayActorError:
            self.count_death("an evaluator", self._evaluator)
        self._died_with(job)
        self.supervisor.end(self._evaluator)
        self._evaluator = None
        self.judge_interim(job.seeds)
        return []

    def _died_with(self, job: Job) -> None:
        """Note that an evaluator died at this job."""
        if job in self.judge_deaths:
            self._never_back(self.judge_deaths.pop(job))
        self.judge_deaths[job] = Death("evaluator", self.at_s())

    def _played(self, job: Job) -> None:
        """Note that a job has been played: if one died at it before, that is mended."""
        if job in self.judge_deaths:
            self.recovered(self.judge_deaths.pop(job))

    def judge_final(
        self, jobs_of: Callable[[int], list[Job]], on_job: Callable[[Job, int], None]
    ) -> dict[str, list[EpisodeEnd]]:
        """End the training processes and play the final jobs, with the weights of the last checkpoint."""
        newest = checkpoints.latest(self.root)
        weights = checkpoints.acting_weights(newest) | before_acting(checkpoints.pretrained_weights(newest))
        workers = self.placement.workers
        if self.placement.watch_nodes:  # evaluators take the room that the present actors leave
            room = self.crew.size * self.placement.actor_cpus / self.placement.evaluator_cpus
            workers = max(1, min(workers, int(room)))
        self.close()
        jobs = playable(jobs_of(chunk_size(self.recipe, self.recipe.evaluation.episodes, workers)), weights)

        def played(job: Job) -> None:
            self._played(job)
            on_job(job, len(jobs))

        return play_jobs(
            lambda: self.supervisor.make_evaluator(self.placement.evaluator_cpus),
            jobs,
            weights,
            workers=workers,
            patience_s=self.recipe.evaluation.hang_timeout_s,
            budget=self.supervisor.budget,
            on_job=played,
            on_death=self._died_with,
        )

    def close(self) -> None:
        """End actors, policy server, board and evaluator; closing twice is harmless."""
        self.supervisor.close()
        if self.server is not None:
            self.server.end()
        self.server = None
        if self._evaluator is not None:
            self.supervisor.end(self._evaluator)
        self._evaluator = None
