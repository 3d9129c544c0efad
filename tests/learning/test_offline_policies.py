"""Policies learnt from data alone, each with a bar set beforehand; `pytest -m learning -s` shows figures.

Data are collected here, with the recipes' own seeds: minutes on two cores, no download.
"""

from __future__ import annotations

from typing import Any

import pytest

from seqrl_ray import api
from seqrl_ray.data.merge import merge

pytestmark = [pytest.mark.learning, pytest.mark.timeout(3600)]

SEEDS = range(3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One folder for the module: what the first seed collects into ./datasets, the others find."""
    with pytest.MonkeyPatch.context() as patch:
        path = tmp_path_factory.mktemp("offline")
        patch.chdir(path)
        yield path


def judged(folder, recipe: str, seed: int, *overrides: str, label: str = "") -> dict[str, float]:
    """The means of a final policy's evaluation, printed."""
    run = folder / f"{recipe.replace('/', '-')}{label.replace(' ', '-')}-{seed}"
    summary: dict[str, Any] = api.train(
        recipe, [f"seed={seed}", *overrides], run_dir=run, local=True, quiet=True
    ).summary
    means = {name: float(value["mean"]) for name, value in summary["evaluation"].items()}
    shown = ", ".join(f"{name} {mean:.3f}" for name, mean in means.items())
    print(
        f"\n{recipe}{label} seed {seed}: {shown}; {summary['updates']:,} updates, {summary['wall_s']:.0f} s"
    )
    return means


def test_shortest_paths_are_put_together_from_random_walks(folder):
    """From start nodes where no walk of the data began."""
    for seed in SEEDS:
        assert judged(folder, "classic/graph_decision_transformer", seed)["within_1_1"] >= 0.95


def test_key_and_door_are_found_after_random_episodes(folder):
    """Chen et al. (2021), table 6: 94.6 %, and 95.1 % for %BC."""
    for seed in SEEDS:
        assert judged(folder, "classic/key_to_door_decision_transformer", seed)["success"] >= 0.90
        assert judged(folder, "classic/key_to_door_behavior_cloning", seed)["success"] >= 0.90


def test_imitating_every_random_episode_is_as_good_as_random(folder):
    """Chen et al. (2021), table 6: BC 1.6 %, random 3.1 %. What helps above is knowing what succeeded."""
    means = judged(
        folder, "classic/key_to_door_behavior_cloning", 0, "data.min_return=0.0", label=" of all episodes"
    )
    assert means["success"] <= 0.2


def test_a_return_that_is_asked_for_is_earned_where_the_data_are_mixed(folder):
    """CartPole from the episodes of a short DQN run with 0 to 100 % random actions; the recipe says how."""
    api.train("classic/cartpole", ["stop.env_steps=20_000"], run_dir=folder / "short", local=True, quiet=True)
    parts = [folder / "datasets" / f"cartpole_{noise}" for noise in (0.0, 0.3, 0.6, 1.0)]
    for part in parts:
        noise = float(part.name.removeprefix("cartpole_"))
        made = api.collect(
            "classic/cartpole",
            part,
            steps=20_000,
            run=folder / "short",
            noise=noise,
            greedy=True,
            local=True,
            quiet=True,
        )
        print(
            f"\nnoise {noise}: {made['episodes']} episodes, {made['steps'] / made['episodes']:.1f} steps each"
        )
    mixed = merge(parts, folder / "datasets" / "cartpole_mixed")
    print(f"\nmixed: {mixed.episodes} episodes, mean return {mixed.returns().mean():.1f}")
    for seed in SEEDS:
        assert judged(folder, "classic/cartpole_decision_transformer", seed)["return"] >= 195.0
