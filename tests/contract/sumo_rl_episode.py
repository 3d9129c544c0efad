"""Run sumo-rl itself (libsumo backend) for one episode and write what it showed; a process of its own.

libsumo is one simulation per process; SUMO_HOME comes from the caller, whose TrafficEnv has set it.

Usage: python sumo_rl_episode.py REQUEST.json RESULT.npz
"""

import json
import os
import sys
from pathlib import Path

os.environ["LIBSUMO_AS_TRACI"] = "1"

import numpy as np


def main(request_file: str, result_file: str) -> None:
    request = json.loads(Path(request_file).read_text(encoding="utf-8"))
    from sumo_rl.environment.env import SumoEnvironment

    env = SumoEnvironment(
        net_file=request["net"],
        route_file=request["route"],
        begin_time=request["begin_s"],
        num_seconds=request["end_s"] - request["begin_s"],
        delta_time=request["decision_s"],
        yellow_time=request["yellow_s"],
        min_green=request["min_green_s"],
        reward_fn=request["reward_fn"],
        sumo_seed=request["seed"],
        sumo_warnings=False,
        additional_sumo_cmd="--no-step-log",
    )
    observations, rewards, vehicles = [env.reset()], [], []
    for row in request["actions"]:
        observation, reward, _, _ = env.step(dict(zip(env.ts_ids, row, strict=True)))
        observations.append(observation)
        rewards.append([reward[signal] for signal in env.ts_ids])
        vehicles.append(env.sumo.vehicle.getIDCount())
    result = {f"obs_{n}": np.array([o[s] for o in observations]) for n, s in enumerate(env.ts_ids)}
    np.savez(result_file, signals=env.ts_ids, rewards=rewards, vehicles=vehicles, **result)
    env.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
