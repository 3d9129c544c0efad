"""The driver of a run that fine-tunes a transformer online is really killed, and the run resumed without its
dataset: replay, temperature, moments and returns asked for are those of the last checkpoint, and in lock-step
the end is that of a run that was never killed.
"""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from seqrl_ray import api
from seqrl_ray.data.dataset import Dataset
from seqrl_ray.loops import checkpoints
from seqrl_ray.loops.build import training_env
from seqrl_ray.loops.learner import Learner
from tests.system.runs import learner_state

pytestmark = [pytest.mark.system, pytest.mark.kill]

ENV = '[env]\nkind = "gym"\nid = "Pendulum-v1"\nmax_episode_steps = 30\n'
RANDOM = f'name = "random"\n{ENV}[algorithm]\nname = "random"\n[stop]\nenv_steps = 600\n'
PHASES = {
    "online": ('kind = "online"', "count = 2\nenvs_per_actor = 2\nfragment_steps = 5"),
    "alternating": ('kind = "alternating"\nupdates_per_episode = 3', "fragment_steps = 5\nin_flight = 1"),
}
RECIPE = """
name = "killed"
{env}
[data]
source = "{data}"
[[phase]]
kind = "offline"
updates = {offline}
[[phase]]
{phase}
[algorithm]
name = "online_dt"
units = 16
layers = 1
window_steps = 5
acting_steps = 3
warmup_updates = 0
learning_rate = 3e-3
initial_temperature = {initial}
target_return = -100.0
online_target_return = -50.0
return_scale = 100.0
[actors]
{actors}
[replay]
capacity_steps = 8_000
eviction = "fifo_episodes"
samples_per_insert = 0.5
min_items = 8
[learner]
batch_size = 8
updates_per_call = 4
threads = 1
report_every_s = 0.2
checkpoint_every_s = 1.0
[evaluation]
episodes = 1
controllers = []
[stop]
env_steps = {steps}
"""
OFFLINE, STEPS, INITIAL_TEMPERATURE = 30, 6_000, 0.5
NUMBERS = {"offline": OFFLINE, "steps": STEPS, "initial": INITIAL_TEMPERATURE}


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "seqrl_ray.cli", "train", *map(str, arguments)]


def reports(run: Path) -> list[dict[str, Any]]:
    """Reports of a run so far, the last line left out where it may be half written."""
    lines = (run / "metrics.jsonl").read_text().split("\n")[:-1] if run.is_dir() else []
    return [row for line in lines if (row := json.loads(line)).get("kind", "report") == "report"]


def titles(pid: int) -> dict[int, bytes]:
    """The living processes below one, and what they call themselves. Those of Ray outlive a killed driver,
    most by seconds, its own agents by a minute.
    """
    found: dict[int, bytes] = {}
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, children.read_text().split()):
            found |= {child: title(child)} | titles(child)
    return found


def title(pid: int) -> bytes:
    """What a process calls itself; nothing once it is dead."""
    path = Path(f"/proc/{pid}/cmdline")
    return path.read_bytes() if path.exists() else b""


def wait(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + 300.0
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.1)


def everything(tree: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a checkpoint's tree."""
    if isinstance(tree, dict):
        for name, part in tree.items():
            yield from everything(part, f"{place}/{name}")
    elif isinstance(tree, tuple | list):
        for i, part in enumerate(tree):
            yield from everything(part, f"{place}/{i}")
    else:
        yield place, tree


def assert_same(one: Any, other: Any) -> None:
    ours, theirs = dict(everything(one)), dict(everything(other))
    assert ours.keys() == theirs.keys()
    for place, value in ours.items():
        np.testing.assert_array_equal(value, theirs[place], err_msg=place)


def replay(checkpoint: Path) -> dict[str, Any]:
    """All that is stored, column by column, in order of row; arrays flat."""
    files = sorted((checkpoint / "replay" / "shared").glob("*.arrow"))
    table = pa.concat_tables(pa.ipc.open_file(pa.memory_map(str(f))).read_all() for f in files)
    flat = {name: table[name].combine_chunks() for name in table.column_names}
    return {name: (c.flatten() if pa.types.is_nested(c.type) else c).to_numpy() for name, c in flat.items()}


def temperature(recipe: Path, checkpoint: Path) -> tuple[float, float, float]:
    """Lambda as a checkpoint has it, and Adam's two moments of its logarithm."""
    resolved = api.read_recipe(recipe)
    with closing(training_env(resolved, 0, 0)) as env:
        learner = Learner(resolved, env.groups)
    learner.restore(checkpoints.load(checkpoint, "trainer")["learner"])
    algorithm: Any = learner.algorithms["shared"]
    state = algorithm.state
    online, first, second = (
        float(vector[algorithm._temperature])
        for vector in (state.online, state.first_moment, state.second_moment)
    )
    return math.exp(online), first, second


@pytest.mark.timeout(900)
@pytest.mark.parametrize("phase", PHASES)
def test_a_killed_driver_resumes_the_online_phase_with_all_it_had(tmp_path, capsys, phase):
    (tmp_path / "random.toml").write_text(RANDOM)
    data, gone = tmp_path / "data", tmp_path / "gone"
    api.collect(tmp_path / "random.toml", data, local=True, quiet=True)
    kind, actors = PHASES[phase]
    recipe, run, halt = tmp_path / "killed.toml", tmp_path / "run", tmp_path / "halt"
    recipe.write_text(RECIPE.format(env=ENV, data=data, phase=kind, actors=actors, **NUMBERS))
    root = run / "checkpoints"
    with subprocess.Popen(
        command(recipe, "--run-dir", run), stderr=subprocess.DEVNULL, start_new_session=True
    ) as driver:
        wait(
            lambda: (
                any(checkpoints.steps_of(c) > 300 for c in checkpoints.complete(root))
                or driver.poll() is not None
            )
        )
        (learner_pid,) = (pid for pid, name in titles(driver.pid).items() if b"ColocatedLearner" in name)
        driver.kill()
    wait(lambda: b"ColocatedLearner" not in title(learner_pid))  # then nobody writes a checkpoint any more
    saved, made = checkpoints.latest(root), reports(run)
    kept, stored = checkpoints.load(saved, "trainer"), replay(saved)
    updates = kept["learner"]["policies"]["shared"]["private"]["updates"]
    steps = kept["counters"]["env_steps"]
    assert updates > OFFLINE and 0 < steps < STEPS  # it was killed where it should be
    share, first, second = temperature(recipe, saved)
    assert abs(share - INITIAL_TEMPERATURE) > 1e-3 and first and second  # and had learned lambda
    offline = np.array(Dataset.open(data).columns["obs"]).ravel()
    data.rename(gone)

    # Resumed with nothing left to do, a run holds what the checkpoint holds.
    shutil.copytree(run, halt)
    subprocess.run(command("--resume", halt, f"stop.updates={updates}"), check=True)
    again = checkpoints.latest(halt / "checkpoints")
    assert again.name != saved.name
    assert_same(checkpoints.load(again, "trainer"), kept)
    assert_same(checkpoints.load(again, "rollouts"), checkpoints.load(saved, "rollouts"))
    assert_same(replay(again), stored)

    # Resumed for good, it ends, and nothing that was stored has changed or gone.
    began, done = time.monotonic(), len(made)
    with subprocess.Popen(command("--resume", run), stderr=subprocess.DEVNULL) as driver:
        wait(lambda: any(r["env_steps"] > steps for r in reports(run)[done:]) or driver.poll() is not None)
        recovered = time.monotonic() - began
    assert driver.returncode == 0
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "completed" and summary["env_steps"] >= STEPS
    assert summary["updates"] > updates
    end = replay(checkpoints.latest(root))
    assert (np.diff(stored["row"]) == 1).all() and stored["row"][0] == end["row"][0] == 0
    for name in ("obs", "action", "reward", "flags", "weights_counter"):
        np.testing.assert_array_equal(end[name][: len(stored[name])], stored[name], err_msg=name)
    np.testing.assert_array_equal(stored["obs"][: len(offline)], offline)  # the data, no longer to be read
    with capsys.disabled():
        print(
            f"\n  driver killed in the {phase} phase: goes on {recovered:.1f} s after the second start, lost "
            f"{made[-1]['env_steps'] - steps} steps, {made[-1]['updates'] - updates} updates"
        )

    if phase == "alternating":  # a function of its seed: as if it had never been killed
        whole = tmp_path / "whole"
        api.train(recipe, [f"data.source={gone}"], run_dir=whole, local=True, quiet=True)
        assert_same(learner_state(run), learner_state(whole))
        assert_same(end, replay(checkpoints.latest(whole / "checkpoints")))
