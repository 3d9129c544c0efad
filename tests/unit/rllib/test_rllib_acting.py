"""RLlib's networks acting for our evaluator."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ray.rllib.core.columns import Columns
from rllib_world import group_of, recipe_of

from seqrl_ray.algorithms import make_algorithm
from seqrl_ray.errors import CheckpointError, RecipeError
from seqrl_ray.rllib.config import settings_of
from seqrl_ray.rllib.spaces import observe
from seqrl_ray.types import ActInput, ActionSpec, ArraySpec, GroupSpec, Slot


def policy(recipe, group=None, seed: int = 0):
    return make_algorithm(
        recipe.algorithm["name"], settings_of(recipe), group or group_of(recipe), device="cpu", seed=seed
    )


def inputs_of(group: GroupSpec, slots: int, seed: int = 0, *, is_first=None, legal=None) -> ActInput:
    rng = np.random.default_rng(seed)
    return ActInput(
        obs=rng.normal(size=(slots, *group.policy_obs.shape)).astype(np.float32),
        prev_action=np.zeros((slots, *group.action.shape)),
        prev_reward=np.zeros(slots, np.float32),
        is_first=np.zeros(slots, np.bool_) if is_first is None else is_first,
        legal=legal,
        slot_params={},
        rng=np.random.default_rng(seed + 1),
    )


SMALL = {"fcnet_hiddens": [16]}


@pytest.mark.parametrize("algorithm", ["PPO", "APPO", "IMPALA", "DQN", "SAC"])
def test_weights_make_the_policy(algorithm):
    """Two networks of other seeds act alike once one has the other's weights, and only then."""
    recipe = recipe_of("classic/cartpole", algorithm, model=SMALL)
    one, two = policy(recipe, seed=1), policy(recipe, seed=2)
    given = inputs_of(one.group, 200)
    before = [p.act(given, None, "greedy")[0] for p in (one, two)]
    assert not np.array_equal(*before)
    two.load_weights(one.weights())
    after = two.act(given, None, "greedy")[0]
    assert np.array_equal(after, before[0]) and after.dtype == np.int64
    with pytest.raises(CheckpointError, match="are of another network"):
        two.load_weights(one.weights()[:-1])


def test_the_greedy_action_is_the_networks_best_and_explored_ones_are_drawn():
    recipe = recipe_of("classic/cartpole", "PPO", model=SMALL)
    own = policy(recipe)
    given = inputs_of(own.group, 500)
    with torch.no_grad():
        out = own.module.forward_inference({Columns.OBS: torch.from_numpy(given.obs)})
    logits = out[Columns.ACTION_DIST_INPUTS].numpy()
    assert np.array_equal(own.act(given, None, "greedy")[0], logits.argmax(1))
    drawn = [own.act(inputs_of(own.group, 500, s), None, "explore")[0] for s in (0, 0, 1)]
    assert np.array_equal(drawn[0], drawn[1]), "all randomness comes from the generator that is given"
    share = np.exp(logits[:, 1]) / np.exp(logits).sum(1)
    assert drawn[0].mean() == pytest.approx(share.mean(), abs=0.08)


def masked_group(n: int = 5) -> GroupSpec:
    return GroupSpec(
        "shared",
        (Slot(0, "agent", 3, n),),
        ArraySpec((3,), "float32"),
        ActionSpec("discrete", n=n),
        masked=True,
    )


@pytest.mark.parametrize("algorithm", ["PPO", "APPO", "IMPALA", "DQN", "BC", "MARWIL"])
@pytest.mark.parametrize("mode", ["greedy", "explore"])
def test_no_illegal_action_is_ever_chosen(algorithm, mode):
    group = masked_group()
    own = policy(recipe_of("classic/cartpole", algorithm, model=SMALL), group)
    legal = np.random.default_rng(3).random((400, 5)) < 0.4
    legal[np.arange(400), np.random.default_rng(4).integers(0, 5, 400)] = True
    chosen, _, _ = own.act(inputs_of(group, 400, legal=legal), None, mode)
    assert legal[np.arange(400), chosen].all()
    assert len(np.unique(chosen)) == 5


def test_dqns_own_exploration_draws_legal_actions_only():
    group = masked_group()
    own = policy(recipe_of("classic/cartpole", "DQN", model=SMALL), group)
    given = inputs_of(group, 400, legal=np.tile([True, False, True, False, False], (400, 1)))
    seen = torch.from_numpy(observe(group, given.obs, given.legal))
    chosen = own.module.forward_exploration({Columns.OBS: seen}, t=0)[Columns.ACTIONS]  # epsilon is 1 there
    assert set(chosen.tolist()) == {0, 2}


def test_the_train_pass_of_a_masked_policy_has_finite_likelihood_entropy_and_kl():
    group = masked_group()
    recipe = recipe_of("classic/cartpole", "PPO", model=SMALL)
    from seqrl_ray.rllib.config import base_config, module_spec

    config = base_config("rllib:PPO", settings_of(recipe))
    module = module_spec(config, settings_of(recipe), group).build()
    legal = np.tile([True, False, True, True, False], (64, 1))
    seen = torch.from_numpy(observe(group, inputs_of(group, 64).obs, legal))
    out = module.forward_train({Columns.OBS: seen})
    kind = module.get_train_action_dist_cls()
    one, other = (kind.from_logits(x * out[Columns.ACTION_DIST_INPUTS]) for x in (1.0, 0.5))
    # times 0.5 leaves the lowest float far below any logit: still without mass
    for values in (one.entropy(), one.kl(other), one.logp(torch.zeros(64, dtype=torch.int64))):
        assert torch.isfinite(values).all()
    assert (one.entropy() <= np.log(3) + 1e-6).all()
    one.entropy().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in module.parameters() if p.grad is not None)


def test_continuous_actions_reach_the_bounds_and_stay_inside():
    recipe = recipe_of("classic/pendulum_sac", "SAC", model=SMALL)
    own = policy(recipe)
    group = own.group
    given = inputs_of(group, 300)
    greedy, drawn = (own.act(given, None, mode)[0] for mode in ("greedy", "explore"))
    for actions in (greedy, drawn):
        assert actions.shape == (300, *group.action.shape) and actions.dtype == np.float32
        assert np.abs(actions).max() <= 2.0
    assert np.abs(drawn).max() > 1.0, "actions of [-1, 1] are stretched to [-2, 2]"
    assert not np.array_equal(greedy, drawn)


def test_a_recurrent_policy_carries_its_state_and_begins_anew_where_a_stream_does():
    recipe = recipe_of("classic/cartpole", "PPO", model={**SMALL, "use_lstm": True, "lstm_cell_size": 8})
    own = policy(recipe, seed=5)
    slots = 4
    first = inputs_of(own.group, slots, is_first=np.ones(slots, np.bool_))
    state = own.initial_state(slots)
    _, once, _ = own.act(first, state, "greedy")
    again = inputs_of(own.group, slots, is_first=np.array([True, False, True, False]))
    _, twice, _ = own.act(again, once, "greedy")
    flat_once, flat_twice = (torch.cat(list(leaves(s)), -1) for s in (once, twice))
    assert torch.allclose(flat_once[[0, 2]], flat_twice[[0, 2]], atol=1e-6), "begun anew: the same once more"
    assert not torch.allclose(flat_once[[1, 3]], flat_twice[[1, 3]], atol=1e-6)


def leaves(state):
    for part in state.values() if isinstance(state, dict) else ():
        yield from leaves(part) if isinstance(part, dict) else (part.reshape(part.shape[0], -1),)


def test_a_network_that_cannot_be_built_is_refused_in_one_line():
    recipe = recipe_of("classic/cartpole", "PPO", model={"fcnet_activation": "no_such"})
    with pytest.raises(RecipeError, match="RLlib cannot build its network") as error:
        policy(recipe)
    assert "\n" not in str(error.value)
