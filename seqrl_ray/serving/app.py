"""The service as a Ray Serve application: `import_path: seqrl_ray.serving.app:build` in a Serve config file.

Thin on purpose: a replica reads requests, hands them to the service and writes its answers. What is served
and how is in `args`, the keys of `ServingSettings`; the token is never among them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from seqrl_ray.errors import RecipeError
from seqrl_ray.serving.guard import TOKEN, TOKEN_PATH, Guard, token_digest
from seqrl_ray.serving.service import Service
from seqrl_ray.serving.settings import ServingSettings
from seqrl_ray.serving.source import Source
from seqrl_ray.settings import parse

DEPLOYMENT = "policy"
"""Name of the one deployment."""
NEEDED = ("starlette", "fastapi", "uvicorn", "aiohttp")
"""Of what `ray[serve]` adds, what nothing can be served without."""
ONGOING = 1000
"""Requests that a replica has in hand at most: what they wait for is one call of the network."""
log = logging.getLogger("ray.serve")


def build(args: dict[str, Any]) -> Any:
    """Return the application.

    Args:
        args: keys of `ServingSettings`.
    Raises: SeqrlError: one clear line; nothing has been started.
    """
    settings = parse(ServingSettings, args, "args")
    require_serve()
    check(settings.replicas, Service(settings, Source(settings.run, settings.checkpoint), Guard(None)))
    return application(settings, token_digest() if settings.ask_token else None)


def application(settings: ServingSettings, digest: bytes | None) -> Any:
    """Return the application of checked settings; `digest` is the token's, where it is known here."""
    from ray import serve

    deployment = serve.deployment(
        name=DEPLOYMENT,
        num_replicas=settings.replicas,
        max_ongoing_requests=ONGOING,
        max_queued_requests=ONGOING,
        ray_actor_options={"num_cpus": settings.threads},
    )(Replica)
    return deployment.bind(settings.model_dump(), digest)


def require_serve() -> None:
    """Raise RecipeError if what Ray Serve needs is not installed."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise RecipeError(
            f"Ray Serve cannot run here ({', '.join(missing)} missing): nothing can be served. "
            "pip install 'seqrl-ray[serve]'"
        )


def check(replicas: int, service: Service) -> None:
    """Raise RecipeError if a service cannot have so many replicas."""
    if replicas > 1 and service.policies.stateful:
        raise RecipeError(
            f"replicas={replicas} with {service.source.recipe.algorithm['name']}, which acts on what "
            "it has seen: a session is in the memory of one replica, and Ray Serve sends its next request to "
            "any. Set replicas=1."
        )


class Replica:
    """One process that answers."""

    def __init__(self, keys: Mapping[str, Any], digest: bytes | None) -> None:
        """Load the run.

        Args:
            keys: of `ServingSettings`.
            digest: SHA-256 of the token; None: of the one in this process's environment.
        Raises: SeqrlError: the run cannot be served here.
        """
        import torch
        from ray import serve

        settings = parse(ServingSettings, keys, "args")
        torch.set_num_threads(settings.threads)
        if settings.ask_token and digest is None:
            digest = token_digest()
            if digest is None:
                raise RecipeError(
                    f"args.ask_token=true and this replica's environment has no {TOKEN} and no {TOKEN_PATH}: "
                    "everybody could ask. Set one of them, or ask_token=false where only this machine can."
                )
        rank = serve.get_replica_context().rank.rank
        source = Source(settings.run, settings.checkpoint)
        self.service = Service(settings, source, Guard(digest), seed=rank)
        check(rank + 1, self.service)  # a Serve config may ask for more replicas than `args` says
        self._refresh_s = settings.refresh_s
        if settings.checkpoint is None and settings.refresh_s > 0.0:  # Serve makes replicas inside their loop
            self._looking = asyncio.get_running_loop().create_task(self._look())

    async def __call__(self, request: Any) -> Any:
        """Answer one request of Starlette's."""
        from starlette.responses import Response

        headers = {name.lower(): value for name, value in request.headers.items()}
        reply = await self.service.answer(request.method, request.url.path, headers, request.stream())
        return Response(
            reply.body, reply.status, {**reply.headers, "cache-control": "no-store"}, "application/json"
        )

    async def _look(self) -> None:
        """Follow the run's checkpoints."""
        while True:
            await asyncio.sleep(self._refresh_s)
            before = self.service.trouble
            if await self.service.look():
                log.info("acting with checkpoint %s", self.service.loaded.checkpoint.name)
            elif self.service.trouble not in (None, before):
                log.warning("%s", self.service.trouble)
