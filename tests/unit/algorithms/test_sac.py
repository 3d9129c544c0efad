"""Soft Actor-Critic against a slow oracle in the paper's notation, values by hand, and a known optimum."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Independent, Normal, TanhTransform, TransformedDistribution

from seqrl_ray.algorithms import compiled, make_algorithm, settings_class
from seqrl_ray.algorithms.flat_learner import unbind
from seqrl_ray.networks.tanh_gaussian import TanhGaussian
from seqrl_ray.types import ActInput, ActionSpec, ArraySpec, GroupSpec, Slot, TransitionTensors

LOW, HIGH = (-1.0, 0.0), (1.0, 5.0)
GROUP = GroupSpec(
    "shared",
    tuple(Slot(env=i, agent="agent", obs_size=3, num_actions=0) for i in range(4)),
    ArraySpec((3,), "float32"),
    ActionSpec("box", shape=(2,), low=LOW, high=HIGH),
)
PARTS = ("policy", "critics", "log_temperature")


def learner(seed: int = 0, **settings: Any) -> Any:
    settings = {"hidden": (16, 16), **settings}
    return make_algorithm("sac", settings_class("sac")(**settings), GROUP, seed=seed)


def batch_of(u: int, b: int, seed: int = 0) -> TransitionTensors[Tensor]:
    rng = np.random.default_rng(seed)

    def tensor(values: Any) -> Tensor:
        return torch.from_numpy(np.asarray(values, np.float32))

    return TransitionTensors(
        obs_tm1=tensor(rng.normal(size=(u, b, 3))),
        action_tm1=tensor(rng.uniform(LOW, HIGH, (u, b, 2))),
        reward_t=tensor(rng.normal(size=(u, b))),
        discount_t=tensor(0.9 * (rng.random((u, b)) < 0.7)),
        obs_t=tensor(rng.normal(size=(u, b, 3))),
        weight=tensor(rng.uniform(0.1, 1.0, (u, b))),
    )


def acted(algorithm: Any, mode: Any, slots: int = 4, random: float = 0.0, seed: int = 0) -> Any:
    inputs = ActInput(
        obs=np.random.default_rng(seed).normal(size=(slots, 3)).astype(np.float32),
        prev_action=np.zeros((slots, 2), np.float32),
        prev_reward=np.zeros(slots, np.float32),
        is_first=np.ones(slots, bool),
        legal=None,
        slot_params={"random": np.full(slots, random, np.float32)},
        rng=np.random.default_rng(seed + 1),
    )
    return algorithm.act(inputs, None, mode)[0]


# ----------------------------------------------------------------------------------------- the equations


def oracle_losses(
    network: Any, slow: Any, row: TransitionTensors[Tensor], target_entropy: float
) -> dict[str, Tensor]:
    """The three objectives of the paper, each on its own, the expectation over the rows weighted."""

    def policy(obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = network("policy", obs)
        normal = Independent(Normal(mean, log_std.exp()), 1)
        squashed = TransformedDistribution(normal, TanhTransform(cache_size=1))
        action = (mean + log_std.exp() * noise).tanh()
        return action, squashed.log_prob(action)

    alpha = network("log_temperature").exp()
    taken = 2.0 * (row.action_tm1 - torch.tensor(LOW)) / (torch.tensor(HIGH) - torch.tensor(LOW)) - 1.0
    next_action, next_log_prob = policy(row.obs_t, row.extra["noise"][:, 1])
    value = torch.min(*slow("critics", row.obs_t, next_action)) - alpha * next_log_prob
    goal = (row.reward_t + row.discount_t * value).detach()
    one, two = network("critics", row.obs_tm1, taken)
    action, log_prob = policy(row.obs_tm1, row.extra["noise"][:, 0])
    q = torch.min(*network("critics", row.obs_tm1, action))
    losses = {
        "critics": 0.5 * (one - goal) ** 2 + 0.5 * (two - goal) ** 2,
        "policy": alpha.detach() * log_prob - q,
        "log_temperature": -alpha * (log_prob.detach() + target_entropy),
    }
    return {name: (row.weight * loss).mean() for name, loss in losses.items()}


def test_five_updates_are_those_of_three_optimisers_on_three_losses() -> None:
    """So no part gets a gradient of another's loss, and only the critics' slow copies are ever read."""
    algorithm = learner(target_tau=0.05, initial_temperature=0.5)
    network, slow = copy.deepcopy(algorithm.network), copy.deepcopy(algorithm.network)
    own = {
        part: [p for name, p in network.named_parameters() if name.split(".")[0] == part] for part in PARTS
    }
    assert sum(map(len, own.values())) == len(list(network.parameters()))
    adam = {part: torch.optim.Adam(own[part], lr=0.01) for part in PARTS}
    batch = algorithm.drawn(batch_of(5, 16))
    algorithm.update(batch, {"learning_rate": 0.01})
    for row in unbind(batch, 5):
        losses = oracle_losses(network, slow, row, target_entropy=-2.0)
        gradients = {part: torch.autograd.grad(losses[part], own[part], retain_graph=True) for part in PARTS}
        for part in PARTS:
            for parameter, gradient in zip(own[part], gradients[part], strict=True):
                parameter.grad = gradient
            adam[part].step()
        with torch.no_grad():
            for old, new in zip(slow.critics.parameters(), network.critics.parameters(), strict=True):
                old.mul_(0.95).add_(new, alpha=0.05)
    for ours, theirs in (
        (algorithm.network, network),
        (algorithm.target_network.critics, slow.critics),
    ):
        for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=0.0, atol=2e-6, msg=name)


@pytest.mark.parametrize("part", PARTS)
def test_each_part_gets_the_gradient_of_its_own_loss_alone(part: str) -> None:
    algorithm = learner(initial_temperature=0.5)
    (row,) = unbind(algorithm.drawn(batch_of(1, 32)), 1)
    found = algorithm.gradients(*algorithm.state[:2], row)
    ours = algorithm._split(found.total / found.elements)
    network, slow = copy.deepcopy(algorithm.network), copy.deepcopy(algorithm.network)
    loss = oracle_losses(network, slow, row, target_entropy=-2.0)[part]
    own = {name: p for name, p in network.named_parameters() if name.split(".")[0] == part}
    for name, gradient in zip(own, torch.autograd.grad(loss, list(own.values())), strict=True):
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-6)
        assert gradient.abs().max() > 0.0


def test_the_loss_of_one_row_by_hand() -> None:
    """A standard normal at its middle has log density -log(2 pi) / 2 per dimension, also after tanh."""
    algorithm = learner(target_entropy_per_dim=-1.5)

    def parts(critics: list[list[float]], fixed: list[list[float]]) -> Callable[..., Any]:
        def part(name: str, *inputs: Tensor) -> Any:
            if name == "policy":
                return TanhGaussian(torch.zeros(1, 2), torch.zeros(1, 2))
            if name == "log_temperature":
                return torch.tensor(0.2).log()
            return torch.tensor(critics if name == "critics" else fixed)

        return part

    row = TransitionTensors(
        obs_tm1=torch.zeros(1, 3),
        action_tm1=torch.zeros(1, 2),
        reward_t=torch.tensor([1.0]),
        discount_t=torch.tensor([0.5]),
        obs_t=torch.zeros(1, 3),
        weight=torch.ones(1),
        extra={"noise": torch.zeros(1, 2, 2)},
    )
    terms = algorithm.loss(parts([[0.0], [1.0]], [[3.0], [2.0]]), parts([[10.0], [4.0]], []), row)
    entropy = math.log(2.0 * math.pi)
    goal = 1.0 + 0.5 * (4.0 + 0.2 * entropy)
    critics = 0.5 * goal**2 + 0.5 * (goal - 1.0) ** 2
    policy = -0.2 * entropy - 2.0
    temperature = 0.2 * (entropy + 3.0)
    assert terms.loss.tolist() == pytest.approx([critics + policy + temperature])
    assert terms.priorities.tolist() == pytest.approx([goal - 0.5])
    assert terms.metrics["entropy"].item() == pytest.approx(entropy)


def test_a_terminated_row_does_not_bootstrap_and_a_cut_one_does() -> None:
    algorithm = learner()
    (row,) = unbind(algorithm.drawn(batch_of(1, 8)), 1)
    ended = replace(row, discount_t=torch.zeros(8))
    other = replace(ended, obs_t=row.obs_t + 1.0)
    online, target = algorithm.network, algorithm.target_network
    assert torch.equal(
        algorithm.loss(online, target, ended).priorities, algorithm.loss(online, target, other).priorities
    )
    cut = algorithm.loss(online, target, replace(row, discount_t=torch.full((8,), 0.9)))
    assert (cut.priorities != algorithm.loss(online, target, ended).priorities).all()


@pytest.mark.parametrize(("target_entropy", "rises"), [(0.6, True), (-6.0, False)])
def test_the_temperature_rises_where_entropy_is_too_low(target_entropy: float, rises: bool) -> None:
    algorithm = learner(target_entropy_per_dim=target_entropy)
    update = algorithm.update(batch_of(10, 32), {"learning_rate": 0.01})
    assert (update.metrics["entropy"] < 2 * target_entropy) is rises
    assert (algorithm.network.log_temperature.item() > 0.0) is rises


# ---------------------------------------------------------------------------------------------- randomness


def test_what_an_update_draws_follows_from_the_seed_and_its_number() -> None:
    first, again, other = learner(seed=3), learner(seed=3), learner(seed=4)
    batch = batch_of(3, 8)
    noise = first.drawn(batch).extra["noise"]
    assert noise.shape == (3, 8, 2, 2)
    again.update(batch_of(1, 8), {"learning_rate": 0.01})
    assert torch.equal(again.drawn(batch).extra["noise"][:2], noise[1:])
    assert (other.drawn(batch).extra["noise"] != noise).all()
    assert (noise[0] != noise[1]).all()
    many = first.drawn(batch_of(4, 2_000)).extra["noise"]
    assert abs(many.mean().item()) < 0.02 and many.std().item() == pytest.approx(1.0, abs=0.02)


@pytest.mark.slow
@pytest.mark.skipif(compiled.compiler() is None, reason="no C++ compiler on this machine")
def test_compiled_updates_equal_eager_ones() -> None:
    eager, graph = learner(), learner()
    compiled.enable(graph, 2)
    for call in range(2):  # 5 updates each: two graphs of two, and one done eagerly
        one, two = (a.update(batch_of(5, 16, seed=call), {"learning_rate": 0.01}) for a in (eager, graph))
        np.testing.assert_allclose(one.priorities, two.priorities, rtol=0.0, atol=5e-6)
        assert one.metrics == pytest.approx(two.metrics, abs=5e-6)
    for key, vector in eager.learned().items():
        np.testing.assert_allclose(vector, graph.learned()[key], rtol=0.0, atol=5e-6, err_msg=key)


# -------------------------------------------------------------------------------------------------- acting


def test_actors_get_the_policy_and_nothing_else() -> None:
    maker, taker = learner(seed=0), learner(seed=1)
    flat = maker.weights()
    assert flat.size == sum(p.numel() for p in maker.network.policy.parameters())
    before = taker.learned()["online"].copy()
    taker.load_weights(flat)
    assert (taker.learned()["online"] != before).sum() == flat.size
    np.testing.assert_array_equal(acted(maker, "explore"), acted(taker, "explore"))


def test_random_actions_fill_the_box_evenly_and_the_policys_stay_inside() -> None:
    algorithm = learner()
    drawn = acted(algorithm, "explore", slots=4_000, random=1.0)
    np.testing.assert_allclose(drawn.mean(0), [0.0, 2.5], atol=0.1)
    np.testing.assert_allclose(drawn.std(0), [2 / math.sqrt(12), 5 / math.sqrt(12)], rtol=0.03)
    with torch.no_grad():
        algorithm.network.policy[-1].bias += 3.0  # means far out, stds at their largest: most draws saturate
    own = acted(algorithm, "explore", slots=4_000)
    assert (own >= LOW).all() and (own <= HIGH).all()
    assert (own == HIGH).any() and len(np.unique(own)) > 1_000


def test_random_actions_last_for_their_share_of_the_run() -> None:
    algorithm = learner(random_share=0.25)
    rank = np.arange(3)
    assert algorithm.slot_params(0.2, rank, 3)["random"].tolist() == [1.0] * 3
    assert algorithm.slot_params(0.25, rank, 3)["random"].tolist() == [0.0] * 3
    assert learner(random_share=0.0).slot_params(0.0, rank, 3)["random"].tolist() == [0.0] * 3


def test_the_generator_moves_alike_whatever_the_chance_is() -> None:
    algorithm = learner()
    rngs = [np.random.default_rng(2) for _ in range(2)]
    for rng, chance in zip(rngs, (0.0, 1.0), strict=True):
        params = {"random": np.full(4, chance, np.float32)}
        obs = np.zeros((4, 3), np.float32)
        algorithm.act(ActInput(obs, obs, obs, obs, None, params, rng), None, "explore")
    assert rngs[0].random() == rngs[1].random()


def test_the_best_action_of_a_lopsided_box_is_found() -> None:
    """One step pays for how near it comes, and ends: the policy's middle moves there, in the box's units."""
    goal, scale = np.array([-0.5, 4.0], np.float32), np.array([2.0, 1.0], np.float32)
    algorithm = learner(hidden=(32, 32), target_tau=0.05)
    for i in range(80):
        batch = batch_of(10, 64, seed=i)
        miss = (batch.action_tm1 - torch.from_numpy(goal)) * torch.from_numpy(scale)
        paid = replace(batch, reward_t=-miss.square().sum(-1), discount_t=torch.zeros(10, 64))
        algorithm.update(paid, {"learning_rate": 3e-3})
    found = acted(algorithm, "greedy", slots=50)
    assert (np.abs(found - goal) * scale < 0.7).all()
    assert (np.abs(found.mean(0) - goal) * scale < 0.4).all()
