"""The policies of one run, with the weights of one of its checkpoints: what a replica acts with.

Opened as `seqrl evaluate` opens a run: the environment is made once, for its spaces, and closed; the
algorithms are built from the recipe and given the weights that the checkpoint's policies act with. Of a
checkpoint only the learner's part is read and checked, not the replay.

Dims: S rows of all requests of one call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from seqrl_ray.algorithms import settings_class
from seqrl_ray.algorithms.contract import Algorithm
from seqrl_ray.errors import CheckpointError
from seqrl_ray.loops import checkpoints
from seqrl_ray.loops.build import algorithms, training_env
from seqrl_ray.loops.remote import refuse
from seqrl_ray.loops.run_folder import open_run
from seqrl_ray.recipe import Recipe, load, policy_algorithm
from seqrl_ray.serving.inputs import Ask, Shape
from seqrl_ray.serving.sessions import Session, joined, part
from seqrl_ray.settings import mutable_keys
from seqrl_ray.types import ActInput, Array, GroupSpec, Weights

TRAINER = "trainer"
"""The part of a checkpoint with the learner in it."""
TARGET = "target_return"


@dataclass(frozen=True)
class Loaded:
    """The weights of one checkpoint."""

    checkpoint: Path
    weights: Mapping[str, Weights]


@dataclass(frozen=True)
class Job:
    """One request on its way into a call of the network."""

    ask: Ask
    session: Session | None


@dataclass(frozen=True)
class Decision:
    """What one request gets."""

    action: Array  # [S] int64 or [S, *action] float32
    state: Any
    """Of its rows, after it; None of a policy that keeps none."""
    version: tuple[int, int]
    """(lineage epoch, updates) of the weights."""


class Policies:
    """All policies of a run, and the weights they act with."""

    def __init__(self, run: str, checkpoint: str | None = None, *, seed: int = 0) -> None:
        """Open a run.

        Args:
            run: its folder.
            checkpoint: name of the checkpoint to keep to; None: the newest.
            seed: of what is random in acting.
        Raises: SeqrlError: no run there, no such checkpoint, or one that does not fit the recipe.
        """
        refuse(run, "RUN")
        self.folder = open_run(Path(run))
        self.recipe: Recipe = load(self.folder / "recipe.toml", (), algorithm_settings=settings_class)
        self._pinned = checkpoint
        loaded = self._read(self._named())
        groups = _groups(self.recipe)
        self.algorithms: dict[str, Algorithm] = algorithms(self.recipe, groups)
        self.shapes = {p: _shape(self.recipe, group, self.algorithms[p]) for p, group in groups.items()}
        self._rng = np.random.default_rng(seed)
        self.take(loaded)

    @property
    def stateful(self) -> list[str]:
        """Ids of the policies that keep a state between decisions."""
        return [policy_id for policy_id, shape in self.shapes.items() if shape.stateful]

    def newer(self) -> Loaded | None:
        """Read a newer checkpoint, if there is one; nothing acts with it before `take`.

        Raises: CheckpointError: it is damaged, of another network, or was deleted while it was being read.
        """
        newest = self._named()
        return None if newest == self.loaded.checkpoint else self._read(newest)

    def take(self, loaded: Loaded) -> None:
        """Act with these weights from now on.

        Raises: CheckpointError: they are of another network.
        """
        for policy_id, algorithm in self.algorithms.items():
            algorithm.load_weights(loaded.weights[policy_id].flat)
        self.loaded = loaded

    def fresh(self, policy_id: str, rows: int) -> Session:
        """Return a session of a policy that has seen nothing."""
        algorithm, action = self.algorithms[policy_id], self.shapes[policy_id].group.action
        return Session(
            state=algorithm.initial_state(rows),
            prev_action=np.zeros((rows, *action.column.shape), action.column.dtype),
        )

    def act(self, jobs: Sequence[Job]) -> list[Decision]:
        """Choose the actions of several requests: one call per policy and mode."""
        together: dict[tuple[str, bool], list[int]] = {}
        for i, job in enumerate(jobs):
            together.setdefault((job.ask.policy_id, job.ask.explore), []).append(i)
        decided: dict[int, Decision] = {}
        for places in together.values():
            decided.update(zip(places, self._act([jobs[i] for i in places]), strict=True))
        return [decided[i] for i in range(len(jobs))]

    def _act(self, jobs: Sequence[Job]) -> list[Decision]:
        policy_id, explore = jobs[0].ask.policy_id, jobs[0].ask.explore
        algorithm, shape = self.algorithms[policy_id], self.shapes[policy_id]
        ends = np.cumsum([job.ask.rows for job in jobs])
        rows = [slice(end - job.ask.rows, end) for end, job in zip(ends.tolist(), jobs, strict=True)]
        count = int(ends[-1])
        state = joined([job.session.state for job in jobs if job.session]) if shape.stateful else None
        action, state, _ = algorithm.act(
            self._inputs(jobs, algorithm, shape, count), state, "explore" if explore else "greedy"
        )
        action = _handed(action, shape)
        version = self.loaded.weights[policy_id].version
        return [Decision(action[own], part(state, own) if shape.stateful else None, version) for own in rows]

    def _inputs(self, jobs: Sequence[Job], algorithm: Algorithm, shape: Shape, count: int) -> ActInput:
        asks = [job.ask for job in jobs]
        params = algorithm.slot_params(1.0, np.zeros(count, np.int64), 1)
        column = shape.group.action.column
        prev_action = np.zeros((count, *column.shape), column.dtype)
        prev_reward = np.zeros(count, np.float32)
        is_first = np.ones(count, np.bool_)
        if shape.stateful:
            is_first = np.concatenate([ask.is_first for ask in asks if ask.is_first is not None])
            prev_action = np.concatenate([_before(job) for job in jobs])
            given = [ask.reward if ask.reward is not None else np.zeros(ask.rows) for ask in asks]
            prev_reward = np.concatenate(given).astype(np.float32)
            prev_action[is_first], prev_reward[is_first] = 0, 0
            if shape.target_return is not None:
                params = {
                    **params,
                    TARGET: np.concatenate([_target(job, shape.target_return) for job in jobs]),
                }
        return ActInput(
            obs=np.concatenate([ask.obs for ask in asks]),
            prev_action=prev_action,
            prev_reward=prev_reward,
            is_first=is_first,
            legal=np.concatenate([ask.legal for ask in asks if ask.legal is not None])
            if shape.group.masked
            else None,
            slot_params=params,
            rng=self._rng,
        )

    def _named(self) -> Path:
        """Return the checkpoint to act with.

        Raises: CheckpointError: there is none, or none of that name.
        """
        root = self.folder / "checkpoints"
        if self._pinned is None:
            return checkpoints.latest(root)
        found = {path.name: path for path in checkpoints.complete(root)}
        if self._pinned not in found:
            raise CheckpointError(
                f"checkpoint={self._pinned!r} is no complete checkpoint of {self.folder}. There: "
                f"{', '.join(found) or 'none'}."
            )
        return found[self._pinned]

    def _read(self, checkpoint: Path) -> Loaded:
        checkpoints.verify(checkpoint, TRAINER)
        weights = checkpoints.acting_weights(checkpoint)
        if set(weights) != set(self.recipe.policies):
            raise CheckpointError(
                f"{checkpoint} has policies {sorted(weights)}, the recipe {sorted(self.recipe.policies)}: "
                "they cannot be matched. Use the recipe the run was started with."
            )
        return Loaded(checkpoint, {p: weights[p] for p in self.recipe.policies})


def after(session: Session, ask: Ask, decision: Decision) -> None:
    """Let a session remember what it was given."""
    session.state, session.prev_action, session.begun = decision.state, decision.action, True


def _before(job: Job) -> Array:
    """Return the action before this one: the client's word, or what it was given."""
    if job.ask.prev_action is not None:
        return job.ask.prev_action
    assert job.session is not None
    return job.session.prev_action


def _target(job: Job, default: float) -> Array:
    """Return the return that each row aims at, [S]; it counts where a row begins."""
    wanted = job.ask.target_return
    return np.full(job.ask.rows, default, np.float32) if wanted is None else wanted


def _handed(action: Array, shape: Shape) -> Array:
    """Return actions as an environment is handed them: continuous ones inside their bounds."""
    spec = shape.group.action
    if spec.kind == "discrete":
        return action.astype(np.int64)
    low, high = (np.array(bound, np.float32).reshape(spec.shape) for bound in (spec.low, spec.high))
    return np.clip(action.astype(np.float32), low, high)


def _groups(recipe: Recipe) -> dict[str, GroupSpec]:
    """Make one copy of the environment for its spaces, and let it go."""
    one_copy = recipe.actors.model_copy(update={"envs_per_actor": 1})
    with closing(training_env(recipe.model_copy(update={"actors": one_copy}), 0, 0)) as env:
        return dict(env.groups)


def _shape(recipe: Recipe, group: GroupSpec, algorithm: Algorithm) -> Shape:
    keys = policy_algorithm(recipe, group.policy_id)
    name = recipe.algorithm["name"]
    target = None
    if TARGET in mutable_keys(settings_class(name)) and not keys.get("return_quantile"):
        params = algorithm.slot_params(1.0, np.zeros(1, np.int64), 1)
        target = float(params[TARGET][0])
    return Shape(group, algorithm.initial_state(1) is not None, target)
