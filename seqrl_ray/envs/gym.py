"""The Gymnasium door: E copies of one environment in one process, stepped by a light loop.

Source: the Gymnasium API (https://gymnasium.farama.org). Departs from its `SyncVectorEnv`: every episode has
its own seed from the seed stream; autoreset is same-step, so no step is ever a reset; no checker runs on the
hot path (`seqrl check` runs ours once); observations are written once, into one array, in the type they are
stored in.

Metrics of an environment's own are added to an episode's; `seqrl_ray.envs.own_metrics` says how.

Lifetime of observations: `Step.obs` is one of two buffers used in turn. It stays untouched during the next
`step` and is overwritten by the one after; copy it to keep it longer. Every other array is the caller's to
keep.

Dims: E environment copies = S slots, A actions, F ended episodes, T steps.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np

from seqrl_ray.envs.grouping import AGENT, AgentInfo, assign
from seqrl_ray.envs.loading import check_kwargs, load_callable
from seqrl_ray.envs.own_metrics import own_metrics, promised
from seqrl_ray.envs.replaying import digest, in_copy_order, not_deterministic
from seqrl_ray.envs.spaces import OBSERVATION_KEY, action_codec, given_mask, obs_codec, split_mask
from seqrl_ray.errors import EnvError, did_you_mean
from seqrl_ray.recipe_env import GymSettings, PolicySettings
from seqrl_ray.types import Array, GroupSpec
from seqrl_ray.types_env import EpisodeEnd, OpenEpisode, SeedStream, Step, VectorStep

_CALLABLE = re.compile(r"^[\w.]+:[\w.]+$")


class _End(NamedTuple):
    """An episode that ended in this step, with what the environment gave last."""

    env: int
    terminated: bool
    obs: Any
    info: Any


class GymEnv:
    """E copies of a Gymnasium environment as a `VectorEnv` with one group; its agent is called "agent"."""

    def __init__(
        self,
        settings: GymSettings,
        policies: Mapping[str, PolicySettings],
        *,
        num_envs: int,
        seeds: SeedStream,
        folder: Path | None = None,
    ) -> None:
        """Make the copies.

        Copy 0 is reset once here, with seed 0, to see whether its info carries a mask.

        Args:
            settings: the `[env]` table.
            policies: policy id -> settings; one of them must match "agent", and no other may stand there.
            num_envs: E, at least 1.
            seeds: gives each episode's seed.
            folder: where the recipe stands; a `module:callable` may be beside it.
        Raises: EnvError: the environment cannot be found, made, or stored. RecipeError: policies that do not
            fit.
        """
        self._settings, self._seeds = settings, seeds
        make = _maker(settings, folder)
        self._envs = [make() for _ in range(num_envs)]
        first = self._envs[0]
        lacks = [name for name in ("observation_space", "action_space") if not hasattr(first, name)]
        if lacks:
            raise EnvError(
                f"env.id={settings.id!r} gives a {type(first).__name__} without {', '.join(lacks)}: nothing "
                "can be sized for it. Set what is missing in the class or its __init__."
            )
        space, self._mask_in_obs = split_mask(first.observation_space, settings.mask_key)
        codec = obs_codec(space, settings.id)
        self._encode = codec.encode
        self._action = action_codec(first.action_space, settings.id)
        self._promised = promised(first.unwrapped)
        discrete = self._action.spec.kind == "discrete"
        self._masked = discrete and (self._mask_in_obs or settings.mask_key in first.reset(seed=0)[1])
        agent = AgentInfo(AGENT, codec.spec, self._action.spec, masked=self._masked)
        self._groups = assign([agent], policies, num_envs)
        (self._policy_id,) = self._groups
        spec = self._groups[self._policy_id].obs
        self._buffers = [np.zeros((num_envs, *spec.shape), spec.dtype) for _ in range(2)]
        self._rows = self._buffers[0]
        self._legal = np.ones((num_envs, self._action.spec.n), np.bool_)  # [E, A]
        self._index = [-1] * num_envs
        self._seed = [0] * num_envs
        self._return = [0.0] * num_envs
        self._log: list[list[Any]] = [[] for _ in range(num_envs)]  # actions of the open episodes
        self._tick = 0
        self._opened = [0] * num_envs  # tick at which the open episode began
        self._always = np.ones(num_envs, np.bool_)
        self._never = np.zeros(num_envs, np.bool_)
        self._always.flags.writeable = self._never.flags.writeable = False

    @property
    def groups(self) -> Mapping[str, GroupSpec]:
        return self._groups

    @property
    def num_envs(self) -> int:
        return len(self._index)

    def reset(self) -> VectorStep:
        """Open a new episode in every copy; running ones are dropped."""
        self._turn()
        for env in range(self.num_envs):
            self._begin(env)
        return self._opening()

    def step(self, actions: Mapping[str, Array]) -> VectorStep:
        """Step every copy, and open a new episode where one ended.

        Args:
            actions: policy id -> [E] int64 in [0, A), or [E, *action] float32 (clipped to its bounds).
        Raises: EnvError: actions of another shape, or out of range.
        """
        chosen = actions[self._policy_id]
        handed = self._handed(chosen)
        self._turn()
        self._tick += 1
        rows, encode, returns = self._rows, self._encode, self._return
        rewards: list[Any] = [0.0] * len(handed)
        ended: list[_End] = []
        for e, env in enumerate(self._envs):
            obs, reward, terminated, truncated, info = env.step(handed[e])
            rewards[e] = reward
            returns[e] += reward  # type: ignore[operator]  # Gymnasium says SupportsFloat
            if terminated or truncated:
                ended.append(_End(e, bool(terminated), obs, info))
            elif self._masked:
                self._write_masked(e, obs, info)
            else:
                rows[e] = encode(obs)
        if self._settings.restorable:
            for log, action in zip(self._log, chosen.tolist(), strict=True):
                log.append(action)
        return self._stepped(rewards, ended)

    def open_episodes(self) -> tuple[OpenEpisode, ...] | None:
        if not self._settings.restorable:
            return None
        return tuple(
            OpenEpisode(
                env=e,
                seed=self._seed[e],
                index=self._index[e],
                actions={self._policy_id: self._logged(e)},
                digest=digest(self._rows[e]),
            )
            for e in range(self.num_envs)
        )

    def restore(self, episodes: tuple[OpenEpisode, ...]) -> VectorStep:
        """Rebuild open episodes by replaying them.

        Returns: the step that was current, without its transition (`valid` False): it was delivered before.
        Raises: EnvError: another number of copies, or a replay that leads elsewhere (the environment is not a
            function of seed and actions); `reset` then goes on with fresh episodes.
        """
        self._turn()
        ordered = in_copy_order(episodes, self.num_envs)
        self._index = [episode.index for episode in ordered]  # first of all: ids go on even if a replay fails
        for episode in ordered:
            self._replay(episode.env, episode)
        return self._opening()

    def close(self) -> None:
        """Close every copy; a second call does nothing."""
        for env in self._envs:
            env.close()  # type: ignore[no-untyped-call]
        self._envs = []

    def _logged(self, e: int) -> Array:
        column = self._action.spec.column
        return np.array(self._log[e], column.dtype).reshape(-1, 1, *column.shape)  # [T, 1, *action]

    def _turn(self) -> None:
        self._rows = self._buffers[1] if self._rows is self._buffers[0] else self._buffers[0]
        if self._masked:
            self._legal = np.empty_like(self._legal)

    def _handed(self, actions: Array) -> list[Any]:
        """Return what each copy's `step` is called with."""
        spec = self._action.spec
        if actions.shape != (self.num_envs, *spec.shape):
            raise EnvError(
                f"actions of policy {self._policy_id!r} have shape {actions.shape}, not "
                f"{(self.num_envs, *spec.shape)}: they cannot be dealt to the copies. Give one action per "
                "slot."
            )
        self._action.check(actions)
        return self._action.hand(actions)

    def _begin(self, e: int) -> None:
        """Open the next episode of copy `e` and write its first observation."""
        self._index[e] += 1
        self._seed[e] = self._seeds(e, self._index[e])
        self._open(e)

    def _open(self, e: int) -> None:
        self._return[e] = 0.0
        self._log[e] = []
        self._opened[e] = self._tick
        obs, info = self._envs[e].reset(seed=self._seed[e])
        self._write(e, obs, info)

    def _write(self, e: int, obs: Any, info: Any) -> None:
        if self._masked:
            self._write_masked(e, obs, info)
        else:
            self._rows[e] = self._encode(obs)

    def _write_masked(self, e: int, obs: Any, info: Any) -> None:
        self._rows[e] = self._encode(obs[OBSERVATION_KEY] if self._mask_in_obs else obs)
        self._legal[e] = self._mask(obs, info)

    def _mask(self, obs: Any, info: Any) -> Array:
        return given_mask(obs if self._mask_in_obs else info, self._settings.mask_key, self._settings.id)

    def _replay(self, e: int, episode: OpenEpisode) -> None:
        self._seed[e] = episode.seed
        self._open(e)
        actions = episode.actions[self._policy_id]  # [T, 1, ...]
        for t, action in enumerate(actions[:, 0]):
            handed = self._handed(np.broadcast_to(action, (self.num_envs, *action.shape)))[e]
            obs, reward, terminated, truncated, info = self._envs[e].step(handed)
            if terminated or truncated:
                raise not_deterministic(self._settings.id, e, episode.seed, f"it ended after {t + 1} steps")
            self._return[e] += float(reward)
            self._write(e, obs, info)
        self._opened[e] = self._tick - len(actions)
        self._log[e] = actions[:, 0].tolist()
        if episode.digest not in ("", digest(self._rows[e])):
            raise not_deterministic(self._settings.id, e, episode.seed, "its observation is another")

    def _opening(self) -> VectorStep:
        """Return the current observations as a step that made no transition."""
        is_first = np.array(self._opened) == self._tick
        step = self._step(np.zeros(self.num_envs, np.float32), self._never, is_first, [])
        return VectorStep({self._policy_id: replace(step, valid=self._never)})

    def _stepped(self, rewards: list[Any], ended: list[_End]) -> VectorStep:
        """Open new episodes where one ended, and return what the step did."""
        terminated, is_first = np.zeros((2, self.num_envs), np.bool_)
        episodes = []
        for end in ended:
            e = end.env
            terminated[e], is_first[e] = end.terminated, True
            own = own_metrics(end.info, self._promised, self._settings.id)
            steps, metrics = self._tick - self._opened[e], {"return": float(self._return[e]), **own}
            episodes.append(EpisodeEnd(e, self._seed[e], steps, metrics))
            self._begin(e)
        step = self._step(np.array(rewards, np.float32), terminated, is_first, ended)
        return VectorStep({self._policy_id: step}, tuple(episodes), self.num_envs)

    def _step(self, reward: Array, terminated: Array, is_first: Array, ended: list[_End]) -> Step:
        final_obs = np.empty((len(ended), *self._rows.shape[1:]), self._rows.dtype)  # [F, *obs]
        final_legal = np.ones((len(ended), self._action.spec.n), np.bool_) if self._masked else None  # [F, A]
        for f, end in enumerate(ended):
            final_obs[f] = self._encode(end.obs[OBSERVATION_KEY] if self._mask_in_obs else end.obs)
            if final_legal is not None:
                final_legal[f] = self._mask(end.obs, end.info)
        return Step(
            obs=self._rows,
            reward=reward,
            terminated=terminated,
            truncated=is_first & ~terminated if ended else self._never,
            valid=self._always,
            active=self._always,
            is_first=is_first,
            episode_id=np.array(self._index),
            final_slots=np.array([end.env for end in ended], np.int64),
            final_obs=final_obs,
            legal=self._legal if self._masked else None,
            final_legal=final_legal,
        )


def _maker(settings: GymSettings, folder: Path | None) -> Callable[[], gymnasium.Env[Any, Any]]:
    """Return a function that makes one copy."""
    if _CALLABLE.match(settings.id):
        target = load_callable(settings.id, folder)
        check_kwargs(settings.id, target, settings.kwargs)

        def call() -> gymnasium.Env[Any, Any]:
            env = target(**settings.kwargs)
            if not isinstance(env, gymnasium.Env):
                raise EnvError(
                    f"env.id={settings.id!r} returned a {type(env).__name__}, not a gymnasium.Env: it cannot "
                    "be "
                    'stepped here. Return a gymnasium.Env, or set env.kind="pettingzoo" for a ParallelEnv.'
                )
            limit = settings.max_episode_steps
            return env if limit is None else gymnasium.wrappers.TimeLimit(env, limit)

        return call
    return lambda: _registered(settings)


def _registered(settings: GymSettings) -> gymnasium.Env[Any, Any]:
    try:
        return gymnasium.make(
            settings.id, settings.max_episode_steps, disable_env_checker=True, **settings.kwargs
        )
    except (gymnasium.error.UnregisteredEnv, gymnasium.error.DeprecatedEnv):
        raise EnvError(
            f"env.id={settings.id!r} is not a registered Gymnasium environment: nothing can be made."
            f"{did_you_mean(settings.id, gymnasium.registry)} For your own, write module:callable."
        ) from None
    except (gymnasium.error.Error, ModuleNotFoundError, TypeError) as error:
        raise EnvError(
            f"env.id={settings.id!r} with env.kwargs={settings.kwargs!r} cannot be made: {error}. "
            "Install what it needs, or correct the keyword arguments."
        ) from error
