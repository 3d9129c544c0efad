"""The command line of offline datasets: `seqrl data collect | replay | merge | import | export | info`.

Like `cli.py`, it imports what a command needs when it runs.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer

from seqrl_ray.errors import DataError

data = typer.Typer(
    name="data", no_args_is_help=True, help="Offline datasets: collect, replay, merge, import, export, info."
)

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="a dataset folder, see docs/data.md")]

_SOURCES = {".hdf5": "hdf5", ".h5": "hdf5", ".npz": "npz"}
_TARGETS = {".parquet": "parquet", ".arrow": "arrow"}


@data.command()
def collect(
    recipe: Annotated[str, typer.Argument(help="a .toml file or a shipped recipe")],
    folder: Annotated[Path, typer.Argument(help="the new dataset's folder; must not exist")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="e.g. actors.count=2")
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="decisions to collect; default: the recipe's stop.env_steps")
    ] = None,
    run: Annotated[Path | None, typer.Option(help="act with this run's last checkpoint")] = None,
    controller: Annotated[str | None, typer.Option(help="act as this built-in rule does")] = None,
    noise: Annotated[float, typer.Option(help="chance of a random action instead, in [0, 1]")] = 0.0,
    greedy: Annotated[bool, typer.Option("--greedy", help="the policy does not explore")] = False,
    local: Annotated[bool, typer.Option("--local", help="everything in this process, without Ray")] = False,
    address: Annotated[str | None, typer.Option(help="Ray cluster to join")] = None,
) -> None:
    """Collect whole episodes through Ray actors: of a trained policy, a rule, or random actions."""
    from seqrl_ray import api

    done = api.collect(
        recipe,
        folder,
        overrides or [],
        steps=steps,
        run=run,
        controller=controller,
        noise=noise,
        greedy=greedy,
        local=local,
        address=address,
    )
    rate = done["steps"] / done["wall_s"]
    typer.echo(f"{folder}: {done['episodes']:,} episodes, {done['steps']:,} steps, {rate:,.0f} steps/s")


@data.command()
def replay(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="a run folder")],
    folder: Annotated[Path, typer.Argument(help="the new dataset's folder; must not exist")],
) -> None:
    """Take the whole episodes of a run's replay, as its last checkpoint has it."""
    from seqrl_ray import api

    done = api.replay_data(run, folder)
    typer.echo(
        f"{folder}: {done['episodes']:,} episodes, {done['steps']:,} steps; "
        f"{done['left_out_steps']:,} stored steps are of no whole episode"
    )


@data.command()
def merge(
    sources: Annotated[list[Path], typer.Argument(metavar="SOURCE SOURCE...", help="dataset folders")],
    folder: Annotated[Path, typer.Argument(help="the new dataset's folder; must not exist")],
) -> None:
    """Put the episodes of several datasets, one after the other, into a new one."""
    from seqrl_ray.data.merge import merge

    dataset = merge(sources, folder)
    typer.echo(f"{folder}: {dataset.episodes:,} episodes, {dataset.steps:,} steps")


@data.command("import")
def import_(
    source: Annotated[str, typer.Argument(help="a Minari id or folder, a D4RL .hdf5 file, or an .npz file")],
    folder: Annotated[Path, typer.Argument(help="the new dataset's folder; must not exist")],
    source_format: Annotated[
        Literal["minari", "hdf5", "npz"] | None,
        typer.Option("--format", help="default: by the file's ending, else minari"),
    ] = None,
    env: Annotated[
        str | None, typer.Option(help="Gymnasium id a plain file's arrays are of; default: guess the spaces")
    ] = None,
) -> None:
    """Turn a dataset of another kind into ours, and say what was dropped or guessed."""
    kind = source_format or _SOURCES.get(Path(source).suffix, "minari")
    if kind == "minari":
        from seqrl_ray.data.minari_io import import_minari

        if env is not None:
            raise DataError(
                f"env={env!r} with format=minari: a Minari dataset brings its own spaces. Leave --env out."
            )
        dataset = import_minari(source, folder)
    else:
        from seqrl_ray.data.files import import_hdf5, import_npz

        dataset = (import_hdf5 if kind == "hdf5" else import_npz)(source, folder, env=env)
    typer.echo(f"{folder}: {dataset.episodes:,} episodes, {dataset.steps:,} steps")
    for note in dataset.meta.get("notes", []):
        typer.echo(f"note: {note}")


@data.command()
def export(
    folder: Folder,
    target: Annotated[
        str,
        typer.Argument(help="a new file; with minari the new id, or, beside --id, the folder of datasets"),
    ],
    target_format: Annotated[
        Literal["minari", "parquet", "arrow"] | None,
        typer.Option("--format", help="default: by the target's ending, else minari"),
    ] = None,
    dataset_id: Annotated[
        str | None, typer.Option("--id", help="Minari id, (namespace/)name-v0, of the dataset under TARGET")
    ] = None,
) -> None:
    """Write a dataset for other tools."""
    from seqrl_ray.data.dataset import Dataset

    kind = target_format or _TARGETS.get(Path(target).suffix, "minari")
    if dataset_id is not None and kind != "minari":
        raise DataError(f"id={dataset_id!r} with format={kind}: a table has no id. Leave --id out.")
    dataset = Dataset.open(folder)
    if kind == "minari":
        from seqrl_ray.data.minari_io import export_minari

        root = None if dataset_id is None else Path(target)
        written = export_minari(dataset, target if dataset_id is None else dataset_id, root=root)
    else:
        from seqrl_ray.data.tables import export_table

        written = export_table(dataset, target, "parquet" if kind == "parquet" else "arrow")
    typer.echo(f"{written}: {dataset.episodes:,} episodes, {dataset.steps:,} steps")


@data.command()
def info(
    folder: Folder,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="read every file and compare its hash")] = False,
) -> None:
    """Show sizes, lengths, returns, spaces and metadata."""
    from seqrl_ray.data.dataset import Dataset, check_flags
    from seqrl_ray.data.info import describe, lines

    dataset = Dataset.open(folder, verify=verify)
    if verify:
        check_flags(dataset)
    found = describe(dataset)
    for line in [json.dumps(found)] if as_json else lines(found):
        typer.echo(line)
