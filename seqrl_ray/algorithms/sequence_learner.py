"""What the return-conditioned transformers share: contexts of the last K steps, and observations as the data
had them.

An actor keeps a context per slot: return still wanted, observation, action and number of each of its last K
decisions. It grows by one row per decision, is never rebuilt, and runs through the network at the length it
has, all slots in one call. The statistics that observations are standardised with are learned state: they
travel with the weights, and neither optimiser nor target touches them.
Source: Chen et al. (2021), arXiv:2106.01345, its Gym evaluation loop. Departs from it: contexts are not
padded to K; a discounted return (gamma < 1) is carried on as (R - r) / gamma.
Dims: S slots, B batch, K window steps, A actions or action dimensions, D features, P parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from seqrl_ray.algorithms.flat_learner import FlatLearner, Forward, expect_names
from seqrl_ray.errors import RecipeError
from seqrl_ray.settings import Settings
from seqrl_ray.types import (
    ActInput,
    Array,
    DataFacts,
    GroupSpec,
    IntArray,
    SampleSpec,
    WindowTensors,
)

SettingsT = TypeVar("SettingsT", bound=Settings)


Context = dict[str, Array]
"""The last K decisions of every slot, oldest first; unused places stand behind the used ones:
wanted [S, K] float32 return still to be earned, unscaled; obs [S, K, *policy_obs]; action [S, K, ...];
timestep [S, K] int64; used [S] int64 in [0, K].
"""


class SequenceLearner(FlatLearner[SettingsT]):
    """Base of the return-conditioned transformers; `settings` has the keys of `decision_transformer`."""

    pull: ClassVar[Literal["fragment", "episode"]] = "episode"
    compiles: ClassVar[bool] = False  # dropout in a graph draws other numbers than the eager path

    def __init__(
        self, settings: Any, group: GroupSpec, network: nn.Module, *, device: str = "cpu", seed: int = 0
    ) -> None:
        super().__init__(settings, group, network, device=device, seed=seed)
        self.keys = settings
        self._standardised = settings.normalise_obs and group.policy_obs.dtype == "float32"
        self.obs_mean = np.zeros(group.policy_obs.shape, np.float32)
        self.obs_std = np.ones(group.policy_obs.shape, np.float32)
        if group.action.kind == "box":
            low, high = np.array(group.action.low, np.float32), np.array(group.action.high, np.float32)
            if not (np.isfinite(low).all() and np.isfinite(high).all()):
                raise RecipeError(
                    f"policies.{group.policy_id}: the environment's actions have no bounds "
                    f"({group.action.low} to {group.action.high}): they cannot be scaled to -1..1. Wrap the "
                    "environment so that its action space is bounded."
                )
            shape = group.action.shape
            self.middle = ((high + low) / 2).reshape(shape)
            self.half = ((high - low) / 2).reshape(shape)

    # ------------------------------------------------------------------------------------ declared

    def sample_spec(self) -> SampleSpec:
        """Return what replay must hand to `update`."""
        keys = self.keys
        return SampleSpec(
            view="windows", window_steps=keys.window_steps, returns=True, return_gamma=keys.gamma
        )

    def slot_params(self, progress: float, rank: IntArray, total: int) -> dict[str, Array]:
        """Return the return each slot asks for."""
        return {"target_return": np.full(len(rank), self.keys.target_return, np.float32)}

    def prepare(self, facts: DataFacts) -> None:
        """Take over the statistics of the offline data; features that never vary are only shifted."""
        if self._standardised:
            deviation = np.where(facts.obs_std < 1e-6, 1.0, facts.obs_std + 1e-6)  # [*policy_obs]
            self._load_statistics(facts.obs_mean, deviation)

    # -------------------------------------------------------------------------------------- acting

    def initial_state(self, slots: int) -> Context:
        """Return empty contexts."""
        keys, group, column = self.keys, self.group, self.group.action.column
        shape = (slots, keys.window_steps)
        return {
            "wanted": np.zeros(shape, np.float32),
            "obs": np.zeros((*shape, *group.policy_obs.shape), group.policy_obs.dtype),
            "action": np.zeros((*shape, *column.shape), column.dtype),
            "timestep": np.zeros(shape, np.int64),
            "used": np.zeros(slots, np.int64),
        }

    def extend(self, state: Context, inputs: ActInput) -> Context:
        """Return contexts with the decision at hand appended; a full one loses its oldest step."""
        first, used = inputs.is_first, state["used"]  # [S], [S]
        slots, steps = state["wanted"].shape
        every = np.arange(slots)
        last = np.maximum(used - 1, 0)  # [S] place of the decision before
        going = ~first & (used > 0)  # [S]
        left = (state["wanted"][every, last] - inputs.prev_reward) / np.float32(self.keys.gamma)  # [S]
        now: dict[str, Array] = {
            "wanted": np.where(going, left, inputs.slot_params["target_return"]).astype(np.float32),  # [S]
            "obs": inputs.obs,
            "timestep": np.where(going, state["timestep"][every, last] + 1, 0),  # [S]
            "action": np.zeros_like(inputs.prev_action),  # is being decided
        }
        new = {name: state[name].copy() for name in now}
        new["action"][every[going], last[going]] = inputs.prev_action[going]
        full = going & (used == steps)  # [S]
        place = np.where(going, used - full, 0)  # [S]
        for name, value in now.items():
            if full.any():
                new[name][full, :-1] = new[name][full, 1:]
            new[name][every, place] = value
        return {**new, "used": place + 1}

    def ask(self, state: Context) -> Tensor:
        """Return what the network says at every slot's newest step, [S, A]."""
        longest = int(state["used"].max())
        windows = (state[name][:, :longest] for name in ("wanted", "obs", "action", "timestep"))
        at = torch.from_numpy(state["used"][:, None] - 1).to(self.device)  # [S, 1]
        inputs = [torch.from_numpy(np.ascontiguousarray(w)).to(self.device) for w in windows]
        return self.read(self.network, *inputs, at)[:, 0]  # [S, A]

    def read(
        self, network: Forward, wanted: Tensor, obs: Tensor, action: Tensor, timestep: Tensor, *rest: Any
    ) -> Tensor:
        """Call a network on windows [B, K, ...] as they are stored: scales and standardises."""
        if self._standardised:
            mean, std = (torch.from_numpy(v).to(self.device) for v in (self.obs_mean, self.obs_std))
            obs = (obs - mean) / std  # [B, K, *obs]
        scores: Tensor = network(wanted / self.keys.return_scale, obs, self.scaled(action), timestep, *rest)
        return scores

    def scaled(self, action: Tensor) -> Tensor:
        """Return continuous actions [..., *action] as -1..1; indices stay."""
        if self.group.action.kind == "discrete":
            return action
        middle, half = (torch.from_numpy(v).to(self.device) for v in (self.middle, self.half))
        return (action - middle) / half

    # ------------------------------------------------------------------------------------ learning

    def drawn(self, batch: WindowTensors[Tensor]) -> WindowTensors[Tensor]:
        """Add `dropout_seed` [U], a function of the seed and the number of each update."""
        if not self.keys.dropout or "dropout_seed" in batch.extra:
            return batch
        keys = [(self._seed, self._updates + u) for u in range(len(batch.weight))]
        seeds = [int(np.random.SeedSequence(k).generate_state(1)[0]) for k in keys]
        return replace(batch, extra={**batch.extra, "dropout_seed": torch.tensor(seeds)})

    def windows(self, network: Forward, minibatch: WindowTensors[Tensor]) -> Tensor:
        """Return the network's answer at every step of a batch of windows, [B, K, A], with dropout."""
        if minibatch.return_to_go is None:
            raise ValueError("minibatch.return_to_go is None, sample_spec() asks for returns")
        valid = minibatch.valid  # [B, K]
        clean = [
            torch.where(valid.view(*valid.shape, *[1] * (x.dim() - 2)), x, torch.zeros_like(x))
            for x in (minibatch.return_to_go, minibatch.obs, minibatch.action, minibatch.timestep)
        ]
        if not self.keys.dropout:
            return self.read(network, *clean)
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(int(minibatch.extra["dropout_seed"]))
            return self.read(network, *clean, None, self.keys.dropout)

    # --------------------------------------------------------------------------------------- state

    def weights(self) -> NDArray[np.float32]:
        """Return a copy of the parameters and the observations' statistics, flat [P + 2 D]."""
        return np.concatenate([super().weights(), self.obs_mean.ravel(), self.obs_std.ravel()])

    def load_weights(self, flat: NDArray[np.float32]) -> None:
        """Act with these from now on. Raises: CheckpointError: another size."""
        size = self.obs_mean.size
        super().load_weights(flat[: -2 * size])
        self._load_statistics(flat[-2 * size : -size], flat[-size:])

    def learned(self) -> dict[str, NDArray[Any]]:
        """Return what every learner has, and the observations' statistics."""
        return {**super().learned(), "obs_mean": self.obs_mean.copy(), "obs_std": self.obs_std.copy()}

    def load_learned(self, values: Mapping[str, NDArray[Any]]) -> None:
        """Take over `learned()` of an equal algorithm. Raises: CheckpointError: a name or size differs."""
        own = {"obs_mean", "obs_std"}
        expect_names("learned", values, {*super().learned(), *own})
        super().load_learned({name: value for name, value in values.items() if name not in own})
        self._load_statistics(values["obs_mean"], values["obs_std"])

    def private(self) -> dict[str, Any]:
        """Return what every learner has, and the seed of dropout."""
        return {**super().private(), "seed": self._seed}

    def load_private(self, values: Mapping[str, Any]) -> None:
        """Take over `private()`. Raises: CheckpointError: a name differs."""
        expect_names("private", values, {*super().private(), "seed"})
        super().load_private({name: value for name, value in values.items() if name != "seed"})
        self._seed = int(values["seed"])

    def _load_statistics(self, mean: NDArray[Any], std: NDArray[Any]) -> None:
        self.obs_mean = np.array(mean, np.float32).reshape(self.group.policy_obs.shape)
        self.obs_std = np.array(std, np.float32).reshape(self.group.policy_obs.shape)
