"""Checkpoints: weights and arrays as safetensors, plain values as JSON, replay as Arrow files; nothing is a
pickle.

A checkpoint is a folder `checkpoints/<number>-<env steps>/`. `manifest.json` (size and SHA-256 of every other
file) is written last, through a rename, and alone makes the checkpoint exist: a kill while writing never
costs the last good one. Paths are local; `loops/mirror.py` keeps a copy in remote storage.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from seqrl_ray.errors import CheckpointError, RecipeError
from seqrl_ray.recipe import Recipe
from seqrl_ray.types import Array
from seqrl_ray.types_env import Weights

MANIFEST = "manifest.json"
FORMAT = 1


def save(root: Path, name: str, trees: Mapping[str, Any], keep: int) -> Path:
    """Write one checkpoint and drop the oldest beyond `keep`.

    Args:
        root: the run's `checkpoints/` folder.
        name: folder name, from `new_name`.
        trees: part name -> tree of dicts, lists, plain values and numpy arrays. Files that already lie in the
            folder `root / name` (a replay snapshot written there before) become part of the checkpoint.
        keep: complete checkpoints to keep, at least 1.
    Returns: the checkpoint's folder.
    """
    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    for part, tree in trees.items():
        arrays: dict[str, Array] = {}
        plain = _split(tree, "", arrays)
        save_file(
            {k: np.asarray(v, order="C") for k, v in arrays.items()}, str(folder / f"{part}.safetensors")
        )
        (folder / f"{part}.json").write_text(json.dumps(plain), encoding="utf-8")
    files = sorted(
        p for p in folder.rglob("*") if p.is_file() and p != folder / MANIFEST and not _vouched_for(p, folder)
    )
    listing = {str(p.relative_to(folder)): {"bytes": p.stat().st_size, "sha256": _sha256(p)} for p in files}
    partial = folder / (MANIFEST + ".partial")
    partial.write_text(json.dumps({"format": FORMAT, "files": listing}, indent=1), encoding="utf-8")
    os.replace(partial, folder / MANIFEST)
    for old in complete(root)[:-keep]:
        shutil.rmtree(old)
    for half in [p for p in root.iterdir() if p.is_dir() and p.name < name and not (p / MANIFEST).is_file()]:
        shutil.rmtree(half)  # begun before this one and never finished
    return folder


def new_name(root: Path, env_steps: int) -> str:
    """Name the next checkpoint: `<number>-<env steps>`, sorted in time order, never a name used before."""
    used = [int(p.name.partition("-")[0]) for p in root.glob("*-*") if p.is_dir()]
    return f"{max(used, default=0) + 1:06d}-{env_steps:012d}"


def steps_of(folder: Path) -> int:
    """Return the env steps at which a checkpoint was made."""
    return int(folder.name.partition("-")[2])


def complete(root: Path) -> list[Path]:
    """Return the complete checkpoints under `root`, oldest first."""
    return sorted(p.parent for p in root.glob(f"*/{MANIFEST}"))


def latest(root: Path) -> Path:
    """Return the newest complete checkpoint.

    Raises: CheckpointError: there is none.
    """
    found = complete(root)
    if not found:
        raise CheckpointError(
            f"{root} holds no complete checkpoint: there is nothing to go on from. Start a new run."
        )
    return found[-1]


def verify(folder: Path, part: str | None = None) -> None:
    """Check the files of a checkpoint against the manifest.

    Args:
        folder: the checkpoint's.
        part: look at the files of this part alone; None: at all of them, the replay's too.
    Raises: CheckpointError: a file is missing, cut short or changed.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise CheckpointError(
            f"{folder / MANIFEST} cannot be read: {error}. Use another checkpoint."
        ) from None
    if manifest.get("format") != FORMAT:
        raise CheckpointError(
            f"{folder} has checkpoint format {manifest.get('format')!r}, this version reads {FORMAT}. "
            "Use the version that wrote it."
        )
    for name, entry in manifest["files"].items():
        if part is not None and name not in (f"{part}.json", f"{part}.safetensors"):
            continue
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path} is missing: the checkpoint is damaged. Use another checkpoint.")
        if path.stat().st_size != entry["bytes"] or _sha256(path) != entry["sha256"]:
            raise CheckpointError(
                f"{path} is not what was written: the checkpoint is damaged. Use another checkpoint."
            )


def load(folder: Path, part: str) -> Any:
    """Return one tree of a checkpoint (call `verify` first).

    Raises: CheckpointError: the checkpoint has no such part.
    """
    try:
        plain = json.loads((folder / f"{part}.json").read_text(encoding="utf-8"))
        arrays = load_file(str(folder / f"{part}.safetensors"))
    except OSError as error:
        raise CheckpointError(f"{folder} has no part {part!r}: {error}. Use another checkpoint.") from None
    return _join(plain, arrays)


def keep_wiring(folder: Path, recipe: Recipe, *, local: bool) -> Recipe:
    """Return the recipe with `replay.wiring` as the checkpoint's run had it; `auto` might choose another.

    Raises: RecipeError: the run is to go on in another wiring.
    """
    was = "service" if (folder / "shards.json").is_file() else "colocated"
    wanted = "colocated" if local else recipe.replay.wiring
    if wanted not in ("auto", was):
        raise RecipeError(
            f"replay.wiring={wanted} and {folder} was written in the {was} wiring: its replay cannot be "
            f"taken over. Resume with replay.wiring={was}{' and without --local' if local else ''}."
        )
    return recipe.model_copy(update={"replay": recipe.replay.model_copy(update={"wiring": was})})


def acting_weights(folder: Path) -> dict[str, Weights]:
    """Return policy id -> the weights that a checkpoint's policies act with.

    Raises: CheckpointError: the checkpoint is damaged.
    """
    trainer = load(folder, "trainer")
    learner, counters = trainer["learner"], trainer["counters"]  # RLlib's learner keeps neither of the two
    epoch = int(learner.get("epoch", 0))
    return {
        p: Weights(
            p,
            epoch,
            int(state.get("private", counters).get("updates", 0)),
            state["acting"],
            progress=1.0,
        )
        for p, state in learner["policies"].items()
    }


def pretrained_weights(folder: Path) -> dict[str, Weights]:
    """Return policy id -> the weights that its offline phase ended with; none where there was no such phase
    or it is not over.

    Raises: CheckpointError: the checkpoint is damaged.
    """
    kept = load(folder, "trainer").get("pretrained", {})  # the service wiring has no phases
    return {p: Weights(p, 0, 0, flat, progress=1.0) for p, flat in kept.items()}


def _vouched_for(path: Path, folder: Path) -> bool:
    """Whether a replay snapshot's own manifest lists this file: then we vouch for that manifest."""
    return path.parent != folder and path.name != MANIFEST and (path.parent / MANIFEST).is_file()


_ARRAY = "__array__"
_TUPLE = "__tuple__"


def _split(tree: Any, place: str, arrays: dict[str, Array]) -> Any:
    """Return `tree` as JSON; arrays go to `arrays` and leave a reference."""
    if isinstance(tree, np.ndarray):
        arrays[place] = tree
        return {_ARRAY: place}
    if isinstance(tree, np.generic):
        return tree.item()
    if isinstance(tree, Mapping):
        return {str(k): _split(v, f"{place}/{k}", arrays) for k, v in tree.items()}
    if isinstance(tree, tuple):
        return {_TUPLE: [_split(v, f"{place}/{i}", arrays) for i, v in enumerate(tree)]}
    if isinstance(tree, list):
        return [_split(v, f"{place}/{i}", arrays) for i, v in enumerate(tree)]
    if tree is None or isinstance(tree, bool | int | float | str):
        return tree
    raise TypeError(f"{place}: {type(tree).__name__} has no place in a checkpoint")


def _join(plain: Any, arrays: Mapping[str, Array]) -> Any:
    if isinstance(plain, dict):
        if set(plain) == {_ARRAY}:
            return arrays[plain[_ARRAY]]
        if set(plain) == {_TUPLE}:
            return tuple(_join(v, arrays) for v in plain[_TUPLE])
        return {k: _join(v, arrays) for k, v in plain.items()}
    if isinstance(plain, list):
        return [_join(v, arrays) for v in plain]
    return plain


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
