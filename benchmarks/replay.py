"""Replay speed and size, against cpprb (in process) and RLlib's prioritised buffer.

Source of the layout: `seqrl_ray/replay/`. Dims: U minibatches of B items per call.

    python benchmarks/replay.py             # prints one JSON line
    python benchmarks/replay.py --no-ray    # in process only

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
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from harness import LEAST_REPEATS, machine, require

from seqrl_ray.recipe_replay import ReplaySettings
from seqrl_ray.replay import ReplayShard
from seqrl_ray.types import ActionSpec, Array, ArraySpec, GroupSpec, SampleSpec, Slot
from seqrl_ray.types_env import Fragment, Trajectory

ALPHA, BETA = 0.6, 0.4
SLOTS, EPISODE_STEPS = 64, 200
SHAPES = ((1, 32), (16, 32), (1, 256), (1, 2_048))
RAY_SHARDS = 2
RAY_CASES = ((16, 32, 2), (16, 32, 4), (32, 32, 2), (32, 32, 4), (32, 256, 2))
"""Updates, batch, `learner.prefetch` (2 is the default; with 4, two draws share a call). Through Ray a draw
is split over the shards: 32 x 32 is 512 items per call, and so is 16 x 32 with two draws in it.
"""


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


def cartpole_group() -> GroupSpec:
    """Four numbers per observation, two actions."""
    slots = tuple(Slot(i, "agent", 4, 2) for i in range(SLOTS))
    return GroupSpec("shared", slots, ArraySpec((4,), "float32"), ActionSpec("discrete", 2))


def ours(items: int, sampler: str, rng: np.random.Generator) -> ReplayShard:
    """A full shard with random priorities."""
    settings = ReplaySettings(sampler=sampler, capacity_steps=items, alpha=ALPHA, beta_start=BETA)
    shard = ReplayShard(cartpole_group(), SampleSpec("transitions"), settings, seed=0)
    episode = 0
    while shard.stats().evicted_rows == 0:
        shard.insert(fragment(rng, episode))
        episode += 1
    for _ in range(50):
        shard.update_priorities(shard.sample(1, 2_048).ids, rng.random(2_048))
    return shard


def peer(items: int, rng: np.random.Generator) -> Any:
    """Make a cpprb buffer with the same columns, filled likewise."""
    import cpprb

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


def nothing() -> None:
    """Leave nothing to finish."""


def per_call_s(call: Callable[[], object], calls: int, finish: Callable[[], object] = nothing) -> float:
    """Mean seconds of a call; `finish` waits for work that the calls have begun, in the same time."""
    start = time.perf_counter()
    for _ in range(calls):
        call()
    finish()
    return (time.perf_counter() - start) / calls


def compare(
    mine: Callable[[], None],
    other: Callable[[], None],
    repeats: int,
    peer: str = "cpprb",
    finish: Callable[[], None] = nothing,
) -> dict[str, float]:
    """Time both in turn. `ratio` > 1: ours is faster."""
    calls = max(20, int(0.1 / per_call_s(other, 20)))
    pairs = [(per_call_s(mine, calls, finish), per_call_s(other, calls)) for _ in range(repeats)]
    return {
        "ours_ms": round(1e3 * statistics.median(a for a, _ in pairs), 4),
        f"{peer}_ms": round(1e3 * statistics.median(b for _, b in pairs), 4),
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


def rllib_buffer(items: int, rng: np.random.Generator) -> Any:
    """Fill RLlib's prioritised buffer likewise; it lives in its driver's process, without any remote call."""
    import gymnasium
    from ray.rllib.env.single_agent_episode import SingleAgentEpisode
    from ray.rllib.utils.replay_buffers.prioritized_episode_buffer import PrioritizedEpisodeReplayBuffer

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
    return buffer


def remote_replay(items: int, updates: int, batch: int, prefetch: int, rng: np.random.Generator) -> Any:
    """Start shard actors as a service run does, fill them, and return the learner's view of them."""
    import ray

    from seqrl_ray.api import read_recipe
    from seqrl_ray.loops.trainer import make_pacing
    from seqrl_ray.runtime.remote_replay import RemoteReplay
    from seqrl_ray.runtime.replay_service import ShardServer
    from seqrl_ray.runtime.supervisor import threads_env
    from seqrl_ray.runtime.wire import pack_fragment

    recipe = read_recipe(
        "classic/cartpole",
        [
            "replay.sampler=prioritised",
            f"replay.capacity_steps={items}",
            f"replay.alpha={ALPHA}",
            f"replay.shards={RAY_SHARDS}",
            f"learner.updates_per_call={updates}",
            f"learner.batch_size={batch}",
            f"learner.prefetch={prefetch}",
        ],
    )
    unpaced = recipe.replay.model_copy(update={"samples_per_insert": None})
    recipe = recipe.model_copy(update={"replay": unpaced})
    group, spec = cartpole_group(), SampleSpec("transitions")
    remote = ray.remote(ShardServer).options(max_concurrency=1000, runtime_env=threads_env())
    groups, specs = {"shared": group}, {"shared": spec}
    shards = {i: remote.remote(recipe, groups, specs, i, 0, None, None) for i in range(RAY_SHARDS)}
    for episode in range(items // (SLOTS * EPISODE_STEPS) + 1):
        for shard in shards.values():
            trajectory = fragment(rng, episode, EPISODE_STEPS // RAY_SHARDS)
            message = pack_fragment(Fragment((trajectory,), (), trajectory.env_steps))
            ray.get(shard.insert.remote(message, ("writer", 0, 0), episode))
    replay = RemoteReplay(recipe, "shared", make_pacing(recipe, spec, SLOTS), seed=0)
    replay.use(shards)
    return replay


def through_ray(items: int, repeats: int) -> dict[str, Any]:
    """Draw from shard actors and write back, against RLlib's buffer in this process."""
    import ray

    rng = np.random.default_rng(0)
    ray.init(
        address="local", num_cpus=64, include_dashboard=False, log_to_driver=False, logging_level="ERROR"
    )
    try:
        buffer = rllib_buffer(items, rng)
        figures: dict[str, Any] = {"shards": RAY_SHARDS}
        for updates, batch, prefetch in RAY_CASES:
            replay = remote_replay(items, updates, batch, prefetch, rng)
            priorities = rng.random((updates, batch))

            def mine(replay: Any = replay, priorities: Any = priorities) -> None:
                replay.pump(BETA, 0)
                while (drawn := replay.next_batch()) is None:
                    ready, _ = ray.wait(replay.calls(), num_returns=1)
                    replay.settle(ready)
                    replay.pump(BETA, 0)
                replay.write_back(drawn.ids, priorities)

            def finish(replay: Any = replay) -> None:
                while calls := replay.calls():
                    replay.settle(ray.wait(calls, num_returns=len(calls))[0])
                while replay.next_batch() is not None:
                    pass

            def other(count: int = updates * batch) -> None:
                buffer.sample(num_items=count, n_step=1, beta=BETA, gamma=0.99)
                buffer.update_priorities(rng.random(count) + 1e-3)

            name = f"{updates}x{batch}_prefetch{prefetch}"
            figures[name] = compare(mine, other, repeats, peer="rllib", finish=finish)
            for known in replay.shards.values():
                ray.kill(known.handle)
        return figures
    finally:
        ray.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, default=100_000, help="stored steps")
    parser.add_argument("--repeats", type=int, default=7, help="alternated repeats, at least 5")
    parser.add_argument("--no-ray", action="store_true", help="leave out the comparison through Ray actors")
    options = parser.parse_args()
    if options.repeats < LEAST_REPEATS:
        parser.error(f"--repeats={options.repeats} is below 5: a median of fewer says little. Use 5 or more.")
    require("cpprb", "pip install --no-deps cpprb==11.0.0")
    packages = ["numpy", "cpprb"] if options.no_ray else ["numpy", "cpprb", "ray"]
    result: dict[str, Any] = {
        **machine("replay", packages),
        "items": options.items,
        "repeats": options.repeats,
        "in_process": in_process(options.items, options.repeats),
        "atari_bytes_per_step": atari_bytes_per_step(),
    }
    if not options.no_ray:
        result["through_ray"] = through_ray(options.items, options.repeats)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
