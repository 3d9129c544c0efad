"""Tables, plots and the HTML report of a run. Reads run folders only; imports nothing heavy before use."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType


def html(run: Path) -> Path:
    """Write `report.html` into the run folder: one file, no outside resources, light and dark, printable.

    What the folder lacks is named in the page where it would have stood.

    Args:
        run: a run folder: recipe.toml, summary.json, metrics.jsonl, evaluation/; parts may be missing.

    Returns:
        The path of the file written (over an older one).

    Raises:
        RunFolderError: `run` is no run folder, or a file in it cannot be read as what it should be.
    """
    from seqrl_ray.report.page import render
    from seqrl_ray.report.run_folder import read_run

    target = Path(run) / "report.html"
    target.write_text(render(read_run(Path(run))), encoding="utf-8")
    return target


def sweep_html(sweep: Path) -> Path:
    """Write `report.html` into a sweep's folder, in the look of a run's.

    Args:
        sweep: a sweep's folder: sweep.toml, and board.jsonl or trials.jsonl; summary.json may be missing.

    Returns:
        The path of the file written (over an older one).

    Raises:
        RunFolderError: `sweep` is no sweep's folder, or a file in it cannot be read.
    """
    from seqrl_ray.report.sweep_folder import read_sweep
    from seqrl_ray.report.sweep_page import render

    target = Path(sweep) / "report.html"
    target.write_text(render(read_sweep(Path(sweep))), encoding="utf-8")
    return target


def table(run: Path) -> RenderableType:
    """Return the outcome of a run for a terminal: what it comes to, the controllers, what went wrong.

    Fits in 80 columns.

    Args:
        run: a run folder, as for `html`.

    Raises:
        RunFolderError: as for `html`.
    """
    from seqrl_ray.report.run_folder import read_run
    from seqrl_ray.report.terminal import outcome

    return outcome(read_run(Path(run)))
