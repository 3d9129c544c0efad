"""Seeds of episodes: every episode of every environment copy has its own, and the same run has the same ones.

Source: numpy's `SeedSequence` (spawn keys give independent streams without bookkeeping).
Departs from it in nothing; the state is folded to 31 bits because SUMO and ale-py take a non-negative int32.

Dims: E environment copies.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from seqrl_ray.errors import EnvError

SEED_BITS = 31


class EpisodeSeeds:
    """An endless stream of seeds: a function of (root seed, key, copy, episode) and of nothing else."""

    def __init__(self, root_seed: int, *key: int) -> None:
        """Fix the stream.

        Args:
            root_seed: the recipe's `seed`, >= 0.
            *key: what tells this stream from others of the same run, e.g. actor number, incarnation; each >=
                0.
        Raises: EnvError: a negative number, which `SeedSequence` does not take.
        """
        negative = [value for value in (root_seed, *key) if value < 0]
        if negative:
            raise EnvError(
                f"seed={negative[0]} is negative: no seed stream can be made from it. Give 0 or more."
            )
        self._root_seed = root_seed
        self._key = key

    def __call__(self, env: int, episode: int) -> int:
        """Return the seed, in [0, 2**31), of the `episode`-th episode of copy `env`."""
        sequence = np.random.SeedSequence(self._root_seed, spawn_key=(*self._key, env, episode))
        return int(sequence.generate_state(1)[0]) >> (32 - SEED_BITS)


class FixedSeeds:
    """A given list of seeds, dealt to the copies like cards: evaluation sees the same episodes each time."""

    def __init__(self, seeds: Sequence[int], num_envs: int) -> None:
        """Fix the list.

        Args:
            seeds: the seeds, each in [0, 2**31).
            num_envs: E, the number of copies they are dealt to.
        Raises: EnvError: an empty list, a seed out of range, or no copies.
        """
        if not seeds or num_envs < 1:
            raise EnvError(
                f"seeds={list(seeds)!r} for num_envs={num_envs}: there is nothing to deal. "
                "Give at least one seed and one environment copy."
            )
        outside = [seed for seed in seeds if not 0 <= seed < 2**SEED_BITS]
        if outside:
            raise EnvError(
                f"seed={outside[0]} is outside [0, 2**{SEED_BITS}): simulators would refuse or fold it. "
                "Choose a seed inside."
            )
        self._seeds = tuple(int(seed) for seed in seeds)
        self._num_envs = num_envs

    def __call__(self, env: int, episode: int) -> int:
        """Return seed number `episode * E + env` of the list; past its end the list starts again."""
        return self._seeds[(episode * self._num_envs + env) % len(self._seeds)]
