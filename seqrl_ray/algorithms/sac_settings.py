"""Settings of `sac`. Torch-free."""

from __future__ import annotations

from seqrl_ray.settings import Settings, key


class SacSettings(Settings):
    """The `[algorithm]` table of Soft Actor-Critic. "Share" = share of the run's step budget, in [0, 1]."""

    hidden: tuple[int, ...] = key(
        (256, 256), "widths of the hidden layers, of policy and critics alike", unit="units", min_length=1
    )

    gamma: float = key(0.99, "discount per decision", ge=0.0, lt=1.0, mutable=True)
    n_step: int = key(
        1, "decisions summed before bootstrapping; entropy counts after the last", unit="steps", ge=1, le=100
    )

    learning_rate: float = key(
        3e-4,
        "Adam step size of policy, critics and temperature until the decay begins",
        gt=0.0,
        le=1.0,
        mutable=True,
    )
    lr_decay_start: float = key(
        1.0, "share of the run after which the rate falls linearly; 1 = never", ge=0.0, le=1.0
    )
    lr_end_fraction: float = key(
        0.0, "rate at the end of the run, as a fraction of learning_rate", ge=0.0, le=1.0
    )
    adam_eps: float = key(1e-8, "Adam's epsilon", gt=0.0, le=1.0)
    max_grad_norm: float = key(
        0.0, "longer gradients, all parts together, are scaled down to this norm; 0 = never", ge=0.0
    )
    target_tau: float = key(
        0.005, "share of the critics blended into their slow copies per update", gt=0.0, le=1.0
    )

    initial_temperature: float = key(1.0, "weight of the entropy at the start, in reward units", gt=0.0)
    target_entropy_per_dim: float = key(
        -1.0,
        "entropy that the temperature steers to, per action dimension, of the action scaled to (-1, 1); "
        "a uniform one has 0.69",
        unit="nats",
        lt=0.69,
    )
    random_share: float = key(
        0.01, "share of the run in which every action is drawn uniformly from the box", ge=0.0, le=1.0
    )
