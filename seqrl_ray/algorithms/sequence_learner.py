"""Learning to act as data did, and what the return-conditioned transformers among such learners share.

`Imitator` holds what is known of the data (`facts`: statistics of observations, range of returns), learned
state that travels with the weights and that neither optimiser nor target touches, and says what becomes of
action scores. `SequenceLearner` adds contexts: per slot the return still wanted, observation, action and
number of each of the last K decisions. A context grows by one row per decision, is never rebuilt, and is read
at the length it has, all slots in one call; a network with `newest` reads only what is new of it.
Source: Chen et al. (2021), arXiv:2106.01345, its Gym evaluation loop. Departs from it: contexts are not
padded to K; a discounted return (gamma < 1) is carried on as (R - r) / gamma.
Dims: S slots, B batch, K window steps, A actions or action dimensions, D features, P parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from seqrl_ray.algorithms.flat_learner import FlatLearner, Forward, Terms, expect_names
from seqrl_ray.errors import RecipeError
from seqrl_ray.settings import Settings
from seqrl_ray.types import (
    ActInput,
    Array,
    DataFacts,
    FloatArray,
    GroupSpec,
    IntArray,
    Mode,
    SampleSpec,
    WindowTensors,
)

SettingsT = TypeVar("SettingsT", bound=Settings)


class Context(NamedTuple):
    """The last K decisions of every slot, oldest first; unused places stand behind the used ones."""

    wanted: FloatArray  # [S, K] float32 return still to be earned, unscaled
    obs: Array  # [S, K, *policy_obs]
    action: Array  # [S, K, ...]
    timestep: IntArray  # [S, K]
    used: IntArray  # [S], in [0, K]
    row: IntArray  # [S] where the network keeps what it read of it, and
    stamp: IntArray  # [S] by what it knows it: see `networks.recall`


class Imitator(FlatLearner[SettingsT]):
    """Base of what learns to act as data did; `settings` has `normalise_obs` and `sample_actions`."""

    keys = property(lambda self: self.settings)  # `set_hparams` makes new ones
    compiles: ClassVar[bool] = False  # a graph would keep the facts it was made with, and its dropout's draws

    def __init__(
        self, settings: Any, group: GroupSpec, network: nn.Module, *, device: str = "cpu", seed: int = 0
    ) -> None:
        super().__init__(settings, group, network, device=device, seed=seed)
        self.scores = group.action.n or group.action.column.size  # A
        self._standardised = settings.normalise_obs and group.policy_obs.dtype == "float32"
        self.facts: dict[str, FloatArray] = {
            "obs_mean": np.zeros(group.policy_obs.shape, np.float32),
            "obs_std": np.ones(group.policy_obs.shape, np.float32),
            "return_range": np.zeros(2, np.float32),
        }
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

    def prepare(self, facts: DataFacts) -> None:
        """Take over the statistics of the offline data; features that never vary are only shifted."""
        known = {**self.facts, "return_range": np.array([facts.return_min, facts.return_max])}
        if self._standardised:
            deviation = np.where(facts.obs_std < 2e-6, 1.0, facts.obs_std)  # [*policy_obs]
            known.update(obs_mean=facts.obs_mean, obs_std=deviation)
        self._load_facts(known)

    def standardised(self, obs: Tensor) -> Tensor:
        """Return observations [..., *obs] as the network reads them."""
        if not self._standardised:
            return obs
        mean, std = (torch.from_numpy(self.facts[n]).to(self.device) for n in ("obs_mean", "obs_std"))
        return (obs - mean) / std

    def scaled(self, action: Tensor) -> Tensor:
        """Return continuous actions [..., *action] as -1..1; indices stay."""
        if self.group.action.kind == "discrete":
            return action
        middle, half = (torch.from_numpy(v).to(self.device) for v in (self.middle, self.half))
        return (action - middle) / half

    def decide(self, score: FloatArray, inputs: ActInput, mode: Mode) -> Array:
        """Return the actions that the network's scores [S, A] stand for: means of continuous ones before the
        tanh, or logits, of which the largest legal one is taken, or one is drawn in "explore".
        """
        if self.group.action.kind == "box":
            return self.middle + self.half * np.tanh(score).reshape(-1, *self.middle.shape)  # [S, *action]
        if mode == "explore" or self.keys.sample_actions:
            score = score + inputs.rng.gumbel(size=score.shape)  # the largest is a draw from the softmax
        if inputs.legal is not None:
            score = np.where(inputs.legal, score, -np.inf)  # [S, A]
        return score.argmax(1)  # type: ignore[no-any-return]  # [S]

    def imitation_loss(self, score: Tensor, action: Tensor, legal: Tensor | None) -> Tensor:
        """Return the squared error of tanh(score), mean over the action's dimensions, or the cross-entropy of
        the action taken among the legal ones, [B, ...] of scores [B, ..., A].
        """
        if self.group.action.kind == "box":
            return (score.tanh() - self.scaled(action).reshape(score.shape)).square().mean(-1)  # [B, ...]
        if legal is not None:
            score = score.masked_fill(~legal, -1e9)  # [B, ..., A]
        return functional.cross_entropy(score.movedim(-1, 1), action, reduction="none")  # [B, ...]

    def weights(self) -> NDArray[np.float32]:
        """Return a copy of the parameters and of the facts, flat [P + ...]."""
        return self._and_facts(super().weights())

    def judged_weights(self) -> NDArray[np.float32]:
        """Return the parameters to judge and keep, and the facts, flat [P + ...]."""
        judged = super().judged_weights()
        return self._and_facts(judged) if self.optimiser.average_share else judged

    def _and_facts(self, flat: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.concatenate([flat, *(fact.ravel() for fact in self.facts.values())])

    def load_weights(self, flat: NDArray[np.float32]) -> None:
        """Act with these from now on. Raises: CheckpointError: another size."""
        sizes = [fact.size for fact in self.facts.values()]
        own, *rest = np.split(flat, np.cumsum([len(flat) - sum(sizes), *sizes[:-1]]))
        super().load_weights(own)
        self._load_facts(dict(zip(self.facts, rest, strict=True)))

    def learned(self) -> dict[str, NDArray[Any]]:
        """Return what every learner has, and the facts."""
        return {**super().learned(), **{name: fact.copy() for name, fact in self.facts.items()}}

    def load_learned(self, values: Mapping[str, NDArray[Any]]) -> None:
        """Take over `learned()` of an equal algorithm. Raises: CheckpointError: a name or size differs."""
        expect_names("learned", values, {*super().learned(), *self.facts})
        super().load_learned({name: value for name, value in values.items() if name not in self.facts})
        self._load_facts(values)

    def _load_facts(self, values: Mapping[str, NDArray[Any]]) -> None:
        self.facts = {n: np.array(values[n], np.float32).reshape(old.shape) for n, old in self.facts.items()}


class SequenceLearner(Imitator[SettingsT]):
    """Base of the return-conditioned transformers; `settings` has the keys of `decision_transformer`."""

    def sample_spec(self) -> SampleSpec:
        """Return what replay must hand to `update`."""
        keys = self.keys
        return SampleSpec("windows", window_steps=keys.window_steps, returns=True, return_gamma=keys.gamma)

    def slot_params(self, progress: float, rank: IntArray, total: int) -> dict[str, Array]:
        """Return the return each slot asks for."""
        return {"target_return": np.full(len(rank), self.keys.target_return, np.float32)}

    def initial_state(self, slots: int) -> Context:
        """Return empty contexts."""
        rows = (slots, getattr(self.keys, "acting_steps", self.keys.window_steps))
        obs, action = self.group.policy_obs, self.group.action.column
        return Context(
            np.zeros(rows, np.float32),
            np.zeros((*rows, *obs.shape), obs.dtype),
            np.zeros((*rows, *action.shape), action.dtype),
            np.zeros(rows, np.int64),
            *np.zeros((3, slots), np.int64),
        )

    def extend(self, state: Context, inputs: ActInput) -> Context:
        """Return contexts with the decision at hand appended; a full one loses its oldest steps."""
        (slots, steps), first = state[0].shape, inputs.is_first  # [S]
        state = Context(*state, *np.zeros((7 - len(state), slots), np.int64))  # a checkpoint's is a tuple
        every = np.arange(slots)
        last = np.maximum(state.used - 1, 0)  # [S] place of the decision before
        wanted = np.where(
            first,
            inputs.slot_params["target_return"],
            (state.wanted[every, last] - inputs.prev_reward) / np.float32(self.keys.gamma),
        ).astype(np.float32)  # [S]
        number = np.where(first, 0, state.timestep[every, last] + 1)  # [S]
        columns: list[Array] = [c.copy() for c in state[:4]]
        going = ~first & (state.used > 0)  # [S]
        columns[2][every[going], last[going]] = inputs.prev_action[going]
        full, lost = going & (state.used == steps), getattr(self.keys, "forget_steps", 1)  # [S]
        place = np.where(going, state.used - lost * full, 0)  # [S]
        if full.any():
            for column in columns:
                column[full, : steps - lost] = column[full, lost:]
        for column, new in zip(columns[:2] + columns[3:], (wanted, inputs.obs, number), strict=True):
            column[every, place] = new
        columns[2][every, place] = 0  # what is being decided
        stamp = np.where(going & ~full, state.stamp, -abs(state.stamp))  # [S]
        return Context(columns[0], columns[1], columns[2], columns[3], place + 1, state.row.copy(), stamp)

    def ask(self, state: Context, network: Forward, *rest: Any) -> Any:
        """Return what the network says at every slot's newest step, [S, 1, ...]."""
        longest = int(state.used.max())
        columns = [np.ascontiguousarray(column[:, :longest]) for column in state[:4]]  # [S, k, ...]
        at = torch.from_numpy(state.used[:, None] - 1).to(self.device)  # [S, 1]
        if hasattr(network, "newest"):
            written = self.state.online._version  # how often: other weights remember nothing
            past = (state.row, state.stamp, state.used, state.wanted.shape[1], written)
            network, rest = network.newest, (past,)
        return self.read(network, *(torch.from_numpy(c).to(self.device) for c in columns), at, *rest)

    def read(
        self, network: Forward, wanted: Tensor, obs: Tensor, action: Tensor, timestep: Tensor, *rest: Any
    ) -> Any:
        """Call a network on windows [B, K, ...] as they are stored: scales and standardises."""
        wanted, obs = self.scaled_return(wanted), self.standardised(obs)  # [B, K], [B, K, *obs]
        return network(wanted, obs, self.scaled(action), timestep, *rest)

    def scaled_return(self, wanted: Tensor) -> Tensor:
        """Return returns-to-go [...] as the network reads them."""
        return wanted / float(self.keys.return_scale)

    def drawn(self, batch: WindowTensors[Tensor]) -> WindowTensors[Tensor]:
        """Add `dropout_seed` [U], a function of the seed and the number of each update."""
        if not self.keys.dropout or "dropout_seed" in batch.extra:
            return batch
        keys = [(self._seed, self._updates + u) for u in range(len(batch.weight))]
        seeds = [int(np.random.SeedSequence(k).generate_state(1)[0]) for k in keys]
        return replace(batch, extra={**batch.extra, "dropout_seed": torch.tensor(seeds)})

    def windows(self, network: Forward, minibatch: WindowTensors[Tensor]) -> Any:
        """Return the network's answer at every step of a batch of windows, [B, K, ...], with dropout."""
        if minibatch.return_to_go is None:
            raise ValueError("minibatch.return_to_go is None, sample_spec() asks for returns")
        columns = (minibatch.return_to_go, minibatch.obs, minibatch.action, minibatch.timestep)
        clean = [seen(column, minibatch.valid) for column in columns]
        if not self.keys.dropout:
            return self.read(network, *clean)
        return self.read(network, *clean, None, (self.keys.dropout, int(minibatch.extra["dropout_seed"])))

    def action_loss(self, score: Tensor, minibatch: WindowTensors[Tensor]) -> Tensor:
        """Return `imitation_loss` of each step, [B, K]; of those that are not valid, some finite number."""
        valid, legal = minibatch.valid, minibatch.legal  # [B, K], [B, K, A]
        legal = None if legal is None else legal | ~valid[..., None]
        return self.imitation_loss(score, seen(minibatch.action, valid), legal)

    # Of networks that predict the return as logits of bins over the data's range, stretched to hold 0:

    def return_loss(self, said: Tensor, minibatch: WindowTensors[Tensor]) -> Tensor:
        """Return the cross-entropy of each step's return-to-go with logits [B, K, N], [B, K]."""
        low, width = self._bins()
        earned = torch.where(minibatch.valid, cast(Tensor, minibatch.return_to_go), 0.0)  # [B, K]
        bins = ((earned - low) / width).long().clamp(0, self.keys.return_bins - 1)  # [B, K]
        return functional.cross_entropy(said.transpose(1, 2), bins, reduction="none")  # [B, K]

    def best_return(self, logits: Tensor, quantile: float) -> FloatArray:
        """Return the middle of the highest bin that the return reaches with the chance 1 - quantile, [S]."""
        reached = logits.softmax(-1).flip(-1).cumsum(-1).flip(-1)  # [S, N] chance of this bin or a higher one
        low, width = self._bins()
        best: FloatArray = (reached >= 1.0 - quantile).sum(-1).clamp(min=1).cpu().numpy() - 0.5  # [S]
        return low + width * best

    def _bins(self) -> tuple[float, float]:
        """Return where the first bin begins, and the width of each."""
        known = [*self.facts["return_range"].tolist(), 0.0]
        return min(known), ((max(known) - min(known)) or 1.0) / self.keys.return_bins

    def terms(self, loss: Tensor, minibatch: WindowTensors[Tensor], metrics: dict[str, Tensor]) -> Terms:
        """Return how the losses [B, K] of the steps count; a window's priority is their mean."""
        shown = torch.where(minibatch.valid, loss.detach(), 0.0).sum(1)  # [B]
        priorities = shown / minibatch.valid.sum(1).clamp(min=1)  # [B]
        return Terms(loss, minibatch.weight[:, None], minibatch.learn, priorities, metrics)


def seen(column: Tensor, valid: Tensor) -> Tensor:
    """Return `column` [B, K, ...] with zeros where `valid` [B, K] is False."""
    return torch.where(valid.view(*valid.shape, *[1] * (column.dim() - 2)), column, 0)
