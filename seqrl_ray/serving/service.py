"""The service itself, without HTTP server and without Ray: a request in, a status and a JSON object out.

    GET  /  or /healthz     it is there; asks nobody for the token
    GET  /spec              what is served, and what a request must look like
    POST /act               observations -> actions

Everything here runs in one event loop but for the network, which has a thread of its own.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncIterable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from seqrl_ray.envs.grouping import agents_of
from seqrl_ray.errors import SeqrlError
from seqrl_ray.serving.batching import Batcher
from seqrl_ray.serving.guard import Guard
from seqrl_ray.serving.inputs import Ask, Shape, parse
from seqrl_ray.serving.policies import Decision, Job, after
from seqrl_ray.serving.refusals import NOT_ALLOWED, NOT_FOUND, NOT_JSON, TOO_LARGE, UNAUTHORIZED, Refused
from seqrl_ray.serving.sessions import Sessions
from seqrl_ray.serving.settings import ServingSettings
from seqrl_ray.serving.source import Source
from seqrl_ray.types import ArraySpec

JSON = "application/json"


@dataclass(frozen=True)
class Reply:
    """What a client gets."""

    status: int
    content: Mapping[str, Any]
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def body(self) -> bytes:
        """The content as JSON."""
        return json.dumps(self.content, allow_nan=False).encode()


class Service:
    """Answers the requests of one replica."""

    def __init__(
        self,
        settings: ServingSettings,
        source: Source,
        guard: Guard,
        *,
        seed: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Load the run's policies and weights.

        Args:
            settings: what is served, and how.
            source: the run.
            guard: who may ask.
            seed: of what is random in acting.
            clock: seconds, monotonic.
        Raises: SeqrlError: they cannot be loaded.
        """
        self.settings, self.source, self.guard = settings, source, guard
        self.policies = policies = source.policies(seed)
        self.loaded = source.first()
        policies.take(self.loaded.weights)
        self.sessions = Sessions(settings.max_states, settings.session_idle_s, clock)
        self.batcher: Batcher[Job, Decision] = Batcher(
            policies.act,
            lambda job: job.ask.rows,
            max_rows=settings.max_rows,
            max_waiting_rows=settings.max_waiting_rows,
        )
        self.trouble: str | None = None
        """Why the newest checkpoint is not served."""

    async def answer(
        self, method: str, path: str, headers: Mapping[str, str], body: AsyncIterable[bytes]
    ) -> Reply:
        """Answer one request.

        Args:
            method: GET, POST, ...
            path: without the query.
            headers: lower-case name -> value.
            body: in pieces, as they arrive; read only if somebody may ask.
        """
        try:
            return Reply(200, await self._answer(method, path.rstrip("/") or "/", headers, body))
        except Refused as refused:
            more = {"www-authenticate": "Bearer"} if refused.status == UNAUTHORIZED else {}
            return Reply(refused.status, {"error": str(refused)}, more)

    async def look(self) -> bool:
        """Look for a newer checkpoint and act with it from the next call on.

        Returns: whether there was one that could be read; if one could not, `trouble` says why, and the next
            look tries again.
        """
        try:
            loaded = await asyncio.to_thread(self.source.newer, self.loaded.checkpoint)
            if loaded is not None:
                await self.batcher.between(partial(self.policies.take, loaded.weights))
                self.loaded = loaded
        except SeqrlError as error:
            self.trouble = " ".join(str(error).split())
            return False
        self.trouble = None
        return loaded is not None

    def spec(self) -> dict[str, Any]:
        """Return what is served."""
        settings, recipe = self.settings, self.source.recipe
        return {
            "run": recipe.name,
            "algorithm": recipe.algorithm["name"],
            "checkpoint": self.loaded.checkpoint.name,
            "env_steps": self.loaded.env_steps,
            "refresh_error": self.trouble,
            "explore": settings.explore,
            "max_rows": settings.max_rows,
            "max_request_bytes": settings.max_request_bytes,
            "policies": {
                policy_id: {**_described(shape), "weights": list(self.policies.versions[policy_id])}
                for policy_id, shape in self.policies.shapes.items()
            },
        }

    async def _answer(
        self, method: str, path: str, headers: Mapping[str, str], body: AsyncIterable[bytes]
    ) -> dict[str, Any]:
        paths = {"/": "GET", "/healthz": "GET", "/spec": "GET", "/act": "POST"}
        if path not in paths:
            raise Refused(f"{path[:60]!a} is not served here. There: {', '.join(paths)}.", NOT_FOUND)
        if method != paths[path]:
            raise Refused(f"{path} is asked with {paths[path]}, not with {method[:10]}.", NOT_ALLOWED)
        if path in ("/", "/healthz"):
            return {"status": "ok"}
        self.guard.check(headers)
        if path == "/spec":
            return self.spec()
        if headers.get("content-type", "").partition(";")[0].strip().lower() != JSON:
            raise Refused(f"the body must be JSON: send the header Content-Type: {JSON}.", NOT_JSON)
        return await self._act(await self._whole(body))

    async def _whole(self, body: AsyncIterable[bytes]) -> bytes:
        most, found = self.settings.max_request_bytes, bytearray()
        async for piece in body:
            found += piece
            if len(found) > most:
                raise Refused(f"the body is longer than {most} bytes: send fewer rows at a time.", TOO_LARGE)
        return bytes(found)

    async def _act(self, body: bytes) -> dict[str, Any]:
        settings, policies = self.settings, self.policies
        ask = parse(body, policies.shapes, max_rows=settings.max_rows, explore=settings.explore)
        decision = await (self.batcher.do(Job(ask, None)) if ask.session is None else self._in_session(ask))
        return {"action": decision.action.tolist(), "weights": list(decision.version)}

    async def _in_session(self, ask: Ask) -> Decision:
        """Act with what a session has seen; it remembers nothing of a request that got no action."""
        assert ask.session is not None and ask.is_first is not None
        session = self.sessions.enter(
            ask.policy_id, ask.session, ask.is_first, lambda rows: self.policies.fresh(ask.policy_id, rows)
        )
        try:
            decision = await self.batcher.do(Job(ask, session))
            after(session, ask, decision)
        finally:
            self.sessions.leave(ask.policy_id, ask.session, session, end=ask.end)
        return decision


def _described(shape: Shape) -> dict[str, Any]:
    """Return one policy's row of /spec."""
    group = shape.group
    action = group.action
    chosen: dict[str, Any] = {"kind": action.kind}
    if action.kind == "discrete":
        chosen["n"] = action.n
    else:
        chosen |= {"shape": list(action.shape), "low": _bounds(action.low), "high": _bounds(action.high)}
    return {
        "obs": _array(group.policy_obs),
        "frame_stack": group.frame_stack,
        "action": chosen,
        "legal": group.masked,
        "sessions": shape.stateful,
        "target_return": shape.target_return,
        "agents": [
            {"agent": name, "obs_size": slot.obs_size, "actions": slot.num_actions}
            for name, slot in zip(agents_of(group), group.slots, strict=True)
        ],
    }


def _array(spec: ArraySpec) -> dict[str, Any]:
    low, high = _bounds((spec.low, spec.high))
    return {"shape": list(spec.shape), "dtype": spec.dtype, "low": low, "high": high}


def _bounds(values: tuple[float, ...]) -> list[float | None]:
    """Return bounds as JSON has them: none where there is none."""
    return [value if math.isfinite(value) else None for value in values]
