"""Our environments as RLlib steps them: every copy opens our own door, so wrappers, frame stacks, seeds, step
limits, masks and metrics are the recipe's.

`SingleEnv` is a `gymnasium.Env` (one agent), `MultiEnv` RLlib's `MultiAgentEnv` (several; the policy of an
agent is the recipe's, spaces are padded as ours are). A door resets itself in the step that ends an episode;
RLlib asks for the reset later. So the new episode's first observation is kept until it does.

Departs from RLlib's habits: the `seed` that RLlib gives to `reset` is not used, every episode has its own
seed of the recipe's stream; finished episodes, with the environment's own metrics, are kept in `ENDED` until
`callbacks.py` takes them to the driver. RLlib 2.60 turns a truncation of all agents at once into a
termination if each is flagged by itself (`MultiAgentEpisode.add_env_step`); so only `__all__` is.

Dims: S slots of a group (agents: one copy), A actions, F ended streams.
"""

from __future__ import annotations

import itertools
import os
import traceback
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import ray
from ray.rllib.env.multi_agent_env import MultiAgentEnv

from seqrl_ray.envs.grouping import own_actions
from seqrl_ray.envs.make import make_env
from seqrl_ray.envs.seeds import EpisodeSeeds
from seqrl_ray.errors import EnvError
from seqrl_ray.loops.build import EPISODES
from seqrl_ray.loops.rollout import FrameStack
from seqrl_ray.recipe import Recipe
from seqrl_ray.rllib.spaces import action_space, observation_space, observe
from seqrl_ray.types import Array, GroupSpec
from seqrl_ray.types_env import EpisodeEnd, Step, VectorEnv, VectorStep

ENDED: list[dict[str, Any]] = []
"""Episodes that ended in this process and have not been reported yet; see `ended`."""

_COPIES = itertools.count()
"""Copies made in this process: RLlib does not tell the copies of one runner apart."""


def create(context: Any) -> SingleEnv | MultiEnv:
    """Make one environment copy; RLlib calls it in the process that steps it.

    Args:
        context: RLlib's EnvContext, with `recipe` (a Recipe), `session` (how often the run was taken up) and
            `errors` (name of the actor that hears of tracebacks, or None).
    """
    recipe: Recipe = context["recipe"]
    tell = _teller(context["errors"])
    # A runner that Ray has started anew must not play the dead one's episodes once more.
    again = context["errors"] is not None and _started_anew()
    life = os.getpid() if again else 0
    key = (EPISODES, int(context.worker_index), int(context["session"]), life, next(_COPIES))
    door = _told(
        tell,
        lambda: make_env(
            recipe.env,
            recipe.policies,
            num_envs=1,
            seeds=EpisodeSeeds(recipe.seed, *key),
            folder=Path(recipe.folder) if recipe.folder else None,
        ),
    )
    return SingleEnv(door, tell) if single_agent(door.groups) else MultiEnv(door, tell)


def _started_anew() -> bool:
    """Return whether Ray has restarted this process's actor."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a property that Ray itself asks here
        return bool(ray.get_runtime_context().was_current_actor_reconstructed)


def single_agent(groups: Mapping[str, GroupSpec]) -> bool:
    """Return whether one environment copy has one agent: then RLlib runs it as a `gymnasium.Env`."""
    return sum(slot.env == 0 for group in groups.values() for slot in group.slots) == 1


def take_ended() -> list[dict[str, Any]]:
    """Return, and forget, the episodes that ended in this process."""
    taken = list(ENDED)
    ENDED.clear()
    return taken


def _note(ends: tuple[EpisodeEnd, ...]) -> None:
    for end in ends:
        ENDED.append({"seed": end.seed, "steps": end.steps, "metrics": dict(end.metrics)})


Tell = Callable[[str], None]


def _teller(name: str | None) -> Tell | None:
    """Return what sends a traceback to the driver: RLlib logs it and ends the process, which says nothing."""
    if name is None:
        return None
    box = ray.get_actor(name)

    def tell(text: str) -> None:
        ray.get(box.tell.remote(text), timeout=30.0)

    return tell


def _told(tell: Tell | None, call: Callable[[], Any]) -> Any:
    """Call `call`; the driver hears of what it raises before RLlib does."""
    try:
        return call()
    except Exception:
        if tell is not None:
            tell(traceback.format_exc())
        raise


class _View:
    """What the policy of one group sees, as RLlib is handed it."""

    def __init__(self, group: GroupSpec) -> None:
        self.group = group
        self._stack = FrameStack(group)
        self._own = own_actions(group) if group.masked else None

    def next(self, step: Step) -> Array:
        """Return what is acted on next, [S, ...]; call once per step, after `finals`."""
        return observe(self.group, self._stack.push(step), step.legal)

    def finals(self, step: Step) -> dict[int, Array]:
        """Return slot -> the observation its stream ended with."""
        slots = step.final_slots
        if not slots.size:
            return {}
        obs = step.final_obs
        if self.group.frame_stack > 1:
            obs = np.concatenate([self._stack.frames[slots][:, 1:], obs[:, None]], axis=1)  # [F, frames, ...]
        legal = step.final_legal
        if self._own is not None and legal is None:
            legal = self._own[slots]
        return dict(zip(slots.tolist(), observe(self.group, obs, legal), strict=True))


class SingleEnv(gymnasium.Env[Array, Any]):
    """One copy with one agent."""

    def __init__(self, door: VectorEnv, tell: Tell | None = None) -> None:
        ((self._policy_id, group),) = door.groups.items()
        self._door, self._tell, self._view = door, tell, _View(group)
        self.observation_space = observation_space(group)
        self.action_space = action_space(group)
        self._column = group.action.column
        self._obs: Array | None = None
        self._opened = False
        """A new episode stands open and nobody has acted in it."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Return the first observation of the next episode; its seed is the recipe's, `seed` is not used."""
        if not self._opened:
            step: VectorStep = _told(self._tell, self._door.reset)
            self._obs, self._opened = self._view.next(step.groups[self._policy_id])[0], True
        assert self._obs is not None
        return self._obs, {}

    def step(self, action: Any) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Make one step."""
        chosen = np.asarray(action, self._column.dtype).reshape(1, *self._column.shape)
        after: VectorStep = _told(self._tell, lambda: self._door.step({self._policy_id: chosen}))
        step = after.groups[self._policy_id]
        _note(after.episodes)
        finals = self._view.finals(step)
        self._obs, self._opened = self._view.next(step)[0], bool(finals)
        seen = finals.get(0, self._obs)
        return seen, float(step.reward[0]), bool(step.terminated[0]), bool(step.truncated[0]), {}

    def close(self) -> None:
        """Close the door."""
        self._door.close()


class MultiEnv(MultiAgentEnv):
    """One copy with several agents, by the names they have in the recipe."""

    def __init__(self, door: VectorEnv, tell: Tell | None = None) -> None:
        self._door, self._tell = door, tell
        self._views = {policy_id: _View(group) for policy_id, group in door.groups.items()}
        self._agents = {
            policy_id: [slot.agent for slot in group.slots] for policy_id, group in door.groups.items()
        }
        self.possible_agents = [agent for agents in self._agents.values() for agent in agents]
        self.agents = list(self.possible_agents)
        self.observation_spaces, self.action_spaces = {}, {}
        for policy_id, group in door.groups.items():
            seen, done = observation_space(group), action_space(group)
            self.observation_spaces.update(dict.fromkeys(self._agents[policy_id], seen))
            self.action_spaces.update(dict.fromkeys(self._agents[policy_id], done))
        super().__init__()  # type: ignore[no-untyped-call]
        self._obs: dict[str, Array] = {}
        self._gone: set[str] = set()
        self._opened = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[Any, Any], dict[Any, Any]]:
        """Return the first observations of the next episode; its seed is the recipe's, `seed` is not used."""
        if not self._opened:
            step: VectorStep = _told(self._tell, self._door.reset)
            self._open({p: self._views[p].next(s) for p, s in step.groups.items()}, step)
        self.agents = list(self._obs)
        return dict(self._obs), {}

    def step(  # type: ignore[override]  # MultiAgentEnv itself departs from gymnasium.Env here
        self, action_dict: dict[Any, Any]
    ) -> tuple[dict[Any, Any], dict[Any, Any], dict[Any, Any], dict[Any, Any], dict[Any, Any]]:
        """Make one step with the actions of the agents that are there."""
        self._opened = False
        after: VectorStep = _told(self._tell, lambda: self._door.step(self._joint(action_dict)))
        _note(after.episodes)
        over, cut = bool(after.episodes), False
        obs: dict[str, Array] = {}
        rewards: dict[str, float] = {}
        terminated: dict[str, bool] = {}
        truncated: dict[str, bool] = {}
        fresh: dict[str, Array] = {}
        for policy_id, step in after.groups.items():
            finals = self._views[policy_id].finals(step)
            rows = fresh[policy_id] = self._views[policy_id].next(step)
            for slot, agent in enumerate(self._agents[policy_id]):
                if step.valid[slot]:
                    rewards[agent] = float(step.reward[slot])
                    obs[agent] = finals.get(slot, rows[slot])
                if slot in finals:
                    self._gone.add(agent)
                    if step.terminated[slot]:
                        terminated[agent] = True
                    elif over:
                        cut = True  # said by `__all__` alone; see the module docstring
                    else:
                        truncated[agent] = True
                if step.active[slot] and not over and (slot in finals or not step.valid[slot]):
                    self._enter(agent, rows[slot], obs)
        terminated["__all__"], truncated["__all__"] = over and not cut, cut
        if over:
            self._open(fresh, after)
        else:
            self.agents = [
                agent
                for policy_id, step in after.groups.items()
                for slot, agent in enumerate(self._agents[policy_id])
                if step.active[slot]
            ]
        return obs, rewards, terminated, truncated, {}

    def close(self) -> None:
        """Close the door."""
        self._door.close()

    def _joint(self, action_dict: Mapping[str, Any]) -> dict[str, Array]:
        """Return policy id -> actions of all slots; 0 for who is not there."""
        joint: dict[str, Array] = {}
        for policy_id, group in self._door.groups.items():
            column = group.action.column
            actions = joint[policy_id] = np.zeros((len(group.slots), *column.shape), column.dtype)
            for slot, agent in enumerate(self._agents[policy_id]):
                if agent in action_dict:
                    actions[slot] = action_dict[agent]
        return joint

    def _open(self, rows: Mapping[str, Array], step: VectorStep) -> None:
        """Keep the first observations of a new episode until RLlib asks for them."""
        self._obs = {
            agent: rows[policy_id][slot]
            for policy_id, s in step.groups.items()
            for slot, agent in enumerate(self._agents[policy_id])
            if s.active[slot]
        }
        self._gone, self._opened = set(), True

    def _enter(self, agent: str, row: Array, obs: dict[str, Array]) -> None:
        """Let an agent in during an episode.

        Raises: EnvError: it had been there and gone; an agent of RLlib's lives once in an episode.
        """
        if agent in self._gone:
            error = EnvError(
                f"agent {agent!r} came back within an episode: RLlib keeps one life of an agent per episode "
                "and its two would be joined. Give it a new name when it comes back, or choose an algorithm "
                "without rllib:."
            )
            if self._tell is not None:
                self._tell(f"{type(error).__name__}: {error}")
            raise error
        obs[agent] = row
