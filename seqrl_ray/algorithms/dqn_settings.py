"""Settings of `dqn` and, under another class name, of `double_dqn`. Torch-free."""

from __future__ import annotations

from pydantic import model_validator

from seqrl_ray.settings import Settings, key


class DqnSettings(Settings):
    """The `[algorithm]` table of the DQN family. "Share" = share of the run's step budget, in [0, 1]."""

    hidden: tuple[int, ...] = key(
        (128, 128), "widths of the hidden layers after the encoder's input", unit="units", min_length=1
    )
    dueling: bool = key(False, "split the head into a state value and advantages")
    layer_norm: bool = key(False, "normalise every hidden layer (after the linear map, before ReLU)")

    gamma: float = key(0.99, "discount per decision", ge=0.0, lt=1.0, mutable=True)
    n_step: int = key(1, "decisions summed before bootstrapping", unit="steps", ge=1, le=100)

    learning_rate: float = key(1e-3, "Adam step size until the decay begins", gt=0.0, le=1.0, mutable=True)
    lr_decay_start: float = key(
        1.0, "share of the run after which the rate falls linearly; 1 = never", ge=0.0, le=1.0
    )
    lr_end_fraction: float = key(
        0.0, "rate at the end of the run, as a fraction of learning_rate", ge=0.0, le=1.0
    )
    adam_eps: float = key(1e-8, "Adam's epsilon", gt=0.0, le=1.0)
    max_grad_norm: float = key(10.0, "longer gradients are scaled down to this norm; 0 = never", ge=0.0)
    huber_delta: float = key(1.0, "errors beyond this count linearly; in reward units", gt=0.0)

    target_tau: float = key(
        0.01, "share of the online network blended into the target per update; 0 = copies", ge=0.0, le=1.0
    )
    target_period_updates: int = key(
        0, "the target is copied every this many updates; 0 = blended", unit="updates", ge=0
    )

    average_share: float = key(
        0.0,
        "the policy is judged and kept with averaged weights, whose mean age is this share of the updates so "
        "far; actors explore with the last ones. 0 = the last",
        ge=0.0,
        le=0.5,
    )

    epsilon_start: float = key(1.0, "chance of a random action at the start", ge=0.0, le=1.0)
    epsilon_end: float = key(0.05, "chance of a random action after the decay", ge=0.0, le=1.0)
    epsilon_fraction: float = key(0.5, "share of the run over which epsilon falls linearly", ge=0.0, le=1.0)
    epsilon_ladder_alpha: float = key(
        0.0,
        "environment copy i of n explores with epsilon ** (1 + this * i / (n - 1)); 0 = all alike. "
        "Ape-X: epsilon_start = epsilon_end = 0.4 and 7 here",
        ge=0.0,
        le=20.0,
    )

    @model_validator(mode="after")
    def _one_target_rule(self) -> DqnSettings:
        blended, copied = self.target_tau > 0.0, self.target_period_updates > 0
        if blended == copied:
            raise ValueError(
                f"target_tau={self.target_tau} and target_period_updates={self.target_period_updates} are "
                f"{'both' if blended else 'neither'} set: the target network follows exactly one rule. "
                "Give one of them and set the other to 0."
            )
        return self
