"""The command line of services: `seqrl serve`.

Like `cli.py`, it imports what the command needs when it runs.
"""

from __future__ import annotations

from typing import Annotated

import typer


def serve(
    run: Annotated[str, typer.Argument(metavar="RUN", help="a run folder, of a finished or a living run")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="keys of docs/recipe_keys.md, e.g. refresh_s=60"),
    ] = None,
    host: Annotated[
        str, typer.Option(help="where to listen; beyond this machine only with a token (SEQRL_SERVE_TOKEN)")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="likewise")] = 8000,
    replicas: Annotated[int, typer.Option(min=1, help="processes that answer")] = 1,
    checkpoint: Annotated[
        str | None, typer.Option(help="keep to this one of RUN/checkpoints; default: follow the newest")
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="Ray cluster to run on; default: a Ray of our own here")
    ] = None,
) -> None:
    """Serve a run's policy over HTTP through Ray Serve, until Ctrl-C."""
    from seqrl_ray import api

    service = api.serving(
        run,
        overrides or [],
        host=host,
        port=port,
        replicas=replicas,
        checkpoint=checkpoint,
        address=address,
    )
    with service as served:
        known = "clients send the token" if served.token else "no token: this machine alone"
        typer.echo(f"serving {', '.join(served.policies)} at {served.url} ({served.checkpoint}; {known})")
        served.wait()
