"""The Decision Transformer: imitates, at each step, the actions that earned the return it is asked for.

Source: Chen et al. (2021), arXiv:2106.01345, and its code (github.com/kzl/decision-transformer, `gym/`).
Departs from it: windows are padded on the right, so that no mask is needed; continuous actions are scaled
from their bounds to -1..1; discrete actions and images are trained by the same file with cross-entropy
(`atari/` there), illegal actions excluded; the network as `networks/decision_transformer.py` says. The state
and return heads of the source are not there: nobody trains them.
With `return_expectile` the network generates the return it asks for, as in the paper's graph experiment ("the
largest possible return at each node", its figure 2), whose code was never released: by expectile regression,
Zhuang et al. (2024), arXiv:2405.08740 (Reinformer), whose entropy term and LAMB are left out.
Reads Windows with returns-to-go; returns one priority per window, its mean loss.
Dims: S slots, B batch, K window steps, A actions or action dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping

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
        if self.settings.return_expectile:
            best = self.ask(state)[:, -1].cpu().numpy() * self.settings.return_scale  # [S]
            state["wanted"][np.arange(len(best)), state["used"] - 1] = best
        score = self.ask(state).cpu().numpy()[:, : self._outputs]  # [S, A]
        if self.group.action.kind == "box":
            action = self.middle + self.half * np.tanh(score).reshape(-1, *self.middle.shape)  # [S, *action]
            return action, state, {}
        if mode == "explore" or self.settings.sample_actions:
            score = score + inputs.rng.gumbel(size=score.shape)  # the largest is a draw from the softmax
        if inputs.legal is not None:
            score = np.where(inputs.legal, score, -np.inf)  # [S, A]
        return score.argmax(1), state, {}

    def loss(self, online: Forward, target: Forward, minibatch: WindowTensors[Tensor]) -> Terms:
        """Return each step's squared error, mean over the action's dimensions, or its cross-entropy."""
        score, valid = self.windows(online, minibatch), minibatch.valid  # [B, K, A (+ 1)], [B, K]
        score, said = score[..., : self._outputs], score[..., self._outputs :]  # [B, K, A], [B, K, 0 or 1]
        if self.group.action.kind == "box":
            wanted = self.scaled(minibatch.action).flatten(2)  # [B, K, A]
            error = torch.tanh(score) - torch.where(valid[..., None], wanted, 0.0)  # [B, K, A]
            loss = error.square().mean(-1)  # [B, K]
        else:
            if minibatch.legal is not None:
                score = score.masked_fill(~minibatch.legal & valid[..., None], -1e9)  # [B, K, A]
            action = torch.where(valid, minibatch.action, 0)  # [B, K]
            loss = functional.cross_entropy(score.transpose(1, 2), action, reduction="none")  # [B, K]
        if said.shape[-1] and minibatch.return_to_go is not None:
            earned = torch.where(valid, minibatch.return_to_go / self.settings.return_scale, 0.0)  # [B, K]
            loss = loss + self._expectile(earned - said[..., 0])  # [B, K]
        shown = torch.where(valid, loss.detach(), 0.0)  # [B, K]
        return Terms(
            loss=loss,
            weight=minibatch.weight[:, None],
            valid=minibatch.learn,
            priorities=shown.sum(1) / valid.sum(1).clamp(min=1),
            metrics={},
        )

    @property
    def _outputs(self) -> int:
        action = self.group.action
        return action.n if action.kind == "discrete" else action.column.size

    def _expectile(self, error: Tensor) -> Tensor:
        """Return |tau - [error < 0]| error^2 of errors [B, K]: minimal at the tau-expectile."""
        share = self.settings.return_expectile
        return torch.where(error < 0, 1.0 - share, share) * error.square()
