"""What `behavior_cloning` makes of actions, by hand: losses, masks, standardised observations."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from seqrl_ray.algorithms import make_algorithm, settings_class
from seqrl_ray.algorithms.behavior_cloning import BehaviorCloning
from seqrl_ray.errors import RecipeError
from seqrl_ray.types import ActInput, ActionSpec, ArraySpec, DataFacts, GroupSpec, Slot, TransitionTensors

B = 6
DISCRETE = GroupSpec(
    "shared",
    tuple(Slot(i, "agent", 3, 3) for i in range(2)),
    ArraySpec((3,), "float32"),
    ActionSpec("discrete", n=3),
)
BOX = replace(DISCRETE, action=ActionSpec("box", shape=(2,), low=(-1.0, 0.0), high=(1.0, 4.0)))
FACTS = DataFacts(np.array([1.0, 0.0, 2.0]), np.array([2.0, 1e-6, 0.5]), 0.0, 1.0)


def build(group: GroupSpec, seed: int = 0, **settings: Any) -> BehaviorCloning:
    keys = {"hidden": (16,), "warmup_updates": 0, **settings}
    algorithm = make_algorithm(
        "behavior_cloning", settings_class("behavior_cloning")(**keys), group, seed=seed
    )
    assert isinstance(algorithm, BehaviorCloning)
    return algorithm


def rows(action: Tensor, obs: Tensor, legal: Tensor | None = None) -> TransitionTensors[Tensor]:
    unread = torch.full((len(obs),), torch.nan)
    return TransitionTensors(obs, action, unread, unread, obs * torch.nan, torch.ones(len(obs)), legal)


def seen_by(algorithm: BehaviorCloning, obs: Tensor) -> ActInput:
    first, none = np.ones(len(obs), np.bool_), np.zeros(len(obs), np.float32)
    rng = np.random.default_rng(0)
    return ActInput(obs.numpy(), np.zeros(len(obs), np.int64), none, first, None, {}, rng)


def test_the_loss_of_continuous_actions_is_that_of_their_place_between_the_bounds() -> None:
    algorithm = build(BOX, normalise_obs=False)
    obs = torch.randn(B, 3, generator=torch.Generator().manual_seed(0))
    action = torch.tensor([[-1.0, 0.0], [1.0, 4.0], [0.0, 2.0], [0.5, 1.0], [0.0, 0.0], [1.0, 2.0]])
    place = torch.tensor([[-1.0, -1.0], [1.0, 1.0], [0.0, 0.0], [0.5, -0.5], [0.0, -1.0], [1.0, 0.0]])
    terms = algorithm.loss(algorithm.network, algorithm.network, rows(action, obs))
    said = torch.tanh(algorithm.network(obs))
    torch.testing.assert_close(terms.loss, ((said - place) ** 2).mean(1))
    taken, _, _ = algorithm.act(seen_by(algorithm, obs), None, "explore")  # a mean: nothing is drawn
    np.testing.assert_allclose(taken, said.detach().numpy() * [1.0, 2.0] + [0.0, 2.0], rtol=1e-5)


def test_the_loss_of_discrete_actions_is_their_surprise_among_the_legal_ones() -> None:
    algorithm = build(DISCRETE, normalise_obs=False)
    obs = torch.randn(2, 3, generator=torch.Generator().manual_seed(1))
    legal = torch.tensor([[True, False, True], [False, True, False]])
    terms = algorithm.loss(algorithm.network, algorithm.network, rows(torch.tensor([2, 1]), obs, legal))
    score = algorithm.network(obs).double().exp()
    wanted = -(score[0, 2] / (score[0, 0] + score[0, 2])).log()
    torch.testing.assert_close(terms.loss.double(), torch.stack([wanted, wanted * 0.0]), atol=1e-6, rtol=1e-5)


def test_observations_are_standardised_by_the_data_also_where_only_weights_arrive() -> None:
    plain, facts = build(BOX, normalise_obs=False), build(BOX)
    facts.prepare(FACTS)
    obs = torch.tensor([[3.0, 0.25, 1.0], [1.0, 0.0, 2.0]])
    standard = torch.tensor([[1.0, 0.25, -2.0], [0.0, 0.0, 0.0]])  # a constant feature is only shifted
    torch.testing.assert_close(facts.standardised(obs), standard)
    assert plain.standardised(obs) is obs
    actor = build(BOX, seed=5)
    actor.load_weights(facts.weights())
    wanted = facts.act(seen_by(facts, obs), None, "greedy")[0]
    np.testing.assert_array_equal(actor.act(seen_by(actor, obs), None, "greedy")[0], wanted)
    np.testing.assert_allclose(plain.act(seen_by(plain, standard), None, "greedy")[0], wanted, rtol=1e-5)


def test_a_rule_is_imitated() -> None:
    """The largest of three numbers: what the data do, the policy does, on observations it never saw."""
    algorithm = build(DISCRETE, hidden=(64,), learning_rate=0.01, max_grad_norm=0.0)
    obs = torch.randn(400, 64, 3, generator=torch.Generator().manual_seed(2))
    unread, weight = torch.zeros(400, 64), torch.ones(400, 64)
    batch = TransitionTensors(obs, obs.argmax(-1), unread, unread, obs, weight)
    algorithm.update(batch, algorithm.hparams(0.0))
    fresh = torch.randn(500, 3, generator=torch.Generator().manual_seed(3))
    taken, _, _ = algorithm.act(seen_by(algorithm, fresh), None, "greedy")
    assert (taken == fresh.argmax(-1).numpy()).mean() > 0.95


def test_actions_without_bounds_are_refused() -> None:
    endless = ActionSpec("box", shape=(2,), low=(-1.0, -np.inf), high=(1.0, 4.0))
    with pytest.raises(RecipeError, match="the environment's actions have no bounds"):
        build(replace(BOX, action=endless))
