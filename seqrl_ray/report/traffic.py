"""Figures of one traffic episode: queues and delay over time per signal, delay of trips.

Dims: T samples in time, N signals, V trips, M minutes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from seqrl_ray.report.run_folder import POLICY, RunFolder
from seqrl_ray.report.style import Drawing, canvas, colour, look, shorten, svg
from seqrl_ray.report.wording import best_rule, number
from seqrl_ray.types import Array, FloatArray

SERIES = {
    "queue": ("Queue", "vehicles"),
    "delay_rate": ("Delay", "vehicle-seconds lost per second"),
}


def compared(run: RunFolder, needs: Sequence[str]) -> list[str]:
    """Controllers that the episode figures show: policy, fixed and the best rule, where `needs` are there."""
    wanted = dict.fromkeys(name for name in (POLICY, "fixed", best_rule(run)) if name is not None)
    return [name for name in wanted if all(key in run.details.get(name, {}) for key in needs)]


def totals(run: RunFolder) -> Drawing | None:
    """Queue and delay of the whole network over the episode."""
    names = compared(run, ("time_s", *SERIES))
    if not names:
        return None
    with look():
        figure, axes = canvas(2.7, 1, 2)
        for panel, (series, (title, unit)) in zip(axes, SERIES.items(), strict=True):
            for name in names:
                minute, values = minutes(run.details[name], series)
                panel.plot(minute, values.sum(axis=1), color=colour(name), label=name, zorder=_order(name))
            panel.set_title(f"{title} ({unit})")
            panel.set_xlabel("minute of the episode")
            panel.set_ylim(bottom=0)
            panel.set_xlim(left=0)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=len(names))
        ends = [f"{n} {number(float(run.details[n]['queue'].sum(1).mean()))}" for n in names]
        alt = (
            f"Queue and delay of the whole network over one episode; mean queue: {', '.join(ends)} vehicles."
        )
        caption = "One evaluation episode of each controller; means over each minute."
        return Drawing(svg(figure, "totals", alt), alt, caption, "Whole network")


def per_signal(run: RunFolder, series: str) -> Drawing | None:
    """One small panel per signal, where there are several; `series` is a key of SERIES."""
    names = compared(run, ("time_s", "signal_names", series))
    signals = [str(s) for s in run.details[names[0]]["signal_names"]] if names else []
    if len(signals) < 2:  # the network figure shows a single signal already
        return None
    columns = min((4, 3, 5), key=lambda c: -len(signals) % c) if len(signals) > 4 else len(signals)
    rows = -(-len(signals) // columns)
    with look():
        figure, axes = canvas(0.7 + 1.25 * rows + (0.9 if rows == 1 else 0), rows, columns, sharex=True)
        for panel, signal in zip(axes, signals, strict=False):
            for name in names:
                place = [str(s) for s in run.details[name]["signal_names"]].index(signal)
                minute, values = minutes(run.details[name], series)
                panel.plot(
                    minute,
                    values[:, place],
                    color=colour(name),
                    linewidth=1.2,
                    label=name,
                    zorder=_order(name),
                )
            panel.set_title(shorten(signal, 110 // columns - 4), fontsize=8)
            panel.set_ylim(bottom=0)
            panel.set_xlim(left=0)
            panel.locator_params(axis="y", nbins=3)
        for panel in axes[len(signals) :]:
            panel.set_visible(False)
        for panel in axes[max(0, len(signals) - columns) : len(signals)]:
            panel.tick_params(labelbottom=True)
        title, unit = SERIES[series]
        figure.supylabel(unit, fontsize=8.5, color=colour("muted"))
        figure.supxlabel("minute of the episode", fontsize=8.5, color=colour("muted"))
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=len(names))
        alt = f"{title} ({unit}) over time at {len(signals)} signals, a line each for {', '.join(names)}."
        drawn = svg(figure, series.replace("_", "-"), alt)
        return Drawing(
            drawn, alt, "Means over each minute; each panel has its own scale.", f"{title} per signal"
        )


def trip_delay(run: RunFolder) -> Drawing | None:
    """Cumulative share of trips by delay, on a log axis, for every controller that has trips."""
    names = [name for name in run.details if run.details[name].get("trip_delay_s", np.empty(0)).size]
    if not names:
        return None
    with look():
        figure, (axes,) = canvas(3.4)
        texts = []
        for name in names:
            delay = np.sort(run.details[name]["trip_delay_s"].astype(np.float64))  # [V]
            median, late = np.percentile(delay, (50, 95))
            texts.append(f"{name} {number(float(median))} / {number(float(late))} s")
            shown = np.unique(np.linspace(0, delay.size - 1, min(400, delay.size)).astype(np.int64))
            main = name == POLICY
            axes.step(
                np.maximum(delay[shown], 1.0),
                (shown + 1) / delay.size,
                where="post",
                color=colour(name),
                linewidth=2.2 if main else 1.2,
                zorder=_order(name),
                label=f"{name}: median {number(float(median))} s, 95th percentile {number(float(late))} s",
            )
        axes.set_xscale("log")
        axes.set_xlim(left=1.0)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.set_ylim(0, 1.005)
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
        axes.set_xlabel("delay of a trip (s); trips below 1 s stand at 1 s")
        axes.set_ylabel("share of trips with at most this delay")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside right center")
        alt = f"Distribution of trip delay; median and 95th percentile: {'; '.join(texts)}."
        caption = "Every vehicle of one evaluation episode. Further left is better."
        return Drawing(svg(figure, "trips", alt), alt, caption)


def minutes(details: Mapping[str, Array], series: str) -> tuple[FloatArray, FloatArray]:
    """`per_minute` of one series of an episode."""
    return per_minute(details["time_s"], details[series], extent(details)[0])


def per_minute(time_s: FloatArray, values: Array, start_s: float) -> tuple[FloatArray, FloatArray]:
    """Means over each minute.

    Args:
        time_s: [T] rising, in seconds; a sample stands for the time before it.
        values: [T, N].
        start_s: when the episode began.

    Returns:
        Middle of each minute that has samples, in minutes since the start, [M]; the means, [M, N].
    """
    minute = np.maximum(np.ceil((time_s - start_s) / 60).astype(np.int64) - 1, 0)  # [T]
    present, inverse = np.unique(minute, return_inverse=True)
    sums = np.zeros((present.size, values.shape[1]))  # [M, N]
    np.add.at(sums, inverse, values)
    return present + 0.5, sums / np.bincount(inverse)[:, None]


def extent(details: Mapping[str, Array]) -> tuple[float, float]:
    """When the episode began (with the first state shown, where that is recorded) and ended."""
    first = details.get("change_time_s", details["time_s"])
    return float(first[0]), float(details["time_s"][-1])


def _order(name: str) -> float:
    """The policy is drawn over the others."""
    return 4.0 if name == POLICY else 3.0
