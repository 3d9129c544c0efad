"""Makes run folders as a run would leave them, from formulas and one seeded generator: no training needed."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

LEVEL = {
    "policy": 18.3,
    "fixed": 48.2,
    "actuated": 27.9,
    "max_pressure": 23.4,
    "greedy": 25.1,
    "random": 210.0,
}
NAMES = [
    "cluster_1757124350_1757124352",
    "247379907",
    "26110729",
    "280120513",
    "32319828",
    "62426694",
    "cluster_7",
]


def interval(values):
    half = 2.2 * np.std(values, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else None
    return None if half is None else [float(np.mean(values) - half), float(np.mean(values) + half)]


def stat(values):
    return {
        "mean": float(np.mean(values)),
        "median": float(np.median(values)),
        "p95": float(np.percentile(values, 95)),
        "ci95": interval(values),
        "n": len(values),
    }


def difference(mine, theirs):
    gap = np.subtract(mine, theirs)
    return {"mean_difference": float(gap.mean()), "ci95": interval(gap), "n": len(gap)}


def write_json(path, content):
    path.write_text(json.dumps(content), encoding="utf-8")


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def judge(folder, episodes):
    """Write evaluation/<name>.json and return the parts of summary.json that follow from them."""
    tables = {}
    for name, rows in episodes.items():
        write_json(folder / "evaluation" / f"{name}.json", {"name": name, "episodes": rows})
        tables[name] = {m: [r[m] for r in rows] for m in rows[0] if m != "seed"}
    policy = tables["policy"]
    others = {name: table for name, table in tables.items() if name != "policy"}
    return {
        "evaluation": {m: stat(v) for m, v in policy.items()},
        "baselines": {n: {m: stat(v) for m, v in t.items()} for n, t in others.items()},
        "paired": {n: {m: difference(policy[m], t[m]) for m in t if m in policy} for n, t in others.items()},
    }


def report_rows(end_steps, wall_s, policies=("shared",)):
    rows = []
    for i in range(1, 121):
        x = i / 120
        row = {
            "kind": "report",
            "at_s": wall_s * x,
            "env_steps": end_steps * x,
            "updates": end_steps * x / 4,
            "env_steps_per_s": 400 + 30 * math.sin(i / 3),
            "updates_per_s": 100 + 5 * math.cos(i / 4),
            "samples_per_insert": 8 * (1 - math.exp(-i / 8)),
            "policy_lag_p50": 3 + i % 3,
            "policy_lag_p95": 9 + i % 5,
            "progress": x,
        }
        for k, policy in enumerate(policies):
            row |= {
                f"{policy}/loss": math.exp(-3 * x) + 0.1 * k,
                f"{policy}/epsilon": max(0.02, 1 - 1.25 * x),
                f"{policy}/q_mean": -2 - 5 * x,
                f"{policy}/gradient_norm": 1 + 0.3 * math.sin(i),
                f"{policy}/pacing_insert_wait_s": 40 * x,
                f"{policy}/pacing_sample_wait_s": 12 * (1 - math.exp(-5 * x)),
                f"{policy}/replay_items": 1000 * x,
            }
        rows.append(row)
    return rows


def traffic_details(rng, signals, level, plan_s):
    time_s = 25200.0 + np.arange(5.0, 3601, 5.0)
    load = np.exp(-(((time_s - 27000) / 900) ** 2))
    size = np.linspace(1.5, 0.3, signals)
    queue = level / 6 * size * load[:, None] * (1 + 0.4 * rng.standard_normal((720, signals)))
    states, changes = [], []
    for n in range(signals):
        greens = 2 + n % 3
        states.append(["".join("G" if i == green else "r" for i in range(greens)) for green in range(greens)])
        at, green = 0.0, 0
        while at < 3600:
            length = plan_s or int(rng.integers(10, 45))
            changes.append((25200 + at, n, states[n][green]))
            changes.append((25200 + at + length - 3, n, states[n][green].replace("G", "y")))
            green = (green + (1 if plan_s else int(rng.integers(1, greens)))) % greens
            at += length
    changes = sorted(changes)
    return {
        "time_s": time_s,
        "queue": np.maximum(queue, 0),
        "delay_rate": np.maximum(1.3 * queue + 0.1, 0),
        "phase_states": np.array(json.dumps(states)),
        "change_time_s": np.array([change[0] for change in changes]),
        "change_signal": np.array([change[1] for change in changes]),
        "change_state": np.array([change[2] for change in changes]),
        "signal_names": np.array([NAMES[i] if i < len(NAMES) else f"gneJ{i}" for i in range(signals)]),
        "trip_delay_s": rng.lognormal(math.log(level * 0.6), 1.0, 1500),
    }


def make_traffic_run(folder: Path, *, signals=8, seeds=10) -> Path:
    rng = np.random.default_rng(7)
    (folder / "evaluation").mkdir(parents=True)
    (folder / "recipe.toml").write_text(
        'name = "cologne8_double_dqn"\ndescription = "A district\'s signals, one shared policy."\nseed = 3\n'
        '[env]\nkind = "traffic"\nmap = "cologne8"\n[algorithm]\nname = "double_dqn"\n'
        '[evaluation]\nheadline = "delay_s"\nlower_is_better = true\n',
        encoding="utf-8",
    )
    demand = rng.normal(0, 0.06, seeds)
    episodes = {}
    for name, level in LEVEL.items():
        delay = level * np.exp(demand + rng.normal(0, 0.03, seeds))
        episodes[name] = [
            {
                "seed": 1_000_000 + i,
                "delay_s": float(d),
                "travel_time_s": float(64 + d),
                "waiting_s": float(0.5 * d),
                "stops": float(0.4 + d / 60),
                "queue_vehicles": float(d / 3),
                "throughput_vehicles": 2040.0 + i,
                "return": float(-12 * d),
                "teleports": 0.0,
                "gridlocked": float(name == "random" and i % 3 == 0),
                "safety_violations": 0.0,
            }
            for i, d in enumerate(delay)
        ]
        if name in ("policy", "fixed", "max_pressure", "random"):
            details = traffic_details(rng, signals, level, 30 if name == "fixed" else 0)
            np.savez_compressed(folder / "evaluation" / f"{name}-details.npz", **details)
    failures = [
        {"what": "actor", "at_s": 610.0, "recover_s": 1.4, "lost_steps": 12, "lost_updates": 0},
        {"what": "shard", "at_s": 1400.0, "recover_s": 3.2, "lost_steps": 4096, "lost_updates": 0},
        {"what": "learner", "at_s": 2600.0, "recover_s": 6.9, "lost_steps": 0, "lost_updates": 310},
    ]
    rows = report_rows(360_000, 3500.0)
    for i in range(500):
        at = 720 * (i + 1)
        delay = 19 + 230 * math.exp(-i / 60) * float(rng.lognormal(0, 0.35))
        rows.append({"kind": "episode", "at_s": at / 103, "env_steps": at, "actor": "a0", "env": 0, "seed": i,
                     "steps": 720, "return": -12 * delay, "delay_s": delay})  # fmt: skip
    for i in range(1, 10):
        held_out = [{"seed": s, "delay_s": 18 + 120 * math.exp(-0.9 * i) * (1 + 0.2 * s)} for s in range(4)]
        rows.append({"kind": "evaluation", "at_s": 350.0 * i, "env_steps": 36_000 * i, "updates": 9000 * i,
                     "name": "policy", "final": False, "episodes": held_out})  # fmt: skip
    rows += [{"kind": "failure", **failure} for failure in failures]
    write_rows(folder / "metrics.jsonl", rows)
    summary = {
        "status": "completed",
        "env_steps": 360_000,
        "agent_steps": 2_880_000,
        "updates": 90_000,
        "episodes": 500,
        "wall_s": 3512.4,
        "env_steps_per_s": 102.8,
        "updates_per_s": 25.7,
        "samples_per_insert": 8.01,
        "policy_lag": {"p50": 4, "p95": 11},
        "headline": {"metric": "delay_s", "lower_is_better": True},
        "restarts": {"actor": 1, "shard": 1, "learner": 1},
        "failures": failures,
        "versions": {"seqrl_ray": "0.1.0", "commit": "0123456789ab", "python": "3.11.7", "torch": "2.13.0"},
        **judge(folder, episodes),
    }
    write_json(folder / "summary.json", summary)
    return folder


def make_gym_run(folder: Path, *, policy_level=487.0, seeds=20) -> Path:
    rng = np.random.default_rng(8)
    (folder / "evaluation").mkdir(parents=True)
    (folder / "recipe.toml").write_text(
        'name = "cartpole_dqn"\nseed = 1\n[env]\nkind = "gym"\nid = "CartPole-v1"\n'
        '[algorithm]\nname = "dqn"\n',
        encoding="utf-8",
    )
    episodes = {
        "policy": [
            {"seed": i, "steps": 1, "return": float(rng.normal(policy_level, 10))} for i in range(seeds)
        ],
        "random": [{"seed": i, "steps": 1, "return": float(rng.normal(22, 9))} for i in range(seeds)],
    }
    rows = report_rows(50_000, 60.0, policies=("left", "right"))
    for i in range(300):
        score = 490 / (1 + math.exp(-(i - 110) / 25)) + float(rng.normal(0, 8)) + 15
        rows.append({"kind": "episode", "at_s": i / 5, "env_steps": 166 * (i + 1), "return": score})
    write_rows(folder / "metrics.jsonl", rows)
    summary = {
        "status": "completed",
        "env_steps": 50_000,
        "updates": 12_500,
        "episodes": 300,
        "wall_s": 60.0,
        "headline": {"metric": "return", "lower_is_better": False},
        "failures": [],
        "restarts": {"actor": 0, "shard": 0, "learner": 0},
        **judge(folder, episodes),
    }
    write_json(folder / "summary.json", summary)
    return folder


@pytest.fixture(scope="session")
def traffic_run(tmp_path_factory):
    """A finished traffic run. Tests that change it copy it first."""
    return make_traffic_run(tmp_path_factory.mktemp("runs") / "cologne8_double_dqn-1")


@pytest.fixture(scope="session")
def small_run(tmp_path_factory):
    """A traffic run of two signals and three seeds: quick to draw. Tests that change it copy it first."""
    return make_traffic_run(tmp_path_factory.mktemp("runs") / "small", signals=2, seeds=3)


@pytest.fixture(scope="session")
def new_traffic_run():
    """Make a traffic run: (folder, signals=, seeds=) -> folder."""
    return make_traffic_run


@pytest.fixture(scope="session")
def new_gym_run():
    """Make a Gymnasium run: (folder, policy_level=, seeds=) -> folder."""
    return make_gym_run


@pytest.fixture(scope="session")
def gym_run(tmp_path_factory):
    return make_gym_run(tmp_path_factory.mktemp("runs") / "cartpole_dqn-1")
