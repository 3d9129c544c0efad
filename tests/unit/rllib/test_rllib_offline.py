"""Our datasets as RLlib's offline learners are handed them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ray.rllib.core.learner.training_data import TrainingData
from rllib_world import recipe_of

from seqrl_ray import api
from seqrl_ray.collecting import collect_into
from seqrl_ray.data.dataset import Dataset
from seqrl_ray.recipe import Recipe
from seqrl_ray.rllib.config import make_config, module_spec, settings_of
from seqrl_ray.rllib.offline import DatasetBatches
from seqrl_ray.rllib.preflight import groups_of
from seqrl_ray.rllib.spaces import observe
from seqrl_ray.rllib.state import learner_state, restore_learner


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


def offline_recipe(data, name: str, algorithm: str, **config) -> Recipe:
    source = data / name.partition("/")[2]
    return recipe_of(
        name,
        algorithm,
        f'data={{ source = "{source}" }}',
        'phase=[{ kind = "offline", updates = 10 }]',
        "stop.env_steps=0",
        config=config,
        model={"fcnet_hiddens": [8]},
    )


def batches(data, name: str, algorithm: str, **config) -> tuple[DatasetBatches, Dataset]:
    source = data / name.partition("/")[2]
    recipe = offline_recipe(data, name, algorithm, **config)
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


def test_equal_seeds_draw_equal_batches(data):
    one, two = (batches(data, "classic/mined_chain", "BC")[0] for _ in range(2))
    first, second = (next(b.iter_torch_batches(batch_size=16)) for b in (one, two))
    assert np.array_equal(part(first, "obs"), part(second, "obs"))


class Learning:
    """RLlib's learner of a recipe, as an Algorithm without env runners holds it."""

    def __init__(self, recipe: Recipe) -> None:
        self.config = make_config(recipe, groups_of(recipe), runners=0)
        self.source = self.config.offline_data_class(self.config)
        spec = self.config.get_multi_rl_module_spec(spaces={})
        self.learner = self.config.learner_class(config=self.config, module_spec=spec)
        self.learner.build()
        self.source.learner_handles = [self.learner]
        self.env_runner_group = None
        self.learner_group = self

    def iteration(self) -> dict:
        """What an iteration of RLlib's calls, with the count that CQL does not hand on."""
        return self.learner.update(
            training_data=TrainingData(data_iterators=[self.source]),
            minibatch_size=self.config.train_batch_size_per_learner,
            num_iters=self.config.dataset_num_iters_per_learner,
            timesteps=None,
        )

    def get_state(self, **kwargs) -> dict:
        return (
            {"learner": self.learner.get_state(**kwargs)}
            if "components" not in kwargs
            else {"learner": {"rl_module": self.learner.module.get_state()}}
        )

    def set_state(self, state: dict) -> None:
        self.learner.set_state(state["learner"])

    def foreach_learner(self, func, **kwargs):
        value = func(self.learner, **kwargs)
        return SimpleNamespace(result_or_errors=[SimpleNamespace(get=lambda: value)])


FAMILIES = {
    "BC": ("classic/mined_chain", {"lr": [[0, 1e-3], [320, 1e-4]]}),
    "MARWIL": ("classic/mined_chain", {"beta": 1.0, "moving_average_sqd_adv_norm_update_rate": 0.1}),
    "CQL": ("classic/pendulum_sac", {"tau": 0.5}),
    "IQL": ("classic/pendulum_sac", {"tau": 0.5}),
}


def learning(data, algorithm: str, **config) -> Learning:
    name, own = FAMILIES[algorithm]
    given = {"train_batch_size_per_learner": 32, **own, **config}
    return Learning(offline_recipe(data, name, algorithm, **given))


@pytest.mark.parametrize("algorithm", ["CQL", "IQL"])
def test_targets_move_once_per_update(data, algorithm):
    run = learning(data, algorithm, dataset_num_iters_per_learner=5)
    moved: list[int] = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            "ray.rllib.algorithms.dqn.dqn_learner.update_target_network",
            lambda **pair: moved.append(run.learner.seen["updates"]),
        )
        found = run.iteration()
    assert found["__all_modules__"]["seqrl_updates"].peek() == 5
    assert sorted(set(moved)) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("algorithm", ["CQL", "IQL"])
def test_a_targets_period_is_counted_in_decisions(data, algorithm):
    run = learning(data, algorithm, dataset_num_iters_per_learner=6, target_network_update_freq=64)
    moved: list[int] = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            "ray.rllib.algorithms.dqn.dqn_learner.update_target_network",
            lambda **pair: moved.append(run.learner.seen["updates"]),
        )
        run.iteration()
    assert sorted(set(moved)) == [2, 4, 6]  # 64 decisions are two batches


def test_schedules_follow_every_update(data):
    run = learning(data, "BC", dataset_num_iters_per_learner=5)
    run.iteration()
    (optimizer,) = run.learner._named_optimizers.values()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 - 0.9e-3 * 160 / 320)


@pytest.mark.parametrize("algorithm", FAMILIES)
def test_one_update_per_iteration_is_one(data, algorithm):
    run = learning(data, algorithm, dataset_num_iters_per_learner=1)
    for _ in range(2):
        assert run.iteration()["__all_modules__"]["seqrl_updates"].peek() == 1


@pytest.mark.parametrize("algorithm", FAMILIES)
def test_a_run_makes_no_more_updates_than_it_may(data, algorithm):
    """The recipe asks for 10."""
    run = learning(data, algorithm, dataset_num_iters_per_learner=7)
    assert [run.iteration()["__all_modules__"]["seqrl_updates"].peek() for _ in range(2)] == [7, 3]
    assert not run.config.min_time_s_per_iteration, "an iteration is one call"
    assert not run.config.min_train_timesteps_per_iteration


def test_cql_comes_to_the_end_of_its_cloning(data):
    run = learning(data, "CQL", dataset_num_iters_per_learner=2, bc_iters=5)
    seen: list[int] = []
    peek = run.learner.metrics.peek

    def noted(key, *args, **kwargs):
        value = peek(key, *args, **kwargs)
        if key == ("__all_modules__", "training_iteration"):
            seen.append(int(value))
        return value

    run.learner.metrics.peek = noted
    for _ in range(3):
        run.iteration()
    assert seen == [1, 2, 3, 4, 5, 6], "RLlib's own count begins anew with each report"


@pytest.mark.parametrize("algorithm", FAMILIES)
def test_what_an_offline_run_has_learned_is_kept_and_taken_up(data, algorithm):
    first, second = (learning(data, algorithm, dataset_num_iters_per_learner=3) for _ in range(2))
    first.iteration()
    saved = learner_state(first)
    restore_learner(second, saved)
    np.testing.assert_equal(learner_state(second), saved)
    assert second.learner.seen == {"decisions": 3 * 32, "updates": 3}
    if algorithm == "MARWIL":
        kept = saved["coefficients"]["moving_avg_sqd_adv_norms_per_module"]["default_policy"]
        assert kept != 100.0, "it has left its first value"
    if algorithm == "BC":
        second.iteration()
        (optimizer,) = second.learner._named_optimizers.values()
        assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-3 - 0.9e-3 * 192 / 320)
