"""What `elastic_dt` makes of returns, its losses by hand, and contexts that travel."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from seqrl_ray.algorithms import make_algorithm, settings_class
from seqrl_ray.algorithms.elastic_dt import ElasticDt
from seqrl_ray.loops import checkpoints
from seqrl_ray.types import ActInput, ActionSpec, ArraySpec, DataFacts, GroupSpec, Slot, WindowTensors

K, S = 6, 4
DISCRETE = GroupSpec(
    "shared",
    tuple(Slot(i, "agent", 3, 2) for i in range(S)),
    ArraySpec((3,), "float32"),
    ActionSpec("discrete", n=2),
)
BOX = replace(DISCRETE, action=ActionSpec("box", shape=(2,), low=(-1.0, 0.0), high=(1.0, 4.0)))


def build(group: GroupSpec = DISCRETE, seed: int = 0, **settings: Any) -> ElasticDt:
    keys = {"units": 16, "layers": 2, "heads": 2, "window_steps": K, "return_bins": 10, **settings}
    algorithm = make_algorithm("elastic_dt", settings_class("elastic_dt")(**keys), group, seed=seed)
    assert isinstance(algorithm, ElasticDt)
    return algorithm


def facts(low: float, high: float) -> DataFacts:
    return DataFacts(np.array([1.0, 0.0, 2.0]), np.array([2.0, 0.0, 0.5]), low, high)


def windows(batch: int, steps: int, group: GroupSpec = DISCRETE, seed: int = 0) -> WindowTensors[Tensor]:
    rng = np.random.default_rng(seed)
    box = group.action.kind == "box"
    action = rng.uniform(0, 1, (batch, steps, 2)) if box else rng.integers(0, 2, (batch, steps))
    valid = torch.ones(batch, steps, dtype=torch.bool)
    return WindowTensors(
        obs=torch.from_numpy(rng.normal(size=(batch, steps, 3)).astype(np.float32)),
        action=torch.from_numpy(action.astype(np.float32) if box else action),
        reward=torch.zeros(batch, steps),
        terminated=~valid,
        truncated=~valid,
        valid=valid,
        learn=valid,
        timestep=torch.arange(steps).expand(batch, steps),
        is_first=~valid,
        next_obs=torch.zeros(batch, 3),
        return_to_go=torch.from_numpy(rng.uniform(-2, 6, (batch, steps)).astype(np.float32)),
        weight=torch.ones(batch),
    )


# ---------------------------------------------------------------------------------------------------- returns


@pytest.mark.parametrize(
    ("low", "high", "target", "ends"),
    [(3.0, 4.0, 4.0, (0.0, 4.0)), (-9.0, -5.0, 0.0, (-9.0, 0.0)), (-2.0, 6.0, 8.0, (-2.0, 8.0))],
)
def test_returns_are_shares_of_a_range_that_holds_the_data_zero_and_the_target(
    low: float, high: float, target: float, ends: tuple[float, float]
) -> None:
    algorithm = build(target_return=target)
    algorithm.prepare(facts(low, high))
    at = torch.tensor([*ends, sum(ends) / 2])
    torch.testing.assert_close(algorithm.scaled_return(at), torch.tensor([0.0, 1.0, 0.5]))
    middles = algorithm.network.middle(torch.arange(10))
    earned = ends[0] + middles * (ends[1] - ends[0])  # decoded, then encoded again
    again = (algorithm.scaled_return(earned) * 10).long()
    assert torch.equal(again, torch.arange(10))


def test_without_data_the_target_is_the_range_and_without_a_target_the_unit() -> None:
    assert build(target_return=5.0).scaled_return(torch.tensor([0.0, 5.0])).tolist() == [0.0, 1.0]
    assert build().scaled_return(torch.tensor([0.0, 1.0])).tolist() == [0.0, 1.0]


# ---------------------------------------------------------------------------------------------------- losses


def expectile_by_bisection(values: np.ndarray[Any, Any], tau: float) -> float:
    low, high = float(values.min()), float(values.max())
    for _ in range(60):
        guess = (low + high) / 2
        pull = np.where(values > guess, tau * (values - guess), (1 - tau) * (values - guess)).sum()
        low, high = (guess, high) if pull > 0 else (low, guess)
    return low


@pytest.mark.parametrize("tau", [0.5, 0.9, 0.99])
def test_the_expectile_s_loss_is_least_at_the_expectile(tau: float) -> None:
    algorithm, batch = build(expectile=tau, target_return=1.0), windows(1, 200)
    assert batch.return_to_go is not None
    values = batch.return_to_go[0].numpy().astype(np.float64)
    best = expectile_by_bisection(values, tau)
    assert (abs(best - values.mean()) < 1e-6) == (tau == 0.5) and best < values.max()

    def loss(guess: float) -> float:
        def network(*inputs: Any) -> Any:
            return algorithm.network(*inputs)._replace(best_return=torch.full((1, 200), guess))

        return float(algorithm.loss(network, network, batch).metrics["expectile_loss"])

    at = [loss(best + step) for step in (-0.3, -0.03, 0.0, 0.03, 0.3)]
    assert min(at) == at[2] and at[0] > at[1] and at[4] > at[3]


@pytest.mark.parametrize("group", [DISCRETE, BOX], ids=["discrete", "box"])
@torch.no_grad()
def test_the_loss_is_the_weighted_sum_of_its_parts_by_hand(group: GroupSpec) -> None:
    weights = {"next_obs_weight": 0.7, "expectile_weight": 0.4, "return_weight": 0.2}
    algorithm, batch = build(group, **weights), windows(3, K, group)
    algorithm.prepare(facts(-2.0, 6.0))
    length = torch.tensor([6, 4, 1])
    valid = torch.arange(K) < length[:, None]
    batch = replace(batch, valid=valid, learn=valid)
    terms = algorithm.loss(algorithm.network, algorithm.network, batch)
    assert batch.return_to_go is not None
    share = (batch.return_to_go + 2.0) / 8.0
    obs = (batch.obs - torch.tensor([1.0, 0.0, 2.0])) / torch.tensor([2.0, 1.0, 0.5])
    action = batch.action
    if group is BOX:
        action = (action - torch.tensor([0.0, 2.0])) / torch.tensor([1.0, 2.0])
    sums = dict.fromkeys(terms.metrics, 0.0)
    for row in range(3):
        n = int(length[row])
        told = algorithm.network(
            share[row : row + 1, :n],
            obs[row : row + 1, :n],
            action[row : row + 1, :n],
            batch.timestep[row : row + 1, :n],
        )
        for k in range(n):
            score = told.action[0, k]
            own = (
                (torch.tanh(score) - action[row, k]).square().mean()
                if group is BOX
                else -functional.log_softmax(score, 0)[action[row, k]]
            )
            short = share[row, k] - told.best_return[0, k]
            place = min(max(int(share[row, k] * 10), 0), 9)
            parts = {
                "action_loss": float(own),
                "expectile_loss": float((0.99 if short > 0 else 0.01) * short**2),
                "return_loss": float(-functional.log_softmax(told.return_logits[0, k], 0)[place]),
                "next_obs_loss": float(told.surprise[0, k]) if k + 1 < n else 0.0,
            }
            total = parts["action_loss"] + 0.4 * parts["expectile_loss"] + 0.2 * parts["return_loss"]
            assert float(terms.loss[row, k]) == pytest.approx(total + 0.7 * parts["next_obs_loss"], rel=1e-4)
            sums = {name: sums[name] + part for name, part in parts.items()}
    assert {n: float(v) for n, v in terms.metrics.items()} == pytest.approx(
        {name: value / 11 for name, value in sums.items()}, rel=1e-4
    )


# ---------------------------------------------------------------------------------------------------- acting


def play(algorithm: ElasticDt, state: Any, steps: range, order: Any = slice(None)) -> tuple[list[Any], Any]:
    """Act through `steps`; slot i begins anew at step 3 i."""
    actions = []
    for step in steps:
        rng = np.random.default_rng(step)
        first = np.array([step == 3 * i for i in range(S)]) | (step == 0)
        inputs = ActInput(
            obs=rng.normal(size=(S, 3)).astype(np.float32)[order],
            prev_action=np.where(first, 0, rng.integers(0, 2, S))[order],
            prev_reward=np.where(first, 0, rng.normal(size=S)).astype(np.float32)[order],
            is_first=first[order],
            legal=None,
            slot_params=algorithm.slot_params(0.0, np.arange(S), S),
            rng=rng,
        )
        action, state, _ = algorithm.act(inputs, state, "greedy")
        actions.append(action)
    return actions, state


def test_slots_may_be_shuffled_through_whole_episodes() -> None:
    algorithm, order = build(), np.array([2, 0, 3, 1])
    plain, _ = play(algorithm, algorithm.initial_state(S), range(14))
    moved, _ = play(algorithm, algorithm.initial_state(S), range(14), order)
    np.testing.assert_array_equal(np.array(plain)[:, order], np.array(moved))
    assert len(np.unique(plain)) == 2


def test_a_context_goes_through_a_checkpoint(tmp_path: Any) -> None:
    algorithm = build()
    _, state = play(algorithm, algorithm.initial_state(S), range(5))
    folder = checkpoints.save(tmp_path, "000001-000000000000", {"rollouts": {"state": state}}, 1)
    loaded = checkpoints.load(folder, "rollouts")["state"]
    expected, _ = play(algorithm, state, range(5, 12))
    found, _ = play(algorithm, loaded, range(5, 12))
    np.testing.assert_array_equal(expected, found)


def test_the_data_s_range_travels_with_the_weights() -> None:
    maker, taker = build(target_return=1.0), build(seed=1, target_return=1.0)
    maker.prepare(facts(-3.0, 5.0))
    taker.load_weights(maker.weights())
    at = torch.tensor([-3.0, 5.0])
    assert taker.scaled_return(at).tolist() == [0.0, 1.0]
    again = build(seed=2, target_return=1.0)
    again.load_learned(maker.learned())
    assert again.scaled_return(at).tolist() == [0.0, 1.0]
    np.testing.assert_array_equal(again.facts["obs_std"], maker.facts["obs_std"])


def test_exploring_draws_returns_and_greedy_does_not() -> None:
    algorithm = build(BOX, expert_bias=0.0)

    def acts(mode: Any, seed: int) -> Any:
        inputs = ActInput(
            obs=np.zeros((S, 3), np.float32),
            prev_action=np.zeros((S, 2), np.float32),
            prev_reward=np.zeros(S, np.float32),
            is_first=np.ones(S, bool),
            legal=None,
            slot_params=algorithm.slot_params(0.0, np.arange(S), S),
            rng=np.random.default_rng(seed),
        )
        return algorithm.act(inputs, algorithm.initial_state(S), mode)[0]

    assert np.array_equal(acts("greedy", 0), acts("greedy", 1))
    assert not np.array_equal(acts("explore", 0), acts("explore", 1))
    low, high = [-1.0, 0.0], [1.0, 4.0]
    assert (acts("explore", 2) >= low).all() and (acts("explore", 2) <= high).all()
