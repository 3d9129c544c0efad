"""What runs inside RLlib's processes for us: episodes out of the runners, updates out of the learner."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from ray.rllib.callbacks.callbacks import RLlibCallback

from seqrl_ray.rllib.envs import take_ended

EPISODES = "seqrl_episodes"
"""Name of the finished episodes among RLlib's metrics of the runners."""
ALL_MODULES = "__all_modules__"
"""Where RLlib's learners keep what is not of one network."""
UPDATES = "seqrl_updates"
"""Name of the number of gradient steps among RLlib's metrics of the learner."""


class EpisodeReports(RLlibCallback):
    """Hands the episodes that ended in a runner's process on with its metrics."""

    def on_sample_end(self, *, metrics_logger: Any = None, **kwargs: Any) -> None:
        """Add the episodes that ended during this sample."""
        for end in take_ended():
            metrics_logger.log_value(EPISODES, end, reduce="item_series")


@cache
def counting(learner: type, threads: int = 0) -> type:
    """Return a learner class that counts its gradient steps: RLlib counts calls and samples.

    Args:
        learner: RLlib's.
        threads: of torch in its process, which may be another than the driver's; 0 = as they are.
    """

    def build(self: Any) -> None:
        if threads:
            torch.set_num_threads(threads)
        learner.build(self)  # type: ignore[attr-defined]

    def _log_steps_trained_metrics(self: Any, batch: Any) -> None:
        learner._log_steps_trained_metrics(self, batch)  # type: ignore[attr-defined]
        self.metrics.log_value((ALL_MODULES, UPDATES), 1, reduce="sum")

    own = {"build": build, "_log_steps_trained_metrics": _log_steps_trained_metrics}
    return type(learner.__name__, (learner,), own)
