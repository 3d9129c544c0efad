"""The `[data]` and `[[phase]]` tables of a recipe: offline data, and in what order a run uses it.

A run is a list of phases. `offline` takes updates on the data alone, nobody acts; `online` is actors and
learner together, on top of the data where there is some; `alternating` is one of the two at a time, the
protocol of the Online Decision Transformer (arXiv:2202.05607).
"""

from __future__ import annotations

from typing import Literal

from pydantic import model_validator

from seqrl_ray.settings import Settings, key


class DataSettings(Settings):
    """The offline data of a run, and what of it is used."""

    source: str = key(
        description="a dataset folder (see docs/data.md): absolute, relative to the recipe, or a name in "
        "./datasets",
        min_length=1,
    )
    collect: str | None = key(
        None, "recipe that collects the dataset into ./datasets where it is not there yet"
    )
    collect_steps: int = key(100_000, "decisions to collect then", unit="steps", ge=1)
    collect_controller: str | None = key(None, "built-in rule that acts while collecting")
    collect_noise: float = key(0.0, "chance of a random action while collecting", ge=0.0, le=1.0)
    top_share: float | None = key(
        None,
        "use the best episodes by return only, up to this share of the decisions (the 10 of 10%BC is 0.1)",
        gt=0.0,
        le=1.0,
    )
    top_episodes: int | None = key(
        None, "use this many of the best episodes by return only", unit="episodes", ge=1
    )
    max_episodes: int | None = key(None, "use the first episodes only", unit="episodes", ge=1)
    min_return: float | None = key(None, "use episodes of at least this return only", unit="return")
    online_best_steps: int | None = key(
        None,
        "when acting begins only the best episodes by return stay in replay, up to so many decisions; needs "
        "a replay.eviction of whole episodes",
        unit="steps",
        ge=1,
    )


class PhaseSettings(Settings):
    """One stretch of a run."""

    kind: Literal["offline", "online", "alternating"] = key(
        description="offline: data only; online: actors and learner at once; alternating: actors until an "
        "episode ends, then the learner, then actors again"
    )
    updates: int = key(0, "offline: updates of each policy", unit="updates", ge=0)
    updates_per_episode: int = key(
        0, "alternating: updates of each policy per finished episode", unit="updates", ge=0
    )

    @model_validator(mode="after")
    def _each_kind_has_its_count(self) -> PhaseSettings:
        if (self.kind == "offline") != (self.updates > 0):
            raise ValueError(
                f"kind={self.kind!r} with updates={self.updates}: an offline phase ends after its updates, "
                "the others with stop.env_steps. Give updates to offline phases only."
            )
        if (self.kind == "alternating") != (self.updates_per_episode > 0):
            raise ValueError(
                f"kind={self.kind!r} with updates_per_episode={self.updates_per_episode}: alternating phases "
                "learn so often per episode, and only they do. Give it to them only."
            )
        return self
