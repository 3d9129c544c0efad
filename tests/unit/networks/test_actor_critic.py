from __future__ import annotations

import pytest
import torch

from seqrl_ray.algorithms.sac_settings import SacSettings
from seqrl_ray.errors import RecipeError
from seqrl_ray.networks.actor_critic import ActorCritic, TwinLinear, actor_critic
from seqrl_ray.types import ActionSpec, ArraySpec, GroupSpec

ACTION = ActionSpec("box", shape=(2,), low=(-1.0, 0.0), high=(1.0, 5.0))


def network(obs: ArraySpec | None = None) -> ActorCritic:
    group = GroupSpec("arm", (), obs or ArraySpec((4,), "float32"), ACTION)
    return actor_critic(SacSettings(hidden=(8, 6), initial_temperature=0.2), group)


def test_a_twin_layer_is_two_layers_on_inputs_of_their_own() -> None:
    twin, inputs = TwinLinear(4, 3), torch.randn(2, 5, 4)
    single = [torch.nn.functional.linear(inputs[i], twin.weight[i].T, twin.bias[i, 0]) for i in range(2)]
    torch.testing.assert_close(twin(inputs, fixed=False), torch.stack(single))
    assert (twin.weight[0] != twin.weight[1]).all()


def test_every_part_has_its_shape() -> None:
    parts = network()
    obs, action = torch.randn(5, 4), torch.zeros(5, 2)
    policy = parts("policy", obs)
    assert policy.mean.shape == policy.log_std.shape == (5, 2)
    assert parts("policy", torch.randn(3, 5, 4)).mean.shape == (3, 5, 2)
    assert parts("critics", obs, action).shape == (2, 5)
    assert parts("log_temperature").exp().item() == pytest.approx(0.2)


def test_fixed_critics_say_the_same_and_pass_a_gradient_to_the_action_only() -> None:
    parts = network()
    obs, action = torch.randn(5, 4), torch.zeros(5, 2, requires_grad=True)
    fixed = parts("fixed_critics", obs, action)
    free = parts("critics", obs, action)
    torch.testing.assert_close(fixed, free)
    fixed.sum().backward()
    assert action.grad is not None and (action.grad != 0.0).any()
    assert all(p.grad is None for p in parts.parameters())
    (expected,) = torch.autograd.grad(free.sum(), action)
    torch.testing.assert_close(action.grad, expected)


def test_bytes_and_tables_are_read_as_vectors() -> None:
    parts = network(ArraySpec((3, 2), "float32"))
    assert parts("critics", torch.randn(5, 3, 2), torch.zeros(5, 2)).shape == (2, 5)
    small = network(ArraySpec((4,), "uint8"))
    obs = torch.tensor([[0, 51, 102, 255]], dtype=torch.uint8)
    torch.testing.assert_close(small("policy", obs).mean, small("policy", obs / 255.0).mean)


def test_images_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"^policies.arm: the environment's observations are images, of "):
        network(ArraySpec((12, 12), "uint8"))
