"""Settings of `toy_recurrent`. Torch-free."""

from __future__ import annotations

from pydantic import model_validator

from seqrl_ray.settings import Settings, key


class ToyRecurrentSettings(Settings):
    """The `[algorithm]` table of the toy recurrent Q-learner."""

    units: int = key(32, "size of the recurrent state", unit="units", ge=1, le=4096)
    window_steps: int = key(16, "decisions per window, burn-in included", unit="steps", ge=2, le=1024)
    period_steps: int = key(8, "a window may start, and the state is stored, this often", unit="steps", ge=1)
    burn_in_steps: int = key(0, "first decisions of a window that only warm the state up", unit="steps", ge=0)
    gamma: float = key(0.97, "discount per decision", ge=0.0, lt=1.0, mutable=True)

    learning_rate: float = key(3e-3, "Adam step size until the decay begins", gt=0.0, le=1.0, mutable=True)
    lr_decay_start: float = key(1.0, "share of the run after which the rate falls linearly", ge=0.0, le=1.0)
    lr_end_fraction: float = key(0.0, "rate at the end, as a fraction of learning_rate", ge=0.0, le=1.0)
    adam_eps: float = key(1e-8, "Adam's epsilon", gt=0.0, le=1.0)
    max_grad_norm: float = key(10.0, "longer gradients are scaled down to this norm; 0 = never", ge=0.0)
    huber_delta: float = key(1.0, "errors beyond this count linearly; in reward units", gt=0.0)
    target_tau: float = key(
        0.05, "share of the online network blended into the target per update", ge=0.0, le=1.0
    )
    target_period_updates: int = key(0, "the target is copied this often; 0 = blended", unit="updates", ge=0)
    priority_max_share: float = key(
        0.9, "priority = this * largest + rest * mean error of a window", ge=0.0, le=1.0
    )

    epsilon_start: float = key(1.0, "chance of a random action at the start", ge=0.0, le=1.0)
    epsilon_end: float = key(0.05, "chance of a random action after the decay", ge=0.0, le=1.0)
    epsilon_fraction: float = key(0.5, "share of the run over which epsilon falls linearly", ge=0.0, le=1.0)
    epsilon_ladder_alpha: float = key(
        0.0, "exponent step of the exploration ladder; 0 = all alike", ge=0.0, le=20.0
    )

    @model_validator(mode="after")
    def _burn_in_leaves_something(self) -> ToyRecurrentSettings:
        if self.burn_in_steps >= self.window_steps:
            raise ValueError(
                f"burn_in_steps={self.burn_in_steps} is not below window_steps={self.window_steps}: no step "
                "would be left to learn from. Lower burn_in_steps."
            )
        return self
