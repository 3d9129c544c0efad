from __future__ import annotations

import pytest

from tests.unit.runtime.service_world import World


@pytest.fixture
def world(monkeypatch):
    made = World()
    monkeypatch.setattr("seqrl_ray.runtime.remote_replay.ray", made.ray)
    yield made
    made.close()
