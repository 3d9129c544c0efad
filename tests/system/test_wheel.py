"""The built wheel is whole: recipes and data folders inside, and it runs from another folder than the
checkout.
"""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
DATA_FOLDERS = ("envs", "tune", "cluster", "docker")


def run(*command: str | Path, cwd: Path, **environ: str) -> str:
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(
        [str(c) for c in command],
        cwd=cwd,
        env={**clean, **environ},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build from a copy of what the wheel is made of, so that no build folder is left in the checkout."""
    source = tmp_path_factory.mktemp("source")
    for name in ("seqrl_ray", *DATA_FOLDERS):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    out = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", out, source, cwd=out)
    (found,) = out.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel in it, that finds the dependencies where this one has them."""
    home = tmp_path_factory.mktemp("venv")
    run(sys.executable, "-m", "venv", "--without-pip", home, cwd=home)
    mine = home / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", mine, wheel, cwd=home)
    (mine / "dependencies.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    return home / "bin" / "python"


def test_the_data_folders_are_inside(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder in DATA_FOLDERS:
        ours = {str(p.relative_to(ROOT)) for p in (ROOT / folder).rglob("*") if p.is_file()}
        assert ours
        assert {f"seqrl_ray/_data/{name}" for name in ours} <= names
    assert "seqrl_ray/cli.py" in names
    assert not [
        name for name in names if name.startswith(("tests/", "benchmarks/", "envs/")) or "__pycache__" in name
    ]
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_recipes_are_found_by_name(python, tmp_path):
    code = "import seqrl_ray as s, seqrl_ray.recipe as r; print(s.__file__, *r.shipped(), sep='\\n')"
    place, *names = run(python, "-c", code, cwd=tmp_path).split()
    assert Path(place).is_relative_to(python.parents[1])  # the wheel's, not the checkout's
    envs = ROOT / "envs"
    assert names == sorted(str(p.relative_to(envs).with_suffix("")) for p in envs.rglob("*.toml"))


def test_check_and_train_run_from_another_folder(python, tmp_path):
    out = run(python, "-m", "seqrl_ray.cli", "check", "classic/cartpole", "--steps", "20", cwd=tmp_path)
    assert "OK: the environment kept the contract" in out
    small = ["stop.env_steps=400", "evaluation.episodes=1", "replay.min_items=64"]
    command = ["train", "classic/cartpole", *small, "--local", "--run-dir", "run"]
    run(python, "-m", "seqrl_ray.cli", *command, cwd=tmp_path, OMP_NUM_THREADS="1")
    assert (tmp_path / "run" / "report.html").is_file()
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
