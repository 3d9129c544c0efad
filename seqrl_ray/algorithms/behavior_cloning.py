"""Behaviour cloning: a feed-forward policy imitates the actions of the data, whatever they earned.

On the best episodes only (`data.top_share = 0.1` or `data.min_return`) this is the %BC that Chen et al.
(2021), arXiv:2106.01345, compare the Decision Transformer with (`MLPBCModel`, `ActTrainer` in `gym/` of
github.com/kzl/decision-transformer). Departs from it: the policy sees one observation, or the stacked frames
of the environment (there the last K, side by side); no dropout; gradients are clipped; continuous actions are
scaled from their bounds to -1..1; discrete ones are trained with cross-entropy, illegal ones excluded.
Reads Transitions, and of them observation, action and mask; returns one priority per row, its loss.
Dims: S slots, B batch, A actions or action dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from seqrl_ray.algorithms.behavior_cloning_settings import BehaviorCloningSettings
from seqrl_ray.algorithms.flat_learner import Forward, Terms
from seqrl_ray.algorithms.sequence_learner import Imitator
from seqrl_ray.types import ActInput, Array, IntArray, Mode, SampleSpec, TransitionTensors


class BehaviorCloning(Imitator[BehaviorCloningSettings]):
    """Learns, by supervised learning, which action the data took at an observation."""

    def sample_spec(self) -> SampleSpec:
        """Return what replay must hand to `update`."""
        return SampleSpec(view="transitions")

    def slot_params(self, progress: float, rank: IntArray, total: int) -> dict[str, Array]:
        """Ask for nothing: every slot acts alike."""
        return {}

    def initial_state(self, slots: int) -> None:
        """Keep no state between decisions."""
        return None

    @torch.inference_mode()
    def act(self, inputs: ActInput, state: None, mode: Mode) -> tuple[Array, None, Mapping[str, Array]]:
        """Take the predicted action; a discrete one is drawn from the softmax in "explore"."""
        score = self.network(self.standardised(torch.from_numpy(inputs.obs).to(self.device)))  # [S, A]
        return self.decide(score.cpu().numpy(), inputs, mode), None, {}

    def loss(self, online: Forward, target: Forward, minibatch: TransitionTensors[Tensor]) -> Terms:
        """Return each row's squared error, mean over the action's dimensions, or its cross-entropy."""
        score = online(self.standardised(minibatch.obs_tm1))  # [B, A]
        loss = self.imitation_loss(score, minibatch.action_tm1, minibatch.legal_tm1)  # [B]
        return Terms(loss, minibatch.weight, None, loss.detach(), {})
