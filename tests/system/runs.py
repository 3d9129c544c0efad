"""Small runs that the system tests share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from seqrl_ray import api
from seqrl_ray.loops import checkpoints

SMALL = (
    "algorithm.hidden=[32]",
    "actors.envs_per_actor=4",
    "actors.fragment_steps=8",
    "replay.min_items=200",
    "replay.capacity_steps=20000",
    "replay.samples_per_insert=4.0",
    "learner.batch_size=32",
    "learner.updates_per_call=4",
    "evaluation.episodes=2",
    "stop.env_steps=4000",
)
LOCK_STEP = ("actors.in_flight=1", "actors.count=1", "replay.wiring=colocated")


def train(
    folder: Path, *overrides: str, local: bool = False, recipe: str = "classic/cartpole"
) -> dict[str, Any]:
    return api.train(recipe, [*SMALL, *overrides], run_dir=folder, local=local, quiet=True).summary


def learner_state(folder: Path) -> dict[str, Any]:
    """Everything learned, of the run's last checkpoint."""
    tree: dict[str, Any] = checkpoints.load(checkpoints.latest(folder / "checkpoints"), "trainer")
    return tree["learner"]["policies"]["shared"]["learned"]
