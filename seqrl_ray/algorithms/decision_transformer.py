"""The Decision Transformer: imitates, at each step, the actions that earned the return it is asked for.

Source: Chen et al. (2021), arXiv:2106.01345, and its code (github.com/kzl/decision-transformer, `gym/`).
Departs from it: windows are padded on the right, so that no mask is needed; continuous actions are scaled
from their bounds to -1..1; discrete actions and images are trained by the same file with cross-entropy
(`atari/` there), illegal actions excluded; the network as `networks/decision_transformer.py` says. The state
and return heads of the source are not there: nobody trains them.
Reads Windows with returns-to-go; returns one priority per window, its mean loss.
Dims: S slots, B batch, K window steps, A actions or action dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from seqrl_ray.algorithms.decision_transformer_settings import DecisionTransformerSettings
from seqrl_ray.algorithms.flat_learner import Forward, Terms
from seqrl_ray.algorithms.sequence_learner import Context, SequenceLearner
from seqrl_ray.types import ActInput, Array, Mode, WindowTensors


class DecisionTransformer(SequenceLearner[DecisionTransformerSettings]):
    """Chooses actions by supervised learning on (return, observation, action) windows."""

    @torch.inference_mode()
    def act(self, inputs: ActInput, state: Context, mode: Mode) -> tuple[Array, Context, Mapping[str, Array]]:
        """Take the predicted action; a discrete one is drawn from the softmax in "explore"."""
        state = self.extend(state, inputs)
        score = self.ask(state, self.network)[:, 0].cpu().numpy()  # [S, A]
        return self.decide(score, inputs, mode), state, {}

    def loss(self, online: Forward, target: Forward, minibatch: WindowTensors[Tensor]) -> Terms:
        """Return each step's squared error, mean over the action's dimensions, or its cross-entropy."""
        score = self.windows(online, minibatch)  # [B, K, A]
        return self.terms(self.action_loss(score, minibatch), minibatch, {})
