"""A policy group's padded spaces, as Gymnasium spaces that RLlib's networks read.

| ours                        | RLlib's                                                                     |
|-----------------------------|-----------------------------------------------------------------------------|
| vector, or a table          | Box of D float32; uint8 is scaled to [0, 1], stacked frames flattened       |
| image                       | Box [H, W, C] float32, uint8 scaled to [0, 1]; stacked frames are channels  |
| legal-action mask of A      | A more features at the vector's end, 1 = legal                              |
| discrete, box actions       | Discrete(n), Box                                                            |

The mask travels inside the observation because RLlib's batches carry observations and nothing else from the
environment everywhere: to the runner, the replay buffer and the learner (`masking.py` reads it there).

Dims: S slots, A actions, D features, F frames, H height, W width, C channels.
"""

from __future__ import annotations

import numpy as np
from gymnasium import spaces

from seqrl_ray.errors import RecipeError
from seqrl_ray.networks.encoders import image_layout
from seqrl_ray.types import Array, BoolArray, GroupSpec


def observation_space(group: GroupSpec) -> spaces.Box:
    """Return the space of what `observe` makes.

    Raises: RecipeError: images with a mask, which no network of RLlib's would take.
    """
    layout = image_layout(group.obs.shape, group.obs.dtype, group.frame_stack)
    if layout is not None:
        if group.masked:
            raise RecipeError(
                f"policies.{group.policy_id}: images with illegal actions are not bridged to RLlib: there is "
                "no vector to put the mask into. Choose an algorithm without rllib:, or flatten the image in "
                "the environment."
            )
        shape = (layout.height, layout.width, layout.channels)
        if group.obs.dtype == "uint8":
            return spaces.Box(0.0, 1.0, shape, np.float32)
        return spaces.Box(group.obs.low, group.obs.high, shape, np.float32)
    size = max(1, group.policy_obs.size) + (group.action.n if group.masked else 0)
    return spaces.Box(-np.inf, np.inf, (size,), np.float32)


def action_space(group: GroupSpec) -> spaces.Discrete[np.int64] | spaces.Box:
    """Return the group's action space."""
    action = group.action
    if action.kind == "discrete":
        return spaces.Discrete(action.n)
    low, high = (np.asarray(b, np.float32).reshape(action.shape) for b in (action.low, action.high))
    return spaces.Box(low, high, dtype=np.float32)


def observe(group: GroupSpec, obs: Array, legal: BoolArray | None) -> Array:
    """Return what RLlib sees of S observations, as an array of its own.

    Args:
        group: whose they are.
        obs: [S, *policy_obs], as the policy sees it.
        legal: [S, A] if the group is masked.
    Returns: [S, D], [S, D + A] or [S, H, W, C] float32.
    """
    seen: Array = np.array(obs, np.float32)
    if obs.dtype == np.uint8:
        seen /= 255.0
    layout = image_layout(group.obs.shape, group.obs.dtype, group.frame_stack)
    if layout is None:
        flat = seen.reshape(len(seen), -1)  # [S, D]
        return flat if legal is None else np.concatenate([flat, legal.astype(np.float32)], axis=1)
    size = (layout.channels, layout.height, layout.width)
    if layout.order == "channels_last":
        seen = np.moveaxis(seen, -1, -3)  # [S, (F,) C, H, W]
    return np.ascontiguousarray(np.moveaxis(seen.reshape(len(seen), *size), 1, -1))  # [S, H, W, C]
