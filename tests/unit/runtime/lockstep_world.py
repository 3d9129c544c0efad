"""Learners that share every minibatch, as plain processes over gloo, and one that has it whole.

The batches are made once, by one learner in a closed loop: its priorities decide what is drawn next. The
others get their parts of the same draws, and nothing else: not the weights of the importance sampling, whose
largest they have to agree on, and not the noise of a loss.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch

from seqrl_ray.api import read_recipe
from seqrl_ray.loops.learner import Learner
from seqrl_ray.loops.parts import Part, parameters
from seqrl_ray.recipe_replay import ReplaySettings
from seqrl_ray.replay.sampling import global_weights
from seqrl_ray.replay.shard import ReplayShard
from seqrl_ray.runtime.collective import Collective, find_store, open_store
from seqrl_ray.types import ActionSpec, ArraySpec, GroupSpec, Slot
from seqrl_ray.types_env import Trajectory

LEARNERS, UPDATES, BATCH, BETA = 2, 50, 16, 0.7
EPISODES = 40

SLOTS = (Slot(0, "agent", 4, 2),)
DISCRETE = GroupSpec("shared", SLOTS, ArraySpec((4,), "float32"), ActionSpec("discrete", n=2))
BOX = GroupSpec(
    "shared",
    (Slot(0, "agent", 4, 0),),
    ArraySpec((4,), "float32"),
    ActionSpec("box", shape=(2,), low=(-1.0, 0.0), high=(1.0, 5.0)),
)

SMALL = "units = 16\nlayers = 2\nheads = 2\nwindow_steps = 8\ndropout = 0.0\n"
CASES = {
    "double_dqn": (DISCRETE, "hidden = [32]\nn_step = 3\nmax_grad_norm = 0.5\ntarget_tau = 0.05\n"),
    "sac": (BOX, "max_grad_norm = 1.0\nhidden = [32]\n"),
    "online_dt": (BOX, SMALL + "warmup_updates = 10\n"),
    "decision_transformer": (DISCRETE, SMALL),
}

RECIPE = """\
name = "shared"
[env]
kind = "gym"
id = "CartPole-v1"
[algorithm]
name = "{name}"
{keys}
[replay]
wiring = "service"
sampler = "prioritised"
[learner]
batch_size = {batch}
count = {count}
[stop]
env_steps = 1000
"""


@dataclass(frozen=True)
class Case:
    """One algorithm in one kind of floats, and where its recipe lies."""

    name: str
    double: bool
    folder: str
    misled: bool = False
    """The learners do not agree on the largest importance weight of a minibatch."""

    def learner(self, count: int) -> Learner:
        group, keys = CASES[self.name]
        path = os.path.join(self.folder, f"{self.name}-{count}.toml")
        if not os.path.exists(path):
            with open(f"{path}.{os.getpid()}", "w", encoding="utf-8") as file:
                file.write(RECIPE.format(name=self.name, keys=keys, batch=BATCH, count=count))
            os.replace(f"{path}.{os.getpid()}", path)
        return Learner(read_recipe(path), {"shared": group})

    @contextmanager
    def floats(self) -> Iterator[None]:
        """What torch makes is float64 inside."""
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64 if self.double else torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


def in_floats(batch: Any, double: bool) -> Any:
    """The batch with float64 columns, or as it is."""
    if not double:
        return batch
    wide = {
        item.name: value.astype(np.float64)
        for item in fields(batch)
        if isinstance(value := getattr(batch, item.name), np.ndarray) and value.dtype == np.float32
    }
    return replace(batch, **wide)


def part_of(batch: Any, rank: int) -> Any:
    """The rows of one learner, and their ids, of a draw [1, B, ...]."""
    rows = slice(rank * BATCH // LEARNERS, (rank + 1) * BATCH // LEARNERS)
    own = {
        item.name: value[:, rows]
        for item in fields(batch)
        if isinstance(value := getattr(batch, item.name), np.ndarray)
    }
    return replace(batch, **own)


def filled_shard(case: Case, learner: Learner) -> ReplayShard:
    """Random experience."""
    group, rng = CASES[case.name][0], np.random.default_rng(7)
    settings = ReplaySettings(sampler="prioritised", capacity_steps=10_000)
    shard = ReplayShard(group, learner.algorithms["shared"].sample_spec(), settings, seed=3)
    for episode in range(EPISODES):
        steps = int(rng.integers(1, 20))
        rows = np.arange(steps + 1)  # the last one holds the final observation
        if group.action.kind == "discrete":
            action = rng.integers(0, 2, steps + 1)
        else:
            action = rng.uniform([-1.0, 0.0], [1.0, 5.0], (steps + 1, 2)).astype(np.float32)
        columns = {
            "obs": rng.normal(size=(steps + 1, 4)).astype(np.float32),
            "action": action,
            "reward": rng.normal(size=steps + 1).astype(np.float32),
            "terminated": rows == steps - 1,
            "truncated": np.zeros(steps + 1, bool),
            "final": rows == steps,
        }
        piece = [np.array([n], np.int64) for n in (0, episode, 0, steps + 1)]
        shard.insert(Trajectory("shared", "actor-0", 0, (0, 0), *piece, columns, steps))
    return shard


def alone(case: Case) -> tuple[list[Any], list[Any], dict[str, Any]]:
    """Train one learner in a closed loop. Returns its draws, its priorities, and what it learned."""
    with case.floats():
        learner = case.learner(1)
        shard = filled_shard(case, learner)
        draws, priorities = [], []
        for _ in range(UPDATES):
            batch = in_floats(shard.sample(1, BATCH, beta=BETA), case.double)
            draws.append((batch, shard.items))
            weight = global_weights(batch.probability, shard.items, BETA).astype(batch.weight.dtype)
            np.testing.assert_array_equal(weight, batch.weight)  # the shard's own are these
            priorities.append(learner.update("shared", batch, 0.0))
            shard.update_priorities(batch.ids, priorities[-1])
        return draws, priorities, learner.algorithms["shared"].learned()


def together(rank: int, address: Any, answers: Any, work: list[tuple[Case, list[Any]]]) -> None:
    """Train rank `rank` of a group on its parts of the draws of every case; send what came of it."""
    torch.set_num_threads(1)
    if rank == 0:
        store = open_store("127.0.0.1")
        for _ in range(LEARNERS - 1):
            address.put(store.port)
    else:
        store = find_store("127.0.0.1", address.get())
    collective = Collective(store, rank, LEARNERS, patience_s=60.0)
    for case, draws in work:
        with case.floats():
            learner = case.learner(LEARNERS)
            learner.share(Part(rank, LEARNERS), collective.add_up)
            priorities = []
            for whole, items in draws:
                batch = part_of(whole, rank)
                largest = None if case.misled else collective.largest
                weight = global_weights(batch.probability, items, BETA, largest).astype(batch.weight.dtype)
                priorities.append(learner.update("shared", replace(batch, weight=weight), 0.0))
            collective.check_alike(parameters(learner.algorithms), learner.updates)
            answers.put((rank, case, priorities, learner.algorithms["shared"].learned()))
    answers.put((rank, None, collective.seconds, None))
    answers.close()
    answers.join_thread()


def run_together(work: list[tuple[Case, list[Any]]]) -> dict[Any, Any]:
    """Return (rank, case) -> (priorities, learned) of a group of processes."""
    spawn = multiprocessing.get_context("spawn")
    address, answers = spawn.Queue(), spawn.Queue()
    group = [spawn.Process(target=together, args=(rank, address, answers, work)) for rank in range(LEARNERS)]
    for process in group:
        process.start()
    try:
        came = [answers.get(timeout=120.0) for _ in range(LEARNERS * (len(work) + 1))]
    finally:
        for process in group:
            process.join(10.0)
            process.kill()
    return {(rank, case): (priorities, learned) for rank, case, priorities, learned in came}
