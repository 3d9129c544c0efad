"""What only an actor finds wrong arrives as its own message, and no run folder is left behind."""

from __future__ import annotations

import os

import pytest

from seqrl_ray import api
from seqrl_ray.errors import CheckpointError, EnvError
from seqrl_ray.recipe import find
from seqrl_ray.runtime.session import cause_of
from tests.system.runs import SMALL

pytestmark = pytest.mark.system

MESSAGE = "licence=none covers one process only: nothing can be made. Buy another."
ONLY_HERE = f"""\
import os

import gymnasium

from seqrl_ray.errors import EnvError


def make():
    if os.getpid() != {{pid}}:
        raise EnvError({MESSAGE!r})
    return gymnasium.make("CartPole-v1")
"""


@pytest.mark.parametrize("wiring", ["colocated", "service"])
def test_an_environment_that_only_an_actor_cannot_make(ray_here, tmp_path, wiring):
    """The caller's process can make it, so the preflight lets it pass."""
    (tmp_path / f"only_here_{wiring}.py").write_text(ONLY_HERE.format(pid=os.getpid()))
    recipe = tmp_path / "mine.toml"
    recipe.write_text(find("classic/cartpole").read_text())
    overrides = [*SMALL, f"env.id=only_here_{wiring}:make", f"replay.wiring={wiring}"]
    with pytest.raises(EnvError) as refused:
        api.train(recipe, overrides, run_dir=tmp_path / "run", quiet=True)
    assert str(refused.value) == MESSAGE
    assert type(refused.value) is EnvError  # not Ray's wrapper, whose text is the worker's traceback
    assert not (tmp_path / "run").exists()


def test_cause_of_gives_our_errors_back_and_leaves_others_alone(ray_here):
    import ray
    from ray.exceptions import RayActorError, RayTaskError

    class Refusing:
        def __init__(self, error: Exception | None) -> None:
            if error is not None:
                raise error

        def fail(self, error: Exception | None) -> None:
            if error is not None:
                raise error

    def caught(in_constructor: Exception | None, in_method: Exception | None) -> Exception:
        actor = ray.remote(Refusing).options(num_cpus=0).remote(in_constructor)
        with pytest.raises((RayActorError, RayTaskError)) as failed:
            ray.get(actor.fail.remote(in_method))
        return cause_of(failed.value)

    ours = CheckpointError("a=1 is too small: b is lost. Raise a.")
    for cause in (caught(ours, None), caught(None, ours)):
        assert (type(cause), str(cause)) == (CheckpointError, str(ours))
    assert isinstance(caught(ZeroDivisionError("theirs"), None), RayActorError)
    theirs = caught(None, ZeroDivisionError("theirs"))
    assert isinstance(theirs, RayTaskError)
    assert "in fail" in str(theirs)  # the worker's traceback
