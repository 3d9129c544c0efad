"""Label selectors: which nodes of a cluster a kind of process may stand on.

Labels and their grammar are Ray's (https://docs.ray.io/en/latest/ray-core/scheduling/labels.html): a key is a
name, with an optional domain before a slash; a selector's value is `value`, `!value`, `in(a, b)` or
`!in(a, b)`. They are places, not settings of learning: on a machine of one's own they mean nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator

_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
_KEY = re.compile(rf"(?:{_NAME}/)?{_NAME}")
_VALUE = re.compile(rf"!?(?:{_NAME}|in\({_NAME}(?:, ?{_NAME})*\))")


def _checked(given: dict[str, str]) -> dict[str, str]:
    for name, value in given.items():
        if not _KEY.fullmatch(name) or not _VALUE.fullmatch(value):
            raise ValueError(
                f"label_selector has {name!r}={value!r}, which is no label and value: no node could be "
                "chosen by it. Write a name, and value, !value, in(a, b) or !in(a, b)."
            )
    return given


LabelSelector = Annotated[dict[str, str], AfterValidator(_checked)]
"""Label -> what it must be; empty = any node."""


def matches(labels: Mapping[str, str], selector: Mapping[str, str]) -> bool:
    """Whether a node with these labels may be chosen. A node without a label has none of its values."""
    return all(_has(labels.get(name), value) for name, value in selector.items())


def _has(label: str | None, wanted: str) -> bool:
    plain = wanted.removeprefix("!")
    listed = plain.removeprefix("in(").removesuffix(")") if plain.startswith("in(") else plain
    return (label in [value.strip() for value in listed.split(",")]) != wanted.startswith("!")
