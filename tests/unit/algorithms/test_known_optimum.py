"""Values that can be written down: fixed points of a chain, truncation against termination."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from seqrl_ray.types import ActInput, TransitionTensors

Build = Callable[..., Any]

GAMMA = 0.8


def chain(u: int, terminated: bool) -> TransitionTensors[torch.Tensor]:
    """One state, two actions paying 1 and 0; the episode is cut, or ends, after every step."""
    obs = torch.tensor([1.0, 0.0, 0.0]).expand(u, 2, 3)
    return TransitionTensors(
        obs_tm1=obs,
        action_tm1=torch.tensor([0, 1]).expand(u, 2),
        reward_t=torch.tensor([1.0, 0.0]).expand(u, 2),
        discount_t=torch.full((u, 2), 0.0 if terminated else GAMMA),
        obs_t=obs,
        weight=torch.ones(u, 2),
    )


def values(algorithm: Any) -> list[float]:
    with torch.no_grad():
        return algorithm.network(torch.tensor([[1.0, 0.0, 0.0]]))[0].tolist()


@pytest.mark.parametrize("name", ["dqn", "double_dqn"])
@pytest.mark.parametrize("dueling", [False, True])
@pytest.mark.parametrize("rule", [{"target_tau": 0.1}, {"target_tau": 0.0, "target_period_updates": 10}])
def test_truncation_bootstraps_and_termination_does_not(
    learner: Build, name: str, dueling: bool, rule: dict[str, Any]
) -> None:
    settings = {"dueling": dueling, "huber_delta": 10.0, **rule}
    cut, ended = (learner(name, **settings) for _ in range(2))
    for rate in (0.02, 0.004):
        cut.update(chain(300, terminated=False), {"learning_rate": rate})
        ended.update(chain(300, terminated=True), {"learning_rate": rate})
    assert values(cut) == pytest.approx([1 / (1 - GAMMA), GAMMA / (1 - GAMMA)], rel=0.01)
    assert values(ended) == pytest.approx([1.0, 0.0], abs=0.01)


def test_the_greedy_policy_takes_the_better_action(learner: Build) -> None:
    algorithm = learner()
    algorithm.update(chain(300, terminated=True), {"learning_rate": 0.02})
    obs = np.tile(np.array([1.0, 0.0, 0.0], np.float32), (4, 1))
    inputs = ActInput(
        obs,
        np.zeros(4, np.int64),
        np.zeros(4, np.float32),
        np.ones(4, bool),
        None,
        {},
        np.random.default_rng(0),
    )
    assert algorithm.act(inputs, None, "greedy")[0].tolist() == [0, 0, 0, 0]
    masked = ActInput(**{**vars(inputs), "legal": np.tile([False, True], (4, 1))})
    assert algorithm.act(masked, None, "greedy")[0].tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(("name", "bootstrap"), [("dqn", 10.0), ("double_dqn", 4.0)])
def test_who_chooses_the_next_action_is_what_tells_the_two_apart(
    learner: Build, name: str, bootstrap: float
) -> None:
    """The online network prefers action 1, which its slow copy values at 4; the copy's best is 10."""
    algorithm = learner(name, huber_delta=100.0)
    batch = TransitionTensors(
        obs_tm1=torch.zeros(1, 3),
        action_tm1=torch.tensor([0]),
        reward_t=torch.tensor([1.0]),
        discount_t=torch.tensor([0.5]),
        obs_t=torch.zeros(1, 3),
        weight=torch.ones(1),
    )
    terms = algorithm.loss(
        lambda obs: torch.tensor([[0.0, 1.0]]), lambda obs: torch.tensor([[10.0, 4.0]]), batch
    )
    assert terms.priorities.tolist() == [1.0 + 0.5 * bootstrap]
    assert terms.loss.tolist() == [(1.0 + 0.5 * bootstrap) ** 2 / 2]
