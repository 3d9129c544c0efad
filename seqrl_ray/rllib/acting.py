"""A policy that RLlib trained, acting for our evaluator, our collector and `seqrl watch`.

It holds RLlib's own network (an inference-only RLModule) and its action distribution, and does between
observation and action what RLlib's default connectors do: batch, add a time axis and carry the state where
the network is recurrent, take the distribution's best action or draw one, map a normalised continuous action
to its bounds. So its greedy actions are those of RLlib's own evaluation. It learns nothing here.

Dims: S slots, A actions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from ray.rllib.core.columns import Columns
from ray.rllib.utils.spaces.space_utils import unsquash_action

from seqrl_ray.algorithms.rllib_settings import RllibSettings
from seqrl_ray.errors import CheckpointError, RecipeError
from seqrl_ray.rllib.config import base_config, module_spec
from seqrl_ray.rllib.spaces import action_space, observe
from seqrl_ray.types import ActInput, Array, DataFacts, GroupSpec, IntArray, Mode, SampleSpec, Update

END_OF_SCHEDULES = 10**12
"""Steps at which schedules of exploration are over: who explores here does so as at the end of training."""


class RllibPolicy:
    """One policy's network of RLlib's; see `seqrl_ray.algorithms.contract.Algorithm`."""

    learns: ClassVar[bool] = True
    updates = 0

    def __init__(
        self, name: str, settings: RllibSettings, group: GroupSpec, *, device: str = "cpu", seed: int = 0
    ) -> None:
        """Build the network.

        Args:
            name: `rllib:<name>`.
            settings: the `[algorithm]` table.
            group: what the policy sees and does.
            device: torch device.
            seed: of the first weights.
        Raises: RecipeError: RLlib's networks do not take the settings, the observation or the actions.
        """
        self.name, self.group, self.device = name, group, device
        config = base_config(name, settings)
        spec = module_spec(config, settings, group, inference_only=True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.module = build(spec, name).to(device)
        self._template: dict[str, Array] = state_of(self.module)
        self._space = action_space(group)
        self._normalised = bool(config.normalize_actions)
        self._recurrent = bool(self.module.is_stateful())

    def sample_spec(self) -> SampleSpec:
        """Ask for plain transitions (for recipes that store what the policy does)."""
        return SampleSpec(view="transitions")

    def prepare(self, facts: DataFacts) -> None:
        """Follow nothing from offline data here."""

    def slot_params(self, progress: float, rank: IntArray, total: int) -> dict[str, Array]:
        """Have no acting parameters."""
        return {}

    def initial_state(self, slots: int) -> Any:
        """Return the state of fresh slots: name -> [S, ...]; None without recurrence."""
        return _broadcast(self.module.get_initial_state(), slots, self.device) if self._recurrent else None

    def act(self, inputs: ActInput, state: Any, mode: Mode) -> tuple[Array, Any, Mapping[str, Array]]:
        """Choose an action for every slot; see `Algorithm.act`."""
        seen = torch.from_numpy(observe(self.group, inputs.obs, inputs.legal)).to(self.device)  # [S, ...]
        batch: dict[str, Any] = {Columns.OBS: seen.unsqueeze(1) if self._recurrent else seen}
        if self._recurrent:
            batch[Columns.STATE_IN] = _fresh(state, self.initial_state(len(seen)), inputs.is_first)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(inputs.rng.integers(2**31)) if mode == "explore" else 0)
            if mode == "explore":
                out = self.module.forward_exploration(batch, t=END_OF_SCHEDULES)
            else:
                out = self.module.forward_inference(batch)
            chosen = self._chosen(out, mode)
        if self._recurrent:
            state, chosen = out[Columns.STATE_OUT], chosen[:, 0]
        return self._handed(chosen.cpu().numpy()), state, {}

    def _chosen(self, out: Mapping[str, Any], mode: Mode) -> torch.Tensor:
        if Columns.ACTIONS in out:
            actions: torch.Tensor = out[Columns.ACTIONS]
            return actions
        explores, of = mode == "explore", self.module
        kind = of.get_exploration_action_dist_cls() if explores else of.get_inference_action_dist_cls()
        distribution = kind.from_logits(out[Columns.ACTION_DIST_INPUTS])
        drawn: torch.Tensor = (distribution if explores else distribution.to_deterministic()).sample()
        return drawn

    def _handed(self, actions: Array) -> Array:
        """Return actions as an environment takes them."""
        if self.group.action.kind == "discrete":
            return actions.astype(np.int64)
        if self._normalised:
            actions = np.asarray(unsquash_action(actions, self._space))  # type: ignore[no-untyped-call]
        low, high = (np.asarray(b, np.float32) for b in (self.group.action.low, self.group.action.high))
        shape = self.group.action.shape
        return np.clip(actions.astype(np.float32), low.reshape(shape), high.reshape(shape))

    def hparams(self, progress: float) -> dict[str, float]:
        """Have no hyper-parameters in acting."""
        return {}

    def set_hparams(self, values: Mapping[str, float]) -> None:
        """Refuse any. Raises: RecipeError."""
        if values:
            raise RecipeError(
                f"algorithm.{next(iter(values))} cannot change in a living run of {self.name}: RLlib's "
                "configuration is frozen as it begins. Begin a new run."
            )

    def update(self, batch: Any, hparams: Mapping[str, float]) -> Update:
        """Refuse. Raises: RecipeError: always."""
        raise RecipeError(
            f"algorithm.name={self.name!r} learns inside RLlib: it cannot be updated from a replay shard. "
            "Run it without --local."
        )

    def weights(self) -> NDArray[np.float32]:
        """Return the network's state, [P], its parts in the order of their names."""
        return flat(state_of(self.module))

    def judged_weights(self) -> NDArray[np.float32]:
        """Return `weights()`."""
        return self.weights()

    def load_weights(self, flat: NDArray[np.float32]) -> None:
        """Act with these weights from now on. Raises: CheckpointError: another size than [P]."""
        size = sum(part.size for part in self._template.values())
        if flat.shape != (size,):
            raise CheckpointError(
                f"weights of policy {self.group.policy_id!r} have shape {flat.shape}, not ({size},): they "
                "are of another network. Use the recipe that they were made with."
            )
        state, at = {}, 0
        for name in sorted(self._template):
            like = self._template[name]
            state[name] = flat[at : at + like.size].reshape(like.shape).astype(like.dtype)
            at += like.size
        self.module.set_state(state)

    def learned(self) -> dict[str, NDArray[Any]]:
        """Return the network's state; targets and moments are RLlib's."""
        return {"weights": self.weights()}

    def load_learned(self, values: Mapping[str, NDArray[Any]]) -> None:
        """Take over `learned()`. Raises: CheckpointError: another size."""
        self.load_weights(values["weights"])

    def private(self) -> dict[str, Any]:
        """Return nothing: the counters are RLlib's."""
        return {}

    def load_private(self, values: Mapping[str, Any]) -> None:
        """Take nothing."""


def build(spec: Any, name: str) -> Any:
    """Build a network.

    Raises: RecipeError: RLlib cannot; its reason is in the message.
    """
    try:
        return spec.build()
    except (ValueError, KeyError, TypeError, AssertionError, NotImplementedError, RuntimeError) as error:
        text = " ".join(str(error).split()) or repr(error)
        raise RecipeError(
            f"algorithm.name={name!r}: RLlib cannot build its network for {spec.observation_space} and "
            f"{spec.action_space}: {text}. Change [algorithm.model], or the algorithm."
        ) from None


def state_of(module: Any) -> dict[str, Array]:
    """Return what acting needs of a network: name -> array."""
    state: dict[str, Array] = module.get_state(inference_only=True)
    return state


def flat(state: Mapping[str, Array]) -> NDArray[np.float32]:
    """Return a network's state as one vector [P], its parts in the order of their names."""
    parts = [np.asarray(state[name], np.float32).ravel() for name in sorted(state)]
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def _broadcast(state: Any, slots: int, device: str) -> Any:
    """Repeat one state for every slot, in nested dicts."""
    if isinstance(state, Mapping):
        return {name: _broadcast(part, slots, device) for name, part in state.items()}
    return torch.as_tensor(state).to(device).unsqueeze(0).repeat(slots, *(1 for _ in np.shape(state)))


def _fresh(state: Any, initial: Any, is_first: Any) -> Any:
    """Begin anew where a stream does."""
    if isinstance(state, Mapping):
        return {name: _fresh(part, initial[name], is_first) for name, part in state.items()}
    first = torch.as_tensor(is_first, device=state.device).reshape(-1, *(1 for _ in state.shape[1:]))
    return torch.where(first, initial, state)
