"""Speed of the traffic environment against sumo-rl and against bare SUMO, under one and the same traffic.

Question: how fast is one episode of `TrafficEnv` beside (a) sumo-rl on libsumo in its default setting
(waiting reward, information on), (b) SUMO alone, stepped under the same signal changes, (c) sumo-rl on TraCI?
Method: one max-pressure action sequence per map is replayed by every contestant with the same seed, at
sumo-rl's timing (5 s decisions, 2 s yellow, 5 s minimum green); ours computes sumo-rl's observation and
waiting reward. Every run is a fresh process; contestants alternate; figures are medians of an episode's CPU
seconds (process and children), start included, imports not. All must end with the same vehicles in the net.

Run: python benchmarks/traffic_env.py [--maps cologne3,cologne8,grid4x4] [--repeats 5] [--traci]
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
from pathlib import Path
from typing import Any

import numpy as np
from harness import machine

from seqrl_ray.envs.traffic.env import TrafficEnv
from seqrl_ray.envs.traffic.files import district_files, ensure_sumo_home
from seqrl_ray.recipe_env import PolicySettings
from seqrl_ray.recipe_traffic import MAPS, TrafficSettings

SEED = 42
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


def run_ours(name: str, actions: np.ndarray, kind: str) -> tuple[float, int]:
    """CPU seconds of an episode, and vehicles in the net before its last decision."""
    settings = settings_of(name, kind)
    env = TrafficEnv(settings, {"all": PolicySettings()}, seeds=lambda *_: SEED)
    begin = cpu_s()
    env.reset()
    for row in actions[:-1]:
        env.step({"all": row})
    vehicles = env.vehicle_count()
    taken = cpu_s() - begin
    env.close()
    return taken, vehicles


def run_sumo_rl(name: str, actions: np.ndarray) -> tuple[float, int]:
    """The same for sumo-rl with its defaults; libsumo or TraCI as the process's environment says."""
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
    begin = cpu_s()
    env.reset()
    for row in actions[:-1].tolist():
        env.step(dict(zip(env.ts_ids, row, strict=True)))
    vehicles = env.sumo.vehicle.getIDCount()
    env.close()
    return cpu_s() - begin, vehicles


def run_bare(name: str, actions: np.ndarray) -> tuple[float, int]:
    """SUMO alone: the states to show are computed beforehand, then only shown and stepped."""
    from seqrl_ray.envs.traffic.net import read_network
    from seqrl_ray.envs.traffic.safety import SafetyLayer
    from seqrl_ray.envs.traffic.simulation import Simulation, episode_of

    settings = settings_of(name)
    net, route = district_files(settings, None)
    network = read_network(net)
    layer = SafetyLayer(network.signals, settings)
    first = layer.start(settings.begin_s)
    plan = []
    for t, row in enumerate(actions[:-1]):
        plan.append(layer.decide(row))
        layer.advance(settings.begin_s + (t + 1) * settings.decision_s)
    simulation = Simulation(net, route, [], emissions=False, trips=False)
    begin = cpu_s()
    simulation.start(episode_of(settings, SEED, evaluation=True))
    simulation.show(first)
    for t, commands in enumerate(plan):
        now_s = settings.begin_s + t * settings.decision_s
        simulation.show(c for c in commands if c.after_s == 0)
        simulation.run_to(now_s + settings.yellow_s)
        simulation.show(c for c in commands if c.after_s > 0)
        simulation.run_to(now_s + settings.decision_s)
    vehicles = int(simulation.api.vehicle.getIDCount())
    taken = cpu_s() - begin
    simulation.close()
    return taken, vehicles


def cpu_s() -> float:
    """CPU seconds of this process and its finished children (TraCI's SUMO)."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def contestant(kind: str, name: str, file: str) -> None:
    """Run one contestant in this process and print its figures as one JSON line."""
    actions = np.load(file)
    begin = time.perf_counter()
    if kind == "bare":
        taken, vehicles = run_bare(name, actions)
    elif kind.startswith("ours"):
        taken, vehicles = run_ours(name, actions, kind)
    else:
        taken, vehicles = run_sumo_rl(name, actions)
    wall = time.perf_counter() - begin
    print(json.dumps({"cpu_s": taken, "wall_s": wall, "vehicles": vehicles}))


def measure(kind: str, name: str, file: Path) -> dict[str, float]:
    """Run one contestant in a fresh process."""
    environment = dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=str(Path(__file__).resolve().parents[1]))
    environment.pop("LIBSUMO_AS_TRACI", None)
    if kind == "sumo_rl":
        environment["LIBSUMO_AS_TRACI"] = "1"
    command = [sys.executable, __file__, "--contestant", kind, "--maps", name, "--actions", str(file)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{kind} on {name} failed:\n{done.stderr}")
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def compare(name: str, repeats: int, traci: bool) -> dict[str, Any]:
    """Alternate the contestants on one map; medians and ratios."""
    kinds = [*CONTESTANTS, "sumo_rl_traci"] if traci else list(CONTESTANTS)
    runs: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "actions.npy"
        record_actions(name, file)
        for repeat in range(repeats):
            for kind in kinds if repeat % 2 == 0 else reversed(kinds):
                runs[kind].append(measure(kind, name, file))
    vehicles = {int(run["vehicles"]) for kind in kinds for run in runs[kind]}
    if len(vehicles) != 1:
        raise RuntimeError(
            f"{name}: different traffic was simulated ({sorted(vehicles)} vehicles at the end)"
        )
    cpu = {kind: statistics.median(run["cpu_s"] for run in runs[kind]) for kind in kinds}
    ratios = {
        f"sumo_rl/{kind}": cpu["sumo_rl"] / cpu[kind] for kind in ("ours", "ours_lean", "ours_recipe", "bare")
    }
    ratios["bare/ours"] = cpu["bare"] / cpu["ours"]
    if traci:
        ratios["sumo_rl_traci/ours"] = cpu["sumo_rl_traci"] / cpu["ours"]
    steps = (MAPS[name].end_s - MAPS[name].begin_s) // 5 - 1
    return {
        "map": name,
        "cpu_s": cpu,
        "ratios": ratios,
        "env_steps_per_cpu_s": steps / cpu["ours"],
        "repeats": repeats,
    }


def main() -> None:
    """Parse the command line and print one JSON line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--maps", default="cologne3,cologne8,grid4x4")
    parser.add_argument("--repeats", type=int, default=5)
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
