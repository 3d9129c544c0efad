"""Settings of `toy_window`. Torch-free."""

from __future__ import annotations

from seqrl_ray.settings import Settings, key


class ToyWindowSettings(Settings):
    """The `[algorithm]` table of the toy return-conditioned window model."""

    units: int = key(32, "width of the embedding and of its one attention head", unit="units", ge=1, le=4096)
    window_steps: int = key(8, "decisions of context", unit="steps", ge=1, le=1024)
    target_return: float = key(
        1.0, "return the policy is asked for when it acts, in reward units", mutable=True
    )
    return_scale: float = key(1.0, "returns are divided by this before they enter the network", gt=0.0)
    gamma: float = key(1.0, "discount of the return-to-go", gt=0.0, le=1.0, mutable=True)

    learning_rate: float = key(3e-3, "Adam step size until the decay begins", gt=0.0, le=1.0, mutable=True)
    lr_decay_start: float = key(1.0, "share of the run after which the rate falls linearly", ge=0.0, le=1.0)
    lr_end_fraction: float = key(0.0, "rate at the end, as a fraction of learning_rate", ge=0.0, le=1.0)
    adam_eps: float = key(1e-8, "Adam's epsilon", gt=0.0, le=1.0)
    max_grad_norm: float = key(1.0, "longer gradients are scaled down to this norm; 0 = never", ge=0.0)
