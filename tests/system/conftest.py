"""A real Ray for the system tests: one per test module, of our own, ended with it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    from seqrl_ray.runtime.launch import connected

    with connected("local"):
        yield
