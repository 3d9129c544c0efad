"""The Online Decision Transformer: LAMB by the paper's equations, the temperature, and what must not mix."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from seqrl_ray.algorithms import make_algorithm, settings_class
from seqrl_ray.algorithms.flat_learner import change, unbind
from seqrl_ray.algorithms.online_dt import OnlineDt
from seqrl_ray.algorithms.online_dt_settings import OnlineDtSettings
from seqrl_ray.loops.feed import feed
from seqrl_ray.types import Array, DataFacts

sys.path.insert(0, str(Path(__file__).parents[2] / "contract"))
from algorithm_cases import GROUPS, act_input, make_batch

SMALL: dict[str, Any] = {
    "units": 16, "layers": 1, "heads": 2, "window_steps": 6, "acting_steps": 3, "warmup_updates": 0
}  # fmt: skip


def build(group: str = "box", **keys: Any) -> OnlineDt:
    algorithm = make_algorithm("online_dt", OnlineDtSettings(**{**SMALL, **keys}), GROUPS[group], seed=4)
    assert isinstance(algorithm, OnlineDt)
    return algorithm


def slow_lamb(weights: list[Array], gradients: list[list[Array]], rate: float, decay: float) -> list[Array]:
    """Algorithm 2 of arXiv:1904.00962 with bias correction, tensor by tensor, in float64."""
    weights = [w.astype(np.float64) for w in weights]
    m, v = [np.zeros_like(w) for w in weights], [np.zeros_like(w) for w in weights]
    for t, step in enumerate(gradients, 1):
        norm = math.sqrt(sum(float((g.astype(np.float64) ** 2).sum()) for g in step))
        for i, g in enumerate(step):
            g = g.astype(np.float64) * min(1.0, 0.25 / (norm + 1e-6))
            m[i] = 0.9 * m[i] + 0.1 * g
            v[i] = 0.999 * v[i] + 0.001 * g**2
            r = (m[i] / (1 - 0.9**t)) / (np.sqrt(v[i] / (1 - 0.999**t)) + 1e-8) + decay * weights[i]
            size, length = np.linalg.norm(weights[i]), np.linalg.norm(r)
            weights[i] = weights[i] - rate * (size / length if size > 0 and length > 0 else 1.0) * r
    return weights


@pytest.mark.parametrize("decay", [0.0, 5e-4])
def test_lamb_is_the_paper_s(decay: float) -> None:
    algorithm = build(weight_decay=decay, learning_rate=1e-2)
    rng, layout = np.random.default_rng(0), algorithm._layout
    names = [name for name, _, _ in layout]
    before = [v.numpy().copy() for v in algorithm._split(algorithm.state.online).values()]
    state, asked = algorithm.state, []
    for update, row in enumerate(algorithm._scalars(5, 1e-2)):
        scale = 10.0 ** (update - 3)
        step = [rng.normal(size=shape, scale=scale).astype(np.float32) for _, shape, _ in layout]
        asked.append([g for g, name in zip(step, names, strict=True) if name != "log_temperature"])
        flat = torch.from_numpy(np.concatenate([g.ravel() for g in step]))
        state, _ = algorithm.apply(state, flat, row)
    after = [v.numpy() for v in algorithm._split(state.online).values()]
    policy = [i for i, name in enumerate(names) if name != "log_temperature"]
    wanted = slow_lamb([before[i] for i in policy], asked, 1e-2, decay)
    for i, w in zip(policy, wanted, strict=True):
        np.testing.assert_allclose(after[i], w, rtol=2e-5, atol=2e-6, err_msg=names[i])


def test_temperature_is_adam_s_and_the_clip_is_not_its_business() -> None:
    algorithm = build(temperature_rate=1e-2)
    (place,) = [i for i, (name, _, _) in enumerate(algorithm._layout) if name == "log_temperature"]
    gradient = torch.randn_like(algorithm.state.online) * 100.0
    parameter = torch.nn.Parameter(list(algorithm._split(algorithm.state.online).values())[place].clone())
    adam, state = torch.optim.Adam([parameter], lr=1e-2), algorithm.state
    for row in algorithm._scalars(3, 1e-4):
        parameter.grad = list(algorithm._split(gradient).values())[place].clone()
        adam.step()
        state, _ = algorithm.apply(state, gradient, row)
    found = list(algorithm._split(state.online).values())[place]
    torch.testing.assert_close(found, parameter.data, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("group", ["box", "vector"])
@pytest.mark.parametrize("target", [-50.0, 50.0])
def test_temperature_moves_towards_the_wanted_entropy(group: str, target: float) -> None:
    algorithm = build(group, target_entropy_per_dim=target, temperature_rate=1e-2)
    before = algorithm.network.log_temperature.item()
    batch = feed(make_batch(algorithm.sample_spec(), GROUPS[group], seed=1), "cpu")
    found = algorithm.update(batch, algorithm.hparams(0.0))
    assert {"entropy", "temperature", "negative_log_likelihood"} <= set(found.metrics)
    assert (algorithm.network.log_temperature.item() > before) == (target > 0.0)


def test_policy_and_temperature_share_no_gradient() -> None:
    """The policy's gradient does not know the wanted entropy, the temperature's not the likelihood."""
    batch = feed(make_batch(build().sample_spec(), GROUPS["box"], seed=2), "cpu")
    gradients = []
    for target in (-1.0, -9.0):
        algorithm = build(target_entropy_per_dim=target, dropout=0.0)
        drawn = algorithm.drawn(batch)
        minibatch = type(drawn)(
            **{
                name: value
                if value is None
                else {k: v[0] for k, v in value.items()}
                if isinstance(value, dict)
                else value[0]
                for name, value in vars(drawn).items()
            }
        )
        terms = algorithm.loss(algorithm.network, algorithm.network, minibatch)
        names, values = zip(*algorithm.network.named_parameters(), strict=True)
        found = torch.autograd.grad(terms.loss[minibatch.learn].sum(), values)
        gradients.append(dict(zip(names, found, strict=True)))
    for name in gradients[0]:
        same = torch.equal(gradients[0][name], gradients[1][name])
        assert same == (name != "log_temperature"), name


def test_actors_ask_for_more_and_draw_while_the_judge_does_not() -> None:
    algorithm = build(target_return=10.0, online_target_return=20.0)
    group = GROUPS["box"]
    inputs, fresh = act_input(algorithm, group, seed=0), algorithm.initial_state(len(group.slots))
    assert fresh.wanted.shape[1] == 3  # the acting context, shorter than the trained window
    drawn, explored, _ = algorithm.act(inputs, fresh, "explore")
    mean, judged, _ = algorithm.act(inputs, fresh, "greedy")
    assert (explored.wanted[:, 0] == 20.0).all() and (judged.wanted[:, 0] == 10.0).all()
    again, _, _ = algorithm.act(act_input(algorithm, group, seed=0), fresh, "greedy")
    np.testing.assert_array_equal(mean, again)
    assert not np.allclose(drawn, mean)
    low, high = np.array(group.action.low), np.array(group.action.high)
    assert (drawn >= low).all() and (drawn <= high).all()


@pytest.mark.parametrize("group", ["box", "masked"])
def test_a_cold_draw_is_the_likeliest_action_and_a_hot_one_is_not(group: str) -> None:
    actions = {}
    for heat in (1e-6, 1.0, 9.0):
        algorithm = build(group, target_return=1.0, online_target_return=1.0, explore_temperature=heat)
        states = algorithm.initial_state(len(GROUPS[group].slots))
        draws = [
            algorithm.act(act_input(algorithm, GROUPS[group], seed=s), states, "explore")[0] for s in (0, 1)
        ]
        best = [
            algorithm.act(act_input(algorithm, GROUPS[group], seed=s), states, "greedy")[0] for s in (0, 1)
        ]
        actions[heat] = float(np.abs(np.array(draws) - np.array(best)).mean())
    assert actions[1e-6] < 1e-4 < actions[1.0] < actions[9.0]


@pytest.mark.parametrize("group", ["box", "masked"])
def test_so_many_of_the_actors_decisions_are_uniform(group: str) -> None:
    spec, share = GROUPS[group], {}
    for epsilon in (0.0, 0.5, 1.0):
        algorithm = build(group, explore_epsilon=epsilon, explore_temperature=1e-6)
        states = algorithm.initial_state(len(spec.slots))
        inputs = act_input(algorithm, spec, seed=0)
        best, _, _ = algorithm.act(inputs, states, "greedy")
        draws = np.array([algorithm.act(inputs, states, "explore")[0] for _ in range(400)])  # [400, S, ...]
        share[epsilon] = float((np.abs(draws - best).reshape(400, len(spec.slots), -1).max(-1) > 1e-3).mean())
        if inputs.legal is not None:
            assert inputs.legal[np.arange(len(spec.slots)), draws].all()
        elif epsilon == 1.0:
            unit = algorithm.scaled(torch.from_numpy(draws)).numpy()
            assert abs(unit.mean()) < 0.05 and abs(unit.std() - 1 / math.sqrt(3)) < 0.03
    assert share[0.0] == 0.0 and abs(share[0.5] - share[1.0] / 2) < 0.06
    if group == "box":
        assert share[1.0] > 0.99


def test_everything_learned_goes_through_a_checkpoint() -> None:
    a, b = build(), build()
    batch = feed(make_batch(a.sample_spec(), GROUPS["box"], seed=3), "cpu")
    a.update(batch, a.hparams(0.0))
    b.load_learned(a.learned())
    b.load_private(a.private())
    assert a.network.log_temperature.item() == b.network.log_temperature.item() != math.log(0.1)
    np.testing.assert_array_equal(
        a.update(batch, a.hparams(0.0)).priorities, b.update(batch, b.hparams(0.0)).priorities
    )
    np.testing.assert_array_equal(a.weights(), b.weights())


@pytest.mark.parametrize(("quantile", "best"), [(0.4, 0.5), (0.6, 1.5), (0.79, 1.5), (0.9, 2.5), (0.96, 3.5)])
def test_best_return_is_the_highest_that_is_likely_enough(quantile: float, best: float) -> None:
    algorithm = build(return_quantile=0.5, return_bins=4)
    algorithm.facts["return_range"] = np.array([1.0, 4.0], np.float32)  # stretched to hold 0: bins of 1
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]]))
    assert algorithm.best_return(logits, quantile) == pytest.approx([best])


@pytest.mark.parametrize("group", ["box", "vector"])
def test_generated_returns_are_asked_for_and_learned(group: str) -> None:
    algorithm = build(group, return_quantile=0.5, online_return_quantile=0.999, learning_rate=1e-2)
    algorithm.facts["return_range"] = np.array([-3.0, 3.0], np.float32)
    batch = feed(make_batch(algorithm.sample_spec(), GROUPS[group], seed=3), "cpu")
    losses = [algorithm.update(batch, algorithm.hparams(0.0)).metrics["loss"] for _ in range(30)]
    assert losses[-1] < losses[0]
    inputs = act_input(algorithm, GROUPS[group], seed=0)
    fresh = algorithm.initial_state(len(GROUPS[group].slots))
    asked = {mode: algorithm.act(inputs, fresh, mode)[1].wanted[:, 0] for mode in ("greedy", "explore")}
    assert (asked["explore"] >= asked["greedy"]).all() and (asked["explore"] > asked["greedy"]).any()
    assert ((asked["explore"] <= 3.0) & (asked["greedy"] >= -3.0)).all()


@pytest.mark.parametrize("name", ["online_dt", "decision_transformer"])
def test_an_average_of_the_weights_is_judged_and_the_facts_go_with_it(name: str) -> None:
    keys: dict[str, Any] = {"units": 16, "layers": 1, "heads": 2, "window_steps": 6, "dropout": 0.0}
    steps = {"acting_steps": 3} if name == "online_dt" else {}

    def made(share: float) -> Any:
        settings = settings_class(name)(**keys, **steps, average_share=share, warmup_updates=0)
        algorithm = make_algorithm(name, settings, GROUPS["box"], seed=4)
        algorithm.prepare(DataFacts(np.full(4, 3.0, np.float32), np.full(4, 2.0, np.float32), -1.0, 7.0))
        return algorithm

    averaged, plain = made(0.25), made(0.0)
    batch = feed(make_batch(plain.sample_spec(), GROUPS["box"], seed=3), "cpu")
    expected = np.zeros_like(plain.state.online.numpy())
    for update in range(1, 5):  # each of several gradient steps
        for minibatch in unbind(averaged.drawn(batch), len(batch.weight)):
            one = change(minibatch, lambda column: column[None])
            for algorithm in (averaged, plain):
                algorithm.update(one, {"learning_rate": 0.01})
            expected += averaged.optimiser.average_rate(plain.updates) * (
                plain.state.online.numpy() - expected
            )
        assert plain.updates == update * len(batch.weight)
    np.testing.assert_array_equal(averaged.weights(), plain.weights())
    np.testing.assert_array_equal(plain.judged_weights(), plain.weights())
    count = len(expected)
    np.testing.assert_allclose(averaged.judged_weights()[:count], expected, rtol=0.0, atol=1e-6)
    np.testing.assert_array_equal(averaged.judged_weights()[count:], plain.weights()[count:])
    assert np.abs(expected - plain.state.online.numpy()).max() > 1e-3
    judge = made(0.0)
    judge.load_weights(averaged.judged_weights())
    again = made(0.25)
    again.load_learned(averaged.learned())
    np.testing.assert_array_equal(again.judged_weights(), averaged.judged_weights())
