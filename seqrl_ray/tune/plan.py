"""What a sweep file comes to: the base recipe, the searched keys checked against its schema, and the recipe
of each trial. Everything that can be refused before Ray starts is refused here.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from seqrl_ray.algorithms import settings_class
from seqrl_ray.algorithms.rllib_settings import is_rllib
from seqrl_ray.errors import RecipeError
from seqrl_ray.loops.build import held_out_seeds
from seqrl_ray.loops.living import mutable_recipe_keys
from seqrl_ray.recipe import Recipe, load, resolve
from seqrl_ray.tune.population import Rules
from seqrl_ray.tune.settings import POPULATIONS, DimensionSettings, SweepSettings, Value
from seqrl_ray.tune.space import Space

KEEP_ALL = 1_000_000
"""Checkpoints of a trial are dropped by the sweep, not by the run: it knows which are still needed."""

NEEDS = {"optuna": "optuna", "pb2": "sklearn", "mlflow": "mlflow", "wandb": "wandb"}
"""What is asked for -> the module it needs."""


@dataclass(frozen=True)
class Plan:
    """A sweep whose parts fit one another."""

    sweep: SweepSettings
    base: Recipe
    """The default: what the recipe file says, for as many steps as one trial."""

    @property
    def space(self) -> Space:
        """The searched keys."""
        return Space(self.sweep.search)

    @property
    def rules(self) -> Rules:
        """The population's rules."""
        s = self.sweep.scheduler
        return Rules(
            quantile=s.quantile,
            resample=s.resample,
            factor=s.factor,
            interval_reports=s.interval_reports,
            burn_in_reports=s.burn_in_reports,
            lower_is_better=self.base.evaluation.lower_is_better,
        )

    @property
    def one_process(self) -> bool:
        """Whether a trial is one process."""
        asked = self.sweep.trial.processes
        return self.base.actors.count == 1 if asked == "auto" else asked == "one"

    @property
    def score_seeds(self) -> list[int]:
        """Seeds of every score: apart from training's and from the held-out ones."""
        return held_out_seeds(self.base, self.sweep.score.episodes, self.base.evaluation.seed + 500_000)

    @property
    def final_seeds(self) -> list[int]:
        """Held-out seeds of the last comparison: the recipe's own."""
        return held_out_seeds(self.base, self.sweep.final.episodes or self.base.evaluation.episodes)

    def recipe(self, member: int | None, values: Mapping[str, Value]) -> Recipe:
        """Return the recipe of one trial.

        Args:
            member: number of the trial, which shifts its seed; None: the default beside them.
            values: searched key -> value.
        """
        made = with_values(self.base, values)
        learner = made.learner.model_copy(update={"keep_checkpoints": KEEP_ALL, "checkpoint_every_s": 0.0})
        replay = made.replay
        name = "default" if member is None else f"{member:02d}"
        if replay.memmap_folder is not None:
            own = str(Path(replay.memmap_folder) / f"{self.sweep.name}-{name}")
            replay = replay.model_copy(update={"memmap_folder": own})
        seed = (self.base.seed + (member or 0)) % 2**31
        return made.model_copy(
            update={"learner": learner, "replay": replay, "seed": seed, "name": f"{made.name[:70]}-{name}"}
        )


def make_plan(sweep: SweepSettings, folder: Path) -> Plan:
    """Load the base recipe and hold the sweep against it.

    Args:
        sweep: the settings.
        folder: where a relative recipe path resolves.
    Raises: SeqrlError: one clear line; nothing has been started.
    """
    own = folder / sweep.recipe
    budget = f"stop.env_steps={sweep.budget.env_steps}"
    base = load(
        own if own.is_file() else sweep.recipe,
        [*sweep.overrides, budget],
        algorithm_settings=settings_class,
    )
    _check_installed(sweep)
    if all(phase.kind == "offline" for phase in base.phase):
        raise RecipeError(
            f"recipe={sweep.recipe!r} has no phase with actors: trials are compared at numbers of env steps, "
            "and it makes none. Add an online phase."
        )
    if base.replay.wiring == "service" or base.replay.shards > 1:
        raise RecipeError(
            f"replay.wiring={base.replay.wiring!r}, replay.shards={base.replay.shards} in a sweep: a trial's "
            "learner owns its shard. Leave both out."
        )
    if base.actors.elastic:
        raise RecipeError(
            f"actors.count=[{base.actors.count}, {base.actors.most}] in a sweep: a trial's room is reserved "
            "before it starts and does not grow. Give actors.count one number and actors.max_count=0."
        )
    if is_rllib(base.algorithm["name"]) and sweep.scheduler.kind in POPULATIONS:
        raise RecipeError(
            f"scheduler.kind={sweep.scheduler.kind!r} with algorithm.name={base.algorithm['name']!r}: a "
            "population changes living runs, and RLlib freezes a run's configuration as it begins. Use "
            "scheduler.kind='asha' or 'none'."
        )
    if base.learner.count > 1:
        raise RecipeError(
            f"learner.count={base.learner.count} in a sweep: a trial has one learner. Set learner.count=1."
        )
    if base.actors.inference == "central":
        raise RecipeError(
            "actors.inference='central' in a sweep: a trial's room is reserved without a policy server. Set "
            "it to 'local'."
        )
    if selector := base.replay.label_selector:
        raise RecipeError(
            f"replay.label_selector={selector} in a sweep: a trial's learner owns its shard. Set "
            "learner.label_selector instead."
        )
    plan = Plan(sweep, base.model_copy(update={"replay": _colocated(base)}))
    if plan.one_process and base.actors.count != 1:
        raise RecipeError(
            f"trial.processes='one' with actors.count={base.actors.count}: one process has one actor. Set "
            "actors.count=1 (and raise actors.envs_per_actor), or trial.processes='many'."
        )
    labels_of(plan.base, one_process=plan.one_process)
    for name, dimension in sweep.search.items():
        _check_key(plan, name, dimension)
    return plan


def with_values(base: Recipe, values: Mapping[str, Value]) -> Recipe:
    """Return the recipe with dotted keys set. Raises: RecipeError: a key or a value is refused."""
    table: dict[str, Any] = base.model_dump(mode="json")
    for name, value in values.items():
        *path, last = name.split(".")
        current: Any = table
        for part in path:
            current = current.setdefault(part, {}) if isinstance(current, dict) else None
        if not isinstance(current, dict):
            raise RecipeError(f"search.{name} reaches into a value that is no table. Correct the key.")
        current[last] = value
    return resolve(table, algorithm_settings=settings_class)


def labels_of(recipe: Recipe, *, one_process: bool) -> tuple[dict[str, str], dict[str, str]]:
    """Return what the nodes of learner and actors must have; of one process that is both.

    Raises: RecipeError: one process cannot stand where both are to.
    """
    learner, actors = recipe.learner.label_selector, recipe.actors.label_selector
    if not one_process:
        return learner, actors
    for name in sorted(learner.keys() & actors.keys()):
        if learner[name] != actors[name]:
            raise RecipeError(
                f"learner.label_selector={dict(learner)} and actors.label_selector={dict(actors)} in a sweep "
                "whose trials are one process: it acts and learns, and cannot stand on both kinds of nodes. "
                "Set trial.processes='many', or one of the selectors."
            )
    return {**learner, **actors}, {}


def _colocated(base: Recipe) -> Any:
    return base.replay.model_copy(update={"wiring": "colocated"})


def _check_key(plan: Plan, name: str, dimension: DimensionSettings) -> None:
    """Refuse a key that cannot be searched, and bounds that the recipe's schema refuses."""
    base, known = plan.base, mutable_recipe_keys(plan.base)
    if name == "actors.inference":
        raise RecipeError(
            "search.actors.inference: a trial's room is reserved without a policy server. Leave it out."
        )
    ends = dimension.values if dimension.kind == "choice" else (dimension.low, dimension.high)
    for value in ends:
        assert value is not None
        whole = int(value) if dimension.integer and not isinstance(value, str) else value
        try:
            with_values(base, {name: whole})
        except RecipeError as error:
            raise RecipeError(f"search.{name}: {error}") from None
    if plan.sweep.scheduler.kind not in POPULATIONS:
        return
    if name not in known:
        raise RecipeError(
            f"search.{name} is not mutable: a living run cannot change it, and scheduler.kind="
            f"{plan.sweep.scheduler.kind!r} changes living runs. Mutable here: "
            f"{', '.join(known)}."
        )
    section, _, plain = name.partition(".")
    for policy_id, policy in base.policies.items():
        if section == "algorithm" and plain in policy.algorithm:
            raise RecipeError(
                f"search.{name} and policies.{policy_id}.algorithm.{plain}: the policy's own value would be "
                "lost at the first change. Leave one of them out."
            )
    if plan.sweep.scheduler.kind == "pb2" and dimension.kind == "choice":
        raise RecipeError(
            f"search.{name}.kind='choice' with scheduler.kind='pb2': it models continuous values only. Use "
            "uniform or log_uniform, or scheduler.kind='pbt'."
        )


def _check_installed(sweep: SweepSettings) -> None:
    asked = [sweep.scheduler.search, sweep.scheduler.kind, *sweep.loggers]
    for name in asked:
        if name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None:
            package = {"sklearn": "scikit-learn"}.get(NEEDS[name], NEEDS[name])
            raise RecipeError(
                f"{name!r} needs the package {package}, which is not installed: the sweep cannot begin. Run "
                f"pip install {package}, or choose another."
            )
