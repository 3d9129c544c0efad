"""Acting for many actors in one batch gives what each actor would have done alone, states and all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from seqrl_ray.algorithms import make_algorithm, settings_class
from seqrl_ray.loops.central import CentralPolicies, Question, Request, join, part
from seqrl_ray.types import ActInput, ActionSpec, ArraySpec, GroupSpec, Slot
from seqrl_ray.types_env import Weights

SLOTS, ACTORS, STEPS = 3, 4, 12
DISCRETE = ActionSpec("discrete", n=2)
BOX = ActionSpec("box", shape=(2,), low=(-1.0, -1.0), high=(1.0, 1.0))
KINDS: dict[str, tuple[ActionSpec, dict[str, Any]]] = {
    "double_dqn": (DISCRETE, {"hidden": (8,), "epsilon_start": 0.0, "epsilon_end": 0.0}),
    "toy_recurrent": (DISCRETE, {"epsilon_start": 0.0, "epsilon_end": 0.0}),
    "decision_transformer": (BOX, {"window_steps": 4, "units": 8, "layers": 1, "heads": 1}),
}


def make(name: str) -> Any:
    action, settings = KINDS[name]
    slots = tuple(Slot(env=i, agent="agent", obs_size=3, num_actions=action.n or 0) for i in range(SLOTS))
    group = GroupSpec("shared", slots, ArraySpec((3,), "float32"), action)
    keys = settings_class(name)
    algorithm = make_algorithm(
        name, keys(**{k: v for k, v in settings.items() if k in keys.model_fields}), group, seed=1
    )
    if action is DISCRETE:  # a fresh network would choose one action always
        size = algorithm.weights().size
        algorithm.load_weights(np.random.default_rng(1).normal(size=size).astype(np.float32))
    return algorithm


class Actor:
    """Random observations, rewards and episode ends; what is decided comes back as the last action."""

    def __init__(self, number: int, algorithm: Any, incarnation: int = 0) -> None:
        self.number, self.incarnation = number, incarnation
        self.world = np.random.default_rng(number)
        self.algorithm = algorithm
        self.params = algorithm.slot_params(0.0, np.arange(SLOTS), SLOTS)
        column = algorithm.group.action.column
        self.action = np.zeros((SLOTS, *column.shape), column.dtype)
        self.first = np.ones(SLOTS, bool)
        self.reward = np.zeros(SLOTS, np.float32)

    def look(self) -> ActInput:
        obs = self.world.normal(size=(SLOTS, 3)).astype(np.float32)
        rng = np.random.default_rng(0)
        return ActInput(obs, self.action, self.reward, self.first, None, self.params, rng)

    def go_on(self, action: Any) -> None:
        self.first = self.world.random(SLOTS) < 0.2
        self.action = np.where(self.first.reshape(-1, *[1] * (action.ndim - 1)), 0, action)
        self.reward = np.where(self.first, 0.0, self.world.random(SLOTS)).astype(np.float32)

    def request(self, inputs: ActInput) -> Request:
        return Request(self.number, self.incarnation, {"shared": Question.of(inputs)})


def policies(algorithm: Any) -> CentralPolicies:
    return CentralPolicies({"shared": algorithm}, np.random.default_rng(0))


def alone(name: str, number: int) -> list[Any]:
    """What an actor decides with its own copy."""
    algorithm = make(name)
    actor, state, decided = Actor(number, algorithm), algorithm.initial_state(SLOTS), []
    for _ in range(STEPS):
        action, state, _ = algorithm.act(actor.look(), state, "explore")
        decided.append(action)
        actor.go_on(action)
    return decided


@pytest.mark.parametrize("name", KINDS)
def test_many_actors_in_one_batch_do_what_each_does_alone(name: str) -> None:
    central = policies(make(name))
    actors = [Actor(i, central.algorithms["shared"]) for i in range(ACTORS)]
    decided: list[list[Any]] = [[] for _ in actors]
    order, batches = np.random.default_rng(5), 0
    while any(len(own) < STEPS for own in decided):  # batches of changing company
        wait = [i for i, own in enumerate(decided) if len(own) < STEPS and order.random() < 0.6]
        if not wait:
            continue
        answers = central.act([actors[i].request(actors[i].look()) for i in wait])
        for i, answer in zip(wait, answers, strict=True):
            action, _ = answer.actions["shared"]
            decided[i].append(action)
            actors[i].go_on(action)
        batches += 1
    assert central.counts.batches == batches < central.counts.requests == ACTORS * STEPS
    assert central.counts.slots == ACTORS * STEPS * SLOTS
    for i, own in enumerate(decided):
        for mine, expected in zip(own, alone(name, i), strict=True):
            np.testing.assert_allclose(mine, expected, rtol=0.0, atol=1e-5)
    assert len({np.stack(own).tobytes() for own in decided}) == ACTORS  # and they do differ


def test_columns_of_an_algorithm_come_back_to_whom_they_belong() -> None:
    central = policies(make("toy_recurrent"))
    actors = [Actor(i, central.algorithms["shared"]) for i in range(2)]
    for actor, answer in zip(actors, central.act([a.request(a.look()) for a in actors]), strict=True):
        actor.go_on(answer.actions["shared"][0])
    held = [actor.first.copy() for actor in actors]
    for first, answer in zip(held, central.act([a.request(a.look()) for a in actors]), strict=True):
        state = answer.actions["shared"][1]["recurrent_state"]  # [S, H] before the decision
        assert (np.abs(state).max(1) > 0).tolist() == (~first).tolist()


def test_a_new_incarnation_begins_afresh_and_an_old_one_disturbs_nobody() -> None:
    central = policies(make("toy_recurrent"))
    algorithm = central.algorithms["shared"]
    old, new = Actor(0, algorithm), Actor(0, algorithm, incarnation=1)
    old.go_on(central.act([old.request(old.look())])[0].actions["shared"][0])
    old.first[:] = new.first[:] = False  # nothing says that an episode begins

    def before(actor: Actor) -> Any:
        return central.act([actor.request(actor.look())])[0].actions["shared"][1]["recurrent_state"]

    assert np.abs(before(old)).max() > 0
    assert (before(new) == 0).all()  # a state of its own, and none yet
    assert np.abs(before(new)).max() > 0
    assert (before(old) == 0).all()  # one that was replaced has none any more
    assert np.abs(before(new)).max() > 0  # and took nothing from its successor
    central.forget(0)
    assert (before(new) == 0).all()


def test_slots_whose_state_was_lost_ask_for_their_return_anew() -> None:
    """A server that was restarted meets slots in the middle of an episode."""
    central = policies(make("decision_transformer"))
    actor = Actor(0, central.algorithms["shared"])
    actor.first[:], actor.reward[:], actor.action[:] = False, 3.0, 0.5
    central.act([actor.request(actor.look())])
    context = central._states[0][1]["shared"]
    np.testing.assert_array_equal(context.used, np.ones(SLOTS))
    np.testing.assert_array_equal(context.wanted[:, 0], actor.params["target_return"])


def test_answers_name_the_weights_that_chose_them() -> None:
    central, other = policies(make("double_dqn")), make("double_dqn")
    actor = Actor(0, other)
    assert central.act([actor.request(actor.look())])[0].versions == {}
    flat = -other.weights()
    central.load({"shared": Weights("shared", 2, 40, flat, 0.5)}, 0.6)
    inputs = actor.look()
    answer = central.act([actor.request(inputs)])[0]
    other.load_weights(flat)
    np.testing.assert_array_equal(answer.actions["shared"][0], other.act(inputs, None, "explore")[0])
    assert (answer.versions, answer.progress) == ({"shared": (2, 40)}, 0.6)


def test_states_are_joined_and_cut_whatever_they_are_made_of() -> None:
    states = [
        {"a": np.full((n, 2), float(n)), "b": (np.arange(n), None), "c": {"d": np.zeros((n, 0))}}
        for n in (1, 3)
    ]
    whole = join(states)
    assert whole["a"].shape == (4, 2) and whole["b"][0].tolist() == [0, 0, 1, 2]
    last = part(whole, slice(1, 4))
    assert last["a"].tolist() == states[1]["a"].tolist() and last["b"][1] is None
    last["a"][:] = 9.0
    assert whole["a"].max() == 3.0  # a copy
    with pytest.raises(TypeError, match="an acting state holds list; it must be arrays"):
        join([[1], [2]])
