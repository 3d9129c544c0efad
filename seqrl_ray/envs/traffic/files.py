"""Find a recipe's net and route files, and the SUMO installation, without importing sumo-rl.

sumo-rl's package is only borrowed for its nets: importing it demands SUMO_HOME and changes `sys.path`.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from seqrl_ray.errors import EnvError
from seqrl_ray.recipe_traffic import TrafficSettings


def district_files(settings: TrafficSettings, folder: Path | None) -> tuple[Path, Path]:
    """Return the absolute net and route files of a recipe.

    Args:
        settings: which map, or which net and route.
        folder: where the recipe's relative paths start; None is the working directory.
    Raises: EnvError: a file does not exist, or the sumo-rl wheel is not installed.
    """
    if settings.map is not None:
        home = _packaged_nets() / "RESCO" / settings.map
        suffix = (
            "_1" if settings.map in ("grid4x4", "arterial4x4") else ""
        )  # one demand file of RESCO's many is packaged
        return home / f"{settings.map}.net.xml", home / f"{settings.map}{suffix}.rou.xml"
    return _find("net", str(settings.net), folder), _find("route", str(settings.route), folder)


def ensure_sumo_home() -> None:
    """Set SUMO_HOME to the eclipse-sumo wheel where the user set nothing (emission tables and sumo-rl need
    it).
    """
    if "SUMO_HOME" not in os.environ:
        os.environ["SUMO_HOME"] = str(_package_folder("sumo", "eclipse-sumo"))


def sumo_binary(name: str) -> Path:
    """Return an executable of the eclipse-sumo wheel, e.g. `sumo-gui`.

    Raises: EnvError: the wheel has no such program.
    """
    path = _package_folder("sumo", "eclipse-sumo") / "bin" / name
    if not path.is_file():
        raise EnvError(f"binary={name!r} is no program of SUMO: nothing to show. Use sumo-gui.")
    return path


def _find(name: str, given: str, folder: Path | None) -> Path:
    path = Path(given)
    places = [path] if path.is_absolute() else [(folder or Path.cwd()) / path, _packaged_nets() / path]
    for place in places:
        if place.is_file():
            return place.resolve()
    raise EnvError(
        f"env.{name}={given!r} is not a file at {' or '.join(map(str, places))}: the district cannot be "
        "loaded. "
        f"Give an absolute path, or one relative to the recipe's folder."
    )


def _packaged_nets() -> Path:
    return _package_folder("sumo_rl", "sumo-rl") / "nets"


def _package_folder(module: str, wheel: str) -> Path:
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise EnvError(f"package {wheel} is not installed: traffic needs it. Install seqrl-ray[traffic].")
    return Path(spec.submodule_search_locations[0])
