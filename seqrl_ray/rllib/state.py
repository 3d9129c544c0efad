"""What RLlib has learned, as a tree that our checkpoints hold, and back.

RLlib's own checkpoints are pickles (or msgpack of pickles), and they leave the adaptive coefficients of PPO's
and APPO's KL penalty, of SAC's entropy and of MARWIL's advantages out: a run gone on with would begin with
the first ones. Here they are kept. Not kept, as in RLlib: replay buffers, and the means that RLlib's metrics
smooth over.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from ray.rllib.core import COMPONENT_LEARNER, COMPONENT_RL_MODULE

from seqrl_ray.errors import CheckpointError

COEFFICIENTS = ("curr_kl_coeffs_per_module", "curr_log_alpha", "moving_avg_sqd_adv_norms_per_module")
"""Attributes of RLlib's learners that adapt during a run and that their state leaves out."""

STEPS = "env_runners--num_env_steps_sampled_lifetime"
"""The count that RLlib's schedules (lr, entropy, epsilon) follow, as its metrics name it in their state. With
data alone it is the learner's own, see `offline.one_by_one`."""


def learner_state(algorithm: Any) -> dict[str, Any]:
    """Return networks, optimisers, coefficients and the count that schedules follow."""
    state = algorithm.learner_group.get_state(not_components=["learner/metrics_logger"])[COMPONENT_LEARNER]
    optimizers = {
        name: {"module_id": own["module_id"], "state": _keys_to_text(own["state"])}
        for name, own in state["optimizer"].items()
    }
    coefficients = algorithm.learner_group.foreach_learner(_coefficients).result_or_errors[0].get()
    if algorithm.env_runner_group is None:
        steps = algorithm.learner_group.foreach_learner(_seen).result_or_errors[0].get()
    else:
        steps = algorithm.metrics.get_state()["stats"].get(STEPS)
    return {
        "weights_seq_no": int(state["weights_seq_no"]),
        "modules": state[COMPONENT_RL_MODULE],
        "optimizers": optimizers,
        "coefficients": coefficients,
        "steps": _plain(steps),
    }


def restore_learner(algorithm: Any, saved: Mapping[str, Any]) -> None:
    """Go on from `learner_state`, and hand the weights to the runners.

    Raises: CheckpointError: it is of other policies or other networks.
    """
    group = algorithm.learner_group
    present = group.get_state(components="learner/rl_module")[COMPONENT_LEARNER][COMPONENT_RL_MODULE]
    if _shapes(present) != _shapes(saved["modules"]):
        raise CheckpointError(
            f"the checkpoint's networks are {_listed(saved['modules'])}, the recipe's {_listed(present)}: "
            "they cannot be matched. Use the recipe the run was started with."
        )
    optimizers = {
        name: {"module_id": own["module_id"], "state": _keys_to_numbers(own["state"])}
        for name, own in saved["optimizers"].items()
    }
    group.set_state(
        {
            COMPONENT_LEARNER: {
                COMPONENT_RL_MODULE: saved["modules"],
                "optimizer": optimizers,
                "weights_seq_no": saved["weights_seq_no"],
            }
        }
    )
    group.foreach_learner(_set_coefficients, values=saved["coefficients"])
    if algorithm.env_runner_group is None:  # it learns from data alone
        if saved["steps"] is not None:
            group.foreach_learner(_set_seen, values=saved["steps"])
        return
    if saved["steps"] is not None:
        algorithm.metrics.set_state({"stats": {STEPS: saved["steps"]}})
    state = group.get_state(components="learner/rl_module", inference_only=True)[COMPONENT_LEARNER]
    algorithm.env_runner_group.sync_env_runner_states(
        config=algorithm.config,
        env_steps_sampled=algorithm.metrics.peek(
            ("env_runners", "num_env_steps_sampled_lifetime"), default=0
        ),
        rl_module_state=state,
        env_to_module=algorithm.env_to_module_connector,
        module_to_env=algorithm.module_to_env_connector,
    )


def _seen(learner: Any) -> dict[str, int]:
    """Return the counts of `offline.one_by_one`."""
    return dict(learner.seen)


def _set_seen(learner: Any, *, values: Mapping[str, int]) -> None:
    learner.seen = dict(values)


def _coefficients(learner: Any) -> dict[str, dict[str, float]]:
    return {
        name: {module: float(value) for module, value in dict(getattr(learner, name)).items()}
        for name in COEFFICIENTS
        if hasattr(learner, name)
    }


def _set_coefficients(learner: Any, *, values: Mapping[str, Mapping[str, float]]) -> None:
    for name, by_module in values.items():
        for module, value in by_module.items():
            with torch.no_grad():
                getattr(learner, name)[module].fill_(value)


def _keys_to_text(state: Mapping[str, Any]) -> dict[str, Any]:
    """A torch optimiser numbers its parameters; JSON has no numbers as keys."""
    return {
        **{name: _plain(part) for name, part in state.items()},
        "state": {str(number): _plain(part) for number, part in state["state"].items()},
    }


def _keys_to_numbers(state: Mapping[str, Any]) -> dict[str, Any]:
    return {**state, "state": {int(number): part for number, part in state["state"].items()}}


def _plain(value: Any) -> Any:
    """Return a tree of dicts, lists, tuples, arrays and plain values."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, tuple):
        return tuple(_plain(v) for v in value)
    if isinstance(value, list):
        return [_plain(v) for v in value]
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().numpy()
    if isinstance(value, np.generic):
        return value.item()
    return value


def _shapes(modules: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, tuple[int, ...]]]:
    return {m: {name: np.shape(part) for name, part in parts.items()} for m, parts in modules.items()}


def _listed(modules: Mapping[str, Mapping[str, Any]]) -> str:
    sizes = {m: sum(int(np.prod(np.shape(p))) for p in parts.values()) for m, parts in modules.items()}
    return ", ".join(f"{module} ({size:,} parameters)" for module, size in sorted(sizes.items()))
