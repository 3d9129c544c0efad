"""The manifest of a dataset folder: what alone makes the folder a dataset, and how it is checked.

`manifest.json` holds the format's name, counts, the group spec, an entry per file (dtype, shape, bytes,
sha256) and free metadata. It is written last and atomically. Numbers that JSON does not know (infinite
bounds) stand as strings.

Dims: E episodes, R rows.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from seqrl_ray.errors import DataError
from seqrl_ray.types import ActionSpec, ArraySpec, GroupSpec, Slot

FORMAT = "seqrl-ray dataset 1"
MANIFEST = "manifest.json"

EPISODE_FILES: dict[str, ArraySpec] = {
    "episode_start": ArraySpec((), "int64"),
    "episode_rows": ArraySpec((), "int64"),
    "episode_seed": ArraySpec((), "int64"),
    "episode_return": ArraySpec((), "float64"),
}
"""Index files [E]: first row; rows, the final one included; reset seed (-1 = unknown); summed reward."""


def column_specs(group: GroupSpec) -> dict[str, ArraySpec]:
    """Columns of a dataset of `group`: name -> one row's array."""
    columns = {
        "obs": group.obs,
        "action": group.action.column,
        "reward": ArraySpec((), "float32"),
        "terminated": ArraySpec((), "bool"),
        "truncated": ArraySpec((), "bool"),
        "final": ArraySpec((), "bool"),
    }
    if group.masked:
        columns["legal"] = ArraySpec((group.action.n,), "bool")
    return columns


def write_manifest(
    folder: Path,
    group: GroupSpec,
    counts: Mapping[str, int],
    files: Mapping[str, Any],
    rest: Mapping[str, Any],
) -> None:
    """Make `folder` a dataset. Raises: OSError: it cannot be written."""
    content = {"format": FORMAT, **counts, **rest, "group": group_to_json(group), "files": files}
    partial = folder / f"{MANIFEST}.partial"
    with partial.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=1, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, folder / MANIFEST)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a dataset folder.

    Raises: DataError: there is none, it is damaged, or it is of another format.
    """
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(
            f"folder={folder} has no {MANIFEST}: it is no dataset, or its writing was interrupted. Name a "
            "folder that `seqrl data import` wrote to its end."
        ) from None
    except (OSError, ValueError) as error:
        raise DataError(
            f"file={path} cannot be read ({error}): the dataset is damaged. Copy or import it again."
        ) from None
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise DataError(
            f"format={found!r} of {path} is not {FORMAT!r}: its files would be misread. Import the dataset "
            "again with this version."
        )
    missing = {"group", "files", "meta", "episodes", "steps", "rows"} - set(content)
    if missing:
        raise DataError(
            f"file={path} lacks {', '.join(sorted(missing))}: the dataset is damaged. Copy or import it "
            "again."
        )
    return dict(content)


def group_to_json(group: GroupSpec) -> dict[str, Any]:
    """A group spec as JSON values."""
    plain: dict[str, Any] = _finite(asdict(group))
    return plain


def group_from_json(content: Mapping[str, Any]) -> GroupSpec:
    """The inverse of `group_to_json`.

    Raises: DataError: a field is missing or of another kind.
    """
    try:
        obs, action = content["obs"], content["action"]
        return GroupSpec(
            policy_id=content["policy_id"],
            slots=tuple(
                Slot(int(s["env"]), s["agent"], int(s["obs_size"]), int(s["num_actions"]))
                for s in content["slots"]
            ),
            obs=ArraySpec(tuple(obs["shape"]), obs["dtype"], float(obs["low"]), float(obs["high"])),
            action=ActionSpec(
                action["kind"],
                n=int(action["n"]),
                shape=tuple(action["shape"]),
                low=tuple(float(v) for v in action["low"]),
                high=tuple(float(v) for v in action["high"]),
            ),
            frame_stack=int(content["frame_stack"]),
            masked=bool(content["masked"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"group of {MANIFEST} is incomplete ({error!r}): rows cannot be interpreted. Copy or import the "
            "dataset again."
        ) from None


def _finite(value: Any) -> Any:
    """`value` with infinite numbers as strings, which `float` reads back."""
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
