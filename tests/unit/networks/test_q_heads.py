from __future__ import annotations

import pytest
import torch

from seqrl_ray.algorithms.dqn_settings import DqnSettings
from seqrl_ray.errors import RecipeError
from seqrl_ray.networks.q_heads import DuelingHead, q_network
from seqrl_ray.types import ActionSpec, ArraySpec, GroupSpec


def group(action: ActionSpec) -> GroupSpec:
    return GroupSpec(policy_id="lights", slots=(), obs=ArraySpec((4,), "float32"), action=action)


def test_dueling_values_average_to_the_state_value() -> None:
    head = DuelingHead(3, 4)
    features = torch.randn(5, 3)
    streams = head.streams(features)
    torch.testing.assert_close(head(features).mean(-1), streams[:, 0])
    differences = head(features) - head(features)[:, :1]
    torch.testing.assert_close(differences, streams[:, 1:] - streams[:, 1:2])


@pytest.mark.parametrize("dueling", [False, True])
@pytest.mark.parametrize("layer_norm", [False, True])
def test_one_value_per_action(dueling: bool, layer_norm: bool) -> None:
    settings = DqnSettings(hidden=(8, 6), dueling=dueling, layer_norm=layer_norm)
    network = q_network(settings, group(ActionSpec("discrete", n=5)))
    assert network(torch.zeros(2, 3, 4)).shape == (2, 3, 5)
    linear = [m.out_features for m in network.modules() if isinstance(m, torch.nn.Linear)]
    assert linear == [8, 6, 6 if dueling else 5]
    assert sum(isinstance(m, torch.nn.LayerNorm) for m in network.modules()) == (2 if layer_norm else 0)


def test_continuous_actions_are_refused() -> None:
    with pytest.raises(
        RecipeError, match=r"^policies.lights: the environment's actions are continuous, of shape \(2,\)"
    ):
        q_network(DqnSettings(), group(ActionSpec("box", shape=(2,), low=(0.0, 0.0), high=(1.0, 1.0))))
