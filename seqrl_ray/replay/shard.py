"""One shard of the experience service: store, items, sampler and view behind five calls.

`insert`, `sample`, `update_priorities`, `stats`, `check`; snapshots are in `snapshot.py`. A shard is a plain
object: an actor, a thread or a loop can own it; calls must not overlap.
Priorities follow Schaul et al. 2016 (https://arxiv.org/abs/1511.05952): mass = (|priority| + epsilon)^alpha;
a new item gets the largest priority seen, unless its row brings one in a column named `priority`.

Dims: M = U*B items of a draw.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqrl_ray.errors import RecipeError, ReplayError
from seqrl_ray.recipe_replay import ReplaySettings
from seqrl_ray.replay import views
from seqrl_ray.replay.columns import PRIORITY
from seqrl_ray.replay.items import ItemRule, NewItems
from seqrl_ray.replay.sampling import Mass, MassSampler, UniformSampler, check_priorities, global_weights
from seqrl_ray.replay.snapshot import Snapshot
from seqrl_ray.replay.store import Store
from seqrl_ray.types import Array, Batch, FloatArray, GroupSpec, ItemIds, SampleSpec
from seqrl_ray.types_env import Trajectory

Int64Array = NDArray[np.int64]
Float64Array = NDArray[np.float64]

_INCARNATION_SHIFT = 32
_RULES = ("sampler", "alpha", "priority_epsilon", "return_low", "return_high", "return_floor")
_ITEM_RULES = ("view", "n_step", "window_steps", "period_steps", "returns", "return_gamma")


@dataclass(frozen=True)
class InsertReply:
    """What an insert did."""

    items: int
    """Items that became sampleable."""
    rows: int
    """Rows stored."""
    duplicate_rows: int
    """Rows dropped: already held, or of an episode that is over."""
    refused_rows: int
    """Rows refused: of a dead or replaced writer."""


@dataclass(frozen=True)
class ShardStats:
    """What a shard holds and did."""

    items: int
    mass: float
    rows: int
    open_streams: int
    column_bytes: int
    memmap_bytes: int
    index_bytes: int
    inserted_items: int
    inserted_rows: int
    sampled_items: int
    evicted_rows: int
    duplicate_rows: int
    refused_rows: int
    stale_priorities: int
    max_priority: float
    mean_item_age_rows: float
    """Rows inserted since the items of the latest draw were, on average; NaN before the first draw."""


@dataclass
class _Counters:
    version: int = 0
    inserted_items: int = 0
    sampled_items: int = 0
    duplicate_rows: int = 0
    refused_rows: int = 0
    stale_priorities: int = 0


class ReplayShard:
    """One part of one policy's experience."""

    def __init__(
        self,
        group: GroupSpec,
        spec: SampleSpec,
        settings: ReplaySettings,
        seed: int,
        *,
        index: int = 0,
        incarnation: int = 0,
    ) -> None:
        """Allocate a shard.

        Args:
            group: what a row holds.
            spec: items and view.
            settings: capacity (an equal part per shard), sampler, eviction, memory.
            seed: of this shard's draws; give every shard its own.
            index: which shard this is; its items carry it.
            incarnation: how often this shard was restarted, in [0, 2^31): ids of an earlier life are stale.
        """
        self.group, self.spec, self.settings = group, spec, settings
        self.index, self.incarnation = index, incarnation
        capacity = settings.shard_capacity_steps
        _check_spec(spec, settings)
        folder = None
        if settings.memmap_folder is not None:
            folder = Path(settings.memmap_folder) / f"{group.policy_id}-shard{index}"
        self.store = Store(
            group,
            spec,
            capacity,
            eviction=settings.eviction,
            before_evict=self._before_evict,
            memory_bytes=settings.memory_bytes,
            folder=folder,
        )
        by_episode = settings.sampler in ("by_length", "by_return")
        self.rule = ItemRule(self.store, spec, by_episode=by_episode)
        self.sampler: UniformSampler | MassSampler
        self.sampler = UniformSampler(capacity) if settings.sampler == "uniform" else MassSampler(capacity)
        self._rng = np.random.default_rng(seed)
        self._max_priority = 1.0
        self._counters = _Counters()
        self._snapshot: Snapshot | None = None
        self._latest: Int64Array = np.zeros(0, np.int64)  # rows of the latest draw

    # --- the five calls

    def insert(self, trajectory: Trajectory) -> InsertReply:
        """Store a fragment; what is held already is dropped.

        Raises: ReplayError: it does not fit the group, the spec or the capacity.
        """
        stored = self.store.insert(trajectory)
        new = self.rule.completed(stored)
        self.sampler.add(new.rows, self._first_mass(new))
        counters = self._counters
        counters.version += 1
        counters.inserted_items += new.rows.size
        counters.duplicate_rows += stored.duplicate_rows
        counters.refused_rows += stored.refused_rows
        return InsertReply(
            int(new.rows.size), int(stored.rows.size), stored.duplicate_rows, stored.refused_rows
        )

    def sample(self, updates: int, batch: int, beta: float | None = None) -> Batch:
        """Draw U minibatches of B items at once.

        Args:
            updates: U >= 1.
            batch: B >= 1.
            beta: importance-weight exponent in [0, 1]; None = `beta_start`. Even draws weigh 1 whatever it
                is.

        Returns: `Transitions` or `Windows` as the spec says; probabilities and weights are this shard's.
        Raises: ReplayError: there is no item.
        """
        count = updates * batch
        rows, probability = self.sampler.draw(count, self._rng)
        if updates > 1 and isinstance(self.sampler, MassSampler):
            order = self._rng.permutation(count)  # strata are in order: a minibatch were one end
            rows, probability = rows[order], probability[order]
        probability = probability.reshape(updates, batch)
        if isinstance(self.sampler, UniformSampler):
            weight = np.ones((updates, batch), np.float32)
        else:
            weight = global_weights(probability, self.sampler.count, self._beta(beta))
        self._counters.sampled_items += count
        self._latest = rows
        read = views.transitions if self.spec.view == "transitions" else views.windows
        return read(self.store, self.spec, rows, probability, weight, self._ids(rows))

    def update_priorities(self, ids: ItemIds, priorities: FloatArray) -> int:
        """Write priorities back; those of items that have left since are ignored.

        Args:
            ids: names of M items of this shard.
            priorities: M values >= 0, any shape.

        Returns: how many were stale.
        Raises: ReplayError: a count, a sign or a shard index is wrong.
        """
        values = check_priorities(priorities, len(ids))
        if len(ids) and (ids.shard != self.index).any():
            raise ReplayError(
                f"ids name shard {int(ids.shard[ids.shard != self.index][0])}, this is shard {self.index}: "
                "other items would get the priorities. Send each shard its own."
            )
        if self.settings.sampler != "prioritised" or not isinstance(self.sampler, MassSampler):
            return 0
        rows = np.asarray(ids.row, np.int64)
        fresh = self._generations(rows) == ids.generation
        fresh &= self.sampler.live(rows)
        stale = rows.size - int(np.count_nonzero(fresh))
        if stale:
            rows, values = rows[fresh], values[fresh]
        if rows.size:
            self._max_priority = max(self._max_priority, float(values.max()))
            self.sampler.change(rows, self._mass(values))
            self._counters.version += 1
        self._counters.stale_priorities += stale
        return stale

    def stats(self) -> ShardStats:
        """Counters and sizes now."""
        c = self._counters
        return ShardStats(
            items=self.sampler.count,
            mass=self.sampler.total,
            rows=self.store.used,
            open_streams=self.store.streams.open,
            column_bytes=self.store.nbytes,
            memmap_bytes=self.store.memmap_bytes,
            index_bytes=self.sampler.nbytes,
            inserted_items=c.inserted_items,
            inserted_rows=self.store.inserted_rows,
            sampled_items=c.sampled_items,
            evicted_rows=self.store.evicted_rows,
            duplicate_rows=c.duplicate_rows,
            refused_rows=c.refused_rows,
            stale_priorities=c.stale_priorities,
            max_priority=self._max_priority,
            mean_item_age_rows=self._age_rows(),
        )

    def check(self) -> None:
        """Raise ReplayError if links, items or masses contradict each other. Slow: for tests and doctors."""
        self.store.check()
        self.sampler.check()
        self.rule.check(self.sampler.rows())

    # --- beside the five calls

    @property
    def items(self) -> int:
        """Live items."""
        return self.sampler.count

    @property
    def mass(self) -> Mass:
        """Basis of a draw over several shards."""
        return Mass(self.sampler.total, self.sampler.count, self._counters.version)

    @property
    def max_priority(self) -> float:
        """Largest priority seen: what a new item gets."""
        return self._max_priority

    def raise_max_priority(self, value: float) -> None:
        """Tell the largest priority seen by other shards, so that new items start alike everywhere."""
        self._max_priority = max(self._max_priority, value)

    def writer_gone(self, writer: str) -> int:
        """Close a dead writer's open streams as cut; returns how many there were."""
        return self.store.writer_gone(writer)

    def keep_best(self, rows: int) -> int:
        """Let the worst episodes go until at most `rows` rows are stored; see `Store.keep_best`."""
        self._counters.version += 1
        return self.store.keep_best(rows)

    def respec(self, spec: SampleSpec) -> None:
        """Read items by another spec of the same items from now on: another discount."""
        if any(getattr(spec, name) != getattr(self.spec, name) for name in _ITEM_RULES):
            raise ReplayError(f"{spec} makes other items than {self.spec}: what is stored has none of them.")
        self.spec = spec

    def own_rows(self, seed: int) -> None:
        """Make another run's rows, just restored, ours: no stream goes on, draws follow `seed`."""
        self.store.forget_writers()
        self._rng = np.random.default_rng(seed)

    def begin_snapshot(self, folder: Path) -> Snapshot:
        """Freeze the present version; its `write_slice` is then called between other calls until it returns
        True.

        Raises: ReplayError: another snapshot is not finished. CheckpointError: the folder cannot be written.
        """
        if self._snapshot is not None and not self._snapshot.done:
            raise ReplayError(
                "begin_snapshot while another snapshot is being written: rows would be kept twice. Finish "
                "that one first."
            )
        self._snapshot = Snapshot(
            self.store,
            folder,
            item_columns=self.sampler.columns(),
            description={"rules": self.rules(), "state": self.state()},
            slice_bytes=self.settings.snapshot_slice_bytes,
        )
        return self._snapshot

    def rules(self) -> dict[str, Any]:
        """What a snapshot and the shard it is restored to must share."""
        kept = {name: getattr(self.settings, name) for name in _RULES}
        spec = asdict(self.spec)
        return kept | {"policy_id": self.group.policy_id} | {name: spec[name] for name in _ITEM_RULES}

    def state(self) -> dict[str, Any]:
        """Everything but columns and items, as numbers, strings and lists."""
        return {
            "store": self.store.state(),
            "counters": asdict(self._counters),
            "max_priority": self._max_priority,
            "rng": self._rng.bit_generator.state,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` returned; columns and items must be what they were (see `restore.py`)."""
        self.store.restore(state["store"])
        self._counters = _Counters(**state["counters"])
        self._max_priority = float(state["max_priority"])
        self._rng.bit_generator.state = state["rng"]

    def adopt_items(self, rows: Int64Array, columns: Mapping[str, Array]) -> None:
        """Make items of those of `rows` [R] that `columns` say were items and that have all they read."""
        serving = np.isin(rows, self.rule.still_serving(rows))
        self.sampler.adopt(rows[serving], {name: column[serving] for name, column in columns.items()})
        self._counters.version += 1

    def _age_rows(self) -> float:
        if self._latest.size == 0:
            return float("nan")
        return float(self.store.inserted_rows - self.store.columns["serial"][self._latest].mean())

    def _first_mass(self, new: NewItems) -> Float64Array | float:
        """Mass of items that have just become sampleable."""
        kind = self.settings.sampler
        if kind == "uniform":
            return 1.0
        if kind == "prioritised":
            given = self.store.columns.get(PRIORITY)
            if given is None:
                return float(self._mass(np.array([self._max_priority]))[0])
            first = given[new.rows].astype(np.float64)
            return self._mass(np.where(np.isnan(first), self._max_priority, np.abs(first)))
        assert (
            new.episode_steps is not None and new.episode_return is not None and new.episode_items is not None
        )
        chance: Float64Array = new.episode_steps.astype(np.float64)
        if kind == "by_return":
            low, high, floor = self.settings.return_low, self.settings.return_high, self.settings.return_floor
            share = np.clip((new.episode_return - low) / (high - low), 0.0, 1.0)
            chance = floor + (1.0 - floor) * share
        return chance / new.episode_items

    def _mass(self, priority: Float64Array) -> Float64Array:
        mass = priority + self.settings.priority_epsilon
        np.power(mass, self.settings.alpha, out=mass)
        return mass

    def _beta(self, beta: float | None) -> float:
        return self.settings.beta_start if beta is None else beta

    def _generations(self, rows: Int64Array) -> Int64Array:
        return self.store.generation.take(rows) + np.int64(self.incarnation << _INCARNATION_SHIFT)

    def _ids(self, rows: Int64Array) -> ItemIds:
        return ItemIds(np.full(rows.size, self.index, np.int32), rows, self._generations(rows))

    def _before_evict(self, rows: Int64Array) -> None:
        if self._snapshot is not None:
            self._snapshot.preserve(rows)
        self.sampler.remove(self.rule.readers(rows))


def _check_spec(spec: SampleSpec, settings: ReplaySettings) -> None:
    """Raise RecipeError if the spec makes no sense, or can never give an item in this capacity."""
    for name in ("n_step", "window_steps", "period_steps"):
        if getattr(spec, name) < 1:
            raise RecipeError(
                f"{name}={getattr(spec, name)} is below 1: no item could exist. Set it to 1 or more."
            )
    if spec.burn_in_steps >= spec.window_steps and spec.view == "windows":
        raise RecipeError(
            f"burn_in_steps={spec.burn_in_steps} leaves nothing of window_steps={spec.window_steps} to learn "
            "from: every loss would be empty. Lower burn_in_steps or raise window_steps."
        )
    if spec.returns and spec.view != "windows":
        raise RecipeError(
            "returns=True with view='transitions': transitions carry no returns-to-go. Use view='windows' "
            "or returns=False."
        )
    horizon = spec.n_step if spec.view == "transitions" else spec.window_steps
    if settings.shard_capacity_steps <= horizon:
        raise RecipeError(
            f"capacity_steps={settings.capacity_steps} over {settings.shards} shards is not more than the "
            f"{horizon} steps of one item: none would ever be whole. Raise capacity_steps or use fewer "
            "shards."
        )
