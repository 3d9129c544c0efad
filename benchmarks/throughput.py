"""Speed of whole training against what a user would pick: RLlib, Stable-Baselines3, bare Atari.

    python benchmarks/throughput.py                       # all sections, one JSON line at the end
    python benchmarks/throughput.py --section inprocess   # ray | inprocess | atari
    python benchmarks/throughput.py --quick               # a smoke test: nothing to quote

ray        DQN on CartPole through Ray, colocated wiring, prioritised replay, against RLlib's DQN; see
           `throughput_ray.py`.
inprocess  DQN on CartPole in this process, uniform replay, against Stable-Baselines3's with 1 and with 64
           environments.
atari      a random policy stepped and every step stored, against `ale_py`'s vector environment alone with the
           same arguments and emulator threads.

Both sides of `ray` and `inprocess`: batches of 32, one update per environment step as counted, a 64-64
network, Adam, gradients clipped at a norm of 10, 50,000 stored steps, learning from step 1,000 on, one
thread. Compiled updates are warmed up before anything is timed; what compiling took is printed.
Stable-Baselines3 is no dependency of seqrl-ray: `pip install --no-deps stable-baselines3==2.9.2`.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"

import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from harness import (
    CARTPOLE,
    WARM_UPDATES,
    Stretch,
    alternate,
    asked,
    best,
    figures,
    machine,
    ratios,
    require,
)

from seqrl_ray.api import read_recipe
from seqrl_ray.loops.local import LocalSession

OURS = ((1, 16), (8, 16), (64, 1), (64, 4))
"""(environments, vector steps per fragment) that take part in process."""
PEERS = (1, 64)
ATARI_ENVS, ATARI_FRAGMENT, ATARI_CAPACITY = 16, 16, 20_000


class Ours:
    """The local loop: rollout, shard and learner in this process."""

    def __init__(self, *overrides: str) -> None:
        self.trainer = LocalSession(read_recipe("classic/cartpole", [*CARTPOLE, *overrides])).trainer
        while self.trainer.learner.updates < WARM_UPDATES:
            self.trainer.turn()
        self.compile_s = self.trainer.learner.compiling.compile_s

    def run(self, seconds: float) -> Stretch:
        trainer = self.trainer
        steps, updates = trainer.counters.env_steps, trainer.learner.updates
        began = time.perf_counter()
        while (took := time.perf_counter() - began) < seconds:
            trainer.turn()
        return Stretch(trainer.counters.env_steps - steps, trainer.learner.updates - updates, took)


class StableBaselines:
    """Stable-Baselines3's DQN with as many gradient steps as environment steps."""

    def __init__(self, envs: int) -> None:
        import gymnasium
        from stable_baselines3 import DQN
        from stable_baselines3.common.vec_env import DummyVecEnv

        self.envs = envs
        self.model = DQN(
            "MlpPolicy",
            DummyVecEnv([lambda: gymnasium.make("CartPole-v1", disable_env_checker=True)] * envs),
            learning_rate=5e-4,
            buffer_size=50_000,
            learning_starts=1_000,
            batch_size=32,
            train_freq=1,
            gradient_steps=envs,
            target_update_interval=500,
            max_grad_norm=10.0,
            policy_kwargs={"net_arch": [64, 64]},
            device="cpu",
        )
        self.model.learn(1_000 + WARM_UPDATES)
        self._rate = self._timed(128).env_steps_per_s

    def run(self, seconds: float) -> Stretch:
        return self._timed(max(self.envs, int(self._rate * seconds)))

    def _timed(self, steps: int) -> Stretch:
        before, updates = self.model.num_timesteps, self.model._n_updates
        began = time.perf_counter()
        self.model.learn(steps, reset_num_timesteps=False)
        took = time.perf_counter() - began
        return Stretch(self.model.num_timesteps - before, self.model._n_updates - updates, took)


def in_process(repeats: int, seconds: float, quick: bool) -> dict[str, Any]:
    """Compare with Stable-Baselines3, each side at its best number of environments."""
    ours = {
        f"{kind}_{envs}x{fragment}": Ours(
            "algorithm.name=dqn",
            f"learner.compile={'on' if kind == 'compiled' else 'off'}",
            f"actors.envs_per_actor={envs}",
            f"actors.fragment_steps={fragment}",
        )
        for kind in ("eager", "compiled")
        for envs, fragment in (OURS[-1:] if quick else OURS)
    }
    peers = {f"sb3_{envs}": StableBaselines(envs) for envs in PEERS}
    done = alternate({**peers, **ours}, repeats, seconds)
    peer = best(list(peers), done)
    found: dict[str, Any] = {
        "contestants": {name: figures(stretches) for name, stretches in done.items()},
        "ratios": {},
    }
    for kind in ("eager", "compiled"):
        mine = best([name for name in ours if name.startswith(kind)], done)
        found["ratios"][f"{kind}_best/sb3_best"] = {"of": [mine, peer], **ratios(done[mine], done[peer])}
    found["compile_s"] = {name: round(one.compile_s, 2) for name, one in ours.items() if one.compile_s}
    return found


class Collect:
    """A random policy through the rollout, every step stored in a shard."""

    def __init__(self) -> None:
        recipe = read_recipe(
            "atari/breakout",
            [
                'algorithm={name = "random"}',
                f"actors.envs_per_actor={ATARI_ENVS}",
                f"actors.fragment_steps={ATARI_FRAGMENT}",
                f"replay.capacity_steps={ATARI_CAPACITY}",
                "replay.min_items=1_000",
                "stop.env_steps=2_000_000_000",
            ],
        )
        self.env = recipe.env
        self.trainer = LocalSession(recipe).trainer
        while (
            not self.trainer.shards["shared"].stats().evicted_rows
        ):  # from here on memory is neither new nor cold
            self.trainer.turn()

    def run(self, seconds: float) -> Stretch:
        steps = self.trainer.counters.env_steps
        began = time.perf_counter()
        while (took := time.perf_counter() - began) < seconds:
            self.trainer.turn()
        return Stretch(self.trainer.counters.env_steps - steps, 0, took)


class BareAtari:
    """`ale_py`'s vector environment under random actions; nothing is kept."""

    def __init__(self, env: Any) -> None:
        from ale_py.vector_env import AtariVectorEnv
        from gymnasium.vector import AutoresetMode

        self.env = AtariVectorEnv(
            env.game,
            ATARI_ENVS,
            num_threads=env.num_threads,
            max_num_frames_per_episode=env.max_episode_frames,
            repeat_action_probability=env.repeat_action_probability,
            autoreset_mode=AutoresetMode.SAME_STEP,
            img_height=env.screen,
            img_width=env.screen,
            stack_num=1,
            frameskip=env.frameskip,
            noop_max=env.noop_max,
            life_loss_info=env.episodic_life,
            reward_clipping=False,
            use_fire_reset=env.use_fire_reset,
        )
        self.rng = np.random.default_rng(0)
        self.env.reset(seed=0)
        self.run(1.0)

    def run(self, seconds: float) -> Stretch:
        steps, actions = 0, self.env.single_action_space.n
        began = time.perf_counter()
        while (took := time.perf_counter() - began) < seconds:
            self.env.step(self.rng.integers(0, actions, ATARI_ENVS))
            steps += ATARI_ENVS
        return Stretch(steps, 0, took)


def atari(repeats: int, seconds: float, quick: bool) -> dict[str, Any]:
    """Compare collecting with the emulators alone."""
    ours = Collect()
    done = alternate({"bare": BareAtari(ours.env), "collect": ours}, repeats, seconds)
    stats = ours.trainer.shards["shared"].stats()
    rates = {
        name: statistics.median(s.env_steps_per_s for s in stretches) for name, stretches in done.items()
    }
    return {
        "env_steps_per_s": {name: round(rate, 1) for name, rate in rates.items()},
        "stretches": {
            name: [round(s.env_steps_per_s, 1) for s in stretches] for name, stretches in done.items()
        },
        "ratios": {"collect/bare": ratios(done["collect"], done["bare"])["env_steps_per_s"]},
        "bytes_per_stored_step": round((stats.column_bytes + stats.index_bytes) / ATARI_CAPACITY, 1),
        "envs": ATARI_ENVS,
        "emulator_threads": ours.env.num_threads,
    }


def through_ray(repeats: int, seconds: float, quick: bool) -> dict[str, Any]:
    """Compare with RLlib."""
    from throughput_ray import compare  # starts Ray; the other sections are measured without it

    return compare(repeats, seconds, quick)


SECTIONS: dict[str, Callable[[int, float, bool], dict[str, Any]]] = {
    "inprocess": in_process,
    "atari": atari,
    "ray": through_ray,
}
PACKAGES = {
    "inprocess": ("stable-baselines3", "pip install --no-deps stable-baselines3==2.9.2"),
    "atari": ("ale-py", "pip install ale-py"),
    "ray": ("ray", 'pip install "ray[rllib]"'),
}
"""Section -> its peer's package, and how to get it."""


def main() -> None:
    given = asked(__doc__, list(SECTIONS), seconds=4.0, quick_s=0.5)
    for section in given.sections:
        require(*PACKAGES[section])
    torch.set_num_threads(1)
    packages = ["torch", "numpy", "gymnasium", *(PACKAGES[s][0] for s in given.sections)]
    result = {**machine("throughput", packages), **given.facts()}
    result["sections"] = {
        name: SECTIONS[name](given.repeats, given.seconds, given.quick) for name in given.sections
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
