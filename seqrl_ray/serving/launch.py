"""`seqrl serve`: bring a service up on a Ray of our own or on a cluster's, and take it down again.

Everything that can be found wrong is found in this process first: the run, the checkpoint, the environment,
the address. Ray Serve is told where to listen only as it begins, so on a cluster where one runs already the
address would be that one's, and so would its other applications: that is refused.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass

import ray
from ray.exceptions import RayError

from seqrl_ray.errors import RecipeError, WorkerError
from seqrl_ray.loops.drive import StopRequested
from seqrl_ray.runtime.launch import connected
from seqrl_ray.serving.app import application, check, require_serve
from seqrl_ray.serving.guard import TOKEN, Guard, is_loopback, token_digest
from seqrl_ray.serving.service import Service
from seqrl_ray.serving.settings import ServingSettings
from seqrl_ray.serving.source import Source

CONTROLLER = "SERVE_CONTROLLER_ACTOR"
"""Name of the actor that a cluster's Ray Serve has."""
APPLICATION = "seqrl"


@dataclass(frozen=True)
class Served:
    """A service that is up."""

    url: str
    policies: tuple[str, ...]
    checkpoint: str
    token: bool
    """Clients are asked for one."""

    def wait(self, every_s: float = 0.5) -> None:
        """Return after Ctrl-C or SIGTERM."""
        with StopRequested() as stop:
            while not stop.asked:
                time.sleep(every_s)


@contextlib.contextmanager
def serving(settings: ServingSettings, host: str, port: int, address: str | None) -> Iterator[Served]:
    """Have a service up inside the block.

    Args:
        settings: what is served, and how; `ask_token` is set here: where there is a token it is asked for.
        host: where to listen: a loopback address, or with a token any.
        port: likewise.
        address: Ray cluster to run on; None: a Ray of our own here.
    Raises: SeqrlError: it cannot be served; nothing is left.
    """
    require_serve()
    digest = token_digest()
    if digest is None and not is_loopback(host):
        raise RecipeError(
            f"--host={host} can be reached from elsewhere and no token is set: everybody could ask. Set "
            f"{TOKEN} (openssl rand -hex 32), or leave --host out."
        )
    here = Service(settings, Source(settings.run, settings.checkpoint), Guard(None))
    check(settings.replicas, here)
    run = str(here.source.folder.absolute())
    settings = settings.model_copy(update={"run": run, "ask_token": digest is not None})
    if address in (None, "local"):
        _free(host, port)
    ours = address in (None, "local") and not ray.is_initialized()
    with connected(address):
        from ray import serve

        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        _alone(address)
        try:
            serve.start(
                proxy_location="HeadOnly",
                http_options={"host": host, "port": port},
                logging_config={"log_level": "WARNING", "enable_access_log": False},
            )
            try:
                serve.run(application(settings, digest), name=APPLICATION)
            except (RuntimeError, RayError) as error:
                raise WorkerError(f"the service did not come up: {why(APPLICATION, error)}") from None
            url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
            name = here.loaded.checkpoint.name
            yield Served(url, tuple(here.policies.shapes), name, digest is not None)
        finally:
            if ours:  # Serve ends with its Ray; ended alone, it complains of that to the terminal
                serve.delete(APPLICATION)
            else:
                serve.shutdown()  # type: ignore[no-untyped-call]


def _free(host: str, port: int) -> None:
    """Raise RecipeError if nobody could listen there: Serve itself would say so in its own log alone."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise RecipeError(
            f"--host={host} --port={port} cannot be listened on: {error.strerror or error}. Choose another."
        ) from None


def _alone(address: str | None) -> None:
    """Raise RecipeError if the cluster has a Ray Serve already."""
    from ray.serve._private.constants import SERVE_NAMESPACE

    try:
        ray.get_actor(CONTROLLER, namespace=SERVE_NAMESPACE)
    except ValueError:
        return
    raise RecipeError(
        f"--address={address}: Ray Serve runs on that cluster already, with an address and applications of "
        "its own. Add import_path: seqrl_ray.serving.app:build to its config file instead (docs/serving.md)."
    )


def why(name: str, error: Exception) -> str:
    """Return in one line why an application did not come up: a replica's own error, where Serve kept it."""
    from ray import serve

    told = serve.status().applications.get(name)
    kept = [deployment.message for deployment in told.deployments.values()] if told else []
    return reason("\n".join([str(error), *kept]))


def reason(text: str) -> str:
    """Return the last error that a traceback names, or else its last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    named = [line.partition("Error: ")[2] for line in lines if "Error: " in line]
    return (named or lines or ["no reason is given"])[-1]
