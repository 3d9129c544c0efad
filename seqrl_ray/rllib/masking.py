"""RLlib's default networks with illegal actions ruled out, where an environment has a mask.

RLlib 2.60 ships one such network as an example, for PPO alone, with the mask in a Dict observation that
every other place must unpack. Here the mask is the end of the observation vector (`spaces.observe`): the
network sees it like any feature, and what it puts out is set to the lowest float (policies) or to -inf
(action values, as RLlib's epsilon-greedy expects it) where an action is illegal. So sampling, likelihood,
entropy, KL and the maximum over next actions all leave illegal actions out.

Dims: B batch, D features, A actions.
"""

from __future__ import annotations

from typing import Any

import torch
from ray.rllib.algorithms.appo.torch.default_appo_torch_rl_module import DefaultAPPOTorchRLModule
from ray.rllib.algorithms.bc.torch.default_bc_torch_rl_module import DefaultBCTorchRLModule
from ray.rllib.algorithms.dqn.default_dqn_rl_module import QF_PREDS
from ray.rllib.algorithms.dqn.torch.default_dqn_torch_rl_module import DefaultDQNTorchRLModule
from ray.rllib.algorithms.ppo.torch.default_ppo_torch_rl_module import DefaultPPOTorchRLModule
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis import TARGET_NETWORK_ACTION_DIST_INPUTS
from torch import Tensor

LOWEST = float(torch.finfo(torch.float32).min)


def ruled_out(values: Tensor, obs: Tensor, floor: float) -> Tensor:
    """Return `values` [..., A] with `floor` where the mask at the end of `obs` [..., D + A] has 0."""
    legal = obs[..., -values.shape[-1] :] > 0.5  # [..., A]
    return torch.where(legal, values, floor)


class _MaskedPolicy:
    """Masks the logits of a policy network; in front of RLlib's class in the order of resolution."""

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return _masked_logits(super()._forward(batch, **kwargs), batch)  # type: ignore[misc]

    def _forward_train(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return _masked_logits(super()._forward_train(batch, **kwargs), batch)  # type: ignore[misc]


class MaskedPPO(_MaskedPolicy, DefaultPPOTorchRLModule):
    """The network of PPO, IMPALA and MARWIL."""


class MaskedAPPO(_MaskedPolicy, DefaultAPPOTorchRLModule):
    """The network of APPO: its target network is masked too."""

    def forward_target(self, batch: dict[str, Any]) -> dict[str, Any]:
        out: dict[str, Any] = super().forward_target(batch)
        logits = out[TARGET_NETWORK_ACTION_DIST_INPUTS]
        return {
            **out,
            TARGET_NETWORK_ACTION_DIST_INPUTS: ruled_out(logits, batch[Columns.OBS], LOWEST),
        }


class MaskedBC(_MaskedPolicy, DefaultBCTorchRLModule):
    """The network of BC."""


class MaskedDQN(DefaultDQNTorchRLModule):
    """The network of DQN: action values and those of the target network."""

    def compute_q_values(self, batch: dict[str, Any]) -> dict[str, Any]:
        return _masked_values(super().compute_q_values(batch), batch)

    def forward_target(self, batch: dict[str, Any]) -> dict[str, Any]:
        return _masked_values(super().forward_target(batch), batch)


MASKED: dict[type, type] = {
    DefaultPPOTorchRLModule: MaskedPPO,
    DefaultAPPOTorchRLModule: MaskedAPPO,
    DefaultBCTorchRLModule: MaskedBC,
    DefaultDQNTorchRLModule: MaskedDQN,
}
"""RLlib's default network -> the one with a mask. What is not here cannot be masked and is refused."""


def _masked_logits(out: dict[str, Any], batch: dict[str, Any]) -> dict[str, Any]:
    logits = out[Columns.ACTION_DIST_INPUTS]
    return {**out, Columns.ACTION_DIST_INPUTS: ruled_out(logits, batch[Columns.OBS], LOWEST)}


def _masked_values(out: dict[str, Any], batch: dict[str, Any]) -> dict[str, Any]:
    return {**out, QF_PREDS: ruled_out(out[QF_PREDS], batch[Columns.OBS], -float("inf"))}
