"""Running the benchmarks of a checkout: `seqrl bench`.

They are files of their own, each with its peers, and are not in the wheel: what they compare with is no
dependency.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from seqrl_ray.errors import RecipeError, WorkerError, did_you_mean

NAMES = ("acting", "actors", "learners", "overlap", "pbt", "replay", "sequence", "throughput", "traffic_env")


def run_benchmark(name: str, arguments: Sequence[str] = ()) -> Any:
    """Run `benchmarks/<name>.py` in a process of its own and return the JSON it prints last.

    Raises: RecipeError: no such benchmark, no checkout here, a peer is missing, or its arguments are wrong.
        WorkerError: it failed; its own words are on stderr.
    """
    if name not in NAMES:
        raise RecipeError(
            f"NAME={name!r} is not a benchmark.{did_you_mean(name, NAMES)} Known: {', '.join(NAMES)}."
        )
    top = Path(__file__).resolve().parents[1]
    file = top / "benchmarks" / f"{name}.py"
    if not file.is_file():
        raise RecipeError(
            f"NAME={name}: {file} does not exist: benchmarks are not in the wheel. "
            "Run `seqrl bench` from a checkout that is installed with pip install -e."
        )
    path = os.pathsep.join(filter(None, [str(top), os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(
        [sys.executable, str(file), *arguments],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode == RecipeError.exit_code:
        raise RecipeError(f"benchmarks/{name}.py would not start; the reason is printed above.")
    if done.returncode:
        raise WorkerError(f"benchmarks/{name}.py failed with exit code {done.returncode}, see above.")
    return json.loads(done.stdout.splitlines()[-1])


def lines(result: Any, path: str = "") -> Iterator[str]:
    """Yield one `dotted.key  value` line per figure; raw stretches are left to `--json`."""
    if isinstance(result, Mapping):
        for key, value in result.items():
            if key != "stretches":
                yield from lines(value, f"{path}.{key}" if path else str(key))
    elif isinstance(result, list) and any(isinstance(value, Mapping) for value in result):
        for place, value in enumerate(result):
            yield from lines(value, f"{path}.{place}")
    else:
        yield f"{path:<60} {result}"
