"""A run of RLlib's on a cluster that it fills: what is judged beside it asks for no CPU of its own.

`pytest -m slow tests/system/test_rllib_full_cluster.py`.
"""

from __future__ import annotations

import time

import pytest

from seqrl_ray.api import read_recipe
from seqrl_ray.rllib.launch import open_session
from tests.system.clusters import cluster_of
from tests.system.rllib_runs import TINY

pytestmark = [pytest.mark.system, pytest.mark.slow]

WAIT_S = 60.0


@pytest.mark.timeout(400)
def test_an_evaluation_beside_the_run_comes_about_on_a_full_cluster(tmp_path):
    more = ("actors.count=2", "learner.device=cpu", "stop.env_steps=100000000")
    recipe = read_recipe("classic/cartpole_ppo", [*TINY, *more])
    with cluster_of(2):  # two runners; the learner is this process
        session = open_session(recipe, root=tmp_path / "run" / "checkpoints", local=False)
        try:
            assert session.room.runners * session.room.runner_cpus == 2
            session.judge_interim([1, 2])
            until = time.monotonic() + WAIT_S
            judged = []
            while not judged and time.monotonic() < until:
                judged = session.advance(0.5).judged
            ((_, ends),) = judged
            assert [end.seed for end in ends] == [1, 2]
        finally:
            session.close()
