"""Offline data as a run uses it: find the dataset, choose its episodes, and put them into a shard.

The data becomes experience like any other: the same store, views and samplers serve it, and what actors add
later stands beside it. It is read chunk by chunk from memory-mapped files; the store is then all that is in
memory (or, under `replay.memory_bytes`, in a memory map of its own).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from seqrl_ray.algorithms.contract import Algorithm
from seqrl_ray.data.dataset import Dataset, obs_mean_std, select, trajectories
from seqrl_ray.errors import RecipeError
from seqrl_ray.recipe import Recipe
from seqrl_ray.replay.columns import FINAL
from seqrl_ray.replay.shard import ReplayShard
from seqrl_ray.types import DataFacts, GroupSpec, IntArray

FOLDER = "datasets"
"""Where datasets are looked for by name, and collected to, under the folder the command is given in."""


@dataclass(frozen=True)
class Offline:
    """The part of a dataset that a run uses."""

    dataset: Dataset
    episodes: IntArray  # [E] numbers, ascending

    @property
    def rows(self) -> int:
        """Rows in the store."""
        return int(self.dataset.episode_rows[self.episodes].sum())

    def facts(self, shard: ReplayShard) -> DataFacts:
        """What an algorithm may know of it, once `shard` holds it."""
        mean, std = obs_mean_std(self.dataset, self.episodes)
        if not shard.spec.returns:
            return DataFacts(mean, std, *self.return_range())
        columns, rows = shard.store.columns, shard.store.live_rows()
        earned = columns["return_to_go"][rows[columns["flags"][rows] != FINAL]]  # [decisions]
        return DataFacts(mean, std, float(np.nanmin(earned)), float(np.nanmax(earned)))

    def return_range(self) -> tuple[float, float]:
        """Lowest and highest return of an episode."""
        returns = self.dataset.returns()[self.episodes]  # [E]
        return float(returns.min()), float(returns.max())


def locate(recipe: Recipe) -> Path | None:
    """Return the dataset folder that `data.source` names, absolute; None where it is not there yet."""
    if recipe.data is None:
        return None
    source = Path(recipe.data.source)
    places = [Path(recipe.folder or ".") / source, Path(FOLDER) / source]
    if source.is_absolute():
        places = [source]
    return next((place.absolute() for place in places if place.is_dir()), None)


def open_data(recipe: Recipe, groups: dict[str, GroupSpec]) -> Offline | None:
    """Open what `[data]` asks for.

    Args:
        recipe: the run.
        groups: the environment's, which the data must fit.
    Returns: None for a run without offline data.
    Raises: RecipeError: the dataset is missing, of other spaces, or larger than the store. DataError: it is
        damaged, or the filters leave nothing.
    """
    if recipe.data is None:
        return None
    keys, folder = recipe.data, locate(recipe)
    if folder is None:
        raise RecipeError(
            f"data.source={keys.source!r} is no folder beside the recipe or in ./{FOLDER}: there is nothing "
            "to learn from. Collect or import it (seqrl data --help), or name data.collect."
        )
    dataset = Dataset.open(folder)
    if len(groups) != 1:
        raise RecipeError(
            f"data.source={keys.source!r} with policies {sorted(groups)}: a dataset is one policy's. Use one "
            "policy."
        )
    (group,) = groups.values()
    for what in ("obs", "action", "frame_stack"):
        has, wants = getattr(dataset.group, what), getattr(group, what)
        if has != wants:
            raise RecipeError(
                f"data.source={keys.source!r} was made with {what} {has}, the environment has {wants}: the "
                "policy could not act on what it learned. Collect the data with this environment."
            )
    episodes = select(
        dataset,
        min_return=keys.min_return,
        top_share=keys.top_share,
        top_episodes=keys.top_episodes,
        max_episodes=keys.max_episodes,
    )
    offline = Offline(dataset, episodes)
    if offline.rows > recipe.replay.capacity_steps:
        raise RecipeError(
            f"replay.capacity_steps={recipe.replay.capacity_steps} is below the {offline.rows} rows of "
            f"{keys.source!r} that the run uses: the first episodes would be lost. Raise it, or filter."
        )
    return offline


def load_into(offline: Offline, shard: ReplayShard, algorithm: Algorithm) -> int:
    """Insert the data and tell the algorithm about it; returns the items that became sampleable.

    Action masks are the environment's business: those of data that was collected under a mask are left out
    where the run's own environment has none, and every action counts as legal where only the run has them.
    """
    items = 0
    for chunk in trajectories(offline.dataset, episodes=offline.episodes, policy_id=shard.group.policy_id):
        columns = {name: column for name, column in chunk.columns.items() if name != "legal"}
        if shard.group.masked:
            every = np.ones((chunk.rows, shard.group.action.n), np.bool_)  # [R, A]
            columns["legal"] = chunk.columns.get("legal", every)
        items += shard.insert(replace(chunk, columns=columns)).items
    algorithm.prepare(offline.facts(shard))
    return items
