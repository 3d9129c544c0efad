"""What sharing a batch costs: two learners that have half of every batch each, against one that has it whole.

    python benchmarks/learners.py                       # all sections, one JSON line at the end
    python benchmarks/learners.py --section image       # small | image | transformer
    python benchmarks/learners.py --quick               # a smoke test: nothing to quote

small        DQN, 64-64 on 4 features, batches of 32: the all-reduce costs as much as the update
image        DQN, Nature's network on 84x84x4, batches of 64
transformer  Decision Transformer, 3 layers of 128, windows of 20, batches of 64

Each learner is a process with one torch thread; gradients travel over gloo on the loopback interface, in one
all-reduce per update. Batches are made up, and are there already: replay, actors and Ray have no part in it.
`collective_ms` is what an update spends in the all-reduce, waiting for the other learner included; the parts
of a batch do not take exactly as long, and on a busy machine that wait is most of it. At best two learners do
twice the updates of one; with equal networks on the same cores they can not do better than that.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"

import json
import multiprocessing
import statistics
import time
from typing import Any

import numpy as np
import torch
from harness import asked, machine

from seqrl_ray.algorithms import make_algorithm, settings_class
from seqrl_ray.runtime.collective import Collective, find_store, open_store
from seqrl_ray.types import ActionSpec, ArraySpec, GroupSpec, Slot, TransitionTensors, WindowTensors

UPDATES_PER_CALL = 4
WARM_CALLS = 5
SECTIONS = {
    "small": ("double_dqn", 32),
    "image": ("double_dqn", 64),
    "transformer": ("decision_transformer", 64),
}
"""Name -> algorithm, batch."""
WINDOW = 20


def algorithm_of(section: str) -> Any:
    name, _ = SECTIONS[section]
    obs = ArraySpec((84, 84, 4), "uint8") if section == "image" else ArraySpec((4,), "float32")
    group = GroupSpec("shared", (Slot(0, "agent", obs.size, 4),), obs, ActionSpec("discrete", n=4))
    keys: dict[str, Any] = {"hidden": (64, 64)} if section == "small" else {}
    if section == "transformer":
        keys = {"units": 128, "layers": 3, "heads": 1, "window_steps": WINDOW}
    return make_algorithm(name, settings_class(name)(**keys), group, seed=0)


def batch_of(section: str, rows: int) -> Any:
    """U made-up minibatches of so many rows."""
    rng, u = np.random.default_rng(0), UPDATES_PER_CALL
    lead = (u, rows, WINDOW) if section == "transformer" else (u, rows)

    def floats(*shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.standard_normal((*lead, *shape), np.float32))

    def obs() -> torch.Tensor:
        if section == "image":
            return torch.from_numpy(rng.integers(0, 256, (*lead, 84, 84, 4), np.uint8))
        return floats(4)

    action = torch.from_numpy(rng.integers(0, 4, lead))
    if section != "transformer":
        discount, weight = torch.full(lead, 0.99), torch.ones(lead)
        return TransitionTensors(obs(), action, floats(), discount, obs(), weight)
    yes, no = torch.ones(lead, dtype=torch.bool), torch.zeros(lead, dtype=torch.bool)
    step = torch.arange(WINDOW).expand(lead)
    return WindowTensors(
        obs(),
        action,
        floats(),
        no,
        no,
        yes,
        yes,
        step,
        step == 0,
        floats(4)[:, :, 0],
        floats(),
        torch.ones(u, rows),
    )


def work(rank: int, pipe: Any, ports: Any) -> None:
    """Do what the pipe says: ("alone" | "together", section, calls) -> (seconds, seconds in collectives)."""
    torch.set_num_threads(1)
    if rank == 0:
        store = open_store("127.0.0.1")
        ports.put(store.port)
    else:
        store = find_store("127.0.0.1", ports.get())
    collective = Collective(store, rank, 2)
    made: dict[tuple[str, str], tuple[Any, Any]] = {}
    while (asked_for := pipe.recv()) is not None:
        how, section, calls = asked_for
        if (how, section) not in made:
            rows = SECTIONS[section][1] // (2 if how == "together" else 1)
            made[how, section] = algorithm_of(section), batch_of(section, rows)
            if how == "together":
                made[how, section][0].add_up = collective.add_up
        algorithm, batch = made[how, section]
        before, began = collective.seconds, time.perf_counter()
        for _ in range(calls):
            algorithm.update(batch, algorithm.hparams(0.0))
        pipe.send((time.perf_counter() - began, collective.seconds - before))


def run(pipes: list[Any], how: str, section: str, calls: int) -> dict[str, float]:
    """One stretch, as the learner saw it who leads."""
    told = pipes if how == "together" else pipes[:1]
    for pipe in told:
        pipe.send((how, section, calls))
    (seconds, collective_s), *_ = [pipe.recv() for pipe in told]
    updates = calls * UPDATES_PER_CALL
    return {
        "updates_per_s": updates / seconds,
        "update_ms": 1e3 * seconds / updates,
        "collective_ms": 1e3 * collective_s / updates,
    }


def compare(pipes: list[Any], section: str, repeats: int, seconds: float) -> dict[str, Any]:
    """Let one and two learners take turns."""
    names = {"one": "alone", "two": "together"}
    calls, done = {}, {name: [] for name in names}
    for name, how in names.items():
        run(pipes, how, section, 1)
        rate = run(pipes, how, section, WARM_CALLS)["updates_per_s"]
        calls[name] = max(1, int(rate * seconds / UPDATES_PER_CALL))
    for repeat in range(repeats):
        for name in list(names) if repeat % 2 == 0 else reversed(list(names)):
            done[name].append(run(pipes, names[name], section, calls[name]))
    found: dict[str, Any] = {
        name: {k: round(statistics.median(s[k] for s in stretches), 3) for k in stretches[0]}
        for name, stretches in done.items()
    }
    pairs = zip(done["two"], done["one"], strict=True)
    ratio = statistics.median(a["updates_per_s"] / b["updates_per_s"] for a, b in pairs)
    parameters = algorithm_of(section).weights().size
    return {
        "parameters": parameters,
        "batch": SECTIONS[section][1],
        "contestants": found,
        "ratios": {"two/one": round(ratio, 3)},
        "stretches": done,
    }


def main() -> None:
    given = asked(__doc__, list(SECTIONS), seconds=4.0, quick_s=0.5)
    result = {**machine("learners", ["torch", "numpy"]), **given.facts()}
    spawn = multiprocessing.get_context("spawn")
    ports, ends = spawn.Queue(), [spawn.Pipe() for _ in range(2)]
    group = [spawn.Process(target=work, args=(rank, end, ports)) for rank, (_, end) in enumerate(ends)]
    pipes = [own for own, _ in ends]
    for process in group:
        process.start()
    try:
        result["sections"] = {
            name: compare(pipes, name, given.repeats, given.seconds) for name in given.sections
        }
    finally:
        for pipe, process in zip(pipes, group, strict=True):
            pipe.send(None)
            process.join(10.0)
            process.kill()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
