"""The command line: `seqrl train | evaluate | scale | serve | tune | data | report | check | doctor | bench`.

Exit code 0 done, 2 bad input (one line on stderr, no traceback), 1 an error that stopped a run or a check of
`doctor` that failed, 130 interrupted with a checkpoint written. Every command imports what it needs when it
runs, so `seqrl --help` answers at once.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from typer.exceptions import TyperException

from seqrl_ray import __version__
from seqrl_ray.cli_data import data
from seqrl_ray.cli_serve import serve
from seqrl_ray.cli_tune import tune
from seqrl_ray.errors import RecipeError, SeqrlError

app = typer.Typer(
    name="seqrl",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train reinforcement-learning policies with distributed actors, replay shards and learners on Ray.",
)

app.add_typer(data)
app.command()(tune)
app.command()(serve)

FAILED = 1
BAD_INPUT = 2
INTERRUPTED = 130

RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="a run folder, runs/<name>-<time>")]


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run the command line; turn a user's error into one line and an exit code.

    Args:
        args: what follows `seqrl`; None: the process's own arguments.
    """
    try:
        code = app(args, standalone_mode=False)
    except SeqrlError as error:
        text = str(error)
        if error.exit_code == BAD_INPUT:  # a parser's message may have lines of its own
            text = " ".join(line.strip() for line in text.splitlines())
        sys.stderr.write(f"seqrl: {text}\n")
        raise SystemExit(error.exit_code) from None
    except (
        TyperException
    ) as error:  # a command or an option that does not exist; without any, help was printed
        if message := error.format_message():
            end = "" if message[-1] in ".?" else "."
            sys.stderr.write(f"seqrl: {message}{end} Try: seqrl --help\n")
        raise SystemExit(BAD_INPUT) from None
    raise SystemExit(code)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"seqrl-ray {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    """Options of every command."""


@app.command()
def train(
    recipe: Annotated[
        str | None, typer.Argument(help="a .toml file or a shipped recipe, e.g. traffic/cologne8")
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="e.g. stop.env_steps=20000")
    ] = None,
    run_dir: Annotated[
        str | None,
        typer.Option(help="folder of the new run, or a remote place; default runs/<name>-<time>"),
    ] = None,
    resume: Annotated[str | None, typer.Option(help="go on with this run (folder or remote place)")] = None,
    local: Annotated[bool, typer.Option("--local", help="everything in this process, without Ray")] = False,
    address: Annotated[
        str | None, typer.Option(help="Ray cluster to join; default: a Ray of our own here")
    ] = None,
) -> None:
    """Train a recipe, judge the result against the built-in controllers, and write a report."""
    from seqrl_ray import api

    if resume is not None:
        given = ([recipe] if recipe else []) + (overrides or [])
        wrong = [g for g in given if "=" not in g]
        if wrong:
            raise RecipeError(
                f"--resume={resume} with the recipe {wrong[0]!r}: a run keeps its own recipe. "
                f"Leave {wrong[0]!r} out."
            )
        if run_dir is not None:
            raise RecipeError(
                f"--resume={resume} with --run-dir={run_dir}: a resumed run stays in its folder. "
                "Leave --run-dir out."
            )
        result = api.resume(resume, given, local=local, address=address)
    else:
        if recipe is None:
            raise RecipeError(
                "no recipe is given: there is nothing to train. Name a .toml file or a shipped recipe, "
                "e.g. seqrl train traffic/cologne8."
            )
        result = api.train(recipe, overrides or [], run_dir=run_dir, local=local, address=address)
    _show(result.folder)
    if result.summary["status"] == "interrupted":
        sys.stderr.write(f"interrupted; go on with: seqrl train --resume {result.folder}\n")
        raise typer.Exit(INTERRUPTED)


@app.command()
def evaluate(
    run: Annotated[str, typer.Argument(metavar="RUN", help="a run folder, or a remote place")],
    episodes: Annotated[int | None, typer.Option(min=1, help="held-out seeds; default: the recipe's")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="first seed; default: the recipe's")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    gui: Annotated[
        bool, typer.Option("--gui", help="show one episode in sumo-gui instead (traffic)")
    ] = False,
) -> None:
    """Judge a run's last checkpoint and its controllers again; the run is not changed."""
    from seqrl_ray import api
    from seqrl_ray.loops.mirror import fetched

    with fetched(run) as folder:
        if gui:
            api.watch(folder, seed=seed)
            return
        result = api.evaluate(folder, episodes=episodes, seed=seed)
        recipe = api.read_recipe(folder / "recipe.toml")
    if as_json:
        typer.echo(json.dumps(result))
        return
    metric = recipe.evaluation.headline
    typer.echo(f"{metric} after {result['env_steps']:,} steps: mean [95 % CI], median, p95, n")
    targets = {f"policy at {target}": metrics for target, metrics in result["targets"].items()}
    for name, metrics in {"policy": result["evaluation"], **targets, **result["baselines"]}.items():
        typer.echo(f"  {name:<14}{_figures(metrics[metric])}")


@app.command()
def scale(
    run: RunFolder,
    least: Annotated[int, typer.Argument(min=1, help="actors, or the least of them")],
    most: Annotated[int | None, typer.Argument(min=1, help="the most of them; default: as many")] = None,
) -> None:
    """Ask a living run for another number of actors; it heeds it within seconds."""
    from seqrl_ray import api

    api.scale(run, least, most)


@app.command()
def report(run: RunFolder) -> None:
    """Draw a run's (or a sweep's) report.html anew, and print a run's table."""
    from seqrl_ray.report import html, sweep_html

    if (run / "sweep.toml").is_file():
        typer.echo(f"report: {sweep_html(run)}")
        return
    html(run)
    _show(run)


@app.command()
def check(
    recipe: Annotated[
        str,
        typer.Argument(
            help="a .toml file or a shipped recipe; or a .yaml file for ray up, e.g. cluster/aws.yaml"
        ),
    ],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None,
    steps: Annotated[int, typer.Option(help="vector steps of each check run")] = 200,
) -> None:
    """Validate a recipe, run the environment contract on it, and say in words what is wrong.

    A file for `ray up` is checked as well: what Ray refuses, misspelt provider settings, what is left open.
    """
    from seqrl_ray.check import check_cluster, check_recipe

    if recipe.endswith((".yaml", ".yml")):
        found = check_cluster(recipe)
    else:
        found = check_recipe(recipe, overrides or [], steps=steps)
    for line in found.lines:
        typer.echo(line)
    if not found.ok:
        raise typer.Exit(BAD_INPUT)


@app.command()
def doctor(
    address: Annotated[str | None, typer.Option(help="Ray cluster to examine; default: this machine")] = None,
    run_dir: Annotated[str, typer.Option(help="where runs shall go; need not exist")] = "runs",
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Say what this machine or a living cluster has, what is open, what to do; exit code 1: a check fails."""
    from seqrl_ray.doctor import examine

    found = examine(address, run_dir)
    for line in [json.dumps(found.as_json())] if as_json else found.report():
        typer.echo(line)
    if not found.ok:
        raise typer.Exit(FAILED)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def bench(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="replay, throughput or traffic_env")],
    as_json: Annotated[bool, typer.Option("--json", help="print the benchmark's JSON line")] = False,
) -> None:
    """Run a benchmark of a checkout; what else is given goes to it, e.g. --section ray."""
    from seqrl_ray.bench import lines, run_benchmark

    result = run_benchmark(name, context.args)
    for line in [json.dumps(result)] if as_json else lines(result):
        typer.echo(line)


def _show(run: Path) -> None:
    from rich.console import Console

    from seqrl_ray.report import table

    Console().print(table(run))
    typer.echo(f"report: {run / 'report.html'}")


def _figures(summary: dict[str, object]) -> str:
    ci = summary["ci95"]
    interval = f"[{ci[0]:.2f}, {ci[1]:.2f}]" if isinstance(ci, list) else "[-]"
    mean, median, p95, n = (summary[name] for name in ("mean", "median", "p95", "n"))
    return f"{mean:9.2f} {interval:<20} {median:9.2f} {p95:9.2f} {n:4}"


if __name__ == "__main__":
    main()
