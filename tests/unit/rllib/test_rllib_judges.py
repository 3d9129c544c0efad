"""What the evaluators of a run of RLlib's ask of the cluster, without Ray."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from rllib_world import recipe_of

from seqrl_ray.loops.evaluate import POLICY
from seqrl_ray.loops.judge import Job
from seqrl_ray.rllib import judging
from seqrl_ray.rllib.judging import Judges
from seqrl_ray.runtime.supervisor import Budget


class Asked:
    """Stands for Ray: notes what is asked for each process."""

    def __init__(self) -> None:
        self.cpus: list[float] = []
        self.ended = 0

    def remote(self, kind: type) -> Any:
        return SimpleNamespace(options=self.options)

    def options(self, *, num_cpus: float, **more: Any) -> Any:
        def made(recipe: Any) -> Any:
            self.cpus.append(num_cpus)
            return SimpleNamespace(play=SimpleNamespace(remote=lambda job, weights: "call"))

        return SimpleNamespace(remote=made)

    def kill(self, process: Any, no_restart: bool) -> None:
        self.ended += 1


def test_beside_the_run_nothing_is_asked_and_after_it_what_the_runners_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = Asked()
    monkeypatch.setattr(judging, "ray", asked)
    judges = Judges(recipe_of("classic/cartpole"), Budget(3), cpus=1.0, workers=2, at_s=lambda: 0.0)
    judges.begin([1, 2], {}, {"env_steps": 0})
    judges.begin([1, 2], {}, {"env_steps": 9})  # one is going on
    assert asked.cpus == [0.0], "runners and learner have every CPU that was reserved"

    def pool(make: Any, jobs: Any, weights: Any, *, workers: int, **more: Any) -> dict[str, Any]:
        assert asked.ended == 1, "the one beside the run has gone"
        for _ in range(workers):
            make()
        return {}

    monkeypatch.setattr(judging, "play_jobs", pool)
    judges.final(lambda chunk: [Job(POLICY, (1,))], lambda job, total: None, {})
    assert asked.cpus == [0.0, 1.0, 1.0]
