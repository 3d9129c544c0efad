"""Return-conditioned transformers from offline data with a known answer. `pytest -m learning -s`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from seqrl_ray import api
from seqrl_ray.data import DatasetWriter
from seqrl_ray.envs.toys import StitchGrid
from seqrl_ray.loops.build import rollout

pytestmark = [pytest.mark.learning, pytest.mark.timeout(3600)]

SEEDS = (0, 1, 2)


def collect(recipe_name: str, folder: Path, episode_steps: int) -> Path:
    """Play a recipe whose episodes all have the same length, and write them down."""
    recipe = api.read_recipe(recipe_name)
    assert recipe.actors.fragment_steps % episode_steps == 0
    player = rollout(recipe, 0, 0)
    ((_, group),) = player.env.groups.items()
    with DatasetWriter(folder, group) as writer:
        while writer.steps < recipe.stop.env_steps:
            (trajectory,) = player.fragment().trajectories
            ends = np.cumsum(trajectory.length)
            for end, length in zip(ends, trajectory.length, strict=True):
                assert length == episode_steps + 1
                rows = {name: column[end - length : end] for name, column in trajectory.columns.items()}
                whole = {n: rows[n][:-1] for n in ("obs", "action", "reward", "terminated", "truncated")}
                legal = rows.get("legal")
                whole |= {} if legal is None else {"legal": legal[:-1]}
                writer.append(whole, rows["obs"][-1], final_legal=None if legal is None else legal[-1])
    player.close()
    return folder


@pytest.fixture(scope="module")
def stitch_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return collect("classic/grid_stitch_random", tmp_path_factory.mktemp("data") / "grid_stitch", 12)


def final_returns(tmp_path: Path, recipe: str, data: Path, *overrides: str) -> list[float]:
    returns = []
    for seed in SEEDS:
        summary = api.train(
            recipe,
            [f"seed={seed}", f"data.source={str(data)!r}", *overrides],
            run_dir=tmp_path / f"{recipe.replace('/', '-')}-{seed}",
            local=True,
            quiet=True,
        ).summary
        returns.append(float(summary["evaluation"]["return"]["mean"]))
        print(f"\n{recipe} seed {seed}: {returns[-1]:.3f} after {summary['updates']:,} updates")
    return returns


def test_an_elastic_history_stitches_what_a_whole_one_cannot(tmp_path: Path, stitch_data: Path) -> None:
    """Both asked for 4, the best in the data; the optimum, 5, takes half of each path."""
    plain = final_returns(tmp_path, "classic/grid_stitch_decision_transformer", stitch_data)
    elastic = final_returns(tmp_path, "classic/grid_stitch_elastic_dt", stitch_data)
    assert max(plain) <= 4.0
    assert min(elastic) == StitchGrid.optimum
