"""The contract of every registered algorithm, on every kind of observation and of action that it is for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from algorithm_cases import BOX, GROUPS, QUIET, B, U, act_input, build, drives, group_for, make_batch

from seqrl_ray.algorithms import names, settings_class
from seqrl_ray.algorithms.contract import Algorithm
from seqrl_ray.algorithms.flat_learner import FlatLearner
from seqrl_ray.errors import CheckpointError, RecipeError
from seqrl_ray.loops.feed import feed
from seqrl_ray.settings import mutable_keys
from seqrl_ray.types import GroupSpec, Transitions, Update, Windows

LEARNERS = [name for name in names() if build(name, group_for(name)).learns]
WINDOWED = [name for name in LEARNERS if build(name, group_for(name)).sample_spec().view == "windows"]


def on_every_group(algorithms: Sequence[str]) -> pytest.MarkDecorator:
    """Parametrise (name, group) over the groups that each algorithm is for."""
    cases = [
        pytest.param(name, group, id=f"{name}-{kind}")
        for name in algorithms
        for kind, group in GROUPS.items()
        if drives(name, group)
    ]
    return pytest.mark.parametrize(("name", "group"), cases)


def run_update(algorithm: Algorithm, batch: Transitions | Windows) -> Update:
    return algorithm.update(feed(batch, "cpu"), algorithm.hparams(0.0))


def cut(batch: Any, index: Any) -> Any:
    """The minibatches `index` of a batch, every column of it."""
    changed = {}
    for item in fields(batch):
        value = getattr(batch, item.name)
        if item.name == "extra":
            changed[item.name] = {name: column[index] for name, column in value.items()}
        elif value is not None and item.name != "ids":
            changed[item.name] = value[index]
    return replace(batch, **changed)


def assert_same_learned(a: Algorithm, b: Algorithm) -> None:
    left, right = a.learned(), b.learned()
    assert left.keys() == right.keys()
    for name in left:
        np.testing.assert_array_equal(left[name], right[name], err_msg=name)


def assert_legal(action: Any, group: GroupSpec) -> None:
    column = group.action.column
    assert action.shape == (len(group.slots), *column.shape) and str(action.dtype) == column.dtype
    if group.action.kind == "box":
        low, high = (np.reshape(bound, column.shape) for bound in (group.action.low, group.action.high))
        assert (low <= action).all() and (action <= high).all()
    else:
        assert all(0 <= a < s.num_actions for a, s in zip(action, group.slots, strict=True))


@on_every_group(names())
@pytest.mark.parametrize("mode", ["explore", "greedy"])
def test_actions_are_legal_and_extras_are_the_declared_columns(
    name: str, mode: Any, group: GroupSpec
) -> None:
    algorithm = build(name, group)
    state = algorithm.initial_state(len(group.slots))
    declared = {c.name: c.array for c in algorithm.sample_spec().extra}
    seen = set()
    for step in range(12):
        inputs = act_input(algorithm, group, seed=step, first=step == 0, progress=0.0)
        action, state, extras = algorithm.act(inputs, state, mode)
        assert_legal(action, group)
        assert {k: (v.shape[1:], str(v.dtype)) for k, v in extras.items()} == {
            k: (v.shape, v.dtype) for k, v in declared.items()
        }
        assert all(len(v) == len(group.slots) for v in extras.values())
        seen.add(tuple(action.ravel()))
    assert len(seen) > 1 or mode == "greedy"


@on_every_group(names())
def test_acting_is_a_function_of_its_arguments(name: str, group: GroupSpec) -> None:
    algorithm = build(name, group)
    slots = len(group.slots)
    first = act_input(algorithm, group, seed=1)
    again = act_input(algorithm, group, seed=1)
    used = algorithm.act(act_input(algorithm, group, seed=9), algorithm.initial_state(slots), "explore")[1]
    action, _, _ = algorithm.act(first, algorithm.initial_state(slots), "explore")
    other, _, _ = algorithm.act(again, used, "explore")  # is_first: what went before must not matter
    np.testing.assert_array_equal(action, other)


@pytest.mark.parametrize("name", LEARNERS)
def test_slots_do_not_see_one_another(name: str) -> None:
    group = group_for(name, "masked")
    algorithm = build(name, group)
    inputs = act_input(algorithm, group, seed=3)
    order = np.array([2, 0, 3, 1])
    assert (inputs.legal is not None) == group.masked
    shuffled = replace(
        inputs,
        obs=inputs.obs[order],
        legal=None if inputs.legal is None else inputs.legal[order],
        slot_params={k: v[order] for k, v in inputs.slot_params.items()},
    )
    action, _, _ = algorithm.act(inputs, algorithm.initial_state(4), "greedy")
    moved, _, _ = algorithm.act(shuffled, algorithm.initial_state(4), "greedy")
    np.testing.assert_array_equal(action[order], moved)


@pytest.mark.parametrize("name", LEARNERS)
def test_learners_refuse_actions_they_are_not_for(name: str) -> None:
    for group in GROUPS.values():
        if not drives(name, group):
            kind = "continuous" if group.action.kind == "box" else "discrete"
            with pytest.raises(RecipeError, match=f"policies.shared: the environment's actions are {kind}"):
                build(name, group)


def test_random_draws_inside_the_box() -> None:
    algorithm = build("random", BOX)
    draws = np.stack(
        [algorithm.act(act_input(algorithm, BOX, seed), None, "explore")[0] for seed in range(200)]
    )
    assert draws.shape == (200, 4, 2) and draws.dtype == np.float32
    assert (draws >= [-1.0, 0.0]).all() and (draws <= [1.0, 5.0]).all()
    np.testing.assert_allclose(draws.mean((0, 1)), [0.0, 2.5], atol=0.3)


@pytest.mark.parametrize("name", names())
def test_slot_params_have_one_value_per_slot(name: str) -> None:
    algorithm = build(name, group_for(name))
    for value in algorithm.slot_params(0.3, np.array([5, 0, 7]), 8).values():
        assert value.shape == (3,) and value.dtype == np.float32


@pytest.mark.parametrize("name", names())
def test_weights_go_round_as_a_float32_copy(name: str) -> None:
    group = group_for(name)
    maker, taker = build(name, group, seed=0), build(name, group, seed=1)
    flat = maker.weights()
    assert flat.dtype == np.float32 and flat.ndim == 1
    taker.load_weights(flat)
    inputs = act_input(maker, group, seed=2)
    left = maker.act(inputs, maker.initial_state(4), "greedy")[0]
    right = taker.act(act_input(taker, group, seed=2), taker.initial_state(4), "greedy")[0]
    np.testing.assert_array_equal(left, right)
    np.testing.assert_array_equal(taker.weights(), flat)
    flat += 1.0  # a copy: nobody's parameters move
    np.testing.assert_array_equal(maker.weights(), taker.weights())
    with pytest.raises(CheckpointError, match="weights has shape"):
        taker.load_weights(np.zeros(len(flat) + 1, np.float32))


@pytest.mark.parametrize("name", names())
def test_a_policy_can_be_judged_with_what_it_is_judged_with(name: str) -> None:
    group = group_for(name)
    algorithm, judge = build(name, group), build(name, group, seed=1)
    np.testing.assert_array_equal(algorithm.judged_weights(), algorithm.weights())  # no average by default
    judge.load_weights(algorithm.judged_weights())
    np.testing.assert_array_equal(judge.weights(), algorithm.weights())


@pytest.mark.parametrize("name", names())
def test_equal_seeds_give_equal_weights_whatever_torch_did_before(name: str) -> None:
    import torch

    first = build(name, group_for(name), seed=4).weights()
    torch.manual_seed(99)
    before = torch.get_rng_state()
    second = build(name, group_for(name), seed=4).weights()
    np.testing.assert_array_equal(first, second)
    assert torch.equal(before, torch.get_rng_state())  # and leaves the global generator alone


@on_every_group(LEARNERS)
def test_update_gives_one_priority_per_item(name: str, group: GroupSpec) -> None:
    algorithm = build(name, group)
    before = algorithm.weights()
    update = run_update(algorithm, make_batch(algorithm.sample_spec(), group, seed=0))
    assert update.priorities.shape == (U, B) and update.priorities.dtype == np.float32
    assert (update.priorities >= 0.0).all() and np.isfinite(update.priorities).all()
    assert {"loss", "grad_norm"} <= update.metrics.keys()
    assert all(isinstance(v, float) and np.isfinite(v) for v in update.metrics.values())
    assert algorithm.updates == U
    assert (algorithm.weights() != before).any()


@on_every_group(LEARNERS)
def test_one_call_of_u_updates_is_u_calls_of_one(name: str, group: GroupSpec) -> None:
    together, apart = build(name, group), build(name, group)
    batch = make_batch(together.sample_spec(), group, seed=1)
    whole = run_update(together, batch)
    parts = [run_update(apart, cut(batch, slice(u, u + 1))) for u in range(U)]
    np.testing.assert_array_equal(whole.priorities, np.concatenate([p.priorities for p in parts]))
    assert_same_learned(together, apart)
    assert together.private() == apart.private()


@pytest.mark.parametrize("name", LEARNERS)
def test_saved_state_gives_the_same_next_update_bit_for_bit(name: str) -> None:
    group = group_for(name, "masked")
    original, restored = build(name, group, seed=0), build(name, group, seed=5)
    spec = original.sample_spec()
    run_update(original, make_batch(spec, group, seed=2))
    original.set_hparams({"learning_rate": 0.0005})
    restored.load_learned(original.learned())
    restored.load_private(json.loads(json.dumps(original.private())))
    batch = make_batch(spec, group, seed=3)
    first, second = run_update(original, batch), run_update(restored, batch)
    np.testing.assert_array_equal(first.priorities, second.priorities)
    assert first.metrics == second.metrics
    assert_same_learned(original, restored)
    assert original.private() == restored.private()


@pytest.mark.parametrize("name", LEARNERS)
def test_an_exploit_copies_what_was_learned_and_not_the_hyper_parameters(name: str) -> None:
    group = group_for(name)
    winner, loser = build(name, group, seed=0), build(name, group, seed=1)
    run_update(winner, make_batch(winner.sample_spec(), group, seed=0))
    loser.set_hparams({"learning_rate": 0.002})
    loser.load_learned(winner.learned())
    assert_same_learned(winner, loser)
    assert loser.hparams(0.0)["learning_rate"] == 0.002
    assert loser.updates == 0


@pytest.mark.parametrize("name", LEARNERS)
@pytest.mark.parametrize("part", ["learned", "private"])
def test_state_of_another_algorithm_is_refused_by_name(name: str, part: str) -> None:
    algorithm = build(name, group_for(name))
    values = getattr(algorithm, part)()
    values["stranger"] = values.pop(next(iter(values)))
    with pytest.raises(CheckpointError, match=f"{part} holds .*stranger"):
        getattr(algorithm, f"load_{part}")(values)


@pytest.mark.parametrize("name", LEARNERS)
def test_priorities_follow_a_permutation_of_the_batch(name: str) -> None:
    group = group_for(name, "masked")
    algorithm, shuffled = build(name, group, **QUIET.get(name, {})), build(name, group, **QUIET.get(name, {}))
    batch = feed(make_batch(algorithm.sample_spec(), group, seed=4, u=1), "cpu")
    if isinstance(algorithm, FlatLearner):
        batch = algorithm.drawn(batch)  # what is drawn for a row goes where the row goes
    order = np.array([3, 1, 4, 0, 2])
    plain = algorithm.update(batch, algorithm.hparams(0.0)).priorities
    moved = shuffled.update(cut(batch, (slice(None), order)), shuffled.hparams(0.0)).priorities
    np.testing.assert_allclose(plain[:, order], moved, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(algorithm.weights(), shuffled.weights(), atol=1e-5)


@on_every_group(WINDOWED)
def test_poison_behind_the_masks_changes_nothing(name: str, group: GroupSpec) -> None:
    clean, poisoned = build(name, group), build(name, group)
    spec = clean.sample_spec()
    batch = make_batch(spec, group, seed=5)
    assert isinstance(batch, Windows) and not batch.valid.all()
    behind = ~batch.valid
    changes: dict[str, Any] = {"reward": np.where(behind, np.nan, batch.reward).astype(np.float32)}
    if batch.obs.dtype == np.float32:
        hidden = behind.reshape(*behind.shape, *[1] * (batch.obs.ndim - behind.ndim))
        changes["obs"] = np.where(hidden, np.nan, batch.obs).astype(np.float32)
    if group.action.kind == "box":
        hidden = behind.reshape(*behind.shape, *[1] * (batch.action.ndim - behind.ndim))
        changes["action"] = np.where(hidden, np.nan, batch.action).astype(np.float32)
    if batch.return_to_go is not None:
        changes["return_to_go"] = np.where(behind, np.nan, batch.return_to_go).astype(np.float32)
    first, second = run_update(clean, batch), run_update(poisoned, replace(batch, **changes))
    np.testing.assert_array_equal(first.priorities, second.priorities)
    assert first.metrics == second.metrics
    assert_same_learned(clean, poisoned)


@pytest.mark.parametrize("name", LEARNERS)
def test_hyper_parameters_are_the_mutable_keys_and_gamma_reaches_the_view(name: str) -> None:
    algorithm = build(name, group_for(name))
    keys = mutable_keys(settings_class(name))
    assert set(algorithm.hparams(0.0)) == set(keys)
    if "gamma" in keys:
        algorithm.set_hparams({"gamma": 0.5})
        assert algorithm.sample_spec().gamma == 0.5 and algorithm.hparams(1.0)["gamma"] == 0.5
    with pytest.raises(RecipeError, match=r"algorithm\.adam_eps is not mutable"):
        algorithm.set_hparams({"adam_eps": 0.1})
    with pytest.raises(RecipeError, match=r"algorithm\.learning_rate=-1.* is refused"):
        algorithm.set_hparams({"learning_rate": -1.0})


def test_random_refuses_to_learn() -> None:
    algorithm = build("random", GROUPS["vector"])
    batch = feed(make_batch(algorithm.sample_spec(), GROUPS["vector"], seed=0), "cpu")
    with pytest.raises(RecipeError, match=r'algorithm\.name="random" learns nothing'):
        algorithm.update(batch, {})
    for load in (algorithm.load_learned, algorithm.load_private):
        load({})
        with pytest.raises(CheckpointError, match="random has no state"):
            load({"online": np.zeros(3)})


@pytest.mark.parametrize("name", names())
def test_acting_state_fits_into_a_checkpoint(name: str) -> None:
    """A resumed local run goes on in the middle of an episode: None, arrays, dicts or tuples of arrays do."""
    algorithm = build(name, group_for(name))
    state = algorithm.initial_state(4)
    _, after, _ = algorithm.act(act_input(algorithm, group_for(name), seed=3), state, "greedy")
    for tree in (state, after):
        leaves = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, tuple) else [tree]
        assert all(leaf is None or isinstance(leaf, np.ndarray) for leaf in leaves)
