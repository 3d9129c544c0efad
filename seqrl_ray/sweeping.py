"""Sweeps from beginning to end: read the file, check it, run it or go on with it, and draw its report."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqrl_ray import api
from seqrl_ray.errors import RecipeError
from seqrl_ray.loops import mirror
from seqrl_ray.loops.remote import is_url
from seqrl_ray.loops.run_folder import check_new
from seqrl_ray.recipe import run_folder_name
from seqrl_ray.tune.plan import Plan, make_plan
from seqrl_ray.tune.settings import IN_PLACE, SweepSettings, load_sweep

if TYPE_CHECKING:
    from seqrl_ray.loops.remote import Remote

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
    root, remote = Path(run_dir or f"runs/{settings.name}-{time.strftime('%Y%m%d-%H%M%S')}"), None
    if run_dir is not None and is_url(run_dir):
        _refuse_kind(settings, str(run_dir))
        remote, root = mirror.begin(str(run_dir))
    check_new(root)
    plan = make_plan(settings, folder)
    base = api.with_data(plan.base, local=address is None, address=address, quiet=quiet)
    api.prepare(base)
    plan = Plan(settings, base)
    return _run(plan, root, resumed=False, address=address, quiet=quiet, remote=remote)


def resumed_sweep(sweep: str | Path, overrides: Sequence[str], *, address: str | None, quiet: bool) -> Done:
    """See `api.resume_tune`."""
    from seqrl_ray.tune.mirror import RECIPE, SWEEP, pull_sweep
    from seqrl_ray.tune.sweep import open_sweep

    for override in overrides:
        if not override.startswith(MAY_CHANGE):
            raise RecipeError(
                f"{override!r} with --resume: what has been decided stands on the sweep's own file. Only "
                "budget.wall_s and keys of [trial] may change."
            )
    root, remote = mirror.go_on(sweep, pull_sweep)
    open_sweep(root)
    settings, _ = load_sweep(root / SWEEP, overrides)
    base = api.read_recipe(root / RECIPE)
    plan = Plan(settings, base)
    return _run(plan, root, resumed=True, address=address, quiet=quiet, remote=remote)


def _refuse_kind(settings: SweepSettings, url: str) -> None:
    kind = settings.scheduler.kind
    if kind != IN_PLACE:
        raise RecipeError(
            f"--run-dir={url} with scheduler.kind={kind!r}: what Ray Tune's own schedulers go on from is "
            "files of theirs, which are not copied of one moment. Name a folder, or use scheduler.kind='pbt'."
        )


def _run(
    plan: Plan, root: Path, *, resumed: bool, address: str | None, quiet: bool, remote: Remote | None
) -> Done:
    from seqrl_ray.report import sweep_html
    from seqrl_ray.tune.sweep import run_sweep

    summary = run_sweep(
        plan, root, resumed=resumed, address=address, quiet=quiet, report=sweep_html, remote=remote
    )
    return root, summary


def replayed(
    sweep: str | Path,
    overrides: Sequence[str],
    *,
    run_dir: str | Path | None,
    address: str | None,
    quiet: bool,
) -> Done:
    """See `api.replay_schedule`."""
    from seqrl_ray.tune.mirror import RECIPE, fetched_sweep
    from seqrl_ray.tune.replay import replay_sweep
    from seqrl_ray.tune.sweep import open_sweep

    with fetched_sweep(sweep) as root:
        open_sweep(root)
        recipe = api.read_recipe(root / RECIPE, overrides)
        recipe = recipe.model_copy(update={"name": f"{recipe.name[:72]}-replay"})
        path, remote = Path(run_dir or run_folder_name(recipe, time.strftime("%Y%m%d-%H%M%S"))), None
        if run_dir is not None and is_url(run_dir):
            remote, path = mirror.begin(str(run_dir))
        check_new(path)
        return replay_sweep(root, recipe, path, address=address, quiet=quiet, sweep=str(sweep), remote=remote)
