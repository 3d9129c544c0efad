"""From a request's JSON to arrays that a policy can act on; whatever does not fit is refused in one line.

Observations come as the policy sees them: [rows, *policy_obs], frames stacked by the client (oldest first,
zeros before an episode's first). A row whose agent is named may be as long as that agent's own observation;
padding and the agent's one-hot are put in, as the environment's door does. Numbers outside the environment's
bounds are let through, as the environment itself could send them; NaN and infinity are not.

Dims: S rows of a request, D features, A actions.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from seqrl_ray.envs.grouping import agents_of, blank_rows, own_actions
from seqrl_ray.errors import did_you_mean
from seqrl_ray.serving.refusals import NOT_FOUND, Refused
from seqrl_ray.types import ActionSpec, Array, ArraySpec, BoolArray, FloatArray, GroupSpec

MAX_SESSION_NAME = 128
KEYS = ("policy", "obs", "agent", "legal", "explore")
SESSION_KEYS = ("session", "is_first", "reward", "prev_action", "target_return", "end")
"""What only a policy that keeps a state between decisions is told."""


@dataclass(frozen=True)
class Shape:
    """What one policy takes and gives."""

    group: GroupSpec
    """Of one environment copy."""
    stateful: bool
    """It keeps a state between decisions, so it is asked in sessions."""
    target_return: float | None = None
    """The return it aims at unless told otherwise; None: it cannot be told."""


@dataclass(frozen=True)
class Ask:
    """One request, checked."""

    policy_id: str
    obs: Array  # [S, *policy_obs]
    legal: BoolArray | None  # [S, A]
    explore: bool = False
    session: str | None = None
    is_first: BoolArray | None = None  # [S]
    reward: FloatArray | None = None  # [S] float32
    prev_action: Array | None = None  # [S] or [S, *action]
    target_return: FloatArray | None = None  # [S] float32
    end: bool = False
    """The session is not needed any more after this."""

    @property
    def rows(self) -> int:
        """S."""
        return len(self.obs)


def parse(body: bytes, shapes: Mapping[str, Shape], *, max_rows: int, explore: bool) -> Ask:
    """Read a request.

    Args:
        body: JSON.
        shapes: policy id -> what it takes.
        max_rows: rows at most.
        explore: exploring actions may be asked for.
    Raises: Refused: with the first thing that does not fit.
    """
    given = _object(body)
    known = (*KEYS, *SESSION_KEYS)
    for name in given:
        if name not in known:
            raise Refused(
                f"{_shown(name)} is not a key.{did_you_mean(name, known)} Known: {', '.join(known)}."
            )
    policy_id = _policy_id(given, shapes)
    shape = shapes[policy_id]
    if not shape.stateful and (extra := [name for name in SESSION_KEYS if name in given]):
        raise Refused(
            f"{extra[0]} is given, and policy {policy_id!r} keeps nothing between two requests: leave it out."
        )
    wanted = _flag(given, "explore")
    if wanted and not explore:
        raise Refused("explore=true is not offered here: the service was started without it. Leave it out.")
    if "obs" not in given:
        raise Refused("obs is missing: send a list of observations, one per row.")
    rows = _length(given["obs"], "obs", max_rows)
    agents = _agents(given, shape.group, rows)
    obs = _obs(given["obs"], shape.group, agents)
    legal = _legal(given.get("legal"), shape.group, agents, rows)
    ask = Ask(policy_id, obs, legal, wanted)
    return ask if not shape.stateful else _in_session(ask, given, shape)


def _object(body: bytes) -> dict[str, Any]:
    try:
        given = json.loads(body)
    except (ValueError, RecursionError) as error:
        text = (
            "it is nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
        )
        raise Refused(f"the body is no JSON: {text[:200]}. Send one JSON object.") from None
    if not isinstance(given, dict):
        raise Refused(f'the body is {_kind(given)}, not an object: send {{"obs": [...]}}.')
    return given


def _policy_id(given: Mapping[str, Any], shapes: Mapping[str, Shape]) -> str:
    if "policy" not in given:
        if len(shapes) > 1:
            raise Refused(f"policy is missing, and there are several: send one of {', '.join(shapes)}.")
        return next(iter(shapes))
    name = given["policy"]
    if not isinstance(name, str) or name not in shapes:
        close = did_you_mean(name, shapes) if isinstance(name, str) else ""
        raise Refused(
            f"policy={_shown(name)} is not served here.{close} Served: {', '.join(shapes)}.", NOT_FOUND
        )
    return name


def _in_session(ask: Ask, given: Mapping[str, Any], shape: Shape) -> Ask:
    session = given.get("session")
    if not isinstance(session, str) or not 0 < len(session) <= MAX_SESSION_NAME:
        raise Refused(
            f"session={_shown(session)}: policy {ask.policy_id!r} acts on what it has seen, so each episode "
            f"needs a session: a name of 1 to {MAX_SESSION_NAME} characters."
        )
    rows = ask.rows
    first = given.get("is_first", False)
    is_first = np.full(rows, first) if isinstance(first, bool) else _flags(first, "is_first", (rows,))
    reward = prev_action = target = None
    if "reward" in given:
        reward = _floats(given["reward"], "reward", (rows,))
    elif not is_first.all():
        raise Refused(
            "reward is missing: send what the last action of each row earned (0 where is_first), the policy "
            "acts on it."
        )
    if "prev_action" in given:
        prev_action = _actions(given["prev_action"], shape.group.action, rows)
    if "target_return" in given:
        if shape.target_return is None:
            raise Refused(f"target_return is given, and policy {ask.policy_id!r} takes none: leave it out.")
        wanted = given["target_return"]
        single = isinstance(wanted, int | float) and not isinstance(wanted, bool)
        target = _floats([wanted] * rows if single else wanted, "target_return", (rows,))
        if not is_first.all():
            raise Refused("target_return is given in mid-episode: it counts where is_first. Leave it out.")
    return Ask(
        ask.policy_id,
        ask.obs,
        ask.legal,
        ask.explore,
        session=session,
        is_first=is_first,
        reward=reward,
        prev_action=prev_action,
        target_return=target,
        end=_flag(given, "end"),
    )


# ---------------------------------------------------------------------------------------------------- arrays


def _agents(given: Mapping[str, Any], group: GroupSpec, rows: int) -> list[int] | None:
    """Return each row's place among the group's agents, None if no agent is named."""
    if "agent" not in given:
        return None
    names, known = given["agent"], agents_of(group)
    if not isinstance(names, list) or len(names) != rows:
        raise Refused(f"agent must be a list of {rows} names, one per row of obs.")
    for name in names:
        if not isinstance(name, str) or name not in known:
            close = did_you_mean(name, known) if isinstance(name, str) else ""
            raise Refused(
                f"agent={_shown(name)} is not of policy {group.policy_id!r}.{close} GET /spec lists them."
            )
    return [known.index(name) for name in names]


def _obs(given: list[Any], group: GroupSpec, agents: Sequence[int] | None) -> Array:
    seen = group.policy_obs
    if agents is None or len(seen.shape) != 1:
        return _numbers(given, "obs", (len(given), *seen.shape), seen)
    rows = blank_rows(group)[list(agents)]  # [S, D]
    for i, (row, agent) in enumerate(zip(given, agents, strict=True)):
        size = group.slots[agent].obs_size
        whole = isinstance(row, list) and len(row) == seen.size
        filled = _numbers(row, f"obs[{i}]", (seen.size if whole else size,), seen)
        rows[i, : filled.size] = filled
    return rows


def _legal(given: Any, group: GroupSpec, agents: Sequence[int] | None, rows: int) -> BoolArray | None:
    if not group.masked:
        if given is not None:
            raise Refused(f"legal is given, and policy {group.policy_id!r} may always take every action.")
        return None
    count = group.action.n
    if given is None:
        raise Refused(
            f"legal is missing: policy {group.policy_id!r} may not take every action at all times. Send "
            f"{count} booleans per row."
        )
    if agents is None:
        legal = _flags(given, "legal", (rows, count))
    else:
        own = own_actions(group)[list(agents)]  # [S, A]
        legal = np.zeros((rows, count), np.bool_)
        _length(given, "legal", rows, exactly=True)
        for i, row in enumerate(given):
            size = len(row) if isinstance(row, list) else 0
            legal[i, :size] = _flags(row, f"legal[{i}]", (count if size == count else int(own[i].sum()),))
        legal &= own
    if not legal.any(1).all():
        raise Refused(f"legal[{int(np.argmin(legal.any(1)))}] allows no action: the policy has to take one.")
    return legal


def _actions(given: Any, spec: ActionSpec, rows: int) -> Array:
    if spec.kind == "box":
        return _floats(given, "prev_action", (rows, *spec.shape))
    actions = _numbers(given, "prev_action", (rows,), ArraySpec((), "int64"))
    if not ((actions >= 0) & (actions < spec.n)).all():
        raise Refused(f"prev_action is not in [0, {spec.n}): there is no such action.")
    return actions


def _floats(given: Any, name: str, shape: tuple[int, ...]) -> FloatArray:
    return _numbers(given, name, shape, ArraySpec((), "float32"))


def _flags(given: Any, name: str, shape: tuple[int, ...]) -> BoolArray:
    """Return an array of booleans, also from 0 and 1."""
    raw = _raw(given, name, shape)
    if raw.dtype.kind not in "bi" or not ((raw == 0) | (raw == 1)).all():
        raise Refused(f"{name} must hold booleans, true or false.")
    return raw.astype(np.bool_)


def _numbers(given: Any, name: str, shape: tuple[int, ...], spec: ArraySpec) -> Array:
    """Return an array of this shape and of the dtype of `spec`."""
    raw, dtype = _raw(given, name, shape), np.dtype(spec.dtype)
    if raw.dtype.kind not in "iuf":
        raise Refused(f"{name} must hold numbers.")
    if dtype.kind == "f":
        with np.errstate(over="ignore"):
            array = raw.astype(dtype)
        if not np.isfinite(array).all():
            raise Refused(f"{name} holds NaN, infinity, or a number too large for {dtype.name}.")
        return array
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    if raw.dtype.kind != "i" or not ((raw >= low) & (raw <= high)).all():
        raise Refused(f"{name} must hold whole numbers in [{low}, {high}].")
    return raw.astype(dtype)


def _raw(given: Any, name: str, shape: tuple[int, ...]) -> Array:
    """Return what is given as an array of this shape; its dtype says what it was."""
    wanted = f"{name} must have the shape {list(shape)}"
    if not isinstance(given, list):
        raise Refused(f"{wanted}, and is {_kind(given)}.")
    try:
        array = np.asarray(given)
    except (ValueError, OverflowError):  # rows of different lengths
        raise Refused(f"{wanted}, and its rows are of different lengths.") from None
    if array.shape != shape:
        raise Refused(f"{wanted}, and has {list(array.shape)}.")
    if array.size == 0:
        array = array.astype(np.int64)
    return array


def _length(given: Any, name: str, most: int, *, exactly: bool = False) -> int:
    """Return the number of rows of a list."""
    if not isinstance(given, list) or not given:
        raise Refused(f"{name} must be a list of at least one row, and is {_kind(given)}.")
    if len(given) > most or (exactly and len(given) != most):
        rule = f"{most} rows are wanted" if exactly else f"a request may have {most}"
        raise Refused(f"{name} has {len(given)} rows, and {rule}.")
    return len(given)


def _flag(given: Mapping[str, Any], name: str) -> bool:
    value = given.get(name, False)
    if not isinstance(value, bool):
        raise Refused(f"{name}={_shown(value)} must be true or false.")
    return value


def _kind(value: Any) -> str:
    """Return what a JSON value is, in words."""
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    names = {dict: "an object", str: "a text", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(value), "null")


def _shown(value: Any) -> str:
    """Return a value as a message may show it: short, on one line, plain ASCII."""
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
