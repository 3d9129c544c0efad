from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

import seqrl_ray
from seqrl_ray.algorithms import names, settings_class
from seqrl_ray.errors import RecipeError
from seqrl_ray.settings import Settings, parse

PACKAGE = Path(seqrl_ray.__file__).parent


def test_an_unknown_name_is_answered_with_the_closest() -> None:
    with pytest.raises(RecipeError) as error:
        settings_class("doubledqn")
    assert str(error.value) == (
        "algorithm.name='doubledqn' is not an algorithm. Did you mean \"double_dqn\"? "
        f"Known: {', '.join(names())}."
    )


@pytest.mark.parametrize("name", names())
def test_every_key_has_a_default_and_a_description(name: str) -> None:
    cls = settings_class(name)
    assert issubclass(cls, Settings)
    cls()
    assert all(info.description for info in cls.model_fields.values())


def test_reading_settings_imports_no_torch() -> None:
    code = (
        "import sys; from seqrl_ray.algorithms import names, settings_class; "
        "[settings_class(n) for n in names()]; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=PACKAGE.parent).returncode == 0


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"target_tau": 0.1, "target_period_updates": 5}, "are both set"),
        ({"target_tau": 0.0}, "are neither set"),
        ({"gamma": 1.0}, "algorithm.gamma=1.0 is refused"),
        ({"lerning_rate": 0.1}, 'algorithm.lerning_rate is not a setting. Did you mean "learning_rate"?'),
    ],
)
def test_broken_rules_are_named(table: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message.replace("?", r"\?")):
        parse(settings_class("dqn"), table, "algorithm")


def test_a_burn_in_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(ValidationError, match="burn_in_steps=4 is not below window_steps=4"):
        settings_class("toy_recurrent")(window_steps=4, burn_in_steps=4)


def closure(entry: Path) -> set[Path]:
    """Files of this package that `entry` leads to by static imports, itself included."""
    seen: set[Path] = set()
    waiting = [entry]
    while waiting:
        file = waiting.pop()
        if file in seen:
            continue
        seen.add(file)
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("seqrl_ray"):
                stem = PACKAGE.joinpath(*str(node.module).split(".")[1:])
                waiting += [p for p in (stem.with_suffix(".py"), stem / "__init__.py") if p.is_file()]
    return seen


@pytest.mark.parametrize("name", names())
def test_one_algorithm_is_one_short_read(name: str) -> None:
    files = closure(PACKAGE / "algorithms" / f"{name}.py")
    lines = sum(len(f.read_text().splitlines()) for f in files)
    assert len(files) <= 8, sorted(f.name for f in files)
    assert lines <= 1500, lines
