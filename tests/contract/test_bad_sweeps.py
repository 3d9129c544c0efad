"""The bad-input contract of sweeps: one clear line on stderr, exit code 2, nothing created or changed.

Every case runs the real command line in this process; what is refused is refused before Ray starts.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from seqrl_ray.recipe import shipped
from tests.contract.test_bad_input import RECIPE, refusal

SWEEP = """\
name = "mine"
recipe = "mine.toml"
trials = 2
[search."algorithm.learning_rate"]
kind = "log_uniform"
low = 1e-5
high = 1e-2
[scheduler]
report_env_steps = 200
[budget]
env_steps = 400
"""
MUTABLE = (
    "algorithm.gamma, algorithm.learning_rate, replay.beta_start, replay.beta_end, "
    "replay.samples_per_insert, replay.band_items, learner.publish_every_s"
)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "mine.toml").write_text(RECIPE)
    (folder / "sweep.toml").write_text(SWEEP)
    (folder / "notes").mkdir()
    (folder / "notes" / "todo.txt").write_text("mine\n")
    monkeypatch.chdir(folder)
    return folder


def search(key: str, *, low: float = 1.0, high: float = 2.0) -> str:
    return f'search={{ "{key}" = {{ kind = "uniform", low = {low}, high = {high} }} }}'


CASES: dict[str, tuple[list[str], str]] = {
    "no sweep": (
        [],
        "no sweep is given: there is nothing to search. Name a .toml file or a shipped sweep, e.g. seqrl "
        "tune cartpole_pbt.",
    ),
    "shipped sweep, misspelt": (
        ["cartpol_pbt"],
        'cartpol_pbt is neither a file nor a shipped sweep. Did you mean "cartpole_pbt"? Shipped: '
        f"{', '.join(shipped('tune'))}.",
    ),
    "a folder": (["notes"], "notes is a folder, not a sweep. Name a .toml file in it."),
    "unknown key": (
        ["sweep.toml", "scheduler.quantil=0.5"],
        'scheduler.quantil is not a setting. Did you mean "quantile"? Known here: burn_in_reports, factor, '
        "interval_reports, kind, quantile, reduction, replay, report_env_steps, resample, search.",
    ),
    "unknown scheduler": (
        ["sweep.toml", "scheduler.kind=hyperband"],
        "scheduler.kind='hyperband' is refused: input should be 'pbt', 'tune_pbt', 'pb2', 'asha' or 'none'. "
        "Change scheduler.kind.",
    ),
    "a share that is none": (
        ["sweep.toml", "scheduler.quantile=0.6"],
        "scheduler.quantile=0.6 is refused: input should be less than or equal to 0.5. Change "
        "scheduler.quantile.",
    ),
    "one alone": (
        ["sweep.toml", "trials=1"],
        "trials=1 with scheduler.kind='pbt': one alone has nobody to copy. Set trials to 2 or more.",
    ),
    "no report before the end": (
        ["sweep.toml", "scheduler.report_env_steps=500"],
        "scheduler.report_env_steps=500 is above budget.env_steps=400: no trial would be compared before its "
        "end. Lower scheduler.report_env_steps.",
    ),
    "bounds the wrong way round": (
        ["sweep.toml", "search.algorithm.learning_rate.low=0.5"],
        "kind='log_uniform' with low=0.5, high=0.01, values=[]: it needs low below high, and no values. "
        "Change low and high.",
    ),
    "a logarithm of nothing": (
        ["sweep.toml", "search.algorithm.learning_rate.low=0.0"],
        "low=0.0 with kind='log_uniform': only what is above 0 has a logarithm. Raise low, or use uniform.",
    ),
    "a choice of one": (
        ["sweep.toml", 'search={ "algorithm.gamma" = { kind = "choice", values = [0.9] } }'],
        "a choice of values=[0.9], low=None, high=None: it needs two values or more, and no bounds. Change "
        "values.",
    ),
    "a key that no living run can change": (
        ["sweep.toml", search("algorithm.n_step", low=1, high=3), "trials=2"],
        "search.algorithm.n_step is not mutable: a living run cannot change it, and scheduler.kind='pbt' "
        f"changes living runs. Mutable here: {MUTABLE}.",
    ),
    "a key that does not exist": (
        ["sweep.toml", search("algorithm.learning_rat", low=0.1, high=0.2)],
        'search.algorithm.learning_rat: algorithm.learning_rat is not a setting. Did you mean "learning_rate',
    ),
    "bounds that the recipe refuses": (
        ["sweep.toml", "search.algorithm.learning_rate.high=2.0"],
        "search.algorithm.learning_rate: algorithm.learning_rate=2.0 is refused: input should be less than "
        "or equal to 1. Change algorithm.learning_rate.",
    ),
    "a base recipe that is not there": (
        ["sweep.toml", "recipe=nowhere"],
        f"nowhere is neither a file nor a shipped recipe. Shipped: {', '.join(shipped())}.",
    ),
    "a base recipe that is wrong": (
        ["sweep.toml", "recipe.learner.batchsize=3"],
        'learner.batchsize is not a setting. Did you mean "batch_size"?',
    ),
    "several shards": (
        ["sweep.toml", "recipe.replay.shards=2"],
        "replay.wiring='auto', replay.shards=2 in a sweep: a trial's learner owns its shard. Leave both out.",
    ),
    "one process with two actors": (
        ["sweep.toml", "recipe.actors.count=2", "trial.processes=one"],
        "trial.processes='one' with actors.count=2: one process has one actor. Set actors.count=1 (and raise "
        "actors.envs_per_actor), or trial.processes='many'.",
    ),
    "a range of actors": (
        ["sweep.toml", "recipe.actors.count=[1,3]"],
        "actors.count=[1, 3] in a sweep: a trial's room is reserved before it starts and does not grow. Give "
        "actors.count one number and actors.max_count=0.",
    ),
    "two places for one process": (
        [
            "sweep.toml",
            "recipe.actors.label_selector={role='actor'}",
            "recipe.learner.label_selector={role='learner'}",
        ],
        "learner.label_selector={'role': 'learner'} and actors.label_selector={'role': 'actor'} in a sweep "
        "whose trials are one process: it acts and learns, and cannot stand on both kinds of nodes. Set "
        "trial.processes='many', or one of the selectors.",
    ),
    "places for shards": (
        ["sweep.toml", "recipe.replay.label_selector={role='learner'}"],
        "replay.label_selector={'role': 'learner'} in a sweep: a trial's learner owns its shard. Set "
        "learner.label_selector instead.",
    ),
    "optuna proposes to a population": (
        ["sweep.toml", "scheduler.search=optuna"],
        "search='optuna' with kind='pbt': a population changes its values itself. Leave search out, or use "
        "kind='asha' or 'none'.",
    ),
    "the folder is taken": (
        ["sweep.toml", "--run-dir", "notes"],
        "--run-dir=notes exists and is not an empty folder: a new run would overwrite it. Name another "
        "folder, or give --resume notes to go on with it.",
    ),
    "an environment that does not exist": (
        ["sweep.toml", "recipe.env.id=CartPol-v1"],
        "env.id='CartPol-v1'",
    ),
    "resume and replay": (
        ["--resume", "notes", "--replay", "notes"],
        "--resume=notes and --replay=notes: one goes on with a sweep, the other trains one run. Give one of "
        "them.",
    ),
    "resume a sweep with another": (
        ["sweep.toml", "--resume", "notes"],
        "--resume=notes with the sweep 'sweep.toml': a sweep keeps its own file. Leave 'sweep.toml' out.",
    ),
    "resume what is no sweep": (
        ["--resume", "notes"],
        "notes is not a sweep's folder: it has no sweep.toml and no recipe.toml. Name a sweep's own.",
    ),
    "resume what is not there": (
        ["--resume", "missing"],
        "missing is not a folder: there is no sweep there. Name a sweep's own folder.",
    ),
    "replay what is no sweep": (
        ["--replay", "notes"],
        "notes is not a sweep's folder: it has no sweep.toml and no recipe.toml. Name a sweep's own.",
    ),
    "nobody at the address": (
        ["sweep.toml", "--address", "127.0.0.1:1"],
        "--address=127.0.0.1:1: no Ray cluster answers there",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_bad_sweep_is_refused_in_one_line(case, here, capfd):
    args, message = CASES[case]
    assert refusal(capfd, here, "tune", *args).startswith(message)


@pytest.mark.parametrize(
    ("package", "args"),
    [
        ("optuna", ["scheduler.kind=asha", "scheduler.search=optuna"]),
        ("scikit-learn", ["scheduler.kind=pb2"]),
        ("mlflow", ["loggers=['mlflow']"]),
    ],
)
def test_what_is_not_installed_is_named(package, args, here, capfd, monkeypatch):
    there = importlib.util.find_spec
    module = {"scikit-learn": "sklearn"}.get(package, package)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == module else there(name))
    message = refusal(capfd, here, "tune", "sweep.toml", *args)
    assert f"needs the package {package}, which is not installed" in message


def test_a_policys_own_value_and_a_searched_one_are_refused(here, capfd):
    own = "recipe.policies={ shared = { agents = ['*'], algorithm = { learning_rate = 0.001 } } }"
    assert refusal(capfd, here, "tune", "sweep.toml", own).startswith(
        "search.algorithm.learning_rate and policies.shared.algorithm.learning_rate: the policy's own value "
        "would be lost at the first change."
    )


def test_a_resumed_sweep_refuses_what_would_change_its_past(here, capfd):
    (here / "old").mkdir()
    (here / "old" / "sweep.toml").write_text(SWEEP)
    (here / "old" / "recipe.toml").write_text(RECIPE)
    assert refusal(capfd, here, "tune", "--resume", "old", "scheduler.quantile=0.5") == (
        "'scheduler.quantile=0.5' with --resume: what has been decided stands on the sweep's own file. Only "
        "budget.wall_s and keys of [trial] may change."
    )


def test_a_replay_without_a_winner_is_refused(here, capfd):
    (here / "old").mkdir()
    (here / "old" / "sweep.toml").write_text(SWEEP)
    (here / "old" / "recipe.toml").write_text(RECIPE)
    assert refusal(capfd, here, "tune", "--replay", "old").startswith(
        "old: no member has a finite score of its own, so there is no schedule to replay."
    )


@pytest.mark.parametrize("name", shipped("tune"))
def test_every_shipped_sweep_fits_its_recipe(name, monkeypatch):
    from seqrl_ray.tune.plan import make_plan
    from seqrl_ray.tune.settings import load_sweep

    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: object() if n == "optuna" else there(n))
    settings, folder = load_sweep(name)
    plan = make_plan(settings, folder)
    assert plan.base.stop.env_steps == settings.budget.env_steps
    assert settings.budget.env_steps // settings.scheduler.report_env_steps >= 5, "too few looks for a search"
