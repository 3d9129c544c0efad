"""Soft Actor-Critic with an automatic temperature.

Source: Haarnoja et al. (2018), arXiv:1812.05905, equations 5-9 and 18. Departs from it: policy, critics and
temperature take one common step of Adam, from the parameters as they were before it; n-step targets; actions
are scaled from (-1, 1) to the environment's bounds, and entropies are of the unscaled ones.
One loss is learned from, the sum of three that share no parameter's gradient:

    critics      1/2 sum over both of (reward_t + discount_t * (min Q'_t - alpha * log pi_t) - Q_tm1)^2
    policy       alpha * log pi_tm1 - min Q_tm1,            alpha and the critics' parameters held fixed
    temperature  -alpha * (log pi_tm1 + target entropy),    log pi_tm1 held fixed

Reads Transitions; returns one priority per row, the mean absolute error of both critics.
Dims: S slots, U updates in one call, B batch, A size of the action, P parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from seqrl_ray.algorithms.flat_learner import FlatLearner, Forward, Terms
from seqrl_ray.algorithms.sac_settings import SacSettings
from seqrl_ray.networks.tanh_gaussian import action_bounds, to_box, to_unit
from seqrl_ray.types import ActInput, Array, GroupSpec, IntArray, Mode, SampleSpec, TransitionTensors


class Sac(FlatLearner[SacSettings]):
    """Learns a stochastic policy whose reward includes its own entropy."""

    def __init__(
        self,
        settings: SacSettings,
        group: GroupSpec,
        network: nn.Module,
        *,
        device: str = "cpu",
        seed: int = 0,
    ) -> None:
        super().__init__(settings, group, network, device=device, seed=seed)
        low, high = action_bounds(group, "sac")  # [A], [A]
        self._low, self._high = low.to(self.device), high.to(self.device)
        self._actions = len(low)
        parts = self._split(self.state.online).items()
        policy = [part for name, part in parts if name.startswith("policy.")]
        start = policy[0].storage_offset()
        self._policy = self.state.online[start : start + sum(p.numel() for p in policy)]  # [P], a view

    def sample_spec(self) -> SampleSpec:
        """Return what replay must hand to `update`."""
        return SampleSpec(view="transitions", n_step=self.settings.n_step, gamma=self.settings.gamma)

    def slot_params(self, progress: float, rank: IntArray, total: int) -> dict[str, Array]:
        """Return each slot's chance of a uniformly drawn action: 1, and 0 once `random_share` is spent."""
        chance = 1.0 if progress < self.settings.random_share else 0.0
        return {"random": np.full(len(rank), chance, np.float32)}

    def initial_state(self, slots: int) -> None:
        """Keep no state between decisions."""
        return None

    @torch.inference_mode()
    def act(self, inputs: ActInput, state: None, mode: Mode) -> tuple[Array, None, Mapping[str, Array]]:
        """Draw from the policy (or from the box, with the slot's chance), or take the policy's middle."""
        policy = self.network("policy", torch.from_numpy(inputs.obs).to(self.device))
        unit = policy.mode  # [S, A]
        if mode == "explore":  # draws the same amount whatever the chance is
            slots, rng = len(unit), inputs.rng
            noise = torch.from_numpy(rng.standard_normal(unit.shape, np.float32))  # [S, A]
            uniform = torch.from_numpy(2.0 * rng.random(unit.shape, np.float32) - 1.0)  # [S, A]
            random = torch.from_numpy(rng.random(slots) < inputs.slot_params["random"])  # [S]
            drawn = policy.draw(noise.to(self.device)).tanh()  # [S, A]
            unit = torch.where(random.to(self.device)[:, None], uniform.to(self.device), drawn)  # [S, A]
        action = to_box(unit, self._low, self._high).cpu().numpy()  # [S, A]
        return action.reshape(-1, *self.group.action.shape), None, {}

    def drawn(self, batch: TransitionTensors[Tensor]) -> TransitionTensors[Tensor]:
        """Add the column `noise` [U, B, 2, A], standard normal: of the actions before and after the step."""
        if "noise" in batch.extra:
            return batch
        total, rows = batch.weight.shape
        shape = (rows, 2, self._actions)
        generators = [np.random.default_rng((self._seed, self._updates + u)) for u in range(total)]
        noise = np.stack([g.standard_normal(shape, np.float32) for g in generators])  # [U, B, 2, A]
        return replace(batch, extra={**batch.extra, "noise": torch.from_numpy(noise).to(self.device)})

    def loss(self, online: Forward, target: Forward, minibatch: TransitionTensors[Tensor]) -> Terms:
        """Return the sum of the three losses of each row; importance weights scale all of them."""
        noise_tm1, noise_t = minibatch.extra["noise"].unbind(1)  # [B, A], [B, A]
        taken = minibatch.action_tm1.reshape(noise_t.shape)  # [B, A]
        temperature = online("log_temperature").exp()  # []
        alpha = temperature.detach()  # []

        with torch.no_grad():
            policy_t = online("policy", minibatch.obs_t)
            drawn_t = policy_t.draw(noise_t)  # [B, A]
            q_t = target("critics", minibatch.obs_t, drawn_t.tanh()).amin(0)  # [B]
            value_t = q_t - alpha * policy_t.log_prob(drawn_t)  # [B]
            goal = minibatch.reward_t + minibatch.discount_t * value_t  # [B]
        q_tm1 = online("critics", minibatch.obs_tm1, to_unit(taken, self._low, self._high))  # [2, B]
        error = goal - q_tm1  # [2, B]
        critic_loss = 0.5 * error.square().sum(0)  # [B]

        policy_tm1 = online("policy", minibatch.obs_tm1)
        drawn_tm1 = policy_tm1.draw(noise_tm1)  # [B, A]
        log_prob = policy_tm1.log_prob(drawn_tm1)  # [B]
        q_drawn = online("fixed_critics", minibatch.obs_tm1, drawn_tm1.tanh()).amin(0)  # [B]
        policy_loss = alpha * log_prob - q_drawn  # [B]

        entropy = -log_prob.detach()  # [B]
        target_entropy = self.settings.target_entropy_per_dim * self._actions
        temperature_loss = temperature * (entropy - target_entropy)  # [B]
        return Terms(
            loss=critic_loss + policy_loss + temperature_loss,
            weight=minibatch.weight,
            valid=None,
            priorities=error.detach().abs().mean(0),
            metrics={
                "critic_loss": critic_loss.detach().mean(),
                "policy_loss": policy_loss.detach().mean(),
                "entropy": entropy.mean(),
                "temperature": alpha,
                "q": q_t.mean(),
            },
        )

    # ---------------------------------------------------------------------------------------- state

    def weights(self) -> NDArray[np.float32]:
        """Return a copy of the policy's parameters, flat [P]: actors need no critics."""
        return self._policy.cpu().numpy().copy()

    def load_weights(self, flat: NDArray[np.float32]) -> None:
        """Act with these parameters [P] from now on. Raises: CheckpointError: another size."""
        self._fill("weights", self._policy, flat)
