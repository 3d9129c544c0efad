"""The Atari door: ale-py's C++ vector environment, each frame handed on once.

Source: ale-py's `AtariVectorEnv` (https://ale.farama.org/vector-environment/); protocol keys after Machado et
al. 2018 (https://arxiv.org/abs/1709.06009). Departs from it:
- frames are not stacked here; `GroupSpec.frame_stack` says how many the policy sees, and the frames before a
stream's
  first are 0;
- rewards come raw from the emulator and are clipped here, so that scores are always raw;
- `episodic_life` ends the stream at a lost life and the game goes on (ale-py's key of that name restarts the
game).

Seeds: ale-py reloads the emulator to seed it, about as long as 100 decisions. So in training each copy is
seeded once, with the seed of its first episode, and its later games follow from that seed and the actions;
every game reports the seed its copy started from. In evaluation every game has its own seed. Open games
cannot be rebuilt: `open_episodes` is None.

Dims: E environment copies = S slots, F ended streams.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from seqrl_ray.envs.grouping import AGENT, AgentInfo, assign
from seqrl_ray.errors import EnvError, did_you_mean
from seqrl_ray.recipe_env import AtariSettings, PolicySettings
from seqrl_ray.types import ActionSpec, Array, ArraySpec, BoolArray, GroupSpec, IntArray
from seqrl_ray.types_env import EpisodeEnd, OpenEpisode, SeedStream, Step, VectorStep


class AtariEnv:
    """E copies of an Atari game as a `VectorEnv` with one group. Every array it gives is the caller's to "
    "keep.
    """

    def __init__(
        self,
        settings: AtariSettings,
        policies: Mapping[str, PolicySettings],
        *,
        num_envs: int,
        seeds: SeedStream,
        evaluation: bool = False,
    ) -> None:
        """Load the game into E emulators.

        Args:
            settings: the `[env]` table.
            policies: policy id -> settings; one must match "agent", and no other may stand there.
            num_envs: E, at least 1.
            seeds: gives each copy's first seed; with `evaluation` each game's.
            evaluation: whole games (no life-loss ends), unclipped rewards, a seed for every game.
        Raises: EnvError: no such game. RecipeError: policies that do not fit.
        """
        import ale_py
        from ale_py import roms
        from ale_py.vector_env import AtariVectorEnv
        from gymnasium.vector import AutoresetMode

        known = roms.get_all_rom_ids()
        if settings.game not in known:
            raise EnvError(
                f"env.game={settings.game!r} is not a ROM of ale-py {ale_py.__version__}: there is nothing "
                f"to load.{did_you_mean(settings.game, known)} Names are in snake case, e.g. ms_pacman."
            )
        self._seeds, self._evaluation = seeds, evaluation
        self._clip = settings.reward_clipping and not evaluation
        self._env = AtariVectorEnv(
            settings.game,
            num_envs,
            num_threads=settings.num_threads,
            max_num_frames_per_episode=settings.max_episode_frames,
            repeat_action_probability=settings.repeat_action_probability,
            full_action_space=settings.full_action_space,
            # In NextStep mode an ended game waits, and a masked reset with seeds opens the next one.
            autoreset_mode=AutoresetMode.NEXT_STEP if evaluation else AutoresetMode.SAME_STEP,
            img_height=settings.screen,
            img_width=settings.screen,
            stack_num=1,
            frameskip=settings.frameskip,
            noop_max=settings.noop_max,
            episodic_life=False,
            life_loss_info=settings.episodic_life and not evaluation,
            reward_clipping=False,
            use_fire_reset=settings.use_fire_reset,
        )
        self._num_envs = num_envs
        self._num_actions = len(self._env.ale.get_action_set())
        obs = ArraySpec((settings.screen, settings.screen), "uint8", 0.0, 255.0)
        agent = AgentInfo(AGENT, obs, ActionSpec("discrete", n=self._num_actions))
        groups = assign([agent], policies, num_envs)
        (self._policy_id,) = groups
        self._groups = {
            name: GroupSpec(name, group.slots, group.obs, group.action, frame_stack=settings.frame_stack)
            for name, group in groups.items()
        }
        self._game = np.full(num_envs, -1)  # [E] how-manieth game
        self._stream = np.full(num_envs, -1)  # [E] how-manieth stream: a game, or with episodic_life a life
        self._seed = np.zeros(num_envs, np.int64)
        self._return = np.zeros(num_envs)
        self._steps = np.zeros(num_envs, np.int64)
        self._frame = np.zeros(num_envs, np.int64)  # [E] emulator frame of the running game
        self._always = np.ones(num_envs, np.bool_)
        self._never = np.zeros(num_envs, np.bool_)
        self._always.flags.writeable = self._never.flags.writeable = False

    @property
    def groups(self) -> Mapping[str, GroupSpec]:
        return self._groups

    @property
    def num_envs(self) -> int:
        return self._num_envs

    def reset(self) -> VectorStep:
        """Open a new, seeded game in every copy; running ones are dropped."""
        obs: Array
        obs, info = self._env.reset(seed=self._open_games(np.arange(self._num_envs), seeded=True))
        self._stream += 1
        self._frame = info["episode_frame_number"].astype(np.int64)
        none = np.zeros(0, np.int64)
        step = Step(
            obs=obs[:, 0],
            reward=np.zeros(self._num_envs, np.float32),
            terminated=self._never,
            truncated=self._never,
            valid=self._never,
            active=self._always,
            is_first=self._always,
            episode_id=self._stream.copy(),
            final_slots=none,
            final_obs=np.zeros((0, *obs.shape[2:]), np.uint8),
        )
        return VectorStep({self._policy_id: step})

    def step(self, actions: Mapping[str, Array]) -> VectorStep:
        """Play one decision in every game, and open a new game where one ended.

        Args:
            actions: policy id -> [E] int64 in [0, A).
        Raises: EnvError: actions of another shape, or out of range.
        """
        obs, reward, terminated, truncated, info = self._env.step(self._checked(actions[self._policy_id]))
        self._return += reward
        self._steps += 1
        ended = terminated | truncated
        slots = np.flatnonzero(ended)
        final_obs = obs[slots, 0]  # [F, *obs]
        episodes: tuple[EpisodeEnd, ...] = ()
        frame = info["episode_frame_number"]
        if slots.size:
            over = self._over(ended, frame, info)
            games = np.flatnonzero(over)
            if games.size:
                episodes = self._ends(games)
                if self._evaluation:
                    seeds = self._open_games(games, seeded=True)
                    obs, info = self._env.reset(seed=seeds, options={"reset_mask": over})
                    frame = info["episode_frame_number"]
                else:
                    self._open_games(games, seeded=False)
                    final_obs[over[slots]] = info["final_obs"][games, 0]
            self._stream[slots] += 1
        self._frame = frame.astype(np.int64)
        step = Step(
            obs=obs[:, 0],
            reward=(np.clip(reward, -1, 1) if self._clip else reward).astype(np.float32),
            terminated=terminated,
            truncated=truncated,
            valid=self._always,
            active=self._always,
            is_first=ended,
            episode_id=self._stream.copy(),
            final_slots=slots,
            final_obs=final_obs,
        )
        return VectorStep({self._policy_id: step}, episodes, self._num_envs)

    def open_episodes(self) -> tuple[OpenEpisode, ...] | None:
        return None

    def restore(self, episodes: tuple[OpenEpisode, ...]) -> VectorStep:
        """Refuse: games cannot be rebuilt (see the module docstring).

        Raises: EnvError: always.
        """
        raise EnvError(
            f"{len(episodes)} open episodes were given to an Atari environment: the emulator cannot rebuild "
            "them. Cut them and call reset()."
        )

    def close(self) -> None:
        """Stop the emulator threads; a second call does nothing."""
        self.__dict__.pop("_env", None)  # ale-py joins its threads when the object goes

    def _checked(self, actions: Array) -> Array:
        if actions.shape != (self._num_envs,) or actions.min() < 0 or actions.max() >= self._num_actions:
            raise EnvError(
                f"actions={actions.tolist()} are not {self._num_envs} numbers in [0, {self._num_actions}): "
                "the emulator has no such joystick. Give one existing action per slot."
            )
        return np.ascontiguousarray(actions, np.int64)

    def _over(self, ended: BoolArray, frame: IntArray, info: Mapping[str, Array]) -> BoolArray:
        """Tell which ended streams are whole games, not lives: [E]."""
        if self._evaluation:
            return ended
        if "final_obs" not in info:
            return self._never
        return ended & (frame <= self._frame)  # the new game's frames count from its reset

    def _open_games(self, games: IntArray, *, seeded: bool) -> IntArray:
        """Count new games of these copies, and return the seeds they have."""
        self._game[games] += 1
        self._return[games] = 0.0
        self._steps[games] = 0
        if seeded:
            self._seed[games] = [self._seeds(int(e), int(self._game[e])) for e in games]
        return self._seed[games]

    def _ends(self, games: IntArray) -> tuple[EpisodeEnd, ...]:
        return tuple(
            EpisodeEnd(int(e), int(self._seed[e]), int(self._steps[e]), {"return": float(self._return[e])})
            for e in games
        )
