"""The Decision Transformer: imitates, at each step, the actions that earned the return it is asked for.

Source: Chen et al. (2021), arXiv:2106.01345, and its code (github.com/kzl/decision-transformer, `gym/`).
Departs from it: windows are padded on the right, so that no mask is needed; continuous actions are scaled
from their bounds to -1..1; discrete actions and images are trained by the same file with cross-entropy
(`atari/` there), illegal actions excluded; the network as `networks/decision_transformer.py` says. The state
and return heads of the source are not there: nobody trains them.
With `return_quantile` the network generates the return it asks for ("the largest possible return at each
node", the paper's figure 2, whose code was never released), as Lee et al. (2022), arXiv:2205.15241, do it:
from the observation's token it predicts a distribution over bins of the data's range, stretched to hold 0.
Reads Windows with returns-to-go; returns one priority per window, its mean loss.
Dims: S slots, B batch, K window steps, A actions or action dimensions, N return bins.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
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
        score = self.ask(state, self.network)[:, 0]  # [S, A (+ N)]
        if self.settings.return_quantile:
            best = self.best_return(score[:, self.scores :], self.settings.return_quantile)  # [S]
            state.wanted[np.arange(len(score)), state.used - 1] = best
            score = self.ask(state, self.network)[:, 0, : self.scores]  # [S, A]
        return self.decide(score.cpu().numpy(), inputs, mode), state, {}

    def loss(self, online: Forward, target: Forward, minibatch: WindowTensors[Tensor]) -> Terms:
        """Return each step's squared error, mean over the action's dimensions, or its cross-entropy; and the
        cross-entropy of its return's bin where returns are generated.
        """
        score = self.windows(online, minibatch)  # [B, K, A (+ N)]
        loss = self.action_loss(score[..., : self.scores], minibatch)  # [B, K]
        if self.settings.return_quantile:
            loss = loss + self.return_loss(score[..., self.scores :], minibatch)  # [B, K]
        return self.terms(loss, minibatch, {})
