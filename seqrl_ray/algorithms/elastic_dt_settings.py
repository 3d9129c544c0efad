"""Settings of `elastic_dt`. Torch-free.

Defaults are the source's for D4RL, but for the network's size (there 512 units, 4 layers, 4 heads, dropout
0.1).
"""

from __future__ import annotations

from pydantic import model_validator

from seqrl_ray.settings import Settings, key


class ElasticDtSettings(Settings):
    """The `[algorithm]` table of the Elastic Decision Transformer."""

    units: int = key(128, "width of a token", unit="units", ge=1)
    layers: int = key(3, "transformer blocks", ge=1, le=64)
    heads: int = key(4, "attention heads; units is a multiple", ge=1)
    window_steps: int = key(20, "K: most decisions the policy sees", unit="steps", ge=1, le=2_000)
    max_timesteps: int = key(1000, "rows of the timestep table", unit="steps", ge=1, le=1_000_000)
    dropout: float = key(0.0, "of embeddings, attention and branches, in updates", ge=0.0, lt=1.0)
    return_bins: int = key(60, "bins that returns are seen and predicted in", unit="bins", ge=2, le=10_000)

    target_return: float = key(0.0, "return asked for at the start; later ones follow from what is expected")
    gamma: float = key(1.0, "discount of the returns", gt=0.0, le=1.0)
    normalise_obs: bool = key(True, "standardise vectors by the offline data's mean and deviation")
    sample_actions: bool = key(False, "discrete actions are drawn from the softmax in evaluation too")
    stride_steps: int = key(2, "histories tried differ by this much in length", unit="steps", ge=1)
    expert_bias: float = key(
        10.0, "added to the last bin's logit, linearly less to others", ge=0.0, mutable=True
    )
    keep_percentile: float = key(15.0, "bins with logits below it are not drawn", unit="%", ge=0.0, lt=100.0)

    expectile: float = key(0.99, "of the return that a history is judged by", gt=0.0, lt=1.0)
    next_obs_weight: float = key(1.0, "of the next observation's squared error in the loss", ge=0.0)
    expectile_weight: float = key(0.5, "of the expectile's error in the loss", ge=0.0)
    return_weight: float = key(0.001, "of the return bins' cross-entropy in the loss", ge=0.0)

    learning_rate: float = key(1e-4, "AdamW step size after the warm-up", gt=0.0, le=1.0, mutable=True)
    warmup_updates: int = key(10_000, "the rate grows linearly over these", unit="updates", ge=0)
    lr_decay_start: float = key(1.0, "share of the run after which the rate falls; 1 = never", ge=0.0, le=1.0)
    lr_end_fraction: float = key(0.0, "of learning_rate is left at the end of the run", ge=0.0, le=1.0)
    weight_decay: float = key(1e-4, "AdamW's, of every parameter", ge=0.0, lt=1.0)
    adam_eps: float = key(1e-8, "Adam's epsilon", gt=0.0, le=1.0)
    max_grad_norm: float = key(0.25, "longer gradients are scaled down to this norm; 0 = never", ge=0.0)

    @model_validator(mode="after")
    def _heads_divide(self) -> ElasticDtSettings:
        if self.units % self.heads:
            raise ValueError(
                f"heads={self.heads} does not divide units={self.units}: heads would differ in width. "
                "Change one of them."
            )
        return self
