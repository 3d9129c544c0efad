"""The environment contract as a function: run anyone's environment and say in words what is wrong with it.

Source: ours. Runs, one after the other (a simulator may be one per process): twice with the same seeds and
actions, once with other seeds, and once restored from the open episodes of the first run.

Dims: S slots of a group, A actions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np

from seqrl_ray.envs.contract import Finding, Watch, check_groups
from seqrl_ray.envs.seeds import EpisodeSeeds
from seqrl_ray.types import Array, GroupSpec
from seqrl_ray.types_env import OpenEpisode, SeedStream, Step, VectorEnv, VectorStep

__all__ = ["Finding", "check_env", "random_actions"]


def check_env(make: Callable[[SeedStream], VectorEnv], *, steps: int = 200, seed: int = 0) -> list[Finding]:
    """Run the contract on an environment with random legal actions.

    Args:
        make: makes the environment with the given seeds; called up to four times, each is closed before the
            next.
        steps: vector steps of each run, at least 2; enough for an episode to end, or ends stay unchecked (a
            note says so).
        seed: seeds the seeds and the actions.
    Returns: what was found, errors first; no error means the contract holds as far as these runs can see.
    Raises: whatever the environment raises.
    """
    first = _run(make, EpisodeSeeds(seed, 0), steps, seed, save_at=steps // 2)
    if not first.complete:
        return first.findings
    found = list(first.findings)
    again = _run(make, EpisodeSeeds(seed, 0), steps, seed)
    where = _first_difference(first.trace, again.trace)
    if where is not None:
        found.append(
            Finding(
                "error",
                "seeds",
                f"the same seeds and actions gave another run from step {where} on: results cannot be "
                "repeated. Draw all randomness from the seed given to reset.",
            )
        )
    elif first.saved is not None:
        found += _check_restore(make, first, steps, seed)
    other = _run(make, EpisodeSeeds(seed, 1), steps, seed)
    if where is None and _first_difference(first.trace, other.trace) is None:
        found.append(
            Finding("note", "seeds", "other seeds gave the same run: nothing here is drawn from the seed.")
        )
    if first.ended == 0:
        found.append(
            Finding("note", "episodes", f"no episode ended in {steps} steps: ends are unchecked. Give more.")
        )
    if first.saved is None:
        found.append(Finding("note", "restore", "open episodes cannot be rebuilt: a resume cuts them."))
    return sorted(found, key=lambda finding: finding.level)


def random_actions(
    groups: Mapping[str, GroupSpec], step: VectorStep, rng: np.random.Generator
) -> dict[str, Array]:
    """Draw a legal action for every slot, uniformly: [S] int64, or [S, *action] float32 within finite bounds.

    Where a bound is infinite the draw is standard normal.
    """
    return {policy_id: _random(group, step.groups[policy_id], rng) for policy_id, group in groups.items()}


def _random(group: GroupSpec, step: Step, rng: np.random.Generator) -> Array:
    slots = len(group.slots)
    if group.action.kind == "discrete":
        draw = rng.random((slots, group.action.n))  # [S, A]
        allowed = draw if step.legal is None else np.where(step.legal, draw, -1.0)
        return np.asarray(allowed.argmax(axis=1), np.int64)
    low = np.array(group.action.low, np.float64).reshape(group.action.shape)
    high = np.array(group.action.high, np.float64).reshape(group.action.shape)
    finite = np.isfinite(low) & np.isfinite(high)
    span = np.where(finite, high - low, 0.0)
    uniform = np.where(finite, low, 0.0) + span * rng.random((slots, *group.action.shape))
    return np.where(finite, uniform, rng.standard_normal(uniform.shape)).astype(np.float32)


@dataclass
class _Run:
    """What one run gave."""

    findings: list[Finding] = field(default_factory=list)
    trace: list[list[Array]] = field(default_factory=list)
    """Per step, copies of everything that is defined: see `_defined`."""
    actions: list[dict[str, Array]] = field(default_factory=list)
    complete: bool = False
    ended: int = 0
    saved: tuple[OpenEpisode, ...] | None = None


def _run(
    make: Callable[[SeedStream], VectorEnv],
    seeds: SeedStream,
    steps: int,
    seed: int,
    save_at: int | None = None,
) -> _Run:
    run, rng = _Run(), np.random.default_rng(seed)
    with closing(make(seeds)) as env:
        run.findings += check_groups(env.groups, env.num_envs)
        watch = Watch(env.groups, env.num_envs)
        if run.findings:
            return run
        now = env.reset()
        run.complete = watch.see(now, "reset", 0)
        for tick in range(1, steps + 1):
            if not run.complete:
                break
            run.trace.append(_defined(now))
            run.actions.append(random_actions(env.groups, now, rng))
            now = env.step(run.actions[-1])
            run.complete = watch.see(now, "step", tick)
            if tick == save_at and run.complete:
                run.saved = env.open_episodes()
        if run.complete:
            run.trace.append(_defined(now))
        env.close()  # and once more on leaving: closing twice is part of the contract
    run.findings += watch.found.values()
    run.ended = watch.ended
    return run


def _check_restore(
    make: Callable[[SeedStream], VectorEnv], first: _Run, steps: int, seed: int
) -> list[Finding]:
    """Restore the open episodes of the middle of the first run, and go on with its actions."""
    assert first.saved is not None
    at = steps // 2
    where = None
    with closing(make(EpisodeSeeds(seed, 0))) as env:
        watch = Watch(env.groups, env.num_envs)
        now = env.restore(first.saved)
        if watch.see(now, "restore", at):
            current = _current(now)
            if not _equal(current, first.trace[at][: len(current)]):
                where = at
            for tick in range(at, steps):
                if where is not None:
                    break
                now = env.step(first.actions[tick])
                if not _equal(_defined(now), first.trace[tick + 1]):
                    where = tick + 1
    found = list(watch.found.values())
    if where is not None:
        found.append(
            Finding(
                "error",
                "restore",
                f"restored from its open episodes it goes another way from step {where} on: a resumed run is "
                "not the run it resumes. Make the environment a function of seed and actions, or give None "
                "for open episodes.",
            )
        )
    return found


def _current(now: VectorStep) -> list[Array]:
    """Copies of what the decision to be taken next is made from, where it is defined."""
    parts = []
    for step in now.groups.values():
        active = step.active
        parts += [active.copy(), step.obs[active], step.is_first[active], step.episode_id[active]]
        if step.legal is not None:
            parts.append(step.legal[active])
    return parts


def _defined(now: VectorStep) -> list[Array]:
    """Copies of everything in a step that is defined: first the next decision's part, then the "
    "transition's.
    """
    parts = _current(now)
    for step in now.groups.values():
        valid = step.valid
        parts += [
            valid.copy(),
            step.reward[valid],
            step.terminated[valid],
            step.truncated[valid],
            step.final_obs.copy(),
        ]
    parts += [np.array([end.metrics["return"] for end in now.episodes if "return" in end.metrics])]
    return parts


def _first_difference(one: list[list[Array]], two: list[list[Array]]) -> int | None:
    for tick, (a, b) in enumerate(zip(one, two, strict=False)):
        if not _equal(a, b):
            return tick
    return None if len(one) == len(two) else min(len(one), len(two))


def _equal(one: list[Array], two: list[Array]) -> bool:
    return all(np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in zip(one, two, strict=True))
