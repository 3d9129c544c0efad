"""`seqrl --help` answers at once: nothing heavy is imported before a command needs it. Counted in modules,
not seconds.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = {"ale_py", "fsspec", "gymnasium", "h5py", "libsumo", "matplotlib", "minari", "mujoco", "numpy"}
HEAVY |= {"pettingzoo", "pyarrow", "ray", "safetensors", "sumo_rl", "tensorboardX", "torch"}
MODULES_LIMIT = 600
"""The standard library, typer and rich."""


def python(code: str, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *args], cwd=ROOT, capture_output=True, text=True, check=True
    )


def imported(*args: str) -> tuple[set[str], int, str]:
    """Top-level packages, number of modules and standard output of a `seqrl ARGS` in a process of its own."""
    code = (
        "import json, sys\n"
        "from seqrl_ray.cli import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "except SystemExit as stop:\n    assert not stop.code, stop.code\n"
        "sys.stderr.write(json.dumps(sorted(sys.modules)))\n"
    )
    done = python(code, *args)
    modules = json.loads(done.stderr)
    return {name.partition(".")[0] for name in modules}, len(modules), done.stdout


@pytest.mark.parametrize(
    "args", [["--help"], ["train", "--help"], ["data", "import", "--help"], ["--version"]]
)
def test_help_imports_nothing_heavy(args):
    packages, count, out = imported(*args)
    assert out
    assert not packages & HEAVY
    assert count < MODULES_LIMIT


def test_the_probe_sees_heavy_imports():
    packages, _, _ = imported("check", "classic/mined_chain", "--steps", "2")
    assert {"numpy", "gymnasium", "torch"} <= packages


def test_importing_the_package_imports_nothing_else():
    code = "import sys; before = set(sys.modules); import seqrl_ray; print(*(set(sys.modules) - before))"
    done = python(code)
    ours = {name for name in done.stdout.split() if name.startswith("seqrl_ray")}
    assert ours == {"seqrl_ray"}
    assert len(done.stdout.split()) < 50  # typing and what it stands on


def test_every_command_is_listed():
    _, _, out = imported("--help")
    for command in ("train", "evaluate", "data", "report", "check", "doctor"):
        assert f" {command} " in out
