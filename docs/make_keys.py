"""Write docs/recipe_keys.md from the settings classes: `python docs/make_keys.py`. A test compares them."""

from __future__ import annotations

import json
import typing
from pathlib import Path

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from seqrl_ray import recipe, recipe_data, recipe_env, recipe_replay, recipe_traffic
from seqrl_ray.algorithms import names, settings_class
from seqrl_ray.algorithms.rllib_settings import RllibSettings
from seqrl_ray.serving.settings import ServingSettings

BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}

SECTIONS: dict[str, type[BaseModel]] = {
    "top level": recipe.Recipe,
    '[env] kind = "gym"': recipe_env.GymSettings,
    '[env] kind = "mujoco"': recipe_env.MujocoSettings,
    '[env] kind = "atari"': recipe_env.AtariSettings,
    '[env] kind = "pettingzoo"': recipe_env.PettingZooSettings,
    '[env] kind = "traffic"': recipe_traffic.TrafficSettings,
    **{f'[algorithm] name = "{name}"': settings_class(name) for name in names()},
    '[algorithm] name = "rllib:<name>"': RllibSettings,
    "[policies.<id>]": recipe_env.PolicySettings,
    "[data]": recipe_data.DataSettings,
    "[[phase]]": recipe_data.PhaseSettings,
    "[actors]": recipe.ActorsSettings,
    "[replay]": recipe_replay.ReplaySettings,
    "[learner]": recipe.LearnerSettings,
    "[evaluation]": recipe.EvaluationSettings,
    "[stop]": recipe.StopSettings,
    "seqrl serve RUN key=value": ServingSettings,
}


def pages() -> str:
    """Return the whole page."""
    parts = [
        "# Recipe keys\n\nMade by `docs/make_keys.py` from the settings classes; do not edit. "
        "Keys marked * may be changed by a sweep in a living run. "
        "Last come the keys of a service, which are no recipe's ([serving](serving.md)).\n"
    ]
    for title, cls in SECTIONS.items():
        rows = [row(name, info) for name, info in cls.model_fields.items() if name not in skipped(cls)]
        if rows:
            table = "\n".join(
                ["| key | default | type, bounds, unit | what it is |", "|---|---|---|---|", *rows]
            )
            parts.append(f"## `{title}`\n\n{what(cls)}\n\n{table}\n")
    return "\n".join(parts)


def what(cls: type[BaseModel]) -> str:
    """Return the first paragraph of the class's docstring."""
    return " ".join((cls.__doc__ or "").split("\n\n")[0].split())


def skipped(cls: type[BaseModel]) -> set[str]:
    """Names that are sections of their own, or set by loading."""
    sections = {"env", "algorithm", "policies", "data", "phase", "actors", "replay", "learner"}
    sections |= {"evaluation", "stop", "folder"}
    if cls is recipe.Recipe:
        return sections
    return set() if cls is recipe_data.PhaseSettings else {"kind"}


def row(name: str, info: FieldInfo) -> str:
    """Return one key as a table row."""
    extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
    star = " *" if extra.get("mutable") else ""
    default = "required" if info.is_required() else f"`{json.dumps(info.default)}`"
    if default == "`null`":
        default = "none"
    value = " ".join([kind(info), str(extra.get("unit", ""))]).strip()
    return f"| `{name}`{star} | {default} | {value} | {info.description or ''} |"


def kind(info: FieldInfo) -> str:
    """Return type and bounds in words."""
    found = [(sign, getattr(rule, name, None)) for rule in info.metadata for name, sign in BOUNDS.items()]
    bounds = [f"{sign} {bound:g}" for sign, bound in found if bound is not None]
    return ", ".join([spelt(info.annotation), *bounds])


def spelt(hint: typing.Any) -> str:
    """Return a type hint for people."""
    origin = typing.get_origin(hint)
    if origin is typing.Literal:
        return " or ".join(f'"{choice}"' for choice in typing.get_args(hint))
    inside = [spelt(part) for part in typing.get_args(hint) if part is not Ellipsis]
    if origin is tuple:
        return f"list of {' and '.join(dict.fromkeys(inside))}"
    if origin is dict:
        return "table"
    return (
        " or ".join(inside)
        if inside
        else {"str": "text", "NoneType": "none"}.get(hint.__name__, hint.__name__)
    )


if __name__ == "__main__":
    Path(__file__).with_name("recipe_keys.md").write_text(pages(), encoding="utf-8")
