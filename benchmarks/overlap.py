"""Overlapped against alternating fine-tuning of an Online Decision Transformer: the same work, sooner.

    python benchmarks/overlap.py                        # both sections, one JSON line at the end
    python benchmarks/overlap.py --section few          # few | many updates per step
    python benchmarks/overlap.py --quick                # a smoke test: nothing to quote

overlapped      phase "online": one actor and the learner at once, paced by samples per insert.
alternating_1   phase "alternating": an episode, then its updates, then an episode; the learner has one torch
                thread, as beside an actor.
alternating_2   the same with two threads: nobody acts while it learns.

All three take the same updates per environment step: one per 10 steps in `few`, three in `many` (the paper's
300 per episode of 1,000 steps). Gymnasium's HalfCheetah is cut to 200 steps, so that every episode is equally
long; windows of 20 steps, batches of 64, two blocks of 64, as `mujoco/halfcheetah_online_dt`; random data
made on the spot; all through Ray, on this machine. Who is not running rests: a learner pulls its fragments.
`policy_lag` is how many updates older than the learner's the weights were that acted; `learner_idle` the
share of the time that the learner had nothing to learn, `actor_held` that what an actor made was not let in.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import ray
from harness import Stretch, alternate, asked, best, figures, machine, ratios

from seqrl_ray import api
from seqrl_ray.runtime.launch import open_session

EPISODE_STEPS, BATCH, OFFLINE = 200, 64, 10
SECTIONS = {"few": 20, "many": 60}
"""Name -> updates per episode."""
WARM_UPDATES = 50
"""Updates before anything is timed."""

ENV = f'[env]\nkind = "mujoco"\nid = "HalfCheetah-v5"\nmax_episode_steps = {EPISODE_STEPS}\n'
RANDOM = f'name = "random"\n{ENV}[algorithm]\nname = "random"\n[stop]\nenv_steps = 4_000\n'


def keys(data: Path, updates_per_episode: int, *, overlapped: bool, threads: int) -> list[str]:
    """What differs from the shipped recipe."""
    ratio = updates_per_episode * BATCH / EPISODE_STEPS
    phase = (
        '{kind="online"}'
        if overlapped
        else f'{{kind="alternating", updates_per_episode={updates_per_episode}}}'
    )
    return [
        f"env.max_episode_steps={EPISODE_STEPS}",
        f"data.source={data}",
        f'phase=[{{kind="offline", updates={OFFLINE}}}, {phase}]',
        f"actors.in_flight={2 if overlapped else 1}",
        f"replay.samples_per_insert={ratio}",
        f"learner.threads={threads}",
        "learner.device=cpu",
        "learner.updates_per_call=4",
        "learner.checkpoint_every_s=0",
        "stop.env_steps=2_000_000_000",
    ]


class Run:
    """A whole session: supervisor here, learner with its shard, actor and board in processes."""

    def __init__(self, root: Path, overrides: list[str]) -> None:
        recipe = api.read_recipe("mujoco/halfcheetah_online_dt", overrides)
        self.session = open_session(recipe, root=root, local=True)
        self.row = self.session.advance(0.1).row
        while self.row["updates"] < OFFLINE + WARM_UPDATES:
            self.row = self.session.advance(0.5).row
        self.took, self.first = 0.0, self.row

    def run(self, seconds: float) -> Stretch:
        before, began = self.row, time.perf_counter()
        self.row = self.session.advance(seconds).row
        took = time.perf_counter() - began
        self.took += took
        steps, updates = (int(self.row[k] - before[k]) for k in ("env_steps", "updates"))
        return Stretch(steps, updates, took)

    def facts(self) -> dict[str, Any]:
        """Staleness, and who waited for whom."""
        shares = {"learner_idle": "sample", "actor_held": "insert"}
        waited = {n: f"shared/pacing_{side}_wait_s" for n, side in shares.items()}
        return {
            "policy_lag": {q: self.row[f"policy_lag_{q}"] for q in ("p50", "p95")},
            **{n: round((self.row[k] - self.first[k]) / self.took, 3) for n, k in waited.items()},
        }


def compare(updates_per_episode: int, root: Path, data: Path, repeats: int, seconds: float) -> dict[str, Any]:
    """Let the three take turns."""
    variants = {"overlapped": (True, 1), "alternating_1": (False, 1), "alternating_2": (False, 2)}
    contestants = {
        name: Run(root / name, keys(data, updates_per_episode, overlapped=overlapped, threads=threads))
        for name, (overlapped, threads) in variants.items()
    }
    done = alternate(contestants, repeats, seconds)
    found: dict[str, Any] = {
        "wanted_updates_per_env_step": updates_per_episode / EPISODE_STEPS,
        "contestants": {name: {**figures(done[name]), **one.facts()} for name, one in contestants.items()},
    }
    peer = best(["alternating_1", "alternating_2"], done)
    found["ratios"] = {f"overlapped/{peer}": ratios(done["overlapped"], done[peer])}
    for one in contestants.values():
        one.session.close()
    return found


def main() -> None:
    given = asked(__doc__, list(SECTIONS), seconds=20.0, quick_s=2.0)
    logging.getLogger("ray").setLevel(logging.ERROR)
    result = {**machine("overlap", ["torch", "ray", "mujoco", "numpy"]), **given.facts()}
    ray.init(
        address="local",
        num_cpus=64,  # shares of this machine, as a local run of ours asks for them; nobody reserves a core
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        runtime_env={"env_vars": {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}},
    )
    try:
        with tempfile.TemporaryDirectory() as root:
            (Path(root) / "random.toml").write_text(RANDOM)
            data = Path(root) / "data"
            api.collect(Path(root) / "random.toml", data, local=True, quiet=True)
            result["sections"] = {
                name: compare(SECTIONS[name], Path(root) / name, data, given.repeats, given.seconds)
                for name in given.sections
            }
    finally:
        ray.shutdown()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
