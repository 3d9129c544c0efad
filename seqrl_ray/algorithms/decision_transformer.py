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
from typing import cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

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
            state.wanted[np.arange(len(score)), state.used - 1] = self._best(score[:, self.scores :])
            score = self.ask(state, self.network)[:, 0, : self.scores]  # [S, A]
        return self.decide(score.cpu().numpy(), inputs, mode), state, {}

    def loss(self, online: Forward, target: Forward, minibatch: WindowTensors[Tensor]) -> Terms:
        """Return each step's squared error, mean over the action's dimensions, or its cross-entropy; and the
        cross-entropy of its return's bin where returns are generated.
        """
        score = self.windows(online, minibatch)  # [B, K, A (+ N)]
        loss = self.action_loss(score[..., : self.scores], minibatch)  # [B, K]
        if not self.settings.return_quantile:
            return self.terms(loss, minibatch, {})
        low, width = self._bins()
        earned = torch.where(minibatch.valid, cast(Tensor, minibatch.return_to_go), 0.0)  # [B, K]
        bins = ((earned - low) / width).long().clamp(0, self.settings.return_bins - 1)  # [B, K]
        said = score[..., self.scores :].transpose(1, 2)  # [B, N, K]
        return self.terms(loss + functional.cross_entropy(said, bins, reduction="none"), minibatch, {})

    def _bins(self) -> tuple[float, float]:
        """Return where the first bin begins, and the width of each."""
        known = [*self.facts["return_range"].tolist(), 0.0]
        return min(known), ((max(known) - min(known)) or 1.0) / self.settings.return_bins

    def _best(self, logits: Tensor) -> Array:
        """Return the middle of the highest bin that the return reaches with the chance 1 - quantile, [S]."""
        reached = logits.softmax(-1).flip(-1).cumsum(-1).flip(-1)  # [S, N] chance of this bin or a higher one
        likely = reached >= 1.0 - self.settings.return_quantile  # [S, N], true up to the bin looked for
        low, width = self._bins()
        best: Array = low + width * (likely.sum(-1).clamp(min=1).cpu().numpy() - 0.5)  # [S]
        return best
