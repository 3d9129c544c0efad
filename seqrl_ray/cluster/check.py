"""`seqrl check FILE.yaml`: what is wrong with a cluster file, found before a cloud is asked for anything.

Ray checks the frame (its own `prepare_config` and `validate_config`, run here too) and passes `node_config`
on unread, so a misspelt `InstanceType` shows when the cloud refuses it. Here it is read; and what Ray takes
without a word but nobody wants is named: ports open to the world, a cluster that obeys whoever reaches it,
secrets in commands, a head that can be taken away.
"""

from __future__ import annotations

import copy
import json
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pydantic
import yaml

from seqrl_ray.cluster.auth import unguarded, unseen
from seqrl_ray.cluster.aws import AwsNode
from seqrl_ray.cluster.clouds import OF_PROVIDER, from_templates, markets
from seqrl_ray.cluster.gcp import GcpNode
from seqrl_ray.cluster.texts import Config, texts
from seqrl_ray.errors import RecipeError, did_you_mean
from seqrl_ray.settings import Settings, parse

WORLD = re.compile(r"(?<![\d.])0\.0\.0\.0(?![\d.])|(?<![0-9A-Fa-f:])::(?=/0|\s|$)|\[::\]")
"""Every address of IPv4 or IPv6: as a bind address, or as a range."""

SECRET = re.compile(
    r"AKIA[0-9A-Z]{16}|-----BEGIN [A-Z ]*PRIVATE KEY"
    r"|\b\w*(?:SECRET|PASSWORD|API_KEY|ACCESS_KEY|AUTH_TOKEN|_TOKEN)\w*(?<!_PATH)=(?![\"']?\$)[\"']?\w"
    r"|(?i:(?:token|secret|password|passwd|api_?key|access_?key)\w*\s*[:=]\s*[\"']?[\w+/-]{16,})"
)
"""Keys and passwords, or a name like theirs that is given its value on the spot, in a shell or in YAML."""

TO_FILL_IN = "REPLACE"


NEEDED = (
    "auth",
    "file_mounts",
    "initialization_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
)
"""What `ray up` looks up without a default; with an external provider it fills in none of them."""


class NoSettings(Settings):
    """`node_config` where the provider reads none."""


NODE_SETTINGS: dict[str, type[Settings]] = {
    "aws": AwsNode,
    "gcp": GcpNode,
    "local": NoSettings,
    "external": NoSettings,
}
"""Provider -> what its `node_config` may hold."""


@dataclass(frozen=True)
class Checked:
    """What was found."""

    lines: tuple[str, ...]
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether a cluster may be brought up with it."""
        return not self.problems


def check_file(path: Path) -> Checked:
    """Check a file that `ray up` shall read.

    Returns: lines to print, the verdict last.
    Raises: RecipeError: it is no such file.
    """
    config = read(path)
    problems = tuple(dict.fromkeys(problems_of(config)))
    lines = [f"cluster      {path}: {config['cluster_name']}, provider {config['provider']['type']}"]
    lines += _nodes(config)
    blanks = sorted({place for place, text in texts(config) if TO_FILL_IN in text})
    lines += [f"to fill in   {place}" for place in blanks]
    unknown = [] if problems else list(unchecked(config))
    lines += [f"not checked  {what}" for what in unknown]
    lines += [f"problem      {problem}" for problem in problems]
    verdict = "OK: Ray takes this file, and nothing in it is open, unguarded or misspelt."
    if problems:
        verdict = f"NOT OK, {len(problems)} problem(s): do not bring this cluster up."
    elif blanks:
        verdict = f"OK once the {len(blanks)} value(s) above are filled in."
    elif unknown:
        verdict = (
            "OK: Ray takes this file, and nothing that was checked in it is open, unguarded or misspelt."
        )
    if unknown:
        verdict += f" Not checked: the {len(unknown)} thing(s) above; look at them yourself."
    return Checked((*lines, verdict), problems)


def read(path: Path) -> Config:
    """Read a cluster file. Raises: RecipeError: it is not YAML, or not for `ray up`."""
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        text = " ".join(str(error).split())
        raise RecipeError(f"{path}: not a YAML file that can be read: {text}. Correct the file.") from None
    if isinstance(config, dict) and "apiVersion" in config:
        raise RecipeError(
            f"{path} is a Kubernetes manifest: `ray up` does not read it. Apply it with kubectl."
        )
    provider = config.get("provider") if isinstance(config, dict) else None
    if not isinstance(provider, dict) or not isinstance(config.get("cluster_name"), str):
        raise RecipeError(
            f"{path} has no cluster_name and provider: it is no file for `ray up`. Name another."
        )
    kind = str(provider.get("type"))
    if kind not in NODE_SETTINGS:
        raise RecipeError(
            f"provider.type={kind} is not one that is checked here.{did_you_mean(kind, NODE_SETTINGS)} "
            f"Known: {', '.join(NODE_SETTINGS)}."
        )
    return dict(config)


def problems_of(config: Config) -> Iterator[str]:
    """What is wrong, one line each."""
    frame = list(_frame(config))
    yield from frame
    if frame:  # the rest reads what Ray makes of it
        return
    full = _as_ray_reads_it(config)
    kind = config["provider"]["type"]
    nodes: dict[str, Settings] = {}
    for name, node_type in full["available_node_types"].items():
        where = f"available_node_types.{name}.node_config"
        try:
            nodes[name] = _node(NODE_SETTINGS[kind], node_type["node_config"], where)
        except RecipeError as error:
            yield str(error)
    yield from _open(full)
    yield from unguarded(full)
    yield from _secrets(full)
    yield from markets(full, nodes)
    if kind in OF_PROVIDER:
        yield from OF_PROVIDER[kind](full, nodes)


def unchecked(config: Config) -> Iterator[str]:
    """What a file without problems leaves to something that is not in it, one line each."""
    full = _as_ray_reads_it(config)
    yield from unseen(full)
    yield from from_templates(full)


def _node(cls: type[Settings], table: Config, where: str) -> Settings:
    """Read a `node_config`. Raises: RecipeError: one line; a key that does not exist hears its neighbours."""
    try:
        return cls.model_validate(table)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        if first["type"] != "extra_forbidden":
            return parse(cls, table, where)  # which says it
        *path, name = (str(part) for part in first["loc"])
        here = cls
        for part in path:
            info = here.model_fields.get(part)
            here = next(_inside(info.annotation), here) if info else here
        known = sorted(here.model_fields)
        raise RecipeError(
            f"{'.'.join([where, *path, name])} is not a setting.{did_you_mean(name, known)} "
            f"Known here: {', '.join(known)}."
        ) from None


def _inside(hint: Any) -> Iterator[type[Settings]]:
    """Settings classes that a type is made of, e.g. of `list[A] | None`."""
    if isinstance(hint, type) and issubclass(hint, Settings):
        yield hint
    for part in get_args(hint):
        yield from _inside(part)


# ----------------------------------------------------------------------------------------------- Ray's frame


def _as_ray_reads_it(config: Config) -> Config:
    """The file with Ray's defaults for its provider, which count as if they stood there."""
    from ray.autoscaler._private.util import prepare_config

    logger = logging.getLogger("ray.autoscaler")
    before, logger.level = logger.level, logging.ERROR
    try:
        prepared: Config = prepare_config(copy.deepcopy(config))
    finally:
        logger.level = before
    return prepared


def _frame(config: Config) -> Iterator[str]:
    """What Ray itself refuses, and keys that it would refuse, with the close match it does not name."""
    import click
    import jsonschema
    import ray.autoscaler
    from ray.autoscaler._private.util import validate_config

    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())["properties"]
    of_node = schema["available_node_types"]["patternProperties"][".*"]["properties"]
    tables = [("", config, set(schema) | {"min_workers"} if _manual(config) else set(schema))]
    node_types = config.get("available_node_types")
    for name, table in node_types.items() if isinstance(node_types, dict) else ():
        if isinstance(table, dict):
            tables.append((f"available_node_types.{name}.", table, set(of_node)))
    unknown = [(where, key, known) for where, table, known in tables for key in table if key not in known]
    for where, key, known in unknown:
        yield f"{where}{key} is not a key that Ray reads.{did_you_mean(str(key), known)} Correct it."
    if unknown:
        return
    try:
        prepared = _as_ray_reads_it(config)
        validate_config(prepared)
        for missing in (key for key in NEEDED if key not in prepared):
            yield f"{missing} is missing: Ray has no default for it with this provider. Add it."
    except jsonschema.ValidationError as error:
        place = ".".join(str(part) for part in error.absolute_path)
        yield f"{place or 'the file'} is refused by Ray: {' '.join(error.message.split())}. Correct it."
    except KeyError as error:
        yield f"{error.args[0]} is missing: Ray has no default for it with this provider. Add it."
    except (ValueError, RuntimeError, AssertionError, click.ClickException) as error:
        yield f"refused by Ray: {' '.join(str(error).split())}"


def _manual(config: Config) -> bool:
    return bool(config["provider"]["type"] == "local")


# ------------------------------------------------------------------------------------------ open or unguarded


def _open(full: Config) -> Iterator[str]:
    for place, text in texts(full):
        if WORLD.search(text):
            yield (
                f"{place}={_short(text)!r} is open to every address: whoever reaches a port of Ray can run "
                "code on the cluster. Bind to 127.0.0.1 and use a tunnel, or name who may reach it."
            )


def _secrets(full: Config) -> Iterator[str]:
    for place, text in texts(full):
        if SECRET.search(text):
            yield (
                f"{place} holds what looks like a secret: the file goes to the head, commands stand in "
                "logs. Mount a file, or give the instance a role."
            )


def _nodes(config: Config) -> list[str]:
    """One line per node type, as the file has it."""
    lines = []
    for name, table in config.get("available_node_types", {}).items():
        if not isinstance(table, dict):
            continue
        most = (
            "the head" if name == config.get("head_node_type") else f"up to {table.get('max_workers', '?')}"
        )
        least = f", never below {n}" if (n := table.get("min_workers")) else ""
        has = ", ".join(f"{k} {v}" for k, v in {**(table.get("resources") or {})}.items()) or "as found"
        labels = ", ".join(f"{k}={v}" for k, v in (table.get("labels") or {}).items()) or "none"
        lines.append(f"nodes        {name}: {most}{least}; {has}; labels {labels}")
    if _manual(config):
        workers = config["provider"].get("worker_ips", [])
        lines.append(f"nodes        the head and {len(workers)} workers, as their machines are")
    return lines


def _short(text: str, most: int = 100) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 3]}..."
