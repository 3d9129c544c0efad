"""Sweeps by Ray Tune's own schedulers: `tune_pbt`, `pb2`, `asha`, `none`; random or Optuna's first values.

Kept for comparison and for what they alone can do. What is known of Tune's PBT (pauses, new processes, a
scheduler state that a restore forgets) holds here too; of its faults, values outside their bounds and scores
that are not finite are mended on our side. Every score is a row of `trials.jsonl`, like a board's log.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler, PopulationBasedTraining
from ray.tune.search.basic_variant import BasicVariantGenerator

from seqrl_ray.loops import checkpoints
from seqrl_ray.tune.board import DEFAULT, read_log
from seqrl_ray.tune.final import Contestant
from seqrl_ray.tune.plan import Plan
from seqrl_ray.tune.population import score_of
from seqrl_ray.tune.room import Room
from seqrl_ray.tune.run import CHECKPOINTS
from seqrl_ray.tune.screen import TRIALS, Screen
from seqrl_ray.tune.settings import POPULATIONS, DimensionSettings
from seqrl_ray.tune.space import Space, bounds, clipped
from seqrl_ray.tune.sweep import Outcome, ended, fit, run_config
from seqrl_ray.tune.trainable import KEPT, SearchTrial, folder_of

METRIC = "fitness"


def run_search(plan: Plan, root: Path, room: Room, screen: Screen, *, resumed: bool) -> Outcome:
    """Run the trials, and then the default beside them."""
    trainable = tune.with_resources(
        tune.with_parameters(SearchTrial, plan=plan, root=root.absolute(), room=room),
        room.factory(),
    )
    stored = root.absolute() / "tune"
    screen.log = root / TRIALS
    sessions = sorted(stored.glob("session-*")) if resumed else []
    if sessions and tune.Tuner.can_restore(str(sessions[-1])):
        tuner = tune.Tuner.restore(
            str(sessions[-1]), trainable=trainable, resume_errored=True, resume_unfinished=True
        )
        outcome = ended(plan, screen, tuner.fit)
    else:
        space = {} if plan.sweep.scheduler.kind == "pb2" else domains(plan.space)
        outcome = fit(plan, root, trainable, space, _config(plan), screen, keep=KEPT)
    if outcome.status in ("failed", "interrupted") or not plan.sweep.final.default:
        return outcome
    beside = tune.Tuner(
        trainable,
        param_space={"trial": DEFAULT},
        tune_config=tune.TuneConfig(num_samples=1),
        run_config=run_config(plan, stored, "default", screen),
    )
    ended(plan, screen, beside.fit)
    return outcome


def domains(space: Space) -> dict[str, Any]:
    """Return the searched keys as Tune's domains."""
    return {name: _domain(dimension) for name, dimension in space.dimensions.items()}


def _domain(dimension: DimensionSettings) -> Any:
    if dimension.kind == "choice":
        return tune.choice(list(dimension.values))
    low, high = bounds(dimension)
    return tune.uniform(low, high) if dimension.kind == "uniform" else tune.loguniform(low, high)


def hold(values: dict[str, Any], space: Space) -> dict[str, Any]:
    """Return a perturbed config inside its bounds; Tune multiplies without looking at them."""
    return {
        name: clipped(space.dimensions[name], value)
        if name in space.dimensions and space.dimensions[name].kind != "choice"
        else value
        for name, value in values.items()
    }


def _config(plan: Plan) -> Any:
    s = plan.sweep
    return tune.TuneConfig(
        num_samples=s.trials,
        metric=METRIC,
        mode="max",
        scheduler=_scheduler(plan),
        search_alg=_search(plan),
        time_budget_s=s.budget.wall_s or None,
        reuse_actors=False,
    )


def _search(plan: Plan) -> Any:
    if plan.sweep.scheduler.search == "optuna":
        from ray.tune.search import ConcurrencyLimiter
        from ray.tune.search.optuna import OptunaSearch

        search = OptunaSearch(metric=METRIC, mode="max", seed=plan.sweep.seed)
        return ConcurrencyLimiter(search, max_concurrent=max(1, min(4, plan.sweep.trials)))
    return BasicVariantGenerator(random_state=plan.sweep.seed)


def _scheduler(plan: Plan) -> Any:
    s = plan.sweep.scheduler
    interval = s.interval_reports * s.report_env_steps
    burn_in = s.burn_in_reports * s.report_env_steps
    if s.kind == "asha":
        return ASHAScheduler(
            time_attr="env_steps",
            max_t=plan.sweep.budget.env_steps,
            grace_period=max(burn_in, s.report_env_steps),
            reduction_factor=s.reduction,
        )
    if s.kind == "pb2":
        from ray.tune.schedulers.pb2 import PB2

        return PB2(
            time_attr="env_steps",
            perturbation_interval=interval,
            quantile_fraction=s.quantile,
            hyperparam_bounds={n: list(bounds(d)) for n, d in plan.space.dimensions.items()},
            custom_explore_fn=partial(hold, space=plan.space),
        )
    if s.kind in POPULATIONS:
        return PopulationBasedTraining(
            time_attr="env_steps",
            perturbation_interval=interval,
            burn_in_period=burn_in,
            quantile_fraction=s.quantile,
            resample_probability=s.resample,
            perturbation_factors=(s.factor, 1.0 / s.factor),
            hyperparam_mutations={
                n: list(d.values) if d.kind == "choice" else _domain(d)
                for n, d in plan.space.dimensions.items()
            },
            custom_explore_fn=partial(hold, space=plan.space),
        )
    return None


def search_part(
    plan: Plan, root: Path, summary: dict[str, Any]
) -> tuple[Contestant | None, Contestant | None]:
    """Add trials and the winner to the summary, and return who is judged."""
    rows = read_log(root / TRIALS)
    last: dict[int, Mapping[str, Any]] = {}
    for row in rows:
        if row["event"] == "report":
            last[row["member"]] = row
    summary.update(
        {
            "wall_s": rows[-1]["at_s"] if rows else summary["wall_s"],
            "env_steps_total": sum(row["env_steps"] for row in last.values()),
            "diverged": sum(row["score"] is None for row in rows if row["event"] == "report"),
            "members": [
                {
                    "member": member,
                    "score": row["score"],
                    "env_steps": row["env_steps"],
                    "reports": row["report"],
                    "values": row["before"],
                }
                for member, row in sorted(last.items())
            ],
            "winner": None,
        }
    )
    found = checkpoints.complete(folder_of(root, DEFAULT) / CHECKPOINTS)
    default = Contestant("default", found[-1], {}) if found else None
    number = best(last, plan)
    if number is None:
        return None, default
    chosen = last[number]
    summary["winner"] = {
        "member": number,
        "score": chosen["score"],
        "values": chosen["before"],
        "folder": str(folder_of(Path(), number)),
        "chain": [
            {"member": number, "from_steps": 0, "to_steps": chosen["env_steps"], "values": chosen["before"]}
        ]
        if plan.sweep.scheduler.kind not in POPULATIONS
        else [],
    }
    place = checkpoints.latest(folder_of(root, number) / CHECKPOINTS)
    return Contestant(f"trial {number}", place, dict(chosen["before"])), default


def best(last: Mapping[int, Mapping[str, Any]], plan: Plan) -> int | None:
    """Return the trial with the best last score; of those that came to their end, if there are any."""
    sound = {member: row for member, row in last.items() if math.isfinite(score_of(row))}
    ends = {m: row for m, row in sound.items() if row["env_steps"] >= plan.sweep.budget.env_steps}
    among = ends or sound
    sign = -1.0 if plan.base.evaluation.lower_is_better else 1.0
    return max(among, key=lambda m: (sign * score_of(among[m]), -m)) if among else None
