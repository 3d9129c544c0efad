"""What an algorithm is handed: n-step transitions or windows of K decisions, read from stored rows by index.

N-step return (Sutton & Barto 2018, eq. 7.1): R = sum_{i<m} gamma^i r_{t+i}, bootstrapped with gamma^m at the
row m steps on, m = min(n, steps to the stream's end); a termination among them sets the discount to 0, a
truncation does not. A final row links to itself, earns 0 and has factor 1, so the walk needs no test for the
end. Only what is stored leaves: padding is 0 / False, frames before an episode's first are 0.

Dims: U updates, B batch, M = U*B items, K window steps, F stacked frames, A actions.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from seqrl_ray.replay.columns import FINAL, TERMINATED, TRUNCATED
from seqrl_ray.replay.store import Store
from seqrl_ray.types import Array, ItemIds, SampleSpec, Transitions, Windows

Int64Array = NDArray[np.int64]
Float64Array = NDArray[np.float64]
Float32Array = NDArray[np.float32]


def transitions(
    store: Store,
    spec: SampleSpec,
    rows: Int64Array,
    probability: Float64Array,
    weight: Float32Array,
    ids: ItemIds,
) -> Transitions:
    """Read n-step transitions.

    Args:
        store: where the rows are.
        spec: n_step, gamma, extra columns.
        rows: [M] live items.
        probability: [U, B] float64.
        weight: [U, B] float32.
        ids: names of the items.
    """
    lead = probability.shape
    columns = store.columns
    factor = _step_factor(spec.gamma)
    reward = columns["reward"].take(rows)  # [M]
    discount = factor.take(store.flags.take(rows))  # [M]
    after = store.next_row.take(rows)  # [M]
    for _ in range(spec.n_step - 1):
        reward += discount * columns["reward"].take(after)
        discount *= factor.take(store.flags.take(after))
        after = store.next_row.take(after)
    legal_tm1 = legal_t = None
    if "legal" in columns:
        legal_tm1 = _rows_of(columns["legal"], rows, lead)
        legal_t = _rows_of(columns["legal"], after, lead)
    return Transitions(
        obs_tm1=_observations(store, rows, lead),
        action_tm1=_rows_of(columns["action"], rows, lead),
        reward_t=reward.reshape(lead),
        discount_t=discount.reshape(lead),
        obs_t=_observations(store, after, lead),
        probability=probability,
        weight=weight,
        weights_counter=columns["weights_counter"].take(rows).astype(np.int64).reshape(lead),
        ids=ids,
        legal_tm1=legal_tm1,
        legal_t=legal_t,
        extra={extra.name: _rows_of(columns[extra.name], rows, lead) for extra in spec.extra},
    )


def windows(
    store: Store,
    spec: SampleSpec,
    rows: Int64Array,
    probability: Float64Array,
    weight: Float32Array,
    ids: ItemIds,
) -> Windows:
    """Read windows of K decisions, padded on the right. Arguments as for `transitions`."""
    lead = probability.shape
    columns, steps = store.columns, spec.window_steps
    index: Int64Array = np.empty((rows.size, steps), np.int64)  # [M, K]
    at = rows
    for k in range(steps):
        index[:, k] = at
        at = store.next_row.take(at)
    flags = store.flags.take(index)  # [M, K]
    valid = flags != FINAL
    shape = (*lead, steps)
    padding = None if valid.all() else ~valid.reshape(shape)

    def read(name: str) -> Array:
        return _blank(_rows_of(columns[name], index.reshape(-1), shape), padding)

    legal = next_legal = None
    if "legal" in columns:
        legal, next_legal = read("legal"), _rows_of(columns["legal"], at, lead)
    offset = store.offset.take(index).reshape(shape).astype(np.int64)
    learn = valid.reshape(shape).copy()
    learn[..., : spec.burn_in_steps] = False
    return Windows(
        obs=_blank(_observations(store, index.reshape(-1), shape), padding),
        action=read("action"),
        reward=read("reward"),
        terminated=(flags & TERMINATED != 0).reshape(shape),  # a final row carries FINAL alone
        truncated=(flags & TRUNCATED != 0).reshape(shape),
        valid=valid.reshape(shape),
        learn=learn,
        timestep=_blank(offset, padding),
        is_first=_blank(offset == 0, padding),
        next_obs=_observations(store, at, lead),
        return_to_go=read("return_to_go") if spec.returns else None,
        probability=probability,
        weight=weight,
        weights_counter=columns["weights_counter"].take(rows).astype(np.int64).reshape(lead),
        ids=ids,
        legal=legal,
        next_legal=next_legal,
        extra={extra.name: _rows_of(columns[extra.name], rows, lead) for extra in spec.extra},
    )


@functools.cache
def _step_factor(gamma: float) -> Float32Array:
    """Discount of a step by its flags: gamma, 0 at a termination, 1 on a final row (the walk stays there)."""
    factor = np.full(FINAL + 1, gamma, np.float32)
    factor[[TERMINATED, TERMINATED | TRUNCATED]] = 0.0
    factor[FINAL] = 1.0
    factor.flags.writeable = False  # shared by all draws
    return factor


def _rows_of(column: Array, rows: Int64Array, lead: tuple[int, ...]) -> Array:
    """Rows of a column, with leading dimensions `lead` in place of one."""
    return column.take(rows, axis=0).reshape(*lead, *column.shape[1:])


def _observations(store: Store, rows: Int64Array, lead: tuple[int, ...]) -> Array:
    """Observations as the policy sees them: [*lead, *obs], or [*lead, F, *obs], oldest frame first."""
    obs, stack = store.columns["obs"], store.group.frame_stack
    if stack == 1:
        return _rows_of(obs, rows, lead)
    index: Int64Array = np.empty((rows.size, stack), np.int64)  # [M, F]
    missing = np.zeros((rows.size, stack), bool)
    index[:, -1] = rows
    for frame in range(stack - 2, -1, -1):
        before = store.prev_row.take(index[:, frame + 1])
        missing[:, frame] = before < 0
        index[:, frame] = np.where(before < 0, index[:, frame + 1], before)
    frames = obs.take(index.reshape(-1), axis=0).reshape(rows.size, stack, *obs.shape[1:])
    if missing.any():
        frames[missing] = 0
    return frames.reshape(*lead, stack, *obs.shape[1:])


def _blank(values: Array, padding: NDArray[np.bool_] | None) -> Array:
    """`values` with 0 / False where `padding` [*lead, K] is true (in place)."""
    if padding is not None:
        values[padding] = 0
    return values
