"""The `ray` section of `throughput.py`: DQN on CartPole through Ray, ours against RLlib's.

All contestants live in one Ray on this machine and take turns; who is not running sleeps (our colocated
learner pulls its fragments, RLlib's runner waits for its driver; the actors of our service wiring, which is
compared with our colocated one only, push until pacing holds them, and are given time for it). One update of
32 per environment step is wanted of both sides, as counted. RLlib's `training_intensity` does not give it: it
is divided by the runners plus one, and where episodes end more steps are sampled than were asked for, the
more so the more environments there are. So it is set anew after every stretch from what that stretch counted;
both sides report what they counted in all. RLlib's learner runs in this process, its default on one machine.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import ray
from harness import CARTPOLE, WARM_UPDATES, Stretch, alternate, best, figures, ratios
from ray.rllib.algorithms.dqn import DQNConfig
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig

from seqrl_ray.api import read_recipe
from seqrl_ray.runtime.launch import open_session

EQUAL = (8, 16)
"""(environments, vector steps per fragment) of the comparison at equal environments."""
OURS = ((64, 4), (64, 16), (256, 4))
"""Where our best is looked for, besides."""
SERVICE = "_service"
"""Ends the names of contestants in the service wiring."""
PEERS = (8, 32, 64)
FIRST_INTENSITY = 16.0
"""One update of 32 per environment step, were it not for the steps that RLlib samples on top."""
LOOK_S = 4.0
"""How long each candidate for the best is tried."""
PER = ("replay.sampler=prioritised", "replay.alpha=0.6", "replay.beta_start=0.4", "replay.beta_end=0.4")


class Ours:
    """A whole session: supervisor here, learner, rollout actor, weight board (and shard) in processes."""

    def __init__(
        self, compiled: bool, envs: int, fragment_steps: int, root: Path, wiring: str = "colocated"
    ) -> None:
        overrides = (
            "algorithm.name=double_dqn",
            f"learner.compile={'on' if compiled else 'off'}",
            "learner.threads=1",
            "learner.device=cpu",
            f"replay.wiring={wiring}",
            f"actors.envs_per_actor={envs}",
            f"actors.fragment_steps={fragment_steps}",
        )
        recipe = read_recipe("classic/cartpole", [*CARTPOLE, *PER, *overrides])
        self.rest_s = 0.0 if wiring == "colocated" else 1.5
        self.session = open_session(recipe, root=root, local=True)
        self.row = self.session.advance(0.1).row
        while self.row["updates"] < WARM_UPDATES:
            self.row = self.session.advance(0.5).row
        self.compile_s: float = self.row["compile_s"]

    def run(self, seconds: float) -> Stretch:
        before, began = self.row, time.perf_counter()
        self.row = self.session.advance(seconds).row
        took = time.perf_counter() - began
        time.sleep(self.rest_s)
        steps, updates = (int(self.row[k] - before[k]) for k in ("env_steps", "updates"))
        return Stretch(steps, updates, took)

    def close(self) -> None:
        self.session.close()


class RLlib:
    """RLlib's DQN on the new API stack, one runner; its update calls are counted, not computed."""

    def __init__(self, envs: int, seconds: float) -> None:
        config = (
            DQNConfig()
            .environment("CartPole-v1")
            .env_runners(num_env_runners=1, num_envs_per_env_runner=envs, rollout_fragment_length=1)
            .learners(num_learners=0)
            .rl_module(model_config=DefaultModelConfig(fcnet_hiddens=[64, 64], fcnet_activation="relu"))
            .training(
                lr=5e-4,
                train_batch_size=32,
                training_intensity=FIRST_INTENSITY,
                n_step=1,
                double_q=True,
                dueling=False,
                grad_clip=10.0,
                target_network_update_freq=500,
                num_steps_sampled_before_learning_starts=1_000,
                replay_buffer_config={
                    "type": "PrioritizedEpisodeReplayBuffer",
                    "capacity": 50_000,
                    "alpha": 0.6,
                    "beta": 0.4,
                },
            )
            .reporting(min_time_s_per_iteration=seconds, min_sample_timesteps_per_iteration=0)
        )
        self.algorithm = config.build_algo()
        self.updates = self.steps = 0
        update = self.algorithm.learner_group.update

        def counted(**arguments: Any) -> Any:
            self.updates += 1
            return update(**arguments)

        self.algorithm.learner_group.update = counted
        self.intensity = FIRST_INTENSITY
        while self.updates < WARM_UPDATES:
            self.run(seconds)
        self.run(seconds)  # with the intensity that a stretch of nothing but learning asked for

    def run(self, seconds: float) -> Stretch:
        updates, took, began = self.updates, 0.0, time.perf_counter()
        while took < seconds:  # one call, unless it was made for shorter stretches
            result = self.algorithm.train()
            took = time.perf_counter() - began
        before, self.steps = self.steps, int(result["env_runners"]["num_env_steps_sampled_lifetime"])
        stretch = Stretch(self.steps - before, self.updates - updates, took)
        if updates:  # the first has steps in it that filled the buffer
            self._ask_for(self.intensity * stretch.env_steps / max(1, stretch.updates))
        return stretch

    def _ask_for(self, intensity: float) -> None:
        self.intensity = intensity
        config = self.algorithm.config.copy(copy_frozen=False).training(training_intensity=intensity)
        config.freeze()
        self.algorithm.config = config

    def close(self) -> None:
        self.algorithm.stop()


def compare(repeats: int, seconds: float, quick: bool) -> dict[str, Any]:
    """Compare at 8 environments, and each side at its best."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    threads = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    ray.init(
        address="local",
        num_cpus=64,  # shares of this machine, as a local run of ours asks for them; nobody reserves a core
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        runtime_env={"env_vars": {**threads, "PYTHONPATH": os.environ.get("PYTHONPATH", "")}},
    )
    try:
        with tempfile.TemporaryDirectory() as root:
            return _compare(Path(root), repeats, seconds, quick)
    finally:
        ray.shutdown()


def _compare(root: Path, repeats: int, seconds: float, quick: bool) -> dict[str, Any]:
    looked: dict[str, float] = {}
    peer_best = (
        PEERS[0] if quick else _look({n: lambda n=n: RLlib(n, LOOK_S) for n in PEERS}, "rllib", looked)
    )
    contestants: dict[str, Any] = {f"rllib_{EQUAL[0]}": RLlib(EQUAL[0], seconds)}
    if peer_best != EQUAL[0]:
        contestants[f"rllib_{peer_best}"] = RLlib(peer_best, seconds)
    contestants.update(_ours(root, quick, looked))
    done = alternate(contestants, repeats, seconds)
    found: dict[str, Any] = {
        "contestants": {n: figures(s) for n, s in done.items()},
        "looked_at": looked,
        "ratios": {},
    }
    peers = [name for name in contestants if name.startswith("rllib")]
    for kind in ("eager", "compiled"):
        own = [name for name in contestants if name.startswith(kind) and SERVICE not in name]
        pairs = {f"at_{EQUAL[0]}": (own[0], peers[0]), "best": (best(own, done), best(peers, done))}
        for where, (mine, peer) in pairs.items():
            found["ratios"][f"{kind}_{where}"] = {"of": [mine, peer], **ratios(done[mine], done[peer])}
        if not quick:
            pair = [own[-1], f"{own[-1]}{SERVICE}"]
            found["ratios"][f"{kind}_wirings"] = {"of": pair, **ratios(*(done[name] for name in pair))}
    found["compile_s"] = {
        n: round(c.compile_s, 2) for n, c in contestants.items() if n.startswith("compiled")
    }
    for contestant in contestants.values():
        contestant.close()
    return found


def _ours(root: Path, quick: bool, looked: dict[str, float]) -> dict[str, Ours]:
    """Start ours: at 8 environments, at its best, and (unless `quick`) there in the service wiring too."""
    made: dict[str, Ours] = {}
    for kind, compiled in (("eager", False), ("compiled", True)):
        places = [(EQUAL, "colocated")]
        if not quick:
            candidates = {s: lambda s=s, c=compiled: Ours(c, *s, root / "look") for s in (EQUAL, *OURS)}
            shape = _look(candidates, kind, looked)
            places += [(shape, "colocated"), (shape, "service")]
        for shape, wiring in dict.fromkeys(places):
            name = f"{kind}_{shape[0]}x{shape[1]}{SERVICE if wiring == 'service' else ''}"
            made[name] = Ours(compiled, *shape, root / name, wiring)
    return made


def _look(candidates: dict[Any, Any], side: str, looked: dict[str, float]) -> Any:
    """Try every candidate once, alone, and return the key of the fastest."""
    rates = {}
    for key, make in candidates.items():
        contestant = make()
        rates[key] = contestant.run(LOOK_S).env_steps_per_s
        looked[f"{side}_{key if isinstance(key, int) else f'{key[0]}x{key[1]}'}"] = round(rates[key], 1)
        contestant.close()
    return max(rates, key=lambda key: rates[key])
