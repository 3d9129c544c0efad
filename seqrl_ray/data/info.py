"""What is in a dataset: figures as plain values, and as text for `seqrl data info`.

Dims: E episodes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from seqrl_ray.data.dataset import Dataset
from seqrl_ray.data.manifest import group_to_json
from seqrl_ray.data.writer import UNKNOWN_SEED
from seqrl_ray.types import Array

_BINS = 15
_BAR = 40
_META_WIDTH = 100


def describe(dataset: Dataset) -> dict[str, Any]:
    """Return sizes, lengths, returns, spaces and metadata as JSON values (infinite bounds are strings)."""
    returns, lengths = dataset.returns(), dataset.lengths()
    bins = 1 if returns.min() == returns.max() else min(_BINS, returns.size)
    counts, edges = np.histogram(returns, bins)
    ends = dataset.episode_start + lengths - 1  # [E] the last decision
    terminated = np.asarray(dataset.columns["terminated"][ends])
    group = group_to_json(dataset.group)
    return {
        "folder": str(dataset.folder),
        "created_by": dataset.created_by,
        "episodes": dataset.episodes,
        "steps": dataset.steps,
        "bytes": dataset.nbytes,
        "episode_steps": _figures(lengths),
        "return": {**_figures(returns), "median": float(np.median(returns))},
        "return_histogram": {"edges": edges.tolist(), "episodes": counts.tolist()},
        "ends": {"terminated": int(terminated.sum()), "truncated": int((~terminated).sum())},
        "seeds_known": int((dataset.episode_seed != UNKNOWN_SEED).sum()),
        "policy_id": dataset.group.policy_id,
        "obs": group["obs"],
        "frame_stack": dataset.group.frame_stack,
        "action": group["action"],
        "masked": dataset.group.masked,
        "columns": {
            name: {"dtype": str(column.dtype), "shape": list(column.shape), "bytes": int(column.nbytes)}
            for name, column in dataset.columns.items()
        },
        "meta": dict(dataset.meta),
    }


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield what `describe` found as lines of text."""
    steps, returns, ends = found["episode_steps"], found["return"], found["ends"]
    counts = f"{found['episodes']:,} episodes, {found['steps']:,} steps"
    yield f"{found['folder']}: {counts}, {_size(found['bytes'])}"
    yield f"made by  {found['created_by']}"
    yield f"length   min {steps['min']:,.0f}, mean {steps['mean']:,.1f}, max {steps['max']:,.0f} steps"
    yield (
        f"return   min {returns['min']:,.2f}, mean {returns['mean']:,.2f}, median {returns['median']:,.2f}, "
        f"max {returns['max']:,.2f}"
    )
    yield f"ends     {ends['terminated']:,} terminated, {ends['truncated']:,} truncated"
    yield f"seeds    {found['seeds_known']:,} known"
    yield f"obs      {_array(found['obs'])}{_stack(found['frame_stack'])}"
    yield f"action   {_action(found['action'])}{', masked' if found['masked'] else ''}"
    yield ""
    yield from _histogram(found["return_histogram"])
    yield ""
    for name, column in found["columns"].items():
        yield f"{name:<12} {column['dtype']:<8} {_shape(column['shape']):<20} {_size(column['bytes'])}"
    if found["meta"]:
        yield ""
    for name, value in found["meta"].items():
        yield from _meta(name, value)


def _figures(values: Array) -> dict[str, float]:
    return {"min": float(values.min()), "mean": float(values.mean()), "max": float(values.max())}


def _histogram(histogram: Mapping[str, Any]) -> Iterator[str]:
    edges, counts = histogram["edges"], histogram["episodes"]
    width = max(len(f"{edge:,.2f}") for edge in edges)
    yield "episodes by return"
    for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True):
        bar = "#" * (-(-_BAR * count // max(counts)))  # rounded up: one episode shows
        yield f"{low:>{width},.2f} .. {high:>{width},.2f} {count:>7,} {bar}".rstrip()


def _meta(name: str, value: Any) -> Iterator[str]:
    if isinstance(value, list):
        for item in value:
            yield from _meta(name, item)
        return
    text = value if isinstance(value, str) else json.dumps(value)
    if "\n" in text:
        yield f"{name}:"
        yield from (f"  {line}" for line in text.rstrip().splitlines())
        return
    yield f"{name}: {text if len(text) <= _META_WIDTH else text[: _META_WIDTH - 3] + '...'}"


def _array(spec: Mapping[str, Any]) -> str:
    return f"{spec['dtype']} {_shape(spec['shape'])} in [{float(spec['low']):g}, {float(spec['high']):g}]"


def _stack(frames: int) -> str:
    return "" if frames == 1 else f", {frames} frames stacked"


def _action(action: Mapping[str, Any]) -> str:
    if action["kind"] == "discrete":
        return f"discrete, {action['n']}"
    low, high = min(map(float, action["low"])), max(map(float, action["high"]))
    return f"box {_shape(action['shape'])} in [{low:g}, {high:g}]"


def _shape(shape: list[int]) -> str:
    return " x ".join(f"{size:,}" for size in shape) or "scalar"


def _size(count: int) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1_000:
            return f"{count:,.1f} {unit}" if unit != "B" else f"{count} B"
        count /= 1_000  # type: ignore[assignment]
    return f"{count:,.1f} GB"
