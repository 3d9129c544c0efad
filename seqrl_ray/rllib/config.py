"""From a recipe to RLlib's own configuration: what the recipe says goes where RLlib wants it,
`[algorithm.config]` and `[algorithm.model]` on top, and whatever RLlib does not know is refused by name
before anything is started.

| recipe                             | RLlib                                                                 |
|------------------------------------|-----------------------------------------------------------------------|
| actors.count, envs_per_actor, cpus | num_env_runners, num_envs_per_env_runner, num_cpus_per_env_runner     |
| actors.hang_timeout_s              | sample_timeout_s                                                      |
| learner.num_gpus, device, threads  | num_learners, num_gpus_per_learner, num_cpus_per_learner              |
| learner.report_every_s             | min_time_s_per_iteration, where an iteration is many small steps      |
| policies                           | policies, policy_mapping_fn (one agent: a single-agent run)           |
| seed                               | seed                                                                  |
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial
from typing import Any

from ray.rllib.algorithms.registry import ALGORITHMS
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModuleSpec
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.policy.policy import PolicySpec
from ray.tune.registry import register_env

from seqrl_ray.algorithms.rllib_settings import PREFIX, RllibSettings
from seqrl_ray.errors import RecipeError, did_you_mean
from seqrl_ray.recipe import Recipe
from seqrl_ray.rllib.callbacks import EpisodeReports, counting
from seqrl_ray.rllib.envs import create, single_agent
from seqrl_ray.rllib.fields import check_field
from seqrl_ray.rllib.masking import MASKED
from seqrl_ray.rllib.offline import OFFLINE, one_by_one, set_data
from seqrl_ray.rllib.spaces import action_space, observation_space
from seqrl_ray.settings import NONE, parse
from seqrl_ray.types import GroupSpec

Config = Any
"""RLlib's AlgorithmConfig of one algorithm; its own types are not kept to by its own code."""

ENV = "seqrl_ray"
"""Name of our environments in RLlib's registry."""

NOT_BRIDGED = {
    "DreamerV3": "its policy carries a world model's state, which our evaluator cannot feed",
}
"""Algorithms that RLlib registers and the bridge refuses, and why."""


def make_config(
    recipe: Recipe,
    groups: Mapping[str, GroupSpec],
    *,
    runners: int,
    runner_cpus: float = 1.0,
    num_gpus: float = 0.0,
    learner_cpus: float = 1.0,
    learner_threads: int = 0,
    one_process: bool = False,
    session: int = 0,
    sampled: int = 0,
    errors: str | None = None,
) -> Config:
    """Return RLlib's configuration of a run; building an Algorithm of it starts the run's processes.

    Args:
        recipe: the run.
        groups: policy id -> what it sees and does.
        runners: processes that step environments; 0 = the process that builds the Algorithm does.
        runner_cpus: CPUs each of them asks of Ray.
        num_gpus: GPUs of the learner.
        learner_cpus: CPUs that a learner process asks of Ray.
        learner_threads: of torch in it; 0 = as many as it begins with.
        one_process: no learner process of its own either, also where the algorithm's default is one.
        session: how often the run was taken up before; episodes of different sessions have different seeds.
        sampled: environment steps of the run before it was taken up: of none of them is a replay buffer left.
        errors: name of the actor that hears of the environments' tracebacks.
    Raises: RecipeError: RLlib has no such field, or refuses a value.
    """
    settings, name = settings_of(recipe), recipe.algorithm["name"]
    config = base_config(name, settings)
    default_learners = config.num_learners
    if is_offline(name):
        set_data(config, recipe, groups, name.removeprefix(PREFIX), session=session)
        runners, one_process = 0, True
    else:
        register_env(ENV, create)
        env_config = {"recipe": recipe, "session": session, "errors": errors}
        config.environment(ENV, env_config=env_config, disable_env_checking=True)
    config.env_runners(
        num_env_runners=runners,
        num_envs_per_env_runner=recipe.actors.envs_per_actor,
        num_cpus_per_env_runner=runner_cpus,
        sample_timeout_s=recipe.actors.hang_timeout_s,
    )
    if one_process and "num_learners" in settings.config:
        raise RecipeError(
            f"algorithm.config.num_learners={settings.config['num_learners']} where one process does all: it "
            "would have no effect. Leave it out."
        )
    learners = 0 if one_process else max(default_learners, 1 if num_gpus else 0)
    learner: type = config.get_default_learner_class()
    config.learners(
        num_learners=learners,
        num_gpus_per_learner=num_gpus,
        num_cpus_per_learner=learner_cpus,
        learner_class=counting(one_by_one(learner) if is_offline(name) else learner, learner_threads),
    )
    # How many deaths are too many is the session's to say: RLlib has no such thing as ten minutes.
    config.fault_tolerance(restart_failed_env_runners=True, delay_between_env_runner_restarts_s=1.0)
    config.debugging(seed=recipe.seed, log_level="ERROR")
    config.callbacks(EpisodeReports)
    _iteration(config, recipe, settings)
    if sampled and not is_offline(name) and config.count_steps_by == "env_steps":
        _fill_again(config, sampled)
    _policies(config, settings, groups, modules_of(name, groups))
    _multi_agent_replay(config, groups)
    _validated(config, recipe)
    return config


def is_offline(name: str) -> bool:
    """Return whether an algorithm of RLlib's learns from data alone."""
    return name.removeprefix(PREFIX) in OFFLINE


def remote_learners(recipe: Recipe, num_gpus: float) -> int:
    """Return how many learner processes beside the driver a run has."""
    name = recipe.algorithm["name"]
    if is_offline(name):
        return 0
    config = base_config(name, settings_of(recipe))
    return max(int(config.num_learners), 1 if num_gpus else 0)


def settings_of(recipe: Recipe) -> RllibSettings:
    """Return the `[algorithm]` table of a recipe of RLlib's."""
    return parse(RllibSettings, {k: v for k, v in recipe.algorithm.items() if k != "name"}, "algorithm")


def base_config(name: str, settings: RllibSettings) -> Config:
    """Return the algorithm's configuration with the fields of `[algorithm.config]`, and nothing of the run's.

    Raises: RecipeError: RLlib has no such field, a key of the recipe sets it, or its type is wrong.
    """
    plain = name.removeprefix(PREFIX)
    if plain in NOT_BRIDGED:
        raise RecipeError(
            f"algorithm.name={name!r} is not bridged: {NOT_BRIDGED[plain]}. Choose another algorithm."
        )
    config: Config = ALGORITHMS[plain]()[1]  # type: ignore[no-untyped-call]
    for field, given in settings.config.items():
        check_field(config, field, given, offline=is_offline(name))
        _check_type(f"algorithm.config.{field}", given, getattr(config, field))
    config.update_from_dict({k: _value(config, k, v) for k, v in settings.config.items()})
    if hasattr(config, "actor_lr") and "lr" not in settings.config:
        config.lr = None  # CQL's own default breaks the rule that its own check has for it
    return config


def model_config(settings: RllibSettings) -> dict[str, Any]:
    """Return the `[algorithm.model]` table.

    Raises: RecipeError: RLlib's networks have no such setting, or its type is wrong.
    """
    known = {field.name: field for field in dataclasses.fields(DefaultModelConfig)}
    defaults = dataclasses.asdict(DefaultModelConfig())
    for name, given in settings.model.items():
        if name not in known:
            raise RecipeError(
                f"algorithm.model.{name} is not a field of RLlib's DefaultModelConfig."
                f"{did_you_mean(name, known)} Known here: {', '.join(sorted(known))}."
            )
        _check_type(f"algorithm.model.{name}", given, defaults[name])
    return {k: None if v == NONE else v for k, v in settings.model.items()}


def modules_of(name: str, groups: Mapping[str, GroupSpec]) -> dict[str, str]:
    """Return policy id -> RLlib's name of its network.

    A run with one agent has one network, with RLlib's own name. So has one that learns from data, however
    many agents made it: a stream of a dataset is one agent's.
    """
    if is_offline(name) or single_agent(groups):
        return dict.fromkeys(groups, str(DEFAULT_MODULE_ID))
    return {policy_id: policy_id for policy_id in groups}


def module_spec(
    config: Config, settings: RllibSettings, group: GroupSpec, *, inference_only: bool = False
) -> RLModuleSpec:
    """Return what RLlib builds the network of a policy from.

    Raises: RecipeError: the group's actions can be illegal and the algorithm has no network with a mask.
    """
    spec: RLModuleSpec = config.get_default_rl_module_spec()
    if group.masked:
        masked = MASKED.get(spec.module_class) if isinstance(spec.module_class, type) else None
        if masked is None:
            raise RecipeError(
                f"policies.{group.policy_id}: some actions are illegal at times, and "
                f"{type(config).__name__.removesuffix('Config')} has no network with a mask here: it would "
                "choose them. Choose one that has (PPO, APPO, IMPALA, DQN, BC, MARWIL)."
            )
        spec.module_class = masked
    spec.observation_space, spec.action_space = observation_space(group), action_space(group)
    spec.inference_only = inference_only
    spec.model_config = config.model_config | model_config(settings)
    return spec


def _policies(
    config: Config, settings: RllibSettings, groups: Mapping[str, GroupSpec], modules: Mapping[str, str]
) -> None:
    """Tell RLlib who drives whom, with which network."""
    specs = {modules[p]: module_spec(config, settings, group) for p, group in groups.items()}
    if set(specs) == {DEFAULT_MODULE_ID}:
        (spec,) = specs.values()
        config.rl_module(rl_module_spec=spec)
        config.environment(observation_space=spec.observation_space, action_space=spec.action_space)
        return
    policy_spec: Any = PolicySpec
    drives = {slot.agent: policy_id for policy_id, group in groups.items() for slot in group.slots}
    config.multi_agent(
        policies={p: policy_spec(None, s.observation_space, s.action_space, {}) for p, s in specs.items()},
        policy_mapping_fn=partial(_policy_of, drives),
    )
    config.rl_module(rl_module_spec=MultiRLModuleSpec(rl_module_specs=specs))


def _iteration(config: Config, recipe: Recipe, settings: RllibSettings) -> None:
    """Have an iteration last for about one report where RLlib makes it of many small steps. CQL's, which has
    SAC's settings, is some updates, as with the others that learn from data alone.
    """
    if is_offline(recipe.algorithm["name"]):
        config.reporting(
            min_time_s_per_iteration=None,
            min_sample_timesteps_per_iteration=0,
            min_train_timesteps_per_iteration=0,
        )
        return
    by_steps = bool(config.min_sample_timesteps_per_iteration)
    if by_steps and "min_sample_timesteps_per_iteration" not in settings.config:
        config.reporting(min_sample_timesteps_per_iteration=0)
    if by_steps or config.min_time_s_per_iteration:
        config.reporting(min_time_s_per_iteration=recipe.learner.report_every_s)


def _fill_again(config: Config, sampled: int) -> None:
    """Have learning wait until the new replay buffer holds as much as the first one had to."""
    if hasattr(config, "num_steps_sampled_before_learning_starts"):
        config.num_steps_sampled_before_learning_starts += sampled


def _policy_of(drives: Mapping[str, str], agent_id: str, *args: Any, **kwargs: Any) -> str:
    return drives[agent_id]


def _multi_agent_replay(config: Config, groups: Mapping[str, GroupSpec]) -> None:
    """Use the form of RLlib's replay buffer that takes episodes of several agents."""
    buffer = getattr(config, "replay_buffer_config", None)
    if single_agent(groups) or not buffer:
        return
    kind = buffer["type"] if isinstance(buffer["type"], str) else buffer["type"].__name__
    if not kind.startswith("MultiAgent"):
        config.training(replay_buffer_config={**buffer, "type": f"MultiAgent{kind}"})


def _check_type(where: str, given: Any, default: Any) -> None:
    """Refuse text for a number and the like: RLlib itself finds that out late, or never."""
    kinds: tuple[tuple[type, ...], ...] = ((bool,), (int, float), (str,), (list, tuple), (dict,))
    of = next((kind for kind in kinds if isinstance(default, kind)), None)
    mine = next((kind for kind in kinds if isinstance(given, kind)), None)
    schedule = of == (int, float) and mine == (list, tuple)  # [[0, 1e-3], [100_000, 0.0]]
    automatic = given in ("auto", NONE) or default == "auto"
    if of is not None and mine != of and not schedule and not automatic:
        raise RecipeError(
            f"{where}={given!r} is not of the type of RLlib's default {default!r}: RLlib would fail on it "
            f"later. Change {where}."
        )


def _value(config: Config, field: str, given: Any) -> Any:
    """Return a recipe's value as RLlib wants it; a table changes the keys it names."""
    default = getattr(config, field)
    if given == NONE:
        return None
    return {**default, **given} if isinstance(given, dict) and isinstance(default, dict) else given


def _validated(config: Config, recipe: Recipe) -> None:
    """Have RLlib check its configuration; its message becomes one line.

    Raises: RecipeError: it refuses something.
    """
    try:
        config.copy().validate()
    except (ValueError, AssertionError, TypeError, KeyError) as error:
        first = str(error).strip().split("\nTo suppress")[0]
        text = " ".join(line.strip() for line in first.splitlines() if line.strip())
        raise RecipeError(
            f"algorithm.name={recipe.algorithm['name']!r}: RLlib refuses the configuration: "
            f"{text or repr(error)} Change [algorithm.config]."
        ) from None
