"""Small runs of RLlib's PPO that the system tests share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TINY = (
    "algorithm.config.train_batch_size_per_learner=200",
    "algorithm.config.minibatch_size=50",
    "algorithm.config.num_epochs=2",
    "algorithm.model.fcnet_hiddens=[16]",
    "actors.envs_per_actor=2",
    "evaluation.episodes=1",
    "evaluation.controllers=[]",
    "learner.report_every_s=0.2",
)


def rows(folder: Path, kind: str) -> list[dict[str, Any]]:
    """The rows of one kind that a run has written."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in found if row["kind"] == kind]
