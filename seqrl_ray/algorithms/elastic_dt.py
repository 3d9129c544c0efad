"""The Elastic Decision Transformer: a Decision Transformer that forgets its past where another past promises
more.

Source: Wu, Wang and Hamaya (2023), arXiv:2307.02484, and its code (github.com/kristery/Elastic-DT). At every
step it judges histories of several lengths by an expectile of the returns that followed such histories, keeps
the best, expects the best return that is likely after it, and takes the action that earned that return.
Departs from it: returns are shares of the data's range, stretched to hold 0, where every return-to-go ends
(there D4RL's reference scores); windows are drawn by step (there one per trajectory) and padded on the right;
the network and the search as `networks/elastic_dt.py` says.
Reads Windows with returns-to-go; returns one priority per window, its mean loss.
Dims: S slots, B batch, K window steps, N return bins, D observation features.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from seqrl_ray.algorithms.elastic_dt_settings import ElasticDtSettings
from seqrl_ray.algorithms.flat_learner import Forward, Terms
from seqrl_ray.algorithms.sequence_learner import Context, SequenceLearner
from seqrl_ray.types import ActInput, Array, Mode, WindowTensors


class ElasticDt(SequenceLearner[ElasticDtSettings]):
    """Chooses a history, then a return, then an action."""

    network: Any  # networks.elastic_dt.ElasticNet

    @torch.inference_mode()
    def act(self, inputs: ActInput, state: Context, mode: Mode) -> tuple[Array, Context, Mapping[str, Array]]:
        """Act for the best likely return; in "explore" return and discrete action are drawn."""
        state, keys, noise = self.extend(state, inputs), self.settings, None
        if mode == "explore":
            drawn = inputs.rng.gumbel(size=(len(inputs.obs), keys.return_bins))  # [S, N]
            noise = torch.from_numpy(drawn).to(self.device, torch.float32)
        rules = (keys.stride_steps, keys.expert_bias, keys.keep_percentile / 100.0, noise)
        score = self.ask(state, self.network.search, *rules)[:, 0].cpu().numpy()  # [S, A]
        return self.decide(score, inputs, mode), state, {}

    def scaled_return(self, wanted: Tensor) -> Tensor:
        """Return returns-to-go [...] as shares of the range there is to expect."""
        known = [*self.facts["return_range"].tolist(), self.settings.target_return, 0.0]
        share: Tensor = (wanted - min(known)) / ((max(known) - min(known)) or 1.0)
        return share

    def loss(self, online: Forward, target: Forward, minibatch: WindowTensors[Tensor]) -> Terms:
        """Return each step's errors of action, expectile and bin of the return, and next observation."""
        keys, valid = self.settings, minibatch.valid  # [B, K]
        told, wanted = self.windows(online, minibatch), minibatch.return_to_go  # .., [B, K]
        assert wanted is not None  # `windows` would not have had it
        missing = self.scaled_return(torch.where(valid, wanted, 0.0)) - told.best_return  # [B, K]
        logits = told.return_logits.transpose(1, 2)  # [B, N, K]
        action = self.action_loss(told.action, minibatch)  # [B, K]
        expectile = torch.where(missing > 0.0, keys.expectile, 1.0 - keys.expectile) * missing.square()
        bins = functional.cross_entropy(logits, told.bins, reduction="none")  # [B, K]
        loss = action + keys.expectile_weight * expectile + keys.return_weight * bins  # [B, K]
        parts = {"action_loss": action, "expectile_loss": expectile, "return_loss": bins}
        if told.surprise is not None:
            surprise = torch.where(valid[:, 1:], told.surprise, 0.0)  # [B, K - 1]
            parts["next_obs_loss"] = functional.pad(surprise, (0, 1))  # [B, K]
            loss = loss + keys.next_obs_weight * parts["next_obs_loss"]
        means = {name: torch.where(valid, p.detach(), 0.0).sum() / valid.sum() for name, p in parts.items()}
        return self.terms(loss, minibatch, means)
