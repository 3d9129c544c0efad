"""Double DQN with n-step targets.

Source: van Hasselt et al. (2016), arXiv:1509.06461. Departs from it: Adam, not RMSProp; n-step targets; the
target network may be blended instead of copied; Huber loss instead of a clipped error (equal at huber_delta =
1).
Reads Transitions; returns one priority per row, the absolute error. Dims: S slots, B batch, A actions.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from seqrl_ray.algorithms.dqn_settings import DqnSettings
from seqrl_ray.algorithms.flat_learner import (
    FlatLearner,
    Forward,
    Terms,
    epsilon_greedy,
    epsilon_of_slots,
    greedy,
)
from seqrl_ray.losses.td import double_q_error, huber
from seqrl_ray.types import ActInput, Array, IntArray, Mode, SampleSpec, TransitionTensors


class DoubleDqn(FlatLearner[DqnSettings]):
    """Learns action values by bootstrapping from what a slow copy of itself says of its own best action."""

    def sample_spec(self) -> SampleSpec:
        """Return what replay must hand to `update`."""
        return SampleSpec(view="transitions", n_step=self.settings.n_step, gamma=self.settings.gamma)

    def slot_params(self, progress: float, rank: IntArray, total: int) -> dict[str, Array]:
        """Return each slot's epsilon."""
        keys = self.settings
        epsilon = epsilon_of_slots(
            progress,
            rank,
            total,
            start=keys.epsilon_start,
            end=keys.epsilon_end,
            fraction=keys.epsilon_fraction,
            alpha=keys.epsilon_ladder_alpha,
        )
        return {"epsilon": epsilon}

    def initial_state(self, slots: int) -> None:
        """Keep no state between decisions."""
        return None

    @torch.inference_mode()
    def act(self, inputs: ActInput, state: None, mode: Mode) -> tuple[Array, None, Mapping[str, Array]]:
        """Choose the best legal action, or with the slot's epsilon a random legal one."""
        q = self.network(torch.from_numpy(inputs.obs).to(self.device)).cpu().numpy()  # [S, A]
        if mode == "greedy":
            return greedy(q, inputs.legal), None, {}
        return epsilon_greedy(q, inputs.legal, inputs.slot_params["epsilon"], inputs.rng), None, {}

    def loss(self, online: Forward, target: Forward, minibatch: TransitionTensors[Tensor]) -> Terms:
        """Return the Huber loss of each row's error."""
        q_tm1 = online(minibatch.obs_tm1)  # [B, A]
        with torch.no_grad():
            selector_t = online(minibatch.obs_t)  # [B, A]
            q_t = target(minibatch.obs_t)  # [B, A]
        error = double_q_error(
            q_tm1,
            minibatch.action_tm1,
            minibatch.reward_t,
            minibatch.discount_t,
            q_t,
            selector_t,
            minibatch.legal_t,
        )  # [B]
        return Terms(
            loss=huber(error, self.settings.huber_delta),
            weight=minibatch.weight,
            valid=None,
            priorities=error.detach().abs(),
            metrics={"q": q_t.mean()},
        )
