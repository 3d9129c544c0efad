"""Figures of one traffic episode: queues and delay over time per signal, phases over time, delay of trips.

Dims: T samples in time, N signals, V trips, M minutes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from seqrl_ray.report.run_folder import POLICY, RunFolder
from seqrl_ray.report.style import PHASES, TRANSITION, Drawing, canvas, colour, look, shorten, svg
from seqrl_ray.report.wording import best_rule, number
from seqrl_ray.types import Array, FloatArray, IntArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.patches import Patch

EXCERPT_S = 600.0
SERIES = {
    "queue_vehicles": ("Queue", "vehicles"),
    "delay_rate": ("Delay", "vehicle-seconds lost per second"),
}


def compared(run: RunFolder, needs: Sequence[str]) -> list[str]:
    """Controllers that the episode figures show: policy, fixed, and the best rule, as far as `needs` are there."""
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
                minute, values = per_minute(run.details[name]["time_s"], run.details[name][series])
                panel.plot(minute, values.sum(axis=1), color=colour(name), label=name, zorder=_order(name))
            panel.set_title(f"{title}, all signals ({unit})")
            panel.set_xlabel("minute of the episode")
            panel.set_ylim(bottom=0)
            panel.set_xlim(left=0)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper left", ncols=len(names))
        ends = [f"{n} {number(float(run.details[n]['queue_vehicles'].sum(1).mean()))}" for n in names]
        alt = f"Queue and delay of the whole network over one episode; mean queue in vehicles: {', '.join(ends)}."
        caption = "One evaluation episode of each controller; means over each minute."
        return Drawing(svg(figure, "totals", alt), alt, caption, "Whole network")


def per_signal(run: RunFolder, series: str) -> Drawing | None:
    """One small panel per signal: `series` ("queue_vehicles" or "delay_rate") of the compared controllers."""
    names = compared(run, ("time_s", "signals", series))
    if not names:
        return None
    signals = [str(s) for s in run.details[names[0]]["signals"]]
    columns = min(4, len(signals))
    rows = -(-len(signals) // columns)
    with look():
        figure, axes = canvas(0.7 + 1.25 * rows + (0.9 if rows == 1 else 0), rows, columns, sharex=True)
        for panel, signal in zip(axes, signals, strict=False):
            for name in names:
                place = [str(s) for s in run.details[name]["signals"]].index(signal)
                minute, values = per_minute(run.details[name]["time_s"], run.details[name][series])
                panel.plot(minute, values[:, place], color=colour(name), linewidth=1.2, label=name, zorder=_order(name))
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
        return Drawing(drawn, alt, "Means over each minute; each panel has its own scale.", f"{title} per signal")


def phases(run: RunFolder, *, excerpt: bool) -> Drawing | None:
    """Which green each signal showed when: policy above the fixed plan (else the best rule).

    Args:
        run: a run with `phase` in its details.
        excerpt: the ten minutes with the longest queues, each green a bar; else the whole episode, pixel by pixel.
    """
    names = compared(run, ("time_s", "signals", "phase"))[:2]
    if not names:
        return None
    signals = [str(s) for s in run.details[names[0]]["signals"]]
    start, end = _excerpt(run, names[0]) if excerpt else _extent(run.details[names[0]])
    row_in = 0.19 if len(signals) > 3 else 0.3
    with look():
        figure, axes = canvas(0.85 + len(names) * (0.35 + row_in * len(signals)), len(names), 1, sharex=True)
        highest = max(int(run.details[name]["phase"].max(initial=0)) for name in names)
        for panel, name in zip(axes, names, strict=True):
            draw = _bars if excerpt else _pixels
            draw(panel, run.details[name], start, end)
            panel.set_yticks(range(len(signals)), [shorten(s, 24) for s in signals], fontsize=7.5)
            panel.set_ylim(len(signals) - 0.5, -0.5)
            panel.set_xlim(0 if not excerpt else (start - _zero(run, name)) / 60, (end - _zero(run, name)) / 60)
            panel.set_title(name, color=colour(name))
            panel.grid(visible=False)
            panel.spines[["left", "bottom"]].set_visible(False)
            panel.tick_params(length=0)
        axes[-1].tick_params(axis="x", length=3)
        axes[-1].set_xlabel("minute of the episode")
        figure.legend(handles=_legend(highest), loc="outside upper left", ncols=10, handlelength=1.1, columnspacing=1.2)
        counts = ", ".join(f"{name} {number(_switches(run.details[name], start, end))}" for name in names)
        zero = _zero(run, names[0])
        title = "Whole episode"
        if excerpt:
            title = f"Minutes {(start - zero) / 60:.0f} to {(end - zero) / 60:.0f}, where the policy's queues are longest"
        caption = f"Changes of green per signal and hour: {counts}."
        alt = f"Green phases of {len(signals)} signals. {title}. {caption}"
        return Drawing(svg(figure, "phases-excerpt" if excerpt else "phases", alt), alt, caption, title)


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
        caption = "Every vehicle of one evaluation episode. Further left is better; the upper end shows whom the mean hides."
        return Drawing(svg(figure, "trips", alt), alt, caption)


def per_minute(time_s: FloatArray, values: Array) -> tuple[FloatArray, FloatArray]:
    """Means over each minute.

    Args:
        time_s: [T] rising, in seconds.
        values: [T, N].

    Returns:
        Middle of each minute that has samples, in minutes since the first, [M]; the means, [M, N].
    """
    minute = ((time_s - time_s[0]) // 60).astype(np.int64)  # [T]
    present, inverse = np.unique(minute, return_inverse=True)
    sums = np.zeros((present.size, values.shape[1]))  # [M, N]
    np.add.at(sums, inverse, values)
    return present + 0.5, sums / np.bincount(inverse)[:, None]


def spans(time_s: FloatArray, phase: IntArray, end: float) -> list[tuple[float, float, int]]:
    """Run-length code of one signal: (start, duration, phase) of each stretch, the last one up to `end`."""
    cuts = np.flatnonzero(np.diff(phase)) + 1
    starts = np.concatenate([[0], cuts])
    edges = np.append(time_s[starts], end)
    return [(float(edges[i]), float(edges[i + 1] - edges[i]), int(phase[s])) for i, s in enumerate(starts)]


def _order(name: str) -> float:
    """The policy is drawn over the others."""
    return 4.0 if name == POLICY else 3.0


def _zero(run: RunFolder, name: str) -> float:
    return float(run.details[name]["time_s"][0])


def _extent(details: Mapping[str, Array]) -> tuple[float, float]:
    """First time, and the end of the last sample."""
    time_s = details["time_s"]
    step = float(np.median(np.diff(time_s))) if time_s.size > 1 else 1.0
    return float(time_s[0]), float(time_s[-1]) + step


def _excerpt(run: RunFolder, name: str) -> tuple[float, float]:
    """The EXCERPT_S with the highest mean queue (the first ones where queues are not recorded)."""
    details = run.details[name]
    first, last = _extent(details)
    length = min(EXCERPT_S, last - first)
    starts = np.arange(first, last - length + 1e-9, 60.0)
    if "queue_vehicles" not in details:
        return first, first + length
    time_s, total = details["time_s"], details["queue_vehicles"].sum(axis=1)  # [T]
    means = [total[(time_s >= s) & (time_s < s + length)].mean() for s in starts]
    start = float(starts[int(np.argmax(means))])
    return start, start + length


def _bars(panel: Axes, details: Mapping[str, Array], start: float, end: float) -> None:
    """Each stretch a bar; transitions thin and grey."""
    time_s = details["time_s"]
    first = max(0, int(np.searchsorted(time_s, start, side="right")) - 1)
    inside = slice(first, int(np.searchsorted(time_s, end)))
    for row in range(details["phase"].shape[1]):
        cut = spans(time_s[inside], details["phase"][inside, row], end)
        bars = [((max(at, start) - time_s[0]) / 60, (at + long - max(at, start)) / 60, green) for at, long, green in cut]
        for thin in (True, False):
            chosen = [bar for bar in bars if (bar[2] < 0) is thin]
            paints = [TRANSITION if green < 0 else PHASES[green % len(PHASES)] for *_, green in chosen]
            height = 0.16 if thin else 0.74
            panel.broken_barh(
                [(at, long) for at, long, _ in chosen], (row - height / 2, height), facecolors=paints, linewidth=0
            )


def _pixels(panel: Axes, details: Mapping[str, Array], start: float, end: float) -> None:
    """The whole episode as an image: thousands of bars would weigh megabytes."""
    time_s, phase = details["time_s"], details["phase"]
    step = float(np.median(np.diff(time_s))) if time_s.size > 1 else 1.0
    at = np.arange(start, end, step)
    shown = phase[np.searchsorted(time_s, at, side="right") - 1].T  # [N, T]
    palette = np.array([[int(p[i : i + 2], 16) for i in (1, 3, 5)] for p in PHASES], np.uint8)
    grey = [int(TRANSITION[i : i + 2], 16) for i in (1, 3, 5)]
    image = np.zeros((2 * shown.shape[0], shown.shape[1], 4), np.uint8)  # a row of pixels, a gap
    image[::2, :, :3] = palette[shown % len(PHASES)]
    image[::2, :, 3] = 255
    image[::2][shown < 0] = [*grey, 90]
    box = (0.0, (end - start) / 60, shown.shape[0] - 0.25, -0.25)
    panel.imshow(image, aspect="auto", interpolation="none", extent=box)


def _legend(highest: int) -> list[Patch]:
    from matplotlib.patches import Patch

    greens = [Patch(color=PHASES[i], label=f"green {i}") for i in range(min(highest + 1, len(PHASES)))]
    if highest >= len(PHASES):
        greens[-1].set_label(f"green {len(PHASES) - 1}; colours repeat above")
    return [*greens, Patch(color=TRANSITION, label="transition")]


def _switches(details: Mapping[str, Array], start: float, end: float) -> float:
    """Starts of a new green per signal and hour inside [start, end)."""
    inside = (details["time_s"] >= start) & (details["time_s"] < end)
    phase = details["phase"][inside]  # [T, N]
    count = 0
    for column in phase.T:
        greens = column[column >= 0]
        count += int(np.count_nonzero(np.diff(greens)))
    return count / phase.shape[1] / ((end - start) / 3600)
