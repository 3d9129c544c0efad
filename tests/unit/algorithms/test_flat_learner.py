"""The shared learner: Adam as torch computes it, schedules by hand, one vector behind all parameters."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conftest import transitions
from torch import nn

from seqrl_ray.algorithms.flat_learner import Optimiser, change, flatten, unbind
from seqrl_ray.errors import CheckpointError, DivergedError
from seqrl_ray.losses.reduce import weighted_mean

Build = Callable[..., Any]


def optimiser(**changes: Any) -> Optimiser:
    keys = {
        "learning_rate": 0.01,
        "lr_decay_start": 0.5,
        "lr_end_fraction": 0.1,
        "adam_eps": 1e-8,
        "max_grad_norm": 0.0,
        "target_tau": 0.0,
        "target_period_updates": 0,
    }
    return Optimiser(**{**keys, **changes})


@pytest.mark.parametrize(
    ("progress", "rate"), [(0.0, 0.01), (0.5, 0.01), (0.75, 0.0055), (1.0, 0.001), (1.7, 0.001)]
)
def test_the_rate_is_constant_and_then_falls_linearly(progress: float, rate: float) -> None:
    assert optimiser().rate(progress) == pytest.approx(rate)


def test_the_rate_never_falls_if_the_decay_starts_at_the_end() -> None:
    assert optimiser(lr_decay_start=1.0).rate(1.0) == 0.01


def test_the_target_is_copied_every_period_or_blended_every_time() -> None:
    assert [optimiser(target_period_updates=3).target_share(u) for u in range(1, 8)] == [0, 0, 1, 0, 0, 1, 0]
    assert [optimiser(target_tau=0.2).target_share(u) for u in (1, 2)] == [0.2, 0.2]


@pytest.mark.parametrize("share", [0.05, 0.25])
def test_averaged_weights_are_as_old_as_was_asked_for(share: float) -> None:
    rule, updates = optimiser(average_share=share), 2_000
    parts = np.zeros(updates + 1)
    for update in range(1, updates + 1):
        parts *= 1.0 - rule.average_rate(update)
        parts[update] = rule.average_rate(update)
    assert parts.sum() == pytest.approx(1.0) and parts[0] == 0.0  # of the random beginning nothing is left
    assert (parts * (updates - np.arange(updates + 1))).sum() == pytest.approx(share * updates, rel=0.01)


def test_an_algorithm_is_judged_with_its_average_and_acts_with_its_last(learner: Build) -> None:
    averaged, plain, stepped = learner(average_share=0.25), learner(), learner(average_share=0.25)
    batch, hparams = transitions(12, 8), {"learning_rate": 0.01}
    averaged.update(batch, hparams)
    plain.update(batch, hparams)
    np.testing.assert_array_equal(averaged.weights(), plain.weights())
    expected = np.zeros_like(plain.weights())
    for update, minibatch in enumerate(unbind(batch, 12), 1):
        stepped.update(change(minibatch, lambda column: column[None]), hparams)
        rate = averaged.optimiser.average_rate(update)
        expected += rate * (stepped.weights() - expected)
    np.testing.assert_array_equal(stepped.judged_weights(), averaged.judged_weights())
    np.testing.assert_allclose(averaged.judged_weights(), expected, rtol=0.0, atol=1e-6)
    assert np.abs(averaged.judged_weights() - plain.weights()).max() > 1e-3
    np.testing.assert_array_equal(plain.judged_weights(), plain.weights())
    again = learner(average_share=0.25, seed=5)
    again.load_learned(averaged.learned())
    np.testing.assert_array_equal(again.judged_weights(), averaged.judged_weights())
    assert "average" not in plain.learned()


def test_an_average_begins_anew_with_what_is_averaged(learner: Build) -> None:
    """After a population's "anew" the random beginning must not be most of it."""
    taker, batch, hparams = learner(average_share=0.25), transitions(20, 8), {"learning_rate": 0.01}
    taker.update(batch, hparams)
    taker.load_learned(learner(average_share=0.25, seed=5).learned())
    fresh = learner(average_share=0.25, seed=5)
    for algorithm in (taker, fresh):
        algorithm.update(batch, hparams)
    np.testing.assert_array_equal(taker.judged_weights(), fresh.judged_weights())


def test_a_slow_copy_is_kept_only_where_settings_ask_for_one(learner: Build) -> None:
    with_one, without = learner("double_dqn"), learner("behavior_cloning")
    assert with_one.target_network is not with_one.network and "target" in with_one.learned()
    assert without.target_network is without.network
    before, batch = without.learned(), transitions(2, 8)
    assert set(before) == {
        *("online", "first_moment", "second_moment", "adam_steps"),
        *("obs_mean", "obs_std", "return_range"),
    }
    without.update(batch, {"learning_rate": 0.01})
    after = without.learned()
    assert (after["online"] != before["online"]).any()
    other = learner("behavior_cloning", seed=5)
    other.load_learned(after)
    other.load_private(without.private())
    for algorithm in (without, other):
        algorithm.update(batch, {"learning_rate": 0.01})
    np.testing.assert_array_equal(other.learned()["online"], without.learned()["online"])


def test_flatten_makes_every_parameter_a_view() -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
    before = copy.deepcopy(network)
    flat = flatten(network)
    assert flat.shape == (2 * 3 + 3 + 3 + 3,)
    inputs = torch.randn(4, 2)
    torch.testing.assert_close(network(inputs), before(inputs))
    flat.zero_()
    assert all((p == 0).all() for p in network.parameters())


def test_a_network_with_buffers_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^network has buffers \['1.running_mean', "):
        flatten(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)))


def test_learning_that_diverged_stops_with_a_message(learner: Build) -> None:
    algorithm = learner()
    batch = transitions(3, 4)
    batch.reward_t[1, 2] = float("inf")
    with pytest.raises(DivergedError, match=r"^policies.shared: an error is not finite after 3 updates"):
        algorithm.update(batch, {"learning_rate": 0.01})


@pytest.mark.parametrize("max_grad_norm", [0.0, 0.05])
def test_forty_updates_equal_torch_adam_with_clipping_and_blending(
    learner: Build, max_grad_norm: float
) -> None:
    algorithm = learner(max_grad_norm=max_grad_norm, target_tau=0.05, learning_rate=0.01)
    online, target = copy.deepcopy(algorithm.network), copy.deepcopy(algorithm.target_network)
    adam = torch.optim.Adam(online.parameters(), lr=0.01)
    batch = transitions(40, 16)
    update = algorithm.update(batch, {"learning_rate": 0.01})
    norms = []
    for minibatch in unbind(batch, 40):
        terms = algorithm.loss(online, target, minibatch)
        adam.zero_grad()
        weighted_mean(terms.loss, terms.weight).backward()
        limit = max_grad_norm or float("inf")
        norms.append(torch.nn.utils.clip_grad_norm_(online.parameters(), limit).item())
        adam.step()
        with torch.no_grad():
            for slow, fast in zip(target.parameters(), online.parameters(), strict=True):
                slow.mul_(0.95).add_(fast, alpha=0.05)
    for ours, theirs in ((algorithm.network, online), (algorithm.target_network, target)):
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=0.0, atol=1e-6)
    assert update.metrics["grad_norm"] == pytest.approx(np.mean(norms), rel=1e-4)
    assert max_grad_norm == 0.0 or min(norms) > max_grad_norm  # the clip did something


def test_the_target_follows_a_period_that_falls_inside_a_call(learner: Build) -> None:
    algorithm = learner(target_tau=0.0, target_period_updates=3)
    start = algorithm.weights()
    batch = transitions(5, 8)
    algorithm.update(unbatched(batch, slice(0, 2)), {"learning_rate": 0.01})
    np.testing.assert_array_equal(algorithm.learned()["target"], start)
    algorithm.update(unbatched(batch, slice(2, 3)), {"learning_rate": 0.01})
    third = algorithm.weights()
    np.testing.assert_array_equal(algorithm.learned()["target"], third)
    algorithm.update(unbatched(batch, slice(3, 5)), {"learning_rate": 0.01})
    np.testing.assert_array_equal(algorithm.learned()["target"], third)
    assert (algorithm.weights() != third).any()


@pytest.mark.parametrize(
    "rule",
    [{"target_tau": 0.03}, {"target_tau": 0.0, "target_period_updates": 2}, {"average_share": 0.2}],
)
def test_the_pure_steps_equal_the_eager_update_bit_for_bit(learner: Build, rule: dict[str, Any]) -> None:
    eager, pure = learner(**rule), learner(**rule)
    batch = transitions(5, 8, masked=True)
    update = eager.update(batch, {"learning_rate": 0.003})
    before = pure.learned()
    rows = pure._scalars(5, 0.003)
    progress = pure.steps(pure.state, unbind(batch, 5), rows, pure.gradients)
    after = progress.state._asdict()
    for name in set(before) - {"adam_steps"}:
        np.testing.assert_array_equal(after[name].numpy(), eager.learned()[name], err_msg=name)
        np.testing.assert_array_equal(before[name], pure.learned()[name])  # nothing was changed in place
    np.testing.assert_array_equal(progress.priorities.numpy(), update.priorities)


def test_sums_of_two_half_batches_make_the_step_of_the_whole(learner: Build) -> None:
    algorithm = learner()
    (whole,) = unbind(transitions(1, 12), 1)
    halves = [
        type(whole)(**{k: None if v is None else v[s] for k, v in vars(whole).items() if k != "extra"})
        for s in (slice(0, 4), slice(4, 12))
    ]
    one = algorithm.gradients(*algorithm.state[:2], whole)
    two = [algorithm.gradients(*algorithm.state[:2], half) for half in halves]
    torch.testing.assert_close(one.total, two[0].total + two[1].total, rtol=1e-5, atol=1e-6)
    assert [g.elements.item() for g in (one, *two)] == [12.0, 4.0, 8.0]
    torch.testing.assert_close(one.priorities, torch.cat([g.priorities for g in two]))


def test_a_vector_of_another_network_is_refused_by_name(learner: Build) -> None:
    small, large = learner(hidden=(8,)), learner(hidden=(9,))
    with pytest.raises(CheckpointError) as error:
        small.load_learned(large.learned())
    assert str(error.value) == (
        "online has shape (56,), this network has (50,): they belong to another network. "
        "Load them into the recipe they were made with."
    )


def unbatched(batch: Any, some: slice) -> Any:
    columns = {k: None if v is None else v[some] for k, v in vars(batch).items() if k != "extra"}
    return type(batch)(**columns)


def test_the_schedule_reaches_the_hyper_parameters_in_force(learner: Build) -> None:
    algorithm = learner(learning_rate=0.01, lr_decay_start=0.5, lr_end_fraction=0.0, gamma=0.9)
    assert algorithm.hparams(0.5) == {"learning_rate": 0.01, "gamma": 0.9}
    assert algorithm.hparams(0.75) == {"learning_rate": pytest.approx(0.005), "gamma": 0.9}
