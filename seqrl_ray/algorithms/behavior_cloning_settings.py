"""Settings of `behavior_cloning`. Torch-free. Defaults are those of the Decision Transformer."""

from __future__ import annotations

from seqrl_ray.settings import Settings, key


class BehaviorCloningSettings(Settings):
    """The `[algorithm]` table of behaviour cloning. Which episodes are imitated, `[data]` says."""

    hidden: tuple[int, ...] = key(
        (128, 128, 128), "widths of the hidden layers after the encoder's input", unit="units", min_length=1
    )
    layer_norm: bool = key(False, "normalise every hidden layer (after the linear map, before ReLU)")
    normalise_obs: bool = key(True, "standardise vector observations by the statistics of the data")
    sample_actions: bool = key(False, "discrete actions are drawn in evaluation too, not the best one taken")

    learning_rate: float = key(1e-4, "AdamW step size after the warm-up", gt=0.0, le=1.0, mutable=True)
    warmup_updates: int = key(10_000, "the rate grows linearly over these", unit="updates", ge=0)
    lr_decay_start: float = key(1.0, "share of the run where the rate begins to fall; 1 = never", ge=0, le=1)
    lr_end_fraction: float = key(0.0, "rate at the run's end, as a fraction of learning_rate", ge=0, le=1)
    weight_decay: float = key(1e-4, "AdamW's, of every parameter", ge=0.0, lt=1.0)
    adam_eps: float = key(1e-8, "Adam's epsilon", gt=0.0, le=1.0)
    max_grad_norm: float = key(0.25, "longer gradients are scaled down to this norm; 0 = never", ge=0.0)
