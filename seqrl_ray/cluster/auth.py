"""Token authentication in a cluster file: on wherever Ray starts, and the token on every node.

Which RAY_AUTH_MODE a `ray start` sees: what its own command exports wins over its container's environment,
and that counts only where there is a container.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from seqrl_ray.cluster.texts import Config, texts

MODE = "RAY_AUTH_MODE"
ON = "token"

_SET = re.compile(rf"\b{MODE}=[\"']?([^\s\"';&|)]*)")
_EXPORTED = re.compile(rf"\bexport\s+(?:\w+=\S*\s+)*{MODE}=[\"']?{ON}\b", re.IGNORECASE)
_UNSET = re.compile(rf"(?:\bunset|\s-u)\s+{MODE}\b")
_START = re.compile(r"\bray\s+start\b")

SIDES = {"head_start_ray_commands": "head", "worker_start_ray_commands": "worker"}
"""Start commands -> whose they are, as Ray names it in keys of `docker`."""


def unguarded(full: Config) -> Iterator[str]:
    """What leaves the cluster without a token, one line each."""
    yield from _off(full)
    for name, side in SIDES.items():
        if not all(_exports(before) or _around(full, side) for before in _starts(full[name])):
            yield (
                f"{name} starts Ray without {MODE}={ON}: whoever reaches the cluster is obeyed. "
                f"Put `export {MODE}={ON};` before `ray start`."
            )
    if not any(str(target).endswith(".ray/auth_token") for target in full["file_mounts"]):
        yield (
            "file_mounts brings no ~/.ray/auth_token to the nodes: they would not start, or not know one "
            "another. Make one with `ray get-auth-token --generate` and mount it at the same place."
        )


def unseen(full: Config) -> Iterator[str]:
    """Start commands in which no `ray start` is seen."""
    for name in SIDES:
        if not _starts(full[name]):
            yield f"{name}: no `ray start` is seen in it, so not whether it asks for the token"


def _off(full: Config) -> Iterator[str]:
    """Everything that says another mode than the token's, wherever it stands."""
    given = [(f"provider.env.{MODE}", str(v)) for k, v in _provider_env(full).items() if k == MODE]
    for place, text in texts(full):
        given += [(place, mode) for mode in _SET.findall(text)]
        given += [(place, "") for _ in _UNSET.findall(text)]
    for place, mode in given:
        if mode.lower() != ON:
            yield (
                f"{place} sets {MODE}={mode}: with any mode but {ON}, whoever reaches the cluster is obeyed. "
                f"Set it to {ON}."
            )


def _starts(commands: list[str]) -> list[str]:
    """What stands before each `ray start`; every command has a shell of its own."""
    return [command[: start.start()] for command in commands for start in _START.finditer(command)]


def _exports(before: str) -> bool:
    """Whether a command has turned the token on for the `ray start` behind it."""
    last = re.split(r"[;&|\n]", before)[-1]
    return _EXPORTED.search(before) is not None or _SET.search(last) is not None


def _around(full: Config, side: str) -> bool:
    """Whether the environment of every start of this side has the token on: its container's, where there is
    one, or the provider's own, where that sets one (ours of local processes).
    """
    if full["provider"]["type"] == "external":
        return MODE in _provider_env(full)
    docker = full.get("docker") or {}
    tables = [docker]
    if side == "worker":  # a node type's own table goes over the common one
        kinds = {k: t for k, t in full["available_node_types"].items() if k != full.get("head_node_type")}
        tables = [{**docker, **(table.get("docker") or {})} for table in kinds.values()] or tables
    return all(_in_container(table, side) for table in tables)


def _in_container(docker: Config, side: str) -> bool:
    if not docker.get("container_name"):
        return False
    options = [*(docker.get("run_options") or []), *(docker.get(f"{side}_run_options") or [])]
    return re.search(rf"(?:^|\s)(?:-e|--env)[\s=]?[\"']?{MODE}=", " ".join(map(str, options))) is not None


def _provider_env(full: Config) -> Config:
    env = full["provider"].get("env")
    return env if isinstance(env, dict) else {}
