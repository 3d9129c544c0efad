"""Population based training: what the search itself costs, ours in place against Ray Tune's.

A toy population, 4 trials of 30 reports of 50 ms of sleep, a look at whom to copy every 5 reports, 0.5 CPU
and 1 MB of state each. Ideal are 1.5 s. All arms run through Ray Tune on one Ray. The clock of an arm runs
from the moment its last trial begins its first report to the end of the last one, so starting the first four
processes is in none of them. What else is counted: processes started after the first four, and copies.

    overhead    `pbt` on its board; Tune's PBT with reuse_actors=True; Tune's PBT as it comes
    copy        one copy of 16 MB between living members, from the report to the end of the load, ours alone

`--section`, `--repeats`, `--quick` as in every benchmark; the arms alternate, a ratio is the median of the
ratios of the arms that lie beside each other.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import ray
from harness import asked, machine
from ray import tune
from ray.tune.schedulers import PopulationBasedTraining

from seqrl_ray.loops.living import Replay
from seqrl_ray.runtime.launch import connected
from seqrl_ray.tune.board import Board, Joined
from seqrl_ray.tune.member import Member, Terms
from seqrl_ray.tune.population import Rules
from seqrl_ray.tune.run import Stretch
from seqrl_ray.tune.settings import DimensionSettings
from seqrl_ray.tune.space import Space
from seqrl_ray.tune.trainable import ROW_S, START_S, RemoteBoard

TRIALS, REPORTS, SLEEP_S, INTERVAL = 4, 30, 0.05, 5
IDEAL_S = REPORTS * SLEEP_S
LOW, HIGH = 1e-5, 1e-1
SPACE = Space({"rate": DimensionSettings(kind="log_uniform", low=LOW, high=HIGH)})


def learn(state: np.ndarray, rate: float) -> None:
    """50 ms of training: what was reached rises the faster, the nearer the rate is to 1e-3."""
    time.sleep(SLEEP_S)
    state[0] += math.exp(-((math.log10(rate) + 3.0) ** 2))


class Diary:
    """Lines of one process: when it began a report, ended one, copied."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / f"{os.getpid()}-{time.time_ns()}.jsonl"

    def write(self, event: str, **fields: Any) -> None:
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"event": event, "at": time.time(), "pid": os.getpid(), **fields}) + "\n")


class Toy:
    """A member's run that sleeps; see `seqrl_ray.tune.member.Run`."""

    def __init__(self, folder: Path, number: int, size: int, joined: Joined) -> None:
        self.folder = folder / f"member-{number}"
        self.folder.mkdir(exist_ok=True)
        self.diary = Diary(folder / "diary")
        self.trial, self.env_steps = number, 0
        self.state = np.zeros(size // 8)
        self.rate = float(joined.values["rate"])
        self.reported_at = 0.0

    def train(self, env_steps: int, mend: Callable[[], None]) -> Stretch:
        self.diary.write("begin", trial=self.trial)
        learn(self.state, self.rate)
        self.env_steps += 1
        return Stretch(self.env_steps, False)

    def judge(self, seeds: Sequence[int]) -> list[float]:
        return [float(self.state[0])]

    def save(self) -> str:
        name = f"{self.env_steps:06d}"
        np.save(self.folder / f"{name}.npy", self.state)
        return name

    def learned(self) -> Any:
        self.reported_at = time.perf_counter()
        return [ray.put(self.state)]

    def adopt(self, learned: Any, donor: Path | None, replay: Replay) -> None:
        assert learned is not None
        self.state[:] = ray.get(learned[0])
        self.diary.write("copy", took_ms=1e3 * (time.perf_counter() - self.reported_at))

    def set_values(self, values: Mapping[str, Any]) -> None:
        self.rate = float(values["rate"])

    def prune(self, keep: Collection[str]) -> None:
        for file in self.folder.iterdir():
            if file.stem not in keep:
                file.unlink()

    def note(self, event: str, **fields: Any) -> None: ...
    def end(self, status: str) -> None: ...
    def close(self) -> None: ...


class InPlace(tune.Trainable):
    """Our arm: a member on the board."""

    def setup(self, config: dict[str, Any], *, folder: Path, board: Any, size: int) -> None:
        number = config["trial"]
        self.member = Member(
            number,
            Terms(1, REPORTS, (0,), "keep"),
            RemoteBoard(board),
            lambda joined: Toy(folder, number, size, joined),
            score=lambda episodes: episodes[0],
            checkpoint_of=lambda member, name: folder / f"member-{member}" / f"{name}.npy",
        )
        until = time.monotonic() + START_S
        while time.monotonic() < until and not ray.get(board.all_here.remote()):
            time.sleep(0.01)

    def step(self) -> dict[str, Any]:
        until = time.monotonic() + ROW_S
        while True:
            row = self.member.advance()
            self.member.run.diary.write("end", trial=self.member.number)  # type: ignore[attr-defined]
            if row["done"] or time.monotonic() >= until:
                return row


class Theirs(tune.Trainable):
    """Tune's arms: a trial that can be saved, loaded and given another config."""

    def setup(self, config: dict[str, Any], *, folder: Path, size: int) -> None:
        self.diary = Diary(folder / "diary")
        self.state, self.rate = np.zeros(size // 8), float(config["rate"])

    def step(self) -> dict[str, Any]:
        self.diary.write("begin", trial=self.trial_id)
        learn(self.state, self.rate)
        self.diary.write("end", trial=self.trial_id)
        return {"score": float(self.state[0])}

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        np.save(Path(checkpoint_dir) / "state.npy", self.state)

    def load_checkpoint(self, checkpoint: Any) -> None:
        self.state[:] = np.load(Path(checkpoint) / "state.npy")

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.rate = float(new_config["rate"])
        return True


def arm(name: str, size: int, seed: int) -> dict[str, Any]:
    """Run one arm once and read its diaries."""
    folder = Path(tempfile.mkdtemp(prefix="seqrl-bench-pbt-"))
    (folder / "diary").mkdir()
    try:
        _ours(folder, size, seed) if name == "pbt" else _theirs(folder, size, seed, name == "tune_reuse")
        text = "".join(file.read_text() for file in (folder / "diary").iterdir())
        lines = [json.loads(line) for line in text.splitlines()]
    finally:
        shutil.rmtree(folder)
    began: dict[Any, float] = {}
    for line in lines:
        if line["event"] == "begin":
            began[line["trial"]] = min(line["at"], began.get(line["trial"], math.inf))
    assert len(began) == TRIALS
    ends = [line for line in lines if line["event"] == "end"]
    return {
        "wall_s": max(line["at"] for line in ends) - max(began.values()),
        "new_processes": len({line["pid"] for line in lines}) - TRIALS,
        "reports": len(ends),
        "copy_ms": [line["took_ms"] for line in lines if line["event"] == "copy"],
    }


def _run_config(folder: Path) -> Any:
    return tune.RunConfig(
        storage_path=str(folder / "tune"),
        name="toy",
        verbose=0,
        checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
    )


def _ours(folder: Path, size: int, seed: int) -> None:
    remote: Any = ray.remote(Board)
    board = remote.options(num_cpus=0).remote(folder, SPACE, Rules(interval_reports=INTERVAL), TRIALS, seed)
    made = tune.with_parameters(InPlace, folder=folder, board=board, size=size)
    tuner = tune.Tuner(
        tune.with_resources(made, {"CPU": 0.5}),
        param_space={"trial": tune.grid_search(list(range(TRIALS)))},
        run_config=_run_config(folder),
    )
    assert not tuner.fit().errors
    ray.kill(board)


def _theirs(folder: Path, size: int, seed: int, reuse: bool) -> None:
    scheduler = PopulationBasedTraining(
        time_attr="training_iteration",
        metric="score",
        mode="max",
        perturbation_interval=INTERVAL,
        hyperparam_mutations={"rate": tune.loguniform(LOW, HIGH)},
    )
    tuner = tune.Tuner(
        tune.with_resources(tune.with_parameters(Theirs, folder=folder, size=size), {"CPU": 0.5}),
        tune_config=tune.TuneConfig(num_samples=TRIALS, scheduler=scheduler, reuse_actors=reuse),
        run_config=tune.RunConfig(
            storage_path=str(folder / "tune"), name="toy", verbose=0, stop={"training_iteration": REPORTS}
        ),
    )
    assert not tuner.fit().errors


def overhead(repeats: int, quick: bool) -> dict[str, Any]:
    """All arms in turn."""
    names = ["pbt", "tune_reuse", "tune_default"]
    done: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for repeat in range(repeats):
        for name in names if repeat % 2 == 0 else reversed(names):
            done[name].append(arm(name, 1 << 20, seed=repeat))
    median = statistics.median
    return {
        "ideal_s": IDEAL_S,
        "wall_s": {name: round(median(d["wall_s"] for d in runs), 3) for name, runs in done.items()},
        "new_processes": {name: median(d["new_processes"] for d in runs) for name, runs in done.items()},
        "reports": {name: median(d["reports"] for d in runs) for name, runs in done.items()},
        "copies": {"pbt": median(len(d["copy_ms"]) for d in done["pbt"])},
        "stretches": {name: [round(d["wall_s"], 3) for d in runs] for name, runs in done.items()},
        "ratios": {
            "pbt/ideal": round(median(d["wall_s"] / IDEAL_S for d in done["pbt"]), 3),
            **{
                f"{name}/pbt": round(
                    median(b["wall_s"] / a["wall_s"] for a, b in zip(done["pbt"], done[name], strict=True)), 2
                )
                for name in names[1:]
            },
        },
    }


def copy(repeats: int, quick: bool) -> dict[str, Any]:
    """Copies of 16 MB between living members."""
    found = [ms for repeat in range(repeats) for ms in arm("pbt", 16 << 20, seed=repeat)["copy_ms"]]
    return {
        "megabytes": 16,
        "copies": len(found),
        "median_ms": round(statistics.median(found), 1) if found else None,
        "worst_ms": round(max(found), 1) if found else None,
    }


SECTIONS = {"overhead": overhead, "copy": copy}


def main() -> None:
    given = asked(__doc__, list(SECTIONS), seconds=IDEAL_S, quick_s=IDEAL_S)
    result = {**machine("pbt", ["ray", "numpy"]), **given.facts()}
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    with connected(os.environ.get("SEQRL_BENCH_ADDRESS"), cpus=2):
        repeats = 1 if given.quick else given.repeats
        result["sections"] = {name: SECTIONS[name](repeats, given.quick) for name in given.sections}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
