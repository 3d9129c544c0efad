"""What the bridge refuses before a run begins, and what it hands RLlib."""

from __future__ import annotations

import pytest
from rllib_world import group_of, recipe_of

from seqrl_ray import api, check
from seqrl_ray.errors import RecipeError
from seqrl_ray.recipe import Recipe, write
from seqrl_ray.rllib.config import make_config, model_config, settings_of
from seqrl_ray.rllib.fields import NO_EFFECT, NO_EFFECT_OFFLINE, fields
from seqrl_ray.rllib.preflight import NOT_READ, REFUSED, check_recipe, groups_of, unused_keys


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
    "a field of RLlib's older stack": (
        ("PPO", {"config": {"num_gpus": 1}}),
        "algorithm.config.num_gpus=1: neither RLlib's present stack nor the bridge reads it, it would have "
        "no effect. Use learner.num_gpus.",
    ),
    "a field of the older stack that nothing replaces": (
        ("PPO", {"config": {"compress_observations": True}}),
        "it would have no effect. Leave it out: nothing here does what it did.",
    ),
    "a field that the bridge sets": (
        ("PPO", {"config": {"restart_failed_env_runners": False}}),
        "algorithm.config.restart_failed_env_runners=False: the recipe's actors.max_restarts_per_10_min sets",
    ),
    "the same name in two stacks": (
        ("IMPALA", {"config": {"epsilon": 0.01}}),
        "algorithm.config.epsilon=0.01: neither RLlib's present stack nor the bridge reads it",
    ),
    "a field that RLlib has done away with": (
        ("PPO", {"config": {"sgd_minibatch_size": 64}}),
        "algorithm.config.sgd_minibatch_size is not a field of RLlib's PPOConfig that a recipe can set.",
    ),
    "learners of an algorithm without": (
        ("MARWIL", {"config": {"num_learners": 2}}),
        "algorithm.config.num_learners=2: neither RLlib's present stack nor the bridge reads it",
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
        "not read by RLlib, which has most of them under [algorithm.config]: replay.sampler, "
        "replay.capacity_steps, replay.samples_per_insert, learner.batch_size"
    )
    assert unused_keys(api.read_recipe("classic/cartpole_ppo")) == []


READ = {
    "": ("name", "description", "seed", "prometheus", "folder"),
    "actors": ("count", "envs_per_actor", "hang_timeout_s", "max_restarts_per_10_min", "cpus"),
    "replay": (),
    "learner": (
        "device",
        "num_gpus",
        "threads",
        "checkpoint_every_s",
        "keep_checkpoints",
        "report_every_s",
    ),
    "stop": ("env_steps", "updates", "wall_s"),
}
"""What the bridge reads of the tables that it does not read whole."""
WHOLE = ("env", "algorithm", "policies", "data", "phase", "evaluation")


def test_every_key_of_a_recipe_is_read_or_said_or_refused():
    """A new key of the schema must be thought of here."""
    for name, info in Recipe.model_fields.items():
        if name in WHOLE or name in READ[""]:
            continue
        assert name in READ, f"[{name}] is read, not read, or refused?"
        for key in type(info.default).model_fields:
            unread = NOT_READ.get(name, ())
            places = (key in READ[name], f"{name}.{key}" in REFUSED, unread == "*" or key in unread)
            assert any(places), f"{name}.{key} is read, not read, or refused?"
            assert not (places[0] and any(places[1:])), f"{name}.{key} stands twice"


@pytest.mark.parametrize(
    ("override", "says"),
    [
        (
            "learner.count=2",
            "learner.count=2 with algorithm.name='rllib:PPO': RLlib has its own learners. Set",
        ),
        ("actors.count=[1, 4]", "actors.max_count=4 with algorithm.name='rllib:PPO': "),
        ('actors.label_selector={ zone = "a" }', "actors.label_selector={'zone': 'a'} with algorithm.name="),
        ('learner.label_selector={ zone = "a" }', "learner.label_selector={'zone': 'a'} with algorithm.name"),
        ('replay.label_selector={ zone = "a" }', "replay.label_selector={'zone': 'a'} with algorithm.name="),
    ],
)
def test_what_a_cluster_does_for_ours_and_not_for_rllibs_is_refused(override, says):
    with pytest.raises(RecipeError) as refused:
        check_recipe(recipe_of("classic/cartpole", "PPO", override))
    assert str(refused.value).startswith(says) and "\n" not in str(refused.value)


def test_a_range_of_one_number_is_a_number():
    check_recipe(recipe_of("classic/cartpole", "PPO", "actors.count=[2, 2]"))


def test_the_number_of_a_runs_actors_cannot_be_scaled(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    write(recipe_of("classic/cartpole"), run / "recipe.toml")
    (run / "metrics.jsonl").touch()
    with pytest.raises(RecipeError, match="is a run of rllib:PPO: RLlib's env runners are as many from"):
        api.scale(run, 1)
    assert not (run / "actors.json").exists()


def test_fields_without_effect_are_fields_of_rllibs():
    """A misspelt or outdated name in the tables would refuse nothing."""
    from ray.rllib.algorithms.registry import ALGORITHMS

    configs = [make()[1] for make in ALGORITHMS.values()]
    for name in {**NO_EFFECT, **NO_EFFECT_OFFLINE}:
        assert any(hasattr(config, name) for config in configs), name


def test_a_learner_process_is_given_its_cpus_and_threads():
    recipe = recipe_of("classic/cartpole", "IMPALA")
    config = make_config(recipe, groups_of(recipe), runners=1, learner_cpus=0.5, learner_threads=3)
    assert (config.num_learners, config.num_cpus_per_learner) == (1, 0.5)
    set_to: list[int] = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("torch.set_num_threads", set_to.append)
        config.build_learner()
    assert set_to == [3]


@pytest.mark.parametrize("algorithm", ["DQN", "SAC"])
def test_a_resumed_run_fills_its_buffer_again_before_it_learns(algorithm):
    name = "num_steps_sampled_before_learning_starts"
    recipe = recipe_of("classic/pendulum_sac" if algorithm == "SAC" else "classic/cartpole", algorithm)
    first, on = (make_config(recipe, groups_of(recipe), runners=1, sampled=n) for n in (0, 5000))
    assert getattr(on, name) == getattr(first, name) + 5000
    # Agents' steps, which RLlib counts from 0 again, need no more.
    by_agents = recipe_of("classic/cartpole", "DQN", config={"count_steps_by": "agent_steps"})
    assert getattr(make_config(by_agents, groups_of(by_agents), runners=1, sampled=5000), name) == 1000


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
