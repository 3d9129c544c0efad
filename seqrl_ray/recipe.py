"""The recipe: one TOML file that says what is run, on a laptop and on a cluster alike.

This file validates the frame. The `[env]` table is validated by the class of its `kind` (`recipe_env.py`,
`recipe_traffic.py`), `[replay]` by `recipe_replay.py`, `[algorithm]` by the torch-free settings class that
stands beside the algorithm; the caller of `load` says which class that is, so that this file knows no
algorithm.

A resolved recipe holds every key with its value; `dump` writes it so that loading it gives an equal recipe.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, model_validator

from seqrl_ray.errors import RecipeError, did_you_mean
from seqrl_ray.recipe_env import (
    AtariSettings,
    GymSettings,
    MujocoSettings,
    PettingZooSettings,
    PolicySettings,
)
from seqrl_ray.recipe_replay import ReplaySettings
from seqrl_ray.recipe_traffic import TrafficSettings
from seqrl_ray.settings import NONE, Settings, key, parse

EnvSettings = Annotated[
    GymSettings | MujocoSettings | AtariSettings | PettingZooSettings | TrafficSettings,
    Field(discriminator="kind"),
]


class ActorsSettings(Settings):
    """Who steps the environments."""

    count: int = key(1, "actor processes", ge=1, le=10_000)
    envs_per_actor: int = key(1, "environment copies in each actor", ge=1, le=65_536)
    fragment_steps: int = key(
        16,
        "vector steps an actor makes between two messages (and two looks at new weights)",
        unit="steps",
        ge=1,
        le=10_000,
    )
    in_flight: int = key(
        2,
        "fragments an actor may have on their way; 1 = lock-step, the run is then a function of its seed",
        ge=1,
        le=16,
    )
    hang_timeout_s: float = key(
        120.0,
        "an actor silent for this long is killed and replaced; before its first answer it has a minute more",
        unit="s",
        gt=0.0,
    )
    max_restarts_per_10_min: int = key(20, "process deaths the run survives in ten minutes", ge=0)
    cpus: float = key(1.0, "CPUs each actor reserves on a cluster (placement only)", gt=0.0, le=64.0)


class LearnerSettings(Settings):
    """Who takes gradient steps."""

    batch_size: int = key(64, "items per update", ge=1, le=65_536)
    updates_per_call: int = key(
        16,
        "updates per draw from replay: a full call is cheap, priorities are this much older",
        unit="updates",
        ge=1,
        le=256,
    )
    prefetch: int = key(
        2,
        "draws in flight in the service wiring; asked for together once half are used up, so that from 4 on "
        "calls are fuller and priorities come back later",
        ge=1,
        le=8,
    )
    device: Literal["auto", "cpu", "cuda"] = key("auto", "auto = CUDA where there is one")
    num_gpus: float | Literal["auto"] = key(
        "auto", "GPUs the learner process asks of Ray; auto = one if the cluster has one"
    )
    compile: Literal["auto", "on", "off"] = key(
        "auto",
        "compiled updates; auto = once the updates left are measured to repay the compilation, and never "
        "in the "
        "local loop or a lock-step run, whose numbers follow from the seed alone",
    )
    threads: int | Literal["auto"] = key("auto", "torch threads; auto = cores the actors leave, at least one")
    publish_every_s: float = key(
        0.25, "how often new weights go to the board", unit="s", ge=0.0, mutable=True
    )
    checkpoint_every_s: float = key(
        120.0, "how often a checkpoint is written; 0 = only at the end", unit="s", ge=0.0
    )
    keep_checkpoints: int = key(2, "checkpoints kept in the run folder", ge=1)
    report_every_s: float = key(2.0, "how often a row of metrics is written", unit="s", gt=0.0)
    max_policy_lag_updates: int = key(
        0, "fragments older than this are dropped; 0 = none is", unit="updates", ge=0
    )


class EvaluationSettings(Settings):
    """How the policy is judged: greedy, on seeds no training episode sees."""

    episodes: int = key(20, "episodes of the final evaluation, one held-out seed each", unit="episodes", ge=1)
    seed: int = key(1_000_000, "first held-out seed; episode i uses seed + i", ge=0, lt=2**31 - 1_000_000)
    every_env_steps: int = key(0, "evaluate in between this often; 0 = only at the end", unit="steps", ge=0)
    interim_episodes: int = key(4, "episodes of an evaluation in between", unit="episodes", ge=1)
    hang_timeout_s: float = key(
        3600.0,
        "an evaluation job (some episodes of one controller) silent for this long begins anew",
        unit="s",
        gt=0.0,
    )
    envs: int = key(
        1, "environment copies the evaluator steps together (1 where the kind allows no more)", ge=1
    )
    controllers: tuple[str, ...] = key(("random",), "built-in rules judged on the same seeds")
    headline: str = key("return", "metric the report and the progress line lead with")
    lower_is_better: bool = key(False, "direction of the headline metric")


class StopSettings(Settings):
    """When a run ends; `env_steps` is also the budget that every schedule is a share of."""

    env_steps: int = key(description="vector-slot steps of the whole run", unit="steps", ge=1)
    updates: int = key(0, "stop after this many updates; 0 = no limit", unit="updates", ge=0)
    wall_s: float = key(0.0, "stop after this long; 0 = no limit", unit="s", ge=0.0)


class Recipe(Settings):
    """A whole run."""

    name: str = key(
        description="names the run folder", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80
    )
    description: str = key("", "one line for people")
    seed: int = key(0, "seed of everything random in training", ge=0, lt=2**31)
    env: EnvSettings
    algorithm: dict[str, Any] = key(description="`name` of the algorithm and its settings")
    policies: dict[str, PolicySettings] = key(
        {"shared": PolicySettings()}, "policy id -> who it drives", min_length=1
    )
    actors: ActorsSettings = ActorsSettings()
    replay: ReplaySettings = ReplaySettings()
    learner: LearnerSettings = LearnerSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    stop: StopSettings
    folder: str | None = key(None, "where relative files of [env] resolve; set by loading")

    @model_validator(mode="after")
    def _one_simulation_per_process(self) -> Recipe:
        if self.env.kind == "traffic" and self.actors.envs_per_actor != 1:
            raise ValueError(
                f"actors.envs_per_actor={self.actors.envs_per_actor} is not 1 for a traffic environment: "
                "libsumo is one simulation per process. Set actors.envs_per_actor=1 and raise actors.count."
            )
        return self

    @model_validator(mode="after")
    def _pacing_can_move(self) -> Recipe:
        draw = self.learner.batch_size
        if self.replay.min_items < draw:
            raise ValueError(
                f"replay.min_items={self.replay.min_items} is below learner.batch_size={draw}: the first "
                "batches would hold the same items several times. Raise replay.min_items."
            )
        return self

    def env_copies(self) -> int:
        """Environment copies in all actors."""
        return self.actors.count * self.actors.envs_per_actor


def data_root(kind: str) -> Path:
    """Return the folder of shipped data files (`envs`, `tune`, ...): the checkout's, or the wheel's."""
    package = Path(__file__).resolve().parent
    checkout = package.parent / kind
    return (
        checkout
        if checkout.is_dir() and (package.parent / "pyproject.toml").is_file()
        else package / "_data" / kind
    )


def shipped(kind: str = "envs") -> tuple[str, ...]:
    """Names of the shipped recipes, e.g. `traffic/cologne8`."""
    root = data_root(kind)
    return tuple(sorted(str(p.relative_to(root).with_suffix("")) for p in root.rglob("*.toml")))


def find(recipe: str, kind: str = "envs") -> Path:
    """Return the file that `recipe` names: a path, or a shipped recipe's name with or without `envs/` and
    `.toml`.

    Raises: RecipeError: no such file; the message names the closest shipped recipe.
    """
    path = Path(recipe)
    if path.is_file():
        return path.resolve()
    if path.is_dir():
        raise RecipeError(f"{recipe} is a folder, not a recipe. Name a .toml file in it.")
    name = recipe.removeprefix(f"{kind}/").removesuffix(".toml")
    inside = data_root(kind) / f"{name}.toml"
    if inside.is_file():
        return inside
    known = shipped(kind)
    raise RecipeError(
        f"{recipe} is neither a file nor a shipped recipe.{did_you_mean(name, known)} "
        f"Shipped: {', '.join(known)}."
    )


def load(
    recipe: str | Path,
    overrides: Iterable[str] = (),
    *,
    algorithm_settings: Callable[[str], type[Settings]],
) -> Recipe:
    """Read, override and validate a recipe.

    Args:
        recipe: a path or a shipped name, see `find`.
        overrides: `dotted.key=value`; the value is read as TOML, and as a string where it is not valid TOML.
        algorithm_settings: algorithm name -> its settings class (raises RecipeError for an unknown name).
    Raises: RecipeError: one line that names the file or key, the rule, and what to change.
    """
    path = find(str(recipe))
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path}: not valid TOML: {error}. Correct the file.") from None
    except (UnicodeDecodeError, OSError) as error:
        raise RecipeError(f"{path}: cannot be read: {error}.") from None
    for override in overrides:
        _apply_override(table, override)
    table.setdefault("folder", str(path.parent))
    return resolve(table, algorithm_settings=algorithm_settings)


def resolve(table: Mapping[str, Any], *, algorithm_settings: Callable[[str], type[Settings]]) -> Recipe:
    """Validate a recipe table, `[algorithm]` included, and fill in every default."""
    algorithm = table.get("algorithm")
    if not isinstance(algorithm, Mapping) or not isinstance(algorithm.get("name"), str):
        raise RecipeError(
            'algorithm.name is required and missing. Add [algorithm] name = "double_dqn" to the recipe.'
        )
    name = algorithm["name"]
    cls = algorithm_settings(name)
    given = {k: v for k, v in algorithm.items() if k != "name"}
    settings = parse(cls, given, "algorithm")
    full = {"name": name, **settings.model_dump(mode="json")}
    env = table.get("env")
    if isinstance(env, Mapping):
        kind = env.get("kind")
        kinds = {"gym", "mujoco", "atari", "pettingzoo", "traffic"}
        if kind not in kinds:
            raise RecipeError(
                f"env.kind={kind!r} is not a kind of environment.{did_you_mean(str(kind), kinds)} "
                f"Known: {', '.join(sorted(kinds))}."
            )
    recipe = _parse_recipe({**table, "algorithm": full})
    for policy, policy_settings in recipe.policies.items():
        if policy_settings.algorithm:
            parse(cls, {**given, **policy_settings.algorithm}, f"policies.{policy}.algorithm")
    return recipe


def _parse_recipe(table: Mapping[str, Any]) -> Recipe:
    """Validate the frame; [env] is parsed by its own class first so that messages name its keys plainly."""
    classes: dict[str, type[Settings]] = {
        "gym": GymSettings,
        "mujoco": MujocoSettings,
        "atari": AtariSettings,
        "pettingzoo": PettingZooSettings,
        "traffic": TrafficSettings,
    }
    env = table.get("env")
    if isinstance(env, Mapping):
        parse(classes[str(env["kind"])], env, "env")
    return parse(Recipe, table, "")


def policy_algorithm(recipe: Recipe, policy_id: str) -> dict[str, Any]:
    """Return one policy's algorithm settings, without `name`: `[algorithm]` with the policy's own on top."""
    base = {k: v for k, v in recipe.algorithm.items() if k != "name"}
    return {**base, **recipe.policies[policy_id].algorithm}


def _apply_override(table: dict[str, Any], override: str) -> None:
    dotted, equals, text = override.partition("=")
    parts = dotted.strip().split(".")
    if not equals or not all(parts):
        raise RecipeError(
            f"{override!r} is not an override: write dotted.key=value, e.g. learner.batch_size=128."
        )
    try:
        value: Any = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    current: Any = table
    for part in parts[:-1]:
        current = current.setdefault(part, {})
        if not isinstance(current, dict):
            raise RecipeError(
                f"{override!r} reaches into {part}, which is a value and not a table. Correct the key."
            )
    current[parts[-1]] = value


def dump(recipe: Recipe) -> str:
    """Return the resolved recipe as TOML; loading it gives an equal recipe."""
    lines: list[str] = []
    _write_table(_table(recipe), "", lines)
    return "\n".join(lines).strip() + "\n"


def write(recipe: Recipe, path: Path) -> None:
    """Write the resolved recipe to `path`."""
    path.write_text(dump(recipe), encoding="utf-8")


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


def run_folder_name(recipe: Recipe, stamp: str) -> str:
    """Default folder of a run: `runs/<name>-<time>`, under the folder the command is given in."""
    return os.path.join("runs", f"{recipe.name}-{stamp}")
