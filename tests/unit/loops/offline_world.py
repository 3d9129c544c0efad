"""A small dataset of random CartPole episodes, and recipes that learn from it."""

from __future__ import annotations

from pathlib import Path

from seqrl_ray import api

ENV = """
[env]
kind = "gym"
id = "CartPole-v1"
max_episode_steps = 60
"""
RANDOM = f"""
name = "random_cartpole"
{ENV}
[algorithm]
name = "random"
[actors]
envs_per_actor = 3
fragment_steps = 7
[stop]
env_steps = 600
"""
LEARNER = """
name = "small_offline"
{env}
[data]
source = "{data}"
{phases}
[algorithm]
name = "online_dt"
units = 16
layers = 1
heads = 2
window_steps = 5
acting_steps = 3
warmup_updates = 0
learning_rate = 1e-3
target_return = 60.0
online_target_return = 60.0
return_scale = 60.0
[actors]
fragment_steps = 10
[replay]
capacity_steps = 5_000
samples_per_insert = 0.5
min_items = 8
[learner]
batch_size = 8
updates_per_call = 4
[evaluation]
episodes = 2
"""


def small_data(folder: Path) -> Path:
    """Collect 600 steps of random actions."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    recipe = folder.parent / "random.toml"
    recipe.write_text(RANDOM)
    api.collect(recipe, folder, local=True, quiet=True)
    return folder


def recipe_file(folder: Path, data: Path, *, phases: str) -> Path:
    """Write a recipe of `online_dt` on that data, and the random one beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "random.toml").write_text(RANDOM)
    path = folder / "learner.toml"
    path.write_text(LEARNER.format(env=ENV, data=data, phases=phases))
    return path
