"""A toy window algorithm: a return-conditioned policy over the last K steps, with one causal attention head.

Source: Chen et al. (2021), arXiv:2106.01345 (Decision Transformer). Departs from it: return, observation and
previous action are one token per step; one attention head, no blocks; position within the window is learned;
no target network.
Reads Windows with returns-to-go; returns one priority per window, its mean loss.
Dims: S slots, B batch, K window steps, A actions, D token features, E embedding.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from seqrl_ray.algorithms.flat_learner import FlatLearner, Forward, Terms
from seqrl_ray.algorithms.toy_window_settings import ToyWindowSettings
from seqrl_ray.errors import RecipeError
from seqrl_ray.types import (
    ActInput,
    Array,
    BoolArray,
    GroupSpec,
    IntArray,
    Mode,
    SampleSpec,
    WindowTensors,
)

Context = dict[str, Array]
"""The last K steps of every slot, oldest first; unused places stand behind the used ones:
token [S, K, D] float32; used [S] int64; wanted [S] float32 return still to be earned.
"""


class WindowPolicy(nn.Module):
    """Embeds one token per step, attends to the steps before, and gives one score per action."""

    def __init__(self, features: int, units: int, window_steps: int, actions: int) -> None:
        super().__init__()
        self.embed = nn.Linear(features, units)
        self.position = nn.Parameter(0.02 * torch.randn(window_steps, units))
        self.qkv = nn.Linear(units, 3 * units)
        self.head = nn.Sequential(nn.Linear(2 * units, units), nn.ReLU(), nn.Linear(units, actions))

    def forward(self, token: Tensor) -> Tensor:
        """Map tokens [B, K, D] to scores [B, K, A]; step k sees steps 0..k only, and no padding."""
        x = functional.relu(self.embed(token) + self.position)  # [B, K, E]
        query, key, value = self.qkv(x).chunk(3, -1)  # [B, K, E] each
        seen = functional.scaled_dot_product_attention(query, key, value, is_causal=True)  # [B, K, E]
        return self.head(torch.cat([x, seen], -1))  # type: ignore[no-any-return]  # [B, K, A]


def window_policy(settings: ToyWindowSettings, group: GroupSpec) -> WindowPolicy:
    """Build the network. Raises: RecipeError: the group's actions are not discrete."""
    if group.action.kind != "discrete":
        raise RecipeError(
            f"policies.{group.policy_id}: the environment's actions are continuous: toy_window needs a "
            "discrete set. Choose another algorithm.name."
        )
    return WindowPolicy(token_features(group), settings.units, settings.window_steps, group.action.n)


def token_features(group: GroupSpec) -> int:
    """Return the token width D: return still wanted, observation, one-hot of the previous action."""
    return 1 + max(group.policy_obs.size, 1) + group.action.n


class ToyWindow(FlatLearner[ToyWindowSettings]):
    """Imitates the actions that led to the return it is asked for."""

    pull = "episode"

    def sample_spec(self) -> SampleSpec:
        """Return what replay must hand to `update`."""
        return SampleSpec(
            view="windows", gamma=self.settings.gamma, window_steps=self.settings.window_steps, returns=True
        )

    def slot_params(self, progress: float, rank: IntArray, total: int) -> dict[str, Array]:
        """Return the return each slot asks for."""
        return {"target_return": np.full(len(rank), self.settings.target_return, np.float32)}

    def initial_state(self, slots: int) -> Context:
        """Return an empty context."""
        return {
            "token": np.zeros((slots, self.settings.window_steps, token_features(self.group)), np.float32),
            "used": np.zeros(slots, np.int64),
            "wanted": np.zeros(slots, np.float32),
        }

    @torch.inference_mode()
    def act(self, inputs: ActInput, state: Context, mode: Mode) -> tuple[Array, Context, Mapping[str, Array]]:
        """Draw a legal action from the softmax of the scores, or take the best legal one."""
        state = self._extend(state, inputs)
        scores = self.network(torch.from_numpy(state["token"]).to(self.device)).cpu().numpy()  # [S, K, A]
        score = scores[np.arange(len(scores)), state["used"] - 1]  # [S, A]
        if mode == "explore":
            score = score + inputs.rng.gumbel(
                size=score.shape
            )  # [S, A] the largest is a draw from the softmax
        if inputs.legal is not None:
            score = np.where(inputs.legal, score, -np.inf)  # [S, A]
        return score.argmax(1), state, {}

    def loss(self, online: Forward, target: Forward, minibatch: WindowTensors[Tensor]) -> Terms:
        """Return the cross-entropy of each step's action."""
        if minibatch.return_to_go is None:
            raise ValueError("minibatch.return_to_go is None, sample_spec() asks for returns")
        actions = self.group.action.n
        taken = functional.one_hot(minibatch.action.clamp(0, actions - 1), actions).to(
            torch.float32
        )  # [B, K, A]
        previous = torch.cat([torch.zeros_like(taken[:, :1]), taken[:, :-1]], 1)  # [B, K, A]
        obs = minibatch.obs.flatten(2).to(torch.float32)  # [B, K, ...]
        wanted = minibatch.return_to_go[..., None] / self.settings.return_scale  # [B, K, 1]
        token = torch.cat([wanted, obs, previous], -1)  # [B, K, D]
        valid = minibatch.valid  # [B, K]
        score = online(torch.where(valid[..., None], token, 0.0))  # [B, K, A]
        if minibatch.legal is not None:
            score = score.masked_fill(~minibatch.legal & valid[..., None], -1e9)  # [B, K, A]
        action = torch.where(valid, minibatch.action, 0)  # [B, K]
        loss = functional.cross_entropy(score.transpose(1, 2), action, reduction="none")  # [B, K]
        shown = torch.where(valid, loss.detach(), 0.0)  # [B, K]
        return Terms(
            loss=loss,
            weight=minibatch.weight[:, None],
            valid=minibatch.learn,
            priorities=shown.sum(1) / valid.sum(1).clamp(min=1),
            metrics={},
        )

    def _extend(self, state: Context, inputs: ActInput) -> Context:
        """Append the step to be decided to every slot's context; a full context loses its oldest step."""
        first: BoolArray = inputs.is_first  # [S]
        slots, actions = len(first), self.group.action.n
        wanted = np.where(
            first,
            inputs.slot_params["target_return"],
            (state["wanted"] - inputs.prev_reward) / self.settings.gamma,
        ).astype(np.float32)  # [S]
        previous = np.eye(actions, dtype=np.float32)[inputs.prev_action]  # [S, A]
        scaled = wanted[:, None] / np.float32(self.settings.return_scale)  # [S, 1]
        obs = inputs.obs.reshape(slots, -1).astype(np.float32)  # [S, ...]
        full = ~first & (state["used"] == self.settings.window_steps)  # [S]
        token = np.where(first[:, None, None], np.float32(0.0), state["token"])  # [S, K, D]
        token[full] = np.roll(token[full], -1, axis=1)
        token[full, 0, -actions:] = 0.0  # as in a training window, whose first step knows no action before it
        place = np.where(first, 0, state["used"] - full)  # [S]
        previous[place == 0] = 0.0
        token[np.arange(slots), place] = np.concatenate([scaled, obs, previous], 1)
        return {"token": token, "used": place + 1, "wanted": wanted}
