"""What the algorithms here share: learning on one flat parameter vector, and epsilon-greedy acting.

All parameters are views of one contiguous vector, and so are their gradients: a step of Adam, a clip, a blend
of the target network and a copy for the actors are each a few operations on it, whatever the network.
Sources: Adam: Kingma and Ba (2015), arXiv:1412.6980, and with weight decay Loshchilov and Hutter (2019),
arXiv:1711.05101, as torch.optim computes them; averaged weights: Karras et al. (2024), arXiv:2312.02696, 3.1;
exploration by actor: Horgan et al. (2018), arXiv:1803.00933, whose ladder's base may here itself be annealed.
Longer than a file should be, and one file, so that an algorithm and all it stands on stay one short read.
Dims: S slots, U updates in one call, k updates in one graph, B batch, A actions, P parameters.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from operator import itemgetter
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from seqrl_ray.errors import CheckpointError, DivergedError, RecipeError
from seqrl_ray.losses.reduce import weighted_sum
from seqrl_ray.settings import Settings, mutable_keys, parse
from seqrl_ray.types import BoolArray, DataFacts, FloatArray, GroupSpec, IntArray, Update

BETA1, BETA2 = 0.9, 0.999
"""Adam's decay rates, as the paper recommends."""

SettingsT = TypeVar("SettingsT", bound=Settings)
BatchT = TypeVar("BatchT")
Forward = Callable[..., Any]


class Terms(NamedTuple):
    """What a loss gives back: one value per element, and how they count."""

    loss: Tensor  # [B, ...]
    weight: Tensor  # [B, ...]
    valid: Tensor | None  # [B, ...] bool
    priorities: Tensor  # [B], >= 0
    metrics: dict[str, Tensor]  # name -> []


class Gradients(NamedTuple):
    """What one minibatch asks for. Learners that share a batch add `total` and `elements` before dividing."""

    total: Tensor  # [P] summed over the elements
    elements: Tensor  # [] how many, maybe none
    priorities: Tensor  # [B]
    metrics: dict[str, Tensor]  # name -> []


class LearnedState(NamedTuple):
    """All that learning makes, as flat vectors [P]; the pure functions map one such state to the next."""

    online: Tensor
    target: Tensor
    first_moment: Tensor
    second_moment: Tensor
    average: Tensor


class Progress(NamedTuple):
    """What k updates gave."""

    state: LearnedState
    priorities: Tensor  # [k, B]
    metrics: dict[str, Tensor]  # name -> [k]


class FusedSteps(Protocol):
    """A compiled `FlatLearner.steps` over `updates` minibatches; see `compiled.py`."""

    updates: int

    def __call__(self, state: LearnedState, batch: Any, scalars: Sequence[Sequence[float]]) -> Progress: ...


@dataclass(frozen=True)
class Optimiser:
    """The settings keys of taking steps. Without a key for the target network there is none."""

    learning_rate: float
    lr_decay_start: float
    lr_end_fraction: float
    adam_eps: float
    max_grad_norm: float
    target_tau: float = 0.0
    target_period_updates: int = 0
    weight_decay: float = 0.0
    warmup_updates: int = 0
    average_share: float = 0.0

    @classmethod
    def of(cls, settings: Settings) -> Optimiser:
        """Pick the keys out of an algorithm's settings; those that have a default here may be missing."""
        return cls(**{f.name: getattr(settings, f.name) for f in fields(cls) if hasattr(settings, f.name)})

    def rate(self, progress: float) -> float:
        """Learning rate at this share of the run: constant, then linear to `lr_end_fraction` of it."""
        if progress <= self.lr_decay_start:
            return self.learning_rate
        fallen = (min(progress, 1.0) - self.lr_decay_start) / (1.0 - self.lr_decay_start)
        return self.learning_rate * (1.0 - fallen * (1.0 - self.lr_end_fraction))

    def warmth(self, update: int) -> float:
        """Share of the learning rate that update number `update` (from 1) is taken with: linear to 1."""
        return min(1.0, update / self.warmup_updates) if self.warmup_updates else 1.0

    def target_share(self, update: int) -> float:
        """Share of the online network that the target takes over after update number `update` (from 1)."""
        if self.target_period_updates:
            return 1.0 if update % self.target_period_updates == 0 else 0.0
        return self.target_tau

    def average_rate(self, update: int) -> float:
        """Share of the average that update number `update` (from 1) makes up."""
        return min(1.0, (1.0 / self.average_share - 1.0) / update) if self.average_share else 1.0


class FlatLearner(Generic[SettingsT]):
    """Base of the gradient algorithms: a subclass adds the batch it wants, how it acts, and its loss."""

    learns: ClassVar[bool] = True
    compiles: ClassVar[bool] = True
    """False where `steps` cannot be one graph that gives what the eager path gives."""
    add_up: Callable[[Gradients], Gradients] = staticmethod(lambda own: own)
    """Returns the sum over all learners that share a batch; alone, one has the whole of it."""

    def __init__(
        self, settings: SettingsT, group: GroupSpec, network: nn.Module, *, device: str = "cpu", seed: int = 0
    ) -> None:
        self.settings = settings
        self.optimiser = Optimiser.of(settings)
        self.group = group
        self.device = torch.device(device)
        self.network = network.to(self.device)
        online = target = flatten(self.network)  # [P]
        self.target_network = self.network
        self._slow = hasattr(settings, "target_tau") or hasattr(settings, "target_period_updates")
        if self._slow:
            self.target_network = copy.deepcopy(self.network).requires_grad_(False)
            target = flatten(self.target_network)  # [P]
        average = online.clone() if self.optimiser.average_share else online  # [P]
        self.state = LearnedState(online, target, torch.zeros_like(online), torch.zeros_like(online), average)
        self._gradient = torch.zeros_like(self.state.online)  # [P]
        self._layout = [(name, p.shape, p.numel()) for name, p in self.network.named_parameters()]
        for parameter, view in zip(
            self.network.parameters(), self._split(self._gradient).values(), strict=True
        ):
            parameter.grad = view
        self.fused: FusedSteps | None = None
        self._seed = seed
        self._updates = 0
        self._adam_steps = 0

    def loss(self, online: Forward, target: Forward, minibatch: Any) -> Terms:
        """Return the loss of one minibatch.

        Args:
            online: the network being learned; gradients flow through it.
            target: its slow copy, or `online` again where the settings have no key for one.
            minibatch: one minibatch of the declared view, leading dimension [B].
        """
        raise NotImplementedError

    def prepare(self, facts: DataFacts) -> None:
        """Take notice of the offline data; here nothing follows from it."""

    def drawn(self, batch: Any) -> Any:
        """Return the batch [U, B, ...] with the random numbers that `loss` needs as columns in `extra`; those
        that are there already are kept. Most losses draw nothing.

        They follow from the seed and the number of each update alone, so that a resumed run draws them again.
        """
        return batch

    @property
    def updates(self) -> int:
        """Updates done in all."""
        return self._updates

    def hparams(self, progress: float) -> dict[str, float]:
        """Return the mutable hyper-parameters in force at this share of the run."""
        values = {name: float(getattr(self.settings, name)) for name in mutable_keys(type(self.settings))}
        return {**values, "learning_rate": self.optimiser.rate(progress)}

    def set_hparams(self, values: Mapping[str, float]) -> None:
        """Change mutable hyper-parameters in a living run.

        Raises: RecipeError: a name is not mutable, or a value breaks the schema's bound.
        """
        known = mutable_keys(type(self.settings))
        for name in values:
            if name not in known:
                raise RecipeError(
                    f"algorithm.{name} is not mutable: a living run cannot change it. "
                    f"Change one of {', '.join(known)}, or start a new run."
                )
        self.settings = parse(type(self.settings), {**self.settings.model_dump(), **values}, "algorithm")
        self.optimiser = Optimiser.of(self.settings)

    def update(self, batch: Any, hparams: Mapping[str, float]) -> Update:
        """Take one gradient step per minibatch of `batch` [U, B, ...], in order.

        What does not fill a compiled graph of `fused.updates` steps is done eagerly, to 1e-6 the same.

        Raises: DivergedError: a priority is not finite.
        """
        batch, total = self.drawn(batch), len(batch.weight)
        scalars = self._scalars(total, hparams["learning_rate"])
        parts: list[Progress] = []
        done = 0
        while self.fused is not None and total - done >= self.fused.updates:
            some = slice(done, done + self.fused.updates)
            parts.append(
                self._take_over(self.fused(self.state, change(batch, itemgetter(some)), scalars[some]))
            )
            done = some.stop
        rest = change(batch, itemgetter(slice(done, None)))
        for minibatch, row in zip(unbind(rest, total - done), scalars[done:], strict=True):
            parts.append(self._take_over(self.steps(self.state, [minibatch], [row], self._backward)))
        self._updates += total
        self._adam_steps += total
        names = list(parts[0].metrics)
        means = torch.stack(
            [torch.cat([p.metrics[name] for p in parts]).mean() for name in names]
        ).tolist()  # [M]
        priorities = torch.cat([p.priorities for p in parts]).cpu().numpy()  # [U, B]
        if not np.isfinite(priorities).all():
            raise DivergedError(
                f"policies.{self.group.policy_id}: an error is not finite after {self._updates} updates: "
                "the weights are lost. Lower algorithm.learning_rate, scale rewards down, or look for NaN in "
                "the observations."
            )
        return Update(priorities=priorities, metrics=dict(zip(names, means, strict=True)))

    def gradients(self, online: Tensor, target: Tensor, minibatch: Any) -> Gradients:
        """Return the summed gradient of one minibatch at the parameters `online` [P]. Pure; compiles."""
        gradient, (_, aux) = torch.func.grad_and_value(
            lambda flat: self._summed(self._at(flat), self._at(target), minibatch), has_aux=True
        )(online)
        return Gradients(gradient, *aux)

    def apply(
        self, state: LearnedState, gradient: Tensor, scalars: Sequence[float] | Tensor
    ) -> tuple[LearnedState, Tensor]:
        """Return the state after one clipped step of Adam and of the target network, and the norm of
        `gradient`. Pure.

        Args:
            state: before.
            gradient: mean gradient [P].
            scalars: a row of `_scalars`.
        """
        step_size, root_bias2, share, decay = scalars[0], scalars[1], scalars[2], scalars[3]
        optimiser = self.optimiser
        norm = torch.linalg.vector_norm(gradient)  # []
        if optimiser.max_grad_norm:
            gradient = gradient * (optimiser.max_grad_norm / (norm + 1e-6)).clamp(max=1.0)  # [P]
        first = state.first_moment.lerp(gradient, 1.0 - BETA1)  # [P]
        second = torch.addcmul(state.second_moment * BETA2, gradient, gradient, value=1.0 - BETA2)  # [P]
        step = first / (second.sqrt() / root_bias2 + optimiser.adam_eps)  # [P]
        online = state.online - step_size * step  # [P]
        if optimiser.weight_decay:
            online = online - decay * state.online  # [P]
        if not self._slow:
            target = state.target  # [P] nobody reads it
        elif isinstance(share, float) and share in (0.0, 1.0):
            target = online if share else state.target  # [P]
        else:
            target = state.target.lerp(online, share)  # [P]
        average = state.average.lerp(online, scalars[4]) if optimiser.average_share else online  # [P]
        return LearnedState(online, target, first, second, average), norm

    def steps(
        self,
        state: LearnedState,
        minibatches: Sequence[Any],
        scalars: Sequence[Sequence[float] | Tensor],
        gradients_of: Callable[[Tensor, Tensor, Any], Gradients],
    ) -> Progress:
        """Take one step per minibatch. Pure, and compiles, if `gradients_of` is `gradients`."""
        priorities, metrics = [], []
        for minibatch, row in zip(minibatches, scalars, strict=True):
            gradients = self.add_up(gradients_of(state.online, state.target, minibatch))
            state, norm = self.apply(state, gradients.total / gradients.elements.clamp(min=1), row)
            priorities.append(gradients.priorities)
            metrics.append({**gradients.metrics, "grad_norm": norm})
        stacked = {name: torch.stack([m[name] for m in metrics]) for name in metrics[0]}  # name -> [k]
        return Progress(state, torch.stack(priorities), stacked)  # [k, B]

    def _backward(self, online: Tensor, target: Tensor, minibatch: Any) -> Gradients:
        """Do what `gradients` does, at the present parameters only, by the modules' own cheaper backward."""
        summed, aux = self._summed(self.network, self.target_network, minibatch)
        self._gradient.zero_()
        summed.backward()  # type: ignore[no-untyped-call]
        return Gradients(self._gradient, *aux)

    def _summed(
        self, online: Forward, target: Forward, minibatch: Any
    ) -> tuple[Tensor, tuple[Tensor, Tensor, dict[str, Tensor]]]:
        """Return the summed loss [], and (elements [], priorities [B], metrics)."""
        terms = self.loss(online, target, minibatch)
        summed, elements = weighted_sum(terms.loss, terms.weight, terms.valid)  # [], []
        mean = (summed / elements.clamp(min=1)).detach()  # []
        return summed, (elements, terms.priorities, {"loss": mean, **terms.metrics})

    def _scalars(self, count: int, learning_rate: float) -> list[tuple[float, ...]]:
        """Return a row for each of the next `count` updates: what `apply` reads, in its order."""
        rates = [learning_rate * self.optimiser.warmth(self._updates + i) for i in range(1, count + 1)]
        return [
            (
                rate / (1.0 - BETA1 ** (self._adam_steps + i)),
                math.sqrt(1.0 - BETA2 ** (self._adam_steps + i)),
                self.optimiser.target_share(self._updates + i),
                rate * self.optimiser.weight_decay,
                self.optimiser.average_rate(self._adam_steps + i),
            )
            for i, rate in enumerate(rates, 1)
        ]

    def _take_over(self, progress: Progress) -> Progress:
        """Write a new state into the vectors that the networks are views of."""
        for name, old in self._vectors().items():
            new = getattr(progress.state, name)
            if old is not new:
                old.copy_(new)
        return progress

    def _at(self, flat: Tensor) -> Forward:
        """Return the network as a function with the parameters `flat` [P]."""
        views = self._split(flat)
        return lambda *inputs: torch.func.functional_call(self.network, views, inputs)

    def _split(self, flat: Tensor) -> dict[str, Tensor]:
        """Return parameter name -> view of `flat` [P] in the parameter's shape."""
        parts = torch.split(flat, [numel for _, _, numel in self._layout])
        return {name: part.view(shape) for (name, shape, _), part in zip(self._layout, parts, strict=True)}

    def weights(self) -> NDArray[np.float32]:
        """Return a copy of the online parameters, flat [P]."""
        return self.state.online.cpu().numpy().copy()

    def judged_weights(self) -> NDArray[np.float32]:
        """Return `weights()`, or their average where one is kept."""
        return self.state.average.cpu().numpy().copy() if self.optimiser.average_share else self.weights()

    def load_weights(self, flat: NDArray[np.float32]) -> None:
        """Act with these parameters [P] from now on. Raises: CheckpointError: another size."""
        self._fill("weights", self.state.online, flat)

    def learned(self) -> dict[str, NDArray[Any]]:
        """Return copies of the parameters, the target's if any, and Adam's moments and step count."""
        vectors = {name: v.cpu().numpy().copy() for name, v in self._vectors().items()}
        return {**vectors, "adam_steps": np.array(self._adam_steps, dtype=np.int64)}

    def load_learned(self, values: Mapping[str, NDArray[Any]]) -> None:
        """Take over `learned()` of an equal algorithm. Raises: CheckpointError: a name or size differs."""
        expect_names("learned", values, {*self._vectors(), "adam_steps"})
        for name, vector in self._vectors().items():
            self._fill(name, vector, values[name])
        self._adam_steps = int(values["adam_steps"])

    def private(self) -> dict[str, Any]:
        """Return the update counter, the seed, and the mutable hyper-parameters as they stand."""
        mutable = {name: getattr(self.settings, name) for name in mutable_keys(type(self.settings))}
        return {"updates": self._updates, "seed": self._seed, "hparams": mutable}

    def load_private(self, values: Mapping[str, Any]) -> None:
        """Take over `private()`. Raises: CheckpointError: a name differs."""
        expect_names("private", values, {"updates", "seed", "hparams"})
        self.set_hparams(values["hparams"])
        self._updates, self._seed = int(values["updates"]), int(values["seed"])

    def _vectors(self) -> dict[str, Tensor]:
        """Return the vectors that there are, [P] each."""
        there = {"target": self._slow, "average": self.optimiser.average_share > 0.0}
        return {n: v for n, v in self.state._asdict().items() if there.get(n, True)}

    def _fill(self, name: str, vector: Tensor, values: NDArray[Any]) -> None:
        if tuple(values.shape) != tuple(vector.shape):
            raise CheckpointError(
                f"{name} has shape {tuple(values.shape)}, this network has {tuple(vector.shape)}: "
                "they belong to another network. Load them into the recipe they were made with."
            )
        vector.copy_(torch.as_tensor(np.array(values)))


def flatten(network: nn.Module) -> Tensor:
    """Make every parameter a view of one contiguous vector, and return that vector [P].

    Raises: ValueError: the network has buffers, which no flat vector would carry to the actors.
    """
    if buffers := [name for name, _ in network.named_buffers()]:
        raise ValueError(f"network has buffers {buffers}: actors would never get them. Use parameters only.")
    parameters = list(network.parameters())
    flat = torch.cat([p.detach().reshape(-1) for p in parameters]).contiguous()  # [P]
    for parameter, part in zip(parameters, torch.split(flat, [p.numel() for p in parameters]), strict=True):
        parameter.data = part.view(parameter.shape)
    return flat


def change(batch: BatchT, function: Callable[[Tensor], Tensor]) -> BatchT:
    """Return a batch of tensors with `function` applied to every one of them."""
    changed: dict[str, Any] = {}
    for item in fields(batch):  # type: ignore[arg-type]
        value = getattr(batch, item.name)
        if isinstance(value, Mapping):
            changed[item.name] = {name: function(v) for name, v in value.items()}
        else:
            changed[item.name] = None if value is None else function(value)
    return type(batch)(**changed)


def unbind(batch: BatchT, count: int) -> list[BatchT]:
    """Cut a batch of tensors [count, B, ...] into minibatches [B, ...]."""
    return [change(batch, itemgetter(u)) for u in range(count)]


def expect_names(what: str, values: Mapping[str, Any], names: set[str]) -> None:
    """Raise CheckpointError unless `values` has exactly these names."""
    if set(values) != names:
        raise CheckpointError(
            f"{what} holds {', '.join(sorted(values))}, this algorithm has {', '.join(sorted(names))}: "
            "the state belongs to another algorithm. Load it into the recipe it was made with."
        )


def epsilon_of_slots(
    progress: float, rank: IntArray, total: int, *, start: float, end: float, fraction: float, alpha: float
) -> FloatArray:
    """Return each slot's chance of a random action, [S] float32.

        epsilon(progress) ** (1 + alpha * rank / (total - 1)),  epsilon falling linearly from start to end

    Args:
        progress: share of the run that is spent, in [0, 1].
        rank: number of each slot's environment copy, [S] in [0, total).
        total: environment copies in all actors; with one, the exponent is 1.
        start: epsilon at the start.
        end: epsilon once `fraction` of the run is spent.
        fraction: share of the run over which it falls; 0 = at once.
        alpha: 0 = all copies alike.
    Source: Horgan et al. (2018), section 4.1 (there start = end = 0.4, alpha = 7).
    """
    fallen = min(progress / fraction, 1.0) if fraction > 0.0 else 1.0
    epsilon = start + (end - start) * fallen
    exponent = 1.0 + alpha * np.asarray(rank, dtype=np.float64) / max(total - 1, 1)  # [S]
    return (epsilon**exponent).astype(np.float32)  # [S]


def greedy(q: FloatArray, legal: BoolArray | None) -> IntArray:
    """Return each slot's best legal action, [S] int64: the lowest on a tie, 0 where nothing is legal."""
    best: IntArray = (q if legal is None else np.where(legal, q, -np.inf)).argmax(1)  # [S]
    return best


def epsilon_greedy(
    q: FloatArray, legal: BoolArray | None, epsilon: FloatArray, rng: np.random.Generator
) -> IntArray:
    """Return the best legal action, or with chance epsilon a uniformly drawn legal one.

    Args:
        q: action values [S, A].
        legal: [S, A] bool; None = all.
        epsilon: [S], in [0, 1].
        rng: the only source of randomness; draws the same amount whatever epsilon is.
    Returns: [S] int64.
    """
    slots, actions = q.shape
    explore = rng.random(slots) < epsilon  # [S]
    if legal is None:
        drawn = rng.integers(0, actions, slots)  # [S]
    else:
        drawn = np.where(legal, rng.random((slots, actions)), -1.0).argmax(1)  # [S]
    return np.where(explore, drawn, greedy(q, legal))  # [S]
