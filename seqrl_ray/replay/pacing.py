"""Samples per insert, held from both sides.

The equation (Reverb's rate limiter, Cassirer et al. 2021, https://arxiv.org/abs/2102.04736, with the warm-up
taken out of the count):

    credit = (inserted - min_items) * samples_per_insert - sampled,    kept in [-band, +band] (band in
    samples)

A draw of n items may start when inserted >= min_items and credit - n >= -band; an insert that may release n
items may start when credit + n * samples_per_insert <= band, and always during warm-up. So the relative error
of sampled / (inserted - min_items) is at most band_items / (inserted - min_items) at any moment, undrained.
Both sides can be held at once only if 2 band < draw + burst * samples_per_insert: such settings are refused.

With several shards, each holds a `Pacing` and is told what was inserted and sampled elsewhere: one global
equation.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from seqrl_ray.errors import RecipeError

Side = Literal["insert", "sample"]


@dataclass(frozen=True)
class PacingReport:
    """Counters as they stand now."""

    inserted: int
    sampled: int
    samples_per_insert: float
    """sampled / (inserted - min_items); NaN while nothing counts yet."""
    error: float
    """|samples_per_insert / wanted - 1|; NaN while nothing counts yet or nothing is wanted."""
    insert_wait_s: float
    sample_wait_s: float


class Pacing:
    """Counts items inserted and sampled and says which side may go on."""

    def __init__(
        self,
        samples_per_insert: float | None,
        min_items: int,
        *,
        draw_items: int,
        burst_items: int,
        band_items: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Set the equation.

        Args:
            samples_per_insert: items drawn per item inserted; None = neither side is held after warm-up.
            min_items: items inserted before the first draw.
            draw_items: most items one draw takes (U*B).
            burst_items: most items one insert can release.
            band_items: how far the sides may run apart, in inserted items, each way; None = the least that
                cannot deadlock, (draw_items / samples_per_insert + burst_items) / 2.
            clock: seconds, for waits.

        Raises: RecipeError: the band deadlocks.
        """
        self.min_items, self.draw_items, self.burst_items = min_items, draw_items, burst_items
        self._clock = clock
        self._inserted = self._sampled = 0
        self._elsewhere = (0, 0)
        self._base = (min_items, 0)  # inserted and sampled where the present ratio began to count
        self._held_since: dict[Side, float] = {}
        self._waited_s: dict[Side, float] = {"insert": 0.0, "sample": 0.0}
        self.samples_per_insert, self.band_items = samples_per_insert, 0.0
        self._set(samples_per_insert, band_items)

    @property
    def inserted(self) -> int:
        """Items inserted, here and elsewhere."""
        return self._inserted + self._elsewhere[0]

    @property
    def sampled(self) -> int:
        """Items sampled, here and elsewhere."""
        return self._sampled + self._elsewhere[1]

    @property
    def inserted_here(self) -> int:
        """Items counted by `count_inserted` of this object: what other shards are told."""
        return self._inserted

    @property
    def sampled_here(self) -> int:
        """Items counted by `count_sampled` of this object: what other shards are told."""
        return self._sampled

    @property
    def credit(self) -> float:
        """Samples owed (positive) or drawn ahead (negative); 0 where nothing is paced."""
        if self.samples_per_insert is None:
            return 0.0
        return (self.inserted - self._base[0]) * self.samples_per_insert - (self.sampled - self._base[1])

    def may_insert(self, items: int | None = None) -> bool:
        """Whether an insert that may release `items` items (default: the largest burst) may start now.

        A refusal starts the insert side's wait clock; the next permission stops it. The same holds for
        `may_sample`.
        """
        burst = self.burst_items if items is None else items
        spi = self.samples_per_insert
        may = spi is None or self.inserted < self.min_items or self.credit + burst * spi <= self._band()
        return self._answer("insert", may)

    def may_sample(self, items: int | None = None) -> bool:
        """Whether a draw of `items` items (default: the largest draw) may start now."""
        draw = self.draw_items if items is None else items
        warm = self.inserted >= self.min_items
        may = warm and (self.samples_per_insert is None or self.credit - draw >= -self._band())
        return self._answer("sample", may)

    def count_inserted(self, items: int) -> None:
        """Count items that became sampleable here."""
        self._inserted += items

    def count_sampled(self, items: int) -> None:
        """Count items drawn here."""
        self._sampled += items

    def elsewhere(self, inserted: int, sampled: int) -> None:
        """Set what other shards counted so far, in all."""
        self._elsewhere = (inserted, sampled)

    def count_shared(self, items: int) -> None:
        """Count items drawn here that the total held as drawn elsewhere already."""
        self._sampled += items
        self._elsewhere = (self._elsewhere[0], self._elsewhere[1] - items)

    def retune(self, samples_per_insert: float | None, band_items: float | None = None) -> None:
        """Change the ratio in a living run: it counts from here on, what was owed is forgotten.

        Raises: RecipeError: the band deadlocks; nothing is changed.
        """
        self._set(samples_per_insert, band_items)
        self._base = (max(self.inserted, self.min_items), self.sampled)

    def report(self) -> PacingReport:
        """Counters and waits, a wait in progress included."""
        counted = self.inserted - self._base[0]
        ratio = (self.sampled - self._base[1]) / counted if counted > 0 else float("nan")
        wanted = self.samples_per_insert
        return PacingReport(
            inserted=self.inserted,
            sampled=self.sampled,
            samples_per_insert=ratio,
            error=float("nan") if wanted is None else abs(ratio / wanted - 1.0),
            insert_wait_s=self._wait_s("insert"),
            sample_wait_s=self._wait_s("sample"),
        )

    def state(self) -> dict[str, Any]:
        """Counters and waits."""
        return {
            "inserted": self._inserted,
            "sampled": self._sampled,
            "elsewhere": list(self._elsewhere),
            "base": list(self._base),
            "waited_s": {side: self._wait_s(side) for side in self._waited_s},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` returned; the ratio and the band are the present ones."""
        self._inserted, self._sampled = int(state["inserted"]), int(state["sampled"])
        self._elsewhere = (int(state["elsewhere"][0]), int(state["elsewhere"][1]))
        self._base = (int(state["base"][0]), int(state["base"][1]))
        self._waited_s = {
            "insert": float(state["waited_s"]["insert"]),
            "sample": float(state["waited_s"]["sample"]),
        }
        self._held_since = {}

    def _set(self, samples_per_insert: float | None, band_items: float | None) -> None:
        if samples_per_insert is None:
            self.samples_per_insert, self.band_items = None, 0.0
            return
        draw, burst = self.draw_items, self.burst_items * samples_per_insert
        least = (draw + burst) / 2.0 / samples_per_insert
        band = least if band_items is None else band_items
        if band < least * (1.0 - 1e-12):
            raise RecipeError(
                f"replay.band_items={band:g} is smaller than half of one draw ({draw} samples = "
                f"{draw / samples_per_insert:g} items) and one burst ({self.burst_items} items): deadlock, "
                f"inserts wait for a draw that waits for inserts. Set replay.band_items to {least:g} or "
                "more, or draw fewer minibatches at once."
            )
        self.samples_per_insert, self.band_items = samples_per_insert, band

    def _band(self) -> float:
        """Band in samples, with room for rounding."""
        return self.band_items * (self.samples_per_insert or 0.0) + 1e-6

    def _answer(self, side: Side, may: bool) -> bool:
        if not may:
            self._held_since.setdefault(side, self._clock())
        elif side in self._held_since:
            self._waited_s[side] += self._clock() - self._held_since.pop(side)
        return may

    def _wait_s(self, side: Side) -> float:
        since = self._held_since.get(side)
        return self._waited_s[side] + (0.0 if since is None else self._clock() - since)
