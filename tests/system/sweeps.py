"""Small sweeps that the system tests share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from seqrl_ray.loops import checkpoints

TINY = """\
name = "tiny"
recipe = "classic/cartpole"
overrides = [
    "algorithm.hidden=[32]", "actors.envs_per_actor=4", "actors.fragment_steps=8", "replay.min_items=100",
    "replay.capacity_steps=4000", "replay.samples_per_insert=4.0", "learner.batch_size=32",
    "learner.updates_per_call=4", "evaluation.episodes=4",
]
trials = 3
[search."algorithm.learning_rate"]
kind = "log_uniform"
low = 1e-6
high = 1e-1
[search."algorithm.gamma"]
kind = "uniform"
low = 0.5
high = 0.999
[scheduler]
report_env_steps = 400
quantile = 0.34
[score]
episodes = 3
[budget]
env_steps = 3200
"""


def log(root: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / "board.jsonl").read_text().splitlines()]


def metrics(folder: Path, *, rolled_back: bool = False) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if bool(row.get("rolled_back")) == rolled_back]


def check_sweep(root: Path, members: int, env_steps: int) -> None:
    """What holds of every sweep that came to its end, however often it was killed."""
    rows = log(root)
    assert rows[0]["event"] == "begin"
    for member in range(members):
        told = [r for r in rows if r["event"] == "report" and r["member"] == member]
        assert [r["report"] for r in told] == list(range(1, len(told) + 1))
        assert told[-1]["last"] and told[-1]["env_steps"] >= env_steps
        values = rows[0]["members"][member]
        for row in told:  # a value changes where the log says so, and nowhere else
            assert row["before"] == values
            values = row["decision"]["values"]
        folder = root / "members" / f"{member:02d}"
        played = [r for r in metrics(folder) if r["kind"] == "evaluation"]
        scored = [r for r in told if r["score"] is not None]
        assert [r["env_steps"] for r in played] == [r["env_steps"] for r in scored]
        assert [[e["return"] for e in r["episodes"]] for r in played] == [r["episodes"] for r in scored]
        kept = checkpoints.load(folder / "checkpoints" / told[-1]["checkpoint"], "trainer")
        private = kept["learner"]["policies"]["shared"]["private"]["hparams"]
        assert {f"algorithm.{k}": v for k, v in private.items()} == told[-1]["before"]
        assert json.loads((folder / "summary.json").read_text())["status"] == "completed"
