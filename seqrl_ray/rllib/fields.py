"""Which fields of RLlib's AlgorithmConfig `[algorithm.config]` may have, and what to use for the others.

RLlib keeps the fields of its older stack (policies, rollout workers) in every configuration, and reads them
no more with the newer one (RL modules, learners, env runners), which alone is bridged. A field that nothing
reads, or that the bridge sets afterwards, would be lost without a word: it is refused by name. Which fields
RLlib 2.60 reads was found by searching its sources; one that it refuses itself is left to it.
"""

from __future__ import annotations

from typing import Any

from ray._common.deprecation import DEPRECATED_VALUE

from seqrl_ray.errors import RecipeError, did_you_mean

SET_ELSEWHERE = {
    "env": "[env]",
    "env_config": "[env]",
    "observation_space": "[env]",
    "action_space": "[env]",
    "disable_env_checking": "[env]",
    "num_env_runners": "actors.count",
    "num_envs_per_env_runner": "actors.envs_per_actor",
    "num_cpus_per_env_runner": "actors.cpus",
    "sample_timeout_s": "actors.hang_timeout_s",
    "num_gpus_per_learner": "learner.num_gpus",
    "num_cpus_per_learner": "learner.threads",
    "policies": "[policies]",
    "policy_mapping_fn": "[policies]",
    "seed": "seed",
    "min_time_s_per_iteration": "learner.report_every_s",
    "offline_data_class": "[data]",
    "restart_failed_env_runners": "actors.max_restarts_per_10_min",
    "delay_between_env_runner_restarts_s": "actors.max_restarts_per_10_min",
}
"""Fields of RLlib's that a key of the recipe sets, or that the bridge sets for it."""

_OWN_ENV = "wrappers in the environment's own code, [env]"
_NETWORK = "[algorithm.model]"
_NOTHING: str = ""

NO_EFFECT = {
    "actions_in_input_normalized": "[data], whose actions the bridge normalises",
    "before_learn_on_batch": _NOTHING,
    "categorical_distribution_temperature": _NOTHING,
    "checkpoint_trainable_policies_only": _NOTHING,
    "clip_rewards": f"env.reward_clipping (Atari) or {_OWN_ENV}",
    "compress_observations": _NOTHING,
    "custom_resources_for_main_process": _NOTHING,
    "decay": "algorithm.config.lr: Adam is what there is",
    "eager_max_retraces": _NOTHING,
    "eager_tracing": _NOTHING,
    "exploration_config": "algorithm.config.epsilon (DQN) or entropy_coeff",
    "export_native_model_files": _NOTHING,
    "extra_python_environs_for_driver": _NOTHING,
    "extra_python_environs_for_worker": _NOTHING,
    "fake_sampler": _NOTHING,
    "hiddens": _NETWORK,
    "iter_batches_kwargs": "[data]",
    "keep_per_episode_custom_metrics": _NOTHING,
    "lagrangian": "algorithm.config.min_q_weight",
    "lagrangian_thresh": "algorithm.config.min_q_weight",
    "learner_config_dict": _NOTHING,
    "learner_queue_timeout": _NOTHING,
    "local_tf_session_args": "learner.threads",
    "log_level": _NOTHING,
    "log_sys_usage": _NOTHING,
    "map_batches_kwargs": "[data]",
    "materialize_data": "[data]",
    "materialize_mapped_data": "[data]",
    "minibatch_buffer_size": _NOTHING,
    "momentum": "algorithm.config.lr: Adam is what there is",
    "noisy": "algorithm.config.epsilon",
    "num_cpus_for_main_process": "learner.threads",
    "num_gpus": "learner.num_gpus",
    "num_multi_gpu_tower_stacks": _NOTHING,
    "observation_filter": _OWN_ENV,
    "observation_fn": _OWN_ENV,
    "off_policy_estimation_methods": "[evaluation]",
    "offline_sampling": "[data]",
    "ope_split_batch_by_episode": "[evaluation]",
    "opt_type": "algorithm.config.lr: Adam is what there is",
    "optimization": "algorithm.config.actor_lr, critic_lr and alpha_lr",
    "optimizer": "algorithm.config.lr: Adam is what there is",
    "placement_strategy": _NOTHING,
    "policy_map_capacity": _NOTHING,
    "policy_model_config": _NETWORK,
    "policy_states_are_swappable": _NOTHING,
    "preprocessor_pref": _OWN_ENV,
    "q_model_config": _NETWORK,
    "remote_env_batch_wait_ms": _NOTHING,
    "render_env": _NOTHING,
    "replay_buffer_num_slots": _NOTHING,
    "replay_proportion": "algorithm.config.circular_buffer_iterations_per_batch (APPO)",
    "replay_sequence_length": _NOTHING,
    "restart_failed_sub_environments": "actors.max_restarts_per_10_min",
    "sample_collector": _NOTHING,
    "sampler_perf_stats_ema_coef": _NOTHING,
    "shuffle_buffer_size": "[data]",
    "sigma0": "algorithm.config.epsilon",
    "store_buffer_in_checkpoints": "num_steps_sampled_before_learning_starts, which a resume waits for again",
    "tf_session_args": "learner.threads",
    "torch_compile_worker": "algorithm.config.torch_compile_learner",
    "torch_compile_worker_dynamo_backend": "algorithm.config.torch_compile_learner",
    "torch_compile_worker_dynamo_mode": "algorithm.config.torch_compile_learner",
}
"""Fields that nothing reads in a run of the bridge, and what does what they did; empty = nothing does."""

NO_EFFECT_OFFLINE = {
    "batch_mode": "[data]",
    "min_sample_timesteps_per_iteration": "algorithm.config.dataset_num_iters_per_learner",
    "min_train_timesteps_per_iteration": "algorithm.config.dataset_num_iters_per_learner",
    "n_step": _NOTHING,
    "num_learners": "learner.threads: the one learner is the driver",
    "num_steps_sampled_before_learning_starts": "[data]",
    "replay_buffer_config": "[data]",
    "rollout_fragment_length": "[data]",
    "training_intensity": "algorithm.config.dataset_num_iters_per_learner",
}
"""The same, where an algorithm learns from data alone."""

OURS = (
    "evaluation_",
    "offline_eval",
    "callbacks_",
    "enable_",
    "framework",
    "model",
    "input_",
    "output",
    "prelearner_",
    "is_",
    "in_evaluation",
    "algo_class",
    "create_",
    "custom_evaluation",
    "custom_resources_per_env_runner",
)
"""Beginnings of fields that the bridge keeps for itself."""


def fields(config: Any, *, offline: bool = False) -> tuple[str, ...]:
    """Return the names that `[algorithm.config]` may have, sorted.

    Args:
        config: RLlib's, of one algorithm.
        offline: it learns from data alone.
    """
    mine = {name: value for name, value in vars(config).items() if not name.startswith(("_", *OURS))}
    live = {name for name, value in mine.items() if not _deprecated(value)}
    lost = set(SET_ELSEWHERE) | set(without_effect(config, offline=offline))
    lost |= {name for name in live if "offline_eval" in name}
    return tuple(sorted((live | {"train_batch_size_per_learner"}) - lost))


def without_effect(config: Any, *, offline: bool) -> dict[str, str]:
    """Return the fields that nothing reads -> what to use instead, or ""."""
    found = {name: instead for name, instead in NO_EFFECT.items() if hasattr(config, name)}
    if hasattr(config, "opt_type"):  # IMPALA, APPO: of RMSProp; DQN's is its exploration
        found["epsilon"] = NO_EFFECT["opt_type"]
    return found | NO_EFFECT_OFFLINE if offline else found


def check_field(config: Any, field: str, given: Any, *, offline: bool) -> None:
    """Refuse a field that would be lost, and one that RLlib has not. Raises: RecipeError."""
    if field in SET_ELSEWHERE:
        raise RecipeError(
            f"algorithm.config.{field}={given!r}: the recipe's {SET_ELSEWHERE[field]} sets it, and one of "
            f"them would be lost. Set {SET_ELSEWHERE[field]}."
        )
    lost = without_effect(config, offline=offline)
    if field in lost:
        use = f"Use {lost[field]}." if lost[field] else "Leave it out: nothing here does what it did."
        raise RecipeError(
            f"algorithm.config.{field}={given!r}: neither RLlib's present stack nor the bridge reads it, it "
            f"would have no effect. {use}"
        )
    known = fields(config, offline=offline)
    if field not in known:
        raise RecipeError(
            f"algorithm.config.{field} is not a field of RLlib's {type(config).__name__} that a recipe can "
            f"set.{did_you_mean(field, known)} Known here: {', '.join(known)}."
        )


def _deprecated(value: Any) -> bool:
    return type(value) is type(DEPRECATED_VALUE) and bool(value == DEPRECATED_VALUE)
