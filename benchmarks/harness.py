"""What the benchmarks share: contestants that take turns, medians and ratios, and the facts of the machine.

A contestant is run for one stretch at a time and says what it counted. All stretches lie in one invocation,
in turn, in reversed order every second time, so that whatever else the machine does hits all alike. A figure
is the median of the stretches, a ratio the median of the ratios of the stretches that belong together.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

LEAST_REPEATS = 5
"""A median of fewer says little."""

CARTPOLE = (
    "algorithm.hidden=[64, 64]",
    "algorithm.n_step=1",
    "algorithm.learning_rate=5e-4",
    "algorithm.lr_decay_start=1.0",
    "algorithm.max_grad_norm=10.0",
    "algorithm.target_tau=0.0",
    "algorithm.target_period_updates=500",
    "learner.batch_size=32",
    "learner.updates_per_call=16",
    "learner.checkpoint_every_s=0",
    "replay.samples_per_insert=32.0",
    "replay.capacity_steps=50_000",
    "replay.min_items=1_000",
    "stop.env_steps=2_000_000_000",
)
"""Our side of every DQN comparison on CartPole: 64-64, batches of 32, one update per environment step."""

WARM_UPDATES = 500
"""Updates before anything is timed."""


@dataclass(frozen=True)
class Stretch:
    """What one contestant did in one stretch."""

    env_steps: int
    updates: int
    seconds: float

    @property
    def env_steps_per_s(self) -> float:
        return self.env_steps / self.seconds

    @property
    def updates_per_s(self) -> float:
        return self.updates / self.seconds


class Contestant(Protocol):
    """Something that trains (or only steps) for about as long as it is told; warmed up when it is made."""

    def run(self, seconds: float) -> Stretch: ...


def alternate(
    contestants: Mapping[str, Contestant], repeats: int, seconds: float
) -> dict[str, list[Stretch]]:
    """Let every contestant run `repeats` stretches of about `seconds`, in turn."""
    done: dict[str, list[Stretch]] = {name: [] for name in contestants}
    for repeat in range(repeats):
        for name in list(contestants) if repeat % 2 == 0 else reversed(list(contestants)):
            done[name].append(contestants[name].run(seconds))
    return done


def figures(stretches: Sequence[Stretch]) -> dict[str, Any]:
    """Medians of one contestant, and every stretch."""
    steps = [s.env_steps_per_s for s in stretches]
    updates = [s.updates_per_s for s in stretches]
    counted = sum(s.updates for s in stretches) / sum(s.env_steps for s in stretches)
    return {
        "env_steps_per_s": round(statistics.median(steps), 1),
        "updates_per_s": round(statistics.median(updates), 1),
        "updates_per_env_step": round(counted, 4),
        "stretches": [[round(a, 1), round(b, 1)] for a, b in zip(steps, updates, strict=True)],
    }


def ratios(mine: Sequence[Stretch], other: Sequence[Stretch]) -> dict[str, float]:
    """Compare ours with a peer's stretches, pair by pair; above 1 ours is faster."""
    pairs = list(zip(mine, other, strict=True))
    found = {
        "env_steps_per_s": round(
            statistics.median(a.env_steps_per_s / b.env_steps_per_s for a, b in pairs), 3
        )
    }
    if other[0].updates:
        found["updates_per_s"] = round(
            statistics.median(a.updates_per_s / b.updates_per_s for a, b in pairs), 3
        )
    return found


def best(names: Sequence[str], done: Mapping[str, Sequence[Stretch]]) -> str:
    """Return the fastest by its median of environment steps per second."""
    return max(names, key=lambda name: statistics.median(s.env_steps_per_s for s in done[name]))


@dataclass(frozen=True)
class Asked:
    """What the command line asks for."""

    sections: list[str]
    repeats: int
    seconds: float
    quick: bool
    others: argparse.Namespace

    def facts(self) -> dict[str, Any]:
        """What a result says of it."""
        return {"quick": self.quick, "repeats": self.repeats, "stretch_s": self.seconds}


def asked(
    description: str | None,
    sections: Sequence[str],
    *,
    seconds: float,
    quick_s: float,
    others: Mapping[str, Mapping[str, Any]] | None = None,
) -> Asked:
    """Read the command line of a benchmark of named sections.

    Args:
        description: of the benchmark.
        sections: names there are; all of them by default.
        seconds: length of a stretch by default.
        quick_s: length of a stretch with --quick, which makes two.
        others: further options, as `add_argument` takes them.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--section", choices=sorted(sections), action="append", help="run this one only; may be repeated"
    )
    parser.add_argument(
        "--repeats", type=int, default=7, help=f"stretches of each contestant, at least {LEAST_REPEATS}"
    )
    parser.add_argument("--seconds", type=float, default=seconds, help="length of a stretch")
    parser.add_argument("--quick", action="store_true", help="two short stretches: a smoke test")
    for name, options in (others or {}).items():
        parser.add_argument(name, **options)
    given = parser.parse_args()
    if given.repeats < LEAST_REPEATS:
        parser.error(
            f"--repeats={given.repeats} is below {LEAST_REPEATS}: a median of fewer says little. Use more."
        )
    repeats, length = (2, quick_s) if given.quick else (given.repeats, given.seconds)
    return Asked(given.section or list(sections), repeats, length, given.quick, given)


def require(package: str, install: str) -> None:
    """End with one line unless a peer's package is installed."""
    if not any(importlib.metadata.distributions(name=package)):
        sys.stderr.write(f"{package} is not installed: there is nothing to compare with. Run: {install}\n")
        raise SystemExit(2)


def machine(benchmark: str, packages: Sequence[str]) -> dict[str, Any]:
    """Say what was run, on what, beside which load."""
    top = Path(__file__).resolve().parents[1]
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=top, capture_output=True, text=True, check=False
    )
    return {
        "benchmark": benchmark,
        "command": " ".join(["python", *sys.argv]),
        "commit": git.stdout.strip() or None,
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "cores": os.cpu_count(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }
