"""Figures of learning and of judging: the learning curve, and the final evaluation seed by seed.

Dims: E episodes, M seeds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from seqrl_ray.report.run_folder import POLICY, RunFolder, controller_order, number_or_none
from seqrl_ray.report.style import Drawing, canvas, colour, label_lines, look, svg, wants_log
from seqrl_ray.report.wording import judged, number, span, with_unit
from seqrl_ray.types import FloatArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

GROUP_EPISODES = 10
"""Training episodes behind one point of the curve, at least."""
MIN_POINTS, MAX_POINTS = 3, 80
HEIGHT_IN = 3.8


def learning_curve(run: RunFolder) -> Drawing | None:
    """Training episodes (median and middle half), evaluations on held-out seeds, baselines as lines."""
    metric = judged(run)
    steps, values = _episodes(run)
    points = _evaluations(run)
    if steps.size == 0 and not points:
        return None
    baselines = [(name, mean) for name in run.baselines if (mean := run.mean(name)) is not None]
    shown = [v for _, low, high in points for v in (low, high)] + [mean for _, mean in baselines]
    with look():
        figure, (axes,) = canvas(HEIGHT_IN)
        if steps.size:
            shown += _curve(axes, steps, values)
        if points:
            place, low, high = np.array(points).T
            middle = np.array([p[1] for p in _means(run)])
            axes.vlines(place, low, high, color=colour("ink"), linewidth=1.0)
            axes.plot(
                place, middle, "o", color=colour("ink"), markersize=4, label="evaluation: mean and range"
            )
        for name, mean in baselines:
            axes.axhline(mean, color=colour(name), linewidth=1.1, linestyle=(0, (5, 2)))
        final = run.mean(POLICY)
        end = float(max([*steps, *(p[0] for p in points), run.summary.get(_clock(run)) or 0]))
        if final is not None:
            shown.append(final)
            axes.plot(
                end,
                final,
                "D",
                color=colour(POLICY),
                markersize=6,
                clip_on=False,
                label="final policy",
                zorder=5,
            )
        _limits(axes, np.array(shown), log=metric.better < 0 and wants_log(np.array(shown)))
        axes.set_xlim(0, end * 1.01 or 1)
        label_lines(
            axes,
            [(f"{name} {number(mean)}", mean, colour(name)) for name, mean in baselines],
            height_in=HEIGHT_IN,
        )
        axes.set_xlabel(_clock_name(run))
        axes.set_ylabel(metric.title)
        axes.xaxis.set_major_formatter(lambda value, _: _count(value))
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=4, borderaxespad=0.2)
        alt = f"{metric.label} over {number(end)} {_clock_name(run)}, {steps.size} training episodes."
        if final is not None:
            alt += f" Final policy {with_unit(final, metric)}."
        grouped = ""
        if _groups(steps) >= MIN_POINTS:
            grouped = (
                f"The curve joins medians of at least {GROUP_EPISODES} consecutive episodes; "
                "the band holds their middle half. "
            )
        caption = (
            "Training episodes explore, so their curve may lie off the evaluations, which are greedy on "
            f"held-out seeds. {grouped}Dashed: baselines (means of the final evaluation)."
        )
        return Drawing(svg(figure, "learning", alt), alt, caption)


def seed_by_seed(run: RunFolder) -> Drawing | None:
    """Left: every episode of the final evaluation. Right: policy minus controller on the same seeds."""
    metric = judged(run)
    values = {name: _column(run, name) for name in controller_order(run.by_seed)}
    values = {name: rows for name, rows in values.items() if rows}
    if not values:
        return None
    others = [
        name for name in values if name != POLICY and values[name].keys() & values.get(POLICY, {}).keys()
    ]
    names = list(values)
    with look():
        figure, axes = canvas(
            0.95 + 0.36 * len(names), 1, 2 if others else 1, sharey=True, gridspec_kw={"wspace": 0.03}
        )
        left = axes[0]
        everything = np.concatenate([np.array(list(v.values())) for v in values.values()])
        if metric.better < 0 and wants_log(everything):
            _log_axis(left, "x")
        for row, name in enumerate(names):
            _dots(left, row, np.array(list(values[name].values())), colour(name), median=True)
        left.set_yticks(range(len(names)), names)
        left.set_ylim(len(names) - 0.5, -0.5)
        left.grid(axis="y", visible=False)
        left.tick_params(axis="y", length=0, labelsize=9)
        left.set_xlabel(metric.title)
        left.set_title("every seed; bar = median")
        drawn = [name for name in others if name != "random"] or others
        if others:
            right = axes[1]
            for name in drawn:
                _difference_row(right, names.index(name), run, name, values)
            right.axvline(0, color=colour("ink"), linewidth=0.9)
            right.grid(axis="y", visible=False)
            right.tick_params(axis="y", length=0)
            right.set_xlabel(f"policy \u2212 controller{f' ({metric.unit})' if metric.unit else ''}")
            right.set_title("same seed; bar = 95 % interval of the mean")
        alt = _seed_alt(run, drawn)
        side = "left" if metric.better < 0 else "right"
        caption = "Each dot is one held-out seed."
        if drawn:
            caption += f" On the right, dots {side} of 0 are seeds on which the policy did better."
        if drawn != others:
            caption += " random is left out there: it would set the scale."
        return Drawing(svg(figure, "seeds", alt), alt, caption)


def _episodes(run: RunFolder) -> tuple[FloatArray, FloatArray]:
    """Environment steps and judging metric of the training episodes that have both, [E] each, by steps."""
    pairs = [
        (at, value)
        for row in run.episodes
        if (at := number_or_none(row.get("env_steps"))) is not None
        and (value := number_or_none(row.get(run.metric))) is not None
    ]
    table = np.array(sorted(pairs, key=lambda p: p[0]), np.float64).reshape(-1, 2)
    return table[:, 0], table[:, 1]


def _clock(run: RunFolder) -> str:
    """What the x axis counts: updates where nothing was stepped, as in a run from data alone."""
    return "env_steps" if any(row.get("env_steps") for row in run.evaluations) or run.episodes else "updates"


def _clock_name(run: RunFolder) -> str:
    return _clock(run).replace("env_", "environment ")


def _scores(run: RunFolder) -> list[tuple[float, list[float]]]:
    found = []
    for row in run.evaluations:
        if row.get("name") != POLICY or row.get("final"):
            continue
        scores = [v for e in row.get("episodes", ()) if (v := number_or_none(e.get(run.metric))) is not None]
        if scores:
            found.append((float(row[_clock(run)]), scores))
    return found


def _evaluations(run: RunFolder) -> list[tuple[float, float, float]]:
    """(steps, lowest, highest) of each evaluation of the policy on the way."""
    return [(at, min(scores), max(scores)) for at, scores in _scores(run)]


def _means(run: RunFolder) -> list[tuple[float, float]]:
    return [(at, float(np.mean(scores))) for at, scores in _scores(run)]


def _groups(steps: FloatArray) -> int:
    """Points of the curve."""
    return min(MAX_POINTS, steps.size // GROUP_EPISODES)


def _curve(axes: Axes, steps: FloatArray, values: FloatArray) -> list[float]:
    """Draw the training episodes; returns what the axis must hold."""
    groups = _groups(steps)
    if groups < MIN_POINTS:  # too few to summarise: show each
        axes.plot(steps, values, "-", color=colour(POLICY), linewidth=0.8, alpha=0.5)
        axes.plot(steps, values, "o", color=colour(POLICY), markersize=3, label="training episode")
        return [float(values.min()), float(values.max())]
    at = np.array([part.mean() for part in np.array_split(steps, groups)])
    parts = [np.percentile(part, (25, 50, 75)) for part in np.array_split(values, groups)]
    low, middle, high = np.array(parts).T
    axes.fill_between(at, low, high, color=colour(POLICY), alpha=0.18, linewidth=0)
    axes.plot(at, middle, color=colour(POLICY), label="training: median and middle half")
    return [float(low.min()), float(high.max())]


def _limits(axes: Axes, shown: FloatArray, *, log: bool) -> None:
    if log:
        _log_axis(axes, "y")
        axes.set_ylim(float(shown.min()) / 1.15, float(shown.max()) * 1.15)
        return
    low, high = float(shown.min()), float(shown.max())
    room = 0.06 * (high - low) or max(0.1 * abs(high), 1.0)
    axes.set_ylim(low - room, high + room)


def _log_axis(axes: Axes, which: str) -> None:
    """A log axis whose ticks read 20, 50, 100, not powers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axis.set_minor_formatter(NullFormatter())


def _count(value: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{letter}"
    return f"{value:.4g}"


def _column(run: RunFolder, name: str) -> dict[int, float]:
    """Seed -> judging metric, where there is one."""
    rows = run.by_seed[name].items()
    return {seed: v for seed, row in rows if (v := number_or_none(row.get(run.metric))) is not None}


def _dots(axes: Axes, row: int, values: FloatArray, paint: str, *, median: bool) -> None:
    jitter = (
        np.arange(values.size) * 0.618034 + 0.5
    ) % 1.0 - 0.5  # golden-ratio steps: even, always the same
    jitter *= 0.42
    axes.plot(values, row + jitter, "o", color=paint, markersize=3.6, alpha=0.65, markeredgewidth=0)
    if median:
        axes.vlines(float(np.median(values)), row - 0.33, row + 0.33, color=paint, linewidth=2.4)


def _difference_row(
    axes: Axes, row: int, run: RunFolder, name: str, values: dict[str, dict[int, float]]
) -> None:
    shared = sorted(values[POLICY].keys() & values[name].keys())
    gaps = np.array([values[POLICY][seed] - values[name][seed] for seed in shared])
    _dots(axes, row, gaps, colour(name), median=False)
    difference = run.paired.get(name, {}).get(run.metric)
    if difference is None:
        return
    if difference.ci95 is not None:
        axes.hlines(row, *difference.ci95, color=colour("ink"), linewidth=2.2, zorder=4)
    axes.plot(difference.mean, row, "D", color=colour("ink"), markersize=4.5, zorder=5)


def _seed_alt(run: RunFolder, names: list[str]) -> str:
    metric = judged(run)
    parts = [f"{metric.label} of every evaluated seed per controller."]
    for name in names:
        difference = run.paired.get(name, {}).get(run.metric)
        if difference is not None:
            gap = with_unit(difference.mean, metric, sign=True)
            parts.append(f"Policy minus {name}: {gap}, interval {span(difference.ci95, sign=True)}.")
    return " ".join(parts)
