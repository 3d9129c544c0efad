"""The house rules as tests: who may import whom, how long a read is, and what may stand where.

The table below is the contract; change it in the same commit as the design it stands for. Imports are read
from the syntax tree of every file, so one inside a function counts like one at the top.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "seqrl_ray"

BASE = {"types", "errors", "settings"}
RECIPE = BASE | {"recipe"}

MAY_IMPORT: dict[str, set[str]] = {
    # room: rooms of the package and outside packages (the standard library is free to all)
    "": set(),  # __init__.py: everything on first use, through api
    "types": {"numpy"},
    "types_env": {"types", "numpy"},
    "errors": set(),
    "settings": {"errors", "pydantic", "pydantic_core"},
    "recipe": BASE | {"pydantic"},
    "envs": RECIPE | {"types_env", "numpy", "gymnasium", "pettingzoo", "ale_py", "libsumo", "traci"},
    "replay": RECIPE | {"types_env", "numpy", "pyarrow"},
    "networks": RECIPE | {"torch"},
    "losses": RECIPE | {"torch"},
    "algorithms": RECIPE | {"networks", "losses", "numpy", "torch", "pydantic"},
    "data": RECIPE | {"types_env", "envs", "replay", "numpy", "pyarrow", "gymnasium", "minari", "h5py"},
    "loops": RECIPE
    | {"types_env", "envs", "replay", "data", "algorithms", "numpy", "torch", "safetensors", "tensorboardX"}
    | {"fsspec", "pyarrow"},
    "report": {"types", "errors", "numpy", "matplotlib", "rich"},
    "runtime": RECIPE | {"types_env", "algorithms", "replay", "loops", "numpy", "torch", "ray"},
    # alone knows RLlib: trains with it, steps our doors in its runners, acts with its networks
    "rllib": RECIPE
    | {"types_env", "envs", "networks", "algorithms", "loops", "runtime"}
    | {"numpy", "torch", "gymnasium", "ray"},
    "tune": RECIPE
    | {"types_env", "algorithms", "loops", "runtime", "rllib", "numpy", "torch", "pydantic", "ray"},
    # a run's policy over HTTP; all but two files of it without Ray
    "serving": RECIPE
    | {"types_env", "envs", "algorithms", "loops", "runtime", "numpy", "torch", "ray", "starlette"},
    "cluster": {"errors", "settings", "pydantic", "yaml", "jsonschema", "click", "ray"},
    "testing": {"ray"},
    "top": RECIPE
    | {"types_env", "envs", "algorithms", "data", "loops", "runtime", "rllib", "tune", "report", "cluster"}
    | {"serving"}
    | {"torch", "rich", "typer", "packaging"},
}
TOP = {
    "api",
    "bench",
    "check",
    "cli",
    "cli_data",
    "cli_serve",
    "cli_tune",
    "collecting",
    "doctor",
    "sweeping",
}
RECIPE_LAYER = {
    "recipe",
    "recipe_data",
    "recipe_env",
    "recipe_labels",
    "recipe_replay",
    "recipe_toml",
    "recipe_traffic",
}

FILES = sorted(PACKAGE.rglob("*.py"))
DATA_FOLDERS = ("envs", "tune", "cluster", "docker")

CLOSURE_FILES, CLOSURE_LINES = 8, 1500
FILE_LINES = 400


def room(module: str) -> str:
    """Room of a module of the package, e.g. `seqrl_ray.loops.build` -> `loops`; "" for the package itself."""
    parts = module.split(".")[1:]
    name = parts[0] if parts else ""
    return "top" if name in TOP else "recipe" if name in RECIPE_LAYER else name


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, module) of every import in a file, in functions too; `importlib.import_module("x")` among
    them.
    """
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: relative import"
            assert node.module is not None
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield node.lineno, inner if exists(inner) else node.module
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            first = node.args[0]
            if isinstance(first, ast.Constant):
                yield node.lineno, str(first.value)


def exists(module: str) -> bool:
    """Whether `module` is a module of the package."""
    path = PACKAGE.parent.joinpath(*module.split("."))
    return module.startswith("seqrl_ray") and (
        path.with_suffix(".py").is_file() or path.joinpath("__init__.py").is_file()
    )


def wanted(module: str) -> str:
    """What the table says about an imported module: a room, or the name of an outside package."""
    return room(module) if module.split(".")[0] == "seqrl_ray" else module.split(".")[0]


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_keep_to_the_table(path):
    here = room(module_of(path))
    allowed = MAY_IMPORT[here] | sys.stdlib_module_names | {here, ""}
    if here == "":
        allowed = allowed | {"top"}
    wrong = [f"line {line}: {module}" for line, module in imports(path) if wanted(module) not in allowed]
    assert not wrong, f"{module_of(path)} may import only {sorted(MAY_IMPORT[here])}: {wrong}"


def test_the_walk_sees_what_it_must(tmp_path):
    """A test that cannot fail is a defect: every way to import is planted once."""
    planted = tmp_path / "planted.py"
    planted.write_text(
        "import torch.nn\n"
        "def f():\n    from ray.util import queue\n    import importlib\n    "
        "importlib.import_module('libsumo')\n"
        "from seqrl_ray import api\n"
        "from seqrl_ray.errors import EnvError\n"
    )
    seen = {wanted(module) for _, module in imports(planted)}
    assert seen == {"torch", "ray", "importlib", "libsumo", "top", "errors"}
    planted.write_text("from . import types\n")
    with pytest.raises(AssertionError, match="relative import"):
        list(imports(planted))


def test_the_table_has_no_dead_entries():
    """An entry nobody uses would let an import in unseen."""
    used: dict[str, set[str]] = {name: set() for name in MAY_IMPORT}
    for path in FILES:
        used[room(module_of(path))] |= {wanted(module) for _, module in imports(path)}
    outside = {name: sorted(MAY_IMPORT[name] - set(MAY_IMPORT) - used[name]) for name in MAY_IMPORT}
    assert not {name: dead for name, dead in outside.items() if dead}


def test_every_room_is_in_the_table():
    assert {room(module_of(path)) for path in FILES} <= set(MAY_IMPORT)


# ------------------------------------------------------------------------------------------- length of a read


def closure(path: Path) -> set[Path]:
    """Files of ours a reader can be sent to from `path`, itself included."""
    seen: set[Path] = set()
    waiting = [path]
    while waiting:
        current = waiting.pop()
        if current in seen:
            continue
        seen.add(current)
        for _, module in imports(current):
            if module.split(".")[0] != "seqrl_ray":
                continue
            target = PACKAGE.parent.joinpath(*module.split("."))
            waiting.append(target / "__init__.py" if target.is_dir() else target.with_suffix(".py"))
    return seen


ALGORITHMS = sorted(
    p for p in (PACKAGE / "algorithms").glob("*.py") if p.with_name(f"{p.stem}_settings.py").is_file()
)


@pytest.mark.parametrize("path", ALGORITHMS, ids=lambda p: p.stem)
def test_an_algorithm_is_one_short_read(path):
    files = closure(path)
    lines = sum(len(f.read_text(encoding="utf-8").splitlines()) for f in files)
    names = sorted(str(f.relative_to(PACKAGE)) for f in files)
    assert len(files) <= CLOSURE_FILES, names
    assert lines <= CLOSURE_LINES, (lines, names)


def test_the_closures_are_those_of_the_registry():
    from seqrl_ray.algorithms import names

    assert [path.stem for path in ALGORITHMS] == list(names())


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_a_long_file_says_why(path):
    text = path.read_text(encoding="utf-8")
    if len(text.splitlines()) > FILE_LINES:
        reason = ast.get_docstring(ast.parse(text)) or ""
        assert re.search(r"(?i)\blong(er)?\b", reason), f"{len(text.splitlines())} lines, and no word of why"


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_every_file_says_what_it_is(path):
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


# ------------------------------------------------------------------------------------------ what stands where


@pytest.mark.parametrize("folder", DATA_FOLDERS)
def test_data_folders_hold_data(folder):
    files = [p for p in (ROOT / folder).rglob("*") if p.is_file()]
    assert files, f"{folder}/ is empty: it would be missing from the wheel"
    assert not [p for p in files if p.suffix in {".py", ".pyc", ".ipynb"}]


def texts() -> Iterator[Path]:
    """Every file we wrote that is shipped or shown."""
    for folder in ("seqrl_ray", "tests", "benchmarks", "docs", *DATA_FOLDERS):
        yield from (p for p in (ROOT / folder).rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    yield from (ROOT / name for name in ("README.md", "Makefile", "pyproject.toml", "constraints.txt"))


MACHINE = ["/" + name + "/" for name in ("work", "root", "home", "Users")]
"""Beginnings of paths that exist on one machine only."""


def test_no_file_names_a_path_of_one_machine():
    found = [
        f"{path.relative_to(ROOT)}: {place}"
        for path in texts()
        if path.suffix not in {".npz", ".gz", ".png"}
        for place in MACHINE
        if place in path.read_text(encoding="utf-8")
    ]
    assert not found
