"""The toys are small but real: each learns what only its kind of batch can teach."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from seqrl_ray.algorithms import make_algorithm, settings_class
from seqrl_ray.types import ActInput, ActionSpec, ArraySpec, GroupSpec, Slot, WindowTensors

STEPS = 4


def group_of(slots: int) -> GroupSpec:
    return GroupSpec(
        "shared",
        tuple(Slot(env=i, agent="agent", obs_size=2, num_actions=2) for i in range(slots)),
        ArraySpec((2,), "float32"),
        ActionSpec("discrete", n=2),
    )


def play(
    algorithm: Any, cue: np.ndarray[Any, Any], params: dict[str, Any], mode: Any, rng: Any
) -> dict[str, Any]:
    """The memory toy: the cue shows at the first step only; the last action earns 1 if it repeats it."""
    slots = len(cue)
    state = algorithm.initial_state(slots)
    rows: dict[str, list[Any]] = {"obs": [], "action": [], "reward": []}
    first_extras: dict[str, Any] = {}
    action, reward = np.zeros(slots, np.int64), np.zeros(slots, np.float32)
    for step in range(STEPS):
        obs = np.zeros((slots, 2), np.float32)
        obs[:, 0] = np.where(step == 0, 2.0 * cue - 1.0, 0.0)
        obs[:, 1] = step == STEPS - 1
        inputs = ActInput(obs, action, reward, np.full(slots, step == 0), None, params, rng)
        action, state, extras = algorithm.act(inputs, state, mode)
        first_extras = first_extras or dict(extras)
        reward = ((action == cue) & (step == STEPS - 1)).astype(np.float32)
        for name, value in (("obs", obs), ("action", action), ("reward", reward)):
            rows[name].append(value)
    return {**{name: np.stack(v, 1) for name, v in rows.items()}, "extras": first_extras}


def window(rows: dict[str, Any], returns: bool) -> WindowTensors[torch.Tensor]:
    """One minibatch of whole episodes."""
    b = len(rows["obs"])
    last = np.tile(np.arange(STEPS) == STEPS - 1, (b, 1))
    ones = np.ones((b, STEPS), bool)
    to_go = np.flip(np.flip(rows["reward"], 1).cumsum(1), 1).astype(np.float32).copy()
    columns: dict[str, Any] = {
        "obs": rows["obs"],
        "action": rows["action"],
        "reward": rows["reward"],
        "terminated": last,
        "truncated": ~ones,
        "valid": ones,
        "learn": ones,
        "timestep": np.tile(np.arange(STEPS), (b, 1)),
        "is_first": np.tile(np.arange(STEPS) == 0, (b, 1)),
        "next_obs": np.zeros((b, 2), np.float32),
        "weight": np.ones(b, np.float32),
    }
    tensors = {name: torch.from_numpy(value)[None] for name, value in columns.items()}
    return WindowTensors(
        **tensors,
        return_to_go=torch.from_numpy(to_go)[None] if returns else None,
        extra={name: torch.from_numpy(value)[None] for name, value in rows["extras"].items()},
    )


def test_the_recurrent_toy_remembers_a_cue() -> None:
    settings = settings_class("toy_recurrent")(
        window_steps=STEPS, period_steps=STEPS, units=16, learning_rate=0.01
    )
    algorithm: Any = make_algorithm("toy_recurrent", settings, group_of(32))
    rng = np.random.default_rng(0)
    for i in range(250):
        cue = rng.integers(0, 2, 32)
        params = {"epsilon": np.full(32, max(0.1, 1.0 - i / 100), np.float32)}
        algorithm.update(
            window(play(algorithm, cue, params, "explore", rng), returns=False), algorithm.hparams(0.0)
        )
    cue = np.array([0, 1] * 16)
    assert play(algorithm, cue, {}, "greedy", rng)["reward"][:, -1].tolist() == [1.0] * 32
    blind = play(algorithm, cue * 0, {}, "greedy", rng)["action"][:, -1]
    assert (blind == 0).all()  # it is the cue that decides, not a habit


def test_the_window_toy_does_what_it_is_asked_for() -> None:
    """Trained on random play only: asked for 1 it repeats the cue, asked for 0 it avoids it."""
    settings = settings_class("toy_window")(window_steps=STEPS, learning_rate=0.01)
    algorithm: Any = make_algorithm("toy_window", settings, group_of(64))
    player: Any = make_algorithm("random", settings_class("random")(), group_of(64))
    rng = np.random.default_rng(0)
    for _ in range(150):
        rows = play(player, rng.integers(0, 2, 64), {}, "explore", rng)
        algorithm.update(window(rows, returns=True), algorithm.hparams(0.0))
    cue = np.array([0, 1] * 32)
    for asked in (0.0, 1.0):
        params = {"target_return": np.full(64, asked, np.float32)}
        assert play(algorithm, cue, params, "greedy", rng)["reward"][:, -1].tolist() == [asked] * 64


def test_burn_in_warms_the_state_and_teaches_nothing() -> None:
    settings = settings_class("toy_recurrent")(window_steps=STEPS, period_steps=STEPS, burn_in_steps=2)
    algorithm: Any = make_algorithm("toy_recurrent", settings, group_of(8))
    rng = np.random.default_rng(1)
    params = {"epsilon": np.ones(8, np.float32)}
    batch = window(play(algorithm, rng.integers(0, 2, 8), params, "explore", rng), returns=False)
    batch = replace(batch, learn=batch.learn & (torch.arange(STEPS) >= 2))
    one, two = (make_algorithm("toy_recurrent", settings, group_of(8)) for _ in range(2))
    loud = replace(batch, reward=torch.where(batch.learn, batch.reward, 100.0))
    quiet, noisy = one.update(batch, one.hparams(0.0)), two.update(loud, two.hparams(0.0))
    np.testing.assert_array_equal(quiet.priorities, noisy.priorities)
    np.testing.assert_array_equal(one.weights(), two.weights())
    other = make_algorithm("toy_recurrent", settings, group_of(8))
    changed = batch.obs.clone()
    changed[:, :, 0] += 1.0
    seen = other.update(replace(batch, obs=changed), other.hparams(0.0))
    assert (seen.priorities != quiet.priorities).any()


def test_burn_in_carries_no_gradient() -> None:
    """The step taken is that of the learned half alone, started from the warmed-up state."""
    long = settings_class("toy_recurrent")(window_steps=STEPS, period_steps=STEPS, burn_in_steps=2)
    short = settings_class("toy_recurrent")(window_steps=2, period_steps=2)
    whole: Any = make_algorithm("toy_recurrent", long, group_of(8))
    half: Any = make_algorithm("toy_recurrent", short, group_of(8))
    rng = np.random.default_rng(2)
    params = {"epsilon": np.ones(8, np.float32)}
    batch = window(play(whole, rng.integers(0, 2, 8), params, "explore", rng), returns=False)
    state = batch.extra["recurrent_state"][0]
    with torch.no_grad():
        for k in range(2):
            _, state = whole.network(batch.obs[0, :, k], state)
    stepwise = {name: v[:, :, 2:] for name, v in vars(batch).items() if torch.is_tensor(v) and v.dim() > 2}
    stepwise["next_obs"] = batch.next_obs
    cut = replace(batch, **stepwise, extra={"recurrent_state": state[None]})
    start = whole.weights()
    whole.update(replace(batch, learn=batch.learn & (torch.arange(STEPS) >= 2)), whole.hparams(0.0))
    half.update(cut, half.hparams(0.0))
    np.testing.assert_allclose(whole.learned()["first_moment"], half.learned()["first_moment"], atol=1e-7)
    np.testing.assert_allclose(whole.weights(), half.weights(), atol=1e-6)
    assert np.abs(whole.weights() - start).max() > 1e-4


def test_a_full_context_forgets_its_oldest_step() -> None:
    settings = settings_class("toy_window")(window_steps=2)
    algorithm: Any = make_algorithm("toy_window", settings, group_of(1))
    state = algorithm.initial_state(1)
    used, wanted, newest = [], [], []
    for step in range(4):
        inputs = ActInput(
            obs=np.full((1, 2), step, np.float32),
            prev_action=np.ones(1, np.int64),
            prev_reward=np.full(1, 0.25, np.float32),
            is_first=np.array([step in (0, 3)]),
            legal=None,
            slot_params={"target_return": np.ones(1, np.float32)},
            rng=np.random.default_rng(0),
        )
        _, state, _ = algorithm.act(inputs, state, "greedy")
        used.append(int(state["used"][0]))
        wanted.append(float(state["wanted"][0]))
        newest.append(state["token"][0].tolist())
    assert used == [1, 2, 2, 1]
    assert wanted == [1.0, 0.75, 0.5, 1.0]
    # token: return still wanted, two features, one-hot of the action before
    assert newest[1] == [[1.0, 0.0, 0.0, 0.0, 0.0], [0.75, 1.0, 1.0, 0.0, 1.0]]
    assert newest[2] == [[0.75, 1.0, 1.0, 0.0, 0.0], [0.5, 2.0, 2.0, 0.0, 1.0]]
    assert newest[3] == [[1.0, 3.0, 3.0, 0.0, 0.0], [0.0] * 5]
