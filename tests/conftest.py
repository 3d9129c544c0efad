"""What may run side by side: `make test` shares the tests out over two processes.

Tests that start a real Ray stay together in one of them, one after the other: two Rays at once on two cores
start slowly. All others stay together by file, because they share what their module makes.
"""

from __future__ import annotations

import os

import pytest

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Name every test's group, and put the longest, the one with Ray, first."""
    if not config.pluginmanager.hasplugin("xdist"):
        return
    for item in items:
        group = "ray" if item.get_closest_marker("system") else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: item.get_closest_marker("system") is None)
