"""Settings of `online_dt`. Torch-free. Defaults are the source's for Gym."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from seqrl_ray.settings import Settings, key


class OnlineDtSettings(Settings):
    """The `[algorithm]` table of the Online Decision Transformer."""

    units: int = key(512, "width of a token", unit="units", ge=1)
    layers: int = key(4, "transformer blocks", ge=1, le=64)
    heads: int = key(4, "attention heads; units is a multiple", ge=1)
    activation: Literal["relu", "gelu"] = key("relu", "of the blocks' MLPs")
    window_steps: int = key(20, "K: decisions the policy is trained on", unit="steps", ge=1, le=2_000)
    acting_steps: int = key(5, "decisions it sees when it acts, at most K", unit="steps", ge=1, le=2_000)
    forget_steps: int = key(1, "oldest decisions that a full context loses at once", unit="steps", ge=1)
    positions: Literal["timestep", "window", "none"] = key(
        "none", "what a token knows of its time: decision of the episode, place in the window, nothing"
    )
    max_timesteps: int = key(1000, "rows of the timestep table", unit="steps", ge=1)
    dropout: float = key(0.1, "of embeddings, attention and branches, in updates", ge=0.0, lt=1.0)
    log_std_min: float = key(-5.0, "log of the least standard deviation of an action before the tanh")
    log_std_max: float = key(2.0, "log of the largest")

    target_return: float = key(0.0, "return asked for in evaluation, fixed before training", mutable=True)
    online_target_return: float = key(0.0, "return that actors ask for", mutable=True)
    return_quantile: float = key(
        0.0,
        "above 0: in evaluation the network itself says which return to ask for, this quantile of what the "
        "data earned from there; target_return is then not used",
        ge=0.0,
        lt=1.0,
    )
    online_return_quantile: float = key(0.95, "the quantile that actors ask for then", gt=0.0, lt=1.0)
    explore_epsilon: float = key(0.0, "chance that an actor draws uniformly", ge=0.0, le=1.0, mutable=True)
    explore_temperature: float = key(
        1.0, "of actors' draws: divides logits, multiplies deviations", gt=0.0, le=10.0, mutable=True
    )
    return_bins: int = key(64, "bins of the returns that the quantiles are read from", ge=2, le=10_000)
    return_scale: float = key(1000.0, "returns are divided by this before they are seen", gt=0.0)
    gamma: float = key(1.0, "discount of the returns", gt=0.0, le=1.0)
    normalise_obs: bool = key(True, "standardise vector observations by the statistics of the data")
    sample_actions: bool = key(False, "actions are drawn in evaluation too, not the likeliest taken")

    initial_temperature: float = key(0.1, "lambda at the start: weight of the entropy", gt=0.0)
    temperature_rate: float = key(1e-4, "Adam step size of log lambda", gt=0.0, le=1.0)
    target_entropy_per_dim: float = key(-1.0, "entropy to hold, in nats: per dimension; discrete: in all")

    learning_rate: float = key(1e-4, "LAMB step size after the warm-up", gt=0.0, le=1.0, mutable=True)
    warmup_updates: int = key(10_000, "the rate grows linearly over these, offline and online together", ge=0)
    lr_decay_start: float = key(1.0, "share of the run where the rate begins to fall; 1 = never", ge=0, le=1)
    lr_end_fraction: float = key(0.0, "rate at the run's end, as a fraction of learning_rate", ge=0, le=1)
    weight_decay: float = key(5e-4, "added to LAMB's step, of every parameter", ge=0.0, lt=1.0)
    adam_eps: float = key(1e-8, "LAMB's epsilon", gt=0.0, le=1.0)
    max_grad_norm: float = key(0.25, "longer gradients are scaled down to this norm; 0 = never", ge=0.0)
    average_share: float = key(0.0, "mean age of the weights judged, as share of the updates", ge=0, le=0.5)

    @model_validator(mode="after")
    def _consistent(self) -> OnlineDtSettings:
        wrong = {
            f"heads={self.heads} does not divide units={self.units}: heads would differ in width": (
                self.units % self.heads
            ),
            f"acting_steps={self.acting_steps} exceeds window_steps={self.window_steps}: no window of that "
            "length was ever trained on": self.acting_steps > self.window_steps,
            f"forget_steps={self.forget_steps} exceeds acting_steps={self.acting_steps}: a context has no "
            "more to lose": self.forget_steps > self.acting_steps,
            f"log_std_min={self.log_std_min} is not below log_std_max={self.log_std_max}: there is no "
            "deviation to choose": self.log_std_min >= self.log_std_max,
        }
        if found := [why for why, is_so in wrong.items() if is_so]:
            raise ValueError(f"{found[0]}. Change one of them.")
        return self
