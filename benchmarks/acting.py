"""Speed of acting with transformers: all slots and histories in one batch, against one at a time.

    python benchmarks/acting.py                               # both sections, one JSON line at the end
    python benchmarks/acting.py --section elastic_dt --device cuda
    python benchmarks/acting.py --quick                       # a smoke test: nothing to quote

decision_transformer  16 slots in one call, against the same policy called for one slot after the other, and
                      against Hugging Face's DecisionTransformerModel of equal size (other weights) as its
                      example evaluates: one slot at a time, padded to K on the left. With forget_steps = 10,
                      what was read is remembered between decisions: against the same without a memory, and
                      against contexts that are always full.
elastic_dt            the search over histories as one batch, for one slot and for 16, against a loop over
                      slots and histories with two passes each, as the source's code acts; and against a
                      loop that, like ours, takes the second pass for the chosen history only. Neither pads.

A step is one decision of one slot. Every context is full (K = 20), observations are of Hopper's size; the
network is the decision transformer's of Chen et al. for Gym (3 layers of 128), and a small one (2 layers of
64). Ours and our loops are compared before anything is timed: they choose the same actions. One thread.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"

import itertools
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from harness import Stretch, alternate, asked, figures, machine, ratios, require
from numpy.typing import NDArray

from seqrl_ray.algorithms import make_algorithm, settings_class
from seqrl_ray.types import ActInput, ActionSpec, ArraySpec, GroupSpec, Slot

SLOTS, STEPS, OBS, ACTIONS = 16, 20, 11, 3
GROUP = GroupSpec(
    "shared",
    tuple(Slot(i, "agent", OBS, 0) for i in range(SLOTS)),
    ArraySpec((OBS,), "float32"),
    ActionSpec("box", shape=(ACTIONS,), low=(-1.0,) * ACTIONS, high=(1.0,) * ACTIONS),
)
Act = Callable[[Any, ActInput, Any], tuple[NDArray[Any], Any]]


SIZES = {"gym": (128, 3), "small": (64, 2)}
"""Name -> units, layers."""


def policy(name: str, device: str, size: str = "gym", **keys: Any) -> Any:
    units, layers = SIZES[size]
    settings = settings_class(name)(window_steps=STEPS, target_return=1.0, units=units, layers=layers, **keys)
    return make_algorithm(name, settings, GROUP, device=device, seed=0)


def inputs(step: int, slots: slice) -> ActInput:
    """Made-up observations of some slots; each call opens one more's episode, and none ends: so no two slots
    stand at the same decision.
    """
    rng = np.random.default_rng(step)
    obs, action = rng.normal(size=(SLOTS, OBS)), rng.uniform(-1, 1, (SLOTS, ACTIONS))
    count = len(range(SLOTS)[slots])
    return ActInput(
        obs=obs.astype(np.float32)[slots],
        prev_action=action.astype(np.float32)[slots],
        prev_reward=np.full(count, 1e-3, np.float32),
        is_first=np.arange(SLOTS)[slots] == step,
        legal=None,
        slot_params={"target_return": np.ones(count, np.float32)},
        rng=rng,
    )


def whole(algorithm: Any, given: ActInput, state: Any) -> tuple[NDArray[Any], Any]:
    """Act as the library does."""
    action, state, _ = algorithm.act(given, state, "greedy")
    return action, state


class Whole:
    """A network without its memory: reads every context whole."""

    def __init__(self, network: Any) -> None:
        self.network = network

    def __call__(self, *given: Any) -> Any:
        return self.network(*given)


def loop(second_for_all: bool) -> Act:
    """Act with the elastic policy history by history, for a state of one slot."""

    @torch.inference_mode()
    def act(algorithm: Any, given: ActInput, state: Any) -> tuple[NDArray[Any], Any]:
        state, keys, device = algorithm.extend(state, given), algorithm.settings, algorithm.device
        used = int(state.used[0])
        at = [torch.from_numpy(np.ascontiguousarray(column[:, :used])).to(device) for column in state[:4]]
        low, high = min(0.0, keys.target_return), max(0.0, keys.target_return)
        bias = torch.linspace(0.0, keys.expert_bias, keys.return_bins, device=device)

        def again(cut: list[torch.Tensor], heard: Any, newest: torch.Tensor) -> Any:
            place = (heard.return_logits[0, -1] + bias).argmax()
            cut[0] = cut[0].clone()
            cut[0][0, -1] = low + (place + 0.5) / keys.return_bins * (high - low)
            return algorithm.read(algorithm.network, *cut, newest)

        best: tuple[float, Any] = (-np.inf, None)
        for first in sorted({*range(0, used, keys.stride_steps), used - 1}):
            cut = [column[:, first:] for column in at]
            newest = torch.tensor([[used - first - 1]], device=device)
            heard = algorithm.read(algorithm.network, *cut, newest)
            second = again(cut, heard, newest) if second_for_all else (cut, heard, newest)
            judged = float((second if second_for_all else heard).best_return[0, -1])
            if judged > best[0]:
                best = (judged, second)
        told = best[1] if second_for_all else again(*best[1])
        score = told.action[:, -1].cpu().numpy()
        return algorithm.decide(score, given, "greedy"), state

    return act


def hugging_face(device: str, size: str) -> Act:
    """Act with their model for a state of one slot; the context is kept as ours is."""
    from transformers import DecisionTransformerConfig, DecisionTransformerModel

    units, layers = SIZES[size]
    config = DecisionTransformerConfig(
        state_dim=OBS,
        act_dim=ACTIONS,
        max_ep_len=1_000,
        hidden_size=units,
        n_layer=layers,
        n_head=1,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = DecisionTransformerModel(config).to(device).eval()

    @torch.inference_mode()
    def act(algorithm: Any, given: ActInput, state: Any) -> tuple[NDArray[Any], Any]:
        state = algorithm.extend(state, given)
        used = int(state.used[0])
        wanted, obs, action, number = (torch.from_numpy(column[:, :used]).to(device) for column in state[:4])

        def padded(column: torch.Tensor) -> torch.Tensor:
            blank = torch.zeros(1, STEPS - used, *column.shape[2:], dtype=column.dtype, device=device)
            return torch.cat([blank, column], 1)

        said = model(
            states=padded(obs),
            actions=padded(action),
            rewards=torch.zeros(1, STEPS, 1, device=device),
            returns_to_go=padded(wanted)[..., None],
            timesteps=padded(number.clamp(max=999)),
            attention_mask=padded(torch.ones(1, used, device=device)),
        )
        return said.action_preds[:, -1].cpu().numpy(), state

    return act


class Acting:
    """Decisions for slots whose contexts are full."""

    def __init__(self, algorithm: Any, act: Act, groups: list[slice]) -> None:
        self.algorithm, self.act, self.groups = algorithm, act, groups
        self.states = [algorithm.initial_state(len(range(SLOTS)[group])) for group in groups]
        self.steps = itertools.count()
        for _ in range(SLOTS + STEPS + 2):
            self.step()

    def step(self) -> NDArray[Any]:
        """Decide once for every slot."""
        step, actions = next(self.steps), []
        for i, group in enumerate(self.groups):
            action, self.states[i] = self.act(self.algorithm, inputs(step, group), self.states[i])
            actions.append(action)
        return np.concatenate(actions)

    def run(self, seconds: float) -> Stretch:
        done, slots = 0, sum(len(range(SLOTS)[group]) for group in self.groups)
        began = time.perf_counter()
        while (took := time.perf_counter() - began) < seconds:
            self.step()
            done += slots
        return Stretch(done, 0, took)


ALL, EACH, ONE = [slice(None)], [slice(i, i + 1) for i in range(SLOTS)], [slice(0, 1)]


def compare(
    contestants: dict[str, Acting],
    alike: list[tuple[str, str]],
    repeats: int,
    seconds: float,
    other: list[tuple[str, str]],
) -> dict[str, Any]:
    """Time pairs of contestants that act alike, and others."""
    first, pairs = {name: one.step() for name, one in contestants.items()}, alike + other
    for mine, peer in alike:
        np.testing.assert_allclose(first[mine], first[peer], atol=1e-4)
    done = alternate(contestants, repeats, seconds)
    return {
        "env_steps_per_s": {name: figures(stretches)["env_steps_per_s"] for name, stretches in done.items()},
        "stretches": {
            name: [round(s.env_steps_per_s, 1) for s in stretches] for name, stretches in done.items()
        },
        "ratios": {f"{a}/{b}": ratios(done[a], done[b])["env_steps_per_s"] for a, b in pairs},
    }


def decision_transformer(device: str, repeats: int, seconds: float) -> dict[str, Any]:
    """Slots together against slots one by one, and against Hugging Face's."""
    contestants: dict[str, Acting] = {}
    for size in SIZES:
        algorithm = policy("decision_transformer", device, size)
        contestants[f"together_{size}"] = Acting(algorithm, whole, ALL)
        contestants[f"one_by_one_{size}"] = Acting(algorithm, whole, EACH)
        contestants[f"hugging_face_{size}"] = Acting(algorithm, hugging_face(device, size), EACH)
        for kind in ("remembering", "rereading"):
            algorithm = policy("decision_transformer", device, size, forget_steps=STEPS // 2)
            if kind == "rereading":
                algorithm.network = Whole(algorithm.network)
            contestants[f"{kind}_{size}"] = Acting(algorithm, whole, ALL)
    alike = [(f"together_{size}", f"one_by_one_{size}") for size in SIZES]
    alike += [(f"remembering_{size}", f"rereading_{size}") for size in SIZES]
    other = [(f"together_{size}", f"hugging_face_{size}") for size in SIZES]
    other += [(f"remembering_{size}", f"together_{size}") for size in SIZES]
    return compare(contestants, alike, repeats, seconds, other)


def elastic_dt(device: str, repeats: int, seconds: float) -> dict[str, Any]:
    """One batch of slots and histories against loops over both."""
    algorithm = policy("elastic_dt", device)
    contestants = {
        "batch_16": Acting(algorithm, whole, ALL),
        "source_loop_16": Acting(algorithm, loop(True), EACH),
        "short_loop_16": Acting(algorithm, loop(False), EACH),
        "batch_1": Acting(algorithm, whole, ONE),
        "source_loop_1": Acting(algorithm, loop(True), ONE),
        "short_loop_1": Acting(algorithm, loop(False), ONE),
    }
    pairs = [(f"batch_{n}", f"{loop}_loop_{n}") for n in (16, 1) for loop in ("source", "short")]
    return compare(contestants, pairs, repeats, seconds, [])


SECTIONS = {"decision_transformer": decision_transformer, "elastic_dt": elastic_dt}


DEVICE = {"--device": {"default": "cpu", "help": "torch device of the policies"}}


def main() -> None:
    given = asked(__doc__, list(SECTIONS), seconds=2.0, quick_s=0.1, others=DEVICE)
    device = given.others.device
    require("transformers", "pip install transformers")
    torch.set_num_threads(1)
    result = {
        **machine("acting", ["torch", "transformers", "numpy"]),
        "device": device if device == "cpu" else torch.cuda.get_device_name(device),
        **given.facts(),
    }
    result["sections"] = {
        name: SECTIONS[name](device, given.repeats, given.seconds) for name in given.sections
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
