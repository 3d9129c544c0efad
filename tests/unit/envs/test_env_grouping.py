import numpy as np
import pytest

from seqrl_ray.envs.grouping import AgentInfo, agents_of, assign, blank_rows, own_actions
from seqrl_ray.errors import RecipeError
from seqrl_ray.recipe_env import PolicySettings
from seqrl_ray.types import ActionSpec, ArraySpec


def agent(name, size=2, actions=3, masked=False):
    return AgentInfo(name, ArraySpec((size,), "float32", 0.5, 2.0), ActionSpec("discrete", n=actions), masked)


def image(name, shape=(4, 4, 1), dtype="uint8"):
    return AgentInfo(name, ArraySpec(shape, dtype, 0, 255), ActionSpec("discrete", n=3))


def box(name, high):
    return AgentInfo(
        name, ArraySpec((2,), "float32"), ActionSpec("box", shape=(1,), low=(0.0,), high=(high,))
    )


def test_first_matching_policy_wins_and_slots_go_copy_by_copy():
    groups = assign(
        [agent("north_1"), agent("south"), agent("north_2")],
        {"north": PolicySettings(agents=("north_*",)), "rest": PolicySettings()},
        num_envs=2,
    )
    assert list(groups) == ["north", "rest"]
    assert [(s.env, s.agent) for s in groups["north"].slots] == [
        (0, "north_1"),
        (0, "north_2"),
        (1, "north_1"),
        (1, "north_2"),
    ]
    assert agents_of(groups["rest"]) == ("south",)


def test_unequal_agents_are_padded_and_masked():
    group = assign([agent("a", 2, 3), agent("b", 5, 2)], {"p": PolicySettings()}, 1)["p"]
    assert group.obs == ArraySpec((5,), "float32", 0.0, 2.0)  # the padding's 0 is inside the bounds
    assert group.action.n == 3
    assert group.masked
    assert own_actions(group).tolist() == [[True, True, True], [True, True, False]]


def test_equal_agents_are_neither_padded_nor_masked():
    group = assign([agent("a"), agent("b")], {"p": PolicySettings()}, 1)["p"]
    assert (group.obs.low, group.masked) == (0.5, False)
    assert assign([agent("a", masked=True)], {"p": PolicySettings()}, 1)["p"].masked


def test_one_hot_stands_after_the_padding():
    group = assign([agent("a", 1), agent("b", 3)], {"p": PolicySettings(agent_one_hot=True)}, 2)["p"]
    rows = blank_rows(group)
    assert rows.tolist() == [[0, 0, 0, 1, 0], [0, 0, 0, 0, 1]] * 2
    assert (group.obs.low, group.obs.high) == (0.0, 2.0)


def test_images_keep_their_shape_and_type():
    group = assign([image("a"), image("b")], {"p": PolicySettings()}, 1)["p"]
    assert blank_rows(group).shape == (2, 4, 4, 1)
    assert blank_rows(group).dtype == np.uint8


@pytest.mark.parametrize(
    ("agents", "policies", "words"),
    [
        ([agent("a")], {"p": PolicySettings(agents=("b*",))}, "no pattern of b* matches agent 'a'"),
        (
            [agent("a")],
            {"p": PolicySettings(), "q": PolicySettings(agents=("a",))},
            "policies.q.agents='a' matches no agent that an earlier policy left over",
        ),
        ([image("a"), image("b", (2, 2, 1))], {"p": PolicySettings()}, "images are not padded"),
        (
            [image("a"), image("b", dtype="float32")],
            {"p": PolicySettings()},
            "different types float32, uint8",
        ),
        (
            [image("a")],
            {"p": PolicySettings(agent_one_hot=True)},
            "agent_one_hot=true needs vector observations",
        ),
        ([box("a", 1.0), box("b", 2.0)], {"p": PolicySettings()}, "different continuous actions"),
        ([box("a", 1.0), agent("b")], {"p": PolicySettings()}, "different continuous actions"),
    ],
)
def test_agents_that_do_not_fit_are_refused(agents, policies, words):
    with pytest.raises(RecipeError) as error:
        assign(agents, policies, 1)
    assert words in str(error.value)
