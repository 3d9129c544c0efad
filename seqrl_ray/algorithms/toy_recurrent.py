"""A toy recurrent Q-learner: the smallest algorithm that exercises windows, stored state and burn-in.

Source: Kapturowski et al. (2019), "Recurrent Experience Replay in Distributed Reinforcement Learning" (R2D2).
Departs from it: a GRU cell on flat observations, one-step targets, no value rescaling, no dueling head.
Reads Windows with the recurrent state that stood before their first step; returns one priority per window.
Dims: S slots, B batch, K window steps, A actions, H recurrent units.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from seqrl_ray.algorithms.flat_learner import (
    FlatLearner,
    Forward,
    Terms,
    epsilon_greedy,
    epsilon_of_slots,
    greedy,
)
from seqrl_ray.algorithms.toy_recurrent_settings import ToyRecurrentSettings
from seqrl_ray.errors import RecipeError
from seqrl_ray.losses.td import double_q_error, huber
from seqrl_ray.types import (
    ActInput,
    Array,
    ArraySpec,
    ColumnSpec,
    FloatArray,
    GroupSpec,
    IntArray,
    Mode,
    SampleSpec,
    WindowTensors,
)

STATE = "recurrent_state"
"""The extra column: the state before the decision."""


class RecurrentQ(nn.Module):
    """A GRU cell on the flattened observation, and a linear head on its state."""

    def __init__(self, obs_size: int, units: int, actions: int) -> None:
        super().__init__()
        self.cell = nn.GRUCell(obs_size, units)
        self.head = nn.Linear(units, actions)

    def forward(self, obs: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Map observations [B, *obs] and states [B, H] to values [B, A] and the next states [B, H]."""
        state = self.cell(obs.flatten(1).to(torch.float32), state)  # [B, H]
        return self.head(state), state  # [B, A], [B, H]


def recurrent_q(settings: ToyRecurrentSettings, group: GroupSpec) -> RecurrentQ:
    """Build the network. Raises: RecipeError: the group's actions are not discrete."""
    if group.action.kind != "discrete":
        raise RecipeError(
            f"policies.{group.policy_id}: the environment's actions are continuous: toy_recurrent needs a "
            "discrete set. Choose another algorithm.name."
        )
    return RecurrentQ(max(group.policy_obs.size, 1), settings.units, group.action.n)


class ToyRecurrent(FlatLearner[ToyRecurrentSettings]):
    """Learns action values of histories."""

    def sample_spec(self) -> SampleSpec:
        """Return what replay must hand to `update`."""
        keys = self.settings
        return SampleSpec(
            view="windows",
            gamma=keys.gamma,
            window_steps=keys.window_steps,
            period_steps=keys.period_steps,
            burn_in_steps=keys.burn_in_steps,
            extra=(ColumnSpec(STATE, ArraySpec((keys.units,), "float32"), keys.period_steps),),
        )

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

    def initial_state(self, slots: int) -> FloatArray:
        """Return zeros [S, H]."""
        return np.zeros((slots, self.settings.units), np.float32)

    @torch.inference_mode()
    def act(
        self, inputs: ActInput, state: FloatArray, mode: Mode
    ) -> tuple[Array, FloatArray, Mapping[str, Array]]:
        """Choose the best legal action, or with the slot's epsilon a random legal one; carry the state on."""
        before = np.where(inputs.is_first[:, None], np.float32(0.0), state)  # [S, H]
        values, after = self.network(
            torch.from_numpy(inputs.obs).to(self.device), torch.from_numpy(before).to(self.device)
        )  # [S, A], [S, H]
        q = values.cpu().numpy()  # [S, A]
        if mode == "greedy":
            action = greedy(q, inputs.legal)  # [S]
        else:
            action = epsilon_greedy(q, inputs.legal, inputs.slot_params["epsilon"], inputs.rng)  # [S]
        return action, after.cpu().numpy(), {STATE: before}

    def loss(self, online: Forward, target: Forward, minibatch: WindowTensors[Tensor]) -> Terms:
        """Return the Huber loss of each step's double-Q error."""
        q = self._unroll(online, minibatch)  # [B, K+1, A]
        with torch.no_grad():
            slow = self._unroll(target, minibatch)  # [B, K+1, A]
        legal = None
        if minibatch.legal is not None and minibatch.next_legal is not None:
            legal = self._with_next(minibatch.legal, minibatch.next_legal, minibatch.valid)[
                :, 1:
            ]  # [B, K, A]
        discount = self.settings.gamma * (~minibatch.terminated).to(torch.float32)  # [B, K]
        # Cleaned before the loss, not after: the gradient of a selected-away NaN would still be NaN.
        reward = torch.where(minibatch.valid, minibatch.reward, 0.0)  # [B, K]
        error = double_q_error(
            q[:, :-1], minibatch.action, reward, discount, slow[:, 1:], q[:, 1:].detach(), legal
        )  # [B, K]
        size = torch.where(minibatch.learn, error.detach().abs(), 0.0)  # [B, K]
        mean = size.sum(1) / minibatch.learn.sum(1).clamp(min=1)  # [B]
        share = self.settings.priority_max_share
        return Terms(
            loss=huber(error, self.settings.huber_delta),
            weight=minibatch.weight[:, None],
            valid=minibatch.learn,
            priorities=share * size.amax(1) + (1.0 - share) * mean,
            metrics={
                "q": torch.where(minibatch.learn, slow[:, :-1].amax(-1), 0.0).sum() / minibatch.learn.sum()
            },
        )

    def _unroll(self, network: Forward, minibatch: WindowTensors[Tensor]) -> Tensor:
        """Return the values at every step and after the last, [B, K+1, A]; burn-in carries no gradient."""
        obs = self._with_next(minibatch.obs, minibatch.next_obs, minibatch.valid)  # [B, K+1, *obs]
        state, values = minibatch.extra[STATE], []  # [B, H]
        for k in range(obs.shape[1]):
            if k == self.settings.burn_in_steps:
                state = state.detach()
            q, state = network(obs[:, k], state)  # [B, A], [B, H]
            values.append(q)
        return torch.stack(values, 1)  # [B, K+1, A]

    @staticmethod
    def _with_next(steps: Tensor, after: Tensor, valid: Tensor) -> Tensor:
        """Put `after` [B, ...] behind the last valid step of `steps` [B, K, ...], and 0 behind that."""
        count = valid.sum(1)  # [B]
        place = torch.arange(steps.shape[1] + 1, device=steps.device)  # [K+1]
        shape = (*valid.shape[:1], len(place), *[1] * (steps.dim() - 2))
        own = (place < count[:, None]).view(shape)  # [B, K+1, 1...]
        last = (place == count[:, None]).view(shape)  # [B, K+1, 1...]
        padded = torch.cat([steps, torch.zeros_like(steps[:, :1])], 1)  # [B, K+1, ...]
        return torch.where(
            own, padded, torch.where(last, after[:, None], torch.zeros_like(padded))
        )  # [B, K+1, ...]
