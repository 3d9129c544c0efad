"""Rollout: the one place where a policy meets an environment, and where agents become trajectories.

A `Rollout` steps a vectorised environment with one algorithm per policy id and cuts what happened into
fragments: for every policy id one `Trajectory` whose rows are sorted stream after stream. It knows no replay
and no learner; new weights are handed to it between two fragments, never inside one.

Dims: T vector steps of a fragment, S slots of a group, R rows, F final rows, P pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from seqrl_ray.algorithms.contract import Algorithm, rested, unclaimed
from seqrl_ray.errors import EnvError
from seqrl_ray.types import ActInput, Array, BoolArray, ColumnSpec, GroupSpec, IntArray, Mode
from seqrl_ray.types_env import (
    EpisodeEnd,
    Fragment,
    OpenEpisode,
    Step,
    Trajectory,
    VectorEnv,
    VectorStep,
    Weights,
)


class FrameStack:
    """The last k frames of every slot, oldest first; frames before a stream's first are 0 (as the views give
    them).
    """

    def __init__(self, group: GroupSpec) -> None:
        shape = (len(group.slots), *group.policy_obs.shape)
        self.depth = group.frame_stack
        self.frames: Array = (
            np.zeros(shape, group.obs.dtype) if self.depth > 1 else np.zeros(0, group.obs.dtype)
        )

    def push(self, step: Step) -> Array:
        """Return the observation the policy sees, [S, *policy_obs]."""
        if self.depth == 1:
            return step.obs
        self.frames[:, :-1] = self.frames[:, 1:]
        if step.is_first.any():
            self.frames[step.is_first] = 0
        self.frames[:, -1] = step.obs
        return self.frames


@dataclass
class _Finals:
    """Observations that followed the last transitions of streams, as they came."""

    time: list[IntArray]
    slot: list[IntArray]
    obs: list[Array]
    legal: list[BoolArray]


class Recorder:
    """The rows of one policy group over one fragment, cut into a Trajectory at its end."""

    def __init__(self, group: GroupSpec, extra: tuple[ColumnSpec, ...], steps: int) -> None:
        slots = len(group.slots)
        self.group = group
        self.steps = steps
        self.columns: dict[str, Array] = {
            "obs": np.zeros((steps, slots, *group.obs.shape), group.obs.dtype),
            "action": np.zeros((steps, slots, *group.action.column.shape), group.action.column.dtype),
            "reward": np.zeros((steps, slots), np.float32),
            "terminated": np.zeros((steps, slots), np.bool_),
            "truncated": np.zeros((steps, slots), np.bool_),
        }
        for column in extra:
            self.columns[column.name] = np.zeros((steps, slots, *column.array.shape), column.array.dtype)
        self.extra = extra
        if group.masked:
            self.columns["legal"] = np.zeros((steps, slots, group.action.n), np.bool_)
            counts = np.array([slot.num_actions for slot in group.slots])
            self.own_actions: BoolArray = np.arange(group.action.n) < counts[:, None]  # [S, A]
        self.valid: BoolArray = np.zeros((steps, slots), np.bool_)
        self.episode: IntArray = np.zeros((steps, slots), np.int64)
        self.offset: IntArray = np.zeros((steps, slots), np.int64)
        self.next_offset: IntArray = np.zeros(slots, np.int64)
        self.finals = _Finals([], [], [], [])
        self.t = 0

    def decide(self, step: Step, action: Array, extras: Mapping[str, Array]) -> None:
        """Record the decisions taken at `step`, before the environment makes them."""
        t, columns = self.t, self.columns
        columns["obs"][t] = step.obs
        columns["action"][t] = action
        if self.group.masked:
            columns["legal"][t] = step.legal
        for column in self.extra:
            columns[column.name][t] = extras[column.name]
        self.episode[t] = step.episode_id
        self.offset[t] = np.where(step.is_first, 0, self.next_offset)
        self.next_offset = np.where(step.active, self.offset[t] + 1, self.next_offset)

    def outcome(self, step: Step) -> None:
        """Record what the environment made of them."""
        t, columns = self.t, self.columns
        columns["reward"][t] = step.reward
        columns["terminated"][t] = step.terminated
        columns["truncated"][t] = step.truncated
        self.valid[t] = step.valid
        if step.final_slots.size:
            self.finals.time.append(np.full(step.final_slots.shape, t, np.int64))
            self.finals.slot.append(step.final_slots.astype(np.int64))
            self.finals.obs.append(np.array(step.final_obs, copy=True))
            if self.group.masked:
                legal = step.final_legal
                self.finals.legal.append(
                    self.own_actions[step.final_slots] if legal is None else legal.copy()
                )
        self.t += 1

    def cut(
        self, writer: str, incarnation: int, version: tuple[int, int], env_steps: int
    ) -> Trajectory | None:
        """Return the recorded rows as a Trajectory (None if no slot acted) and start anew."""
        steps = self.t
        slots = len(self.group.slots)
        flat = np.flatnonzero(self.valid[:steps].T)  # [R] slot-major: s * T + t
        slot, time = np.divmod(flat, steps)
        source = time * slots + slot  # [R] into the [T * S] buffers
        key = slot * (2 * steps) + 2 * time
        columns = {name: _rows(buffer, steps)[source] for name, buffer in self.columns.items()}
        episode = _rows(self.episode, steps)[source]
        offset = _rows(self.offset, steps)[source]
        final = np.zeros(flat.shape, np.bool_)
        if self.finals.time:
            f_time, f_slot = np.concatenate(self.finals.time), np.concatenate(self.finals.slot)
            order = np.argsort(np.concatenate([key, f_slot * (2 * steps) + 2 * f_time + 1]), kind="stable")
            given: dict[str, Array] = {"obs": np.concatenate(self.finals.obs)}
            if self.group.masked:
                given["legal"] = np.concatenate(self.finals.legal)
            columns = {
                name: _weave(rows, given.get(name), f_time.size, order) for name, rows in columns.items()
            }
            slot = np.concatenate([slot, f_slot])[order]
            episode = np.concatenate([episode, self.episode[f_time, f_slot]])[order]
            offset = np.concatenate([offset, self.offset[f_time, f_slot] + 1])[order]
            final = np.concatenate([final, np.ones(f_time.shape, np.bool_)])[order]
        self.finals = _Finals([], [], [], [])
        self.t = 0
        if slot.size == 0:
            return None
        starts = np.flatnonzero(
            np.concatenate(
                [
                    [True],
                    (slot[1:] != slot[:-1]) | (episode[1:] != episode[:-1]) | (offset[1:] != offset[:-1] + 1),
                ]
            )
        )
        return Trajectory(
            policy_id=self.group.policy_id,
            writer=writer,
            incarnation=incarnation,
            weights=version,
            slot=slot[starts],
            episode=episode[starts],
            offset=offset[starts],
            length=np.diff(np.append(starts, slot.size)),
            columns={**columns, "final": final},
            env_steps=env_steps,
        )


def cleared(values: Array, is_first: BoolArray) -> Array:
    """Return a copy of per-slot `values` with 0 where a new stream begins: it has no past."""
    copy = np.array(values, copy=True)
    copy[is_first] = 0
    return copy


def _rows(buffer: Array, steps: int) -> Array:
    """View the first `steps` of a [T, S, ...] buffer as [steps * S, ...]."""
    part = buffer[:steps]
    return part.reshape(part.shape[0] * part.shape[1], *part.shape[2:])


def _weave(rows: Array, given: Array | None, finals: int, order: IntArray) -> Array:
    """Append `finals` final rows (zeros where not given) and put all rows in `order`."""
    tail = (
        np.zeros((finals, *rows.shape[1:]), rows.dtype)
        if given is None
        else given.astype(rows.dtype, copy=False)
    )
    return np.concatenate([rows, tail])[order]


@dataclass
class _Acting:
    """What one policy group carries from one decision to the next."""

    algorithm: Algorithm
    recorder: Recorder
    stack: FrameStack
    state: Any
    slot_params: dict[str, Array]
    prev_action: Array
    prev_reward: Array
    version: tuple[int, int] = (0, 0)


Acts = Callable[[Mapping[str, ActInput]], Mapping[str, tuple[Array, Mapping[str, Array]]]]
"""Chooses actions for all policy groups at once: policy id -> (actions, the algorithm's extra columns)."""


class Rollout:
    """Steps a vectorised environment with one algorithm per policy id; see the module docstring."""

    def __init__(
        self,
        env: VectorEnv,
        algorithms: Mapping[str, Algorithm],
        *,
        writer: str,
        incarnation: int,
        fragment_steps: int,
        seed: int,
        first_copy: int = 0,
        total_copies: int | None = None,
        mode: Mode = "explore",
    ) -> None:
        """Reset the environment.

        Args:
            env: owned by the rollout from here on; closed by `close`.
            algorithms: policy id -> algorithm that acts for it; must cover `env.groups`.
            writer: name of this actor, the same after a restart.
            incarnation: number that differs between restarts of this actor.
            fragment_steps: vector steps of one fragment.
            seed: seeds what is random in acting.
            first_copy: global number of this environment's copy 0, for exploration ladders.
            total_copies: environment copies in all actors; None: this environment's.
            mode: explore or greedy.
        """
        self.env = env
        self.writer, self.incarnation, self.mode = writer, incarnation, mode
        self.fragment_steps = fragment_steps
        self.rng = np.random.default_rng(seed)
        self.first_copy = first_copy
        self.total_copies = env.num_envs if total_copies is None else total_copies
        self.acting: dict[str, _Acting] = {}
        for policy_id, group in env.groups.items():
            algorithm = algorithms[policy_id]
            slots = len(group.slots)
            self.acting[policy_id] = _Acting(
                algorithm=algorithm,
                recorder=Recorder(group, algorithm.sample_spec().extra, fragment_steps),
                stack=FrameStack(group),
                state=algorithm.initial_state(slots),
                slot_params=self._slot_params(algorithm, group, 0.0),
                prev_action=np.zeros((slots, *group.action.column.shape), group.action.column.dtype),
                prev_reward=np.zeros(slots, np.float32),
            )
        self.acts: Acts | None = None
        """Who acts instead of the algorithms here, and keeps their state; None: nobody."""
        self.current: VectorStep = env.reset()

    def _slot_params(self, algorithm: Algorithm, group: GroupSpec, progress: float) -> dict[str, Array]:
        rank = np.array([self.first_copy + slot.env for slot in group.slots], np.int64)
        return algorithm.slot_params(progress, rank, self.total_copies)

    def load(self, weights: Weights) -> None:
        """Take new weights of one policy; call between two fragments."""
        acting = self.acting[weights.policy_id]
        acting.algorithm.load_weights(weights.flat)
        acting.version = weights.version
        acting.slot_params = self._slot_params(
            acting.algorithm, self.env.groups[weights.policy_id], weights.progress
        )

    def acts_with(self, versions: Mapping[str, tuple[int, int]], progress: float) -> None:
        """Hear which weights whoever acts instead has: the next fragment's are these or newer ones."""
        for policy_id, version in versions.items():
            self.acting[policy_id].version = version
        self.set_progress(progress)

    def set_progress(self, progress: float) -> None:
        """Tell every policy how much of the run is spent: exploration follows it."""
        for policy_id, acting in self.acting.items():
            acting.slot_params = self._slot_params(acting.algorithm, self.env.groups[policy_id], progress)

    def set_place(self, first_copy: int, total_copies: int) -> None:
        """Explore at another place of the ladder, from the next `load` or `set_progress` on."""
        self.first_copy, self.total_copies = first_copy, total_copies

    def set_hparams(self, values: Mapping[str, Any]) -> None:
        """Act with changed mutable hyper-parameters from the next `load` or `set_progress` on."""
        for acting in self.acting.values():
            acting.algorithm.set_hparams(values)

    def fragment(self) -> Fragment:
        """Make `fragment_steps` vector steps."""
        episodes: list[EpisodeEnd] = []
        env_steps = 0
        for acting in self.acting.values():
            acting.state = rested(acting.state)
        for _ in range(self.fragment_steps):
            actions = self._decide()
            after = self.env.step(actions)
            for policy_id, acting in self.acting.items():
                step = after.groups[policy_id]
                acting.recorder.outcome(step)
                acting.prev_action = cleared(actions[policy_id], step.is_first)
                acting.prev_reward = cleared(step.reward, step.is_first)
            episodes.extend(after.episodes)
            env_steps += after.env_steps
            self.current = after
        cuts = [
            a.recorder.cut(self.writer, self.incarnation, a.version, env_steps) for a in self.acting.values()
        ]
        return Fragment(tuple(c for c in cuts if c is not None), tuple(episodes), env_steps)

    def _decide(self) -> dict[str, Array]:
        """Choose the actions of every group, and record them."""
        inputs = {policy_id: self._inputs(policy_id) for policy_id in self.acting}
        elsewhere = None if self.acts is None else self.acts(inputs)
        actions: dict[str, Array] = {}
        for policy_id, acting in self.acting.items():
            if elsewhere is None:
                action, acting.state, extras = acting.algorithm.act(
                    inputs[policy_id], acting.state, self.mode
                )
            else:
                action, extras = elsewhere[policy_id]
            acting.recorder.decide(self.current.groups[policy_id], action, extras)
            actions[policy_id] = action
        return actions

    def _inputs(self, policy_id: str) -> ActInput:
        acting, step = self.acting[policy_id], self.current.groups[policy_id]
        return ActInput(
            obs=acting.stack.push(step),
            prev_action=acting.prev_action,
            prev_reward=acting.prev_reward,
            is_first=step.is_first,
            legal=step.legal,
            slot_params=acting.slot_params,
            rng=self.rng,
        )

    def close(self) -> None:
        """Close the environment."""
        self.env.close()

    def state(self) -> dict[str, Any] | None:
        """What `restore` needs to go on exactly (between two fragments); None: the environment cannot."""
        episodes = self.env.open_episodes()
        if episodes is None:
            return None
        groups = {
            policy_id: {
                "frames": a.stack.frames.copy(),
                "act_state": unclaimed(a.state),
                "prev_action": a.prev_action.copy(),
                "prev_reward": a.prev_reward.copy(),
                "next_offset": a.recorder.next_offset.copy(),
                "obs": np.array(self.current.groups[policy_id].obs, copy=True),
            }
            for policy_id, a in self.acting.items()
        }
        return {
            "episodes": [dict(vars(episode)) for episode in episodes],
            "groups": groups,
            "rng": self.rng.bit_generator.state,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken.

        Raises: EnvError: replaying the open episodes gives other observations than they gave before.
        """
        self.current = self.env.restore(tuple(OpenEpisode(**episode) for episode in state["episodes"]))
        for policy_id, saved in state["groups"].items():
            if not np.array_equal(saved["obs"], self.current.groups[policy_id].obs):
                raise EnvError(
                    "the open episodes, replayed from their seeds and actions, lead to other observations "
                    "than before: "
                    "the environment is not a function of its seed, so this run cannot go on exactly. "
                    "Resume without --local and with actors.in_flight=2; the open episodes are then cut."
                )
            acting = self.acting[policy_id]
            acting.stack.frames = saved["frames"].copy()
            acting.state = saved["act_state"]
            acting.prev_action = saved["prev_action"].copy()
            acting.prev_reward = saved["prev_reward"].copy()
            acting.recorder.next_offset = saved["next_offset"].copy()
        self.rng.bit_generator.state = state["rng"]
