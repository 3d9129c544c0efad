"""Our datasets as RLlib's offline learners are handed them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rllib_world import recipe_of

from seqrl_ray import api
from seqrl_ray.collecting import collect_into
from seqrl_ray.data.dataset import Dataset
from seqrl_ray.rllib.config import make_config, module_spec, settings_of
from seqrl_ray.rllib.offline import DatasetBatches, per_iteration
from seqrl_ray.rllib.preflight import groups_of
from seqrl_ray.rllib.spaces import observe


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Random play on a masked chain and on the pendulum."""
    root = tmp_path_factory.mktemp("datasets")
    for name in ("classic/mined_chain", "classic/pendulum_sac"):
        recipe = api.read_recipe(name, ['algorithm={ name = "random" }', "actors.envs_per_actor=2"])
        collect_into(
            recipe,
            root / name.partition("/")[2],
            steps=400,
            run=None,
            controller=None,
            noise=0.0,
            mode="explore",
            local=True,
            address=None,
            quiet=True,
        )
    return root


def batches(data, name: str, algorithm: str, **config) -> tuple[DatasetBatches, Dataset]:
    source = data / name.partition("/")[2]
    recipe = recipe_of(
        name,
        algorithm,
        f'data={{ source = "{source}" }}',
        'phase=[{ kind = "offline", updates = 10 }]',
        "stop.env_steps=0",
        config=config,
        model={"fcnet_hiddens": [8]},
    )
    groups = groups_of(recipe)
    made = make_config(recipe, groups, runners=0)
    (group,) = groups.values()
    from ray.rllib.core.rl_module.multi_rl_module import MultiRLModuleSpec

    spec = module_spec(made, settings_of(recipe), group)
    module = MultiRLModuleSpec(rl_module_specs={"default_policy": spec}).build()
    given = made.offline_data_class(made)
    given.learner_handles = [SimpleNamespace(module=module)]
    return given, Dataset.open(source)


def part(flat: dict, name: str) -> np.ndarray:
    return flat[f"default_policy/{name}"].numpy()


def test_every_decision_is_drawn_with_its_own_action_and_mask(data):
    """A decision of the batch is one of the data's, and all of them come up."""
    source, dataset = batches(data, "classic/mined_chain", "BC")
    columns, group = dataset.columns, dataset.group
    decisions = np.flatnonzero(~columns["final"])
    seen = observe(group, np.asarray(columns["obs"][decisions]), np.asarray(columns["legal"][decisions]))
    known = {(*row.tolist(), int(a)) for row, a in zip(seen, columns["action"][decisions], strict=True)}
    drawn = set()
    stream = source.iter_torch_batches(batch_size=64)
    for _ in range(60):
        flat = next(stream)
        obs, action = part(flat, "obs"), part(flat, "actions")
        assert obs.shape == (64, group.obs.size + group.action.n) and obs.dtype == np.float32
        drawn |= {(*row.tolist(), int(a)) for row, a in zip(obs, action, strict=True)}
    assert drawn == known


def test_continuous_actions_are_handed_over_as_the_network_puts_them_out(data):
    source, dataset = batches(data, "classic/pendulum_sac", "CQL", train_batch_size_per_learner=32)
    flat = next(source.iter_torch_batches(batch_size=32))
    actions, obs, after = (part(flat, name) for name in ("actions", "obs", "new_obs"))
    assert actions.shape == (32, 1) and np.abs(actions).max() <= 1.0
    rows = [int(np.flatnonzero((dataset.columns["obs"] == row).all(1))[0]) for row in obs]
    assert np.allclose(actions * 2.0, dataset.columns["action"][rows], atol=1e-6)
    assert np.array_equal(after, dataset.columns["obs"][np.array(rows) + 1])
    assert np.allclose(part(flat, "rewards"), dataset.columns["reward"][rows], atol=1e-5)


def test_marwil_is_given_whole_episodes(data):
    source, dataset = batches(data, "classic/mined_chain", "MARWIL", beta=1.0)
    flat = next(source.iter_torch_batches(batch_size=50))
    kept = part(flat, "loss_mask")  # False at the step that RLlib adds to each episode for its last value
    assert kept.sum() >= 50
    ends = np.flatnonzero(~kept)
    lengths = set((dataset.episode_rows - 1).tolist())
    assert {int(n) for n in np.diff(np.concatenate([[-1], ends])) - 1} <= lengths
    assert torch.isfinite(flat["default_policy/advantages"]).all()


@pytest.mark.parametrize(
    ("left", "each"), [(1_000, 100), (40, 40), (130, 65), (101, 100), (97, 97), (2, 2), (1, 2)]
)
def test_whole_iterations_make_the_updates_that_are_left(left, each):
    assert per_iteration(left) == each


def test_equal_seeds_draw_equal_batches(data):
    one, two = (batches(data, "classic/mined_chain", "BC")[0] for _ in range(2))
    first, second = (next(b.iter_torch_batches(batch_size=16)) for b in (one, two))
    assert np.array_equal(part(first, "obs"), part(second, "obs"))
