"""The command line of sweeps: `seqrl tune`.

Like `cli.py`, it imports what the command needs when it runs.
"""

from __future__ import annotations

from typing import Annotated

import typer

from seqrl_ray.errors import RecipeError

INTERRUPTED = 130


def tune(
    sweep: Annotated[
        str | None, typer.Argument(help="a .toml file or a shipped sweep, e.g. cartpole_pbt")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="e.g. trials=8; recipe.a.b=c changes the base recipe"),
    ] = None,
    run_dir: Annotated[
        str | None,
        typer.Option(help="folder of the new sweep or replay, or a remote place; default runs/<name>-<time>"),
    ] = None,
    resume: Annotated[
        str | None, typer.Option(help="go on with the sweep in this folder, or remote place")
    ] = None,
    replay: Annotated[
        str | None, typer.Option(help="train one run with the schedule that this sweep's winner had")
    ] = None,
    address: Annotated[str | None, typer.Option(help="Ray cluster to join")] = None,
) -> None:
    """Search hyper-parameters over whole runs: a population in place, or Ray Tune's schedulers."""
    from seqrl_ray import api

    given = ([sweep] if sweep else []) + (overrides or [])
    if resume is not None and replay is not None:
        raise RecipeError(
            f"--resume={resume} and --replay={replay}: one goes on with a sweep, the other trains one run. "
            "Give one of them."
        )
    if resume is not None or replay is not None:
        option, folder = ("--resume", resume) if resume is not None else ("--replay", replay)
        assert folder is not None
        if named := [g for g in given if "=" not in g]:
            raise RecipeError(
                f"{option}={folder} with the sweep {named[0]!r}: a sweep keeps its own file. Leave "
                f"{named[0]!r} out."
            )
        if resume is not None and run_dir is not None:
            raise RecipeError(
                f"--resume={resume} with --run-dir={run_dir}: a resumed sweep stays in its folder. Leave "
                "--run-dir out."
            )
    if replay is not None:
        done = api.replay_schedule(replay, given, run_dir=run_dir, address=address)
        typer.echo(f"report: {done.folder / 'report.html'}")
        return
    if resume is not None:
        result = api.resume_tune(resume, given, address=address)
    elif sweep is None:
        raise RecipeError(
            "no sweep is given: there is nothing to search. Name a .toml file or a shipped sweep, e.g. "
            "seqrl tune cartpole_pbt."
        )
    else:
        result = api.tune(sweep, overrides or [], run_dir=run_dir, address=address)
    summary = result.summary
    winner = summary.get("winner")
    if winner:
        values = ", ".join(
            f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}"
            for name, value in winner["values"].items()
        )
        typer.echo(f"winner: {winner['folder']} with {values}")
    if summary.get("conclusion"):
        typer.echo(summary["conclusion"])
    typer.echo(f"report: {result.folder / 'report.html'}")
    if summary["status"] == "interrupted":
        typer.echo(f"interrupted; go on with: seqrl tune --resume {result.folder}", err=True)
        raise typer.Exit(INTERRUPTED)
