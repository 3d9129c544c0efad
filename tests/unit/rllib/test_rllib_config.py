"""What the bridge refuses before a run begins, and what it hands RLlib."""

from __future__ import annotations

import pytest
from rllib_world import group_of, recipe_of

from seqrl_ray import api, check
from seqrl_ray.errors import RecipeError
from seqrl_ray.rllib.config import fields, make_config, model_config, settings_of
from seqrl_ray.rllib.preflight import check_recipe, groups_of, unused_keys


def refusal(recipe, *, runners: int = 1) -> str:
    with pytest.raises(RecipeError) as error:
        make_config(recipe, groups_of(recipe), runners=runners)
    assert "\n" not in str(error.value)
    return str(error.value)


CASES = {
    "unknown field": (
        ("PPO", {"config": {"learning_rat": 1e-3}}),
        "algorithm.config.learning_rat is not a field of RLlib's PPOConfig that a recipe can set.",
    ),
    "misspelt field": (
        ("PPO", {"config": {"entropy_coef": 0.1}}),
        'that a recipe can set. Did you mean "entropy_coeff"? Known here: ',
    ),
    "a field of another algorithm": (
        ("PPO", {"config": {"epsilon": 0.1}}),
        "algorithm.config.epsilon is not a field of RLlib's PPOConfig",
    ),
    "a field that the recipe sets": (
        ("PPO", {"config": {"num_env_runners": 3}}),
        "algorithm.config.num_env_runners=3: the recipe's actors.count sets it, and one of them would be",
    ),
    "text for a number": (
        ("PPO", {"config": {"gamma": "high"}}),
        "algorithm.config.gamma='high' is not of the type of RLlib's default 0.99",
    ),
    "a value that RLlib refuses": (
        ("PPO", {"config": {"train_batch_size_per_learner": 64, "minibatch_size": 128}}),
        "algorithm.name='rllib:PPO': RLlib refuses the configuration: `minibatch_size` (128) must be <=",
    ),
    "unknown network setting": (
        ("PPO", {"model": {"fcnet_hidden": [8]}}),
        "algorithm.model.fcnet_hidden is not a field of RLlib's DefaultModelConfig. Did you mean",
    ),
    "not bridged": (("DreamerV3", {}), "algorithm.name='rllib:DreamerV3' is not bridged: "),
}


@pytest.mark.parametrize("case", CASES)
def test_what_rllib_does_not_know_is_refused_in_one_line(case):
    (algorithm, tables), message = CASES[case]
    assert message in refusal(recipe_of("classic/cartpole", algorithm, **tables))


def test_an_algorithm_without_a_mask_is_refused_where_actions_can_be_illegal():
    assert "policies.shared: some actions are illegal at times, and SAC has no network with a mask here" in (
        refusal(recipe_of("classic/mined_chain", "SAC"))
    )


def test_what_the_recipe_says_is_what_rllib_gets():
    recipe = recipe_of(
        "classic/cartpole",
        "PPO",
        "actors.count=3",
        "actors.envs_per_actor=5",
        "seed=11",
        config={"lr": [[0, 1e-3], [1000, 0.0]], "grad_clip": 0.5, "vf_clip_param": 100.0},
        model={"fcnet_hiddens": [8, 8]},
    )
    config = make_config(recipe, groups_of(recipe), runners=3, runner_cpus=0.5)
    assert (config.num_env_runners, config.num_envs_per_env_runner, config.num_cpus_per_env_runner) == (
        3,
        5,
        0.5,
    )
    assert (config.seed, config.grad_clip, config.vf_clip_param) == (11, 0.5, 100.0)
    assert config.lr == [[0, 1e-3], [1000, 0.0]]
    assert not config.is_multi_agent
    spec = config.get_rl_module_spec(spaces={})
    assert spec.model_config["fcnet_hiddens"] == [8, 8]
    assert spec.model_config["vf_share_layers"] is False, "PPO's own default stays where a recipe is silent"
    assert "num_env_runners" not in fields(config) and "lr" in fields(config)


def test_policies_are_the_recipes():
    recipe = recipe_of("multi_agent/door_grid_two_policies")
    config = make_config(recipe, groups_of(recipe), runners=0)
    assert set(config.policies) == {"walker", "climber"}
    assert config.policy_mapping_fn("climber", None) == "climber"
    shared = recipe_of("multi_agent/door_grid")
    config = make_config(shared, groups_of(shared), runners=0)
    assert set(config.policies) == {"shared"} and config.is_multi_agent
    assert config.policy_mapping_fn("walker", None) == "shared"


def test_a_replay_buffer_takes_the_episodes_of_several_agents():
    recipe = recipe_of("multi_agent/door_grid", "DQN", config={"replay_buffer_config": {"capacity": 500}})
    config = make_config(recipe, groups_of(recipe), runners=0)
    assert config.replay_buffer_config["type"] == "MultiAgentPrioritizedEpisodeReplayBuffer"
    assert config.replay_buffer_config["capacity"] == 500


def test_data_phases_and_settings_by_policy_are_refused():
    with pytest.raises(RecipeError, match=r"phases \['offline', 'online'\] and \[data\]: it learns in one"):
        check_recipe(recipe_of("traffic/cologne8_online_dt"))
    with pytest.raises(RecipeError, match=r"phases \['online'\] and no \[data\]: it learns from data alone"):
        check_recipe(recipe_of("classic/cartpole", "BC"))
    recipe = recipe_of("multi_agent/door_grid_two_policies")
    policies = dict(recipe.policies)
    policies["walker"] = policies["walker"].model_copy(update={"algorithm": {"config": {"lr": 0.1}}})
    with pytest.raises(RecipeError, match=r"policies.walker.algorithm with algorithm.name='rllib:PPO'"):
        check_recipe(recipe.model_copy(update={"policies": policies}))


def test_keys_that_are_not_read_are_said():
    (line,) = unused_keys(recipe_of("classic/cartpole"))
    assert line == (
        "not read, RLlib has its own under [algorithm.config]: replay.sampler, replay.capacity_steps, "
        "replay.samples_per_insert, learner.batch_size"
    )
    assert unused_keys(api.read_recipe("classic/cartpole_ppo")) == []


def test_none_stands_for_none():
    settings = settings_of(recipe_of("classic/cartpole", model={"conv_filters": "none"}))
    assert model_config(settings) == {"conv_filters": None}


@pytest.mark.parametrize("name", ["classic/cartpole_ppo", "classic/key_to_door_rllib_bc"])
def test_a_recipe_of_rllibs_can_be_checked(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # no dataset here
    found = check.check_recipe(name, steps=20)
    assert found.ok, found.lines
    assert "replay       RLlib's own, as [algorithm.config] says" in found.lines


def test_the_local_loop_is_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"--local with algorithm.name='rllib:PPO': RLlib runs on Ray"):
        api.train("classic/cartpole_ppo", run_dir=tmp_path / "run", local=True, quiet=True)
    assert not (tmp_path / "run").exists()
    assert group_of(api.read_recipe("classic/cartpole_ppo")).action.n == 2
