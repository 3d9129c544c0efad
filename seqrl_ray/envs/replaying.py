"""What the doors share when they rebuild an open episode from its seed and its actions.

Source: ours (design rule: open episodes are stored as reset seed and actions so far; resuming replays and
    verifies).

Dims: E environment copies.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from seqrl_ray.errors import EnvError
from seqrl_ray.types import Array
from seqrl_ray.types_env import OpenEpisode


def digest(*arrays: Array) -> str:
    """Return a fingerprint of the bytes of some arrays, in order."""
    state = hashlib.blake2b(digest_size=16)
    for array in arrays:
        state.update(np.ascontiguousarray(array).tobytes())
    return state.hexdigest()


def in_copy_order(episodes: Sequence[OpenEpisode], num_envs: int) -> list[OpenEpisode]:
    """Return the episodes sorted by copy.

    Raises: EnvError: not exactly one episode for each of the `num_envs` copies.
    """
    ordered = sorted(episodes, key=lambda episode: episode.env)
    if [episode.env for episode in ordered] != list(range(num_envs)):
        raise EnvError(
            f"open episodes of copies {[episode.env for episode in ordered]} do not fit {num_envs} copies: "
            "they cannot be rebuilt. Resume with the actors.envs_per_actor of the run that wrote them."
        )
    return ordered


def not_deterministic(name: str, env: int, seed: int, what: str) -> EnvError:
    """Make the error for a replay that led elsewhere."""
    return EnvError(
        f"{name}: replaying the open episode of copy {env} from seed {seed} led elsewhere ({what}): the "
        "environment is not a function of its seed and actions. Set env.restorable=false: a resume then cuts "
        "open episodes."
    )
