"""The sweep file: a base recipe, what is searched, how, how much, and how it is judged (`tune/*.toml`).

What a file says alone is checked here; whether its recipe keys exist, lie in their bounds and may be changed
in a living run is checked by `plan.py`, which loads the recipe.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import model_validator

from seqrl_ray.errors import RecipeError
from seqrl_ray.recipe import apply_override, find
from seqrl_ray.settings import Settings, key, parse

Value = float | int | str | bool
Statistic = Literal["mean", "median", "iqm", "worst_quarter", "worst"]

IN_PLACE = "pbt"
"""The kind of schedule that changes living runs on its own board."""
POPULATIONS = (IN_PLACE, "tune_pbt", "pb2")
"""Kinds that change runs while they live."""


class DimensionSettings(Settings):
    """One searched key of the recipe: `[search."algorithm.learning_rate"]`."""

    kind: Literal["uniform", "log_uniform", "choice"] = key(
        description="uniform or log_uniform in [low, high], or a choice of values"
    )
    low: float | None = key(None, "smallest value, itself allowed")
    high: float | None = key(None, "largest value, itself allowed")
    integer: bool = key(False, "values are rounded to whole numbers")
    values: tuple[Value, ...] = key((), "what a choice chooses from")

    @model_validator(mode="after")
    def _whole(self) -> DimensionSettings:
        if self.kind == "choice":
            if len(self.values) < 2 or self.low is not None or self.high is not None:
                raise ValueError(
                    f"a choice of values={list(self.values)}, low={self.low}, high={self.high}: it needs two "
                    "values or more, and no bounds. Change values."
                )
            return self
        if self.low is None or self.high is None or self.values or self.low >= self.high:
            raise ValueError(
                f"kind={self.kind!r} with low={self.low}, high={self.high}, values={list(self.values)}: it "
                "needs low below high, and no values. Change low and high."
            )
        if self.kind == "log_uniform" and self.low <= 0.0:
            raise ValueError(
                f"low={self.low} with kind='log_uniform': only what is above 0 has a logarithm. Raise low, "
                "or use uniform."
            )
        return self


class SchedulerSettings(Settings):
    """How trials are chosen, changed and stopped."""

    kind: Literal["pbt", "tune_pbt", "pb2", "asha", "none"] = key(
        "pbt",
        "pbt: in place, on a board of ours; tune_pbt, pb2, asha: Ray Tune's; none: every trial runs to its "
        "end",
    )
    search: Literal["random", "optuna"] = key("random", "where the first values of a trial come from")
    report_env_steps: int = key(
        5_000, "steps of a trial between two scores", unit="steps", ge=1
    )
    interval_reports: int = key(1, "scores between two looks at whom to copy (pbt kinds)", ge=1)
    burn_in_reports: int = key(0, "scores before the first look (pbt kinds; asha: before a stop)", ge=0)
    quantile: float = key(
        0.25,
        "share of the population that is bad enough to copy, and good enough to be copied",
        gt=0.0,
        le=0.5,
    )
    resample: float = key(0.25, "chance that a value is drawn anew instead of moved", ge=0.0, le=1.0)
    factor: float = key(
        1.2,
        "a log_uniform value is multiplied or divided by this; a uniform one moves by (factor - 1) of its "
        "range",
        gt=1.0,
        le=10.0,
    )
    replay: Literal["keep", "share", "clear"] = key(
        "keep",
        "who copies keeps its own replay, takes over the donor's, or begins with an empty one (pbt)",
    )
    reduction: float = key(4.0, "asha: one of so many trials goes on", gt=1.0)

    @model_validator(mode="after")
    def _one_search(self) -> SchedulerSettings:
        if self.search == "optuna" and self.kind in POPULATIONS:
            raise ValueError(
                f"search='optuna' with kind={self.kind!r}: a population changes its values itself. Leave "
                "search out, or use kind='asha' or 'none'."
            )
        return self


class ScoreSettings(Settings):
    """What a trial is compared by: its greedy policy on seeds that neither training nor the final evaluation
    sees, the same for all trials.
    """

    episodes: int = key(8, "episodes of one score, one seed each", unit="episodes", ge=1, le=400_000)
    statistic: Statistic = key(
        "mean",
        "of the episodes' headline metric: mean, median, iqm (mean of the middle half), worst_quarter (mean "
        "of the worst quarter), worst",
    )


class FinalSettings(Settings):
    """The last word: the winner on held-out seeds, beside the recipe as it stands."""

    episodes: int = key(0, "episodes on the recipe's held-out seeds; 0 = evaluation.episodes", ge=0)
    default: bool = key(True, "train the base recipe, unchanged, for as many steps as one trial")


class BudgetSettings(Settings):
    """How much a sweep may cost."""

    env_steps: int = key(description="steps of each trial; replaces stop.env_steps", unit="steps", ge=1)
    wall_s: float = key(0.0, "no trial goes on after this long; 0 = no limit", unit="s", ge=0.0)


class TrialSettings(Settings):
    """What one trial takes of the machine or cluster."""

    processes: Literal["auto", "one", "many"] = key(
        "auto",
        "one: a trial is one process, the local loop; many: actors, learner and evaluator are processes of "
        "their own; auto = one if actors.count is 1",
    )
    cpus: float | Literal["auto"] = key(
        "auto", "CPUs of each process of a trial; auto = an equal share of what there is, at most 1"
    )
    gpus: float = key(0.0, "GPUs of a trial's learner; a share of one is fine", ge=0.0)
    max_failures: int = key(3, "how often a trial whose process died is taken up again", ge=0)


class SweepSettings(Settings):
    """A whole sweep."""

    name: str = key(
        description="names the sweep folder", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=80
    )
    description: str = key("", "one line for people")
    recipe: str = key(description="base recipe: a file, from this one's folder, or a shipped name")
    overrides: tuple[str, ...] = key((), 'changes to the base recipe, as on the command line: "a.b=c"')
    seed: int = key(0, "seed of the search; trial i trains with the recipe's seed + i", ge=0, lt=2**31)
    trials: int = key(description="size of the population, or number of samples", ge=1, le=10_000)
    search: dict[str, DimensionSettings] = key(
        description="recipe key -> what it is searched in", min_length=1
    )
    scheduler: SchedulerSettings = SchedulerSettings()
    score: ScoreSettings = ScoreSettings()
    final: FinalSettings = FinalSettings()
    budget: BudgetSettings
    trial: TrialSettings = TrialSettings()
    loggers: tuple[Literal["mlflow", "wandb"], ...] = key(
        (), "experiment trackers that hear of every trial as well; each must be installed"
    )

    @model_validator(mode="after")
    def _fits(self) -> SweepSettings:
        if self.scheduler.kind in POPULATIONS and self.trials < 2:
            raise ValueError(
                f"trials={self.trials} with scheduler.kind={self.scheduler.kind!r}: one alone has nobody to "
                "copy. Set trials to 2 or more."
            )
        if self.scheduler.report_env_steps > self.budget.env_steps:
            raise ValueError(
                f"scheduler.report_env_steps={self.scheduler.report_env_steps} is above budget.env_steps="
                f"{self.budget.env_steps}: no trial would be compared before its end. Lower "
                "scheduler.report_env_steps."
            )
        return self


def load_sweep(sweep: str | Path, overrides: Iterable[str] = ()) -> tuple[SweepSettings, Path]:
    """Read and validate a sweep file.

    Args:
        sweep: a path or a shipped name.
        overrides: `dotted.key=value`; a key that begins with `recipe.` changes the base recipe.
    Returns: the settings and the folder that its base recipe's path is relative to.
    Raises: RecipeError: one line that names the file or key, the rule, and what to change.
    """
    path = find(str(sweep), "tune")
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path}: not valid TOML: {error}. Correct the file.") from None
    except (UnicodeDecodeError, OSError) as error:
        raise RecipeError(f"{path}: cannot be read: {error}.") from None
    changes = [o.removeprefix("recipe.") for o in overrides if o.startswith("recipe.")]
    for override in overrides:
        if not override.startswith("recipe."):
            apply_override(table, override)
    if changes:
        table["overrides"] = [*table.get("overrides", ()), *changes]
    if isinstance(table.get("search"), Mapping):
        table["search"] = _dotted(table["search"])
    return parse(SweepSettings, table, ""), path.parent


def _dotted(search: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return dotted key -> its table, whether the file writes `search."a.b"` or `search.a.b`."""
    found: dict[str, Any] = {}
    names = set(DimensionSettings.model_fields)
    for name, value in search.items():
        dotted = f"{prefix}{name}"
        leaf = not isinstance(value, Mapping) or bool(names & set(value)) or not value
        for inner, table in ({dotted: value} if leaf else _dotted(value, f"{dotted}.")).items():
            both = isinstance(table, Mapping) and isinstance(found.get(inner), Mapping)
            found[inner] = {**found[inner], **table} if both else table
    return found
