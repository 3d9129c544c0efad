"""Return-conditioned transformers from offline data with a known answer. `pytest -m learning -s`."""

from __future__ import annotations

from pathlib import Path

import pytest

from seqrl_ray import api
from seqrl_ray.envs.toys import StitchGrid

pytestmark = [pytest.mark.learning, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the runs of this file collect their data, once."""
    return tmp_path_factory.mktemp("sequence")


def final_returns(folder: Path, recipe: str, *overrides: str) -> list[float]:
    returns = []
    for seed in range(3):
        run = folder / f"{recipe.replace('/', '-')}-{seed}"
        summary = api.train(recipe, [f"seed={seed}", *overrides], run_dir=run, local=True, quiet=True).summary
        returns.append(float(summary["evaluation"]["return"]["mean"]))
        print(f"\n{recipe} seed {seed}: {returns[-1]:.3f} after {summary['updates']:,} updates")
    return returns


def test_an_elastic_history_stitches_what_a_whole_one_cannot(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both asked for 4, the best in the data; the optimum, 5, takes half of each path."""
    monkeypatch.chdir(folder)
    plain = final_returns(folder, "classic/grid_stitch_decision_transformer")
    elastic = final_returns(folder, "classic/grid_stitch_elastic_dt")
    assert max(plain) <= 4.0
    assert min(elastic) == StitchGrid.optimum
