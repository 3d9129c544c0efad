"""RLlib with several agents, in sweeps, interrupted, and with runners that die. `pytest -m slow`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from seqrl_ray import api
from seqrl_ray.errors import RecipeError, WorkerError
from seqrl_ray.recipe import find
from tests.system.rllib_runs import TINY, rows

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]

OFF_POLICY = (
    "algorithm.config.num_steps_sampled_before_learning_starts=100",
    "algorithm.config.train_batch_size=32",
    "algorithm.config.min_sample_timesteps_per_iteration=100",
)


ASYNC = ("algorithm.config.train_batch_size_per_learner=100", "stop.env_steps=4000")
"""Their learners are a thread behind: after 500 steps it may not have updated anything yet."""


@pytest.mark.parametrize(
    ("recipe", "algorithm", "overrides"),
    [
        ("multi_agent/door_grid_ppo", "PPO", TINY[:4]),
        ("multi_agent/door_grid_departing", "PPO", TINY[:4]),
        ("multi_agent/door_grid_two_policies", "PPO", TINY[:4]),
        ("multi_agent/door_grid", "DQN", ()),
        ("classic/mined_chain", "PPO", TINY[:4]),
        ("classic/mined_chain", "DQN", ()),
        ("classic/cartpole", "IMPALA", ASYNC),
        ("classic/cartpole", "APPO", ASYNC),
        ("classic/pendulum_sac", "SAC", ()),
        ("classic/paddle_bricks", "PPO", (*TINY[:3], "algorithm.model.conv_filters=[[8, 3, 1]]")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_algorithms_run_on_environments_of_every_kind(ray_here, tmp_path, recipe, algorithm, overrides):
    common = ("evaluation.episodes=2", "learner.report_every_s=0.5", "stop.env_steps=500", "actors.count=1")
    own = () if recipe.endswith("_ppo") else (f'algorithm={{ name = "rllib:{algorithm}" }}',)
    more = OFF_POLICY if algorithm in ("DQN", "SAC") else ()
    summary = api.train(
        recipe, [*own, *common, *overrides, *more], run_dir=tmp_path / "run", quiet=True
    ).summary
    assert summary["status"] == "completed" and summary["updates"] > 0 and summary["failures"] == []
    assert summary["evaluation"]["return"]["n"] == 2
    again = api.evaluate(tmp_path / "run")["evaluation"]["return"]["mean"]
    assert again == summary["evaluation"]["return"]["mean"]


@pytest.mark.parametrize(
    ("recipe", "algorithm", "most"),
    [
        ("classic/cartpole", "DQN", 10),  # a step of each environment at a time
        ("classic/pendulum_sac", "SAC", 10),
        ("classic/cartpole", "IMPALA", 4 * 2 * 50),  # some answers of each runner, of 50 steps each
        ("classic/cartpole", "APPO", 4 * 2 * 50),
    ],
)
def test_a_run_ends_soon_after_its_budget(ray_here, tmp_path, recipe, algorithm, most):
    overrides = [
        f'algorithm={{ name = "rllib:{algorithm}" }}',
        "algorithm.model.fcnet_hiddens=[16]",
        "actors.count=2",
        "actors.envs_per_actor=1",
        "evaluation.episodes=1",
        "evaluation.controllers=[]",
        "learner.report_every_s=5",  # at thousands of steps per second
        "stop.env_steps=3000",
    ]
    if algorithm in ("IMPALA", "APPO"):
        overrides += [
            "algorithm.config.rollout_fragment_length=50",
            "algorithm.config.train_batch_size_per_learner=100",
        ]
    summary = api.train(recipe, overrides, run_dir=tmp_path / "run", quiet=True).summary
    print(f"\n{algorithm}: {summary['env_steps'] - 3000} steps over")
    assert 3000 <= summary["env_steps"] <= 3000 + most


def test_a_sweep_trains_who_has_a_learner_process_by_default(tmp_path):
    (tmp_path / "impala.toml").write_text(
        SWEEP.replace("classic/cartpole_ppo", "classic/cartpole").format(
            kind="asha",
            overrides=(
                "'algorithm={ name = \"rllib:IMPALA\" }', "
                "'algorithm.config.train_batch_size_per_learner=100', 'evaluation.episodes=1', "
                "'evaluation.controllers=[]', 'learner.report_every_s=0.2'"
            ),
        )
    )
    done = api.tune(tmp_path / "impala.toml", ["trial.processes=many"], run_dir=tmp_path / "run", quiet=True)
    assert done.summary["status"] == "completed" and done.summary["errors"] == []


@pytest.mark.parametrize("algorithm", ["BC", "MARWIL", "CQL", "IQL"])
def test_offline_algorithms_learn_from_a_dataset_of_ours(ray_here, tmp_path, algorithm):
    name = "classic/pendulum_sac" if algorithm in ("CQL", "IQL") else "classic/mined_chain"
    api.collect(name, tmp_path / "data", ['algorithm={ name = "random" }'], steps=600, local=True, quiet=True)
    overrides = [
        f'algorithm={{ name = "rllib:{algorithm}" }}',
        "algorithm.config.train_batch_size_per_learner=32",
        "algorithm.model.fcnet_hiddens=[16]",
        f'data={{ source = "{tmp_path / "data"}" }}',
        'phase=[{ kind = "offline", updates = 40 }]',
        "stop.env_steps=0",
        "evaluation.episodes=2",
    ]
    run = api.train(name, overrides, run_dir=tmp_path / "run", quiet=True)
    assert run.summary["status"] == "completed"
    assert run.summary["updates"] == 40 and run.summary["env_steps"] == 0
    assert run.summary["data_returns"] is not None
    on = api.resume(tmp_path / "run", ["phase.0.updates=80"], quiet=True).summary
    assert on["updates"] == 80 and on["evaluation"]["return"]["n"] == 2


def test_a_runner_that_is_killed_is_replaced(ray_here, tmp_path):
    from seqrl_ray.rllib.launch import open_session

    recipe = api.read_recipe("classic/cartpole_ppo", [*TINY, "actors.count=2", "stop.env_steps=1000000"])
    session = open_session(recipe, root=tmp_path / "checkpoints", local=True)
    try:
        session.advance(0.5)
        group = session.algorithm.env_runner_group
        pids = group.foreach_env_runner(lambda runner: os.getpid(), local_env_runner=False)
        assert len(set(pids)) == 2
        os.kill(pids[0], signal.SIGKILL)
        died_at, failures = session.env_steps, []
        until = time.monotonic() + 120
        while not failures and time.monotonic() < until:
            failures = session.advance(0.5).failures
        (death,) = failures
        assert death.what == "actor" and death.recover_s is not None
        print(f"\nrunner back after {death.recover_s:.1f} s, at most {death.lost_steps} steps lost")
        session.advance(0.5)
        assert session.env_steps > died_at
        now = group.foreach_env_runner(lambda runner: os.getpid(), local_env_runner=False)
        assert len(set(now)) == 2 and pids[0] not in now
    finally:
        session.close()


BREAKS = """\
import gymnasium


class Breaks(gymnasium.Wrapper):
    steps = 0

    def step(self, action):
        Breaks.steps += 1
        if Breaks.steps > 150:
            raise ValueError("the pole has snapped")
        return super().step(action)


def make():
    return Breaks(gymnasium.make("CartPole-v1"))
"""


def test_an_environment_that_fails_again_and_again_stops_the_run_with_its_traceback(ray_here, tmp_path):
    (tmp_path / "breaks_here.py").write_text(BREAKS)
    recipe = tmp_path / "mine.toml"
    recipe.write_text(find("classic/cartpole_ppo").read_text())
    overrides = [*TINY, "env.id=breaks_here:make", "stop.env_steps=100000"]
    with pytest.raises(WorkerError, match="the same error twice from actor") as stopped:
        api.train(recipe, overrides, run_dir=tmp_path / "run", quiet=True)
    assert "the pole has snapped" in str(stopped.value)


def test_ctrl_c_writes_a_checkpoint_that_can_be_gone_on_from(tmp_path):
    command = [sys.executable, "-m", "seqrl_ray.cli", "train", "classic/cartpole_ppo", *TINY]
    run = subprocess.Popen(
        [*command, "stop.env_steps=100000000", "--run-dir", str(tmp_path / "run")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        until = time.monotonic() + 240
        while time.monotonic() < until and not (
            (tmp_path / "run" / "metrics.jsonl").is_file() and rows(tmp_path / "run", "report")
        ):
            time.sleep(0.5)
        run.send_signal(signal.SIGINT)
        out, _ = run.communicate(timeout=120)
    finally:
        run.kill()
    assert run.returncode == 130, out
    steps = rows(tmp_path / "run", "report")[-1]["env_steps"]
    on = api.resume(tmp_path / "run", [f"stop.env_steps={steps + 300}"], quiet=True).summary
    assert on["status"] == "completed" and on["env_steps"] >= steps + 300


SWEEP = """\
name = "ppo"
recipe = "classic/cartpole_ppo"
overrides = [{overrides}]
trials = 2
[search."algorithm.config.lr"]
kind = "log_uniform"
low = 1e-5
high = 1e-2
[scheduler]
kind = "{kind}"
report_env_steps = 300
[score]
episodes = 2
[budget]
env_steps = 600
"""


def sweep_file(folder: Path, kind: str) -> Path:
    overrides = ", ".join(f'"{override}"' for override in TINY)
    (folder / "ppo.toml").write_text(SWEEP.format(kind=kind, overrides=overrides))
    return folder / "ppo.toml"


@pytest.mark.parametrize(("kind", "processes"), [("none", "one"), ("asha", "many")])
def test_a_sweep_trains_it_as_a_trial(tmp_path, kind, processes):
    done = api.tune(
        sweep_file(tmp_path, kind), [f"trial.processes={processes}"], run_dir=tmp_path / "run", quiet=True
    )
    assert done.summary["status"] == "completed" and done.summary["errors"] == []
    assert done.summary["winner"] is not None and done.summary["final"]["winner"]["n"] == 1
    values = {member["values"]["algorithm.config.lr"] for member in done.summary["members"]}
    assert len(values) == 2 and all(1e-5 <= value <= 1e-2 for value in values)
    assert all(member["env_steps"] >= 300 for member in done.summary["members"])


def test_a_sweep_that_changes_living_runs_is_refused_by_name(tmp_path):
    with pytest.raises(RecipeError, match=r"scheduler.kind='pbt' with algorithm.name='rllib:PPO'"):
        api.tune(sweep_file(tmp_path, "pbt"), run_dir=tmp_path / "run", quiet=True)


def test_a_sweep_over_a_field_that_rllib_has_not_is_refused(tmp_path):
    file = sweep_file(tmp_path, "none")
    file.write_text(file.read_text().replace("config.lr", "config.learn"))
    with pytest.raises(RecipeError, match=r"algorithm.config.learn is not a field of RLlib's PPOConfig"):
        api.tune(file, run_dir=tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()
