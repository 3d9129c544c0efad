"""Settings of `random`: there are none. Torch-free."""

from __future__ import annotations

from seqrl_ray.settings import Settings


class RandomSettings(Settings):
    """The `[algorithm]` table of the random policy: `name = "random"` and nothing else."""
