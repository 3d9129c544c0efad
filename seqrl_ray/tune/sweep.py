"""Driving a sweep: connect, share the machine out, have Tune run the trials, judge the winner, sum up.

The sweep folder holds `sweep.toml`, `recipe.toml` (the base recipe, resolved), `board.jsonl`, one run folder
per trial under `members/` and `default/`, Tune's own files under `tune/`, `summary.json` and `report.html`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from seqrl_ray.errors import RunFolderError, WorkerError
from seqrl_ray.loops.remote import Remote
from seqrl_ray.loops.run_folder import versions
from seqrl_ray.recipe import write
from seqrl_ray.recipe_toml import to_toml
from seqrl_ray.runtime.launch import cluster_resources, connected
from seqrl_ray.runtime.metrics import refuse_silence, where
from seqrl_ray.runtime.reserve import check_shared
from seqrl_ray.runtime.room import present
from seqrl_ray.tune.board import DEFAULT, LOG, Board, read_log
from seqrl_ray.tune.final import Contestant, compare, sentence, write_summary
from seqrl_ray.tune.interrupt import Interrupt
from seqrl_ray.tune.lineage import chain, experience, reports, schedule
from seqrl_ray.tune.mirror import RECIPE, SWEEP, SweepMirror
from seqrl_ray.tune.plan import Plan
from seqrl_ray.tune.population import Population
from seqrl_ray.tune.room import Room, make_room
from seqrl_ray.tune.run import CHECKPOINTS
from seqrl_ray.tune.screen import Screen
from seqrl_ray.tune.settings import IN_PLACE
from seqrl_ray.tune.trainable import PopulationTrial, folder_of

SUMMARY = "summary.json"


@dataclass(frozen=True)
class Outcome:
    """What Tune came back with."""

    status: str
    """completed, out of time, interrupted or failed."""
    errors: list[str]


def run_sweep(
    plan: Plan,
    root: Path,
    *,
    resumed: bool,
    address: str | None,
    quiet: bool,
    report: Callable[[Path], object],
    remote: Remote | None = None,
) -> dict[str, Any]:
    """Run a sweep to its end and return its summary (also written to the folder).

    Args:
        plan: from `make_plan`.
        root: the sweep's folder.
        resumed: go on with what is there.
        address: Ray cluster to join; None: a Ray of our own on this machine.
        quiet: no progress lines.
        report: draws the report of the folder that it is given.
        remote: where a copy of the folder is kept; None: nowhere.
    Raises: SeqrlError: bad input (nothing has been touched), or every trial failed.
    """
    began = time.monotonic()
    refuse_silence(plan.base, address)
    own = address in (None, "local")
    with contextlib.ExitStack() as stack:
        copy: SweepMirror | None = None
        with connected(address, cpus=os.cpu_count() or 1):
            total = cluster_resources()
            room = make_room(
                plan.sweep,
                plan.base,
                one_process=plan.one_process,
                cpus=total.get("CPU", 0.0),
                gpus=total.get("GPU", 0.0),
                nodes=None if own else present(),
            )
            if not own:
                rows: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
                check_shared(root / "members", [row["NodeID"] for row in rows if row["Alive"]])
            _open(plan, root, resumed=resumed)
            screen = Screen(plan, quiet=quiet)
            if remote is not None:
                copy = stack.enter_context(SweepMirror(remote, root, screen.say))
                screen.after_step = copy.nudge
            if plan.base.prometheus != "off":
                screen.say(where(address))
            if plan.sweep.scheduler.kind == IN_PLACE:
                outcome = run_population(plan, root, room, screen)
            else:
                from seqrl_ray.tune.schedulers import run_search

                outcome = run_search(plan, root, room, screen, resumed=resumed)
        if outcome.status == "failed":
            raise WorkerError(f"every trial of {root} failed; the first error:\n{outcome.errors[0]}")
        summary = sum_up(plan, root, outcome, time.monotonic() - began, screen)
        report(root)
        if copy is not None:
            copy.finish()
    return summary


def _open(plan: Plan, root: Path, *, resumed: bool) -> None:
    """Make the folder of a new sweep, or see that there is one."""
    if resumed:
        return
    root.mkdir(parents=True, exist_ok=True)
    (root / SWEEP).write_text(to_toml(plan.sweep), encoding="utf-8")
    write(plan.base, root / RECIPE)


def run_population(plan: Plan, root: Path, room: Room, screen: Screen) -> Outcome:
    """Run `pbt` in place: every member is a trial of Tune's that lives to its end."""
    size = plan.sweep.trials
    remote: Any = ray.remote(Board)
    board = remote.options(  # its log is on this machine's disk; it may begin again from it
        num_cpus=0,
        max_restarts=-1,
        max_task_retries=-1,
        scheduling_strategy=NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        ),
    )
    actor = board.remote(root.absolute(), plan.space, plan.rules, size, plan.sweep.seed)
    ray.get(actor.pid.remote())
    trials = [*range(size), *([DEFAULT] if plan.sweep.final.default else [])]
    trainable = tune.with_parameters(PopulationTrial, plan=plan, root=root.absolute(), room=room, board=actor)
    screen.board = actor
    try:
        outcome = fit(
            plan,
            root,
            tune.with_resources(trainable, room.factory()),
            {"trial": tune.grid_search(trials)},
            tune.TuneConfig(num_samples=1, time_budget_s=plan.sweep.budget.wall_s or None),
            screen,
        )
    finally:
        ray.kill(actor, no_restart=True)
    return outcome


def fit(
    plan: Plan,
    root: Path,
    trainable: Any,
    space: Mapping[str, Any],
    config: Any,
    screen: Screen,
    *,
    keep: int | None = None,
) -> Outcome:
    """Have Tune run the trials, and say how it ended."""
    stored = root.absolute() / "tune"
    sessions = len(list(stored.glob("session-*"))) if stored.is_dir() else 0
    tuner = tune.Tuner(
        trainable,
        param_space=dict(space),
        tune_config=config,
        run_config=run_config(plan, stored, f"session-{sessions + 1}", screen, keep=keep),
    )
    return ended(plan, screen, tuner.fit)


def run_config(plan: Plan, stored: Path, name: str, screen: Screen, *, keep: int | None = None) -> Any:
    """Return what all our experiments of Tune's have in common."""
    return tune.RunConfig(
        name=name,
        storage_path=str(stored),
        failure_config=tune.FailureConfig(max_failures=plan.sweep.trial.max_failures),
        checkpoint_config=tune.CheckpointConfig(num_to_keep=keep, checkpoint_at_end=False),
        callbacks=[screen, *_trackers(plan)],
        verbose=0,
    )


def ended(plan: Plan, screen: Screen, run: Callable[[], Any]) -> Outcome:
    """Run Tune and say how it ended."""
    _quieten(plan)
    began = time.monotonic()
    with Interrupt() as stop:
        grid = run()
    errors = [str(error) for error in grid.errors]
    budget = plan.sweep.budget.wall_s
    if stop.asked:
        return Outcome("interrupted", errors)
    if screen.all_done:
        return Outcome("completed", errors)
    if budget and time.monotonic() - began >= budget:
        return Outcome("out of time", errors)
    if screen.log is not None and not errors:  # Tune's own schedulers; a restored Tune tells its old screen
        return Outcome("completed", errors)
    return Outcome("failed" if errors and len(errors) == len(grid) else "interrupted", errors)


def _quieten(plan: Plan) -> None:
    os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")  # recipes may name files relative to here
    os.environ.setdefault("TUNE_MAX_PENDING_TRIALS_PG", str(plan.sweep.trials + 1))
    os.environ.setdefault("TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S", "86400")
    for name in ("ray.tune", "ray.air", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _trackers(plan: Plan) -> list[Any]:
    """Return Tune's callbacks for the trackers asked for; that they are installed has been checked."""
    found: list[Any] = []
    if "mlflow" in plan.sweep.loggers:
        from ray.air.integrations.mlflow import MLflowLoggerCallback

        found.append(MLflowLoggerCallback(experiment_name=plan.sweep.name))
    if "wandb" in plan.sweep.loggers:
        from ray.air.integrations.wandb import WandbLoggerCallback

        found.append(WandbLoggerCallback(project=plan.sweep.name))
    return found


# ------------------------------------------------------------------------------------------------ summing up


def sum_up(plan: Plan, root: Path, outcome: Outcome, wall_s: float, screen: Screen) -> dict[str, Any]:
    """Judge the winner and write `summary.json`."""
    summary: dict[str, Any] = {
        "kind": "sweep",
        "status": outcome.status,
        "name": plan.sweep.name,
        "seed": plan.sweep.seed,
        "scheduler": plan.sweep.scheduler.kind,
        "search": plan.sweep.scheduler.search,
        "trials": plan.sweep.trials,
        "env_steps_per_trial": plan.sweep.budget.env_steps,
        "score": {
            "metric": plan.base.evaluation.headline,
            "lower_is_better": plan.base.evaluation.lower_is_better,
            "statistic": plan.sweep.score.statistic,
            "episodes": plan.sweep.score.episodes,
            "first_seed": plan.score_seeds[0],
        },
        "wall_s": wall_s,
        "errors": outcome.errors,
        "versions": versions(),
    }
    if plan.sweep.scheduler.kind == IN_PLACE:
        winner, default = _population_part(plan, root, summary)
    else:
        from seqrl_ray.tune.schedulers import search_part

        winner, default = search_part(plan, root, summary)
    summary["final"] = None
    if outcome.status != "interrupted":
        if winner is not None:
            screen.say(f"judging the winner, {winner.name}, on {len(plan.final_seeds)} held-out seeds")
            summary["final"] = compare(plan, winner, default)
        summary["conclusion"] = sentence(summary["final"])
        screen.say(summary["conclusion"])
    write_summary(root / SUMMARY, summary)
    return summary


def _population_part(
    plan: Plan, root: Path, summary: dict[str, Any]
) -> tuple[Contestant | None, Contestant | None]:
    """Add members, copies and the winner to the summary, and return who is judged."""
    rows = read_log(root / LOG)
    population = Population.from_rows(plan.space, plan.rules, rows)
    told = [row for row in rows if row["event"] == "report"]
    actions = [row["decision"]["action"] for row in told]
    summary.update(
        {
            "wall_s": rows[-1]["at_s"],
            "sessions": 1 + sum(row["event"] == "resumed" for row in rows),
            "env_steps_total": sum(m.env_steps for m in population.members),
            "copies": actions.count("copy"),
            "anew": actions.count("anew"),
            "diverged": sum(row["score"] is None for row in told),
            "members": [
                {
                    "member": i,
                    "score": m.score if m.own else None,
                    "env_steps": m.env_steps,
                    "reports": m.report,
                    "values": m.values,
                }
                for i, m in enumerate(population.members)
            ],
        }
    )
    number = population.winner()
    summary["winner"] = None
    if number is None:
        return None, _default(root, rows)
    last = reports(rows, number)[-1]
    segments = chain(rows, number)
    values = segments[-1].values
    summary["winner"] = {
        "member": number,
        "score": last["score"],
        "episodes": last["episodes"],
        "values": values,
        "folder": str(folder_of(Path(), number)),
        "chain": [vars(segment) for segment in segments],
        "schedule": schedule(segments),
        "experience_env_steps": experience(segments),
    }
    place = folder_of(root, number) / CHECKPOINTS / last["checkpoint"]
    return Contestant(f"member {number}", place, values), _default(root, rows)


def _default(root: Path, rows: list[dict[str, Any]]) -> Contestant | None:
    """Return the default's last checkpoint, if it came to its end."""
    ends = [row for row in rows if row["event"] == "default" and row["last"]]
    if not ends:
        return None
    return Contestant("default", folder_of(root, DEFAULT) / CHECKPOINTS / ends[-1]["checkpoint"], {})


def open_sweep(root: Path) -> Path:
    """Return `root` if it is a sweep's folder. Raises: RunFolderError: it is not."""
    if not root.is_dir():
        raise RunFolderError(f"{root} is not a folder: there is no sweep there. Name a sweep's own folder.")
    missing = [name for name in (SWEEP, RECIPE) if not (root / name).is_file()]
    if missing:
        raise RunFolderError(
            f"{root} is not a sweep's folder: it has no {' and no '.join(missing)}. Name a sweep's own."
        )
    return root
