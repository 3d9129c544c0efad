from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import transitions

from seqrl_ray.algorithms import compiled, make_algorithm, settings_class
from seqrl_ray.errors import RecipeError
from seqrl_ray.types import GroupSpec

Build = Callable[..., Any]


@pytest.mark.parametrize(
    ("updates_left", "eager_s", "expected"),
    [(0, 0.001, False), (10_000, 0.001, False), (200_000, 0.001, True), (2_000, 0.1, True)],
)
def test_compiling_pays_only_for_a_long_rest_of_the_run(
    updates_left: int, eager_s: float, expected: bool
) -> None:
    assert compiled.pays(updates_left, eager_s) is expected


def test_no_compiler_is_said_before_anything_is_compiled(
    learner: Build, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert compiled.compiler() is None
    with pytest.raises(RecipeError, match=r"none of \$CXX, g\+\+, clang\+\+, c\+\+ is on PATH"):
        learner(compile_updates=4)


def test_an_algorithm_without_gradients_is_refused(group: GroupSpec) -> None:
    with pytest.raises(RecipeError, match=r'learner\.compile="on" does not fit Random'):
        compiled.enable(make_algorithm("random", settings_class("random")(), group))


@pytest.mark.slow
@pytest.mark.skipif(compiled.compiler() is None, reason="no C++ compiler on this machine")
@pytest.mark.parametrize(
    ("name", "settings", "masked"),
    [
        ("double_dqn", {"target_tau": 0.02}, True),
        (
            "double_dqn",
            {"target_tau": 0.0, "target_period_updates": 6, "dueling": True, "max_grad_norm": 0.05},
            False,
        ),
        ("double_dqn", {"target_tau": 0.02, "average_share": 0.1}, False),
        ("dqn", {"target_tau": 0.02, "layer_norm": True, "max_grad_norm": 0.0}, False),
    ],
)
def test_compiled_updates_equal_eager_ones(
    learner: Build, name: str, settings: dict[str, Any], masked: bool
) -> None:
    eager, graph = learner(name, **settings), learner(name, compile_updates=4, **settings)
    for call in range(4):  # 11 updates each: two graphs of four, and three done eagerly
        batch = transitions(11, 16, seed=call, masked=masked)
        one, two = (a.update(batch, {"learning_rate": 0.01}) for a in (eager, graph))
        np.testing.assert_allclose(one.priorities, two.priorities, rtol=0.0, atol=2e-6)
        assert one.metrics.keys() == two.metrics.keys()
        for key in one.metrics:
            assert one.metrics[key] == pytest.approx(two.metrics[key], abs=2e-6)
    assert eager.updates == graph.updates == 44
    for key, vector in eager.learned().items():
        np.testing.assert_allclose(vector, graph.learned()[key], rtol=0.0, atol=1e-6, err_msg=key)
    assert (
        np.abs(eager.learned()["online"] - eager.learned()["target"]).max() > 1e-3
    )  # and not because nothing moved
