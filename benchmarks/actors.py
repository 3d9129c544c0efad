"""Who should choose the actions: every actor with its own copy of the network, or one policy server for all?

    python benchmarks/actors.py                               # all sections, one JSON line at the end
    python benchmarks/actors.py --section transformer --device cuda
    python benchmarks/actors.py --quick                       # a smoke test: nothing to quote

mlp           CartPole, two layers of 128 units
conv          Atari Pong, the network of DQN's paper on four stacked frames
transformer   Hopper, an Online Decision Transformer (the recipe's network)

The true processes (`actors.inference`) are timed as a run has them, two fragments on their way per actor, but
nobody learns: so the figure is the most that acting allows. Local actors and a policy server take turns, with
as many actors; those that rest hold no core. The server runs on --device, the local actors on the CPU, as in
a run. `faster` names the mode whose median is higher, on this machine.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"

import json
import time
from typing import Any

import ray
from harness import Stretch, alternate, asked, best, figures, machine, ratios

from seqrl_ray import api
from seqrl_ray.loops.build import algorithms
from seqrl_ray.recipe import Recipe
from seqrl_ray.runtime.actor import RolloutActor
from seqrl_ray.runtime.launch import connected
from seqrl_ray.runtime.policy_server import PolicyServer
from seqrl_ray.runtime.supervisor import threads_env
from seqrl_ray.runtime.weight_board import WeightBoard
from seqrl_ray.runtime.wire import unpack
from seqrl_ray.types_env import Weights

SECTIONS = {
    "mlp": ("classic/cartpole", ("actors.envs_per_actor=8",)),
    "conv": ("atari/pong", ("actors.envs_per_actor=4",)),
    "transformer": ("mujoco/hopper_online_dt", ("actors.envs_per_actor=4",)),
}
"""Recipe, and what is changed in it."""

SHARE = {"num_cpus": 0.01, "runtime_env": threads_env()}
"""Everybody stands on this machine."""


class Acting:
    """Some actors that act as a run's do."""

    def __init__(self, recipe: Recipe, actors: int, weights: dict[str, Weights], server: Any) -> None:
        """Start the actors, and wait until each has made a fragment.

        Args:
            recipe: the run.
            actors: how many.
            weights: that local ones act with.
            server: a policy server; None: they act themselves.
        """
        self.payload = weights if server is None else None
        remote: Any = ray.remote(RolloutActor).options(**SHARE)
        self.actors = [remote.remote(recipe, index, 0) for index in range(actors)]
        for actor in self.actors if server is not None else ():
            actor.act_through.remote(server)
        self._steps(ray.get([actor.fragment.remote(self.payload, 0.5) for actor in self.actors]))
        self.in_flight = recipe.actors.in_flight

    def run(self, seconds: float) -> Stretch:
        """Act for about so long; what is on its way at the end is waited for and counted."""
        began, done = time.perf_counter(), 0
        calls = {a.fragment.remote(None, 0.5): a for a in self.actors for _ in range(self.in_flight)}
        while calls:
            ready, _ = ray.wait(list(calls), num_returns=1)
            for call in ready:
                actor = calls.pop(call)
                done += self._steps([ray.get(call)])
                if time.perf_counter() - began < seconds:
                    calls[actor.fragment.remote(None, 0.5)] = actor
        return Stretch(done, 0, time.perf_counter() - began)

    def _steps(self, packed: list[Any]) -> int:
        return sum(unpack(fragment).env_steps for fragment in packed)

    def end(self) -> None:
        for actor in self.actors:
            ray.kill(actor)


def section(name: str, device: str, actors: int, repeats: int, seconds: float) -> dict[str, Any]:
    """Time both modes of one recipe."""
    recipe_name, changes = SECTIONS[name]
    recipe = api.read_recipe(recipe_name, list(changes))
    first: Any = ray.remote(RolloutActor).options(**SHARE).remote(recipe, 0, 0)
    groups = ray.get(first.groups.remote())
    ray.kill(first)
    weights = {
        policy_id: Weights(policy_id, 0, 1, algorithm.weights(), 0.5)
        for policy_id, algorithm in algorithms(recipe, groups).items()
    }
    board: Any = ray.remote(WeightBoard).options(**SHARE).remote()
    ray.get(board.publish.remote(weights))
    gpus = 0.0 if device == "cpu" else 1.0
    serving: Any = ray.remote(PolicyServer).options(**SHARE, num_gpus=gpus, max_concurrency=actors + 8)
    server = serving.remote(recipe, groups, device=device, threads=1)
    ray.get(server.serve.remote(board))
    contestants = {
        "local": Acting(recipe, actors, weights, None),
        "central": Acting(recipe, actors, weights, server),
    }
    before = ray.get(server.serve.remote(board))
    done = alternate(contestants, repeats, seconds)
    after = ray.get(server.serve.remote(board))
    spent = sum(stretch.seconds for stretch in done["central"])
    for contestant in contestants.values():
        contestant.end()
    for process in (server, board):
        ray.kill(process)
    return {
        "env_steps_per_s": {mode: figures(stretches)["env_steps_per_s"] for mode, stretches in done.items()},
        "stretches": {mode: [round(s.env_steps_per_s, 1) for s in own] for mode, own in done.items()},
        "central/local": ratios(done["central"], done["local"])["env_steps_per_s"],
        "faster": best(list(done), done),
        "parameters": sum(int(w.flat.size) for w in weights.values()),
        "slots_per_batch": round((after.slots - before.slots) / (after.batches - before.batches), 2),
        "server_busy": round((after.busy_s - before.busy_s) / spent, 3),
    }


OTHERS = {
    "--device": {"default": "cpu", "help": "torch device of the policy server"},
    "--actors": {"type": int, "default": max(2, os.cpu_count() or 1), "help": "actors of each mode"},
}


def main() -> None:
    given = asked(__doc__, list(SECTIONS), seconds=4.0, quick_s=0.3, others=OTHERS)
    device, actors = given.others.device, given.others.actors
    result = {
        **machine("actors", ["torch", "ray", "numpy"]),
        "device": device,
        "actors": actors,
        **given.facts(),
    }
    with connected("local"):
        result["sections"] = {
            name: section(name, device, actors, given.repeats, given.seconds) for name in given.sections
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
