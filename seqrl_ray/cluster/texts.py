"""Texts of a cluster file, each with its place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Config = dict[str, Any]


def texts(value: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """(dotted place, text) of every text in a table, keys of tables included."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield f"{where}.{name}".lstrip("."), str(name)
            yield from texts(inner, f"{where}.{name}".lstrip("."))
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from texts(inner, f"{where}.{index}")
    elif isinstance(value, str):
        yield where, value
