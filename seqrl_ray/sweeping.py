"""Sweeps from beginning to end: read the file, check it, run it or go on with it, and draw its report."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seqrl_ray import api
from seqrl_ray.errors import RecipeError
from seqrl_ray.loops.run_folder import check_new
from seqrl_ray.recipe import run_folder_name
from seqrl_ray.tune.plan import Plan, make_plan
from seqrl_ray.tune.settings import load_sweep

Done = tuple[Path, dict[str, Any]]

MAY_CHANGE = ("trial.", "budget.wall_s")
"""Keys of a sweep file that a resumed sweep may be given anew."""


def new_sweep(
    sweep: str | Path,
    overrides: Sequence[str],
    *,
    run_dir: str | Path | None,
    address: str | None,
    quiet: bool,
) -> Done:
    """See `api.tune`."""
    settings, folder = load_sweep(sweep, overrides)
    root = Path(run_dir or f"runs/{settings.name}-{time.strftime('%Y%m%d-%H%M%S')}")
    check_new(root)
    plan = make_plan(settings, folder)
    base = api.with_data(plan.base, local=address is None, address=address, quiet=quiet)
    api.prepare(base)
    return _run(Plan(settings, base), root, resumed=False, address=address, quiet=quiet)


def resumed_sweep(root: Path, overrides: Sequence[str], *, address: str | None, quiet: bool) -> Done:
    """See `api.resume_tune`."""
    from seqrl_ray.tune.sweep import RECIPE, SWEEP, open_sweep

    open_sweep(root)
    for override in overrides:
        if not override.startswith(MAY_CHANGE):
            raise RecipeError(
                f"{override!r} with --resume: what has been decided stands on the sweep's own file. Only "
                "budget.wall_s and keys of [trial] may change."
            )
    settings, _ = load_sweep(root / SWEEP, overrides)
    base = api.read_recipe(root / RECIPE)
    return _run(Plan(settings, base), root, resumed=True, address=address, quiet=quiet)


def _run(plan: Plan, root: Path, *, resumed: bool, address: str | None, quiet: bool) -> Done:
    from seqrl_ray.report import sweep_html
    from seqrl_ray.tune.sweep import run_sweep

    summary = run_sweep(plan, root, resumed=resumed, address=address, quiet=quiet)
    sweep_html(root)
    return root, summary


def replayed(
    root: Path, overrides: Sequence[str], *, run_dir: str | Path | None, address: str | None, quiet: bool
) -> Done:
    """See `api.replay_schedule`."""
    from seqrl_ray.tune.replay import replay_sweep
    from seqrl_ray.tune.sweep import RECIPE, open_sweep

    open_sweep(root)
    recipe = api.read_recipe(root / RECIPE, overrides)
    recipe = recipe.model_copy(update={"name": f"{recipe.name[:72]}-replay"})
    path = Path(run_dir or run_folder_name(recipe, time.strftime("%Y%m%d-%H%M%S")))
    check_new(path)
    return replay_sweep(root, recipe, path, address=address, quiet=quiet)
