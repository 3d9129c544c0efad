"""What people watch while a run goes on: one live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import IO, Any

from seqrl_ray.loops.judge import Job
from seqrl_ray.recipe import Recipe


class Silence:
    """Shows nothing."""

    def train(self, row: Mapping[str, Any], at_s: float, headline: float | None) -> None: ...
    def note(self, text: str) -> None: ...
    def judge(self, job: Job, done: int, total: int) -> None: ...


class ProgressLine:
    """Writes steps, updates, headline metric, rates, lag and time left."""

    def __init__(self, recipe: Recipe, stream: IO[str] | None = None, plain_every_s: float = 10.0) -> None:
        self.recipe = recipe
        self.stream = sys.stderr if stream is None else stream
        self.live = self.stream.isatty()
        self.plain_every_s = plain_every_s
        self._last_plain = -1e9
        self._open = False

    def train(self, row: Mapping[str, Any], at_s: float, headline: float | None) -> None:
        """Show one report row."""
        finished = row["progress"] >= 1.0
        if not self.live and not finished and time.monotonic() - self._last_plain < self.plain_every_s:
            return
        self._last_plain = time.monotonic()
        rate, offline = row["env_steps_per_s"], self.recipe.offline_updates
        left = (self.recipe.stop.env_steps - row["env_steps"]) / rate if rate > 0 else None
        if row["updates"] < offline and row["updates_per_s"] > 0:
            left = (offline - row["updates"]) / row["updates_per_s"]  # of this phase
        lag = row.get("policy_lag_p50")
        parts = [
            f"{self.recipe.name} {row['progress']:4.0%}",
            f"{row['env_steps']:,} steps",
            f"{row['updates']:,} updates",
            f"{row['episodes']:,} episodes",
        ]
        if headline is not None:
            parts.append(f"{self.recipe.evaluation.headline} {headline:.1f}")
        parts.append(f"{rate:,.0f} steps/s {row['updates_per_s']:,.0f} updates/s")
        if lag is not None:
            parts.append(f"lag {lag:.0f}")
        if left is not None and not finished:
            parts.append(f"{_span(left)} left")
        self._write(" | ".join(parts), keep=not self.live or finished)

    def note(self, text: str) -> None:
        """Show one line that stays."""
        self._write(text, keep=True)

    def judge(self, job: Job, done: int, total: int) -> None:
        """Show how far the final evaluation is."""
        last = done == total
        if self.live or last or time.monotonic() - self._last_plain >= self.plain_every_s:
            self._last_plain = time.monotonic()
            self._write(
                f"evaluating: {done}/{total} jobs, last {job.name} ({len(job.seeds)} episodes)",
                keep=not self.live or last,
            )

    def _write(self, text: str, *, keep: bool) -> None:
        if self.live:
            self.stream.write("\r\x1b[2K" + text + ("\n" if keep else ""))
        else:
            self.stream.write(text + "\n")
        self.stream.flush()


def _span(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
