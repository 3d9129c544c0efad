"""The Online Decision Transformer: a stochastic Decision Transformer, pre-trained offline and fine-tuned on
what it does itself.

Source: Zheng, Zhang and Grover (2022), arXiv:2202.05607. Minimises -(log-likelihood + lambda * entropy) of
the actions in windows, with lambda driven so that the entropy holds its target; returns-to-go come from the
rewards really earned, whatever return was asked for when acting (hindsight). Actors ask for
`online_target_return` and draw actions; evaluation asks for `target_return` and takes tanh(mean).
Departs from it: the entropy's mean is over valid steps only; discrete actions, with their exact entropy; the
network as `networks/decision_transformer.py` says (no action token after the last step). LAMB (You et al.
2020, arXiv:1904.00962) as NVIDIA's version: bias-corrected, decay inside the trust ratio, one ratio per
tensor; its own clip of the norm at 1 is left out, because the gradient was clipped below that before.
lambda is learned by Adam in the same vectors, so that checkpoints, exploits and resumes carry it.
Reads Windows with returns-to-go; a window's priority is the mean softplus of its steps' -log-likelihood.
Dims: S slots, U updates in one call, B batch, K window steps, A action values or dimensions, P parameters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seqrl_ray.algorithms.flat_learner import BETA1, BETA2, Forward, LearnedState, Terms
from seqrl_ray.algorithms.online_dt_settings import OnlineDtSettings
from seqrl_ray.algorithms.sequence_learner import Context, SequenceLearner
from seqrl_ray.types import ActInput, Array, GroupSpec, Mode, WindowTensors

TEMPERATURE = "log_temperature"
"""The network's parameter that is not the policy's."""


class OnlineDt(SequenceLearner[OnlineDtSettings]):
    """Learns a distribution of actions by likelihood, and keeps it from narrowing."""

    network: Any  # networks.online_dt.OnlineNet

    def __init__(
        self, settings: OnlineDtSettings, group: GroupSpec, network: Any, *, device: str = "cpu", seed: int
    ) -> None:
        super().__init__(settings, group, network, device=device, seed=seed)
        dims = 1 if group.action.kind == "discrete" else group.action.column.size
        self._raw = self.scores if group.action.kind == "discrete" else 2 * self.scores
        self._target_entropy = settings.target_entropy_per_dim * dims
        place = int(self._split(torch.arange(len(self.state.online)))[TEMPERATURE])
        self._temperature = slice(place, place + 1)

    def slot_params(self, progress: float, rank: Array, total: int) -> dict[str, Array]:
        """Return the returns that each slot asks for, when it explores and when it is judged."""
        keys, same = self.settings, np.ones(len(rank), np.float32)  # [S]
        return {"target_return": keys.target_return * same, "explore": keys.online_target_return * same}

    @torch.inference_mode()
    def act(self, inputs: ActInput, state: Context, mode: Mode) -> tuple[Array, Context, Mapping[str, Array]]:
        """Draw an action in "explore", take the likeliest in "greedy"."""
        if mode == "explore":
            inputs = replace(inputs, slot_params={"target_return": inputs.slot_params["explore"]})
        state = self.extend(state, inputs)
        raw, keys = self.ask(state, self.network)[:, 0], self.settings  # [S, A or 2 A (+ N)]
        if keys.return_quantile:
            quantile = keys.online_return_quantile if mode == "explore" else keys.return_quantile
            best = self.best_return(raw[:, self._raw :], quantile)  # [S]
            state.wanted[np.arange(len(raw)), state.used - 1] = best
            raw = self.ask(state, self.network)[:, 0, : self._raw]  # [S, A or 2 A]
        heat = keys.explore_temperature if mode == "explore" else 1.0
        if self.network.discrete:
            score = raw.cpu().numpy() / heat  # [S, A]
        else:
            policy = self.network.gaussian(raw)
            score = policy.mean.cpu().numpy()  # [S, A]
            if mode == "explore" or keys.sample_actions:
                deviation = heat * policy.log_std.exp().cpu().numpy()  # [S, A]
                score = score + deviation * inputs.rng.standard_normal(score.shape)
        if mode == "explore" and keys.explore_epsilon:
            other = inputs.rng.random(len(score)) < keys.explore_epsilon  # [S]
            even = np.arctanh(inputs.rng.uniform(-1.0, 1.0, score[other].shape))  # its tanh is uniform
            score[other] = 0.0 if self.network.discrete else even
        return self.decide(score.astype(np.float32), inputs, mode), state, {}

    def drawn(self, batch: WindowTensors[Tensor]) -> WindowTensors[Tensor]:
        """Add what `windows` needs, and `noise` [U, B, K, A], standard normal, to draw entropies with."""
        batch = super().drawn(batch)
        if self.network.discrete or "noise" in batch.extra:
            return batch
        shape = (*batch.weight.shape[1:], batch.valid.shape[-1], self.scores)
        rngs = [np.random.default_rng((self._seed, 1, self._updates + u)) for u in range(len(batch.weight))]
        noise = np.stack([rng.standard_normal(shape, np.float32) for rng in rngs])  # [U, B, K, A]
        return replace(batch, extra={**batch.extra, "noise": torch.from_numpy(noise).to(self.device)})

    def loss(self, online: Forward, target: Forward, minibatch: WindowTensors[Tensor]) -> Terms:
        """Return each step's loss of the policy, and of the temperature, which share no gradient."""
        raw, valid = self.windows(online, minibatch), minibatch.valid  # [B, K, ...], [B, K]
        raw, said = raw[..., : self._raw], raw[..., self._raw :]  # [B, K, A or 2 A], [B, K, 0 or N]
        temperature = online().exp()  # [1]
        if self.network.discrete:
            error = self.action_loss(raw, minibatch)  # [B, K]
            if minibatch.legal is not None:
                raw = raw.masked_fill(~minibatch.legal & valid[..., None], -1e9)  # [B, K, A]
            log_p = raw.log_softmax(-1)  # [B, K, A]
            entropy = -(log_p.exp() * log_p).sum(-1)  # [B, K]
        else:
            policy = self.network.gaussian(raw)
            taken = torch.where(valid[..., None], self.scaled(minibatch.action).flatten(2), 0.0)  # [B, K, A]
            error = -policy.log_prob_of(taken)  # [B, K]
            entropy = -policy.log_prob(policy.draw(minibatch.extra["noise"]))  # [B, K]
        dual = temperature * (entropy.detach() - self._target_entropy)  # [B, K]
        terms = self.terms(torch.nn.functional.softplus(error), minibatch, {})
        shown = {"entropy": entropy, "negative_log_likelihood": error}
        means = {n: torch.where(valid, v.detach(), 0.0).sum() / valid.sum() for n, v in shown.items()}
        loss = error - temperature.detach() * entropy + dual  # [B, K]
        if self.settings.return_quantile:
            loss = loss + self.return_loss(said, minibatch)  # [B, K]
        return terms._replace(loss=loss, metrics={**means, "temperature": temperature.detach().squeeze()})

    def apply(
        self, state: LearnedState, gradient: Tensor, scalars: Sequence[float] | Tensor
    ) -> tuple[LearnedState, Tensor]:
        """Return the state after one clipped step of LAMB, of the temperature after one of Adam, and the norm
        of the policy's gradient; see `FlatLearner.apply`.
        """
        keys, place = self.settings, self._temperature
        own = gradient[place].clone()  # [1]
        gradient = gradient.clone()  # [P]
        gradient[place] = 0.0
        norm = torch.linalg.vector_norm(gradient)  # []
        if keys.max_grad_norm:
            gradient *= (keys.max_grad_norm / (norm + 1e-6)).clamp(max=1.0)
        gradient[place] = own
        first = state.first_moment.lerp(gradient, 1.0 - BETA1)  # [P]
        second = torch.addcmul(state.second_moment * BETA2, gradient, gradient, value=1.0 - BETA2)  # [P]
        rate, bias1, root_bias2 = scalars[0], scalars[1], scalars[2]
        step = (first / bias1) / (second.sqrt() / root_bias2 + keys.adam_eps)  # [P]
        apart = step[place].clone()  # [1]
        step.add_(state.online, alpha=keys.weight_decay)
        weights, steps = (list(self._split(flat).values()) for flat in (state.online, step))
        size, length = torch.stack(torch._foreach_norm(weights)), torch.stack(torch._foreach_norm(steps))
        trust = torch.where((size > 0) & (length > 0), size / length, 1.0)  # [tensors]
        torch._foreach_mul_(steps, list(trust.unbind()))
        step *= rate
        step[place] = keys.temperature_rate * apart
        online = state.online - step  # [P]
        average = state.average.lerp(online, scalars[3]) if keys.average_share else online  # [P]
        return LearnedState(online, state.target, first, second, average), norm

    def _scalars(self, count: int, learning_rate: float) -> list[tuple[float, ...]]:
        """Return rows of (step size, bias correction 1, root of bias correction 2, share of the average)."""
        steps = [self._adam_steps + i for i in range(1, count + 1)]
        rates = [learning_rate * self.optimiser.warmth(self._updates + i) for i in range(1, count + 1)]
        shares = [self.optimiser.average_rate(step) for step in steps]
        each = zip(rates, steps, shares, strict=True)
        return [(rate, 1.0 - BETA1**t, math.sqrt(1.0 - BETA2**t), share) for rate, t, share in each]
