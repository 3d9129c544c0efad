"""Settings of `double_dqn`: those of `dqn`. Torch-free."""

from __future__ import annotations

from seqrl_ray.algorithms.dqn_settings import DqnSettings


class DoubleDqnSettings(DqnSettings):
    """The `[algorithm]` table of Double DQN."""
