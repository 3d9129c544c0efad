"""The recipe: one TOML file that says what is run, on a laptop and on a cluster alike.

This file validates the frame. The `[env]` table is validated by the class of its `kind` (`recipe_env.py`,
`recipe_traffic.py`), `[replay]` by `recipe_replay.py`, `[algorithm]` by the torch-free settings class that
stands beside the algorithm; the caller of `load` says which class that is, so that this file knows no
algorithm. Longer than a file should be: what the tables must be to one another stands in one place.

A resolved recipe holds every key with its value; `dump` writes it so that loading it gives an equal recipe.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from seqrl_ray.errors import RecipeError, did_you_mean
from seqrl_ray.recipe_data import DataSettings, PhaseSettings
from seqrl_ray.recipe_env import (
    AtariSettings,
    GymSettings,
    MujocoSettings,
    PettingZooSettings,
    PolicySettings,
)
from seqrl_ray.recipe_labels import LabelSelector
from seqrl_ray.recipe_replay import ReplaySettings
from seqrl_ray.recipe_toml import to_toml
from seqrl_ray.recipe_traffic import TrafficSettings
from seqrl_ray.settings import Settings, key, parse

EnvSettings = Annotated[
    GymSettings | MujocoSettings | AtariSettings | PettingZooSettings | TrafficSettings,
    Field(discriminator="kind"),
]


class ActorsSettings(Settings):
    """Who steps the environments."""

    count: int = key(
        1,
        "actor processes; as a list [1, 8] the least and the most: then it follows the cluster's free CPUs",
        ge=1,
        le=10_000,
    )
    max_count: int = key(
        0, "the most actors, where the number follows the cluster; 0 = always `count`", ge=0, le=10_000
    )
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
    max_node_losses_per_10_min: int = key(
        100,
        "whole nodes lost in ten minutes that the run survives, however many of its processes stood there",
        ge=0,
    )
    cpus: float = key(1.0, "CPUs each actor reserves on a cluster (placement only)", gt=0.0, le=64.0)
    label_selector: LabelSelector = key(
        {}, "labels of the cluster's nodes that actors and evaluators may stand on; empty = any"
    )
    inference: Literal["local", "central"] = key(
        "local",
        "who chooses actions: local = every actor, with its copy of the network; central = one policy server "
        "for all actors, on a GPU where there is one (`seqrl bench actors` says which is faster)",
    )
    inference_gpus: float | Literal["auto"] = key(
        "auto",
        "GPUs the policy server asks of Ray; auto = one that the learners leave, else half of a lone "
        "learner's, else none",
    )

    @model_validator(mode="before")
    @classmethod
    def _range(cls, given: Any) -> Any:
        """Read `count = [least, most]` as `count` and `max_count`."""
        if not isinstance(given, dict) or not isinstance(given.get("count"), list | tuple):
            return given
        ends = list(given["count"])
        whole = all(isinstance(end, int) and not isinstance(end, bool) for end in ends)
        if not (len(ends) == 2 and whole and 1 <= ends[0] <= ends[1]):
            raise ValueError(
                f"actors.count={ends} is neither a number nor [least, most] with 1 <= least <= most: nobody "
                "knows how many actors there shall be. Write e.g. actors.count=[1, 8]."
            )
        if given.get("max_count", ends[1]) not in (0, ends[1]):
            raise ValueError(
                f"actors.count={ends} and actors.max_count={given['max_count']} name two upper ends: leave "
                "actors.max_count out."
            )
        return {**given, "count": ends[0], "max_count": ends[1] if ends[1] > ends[0] else 0}

    @model_validator(mode="after")
    def _least_below_most(self) -> ActorsSettings:
        if 0 < self.max_count < self.count:
            raise ValueError(
                f"actors.max_count={self.max_count} is below actors.count={self.count}: the run would have "
                "more actors than it may have. Raise actors.max_count, or set it to 0."
            )
        gpus = self.inference_gpus
        if gpus != "auto" and (gpus < 0.0 or (gpus > 1.0 and gpus != int(gpus))):
            raise ValueError(
                f"actors.inference_gpus={gpus:g} is neither a share of one GPU nor a whole number: Ray gives "
                "out nothing else. Give e.g. 0.5 or 1."
            )
        if self.inference == "central" and self.in_flight == 1:
            raise ValueError(
                "actors.inference='central' with actors.in_flight=1: a lock-step run is a function of its "
                "seed, and which requests meet in a batch is not. Raise actors.in_flight, or set it to "
                "'local'."
            )
        if self.elastic and self.in_flight == 1:
            raise ValueError(
                f"actors.count=[{self.count}, {self.most}] with actors.in_flight=1: a lock-step run is a "
                "function of its seed, and the cluster's size is none of it. Give one number, or raise "
                "actors.in_flight."
            )
        return self

    @property
    def most(self) -> int:
        """The most actors there may be at once."""
        return max(self.count, self.max_count)

    @property
    def elastic(self) -> bool:
        """Whether the number of actors follows the cluster."""
        return self.most > self.count


class LearnerSettings(Settings):
    """Who takes gradient steps."""

    count: int = key(
        1,
        "learner processes; several share every update's batch, add up their gradients, and do together "
        "what one would (service wiring)",
        ge=1,
        le=1_024,
    )
    batch_size: int = key(64, "items per update, over all learners", ge=1, le=65_536)
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
        "auto", "GPUs each learner process asks of Ray; auto = one if the cluster has one"
    )
    compile: Literal["auto", "on", "off"] = key(
        "auto",
        "compiled updates; auto = once the updates left are measured to repay the compilation, and never "
        "in the "
        "local loop or a lock-step run, whose numbers follow from the seed alone, nor by several learners",
    )
    threads: int | Literal["auto"] = key(
        "auto", "torch threads of each learner; auto = cores the actors leave, at least one"
    )
    publish_every_s: float = key(
        0.25,
        "how often new weights go to the board, and to actors where whole episodes are learned from",
        unit="s",
        ge=0.0,
        mutable=True,
    )
    checkpoint_every_s: float = key(
        120.0, "how often a checkpoint is written; 0 = only at the end", unit="s", ge=0.0
    )
    keep_checkpoints: int = key(2, "checkpoints kept in the run folder", ge=1)
    report_every_s: float = key(2.0, "how often a row of metrics is written", unit="s", gt=0.0)
    max_policy_lag_updates: int = key(
        0, "fragments older than this are dropped; 0 = none is", unit="updates", ge=0
    )
    label_selector: LabelSelector = key(
        {},
        "labels of the cluster's nodes that learners may stand on; empty = the node of the command for the "
        "first, any node for those beside it",
    )


class EvaluationSettings(Settings):
    """How the policy is judged: greedy, on seeds no training episode sees."""

    episodes: int = key(20, "episodes of the final evaluation, one held-out seed each", unit="episodes", ge=1)
    seed: int = key(1_000_000, "first held-out seed; episode i uses seed + i", ge=0, lt=2**31 - 1_000_000)
    every_env_steps: int = key(0, "evaluate in between this often; 0 = only at the end", unit="steps", ge=0)
    every_updates: int = key(0, "the same in the offline phase; 0 = not there", unit="updates", ge=0)
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
    targets: tuple[float, ...] = key((), "returns the final policy is also asked for, on the same seeds")
    headline: str = key("return", "metric the report and the progress line lead with")
    lower_is_better: bool = key(False, "direction of the headline metric")

    @model_validator(mode="after")
    def _targets_differ(self) -> EvaluationSettings:
        if len(set(self.targets)) < len(self.targets):
            raise ValueError(
                f"targets={list(self.targets)} names a return twice: both would go under one name. "
                "Name each once."
            )
        return self


class StopSettings(Settings):
    """When a run ends. What is spent of the offline phase's updates and of `env_steps` is also what every
    schedule is a share of; with both, each is half of the run.
    """

    env_steps: int = key(
        0, "vector-slot steps of the online phase; every run that has one gives it", unit="steps", ge=0
    )
    updates: int = key(0, "stop after this many updates; 0 = no limit", unit="updates", ge=0)
    wall_s: float = key(0.0, "stop after this long; 0 = no limit", unit="s", ge=0.0)


class Recipe(Settings):
    """A whole run."""

    name: str = key(
        description="names the run folder", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80
    )
    description: str = key("", "one line for people")
    seed: int = key(0, "seed of everything random in training", ge=0, lt=2**31)
    prometheus: Literal["auto", "on", "off"] = key(
        "auto",
        "metrics for Prometheus, through Ray (docs/operations.md); auto = where ray[default] is installed, "
        "on = a run that could not is refused",
    )
    env: EnvSettings
    algorithm: dict[str, Any] = key(description="`name` of the algorithm and its settings")
    policies: dict[str, PolicySettings] = key(
        {"shared": PolicySettings()}, "policy id -> who it drives", min_length=1
    )
    data: DataSettings | None = key(None, "offline data")
    phase: tuple[PhaseSettings, ...] = key(
        (PhaseSettings(kind="online"),), "what the run does, in order", min_length=1
    )
    actors: ActorsSettings = ActorsSettings()
    replay: ReplaySettings = ReplaySettings()
    learner: LearnerSettings = LearnerSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    stop: StopSettings = StopSettings()
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

    @model_validator(mode="after")
    def _phases_fit(self) -> Recipe:
        kinds = [phase.kind for phase in self.phase]
        acting = [kind for kind in kinds if kind != "offline"]
        if len(acting) > 1 or kinds not in (acting, ["offline", *acting]):
            raise ValueError(
                f"phase kinds {kinds} are not one of online and alternating, after at most one offline: no "
                "other order of phases is there. Change [[phase]]."
            )
        if "alternating" in kinds and self.actors.in_flight != 1:
            raise ValueError(
                f"actors.in_flight={self.actors.in_flight} in an alternating phase: actors would go on while "
                "the learner learns. Set actors.in_flight=1, or use an online phase."
            )
        if "offline" in kinds and self.data is None:
            raise ValueError(
                "an offline phase without [data]: there is nothing to learn from. Add [data] source."
            )
        if bool(acting) != (self.stop.env_steps > 0):
            raise ValueError(
                f"stop.env_steps={self.stop.env_steps} with phases {kinds}: a phase with actors needs it, "
                "and nothing else can spend it. Set stop.env_steps, or change [[phase]]."
            )
        if self.data is not None and self.data.online_best_steps and self.replay.eviction == "fifo_steps":
            raise ValueError(
                f"data.online_best_steps={self.data.online_best_steps} with replay.eviction='fifo_steps', "
                "which lets single steps go: episodes could not leave whole. Set it to 'fifo_episodes'."
            )
        if self.colocated_only and (self.replay.wiring == "service" or self.replay.shards > 1):
            raise ValueError(
                f"[data] or alternating with replay.wiring={self.replay.wiring!r}, "
                f"replay.shards={self.replay.shards}: only the learner's own shard can do it. Leave both out."
            )
        return self

    @model_validator(mode="after")
    def _learners_can_share(self) -> Recipe:
        count, learner = self.learner.count, self.learner
        if count == 1:
            return self
        if learner.batch_size % count:
            raise ValueError(
                f"learner.batch_size={learner.batch_size} is not a multiple of learner.count={count}: the "
                "learners' parts of a batch would differ. Change one of them."
            )
        if learner.compile == "on":
            raise ValueError(
                f"learner.compile='on' with learner.count={count}: every update adds gradients up over the "
                "learners, and a graph of several updates has no place for that. Set it to 'auto' or 'off', "
                "or learner.count=1."
            )
        if self.replay.wiring == "colocated" or self.colocated_only:
            raise ValueError(
                f"learner.count={count} with replay.wiring='colocated', [data] or alternating: the shard is "
                "one learner's own there, others could not draw from it. Set learner.count=1, or use the "
                "service wiring and an online phase."
            )
        return self

    @property
    def colocated_only(self) -> bool:
        """Whether the learner must own the shard."""
        return self.data is not None or self.updates_per_episode > 0

    @property
    def offline_updates(self) -> int:
        """Updates of each policy before anybody acts."""
        return sum(phase.updates for phase in self.phase)

    @property
    def updates_per_episode(self) -> int:
        """Updates of each policy after every episode; 0 = pacing counts items instead."""
        return sum(phase.updates_per_episode for phase in self.phase)

    def spent(self, offline_updates: int, env_steps: int) -> float:
        """Share of the run that is over, in [0, 1]; each kind of phase is an equal part.

        Args:
            offline_updates: updates of the offline phase done, of the policy that is furthest behind.
            env_steps: vector-slot steps done.
        """
        parts = []
        if self.offline_updates:
            parts.append(min(1.0, offline_updates / self.offline_updates))
        if self.stop.env_steps:
            parts.append(min(1.0, env_steps / self.stop.env_steps))
        return sum(parts) / len(parts)

    def env_copies(self) -> int:
        """Environment copies in all actors, at most."""
        return self.actors.most * self.actors.envs_per_actor


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
    """Return the file that `recipe` names: a path, or a shipped name with or without its folder (`envs/`, for
    a sweep `tune/`) and `.toml`.

    Raises: RecipeError: no such file; the message names the closest shipped one.
    """
    path, what = Path(recipe), "sweep" if kind == "tune" else "recipe"
    if path.is_file():
        return path.resolve()
    if path.is_dir():
        raise RecipeError(f"{recipe} is a folder, not a {what}. Name a .toml file in it.")
    name = recipe.removeprefix(f"{kind}/").removesuffix(".toml")
    inside = data_root(kind) / f"{name}.toml"
    if inside.is_file():
        return inside
    known = shipped(kind)
    raise RecipeError(
        f"{recipe} is neither a file nor a shipped {what}.{did_you_mean(name, known)} "
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
        apply_override(table, override)
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


def apply_override(table: dict[str, Any], override: str) -> None:
    """Set `dotted.key=value` in `table`. Raises: RecipeError: it is not of that form, or leads nowhere."""
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
        if isinstance(current, list) and part.isdigit() and int(part) < len(current):
            current = current[int(part)]  # phase.0.updates
            continue
        current = current.setdefault(part, {}) if isinstance(current, dict) else None
        if not isinstance(current, dict | list):
            raise RecipeError(
                f"{override!r} reaches into {part}, which is a value and not a table. Correct the key."
            )
    if not isinstance(current, dict):
        raise RecipeError(f"{override!r} ends in a list, not in a table. Correct the key.")
    current[parts[-1]] = value


def dump(recipe: Recipe) -> str:
    """Return the resolved recipe as TOML; loading it gives an equal recipe."""
    return to_toml(recipe)


def write(recipe: Recipe, path: Path) -> None:
    """Write the resolved recipe to `path`."""
    path.write_text(dump(recipe), encoding="utf-8")


def run_folder_name(recipe: Recipe, stamp: str) -> str:
    """Default folder of a run: `runs/<name>-<time>`, under the folder the command is given in."""
    return os.path.join("runs", f"{recipe.name}-{stamp}")
