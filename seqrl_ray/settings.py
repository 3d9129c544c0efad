"""The base of every settings class: frozen, unknown keys refused, every key with a default, a unit and a
bound.

`key(...)` declares one setting; `parse(cls, table, where)` validates a TOML table against a class and turns
pydantic's report into one clear line.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, get_args

import pydantic
from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import ErrorDetails

from seqrl_ray.errors import RecipeError, did_you_mean

NONE = "none"
"""TOML has no null: this stands for it, for keys that may be None."""


class Settings(BaseModel):
    """A frozen table of settings."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False, validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _none(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        optional = {
            name for name, info in cls.model_fields.items() if type(None) in get_args(info.annotation)
        }
        return {name: None if value == NONE and name in optional else value for name, value in given.items()}


S = TypeVar("S", bound=Settings)


def key(
    default: Any = ...,
    description: str = "",
    *,
    unit: str = "",
    mutable: bool = False,
    **bounds: Any,
) -> Any:
    """Declare one setting.

    Args:
        default: its value where a recipe is silent; leave out for a key every recipe must give.
        description: one line, what it does.
        unit: unit of the value, e.g. "s", "steps", "updates", "bytes".
        mutable: a sweep may change it in a living run.
        **bounds: pydantic bounds: ge, gt, le, lt, min_length, max_length, ...
    """
    return Field(
        default, description=description, json_schema_extra={"unit": unit, "mutable": mutable}, **bounds
    )


def parse(cls: type[S], table: Mapping[str, Any], where: str) -> S:
    """Validate `table` as `cls`.

    Args:
        cls: the settings class.
        table: what the recipe holds.
        where: the dotted place of the table in the recipe, "" for its top level.
    Raises: RecipeError: one line that names the first offending key, the rule, and a close match if the key
        is unknown.
    """
    try:
        return cls.model_validate(dict(table))
    except pydantic.ValidationError as error:
        raise RecipeError(_first_line(cls, error.errors()[0], where, len(error.errors()))) from None


def mutable_keys(cls: type[BaseModel]) -> tuple[str, ...]:
    """Names of the keys of `cls` that a sweep may change in a living run."""
    return tuple(
        name
        for name, info in cls.model_fields.items()
        if isinstance(info.json_schema_extra, dict) and info.json_schema_extra.get("mutable")
    )


def _first_line(cls: type[BaseModel], error: ErrorDetails, where: str, count: int) -> str:
    parts = [str(p) for p in error["loc"]]
    dotted = ".".join(p for p in [where, *parts] if p)
    more = f" ({count - 1} more after this one)" if count > 1 else ""
    if error["type"] == "extra_forbidden":
        known = _known_keys(cls, parts[:-1])
        listed = ", ".join(sorted(known))
        return f"{dotted} is not a setting.{did_you_mean(parts[-1], known)} Known here: {listed}.{more}"
    if error["type"] == "missing":
        return f"{dotted} is required and missing. Add it to the recipe.{more}"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":  # our own rule: its text is already a whole sentence
        return f"{where + ': ' if where else ''}{message}{more}"
    return (
        f"{dotted}={error['input']!r} is refused: {message[0].lower()}{message[1:]}. Change {dotted}.{more}"
    )


def _known_keys(cls: type[BaseModel], path: list[str]) -> list[str]:
    """Keys of the settings class that `path` leads to inside `cls`."""
    current: type[BaseModel] = cls
    for part in path:
        info = current.model_fields.get(part)
        if info is None:
            continue
        candidates = [info.annotation, *getattr(info.annotation, "__args__", ())]
        nested = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        if nested:
            current = nested[0]
    return list(current.model_fields)
