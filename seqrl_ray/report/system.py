"""Figures of the machine room: rates, policy lag, pacing, waits, and what learners report, over wall time.

Dims: R report rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from seqrl_ray.report.run_folder import Row, RunFolder, number_or_none
from seqrl_ray.report.style import PALETTE, Drawing, canvas, colour, look, shorten, svg
from seqrl_ray.report.wording import number
from seqrl_ray.types import FloatArray

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS: Mapping[str, tuple[str, ...]] = {  # title -> keys of report rows, one line each
    "environment steps per s": ("env_steps_per_s",),
    "updates per s": ("updates_per_s",),
    "samples per insert": ("samples_per_insert",),
    "policy lag (updates)": ("policy_lag_p50", "policy_lag_p95"),
}
WAITS = {"/pacing_insert_wait_s": "actors", "/pacing_sample_wait_s": "learner"}
"""End of a per-policy key -> who waited."""
LINES = [
    light for name, (light, _) in PALETTE.items() if name not in ("ink", "muted", "grid", "paper", "alarm")
]
INTERNAL = ("pacing_", "replay_")
"""Metrics of a policy that are the experience service's, not the learner's."""
MAX_LEARNER_PANELS = 16


def rates(run: RunFolder) -> Drawing | None:
    """Rates, samples per insert, policy lag, and who waited for whom; failures are marked."""
    panels = {
        title: keys
        for title, keys in PANELS.items()
        if any(_series(run.reports, key)[0].size for key in keys)
    }
    waits = _numeric_keys(run.reports, lambda key: key.endswith(tuple(WAITS)))
    if waits:
        panels["waited in all (s)"] = tuple(waits)
    if not panels:
        return None
    texts = []
    with look():
        figure, axes = _grid(len(panels), 1.75)
        scale, unit = _clock(run.reports)
        for panel, (title, keys) in zip(axes, panels.items(), strict=False):
            for paint, key in zip(LINES, keys, strict=False):
                at, values = _series(run.reports, key)
                panel.plot(at / scale, values, color=paint, linewidth=1.2, label=_label(key))
                if values.size:
                    texts.append(f"{key} {number(float(np.median(values)))}")
            panel.set_title(title)
            panel.set_ylim(0, 1.08 * panel.get_ylim()[1])
            if len(keys) > 1:
                panel.legend(loc="best", fontsize=7.5)
            _mark_failures(panel, run, scale)
        figure.supxlabel(f"wall time ({unit})", fontsize=8.5, color=colour("muted"))
        alt = f"Rates over wall time; medians: {', '.join(texts)}."
        caption = "As reported while the run went on."
        if run.failures:
            caption += " Dotted lines mark failures."
        return Drawing(svg(figure, "rates", alt), alt, caption, "Machine room")


def learner_metrics(run: RunFolder) -> Drawing | None:
    """One panel per metric that a learner reported (loss, epsilon, ...), one line per policy id."""
    keys = _numeric_keys(
        run.reports, lambda key: "/" in key and not key.partition("/")[2].startswith(INTERNAL)
    )
    metrics: dict[str, list[tuple[str, str]]] = {}
    for key in keys:
        policy, _, metric = key.partition("/")
        metrics.setdefault(metric, []).append((policy, key))
    if not metrics:
        return None
    shown = dict(list(metrics.items())[:MAX_LEARNER_PANELS])
    with look():
        figure, axes = _grid(len(shown), 1.55)
        scale, unit = _clock(run.reports)
        policies = sorted({policy for lines in shown.values() for policy, _ in lines})
        for panel, (metric, lines) in zip(axes, shown.items(), strict=False):
            for policy, key in lines:
                at, values = _series(run.reports, key)
                paint = LINES[policies.index(policy) % len(LINES)]
                panel.plot(at / scale, values, color=paint, linewidth=1.1, label=policy)
            panel.set_title(shorten(metric.replace("_", " "), 30))
            panel.locator_params(axis="y", nbins=4)
        if len(policies) > 1:
            figure.legend(*_handles(axes), loc="outside upper left", ncols=6)
        figure.supxlabel(f"wall time ({unit})", fontsize=8.5, color=colour("muted"))
        alt = f"Learner metrics over wall time: {', '.join(shown)}."
        caption = f"What the learner reported for {', '.join(policies)}."
        if len(metrics) > len(shown):
            caption += f" {len(metrics) - len(shown)} more are in metrics.jsonl."
        return Drawing(svg(figure, "learner", alt), alt, caption, "Learner")


def _label(key: str) -> str:
    """What a line is called in its panel's legend."""
    policy = key.partition("/")[0]
    return next(
        (f"{who}, {policy}" for end, who in WAITS.items() if key.endswith(end)), key.rpartition("_")[2]
    )


def _grid(count: int, row_in: float) -> tuple[Figure, list[Axes]]:
    columns = min(4, count) if count != 5 else 3
    rows = -(-count // columns)
    figure, axes = canvas(0.35 + row_in * rows, rows, columns)
    for panel in axes[count:]:
        panel.set_visible(False)
    return figure, axes


def _numeric_keys(rows: Sequence[Row], wanted: Callable[[str], bool]) -> list[str]:
    keys = dict.fromkeys(key for row in rows for key in row if wanted(key))
    return [key for key in keys if _series(rows, key)[0].size]


def _series(rows: Sequence[Row], key: str) -> tuple[FloatArray, FloatArray]:
    """Wall seconds and values of `key` where a row has it, [R] each."""
    pairs = [
        (at, value)
        for row in rows
        if (at := number_or_none(row.get("at_s"))) is not None
        and (value := number_or_none(row.get(key))) is not None
    ]
    table = np.array(pairs, np.float64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _clock(rows: Sequence[Row]) -> tuple[float, str]:
    """Seconds in the unit that suits the length of the run, and its name."""
    end = max((number_or_none(row.get("at_s")) or 0.0 for row in rows), default=0.0)
    return (1.0, "s") if end < 600 else (60.0, "min") if end < 3 * 3600 else (3600.0, "h")


def _mark_failures(panel: Axes, run: RunFolder, scale: float) -> None:
    for failure in run.failures:
        at = number_or_none(failure.get("at_s"))
        if at is not None:
            panel.axvline(at / scale, color=colour("alarm"), linewidth=0.9, linestyle=":")


def _handles(axes: Sequence[Axes]) -> tuple[list[Artist], list[str]]:
    found: dict[str, Artist] = {}
    for panel in axes:
        for handle, label in zip(*panel.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    return list(found.values()), list(found)
