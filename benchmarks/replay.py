"""Replay speed and size, against cpprb (in process) and RLlib's prioritised buffer.

Source of the layout: `seqrl_ray/replay/`. Dims: U minibatches of B items per call.

    python benchmarks/replay.py            # prints one JSON line
    python benchmarks/replay.py --rllib    # also times RLlib's buffer in its own process (needs ray[rllib])

Peers take turns in one process; a figure is the median of the repeats, a ratio the median of the repeats'
ratios. cpprb is no dependency of seqrl-ray: `pip install --no-deps cpprb==11.0.0`.
One call = draw U minibatches of B with importance weights, gather their columns, write U*B priorities back.
cpprb has no k minibatches in one call: it draws U times B, as a learner that uses it has to.
"""

from __future__ import annotations

import os

os.environ["OPENBLAS_NUM_THREADS"] = (
    "1"  # small matrix products go multi-threaded otherwise, and cost 100 times more
)
os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import functools
import importlib.metadata
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import cpprb
import numpy as np
from seqrl_ray.recipe_replay import ReplaySettings
from seqrl_ray.replay import ReplayShard
from seqrl_ray.types import ActionSpec, Array, ArraySpec, GroupSpec, SampleSpec, Slot, Trajectory

ALPHA, BETA = 0.6, 0.4
SLOTS, EPISODE_STEPS = 64, 200
SHAPES = ((1, 32), (16, 32), (1, 256), (1, 2_048))


def fragment(rng: np.random.Generator, episode: int, steps: int = EPISODE_STEPS) -> Trajectory:
    """One whole episode of every slot: four numbers per observation."""
    rows = SLOTS * (steps + 1)
    last = np.zeros((SLOTS, steps + 1), bool)
    last[:, -1] = True
    terminated = np.roll(last, -1, axis=1)
    columns: dict[str, Array] = {
        "obs": rng.random((rows, 4), np.float32),
        "action": rng.integers(0, 2, rows),
        "reward": rng.random(rows, np.float32),
        "terminated": terminated.reshape(-1),
        "truncated": np.zeros(rows, bool),
        "final": last.reshape(-1),
    }
    piece = np.zeros(SLOTS, np.int64)
    return Trajectory(
        "shared",
        "writer",
        0,
        (0, 0),
        np.arange(SLOTS),
        piece + episode,
        piece,
        piece + steps + 1,
        columns,
        SLOTS * steps,
    )


def ours(items: int, sampler: str, rng: np.random.Generator) -> ReplayShard:
    """A full shard with random priorities."""
    group = GroupSpec(
        "shared",
        tuple(Slot(i, "agent", 4, 2) for i in range(SLOTS)),
        ArraySpec((4,), "float32"),
        ActionSpec("discrete", 2),
    )
    settings = ReplaySettings(sampler=sampler, capacity_steps=items, alpha=ALPHA, beta_start=BETA)
    shard = ReplayShard(group, SampleSpec("transitions"), settings, seed=0)
    episode = 0
    while shard.stats().evicted_rows == 0:
        shard.insert(fragment(rng, episode))
        episode += 1
    for _ in range(50):
        shard.update_priorities(shard.sample(1, 2_048).ids, rng.random(2_048))
    return shard


def peer(items: int, rng: np.random.Generator) -> Any:
    """Make a cpprb buffer with the same columns, filled likewise."""
    columns = {
        "obs": {"shape": 4},
        "action": {"dtype": np.int64},
        "reward": {},
        "next_obs": {"shape": 4},
        "done": {},
    }
    buffer = cpprb.PrioritizedReplayBuffer(items, columns, alpha=ALPHA)
    for start in range(0, items, 1_000):
        count = min(1_000, items - start)
        buffer.add(
            obs=rng.random((count, 4), np.float32),
            action=rng.integers(0, 2, count),
            reward=rng.random(count, np.float32),
            next_obs=rng.random((count, 4), np.float32),
            done=np.zeros(count),
        )
    for _ in range(50):
        buffer.update_priorities(buffer.sample(2_048, beta=BETA)["indexes"], rng.random(2_048))
    return buffer


def per_call_s(call: Callable[[], object], calls: int) -> float:
    """Mean seconds of a call."""
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls


def compare(mine: Callable[[], None], other: Callable[[], None], repeats: int) -> dict[str, float]:
    """Time both in turn. `ratio` > 1: ours is faster."""
    calls = max(20, int(0.1 / per_call_s(other, 20)))
    pairs = [(per_call_s(mine, calls), per_call_s(other, calls)) for _ in range(repeats)]
    return {
        "ours_ms": round(1e3 * statistics.median(a for a, _ in pairs), 4),
        "cpprb_ms": round(1e3 * statistics.median(b for _, b in pairs), 4),
        "ratio": round(statistics.median(b / a for a, b in pairs), 3),
    }


def in_process(items: int, repeats: int) -> dict[str, Any]:
    """Draw and write back at every shape."""
    rng = np.random.default_rng(0)
    shard, buffer, even = ours(items, "prioritised", rng), peer(items, rng), ours(items, "uniform", rng)
    figures: dict[str, Any] = {}
    for updates, batch in SHAPES:
        priorities = rng.random((updates, batch))

        def mine(updates: int = updates, batch: int = batch, priorities: Any = priorities) -> None:
            shard.update_priorities(shard.sample(updates, batch).ids, priorities)

        def other(updates: int = updates, batch: int = batch, priorities: Any = priorities) -> None:
            for one in range(updates):
                buffer.update_priorities(buffer.sample(batch, beta=BETA)["indexes"], priorities[one])

        name = f"{updates}x{batch}"
        figures[name] = compare(mine, other, repeats)
        draw = functools.partial(even.sample, updates, batch)
        uniform_s = statistics.median(per_call_s(draw, 50) for _ in range(repeats))
        figures[name]["ours_uniform_ms"] = round(1e3 * uniform_s, 4)
    return figures


def atari_bytes_per_step(capacity: int = 2_000) -> dict[str, float]:
    """Bytes allocated per stored step of 84 x 84 grey frames: columns, links and sum tree."""
    group = GroupSpec(
        "shared",
        tuple(Slot(i, "agent", 0, 6) for i in range(8)),
        ArraySpec((84, 84), "uint8"),
        ActionSpec("discrete", 6),
        frame_stack=4,
    )
    figures = {}
    for sampler in ("uniform", "prioritised"):
        settings = ReplaySettings(sampler=sampler, capacity_steps=capacity)
        stats = ReplayShard(group, SampleSpec("transitions", n_step=3), settings, seed=0).stats()
        figures[sampler] = round((stats.column_bytes + stats.index_bytes) / capacity, 1)
    return figures


def rllib_ms(items: int, batch: int, repeats: int) -> float:
    """Milliseconds of one draw of `batch` and its priority write in RLlib's buffer, in its own process (no
    Ray call).

    This is the peer's side of the Ray comparison: its buffer lives in the driver, so nothing it does is
    remote.
    """
    import gymnasium
    from ray.rllib.env.single_agent_episode import SingleAgentEpisode
    from ray.rllib.utils.replay_buffers.prioritized_episode_buffer import PrioritizedEpisodeReplayBuffer

    rng = np.random.default_rng(0)
    buffer = PrioritizedEpisodeReplayBuffer(capacity=items, alpha=ALPHA)
    for _ in range(items // EPISODE_STEPS):
        episode = SingleAgentEpisode(
            observations=list(rng.random((EPISODE_STEPS + 1, 4), np.float32)),
            actions=list(rng.integers(0, 2, EPISODE_STEPS)),
            rewards=list(rng.random(EPISODE_STEPS)),
            terminated=True,
            len_lookback_buffer=0,
            observation_space=gymnasium.spaces.Box(-1, 1, (4,), np.float32),
            action_space=gymnasium.spaces.Discrete(2),
        )
        buffer.add(episode)

    def call() -> None:
        buffer.sample(num_items=batch, n_step=1, beta=BETA, gamma=0.99)
        buffer.update_priorities(rng.random(batch) + 1e-3)

    return round(1e3 * statistics.median(per_call_s(call, 5) for _ in range(repeats)), 3)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, default=100_000, help="stored steps")
    parser.add_argument("--repeats", type=int, default=7, help="alternated repeats, at least 5")
    parser.add_argument("--rllib", action="store_true", help="time RLlib's prioritised buffer as well")
    options = parser.parse_args()
    if options.repeats < 5:
        parser.error(f"--repeats={options.repeats} is below 5: a median of fewer says little. Use 5 or more.")
    result: dict[str, Any] = {
        "benchmark": "replay",
        "items": options.items,
        "repeats": options.repeats,
        "load_average": os.getloadavg()[0],
        "peers": {"cpprb": importlib.metadata.version("cpprb")},
        "in_process": in_process(options.items, options.repeats),
        "atari_bytes_per_step": atari_bytes_per_step(),
    }
    if options.rllib:
        result["rllib_256_ms"] = rllib_ms(options.items, 256, options.repeats)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
