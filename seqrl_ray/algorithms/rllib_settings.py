"""The settings of an algorithm that RLlib brings: `[algorithm] name = "rllib:PPO"`.

Which names there are is read from RLlib's own registry, as text: reading a recipe imports neither Ray nor
torch. Whether the keys of `config` and `model` exist is checked where RLlib is at hand, before a run begins
(`seqrl_ray.rllib.config`).
"""

from __future__ import annotations

import ast
import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

from seqrl_ray.errors import RecipeError, did_you_mean
from seqrl_ray.settings import Settings, key

PREFIX = "rllib:"
"""Begins the names of RLlib's algorithms."""


class RllibSettings(Settings):
    """An algorithm of RLlib's, on the environment, the run folder and the evaluation of the recipe."""

    config: dict[str, Any] = key(
        {},
        "fields of the algorithm's AlgorithmConfig by RLlib's names (lr, num_epochs, ...); see docs/rllib.md",
    )
    model: dict[str, Any] = key(
        {}, "fields of RLlib's DefaultModelConfig (fcnet_hiddens, use_lstm, conv_filters, ...)"
    )


def is_rllib(name: str) -> bool:
    """Return whether `algorithm.name` names an algorithm of RLlib's, existing or not."""
    return name.startswith(PREFIX)


def rllib_settings(name: str) -> type[RllibSettings]:
    """Return the settings class of `rllib:<name>`.

    Raises: RecipeError: RLlib registers no such name; the message names the closest one.
    """
    plain, known = name.removeprefix(PREFIX), registered()
    if plain not in known:
        same, full = [k for k in known if k.lower() == plain.lower()], [PREFIX + k for k in known]
        near = f' Did you mean "{PREFIX}{same[0]}"?' if same else did_you_mean(name, full)
        raise RecipeError(
            f"algorithm.name={name!r} is not an algorithm that RLlib registers.{near} "
            f"Known: {', '.join(full)}."
        )
    return RllibSettings


@cache
def registered() -> tuple[str, ...]:
    """Return the names in RLlib's registry, sorted.

    Raises: RecipeError: RLlib is not installed, or its registry is not where it was.
    """
    spec = importlib.util.find_spec("ray")
    places = [] if spec is None else list(spec.submodule_search_locations or [])
    file = Path(places[0], "rllib", "algorithms", "registry.py") if places else None
    if file is None or not file.is_file():
        raise RecipeError(
            "RLlib is not installed: no algorithm named rllib:... can be run. Run pip install 'ray[rllib]', "
            "or choose another algorithm.name."
        )
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.value, ast.Dict)
            and [ast.unparse(target) for target in node.targets] == ["ALGORITHMS"]
        ):
            return tuple(sorted(str(ast.literal_eval(k)) for k in node.value.keys if k is not None))
    raise RecipeError(
        f"{file} holds no table ALGORITHMS: this version of RLlib is not the one that is bridged. Install "
        "the versions of constraints.txt."
    )
