"""The PettingZoo door: E copies of any parallel environment, its agents dealt to policy groups.

Source: the PettingZoo parallel API (https://pettingzoo.farama.org/api/parallel/). Departs from it: an agent
may come back within an episode (a new stream), and may leave without a last observation.

What happens to an agent's slot:
- its stream ends when the environment says terminated or truncated, or when it is gone from `env.agents`;
gone without
  a word means what the recipe's `departure` says;
- its last observation is the one it is given as it leaves, else the last it saw;
- it is not active while it is away; when it (re)appears in `env.agents` it opens a new stream;
- an episode is over when `env.agents` is empty; the next one opens in the same step.

Masks: a Dict observation {"observation", mask_key}, or `infos[agent][mask_key]` if the first reset has it.
`legal` of an inactive slot holds all its own actions. Lifetime of `Step.obs`: untouched during the next
`step`, overwritten by the one after.

Dims: E environment copies, N agents of a group, S = E * N slots, A actions, F ended streams, T steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from seqrl_ray.envs.grouping import AgentInfo, agents_of, assign, fill_row
from seqrl_ray.envs.loading import check_kwargs, load_callable
from seqrl_ray.envs.replaying import digest, in_copy_order, not_deterministic
from seqrl_ray.envs.slots import GroupArrays
from seqrl_ray.envs.spaces import (
    OBSERVATION_KEY,
    ActionCodec,
    ObsCodec,
    action_codec,
    given_mask,
    obs_codec,
    split_mask,
)
from seqrl_ray.errors import EnvError
from seqrl_ray.recipe_env import PettingZooSettings, PolicySettings
from seqrl_ray.types import Array, GroupSpec
from seqrl_ray.types_env import EpisodeEnd, OpenEpisode, SeedStream, VectorStep


@dataclass(frozen=True)
class _Place:
    """Where an agent of one copy stands: its group, and its slot there."""

    group: str
    slot: int


@dataclass
class _Copy:
    """One environment copy and its open episode."""

    env: Any
    index: int = -1
    seed: int = 0
    steps: int = 0
    returns: dict[str, float] = field(default_factory=dict)
    """Agent -> summed reward, of the agents that took part."""
    live: tuple[str, ...] = ()
    """Agents that must act now, in the environment's order."""
    log: dict[str, list[Array]] = field(default_factory=dict)
    """Policy id -> the actions so far, each [N, ...]."""
    streams: dict[str, Array] = field(default_factory=dict)
    """Policy id -> episode ids of the copy's slots as the episode began, [N]."""


class PettingZooEnv:
    """E copies of a PettingZoo parallel environment as a `VectorEnv`."""

    def __init__(
        self,
        settings: PettingZooSettings,
        policies: Mapping[str, PolicySettings],
        *,
        num_envs: int,
        seeds: SeedStream,
        folder: Path | None = None,
    ) -> None:
        """Make the copies.

        Copy 0 is reset once here, with seed 0, to see whether its infos carry masks.

        Args:
            settings: the `[env]` table.
            policies: policy id -> which agents it drives.
            num_envs: E, at least 1.
            seeds: gives each episode's seed.
            folder: where the recipe stands; the module may be beside it.
        Raises: EnvError: the environment cannot be found, made, or stored. RecipeError: agents and policies
            that do
            not fit.
        """
        self._settings, self._seeds = settings, seeds
        target = load_callable(settings.id, folder)
        check_kwargs(settings.id, target, settings.kwargs)
        self._copies = [_Copy(target(**settings.kwargs)) for _ in range(num_envs)]
        first = self._copies[0].env
        agents = self._agents(first)
        _, infos = first.reset(seed=0)
        self._mask_in_obs: dict[str, bool] = {}
        self._masked: dict[str, bool] = {}
        self._obs: dict[str, ObsCodec] = {}
        self._actions: dict[str, ActionCodec] = {}
        told = []
        for agent in agents:
            where = f"{settings.id}, agent {agent!r}"
            space, in_obs = split_mask(first.observation_space(agent), settings.mask_key)
            self._mask_in_obs[agent] = in_obs
            self._obs[agent] = obs_codec(space, where)
            self._actions[agent] = action_codec(first.action_space(agent), where)
            spec = self._actions[agent].spec
            in_info = any(settings.mask_key in info for info in infos.values())
            self._masked[agent] = spec.kind == "discrete" and (in_obs or in_info)
            told.append(AgentInfo(agent, self._obs[agent].spec, spec, masked=self._masked[agent]))
        self._groups = assign(told, policies, num_envs)
        self._states = {policy_id: GroupArrays(group) for policy_id, group in self._groups.items()}
        self._places: list[dict[str, _Place]] = [{} for _ in range(num_envs)]
        for policy_id, group in self._groups.items():
            for number, slot in enumerate(group.slots):
                self._places[slot.env][slot.agent] = _Place(policy_id, number)

    @property
    def groups(self) -> Mapping[str, GroupSpec]:
        return self._groups

    @property
    def num_envs(self) -> int:
        return len(self._places)

    def reset(self) -> VectorStep:
        """Open a new episode in every copy; running ones are dropped."""
        self._turn()
        for e in range(self.num_envs):
            self._begin(e)
        return self._vector_step((), 0)

    def step(self, actions: Mapping[str, Array]) -> VectorStep:
        """Step every copy, and open a new episode where one ended.

        Args:
            actions: policy id -> [S] int64 or [S, *action] float32; those of inactive slots are ignored.
        Raises: EnvError: actions of another shape or out of range, or an environment that breaks the parallel
            API.
        """
        handed = self._handed(actions)
        self._turn()
        episodes = []
        for e, copy in enumerate(self._copies):
            if self._settings.restorable:
                self._record(e, actions)
            self._advance(e, {agent: handed[agent][e] for agent in copy.live})
            if not copy.live:
                episodes.append(self._end(e))
                self._begin(e)
        return self._vector_step(tuple(episodes), self.num_envs)

    def open_episodes(self) -> tuple[OpenEpisode, ...] | None:
        if not self._settings.restorable:
            return None
        return tuple(
            OpenEpisode(
                env=e,
                seed=copy.seed,
                index=copy.index,
                actions={policy_id: self._logged(policy_id, copy) for policy_id in self._groups},
                streams=dict(copy.streams),
                digest=self._digest(e),
            )
            for e, copy in enumerate(self._copies)
        )

    def restore(self, episodes: tuple[OpenEpisode, ...]) -> VectorStep:
        """Rebuild open episodes by replaying them.

        Returns: the step that was current, without its transition (`valid` False): it was delivered before.
        Raises: EnvError: another number of copies, or a replay that leads elsewhere (the environment is not a
            function of seed and actions); `reset` then goes on with fresh episodes.
        """
        ordered = in_copy_order(episodes, self.num_envs)
        for episode in ordered:  # first of all: ids go on even if a replay fails
            self._copies[episode.env].index = episode.index
            for policy_id, state in self._states.items():
                state.episode_id[self._slots(policy_id, episode.env)] = episode.streams[policy_id]
        self._turn()
        for episode in ordered:
            self._replay(episode)
        for state in self._states.values():
            is_first = state.is_first
            state.clear()
            state.is_first = is_first
        return self._vector_step((), 0)

    def close(self) -> None:
        """Close every copy; a second call does nothing."""
        for copy in self._copies:
            copy.env.close()
        self._copies = []

    def _begin(self, e: int) -> None:
        """Open the next episode of copy `e`."""
        copy = self._copies[e]
        copy.index += 1
        copy.seed = self._seeds(e, copy.index)
        copy.streams = {
            policy_id: state.episode_id[self._slots(policy_id, e)].copy()
            for policy_id, state in self._states.items()
        }
        self._open(e)

    def _open(self, e: int) -> None:
        copy = self._copies[e]
        for policy_id, state in self._states.items():
            state.empty(self._slots(policy_id, e))
        copy.steps = 0
        copy.returns = {}
        copy.live = ()
        copy.log = {policy_id: [] for policy_id in self._groups}
        observations, infos = copy.env.reset(seed=copy.seed)
        self._admit(e, observations, infos)
        if not copy.live:
            raise EnvError(
                f"{self._settings.id}: reset(seed={copy.seed}) left env.agents empty: the episode would be "
                "over before it began. Put the agents that act first into env.agents in reset()."
            )

    def _advance(self, e: int, actions: dict[str, Any]) -> None:
        """Step copy `e`: deliver transitions, end streams, admit who is there now."""
        copy = self._copies[e]
        observations, rewards, terminations, truncations, infos = copy.env.step(actions)
        copy.steps += 1
        present = set(copy.env.agents)
        staying = []
        for agent in copy.live:
            state, slot = self._at(e, agent)
            reward = float(rewards.get(agent, 0.0))
            state.reward[slot] = reward
            state.valid[slot] = True
            copy.returns[agent] += reward
            terminated, truncated = bool(terminations.get(agent)), bool(truncations.get(agent))
            if (terminated or truncated) and agent in present:
                raise EnvError(
                    f"{self._settings.id}: agent {agent!r} is terminated or truncated and still in "
                    "env.agents: it cannot be told whether it acts on. Remove it from env.agents in the step "
                    "in which it ends."
                )
            if agent in present:
                staying.append(agent)
                continue
            if not (terminated or truncated):
                terminated = self._settings.departure == "terminated"
            state.terminated[slot] = terminated
            state.truncated[slot] = not terminated
            if observations.get(agent) is not None:
                self._write(e, agent, observations, infos)
            state.leave(slot)
        copy.live = tuple(staying)
        self._admit(e, observations, infos)

    def _admit(self, e: int, observations: Mapping[str, Any], infos: Mapping[str, Any]) -> None:
        """Write what every present agent sees; those who were not live open a new stream."""
        copy = self._copies[e]
        before = set(copy.live)
        copy.live = tuple(copy.env.agents)
        for agent in copy.live:
            if observations.get(agent) is None:
                raise EnvError(
                    f"{self._settings.id}: agent {agent!r} is in env.agents but has no observation: it "
                    "cannot act. Give every agent in env.agents an observation in each reset() and step()."
                )
            if agent not in before:
                if agent not in self._places[e]:
                    raise EnvError(
                        f"{self._settings.id}: agent {agent!r} is in env.agents but not in possible_agents "
                        f"({', '.join(self._places[e])}): no slot was kept for it. List it there."
                    )
                state, slot = self._at(e, agent)
                state.enter(slot)
                copy.returns.setdefault(agent, 0.0)
            self._write(e, agent, observations, infos)

    def _write(self, e: int, agent: str, observations: Mapping[str, Any], infos: Mapping[str, Any]) -> None:
        state, slot = self._at(e, agent)
        obs = observations[agent]
        seen = self._obs[agent].encode(obs[OBSERVATION_KEY] if self._mask_in_obs[agent] else obs)
        fill_row(state.rows, slot, np.asarray(seen))
        if state.legal is not None and self._masked[agent]:
            beside = obs if self._mask_in_obs[agent] else infos.get(agent, {})
            state.legal[slot, : self._actions[agent].spec.n] = given_mask(
                beside, self._settings.mask_key, f"{self._settings.id}, agent {agent!r}"
            )

    def _end(self, e: int) -> EpisodeEnd:
        """Close the episode of copy `e`; all its slots are inactive already."""
        copy = self._copies[e]
        totals = copy.returns
        metrics = {"return": sum(totals.values()) / len(totals), "return_total": sum(totals.values())}
        if len(self._groups) > 1:
            for policy_id, group in self._groups.items():
                mine = [totals[agent] for agent in agents_of(group) if agent in totals]
                if mine:
                    metrics[f"return_{policy_id}"] = sum(mine) / len(mine)
        return EpisodeEnd(e, copy.seed, copy.steps, metrics)

    def _replay(self, episode: OpenEpisode) -> None:
        e, copy = episode.env, self._copies[episode.env]
        copy.seed, copy.streams = episode.seed, dict(episode.streams)
        self._open(e)
        steps = len(next(iter(episode.actions.values())))
        for t in range(steps):
            for policy_id, state in self._states.items():
                state.is_first[self._slots(policy_id, e)] = False
            joint = {policy_id: actions[t] for policy_id, actions in episode.actions.items()}  # [N, ...]
            for policy_id, action in joint.items():
                copy.log[policy_id].append(action)
            handed = {}
            for agent in copy.live:
                place = self._places[e][agent]
                handed[agent] = self._actions[agent].hand(
                    joint[place.group][[place.slot - e * self._states[place.group].agents]]
                )[0]
            self._advance(e, handed)
            if not copy.live:
                raise not_deterministic(self._settings.id, e, episode.seed, f"it ended after {t + 1} steps")
        if episode.digest not in ("", self._digest(e)):
            raise not_deterministic(self._settings.id, e, episode.seed, "its observations are others")

    def _agents(self, env: Any) -> list[str]:
        agents = getattr(env, "possible_agents", None)
        if not agents or not callable(getattr(env, "observation_space", None)):
            raise EnvError(
                f"env.id={self._settings.id!r} returned a {type(env).__name__} without possible_agents and "
                "observation_space(agent): it is not a PettingZoo ParallelEnv that can be stepped here. List "
                "all agents "
                'that may ever act in possible_agents, or set env.kind="gym" for a Gymnasium environment.'
            )
        return list(agents)

    def _handed(self, actions: Mapping[str, Array]) -> dict[str, list[Any]]:
        """Return agent -> what each copy's `step` is given for it."""
        handed: dict[str, list[Any]] = {}
        for policy_id, state in self._states.items():
            chosen = actions[policy_id]
            shape = (state.active.size, *state.spec.action.shape)
            if chosen.shape != shape:
                raise EnvError(
                    f"actions of policy {policy_id!r} have shape {chosen.shape}, not {shape}: they cannot be "
                    "dealt to the agents. Give one action per slot, of inactive slots too (they are ignored)."
                )
            for n, agent in enumerate(agents_of(state.spec)):
                mine, acts = chosen[n :: state.agents], state.active[n :: state.agents]  # [E, ...], [E]
                self._actions[agent].check(mine[acts])
                handed[agent] = self._actions[agent].hand(mine)
        return handed

    def _record(self, e: int, actions: Mapping[str, Array]) -> None:
        for policy_id, log in self._copies[e].log.items():
            log.append(np.array(actions[policy_id][self._slots(policy_id, e)]))

    def _logged(self, policy_id: str, copy: _Copy) -> Array:
        state = self._states[policy_id]
        column = state.spec.action.column
        shape = (-1, state.agents, *column.shape)
        return np.array(copy.log[policy_id], column.dtype).reshape(shape)  # [T, N, *action]

    def _slots(self, policy_id: str, e: int) -> slice:
        agents = self._states[policy_id].agents
        return slice(e * agents, (e + 1) * agents)

    def _at(self, e: int, agent: str) -> tuple[GroupArrays, int]:
        place = self._places[e][agent]
        return self._states[place.group], place.slot

    def _digest(self, e: int) -> str:
        parts = []
        for policy_id, state in self._states.items():
            slots = self._slots(policy_id, e)
            parts += [state.active[slots], state.rows[slots][state.active[slots]]]
        return digest(*parts)

    def _turn(self) -> None:
        for state in self._states.values():
            state.turn()

    def _vector_step(self, episodes: tuple[EpisodeEnd, ...], env_steps: int) -> VectorStep:
        groups = {policy_id: state.step() for policy_id, state in self._states.items()}
        return VectorStep(groups, episodes, env_steps)
