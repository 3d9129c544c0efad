"""From JSON to arrays: what fits goes through to the bit, and everything else is refused in one line."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from seqrl_ray.envs.grouping import AgentInfo, assign
from seqrl_ray.recipe_env import PolicySettings
from seqrl_ray.serving.inputs import MAX_SESSION_NAME, Ask, Shape, parse
from seqrl_ray.serving.refusals import Refused
from seqrl_ray.types import ActionSpec, ArraySpec, GroupSpec, Slot


def group(obs: ArraySpec, action: ActionSpec, frame_stack: int = 1, masked: bool = False) -> GroupSpec:
    slot = Slot(0, "agent", obs.size, action.n)
    return GroupSpec("shared", (slot,), obs, action, frame_stack, masked)


THREE = ActionSpec("discrete", n=3)
BOX = ActionSpec("box", shape=(2,), low=(-1.0, -1.0), high=(1.0, 1.0))
PLAIN = Shape(group(ArraySpec((2,), "float32"), THREE), stateful=False)
IMAGE = Shape(group(ArraySpec((2, 2), "uint8"), THREE, frame_stack=3), stateful=False)
MEMORY = Shape(group(ArraySpec((2,), "float32"), THREE), stateful=True, target_return=7.0)
SIGNALS = Shape(
    assign(
        [
            AgentInfo("north", ArraySpec((3,), "float32"), ActionSpec("discrete", n=2), masked=True),
            AgentInfo("south", ArraySpec((2,), "float32"), ActionSpec("discrete", n=4), masked=True),
        ],
        {"shared": PolicySettings(agent_one_hot=True)},
        1,
    )["shared"],
    stateful=False,
)


def read(given: Any, *shapes: Shape, explore: bool = False) -> Ask:
    named = {f"p{i}" if len(shapes) > 1 else "shared": shape for i, shape in enumerate(shapes)}
    body = given if isinstance(given, bytes) else json.dumps(given).encode()
    return parse(body, named, max_rows=4, explore=explore)


def refusal(given: Any, *shapes: Shape) -> str:
    with pytest.raises(Refused) as caught:
        read(given, *shapes)
    text = str(caught.value)
    assert "\n" not in text and 10 < len(text) < 400
    return text


def test_numbers_go_through_to_the_bit():
    given = [[0.1, -3], [1e-30, 2.5]]
    ask = read({"obs": given}, PLAIN)
    assert ask.obs.dtype == np.float32
    assert (ask.obs == np.array(given, np.float32)).all()
    assert ask.legal is None and ask.session is None and not ask.explore
    frames = np.arange(12).reshape(1, 3, 2, 2)
    ask = read({"obs": frames.tolist()}, IMAGE)
    assert ask.obs.dtype == np.uint8 and (ask.obs == frames).all()


WRONG: dict[str, tuple[Any, Shape, str]] = {
    "no JSON": (b"{obs", PLAIN, "no JSON"),
    "not UTF-8": (b"\xff\xfe\xfa", PLAIN, "no JSON"),
    "an endless number": (b'{"obs": [[' + b"9" * 5000 + b", 1]]}", PLAIN, "no JSON"),
    "deep nesting": (b"[" * 200_000, PLAIN, "no JSON"),
    "no object": ([1], PLAIN, "a list, not an object"),
    "a misspelt key": ({"ob": [[1, 2]]}, PLAIN, 'Did you mean "obs"'),
    "nothing": ({}, PLAIN, "obs is missing"),
    "no rows": ({"obs": []}, PLAIN, "at least one row"),
    "a number": ({"obs": 3}, PLAIN, "at least one row"),
    "too many rows": ({"obs": [[1, 2]] * 5}, PLAIN, "a request may have 4"),
    "a bare row": ({"obs": [1, 2]}, PLAIN, "[2, 2], and has [2]"),
    "a feature less": ({"obs": [[1], [2]]}, PLAIN, "[2, 2], and has [2, 1]"),
    "ragged rows": ({"obs": [[1, 2], [1]]}, PLAIN, "different lengths"),
    "texts": ({"obs": [["1", "2"]]}, PLAIN, "must hold numbers"),
    "a text among numbers": ({"obs": [[1, "2"]]}, PLAIN, "must hold numbers"),
    "null": ({"obs": [[1, None]]}, PLAIN, "must hold numbers"),
    "booleans": ({"obs": [[True, False]]}, PLAIN, "must hold numbers"),
    "objects": ({"obs": [[{}, {}]]}, PLAIN, "must hold numbers"),
    "a huge integer": ({"obs": [[10**400 // 10**370, 1]]}, PLAIN, "must hold numbers"),
    "NaN": (b'{"obs": [[NaN, 1]]}', PLAIN, "NaN, infinity"),
    "infinity": (b'{"obs": [[1e999, 1]]}', PLAIN, "NaN, infinity"),
    "more than float32": ({"obs": [[1e300, 1]]}, PLAIN, "too large for float32"),
    "one frame of three": ({"obs": np.zeros((1, 2, 2), int).tolist()}, IMAGE, "[1, 3, 2, 2]"),
    "a pixel of 256": ({"obs": np.full((1, 3, 2, 2), 256).tolist()}, IMAGE, "[0, 255]"),
    "half a pixel": ({"obs": np.full((1, 3, 2, 2), 0.5).tolist()}, IMAGE, "whole numbers"),
    "another policy": ({"policy": "share", "obs": [[1, 2]]}, PLAIN, 'Did you mean "shared"'),
    "a policy of another type": ({"policy": ["shared"], "obs": [[1, 2]]}, PLAIN, "not served here"),
    "a mask for nobody": ({"obs": [[1, 2]], "legal": [[True] * 3]}, PLAIN, "may always take"),
    "a session for nothing": ({"obs": [[1, 2]], "session": "a"}, PLAIN, "keeps nothing"),
    "exploring": ({"obs": [[1, 2]], "explore": True}, PLAIN, "not offered here"),
    "exploring by number": ({"obs": [[1, 2]], "explore": 1}, PLAIN, "true or false"),
    "no session": ({"obs": [[1, 2]], "is_first": True}, MEMORY, "needs a session"),
    "an empty name": ({"obs": [[1, 2]], "session": "", "is_first": True}, MEMORY, "needs a session"),
    "a long name": (
        {"obs": [[1, 2]], "session": "x" * (MAX_SESSION_NAME + 1), "is_first": True},
        MEMORY,
        "needs a session",
    ),
    "no reward": ({"obs": [[1, 2]], "session": "a"}, MEMORY, "reward is missing"),
    "no reward of the row that goes on": (
        {"obs": [[1, 2]] * 2, "session": "a", "is_first": [True, False]},
        MEMORY,
        "reward is missing",
    ),
    "a reward too many": ({"obs": [[1, 2]], "session": "a", "reward": [1, 2]}, MEMORY, "[1], and has [2]"),
    "is_first by number": ({"obs": [[1, 2]], "session": "a", "is_first": [2]}, MEMORY, "booleans"),
    "an action that does not exist": (
        {"obs": [[1, 2]], "session": "a", "reward": [0], "prev_action": [3]},
        MEMORY,
        "not in [0, 3)",
    ),
    "a target in mid-episode": (
        {"obs": [[1, 2]], "session": "a", "reward": [0], "target_return": 3},
        MEMORY,
        "mid-episode",
    ),
    "no mask": ({"obs": [[0] * 5]}, SIGNALS, "legal is missing"),
    "an empty mask": ({"obs": [[0] * 5], "legal": [[False] * 4]}, SIGNALS, "allows no action"),
    "a mask of numbers": ({"obs": [[0] * 5], "legal": [[1, 2, 0, 0]]}, SIGNALS, "booleans"),
    "another agent": (
        {"obs": [[0] * 3], "legal": [[True] * 2], "agent": ["nord"]},
        SIGNALS,
        'Did you mean "north"',
    ),
    "an agent too few": ({"obs": [[0] * 3], "legal": [[True] * 2], "agent": []}, SIGNALS, "one per row"),
    "another agent's row": ({"obs": [[0] * 2], "legal": [[True] * 2], "agent": ["north"]}, SIGNALS, "obs[0]"),
    "another agent's mask": (
        {"obs": [[0] * 3], "legal": [[True] * 3], "agent": ["north"]},
        SIGNALS,
        "legal[0]",
    ),
    "only actions that the agent lacks": (
        {"obs": [[0] * 3], "legal": [[False, False, True, True]], "agent": ["north"]},
        SIGNALS,
        "allows no action",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_does_not_fit_is_refused_in_one_line(what):
    given, shape, part = WRONG[what]
    assert part in refusal(given, shape)


def test_a_policy_is_named_where_there_are_several():
    assert "p0, p1" in refusal({"obs": [[1, 2]]}, PLAIN, MEMORY)
    assert read({"obs": [[1, 2]], "policy": "p0"}, PLAIN, MEMORY).policy_id == "p0"


def test_an_agents_own_row_is_padded_as_the_environment_pads_it():
    given = {
        "obs": [[4, 5], [1, 2, 3]],
        "agent": ["south", "north"],
        "legal": [[True, False, False, True], [False, True]],
    }
    ask = read(given, SIGNALS)
    assert ask.obs.tolist() == [[4, 5, 0, 0, 1], [1, 2, 3, 1, 0]]
    assert ask.legal is not None
    assert ask.legal.tolist() == [[True, False, False, True], [False, True, False, False]]
    whole = {"obs": ask.obs.tolist(), "legal": ask.legal.tolist()}
    for same in (read(whole, SIGNALS), read({**whole, "agent": given["agent"]}, SIGNALS)):
        assert (same.obs == ask.obs).all() and same.legal is not None and (same.legal == ask.legal).all()


def test_a_session_is_read():
    given = {"obs": [[1, 2], [3, 4]], "session": "a", "is_first": [True, False], "reward": [0, 1.5]}
    ask = read({**given, "prev_action": [0, 2], "end": True}, MEMORY)
    assert ask.is_first is not None and ask.is_first.tolist() == [True, False]
    assert ask.reward is not None and ask.reward.tolist() == [0.0, 1.5] and ask.reward.dtype == np.float32
    assert ask.prev_action is not None and ask.prev_action.tolist() == [0, 2]
    assert ask.session == "a" and ask.end and ask.target_return is None
    begun = read({"obs": [[1, 2]] * 2, "session": "a", "is_first": True, "target_return": 3}, MEMORY)
    assert begun.target_return is not None and begun.target_return.tolist() == [3.0, 3.0]
    each = read({"obs": [[1, 2]] * 2, "session": "a", "is_first": True, "target_return": [3, 4]}, MEMORY)
    assert each.target_return is not None and each.target_return.tolist() == [3.0, 4.0]
    aimless = Shape(MEMORY.group, stateful=True)
    assert "takes none" in refusal(
        {"obs": [[1, 2]], "session": "a", "is_first": True, "target_return": 3}, aimless
    )


def test_continuous_actions_before_this_one_have_their_shape():
    shape = Shape(group(ArraySpec((2,), "float32"), BOX), stateful=True)
    given = {"obs": [[1, 2]], "session": "a", "reward": [0], "prev_action": [[0.5, -0.5]]}
    ask = read(given, shape)
    assert ask.prev_action is not None and ask.prev_action.tolist() == [[0.5, -0.5]]
    assert "[1, 2]" in refusal({**given, "prev_action": [1]}, shape)


def test_exploring_is_read_where_it_is_offered():
    assert read({"obs": [[1, 2]], "explore": True}, PLAIN, explore=True).explore
    assert not read({"obs": [[1, 2]]}, PLAIN, explore=True).explore
