"""The `[replay]` table of a recipe: how experience is kept, drawn and paced.

Sources of the defaults: prioritised replay alpha, beta (Schaul et al. 2016, https://arxiv.org/abs/1511.05952,
section 4, the proportional variant); samples per insert of DQN (Mnih et al. 2015: a batch of 32 every 4 steps
= 8). Units: a *step* is one stored row, an *item* is what an algorithm's `SampleSpec` names (a step, a window
start).
"""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from seqrl_ray.recipe_labels import LabelSelector
from seqrl_ray.settings import Settings, key

Sampler = Literal["uniform", "prioritised", "by_length", "by_return"]
Eviction = Literal["fifo_steps", "fifo_episodes", "lowest_return_first"]


class ReplaySettings(Settings):
    """How one policy's experience is stored, sampled and paced."""

    sampler: Sampler = key(
        "uniform",
        "how items are drawn; by_length and by_return choose a finished episode first, then a start inside "
        "it evenly",
    )
    alpha: float = key(0.6, "exponent of the priority; 0 is uniform", ge=0.0, le=1.0)
    beta_start: float = key(
        0.4, "importance-weight exponent at the run's start", mutable=True, ge=0.0, le=1.0
    )
    beta_end: float = key(1.0, "importance-weight exponent at the run's end", mutable=True, ge=0.0, le=1.0)
    priority_epsilon: float = key(1e-6, "added to every priority, so that no item is lost for ever", gt=0.0)
    return_low: float = key(
        0.0, "by_return: at or under this return an episode has its smallest chance", unit="return"
    )
    return_high: float = key(
        1.0, "by_return: at or over this return an episode has its largest chance", unit="return"
    )
    return_floor: float = key(
        0.01, "by_return: smallest chance of an episode as a share of the largest", gt=0.0, le=1.0
    )
    capacity_steps: int = key(100_000, "stored rows over all shards", unit="steps", ge=2, le=2**31 - 1)
    eviction: Eviction = key(
        "fifo_steps", "what leaves when the store is full; the last two drop whole episodes"
    )
    min_items: int = key(1_000, "items inserted before the first draw", unit="items", ge=1)
    samples_per_insert: float | None = key(
        8.0, "items drawn per item inserted, held from both sides; none = not paced", mutable=True, gt=0.0
    )
    band_items: float | None = key(
        None,
        "how far the two sides may run apart, in inserted items, each way; none = the least that cannot "
        "deadlock",
        unit="items",
        mutable=True,
        gt=0.0,
    )
    shards: int = key(1, "independent parts of the store", ge=1, le=1_024)
    wiring: Literal["auto", "colocated", "service"] = key(
        "auto",
        "colocated: the learner's process owns the one shard; service: shards are processes of their own",
    )
    memory_bytes: int | None = key(
        None,
        "RAM for the columns of one shard; larger columns go to memmap_folder; none = no limit",
        unit="bytes",
        ge=0,
    )
    memmap_folder: str | None = key(None, "local folder for the columns that exceed memory_bytes")
    snapshot_slice_bytes: int = key(
        4_000_000,
        "most bytes that one slice of a snapshot writes between two requests",
        unit="bytes",
        ge=4_096,
    )

    label_selector: LabelSelector = key(
        {}, "labels of the cluster's nodes that the shards may stand on; empty = where the learner is"
    )

    @model_validator(mode="after")
    def _rules(self) -> ReplaySettings:
        if self.min_items > self.capacity_steps:
            raise ValueError(
                f"min_items={self.min_items} exceeds capacity_steps={self.capacity_steps}: sampling would "
                "never start. Lower min_items or raise capacity_steps."
            )
        if self.capacity_steps < 2 * self.shards:
            raise ValueError(
                f"shards={self.shards} leaves fewer than 2 of capacity_steps={self.capacity_steps} to each: "
                "no transition fits. Lower shards."
            )
        if self.sampler == "by_return" and self.return_high <= self.return_low:
            raise ValueError(
                f"return_high={self.return_high} is not above return_low={self.return_low}: episodes cannot "
                "be told apart. Raise return_high."
            )
        if self.memory_bytes is not None and self.memmap_folder is None:
            raise ValueError(
                f"memory_bytes={self.memory_bytes} is set without memmap_folder: there is nowhere to put the "
                "rest. Set memmap_folder to a local folder."
            )
        if self.wiring == "colocated" and self.shards != 1:
            raise ValueError(
                f"wiring='colocated' with shards={self.shards}: the learner's process owns one shard only. "
                "Set shards=1 or wiring='service'."
            )
        if self.wiring == "colocated" and self.label_selector:
            raise ValueError(
                f"wiring='colocated' with label_selector={self.label_selector}: the shard stands in the "
                "learner's process. Set learner.label_selector, or wiring='service'."
            )
        return self

    @property
    def shard_capacity_steps(self) -> int:
        """Rows of one shard: an equal part of `capacity_steps`, rounded down."""
        return self.capacity_steps // self.shards

    def beta(self, progress: float) -> float:
        """Importance-weight exponent when `progress` in [0, 1] of the run's budget is spent (linear)."""
        share = min(max(progress, 0.0), 1.0)
        return self.beta_start + (self.beta_end - self.beta_start) * share
