"""Settings of `decision_transformer`. Torch-free. Defaults are the source's for Gym."""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from seqrl_ray.settings import Settings, key


class DecisionTransformerSettings(Settings):
    """The `[algorithm]` table of the return-conditioned transformers."""

    units: int = key(128, "width of a token", unit="units", ge=1)
    layers: int = key(3, "transformer blocks", ge=1, le=64)
    heads: int = key(1, "attention heads; units is a multiple", ge=1)
    activation: Literal["relu", "gelu"] = key("relu", "of the blocks' MLPs")
    window_steps: int = key(20, "K: decisions the policy sees", unit="steps", ge=1, le=2_000)
    forget_steps: int = key(1, "oldest decisions that a full context loses at once", unit="steps", ge=1)
    positions: Literal["timestep", "window", "none"] = key(
        "timestep", "what a token knows of its time: decision of the episode, place in the window, nothing"
    )
    max_timesteps: int = key(
        1000, "rows of the timestep table; later decisions share the last", unit="steps", ge=1, le=1_000_000
    )
    dropout: float = key(0.1, "of embeddings, attention and branches, in updates", ge=0.0, lt=1.0)

    target_return: float = key(0.0, "return the policy is asked for, fixed before training", mutable=True)
    return_quantile: float = key(
        0.0,
        "above 0: the network itself says, at each step, which return to ask for: this quantile of what the "
        "data earned from there (e.g. 0.99); target_return is then not used",
        ge=0.0,
        lt=1.0,
    )
    return_bins: int = key(64, "bins of the returns that return_quantile is read from", ge=2, le=10_000)
    return_scale: float = key(1.0, "returns are divided by this before they are seen", gt=0.0)
    gamma: float = key(1.0, "discount of the returns", gt=0.0, le=1.0)
    normalise_obs: bool = key(True, "standardise vector observations by the statistics of the data")
    sample_actions: bool = key(False, "discrete actions are drawn in evaluation too, not the best one taken")

    learning_rate: float = key(1e-4, "AdamW step size after the warm-up", gt=0.0, le=1.0, mutable=True)
    warmup_updates: int = key(10_000, "the rate grows linearly over these", unit="updates", ge=0)
    lr_decay_start: float = key(1.0, "share of the run where the rate begins to fall; 1 = never", ge=0, le=1)
    lr_end_fraction: float = key(0.0, "rate at the run's end, as a fraction of learning_rate", ge=0, le=1)
    weight_decay: float = key(1e-4, "AdamW's, of every parameter", ge=0.0, lt=1.0)
    adam_eps: float = key(1e-8, "Adam's epsilon", gt=0.0, le=1.0)
    max_grad_norm: float = key(0.25, "longer gradients are scaled down to this norm; 0 = never", ge=0.0)
    average_share: float = key(0.0, "mean age of the weights judged, as share of the updates", ge=0, le=0.5)

    @model_validator(mode="after")
    def _consistent(self) -> DecisionTransformerSettings:
        if self.units % self.heads:
            raise ValueError(
                f"heads={self.heads} does not divide units={self.units}: heads would differ in width. "
                "Change one of them."
            )
        if self.forget_steps > self.window_steps:
            raise ValueError(
                f"forget_steps={self.forget_steps} exceeds window_steps={self.window_steps}: a context has "
                "no more to lose. Lower it."
            )
        return self
