"""Settings as TOML text: what a resolved recipe is written with; the standard library only reads TOML."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from seqrl_ray.settings import NONE


def to_toml(settings: BaseModel) -> str:
    """Return every key of `settings` with its value; nested settings become tables."""
    lines: list[str] = []
    _write_table(_table(settings), "", lines)
    return "\n".join(lines).strip() + "\n"


def _table(settings: BaseModel) -> dict[str, Any]:
    """TOML has no null: a key that is None by default is left out, any other that is None says so."""
    table = settings.model_dump(mode="json")
    for name, info in type(settings).model_fields.items():
        value = getattr(settings, name)
        if isinstance(value, BaseModel):
            table[name] = _table(value)
        elif value is None and info.default is not None:
            table[name] = NONE
    return table


def _write_table(table: Mapping[str, Any], prefix: str, lines: list[str]) -> None:
    plain = {k: v for k, v in table.items() if not isinstance(v, Mapping) and v is not None}
    nested = {k: v for k, v in table.items() if isinstance(v, Mapping)}
    if prefix and (plain or not nested):
        lines.append(f"\n[{prefix}]")
    lines.extend(f"{_toml_key(k)} = {_toml_value(v)}" for k, v in plain.items())
    for name, value in nested.items():
        _write_table(value, f"{prefix}.{_toml_key(name)}" if prefix else _toml_key(name), lines)


def _toml_key(name: str) -> str:
    bare = name and all((c.isalnum() and c.isascii()) or c in "_-" for c in name)
    return name if bare else json.dumps(name)


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, float):
        text = repr(value)
        return text if any(c in text for c in ".enf") else text + ".0"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml_value(v) for v in value) + "]"
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_toml_key(k)} = {_toml_value(v)}" for k, v in value.items()) + " }"
    raise TypeError(f"no TOML for {type(value).__name__}")
