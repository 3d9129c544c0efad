"""Speed of learning from windows against Hugging Face's Decision Transformer and the usual per-sample code.

    python benchmarks/sequence.py                       # both sections, one JSON line at the end
    python benchmarks/sequence.py --section updates     # updates | windows
    python benchmarks/sequence.py --quick               # a smoke test: nothing to quote

updates  whole training updates: `decision_transformer` fed by a replay shard, against Hugging Face's
         DecisionTransformerModel (attention "eager" and "sdpa", whichever is faster) with torch's AdamW and
         clip_grad_norm_, fed by `PerSample`. Width 128, 3 blocks, 1 head, windows of 20 steps, batches of 64,
         observations of 11 and actions of 3 numbers (Gym's Hopper), dropout 0.1 and 0.0, 2 threads and 1.
windows  drawing windows with returns-to-go only: 16 minibatches of 64 per call, against `PerSample`.

Both sides see the same episodes of 500 to 1,000 steps. `PerSample` does what kzl/decision-transformer on
GitHub (`gym/experiment.py`, `get_batch`) does, in our own words: for every sample slice, pad on the left, and
sum the rewards from there to the episode's end. Each peer also takes part with torch's fused AdamW.
`gflop_per_update` counts the matrix products of a model's forward pass (2 per multiply-add; attention over
all pairs, masked ones included) three times: backward costs two forwards. Ours has fewer: the last block
works for the observations' tokens only, and a window's last action is no token.
Dims: B batch, K window steps, U updates per draw, T tokens, E width.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from harness import Stretch, alternate, asked, machine, require
from numpy.typing import NDArray
from torch import Tensor

from seqrl_ray.algorithms.decision_transformer import DecisionTransformer
from seqrl_ray.algorithms.decision_transformer_settings import DecisionTransformerSettings
from seqrl_ray.loops.feed import feed
from seqrl_ray.networks.decision_transformer import decision_transformer_net
from seqrl_ray.recipe_replay import ReplaySettings
from seqrl_ray.replay import ReplayShard
from seqrl_ray.types import ActionSpec, Array, ArraySpec, DataFacts, GroupSpec, SampleSpec, Slot
from seqrl_ray.types_env import Trajectory

OBS, ACT, EPISODES, EPISODE_STEPS = 11, 3, 200, (500, 1_000)
BATCH, STEPS, UNITS, LAYERS, PER_DRAW, RETURN_SCALE = 64, 20, 128, 3, 16, 1_000.0
RATE, WEIGHT_DECAY, CLIP, MAX_TIMESTEPS = 1e-4, 1e-4, 0.25, 1_000
CASES = ((2, 0.1), (2, 0.0), (1, 0.1), (1, 0.0))
"""(torch threads, dropout)."""
WARM_UPDATES = 5

Episodes = list[dict[str, NDArray[np.float32]]]


def episodes() -> Episodes:
    """Random numbers of Hopper's shapes."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(*EPISODE_STEPS, EPISODES)
    return [
        {
            "obs": rng.standard_normal((n, OBS), np.float32),
            "action": rng.uniform(-1, 1, (n, ACT)).astype(np.float32),
            "reward": rng.random(n, np.float32) * 4,
        }
        for n in lengths
    ]


def hopper_group() -> GroupSpec:
    """Eleven numbers per observation, three per action."""
    bounds = ((-1.0,) * ACT, (1.0,) * ACT)
    action = ActionSpec("box", shape=(ACT,), low=bounds[0], high=bounds[1])
    return GroupSpec("shared", (Slot(0, "agent", OBS, 0),), ArraySpec((OBS,), "float32"), action)


def filled(data: Episodes) -> ReplayShard:
    """Our shard with every episode in it, each ended by a termination."""
    spec = SampleSpec("windows", window_steps=STEPS, returns=True, return_gamma=1.0)
    capacity = sum(len(e["reward"]) + 1 for e in data) + 1_000
    shard = ReplayShard(
        hopper_group(), spec, ReplaySettings(capacity_steps=capacity, min_items=BATCH), seed=0
    )
    for number, episode in enumerate(data):
        rows = len(episode["reward"]) + 1
        columns: dict[str, Array] = {
            name: np.concatenate([column, np.zeros_like(column[:1])]) for name, column in episode.items()
        }
        place = np.arange(rows)
        columns["terminated"], columns["final"] = place == rows - 2, place == rows - 1
        columns["truncated"] = np.zeros(rows, bool)
        at = [np.array([n]) for n in (0, number, 0, rows)]
        shard.insert(Trajectory("shared", "writer", 0, (0, 0), *at, columns, rows - 1))
    return shard


def standardisation(data: Episodes) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and deviation of the observations, [OBS] each."""
    whole = np.concatenate([episode["obs"] for episode in data])
    return whole.mean(0), whole.std(0) + 1e-6


class PerSample:
    """Windows as single-file training scripts make them."""

    def __init__(self, data: Episodes) -> None:
        self.data = data
        self.mean, self.std = standardisation(data)
        lengths = np.array([len(episode["reward"]) for episode in data])
        self.chance = lengths / lengths.sum()
        self.rng = np.random.default_rng(1)

    def batch(self, size: int) -> tuple[Tensor, ...]:
        """Return (obs, action, reward, return-to-go, timestep, mask), [B, K, ...] each."""
        parts: list[list[Array]] = [[] for _ in range(6)]
        for number in self.rng.choice(len(self.data), size=size, replace=True, p=self.chance):
            episode = self.data[int(number)]
            start = int(self.rng.integers(len(episode["reward"])))
            obs, action, reward = (episode[n][start : start + STEPS] for n in ("obs", "action", "reward"))
            known, missing = len(obs), STEPS - len(obs)
            wanted = discounted(episode["reward"][start:], 1.0)[:known]
            obs = np.concatenate([np.zeros((missing, OBS)), obs])
            found = (
                (obs - self.mean) / self.std,
                np.concatenate([np.full((missing, ACT), -10.0), action]),
                np.concatenate([np.zeros(missing), reward])[:, None],
                np.concatenate([np.zeros(missing), wanted])[:, None] / RETURN_SCALE,
                np.concatenate([np.zeros(missing), np.arange(start, start + known)]),
                np.concatenate([np.zeros(missing), np.ones(known)]),
            )
            for part, value in zip(parts, found, strict=True):
                part.append(value)
        kinds = [torch.float32] * 4 + [torch.long, torch.float32]
        return tuple(
            torch.from_numpy(np.stack(part)).to(kind) for part, kind in zip(parts, kinds, strict=True)
        )


def discounted(reward: NDArray[np.float32], gamma: float) -> NDArray[np.float32]:
    """Sums of the rewards from each step on, one Python step per row."""
    total = np.zeros_like(reward)
    total[-1] = reward[-1]
    for t in reversed(range(len(reward) - 1)):
        total[t] = reward[t] + gamma * total[t + 1]
    return total


class Ours:
    """Shard, feed and algorithm, as a trainer's turn wires them."""

    def __init__(self, shard: ReplayShard, data: Episodes, threads: int, dropout: float) -> None:
        settings = DecisionTransformerSettings(
            units=UNITS,
            layers=LAYERS,
            heads=1,
            window_steps=STEPS,
            max_timesteps=MAX_TIMESTEPS,
            dropout=dropout,
            return_scale=RETURN_SCALE,
            learning_rate=RATE,
            warmup_updates=0,
            weight_decay=WEIGHT_DECAY,
            max_grad_norm=CLIP,
        )
        group, self.shard, self.threads = hopper_group(), shard, threads
        torch.manual_seed(0)
        network = decision_transformer_net(settings, group)
        self.algorithm = DecisionTransformer(settings, group, network)
        self.algorithm.prepare(DataFacts(*standardisation(data), 0.0, 4_000.0))
        self.warm()

    def warm(self) -> None:
        torch.set_num_threads(self.threads)
        while self.algorithm.updates < WARM_UPDATES:
            self.draw()

    def draw(self) -> None:
        """One draw and its updates."""
        batch = self.shard.sample(PER_DRAW, BATCH)
        update = self.algorithm.update(feed(batch, "cpu"), self.algorithm.hparams(0.0))
        self.shard.update_priorities(batch.ids, update.priorities)

    def run(self, seconds: float) -> Stretch:
        torch.set_num_threads(self.threads)
        return stretch(self.draw, PER_DRAW, seconds)


class HuggingFace:
    """Their model, trained as single-file scripts train it."""

    def __init__(self, data: Episodes, threads: int, dropout: float, attention: str, fused: bool) -> None:
        from transformers import DecisionTransformerConfig, DecisionTransformerModel

        torch.manual_seed(0)
        self.threads, self.source = threads, PerSample(data)
        config = DecisionTransformerConfig(
            state_dim=OBS,
            act_dim=ACT,
            max_ep_len=MAX_TIMESTEPS,
            hidden_size=UNITS,
            n_layer=LAYERS,
            n_head=1,
            activation_function="relu",
            resid_pdrop=dropout,
            embd_pdrop=dropout,
            attn_pdrop=dropout,
            attn_implementation=attention,
        )
        self.model = DecisionTransformerModel(config).train()
        self.optimiser = torch.optim.AdamW(
            self.model.parameters(), lr=RATE, weight_decay=WEIGHT_DECAY, fused=fused
        )
        torch.set_num_threads(threads)
        for _ in range(WARM_UPDATES):
            self.update()

    def update(self) -> None:
        obs, action, reward, wanted, timestep, mask = self.source.batch(BATCH)
        said = self.model(
            states=obs,
            actions=action,
            rewards=reward,
            returns_to_go=wanted,
            timesteps=timestep,
            attention_mask=mask,
            return_dict=True,
        ).action_preds  # [B, K, ACT]
        valid = mask.reshape(-1) > 0  # [B K]
        loss = (said.reshape(-1, ACT)[valid] - action.reshape(-1, ACT)[valid]).square().mean()  # []
        self.optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimiser.step()
        loss.detach().item()

    def run(self, seconds: float) -> Stretch:
        torch.set_num_threads(self.threads)
        return stretch(self.update, 1, seconds)


class Windows:
    """Drawing windows only; a `Stretch` counts them as steps."""

    def __init__(self, draw: Callable[[], object], windows: int) -> None:
        self.draw, self.windows = draw, windows
        self.draw()

    def run(self, seconds: float) -> Stretch:
        done = stretch(self.draw, self.windows, seconds)
        return Stretch(done.updates, 0, done.seconds)


def stretch(call: Callable[[], object], updates: int, seconds: float) -> Stretch:
    """Call for about so long; every call counts as `updates`."""
    calls, began = 0, time.perf_counter()
    while (took := time.perf_counter() - began) < seconds or not calls:
        call()
        calls += 1
    return Stretch(0, calls * updates, took)


def gflop_per_update(tokens: int, answered: int) -> float:
    """Matrix products of one update, in 1e9.

    Args:
        tokens: T of a window.
        answered: tokens that the last block's queries and MLP run for.
    """
    pairs = 4 * UNITS * tokens  # scores and sums over the values, per query
    whole = tokens * (24 * UNITS**2 + pairs)  # queries, keys, values, out: 8 E^2; MLP: 16 E^2
    last = tokens * 4 * UNITS**2 + answered * (20 * UNITS**2 + pairs)
    embedding = 2 * UNITS * STEPS * (1 + OBS + 2 * ACT)
    return 3 * BATCH * ((LAYERS - 1) * whole + last + embedding) / 1e9


def updates(repeats: int, seconds: float, quick: bool) -> dict[str, Any]:
    """Compare whole training updates."""
    data = episodes()
    shard = filled(data)
    found: dict[str, Any] = {}
    gflop = {"ours": gflop_per_update(3 * STEPS - 1, STEPS), "peer": gflop_per_update(3 * STEPS, 3 * STEPS)}
    for threads, dropout in CASES[:1] if quick else CASES:
        peers = {
            f"hf_{attention}{'_fused' if fused else ''}": HuggingFace(
                data, threads, dropout, attention, fused
            )
            for attention in ("eager", "sdpa")
            for fused in (False, True)
        }
        done = alternate({"ours": Ours(shard, data, threads, dropout), **peers}, repeats, seconds)
        rates = {name: statistics.median(s.updates_per_s for s in some) for name, some in done.items()}
        peer = max(peers, key=lambda name: rates[name])
        pairs = zip(done["ours"], done[peer], strict=True)
        found[f"threads_{threads}_dropout_{dropout}"] = {
            "updates_per_s": {name: round(rate, 2) for name, rate in rates.items()},
            "peer": peer,
            "ratio": round(statistics.median(a.updates_per_s / b.updates_per_s for a, b in pairs), 3),
            "gflop_per_s": {
                "ours": round(rates["ours"] * gflop["ours"], 1),
                "peer": round(rates[peer] * gflop["peer"], 1),
            },
            "stretches": {name: [round(s.updates_per_s, 2) for s in some] for name, some in done.items()},
        }
    return {"gflop_per_update": {name: round(value, 2) for name, value in gflop.items()}, **found}


def windows(repeats: int, seconds: float, quick: bool) -> dict[str, Any]:
    """Compare drawing windows."""
    data = episodes()
    shard, source = filled(data), PerSample(data)
    torch.set_num_threads(1)
    done = alternate(
        {
            "ours": Windows(lambda: feed(shard.sample(PER_DRAW, BATCH), "cpu"), PER_DRAW * BATCH),
            "per_sample": Windows(lambda: source.batch(BATCH), BATCH),
        },
        repeats,
        seconds,
    )
    rates = {name: statistics.median(s.env_steps_per_s for s in some) for name, some in done.items()}
    pairs = zip(done["ours"], done["per_sample"], strict=True)
    return {
        "windows_per_s": {name: round(rate) for name, rate in rates.items()},
        "ratio": round(statistics.median(a.env_steps_per_s / b.env_steps_per_s for a, b in pairs), 1),
        "stretches": {name: [round(s.env_steps_per_s) for s in some] for name, some in done.items()},
    }


SECTIONS: dict[str, Callable[[int, float, bool], dict[str, Any]]] = {"updates": updates, "windows": windows}


def main() -> None:
    given = asked(__doc__, list(SECTIONS), seconds=3.0, quick_s=0.1)
    if "updates" in given.sections:
        require("transformers", "pip install transformers")
    packages = ["torch", "numpy", *(["transformers"] if "updates" in given.sections else [])]
    result = {**machine("sequence", packages), **given.facts()}
    result["sections"] = {
        name: SECTIONS[name](given.repeats, given.seconds, given.quick) for name in given.sections
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
