"""The rules every step of a `VectorEnv` keeps, one short function each, and the watch that applies them.

Source: ours (`seqrl_ray.types_env.Step` and `VectorEnv` say the same in prose); the idea, a contract as a
function, is Gymnasium's `check_env`.

Dims: E copies, S slots of a group, A actions, F ended streams.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from seqrl_ray.types import Array, GroupSpec
from seqrl_ray.types_env import Step, VectorStep


@dataclass(frozen=True)
class Finding:
    """One thing the contract says about an environment."""

    level: Literal["error", "note"]
    """An error breaks training; a note is only good to know."""
    rule: str
    message: str


class Watch:
    """Follows one environment through its steps and collects what breaks a rule, each rule once per group."""

    def __init__(self, groups: Mapping[str, GroupSpec], num_envs: int) -> None:
        self._groups, self._num_envs = groups, num_envs
        self._before: dict[str, _Seen] = {}
        self._steps = np.zeros(num_envs, np.int64)  # [E] of the open episodes
        self.found: dict[tuple[str, str], Finding] = {}
        self.ended = 0

    def see(self, now: VectorStep, call: Literal["reset", "restore", "step"], tick: int) -> bool:
        """Check one step.

        Args:
            now: what the call returned.
            call: after "reset" no transition may be reported; after "restore" that part means nothing, the
                transition was delivered before.
            tick: number of the step, for messages.
        Returns: False if the arrays are so wrong that the run cannot go on.
        """
        if set(now.groups) != set(self._groups):
            self._add("groups", "", f"step {tick}: groups {sorted(now.groups)}, not {sorted(self._groups)}")
            return False
        for name, group in self._groups.items():
            step = now.groups[name]
            wrong = list(_shapes(group, step))
            for message in wrong:
                self._add("shapes", name, f"step {tick}: {message}")
            if wrong:
                return False
            before = self._before.get(name) if call == "step" else None
            expected = np.zeros(len(group.slots), np.bool_) if before is None else before.active
            for rule, check in _RULES.items():
                if call == "restore" and rule in ("transitions", "final observations"):
                    continue
                for message in check(group, step, before, expected):
                    self._add(rule, name, f"step {tick}: {message}")
        if call == "step":
            self._check_episodes(now, tick)
        else:
            self._steps[:] = 0
        self._before = {name: _Seen.of(step) for name, step in now.groups.items()}
        return not any(rule == "masks" for rule, _ in self.found)  # else no legal action can be drawn

    def _check_episodes(self, now: VectorStep, tick: int) -> None:
        stepped = np.zeros(self._num_envs, np.bool_)
        open_slots = np.zeros(self._num_envs, np.bool_)
        for name, group in self._groups.items():
            copies = np.array([slot.env for slot in group.slots])
            step = now.groups[name]
            stepped[copies[step.valid]] = True
            open_slots[copies[step.valid & ~(step.terminated | step.truncated)]] = True
        self._steps += stepped
        if now.env_steps != np.count_nonzero(stepped):
            made = np.count_nonzero(stepped)
            self._add("env steps", "", f"step {tick}: env_steps={now.env_steps}, but {made} copies stepped")
        for end in now.episodes:
            self.ended += 1
            if not 0 <= end.env < self._num_envs:
                self._add("episodes", "", f"step {tick}: an episode of copy {end.env} ended: no such copy")
                continue
            if not np.isfinite(end.metrics.get("return", np.nan)):
                self._add("episodes", "", f"step {tick}: an episode ended without a finite metric `return`")
            if end.steps != self._steps[end.env]:
                self._add(
                    "episodes",
                    "",
                    f"step {tick}: an episode of copy {end.env} says steps={end.steps}, counted were "
                    f"{self._steps[end.env]}",
                )
            if open_slots[end.env]:
                self._add(
                    "episodes",
                    "",
                    f"step {tick}: the episode of copy {end.env} ended, but a slot's stream there neither "
                    "terminated nor was truncated: it would run on into the next episode",
                )
            self._steps[end.env] = 0

    def _add(self, rule: str, group: str, message: str) -> None:
        where = f"policy {group!r}, " if group else ""
        self.found.setdefault((rule, group), Finding("error", rule, f"{where}{message}."))


@dataclass(frozen=True)
class _Seen:
    """What the next step is compared with: copies, and the array that must not be overwritten."""

    obs: Array
    obs_copy: Array
    active: Array
    episode_id: Array

    @staticmethod
    def of(step: Step) -> _Seen:
        return _Seen(step.obs, step.obs.copy(), step.active.copy(), step.episode_id.copy())


def check_groups(groups: Mapping[str, GroupSpec], num_envs: int) -> list[Finding]:
    """Check what an environment says about itself before the first step."""
    found = []
    for name, group in groups.items():
        per_copy = np.bincount([slot.env for slot in group.slots], minlength=num_envs)
        if per_copy.size != num_envs or len(set(per_copy.tolist())) != 1:
            found.append(f"policy {name!r}: slots per copy are {per_copy.tolist()}: they must be equal.")
        for slot in group.slots:
            if group.action.kind == "discrete" and not 1 <= slot.num_actions <= group.action.n:
                found.append(
                    f"policy {name!r}: {slot.agent} has num_actions={slot.num_actions}, not within 1 .. "
                    f"{group.action.n}."
                )
            if not 0 <= slot.obs_size <= group.obs.size:
                found.append(
                    f"policy {name!r}: {slot.agent} has obs_size={slot.obs_size}, more than the group's "
                    f"{group.obs.size}."
                )
    return [Finding("error", "groups", message) for message in found]


def _shapes(group: GroupSpec, step: Step) -> Iterator[str]:
    slots, finals = len(group.slots), step.final_slots.shape[0]
    wanted: dict[str, tuple[Array | None, tuple[int, ...], str]] = {
        "obs": (step.obs, (slots, *group.obs.shape), group.obs.dtype),
        "reward": (step.reward, (slots,), "float32"),
        "terminated": (step.terminated, (slots,), "bool"),
        "truncated": (step.truncated, (slots,), "bool"),
        "valid": (step.valid, (slots,), "bool"),
        "active": (step.active, (slots,), "bool"),
        "is_first": (step.is_first, (slots,), "bool"),
        "episode_id": (step.episode_id, (slots,), "int64"),
        "final_slots": (step.final_slots, (finals,), "int64"),
        "final_obs": (step.final_obs, (finals, *group.obs.shape), group.obs.dtype),
    }
    if group.masked:
        wanted["legal"] = (step.legal, (slots, group.action.n), "bool")
    elif step.legal is not None:
        yield "`legal` is given, but the group says masked=False: the mask would be ignored"
    if step.final_legal is not None:
        wanted["final_legal"] = (step.final_legal, (finals, group.action.n), "bool")
    for name, (array, shape, dtype) in wanted.items():
        if array is None:
            yield f"`{name}` is missing, but the group says masked=True"
        elif array.shape != shape or str(array.dtype) != dtype:
            yield f"`{name}` is {array.dtype} {array.shape}, not {dtype} {shape}"


def _values(group: GroupSpec, step: Step, before: _Seen | None, expected: Array) -> Iterator[str]:
    for name, seen in (("obs", step.obs[step.active]), ("final_obs", step.final_obs)):
        if not np.isfinite(seen).all():
            yield f"`{name}` holds NaN or infinity: every network fed with it is lost"
        elif seen.size and not (group.obs.low - 1e-4 <= seen.min() and seen.max() <= group.obs.high + 1e-4):
            yield (
                f"`{name}` spans [{seen.min():g}, {seen.max():g}], outside the declared "
                f"[{group.obs.low:g}, {group.obs.high:g}]"
            )
    if not np.isfinite(step.reward[step.valid]).all():
        yield "`reward` holds NaN or infinity"


def _padding(group: GroupSpec, step: Step, before: _Seen | None, expected: Array) -> Iterator[str]:
    if len(group.obs.shape) != 1:
        return
    widest = max(slot.obs_size for slot in group.slots)
    for number, slot in enumerate(group.slots):
        if step.active[number] and step.obs[number, slot.obs_size : widest].any():
            yield f"{slot.agent} has values in the padding past its {slot.obs_size} features: it must be 0"
            return


def _transitions(group: GroupSpec, step: Step, before: _Seen | None, expected: Array) -> Iterator[str]:
    if (step.valid != expected).any():
        slot = int(np.flatnonzero(step.valid != expected)[0])
        yield (
            f"slot {slot} has valid={bool(step.valid[slot])} but was active={bool(expected[slot])} before: a "
            "transition is made exactly where an action was asked for, and a reset step is never one"
        )
    if (step.terminated & step.truncated).any():
        yield "a slot is both terminated and truncated: whether to bootstrap cannot be known"
    ended = step.terminated | step.truncated
    if (ended & ~step.valid).any():
        yield "a slot ended without a transition"


def _finals(group: GroupSpec, step: Step, before: _Seen | None, expected: Array) -> Iterator[str]:
    ended = np.flatnonzero((step.terminated | step.truncated) & step.valid)
    if not np.array_equal(np.sort(step.final_slots), ended):
        yield (
            f"`final_slots` is {step.final_slots.tolist()}, but the streams of slots {ended.tolist()} ended: "
            "each end needs its final observation"
        )


def _streams(group: GroupSpec, step: Step, before: _Seen | None, expected: Array) -> Iterator[str]:
    if (step.episode_id[step.active] < 0).any():
        yield "an active slot has no `episode_id` (they count from 0)"
    if before is None:
        return
    ended = step.terminated | step.truncated
    goes_on = before.active & ~ended
    if (goes_on & ~step.active).any():
        yield "a slot stopped being active without terminated or truncated: its stream has no end"
    goes_on &= step.active
    if (goes_on & step.is_first).any():
        yield "a slot is `is_first` though its stream did not end: an end was not reported"
    if (goes_on & (step.episode_id != before.episode_id)).any():
        yield "`episode_id` changed within a stream"
    opens = step.active & ~goes_on
    if (opens & ~step.is_first).any():
        yield "a slot acts again after its stream ended, but `is_first` is False: two streams would be one"
    if (opens & (step.episode_id <= before.episode_id)).any():
        yield "a new stream did not raise `episode_id`: it would overwrite the one before"


def _legal(group: GroupSpec, step: Step, before: _Seen | None, expected: Array) -> Iterator[str]:
    if step.legal is None:
        return
    if not step.legal[step.active].any(axis=1).all():
        yield "an active slot has no legal action"
    counts = np.array([slot.num_actions for slot in group.slots])
    if (step.legal & (np.arange(group.action.n) >= counts[:, None])).any():
        yield "`legal` allows an action that is padding"


def _lifetime(group: GroupSpec, step: Step, before: _Seen | None, expected: Array) -> Iterator[str]:
    if before is not None and before.obs.tobytes() != before.obs_copy.tobytes():
        yield "the `obs` of the step before was overwritten: it must stay untouched during one more step"


_RULES: Mapping[str, Callable[[GroupSpec, Step, _Seen | None, Array], Iterator[str]]] = {
    "values": _values,
    "padding": _padding,
    "transitions": _transitions,
    "final observations": _finals,
    "streams": _streams,
    "masks": _legal,
    "lifetime": _lifetime,
}
