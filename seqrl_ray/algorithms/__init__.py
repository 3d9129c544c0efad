"""The algorithms, by name. Torch-free until `make_algorithm` is called.

Each is assembled of three named parts: the algorithm, its settings, and the function that builds its network.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from seqrl_ray.algorithms.rllib_settings import is_rllib, rllib_settings
from seqrl_ray.errors import RecipeError, did_you_mean
from seqrl_ray.settings import Settings

if TYPE_CHECKING:
    from seqrl_ray.algorithms.contract import Algorithm
    from seqrl_ray.types import GroupSpec


@dataclass(frozen=True)
class _Parts:
    """Where an algorithm's parts stand, each as "module:name" inside the package."""

    algorithm: str
    settings: str
    network: str
    """A function (settings, group) -> torch module; "" if there is nothing to learn."""


_ALGORITHMS = {
    "behavior_cloning": _Parts(
        algorithm="algorithms.behavior_cloning:BehaviorCloning",
        settings="algorithms.behavior_cloning_settings:BehaviorCloningSettings",
        network="networks.policy_mlp:policy_mlp",
    ),
    "decision_transformer": _Parts(
        algorithm="algorithms.decision_transformer:DecisionTransformer",
        settings="algorithms.decision_transformer_settings:DecisionTransformerSettings",
        network="networks.decision_transformer:decision_transformer_net",
    ),
    "double_dqn": _Parts(
        algorithm="algorithms.double_dqn:DoubleDqn",
        settings="algorithms.double_dqn_settings:DoubleDqnSettings",
        network="networks.q_heads:q_network",
    ),
    "dqn": _Parts(
        algorithm="algorithms.dqn:Dqn",
        settings="algorithms.dqn_settings:DqnSettings",
        network="networks.q_heads:q_network",
    ),
    "elastic_dt": _Parts(
        algorithm="algorithms.elastic_dt:ElasticDt",
        settings="algorithms.elastic_dt_settings:ElasticDtSettings",
        network="networks.elastic_dt:elastic_net",
    ),
    "online_dt": _Parts(
        algorithm="algorithms.online_dt:OnlineDt",
        settings="algorithms.online_dt_settings:OnlineDtSettings",
        network="networks.online_dt:online_net",
    ),
    "random": _Parts(
        algorithm="algorithms.random:Random",
        settings="algorithms.random_settings:RandomSettings",
        network="",
    ),
    "sac": _Parts(
        algorithm="algorithms.sac:Sac",
        settings="algorithms.sac_settings:SacSettings",
        network="networks.actor_critic:actor_critic",
    ),
    "toy_recurrent": _Parts(
        algorithm="algorithms.toy_recurrent:ToyRecurrent",
        settings="algorithms.toy_recurrent_settings:ToyRecurrentSettings",
        network="algorithms.toy_recurrent:recurrent_q",
    ),
    "toy_window": _Parts(
        algorithm="algorithms.toy_window:ToyWindow",
        settings="algorithms.toy_window_settings:ToyWindowSettings",
        network="algorithms.toy_window:window_policy",
    ),
}


def names() -> tuple[str, ...]:
    """Return the names a recipe's `algorithm.name` may have."""
    return tuple(sorted(_ALGORITHMS))


def settings_class(name: str) -> type[Settings]:
    """Return the settings class of an algorithm, ours or `rllib:<name>`, without importing torch.

    Raises: RecipeError: unknown name; the message names the closest one.
    """
    if is_rllib(name):
        return rllib_settings(name)
    cls: type[Settings] = _load(_parts(name).settings)
    return cls


def make_algorithm(
    name: str,
    settings: Settings,
    group: GroupSpec,
    *,
    device: str = "cpu",
    seed: int = 0,
) -> Algorithm:
    """Build an algorithm for one policy group.

    Args:
        name: one of `names()`, or `rllib:<name>`: then it can act, and learns inside RLlib alone.
        settings: an instance of `settings_class(name)`.
        group: what the policy sees and does.
        device: torch device; "auto" = CUDA where there is one.
        seed: of the first weights, and of what updates draw; equal seeds give equal weights whatever else
            happened in the process.
    Raises: RecipeError: the group's actions or observations do not fit the algorithm.
    """
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if is_rllib(name):  # of the room that knows RLlib, which nothing here imports
        policy: Algorithm = _load("rllib.acting:RllibPolicy")(name, settings, group, device=device, seed=seed)
        return policy
    parts = _parts(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _load(parts.network)(settings, group) if parts.network else None
    algorithm: Algorithm = _load(parts.algorithm)(settings, group, network, device=device, seed=seed)
    return algorithm


def _parts(name: str) -> _Parts:
    if name not in _ALGORITHMS:
        raise RecipeError(
            f"algorithm.name={name!r} is not an algorithm.{did_you_mean(name, _ALGORITHMS)} "
            f"Known: {', '.join(names())}."
        )
    return _ALGORITHMS[name]


def _load(place: str) -> Any:
    module, _, attribute = place.partition(":")
    return getattr(importlib.import_module(f"seqrl_ray.{module}"), attribute)
