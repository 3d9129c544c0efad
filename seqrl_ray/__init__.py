"""seqrl-ray: a distributed actor-learner system on Ray for sequence-model and value-based policies.

The Python API has the shape of the command line: `train`, `evaluate` and `tune` take what `seqrl train`,
`seqrl evaluate` and `seqrl tune` take. They are imported on first use, so `import seqrl_ray` costs nothing.
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "evaluate", "train", "tune"]


def __getattr__(name: str) -> Any:
    if name in {"train", "evaluate", "tune"}:
        from seqrl_ray import api

        return getattr(api, name)
    raise AttributeError(f"module 'seqrl_ray' has no attribute {name!r}")
