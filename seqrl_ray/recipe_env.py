"""The `[env]` table of a recipe, one settings class per kind of environment.

Which class applies is the table's `kind`. The traffic kind is long and has its own file, `recipe_traffic.py`.
"""

from __future__ import annotations

from typing import Any, Literal

from seqrl_ray.settings import Settings, key


class GymSettings(Settings):
    """Any Gymnasium environment, by id or by `module:callable`."""

    kind: Literal["gym"] = "gym"
    id: str = key(description="Gymnasium id, or module:callable that returns a gymnasium.Env", min_length=1)
    kwargs: dict[str, Any] = key({}, "keyword arguments for the environment")
    max_episode_steps: int | None = key(
        None, "truncate here; None keeps the environment's own limit", unit="steps", ge=1
    )
    mask_key: str = key(
        "action_mask",
        "where the legal-action mask stands: beside `observation` in a Dict observation, or in the info",
    )
    restorable: bool = key(True, "a seed and the actions rebuild an open episode exactly (checked on resume)")


class MujocoSettings(GymSettings):
    """A Gymnasium MuJoCo task."""

    kind: Literal["mujoco"] = "mujoco"  # type: ignore[assignment]


class AtariSettings(Settings):
    """An Atari game on ale-py's C++ vector environment. The protocol keys are logged with every score."""

    kind: Literal["atari"] = "atari"
    game: str = key(description="ROM name in snake case, e.g. pong", min_length=1)
    frameskip: int = key(4, "emulator frames per decision", unit="frames", ge=1)
    frame_stack: int = key(4, "frames the policy sees; each is stored once", unit="frames", ge=1, le=16)
    screen: int = key(84, "side of the square grey image", unit="pixels", ge=16, le=210)
    repeat_action_probability: float = key(0.25, "sticky actions", ge=0.0, le=1.0)
    episodic_life: bool = key(
        False, "losing a life terminates the stream, the game goes on in a new one (training only)"
    )
    reward_clipping: bool = key(
        False, "clip the rewards that are learned from to [-1, 1] (training only); scores are always raw"
    )
    full_action_space: bool = key(False, "all 18 actions")
    noop_max: int = key(30, "random no-ops at reset, at most", unit="steps", ge=0)
    use_fire_reset: bool = key(True, "press FIRE after reset where the game needs it")
    max_episode_frames: int = key(108_000, "frame cap of a game, a truncation", unit="frames", ge=1)
    num_threads: int = key(1, "emulator threads in each actor process", ge=1, le=256)


class PettingZooSettings(Settings):
    """Any PettingZoo parallel environment, by `module:callable`."""

    kind: Literal["pettingzoo"] = "pettingzoo"
    id: str = key(
        description="module:callable that returns a pettingzoo.ParallelEnv", pattern=r"^[\w.]+:[\w.]+$"
    )
    kwargs: dict[str, Any] = key({}, "keyword arguments for the environment")
    departure: Literal["terminated", "truncated"] = key(
        "terminated", "what an agent's leaving without a last observation means for its stream"
    )
    mask_key: str = key(
        "action_mask",
        "where the legal-action mask stands: beside `observation` in a Dict observation, or in the agent's "
        "info",
    )
    restorable: bool = key(True, "a seed and the actions rebuild an open episode exactly (checked on resume)")


class PolicySettings(Settings):
    """Which agents one policy drives. All agents of a policy share its parameters."""

    agents: tuple[str, ...] = key(
        ("*",), "agent names, shell patterns allowed; the first policy that matches wins", min_length=1
    )
    agent_one_hot: bool = key(
        False, "append a one-hot of the agent (place in the policy's agent list) to vector observations"
    )
    algorithm: dict[str, Any] = key({}, "settings of [algorithm] that differ for this policy")
