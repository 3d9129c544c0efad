"""Made-up episodes, and a dataset of them on disk."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from seqrl_ray.data import Dataset, DatasetWriter
from seqrl_ray.types import ActionSpec, ArraySpec, GroupSpec, Slot

ACTIONS = 3


@dataclass(frozen=True)
class Episode:
    columns: dict
    final_obs: np.ndarray
    final_legal: np.ndarray | None
    seed: int | None

    @property
    def steps(self):
        return len(self.columns["reward"])


def group(kind="vector", *, action="discrete", masked=False, frame_stack=1):
    obs = {
        "vector": ArraySpec((4,), "float32"),
        "image": ArraySpec((3, 5), "uint8", 0.0, 255.0),
        "scalars": ArraySpec((1,), "float32", -1.0, np.inf),
    }[kind]
    spec = (
        ActionSpec("discrete", n=ACTIONS)
        if action == "discrete"
        else ActionSpec("box", shape=(2,), low=(-1.0, -np.inf), high=(1.0, np.inf))
    )
    slots = (Slot(0, "agent", obs.size, spec.n),)
    return GroupSpec("shared", slots, obs, spec, frame_stack=frame_stack, masked=masked)


def make_episode(of, steps, rng, *, terminates=None, seed=None):
    obs = of.obs
    frames = (
        rng.integers(0, 256, (steps + 1, *obs.shape), np.uint8)
        if obs.dtype == "uint8"
        else rng.normal(size=(steps + 1, *obs.shape)).astype(obs.dtype)
    )
    action = (
        rng.integers(0, of.action.n, steps)
        if of.action.kind == "discrete"
        else rng.uniform(-1, 1, (steps, *of.action.shape)).astype(np.float32)
    )
    terminates = rng.random() < 0.5 if terminates is None else terminates
    last = np.arange(steps) == steps - 1
    columns = {
        "obs": frames[:-1],
        "action": action,
        "reward": (rng.integers(-16, 17, steps) / 4).astype(np.float32),  # sums are exact
        "terminated": last & terminates,
        "truncated": last & (not terminates),
    }
    legal = rng.random((steps + 1, of.action.n)) < 0.6
    if of.masked:
        columns["legal"] = legal[:-1]
    return Episode(columns, frames[-1], legal[-1] if of.masked else None, seed)


def make_episodes(of, lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [make_episode(of, steps, rng, seed=None if n % 3 else 100 + n) for n, steps in enumerate(lengths)]


def write(folder, of, episodes, meta=None):
    with DatasetWriter(folder, of, meta=meta) as writer:
        for episode in episodes:
            writer.append(
                episode.columns, episode.final_obs, final_legal=episode.final_legal, seed=episode.seed
            )
    return Dataset.open(folder, verify=True)


def make_dataset(folder, lengths=(3, 1, 7, 4), *, of=None, seed=0, meta=None):
    of = of or group()
    return write(folder, of, make_episodes(of, lengths, seed), meta)


def rows_of(dataset, number):
    """Columns of one episode, decisions and final row."""
    start, rows = int(dataset.episode_start[number]), int(dataset.episode_rows[number])
    return {name: np.array(column[start : start + rows]) for name, column in dataset.columns.items()}
