"""Speed of the traffic environment against sumo-rl and against bare SUMO, under one and the same traffic.

Question: how fast is one episode of `TrafficEnv` beside (a) sumo-rl on libsumo in its default setting
(waiting reward, information on), (b) SUMO alone, stepped under the same signal changes, (c) sumo-rl on TraCI?
Method: one max-pressure action sequence per map is replayed by every contestant with the same seed, at
sumo-rl's timing (5 s decisions, 2 s yellow, 5 s minimum green); ours computes sumo-rl's observation and
waiting reward. Each contestant is a process of its own; they take turns on one core, a segment of an episode
each (a second of CPU time may cost twice as much as the next on a shared machine; so all are hit alike).
Figures are medians over episodes of an episode's CPU seconds (process and children), SUMO's start included,
imports and a first episode not; ratios are medians of the ratios within each episode. All must have the same
vehicles in the net after every segment.

Run: python benchmarks/traffic_env.py [--maps cologne3,cologne8,grid4x4] [--repeats 9] [--traci]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from harness import machine

from seqrl_ray.envs.traffic.env import TrafficEnv
from seqrl_ray.envs.traffic.files import district_files, ensure_sumo_home
from seqrl_ray.recipe_env import PolicySettings
from seqrl_ray.recipe_traffic import TrafficSettings

SEED = 42
SEGMENT = 40
"""Decisions (200 s) that a contestant makes before the next has its turn."""
CONTESTANTS = ("ours", "ours_lean", "ours_recipe", "sumo_rl", "bare")
"""ours_lean: without trip scores; ours_recipe: with our own observation and reward."""


def settings_of(name: str, kind: str = "ours") -> TrafficSettings:
    """Return sumo-rl's timing, with its observation and reward unless `kind` is ours_recipe."""
    table: dict[str, Any] = {"map": name, "decision_s": 5, "yellow_s": 2, "min_green_s": 5}
    table["training_trip_metrics"] = kind != "ours_lean"
    if kind != "ours_recipe":
        table |= {"observation": ("sumo_rl",), "reward": "waiting", "reward_scale": 1.0, "reward_clip": None}
    return TrafficSettings.model_validate(table)


def record_actions(name: str, file: Path) -> None:
    """Write one episode of max-pressure actions, [T, N]: light traffic, as a good policy makes it."""
    settings = settings_of(name)
    env = TrafficEnv(settings, {"all": PolicySettings()}, seeds=lambda *_: SEED, controller="max_pressure")
    env.reset()
    rows = []
    for _ in range((settings.end_s - settings.begin_s) // settings.decision_s):
        actions = env.controller_actions()
        rows.append(actions["all"])
        env.step(actions)
    env.close()
    np.save(file, np.array(rows))


Segments = Generator[int, None, None]
"""An episode that pauses after every `SEGMENT` decisions and says how many vehicles are in the net."""


def run_ours(name: str, actions: np.ndarray, kind: str) -> Iterator[Segments]:
    """Episodes of ours."""
    env = TrafficEnv(settings_of(name, kind), {"all": PolicySettings()}, seeds=lambda *_: SEED)

    def episode() -> Segments:
        env.reset()
        for part in parts_of(actions):
            for row in part:
                env.step({"all": row})
            yield env.vehicle_count()

    while True:
        yield episode()


def run_sumo_rl(name: str, actions: np.ndarray) -> Iterator[Segments]:
    """The same of sumo-rl with its defaults; libsumo or TraCI as the process's environment says."""
    from sumo_rl.environment.env import SumoEnvironment

    settings = settings_of(name)
    net, route = district_files(settings, None)
    env = SumoEnvironment(
        net_file=str(net),
        route_file=str(route),
        begin_time=settings.begin_s,
        num_seconds=settings.end_s - settings.begin_s,
        sumo_seed=SEED,
        sumo_warnings=False,
        additional_sumo_cmd="--no-step-log",
    )

    def episode() -> Segments:
        env.reset()
        for part in parts_of(actions):
            for row in part.tolist():
                env.step(dict(zip(env.ts_ids, row, strict=True)))
            yield env.sumo.vehicle.getIDCount()

    while True:
        yield episode()


def run_bare(name: str, actions: np.ndarray) -> Iterator[Segments]:
    """SUMO alone: the states to show are computed beforehand, then only shown and stepped."""
    from seqrl_ray.envs.traffic.net import read_network
    from seqrl_ray.envs.traffic.safety import SafetyLayer
    from seqrl_ray.envs.traffic.simulation import Simulation, episode_of

    settings = settings_of(name)
    net, route = district_files(settings, None)
    layer = SafetyLayer(read_network(net).signals, settings)
    first = layer.start(settings.begin_s)
    plan: list[list[Any]] = []
    now_s = settings.begin_s
    for part in parts_of(actions):
        plan.append([])
        for row in part:
            plan[-1].append((now_s, layer.decide(row)))
            now_s += settings.decision_s
            layer.advance(now_s)
    simulation = Simulation(net, route, [], emissions=False, trips=False)

    def episode() -> Segments:
        simulation.start(episode_of(settings, SEED, evaluation=True))
        simulation.show(first)
        for part in plan:
            for now_s, commands in part:
                simulation.show(c for c in commands if c.after_s == 0)
                simulation.run_to(now_s + settings.yellow_s)
                simulation.show(c for c in commands if c.after_s > 0)
                simulation.run_to(now_s + settings.decision_s)
            yield int(simulation.api.vehicle.getIDCount())

    while True:
        yield episode()


def parts_of(actions: np.ndarray) -> list[np.ndarray]:
    """An episode's actions in segments, all but the last, at whose end ours would begin another episode."""
    return [actions[t : t + SEGMENT] for t in range(0, len(actions) - 1, SEGMENT)][:-1]


def cpu_s() -> float:
    """CPU seconds of this process and of its children (TraCI's SUMO), living and ended."""
    ended = os.times()
    pids = Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="ascii").split()
    living = [Path(f"/proc/{pid}/schedstat").read_text(encoding="ascii") for pid in pids]
    nanoseconds = sum(int(line.split()[0]) for line in living)
    return time.process_time() + ended.children_user + ended.children_system + nanoseconds * 1e-9


def contestant(kind: str, name: str, file: str) -> None:
    """Run episodes of one contestant in this process: a segment per line that comes in, and a line of what
    it took. The line of an episode's first segment has its start in it.
    """
    actions = np.load(file)
    if kind == "bare":
        episodes = run_bare(name, actions)
    elif kind.startswith("ours"):
        episodes = run_ours(name, actions, kind)
    else:
        episodes = run_sumo_rl(name, actions)
    segments = (vehicles for episode in episodes for vehicles in episode)
    for _ in sys.stdin:
        begin = cpu_s()
        vehicles = next(segments)
        print(json.dumps([cpu_s() - begin, vehicles]), flush=True)


class Process:
    """A contestant in a process of its own, on the core that all take turns on."""

    def __init__(self, kind: str, name: str, file: Path, core: int) -> None:
        """Start it."""
        environment = dict(
            os.environ, OMP_NUM_THREADS="1", PYTHONPATH=str(Path(__file__).resolve().parents[1])
        )
        environment.pop("LIBSUMO_AS_TRACI", None)
        if kind == "sumo_rl":
            environment["LIBSUMO_AS_TRACI"] = "1"
        command = [sys.executable, __file__, "--contestant", kind, "--maps", name, "--actions", str(file)]
        self.name = f"{kind} on {name}"
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        os.sched_setaffinity(self._process.pid, {core})

    def segment(self) -> tuple[float, int]:
        """Let it run one segment: its CPU seconds, and the vehicles in the net after it."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("["):  # sumo-rl prints lines of its own
                taken, vehicles = json.loads(line)
                return float(taken), int(vehicles)
        raise RuntimeError(f"{self.name} ended with status {self._process.wait()}")

    def end(self) -> None:
        """End it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def compare(name: str, repeats: int, traci: bool) -> dict[str, Any]:
    """Let the contestants take turns on one map, segment by segment; medians and ratios over the episodes."""
    kinds = [*CONTESTANTS, "sumo_rl_traci"] if traci else list(CONTESTANTS)
    cpu: dict[str, list[float]] = {kind: [] for kind in kinds}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "actions.npy"
        record_actions(name, file)
        segments = len(parts_of(np.load(file)))
        core = max(os.sched_getaffinity(0))
        processes = {kind: Process(kind, name, file, core) for kind in kinds}
        for episode in range(repeats + 1):
            sums = dict.fromkeys(kinds, 0.0)
            for segment in range(segments):
                seen = {}
                for kind in kinds if segment % 2 == 0 else reversed(kinds):
                    taken, seen[kind] = processes[kind].segment()
                    sums[kind] += taken
                if len(set(seen.values())) != 1:
                    raise RuntimeError(f"{name}: different traffic was simulated: vehicles {seen}")
            if episode:  # the first warms up
                for kind in kinds:
                    cpu[kind].append(sums[kind])
        for process in processes.values():
            process.end()
    pairs = [("sumo_rl", kind) for kind in CONTESTANTS if kind != "sumo_rl"] + [("bare", "ours_lean")]
    pairs += [("sumo_rl_traci", "ours_lean")] if traci else []
    ratios = {
        f"{one}/{other}": statistics.median(a / b for a, b in zip(cpu[one], cpu[other], strict=True))
        for one, other in pairs
    }
    medians = {kind: statistics.median(values) for kind, values in cpu.items()}
    return {
        "map": name,
        "cpu_s": medians,
        "ratios": ratios,
        "env_steps_per_cpu_s": segments * SEGMENT / medians["ours_lean"],
        "repeats": repeats,
    }


def main() -> None:
    """Parse the command line and print one JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--maps", default="cologne3,cologne8,grid4x4")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--traci", action="store_true", help="also sumo-rl on TraCI (slow)")
    parser.add_argument("--contestant", help=argparse.SUPPRESS)
    parser.add_argument("--actions", help=argparse.SUPPRESS)
    given = parser.parse_args()
    ensure_sumo_home()
    if given.contestant:
        contestant(given.contestant, given.maps, given.actions)
        return
    results = [compare(name, given.repeats, given.traci) for name in given.maps.split(",")]
    print(json.dumps({**machine("traffic_env", ("sumo-rl", "libsumo", "eclipse-sumo")), "maps": results}))


if __name__ == "__main__":
    main()
