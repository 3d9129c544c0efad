"""The phase diagram of one traffic episode: which green each signal showed when.

Dims: T samples in time, C changes of what a signal shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from seqrl_ray.report.run_folder import RunFolder
from seqrl_ray.report.style import PHASES, TRANSITION, Drawing, canvas, colour, look, shorten, svg
from seqrl_ray.report.traffic import compared, extent
from seqrl_ray.report.wording import number
from seqrl_ray.types import Array, FloatArray, IntArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.patches import Patch

EXCERPT_S = 600.0
MAX_PIXELS = 3600
NEEDS = ("time_s", "signal_names", "phase_states", "change_time_s", "change_signal", "change_state")


@dataclass(frozen=True)
class Track:
    """One signal: from `start_s[i]` on it showed green `phase[i]`, or a transition where that is -1."""

    start_s: FloatArray  # [C] rising
    phase: IntArray  # [C]

    def spans(self, start: float, end: float) -> list[tuple[float, float, int]]:
        """(start, duration, phase) of each stretch inside [start, end)."""
        edges = np.clip(np.append(self.start_s, end), start, end)
        stretches = zip(edges[:-1], np.diff(edges), self.phase, strict=True)
        return [(float(at), float(long), int(phase)) for at, long, phase in stretches if long > 0]

    def greens_started(self, start: float, end: float) -> int:
        """How often another green began inside (start, end)."""
        greens = [phase for *_, phase in self.spans(start, end) if phase >= 0]
        return int(np.count_nonzero(np.diff(greens)))


def phases(run: RunFolder, *, excerpt: bool) -> Drawing | None:
    """Which green each signal showed when: policy above the fixed plan (else the best rule).

    Args:
        run: a run whose details record every change of a signal.
        excerpt: the ten minutes with the longest queues, each green a bar; else the whole episode.
    """
    names = compared(run, NEEDS)[:2]
    if not names:
        return None
    signals = [str(s) for s in run.details[names[0]]["signal_names"]]
    start, end = _excerpt(run, names[0]) if excerpt else extent(run.details[names[0]])
    row_in = 0.19 if len(signals) > 3 else 0.3
    with look():
        figure, axes = canvas(0.85 + len(names) * (0.35 + row_in * len(signals)), len(names), 1, sharex=True)
        highest = max(int(t.phase.max(initial=0)) for name in names for t in tracks(run.details[name]))
        for panel, name in zip(axes, names, strict=True):
            draw = _bars if excerpt else _pixels
            draw(panel, run.details[name], start, end)
            panel.set_yticks(range(len(signals)), [shorten(s, 24) for s in signals], fontsize=7.5)
            panel.set_ylim(len(signals) - 0.5, -0.5)
            panel.set_xlim(
                0 if not excerpt else (start - extent(run.details[name])[0]) / 60,
                (end - extent(run.details[name])[0]) / 60,
            )
            panel.set_title(name, color=colour(name))
            panel.grid(visible=False)
            panel.spines[["left", "bottom"]].set_visible(False)
            panel.tick_params(length=0)
        axes[-1].tick_params(axis="x", length=3)
        axes[-1].set_xlabel("minute of the episode")
        figure.legend(
            handles=_legend(highest), loc="outside upper left", ncols=10, handlelength=1.1, columnspacing=1.2
        )
        counts = ", ".join(f"{name} {number(_switches(run.details[name], start, end))}" for name in names)
        zero = extent(run.details[names[0]])[0]
        title = "Whole episode"
        if excerpt:
            minutes = f"Minutes {(start - zero) / 60:.0f} to {(end - zero) / 60:.0f}"
            title = f"{minutes}, where queues are longest under {names[0]}"
        caption = f"Changes of green per signal and hour: {counts}."
        alt = f"Green phases of {len(signals)} signals. {title}. {caption}"
        return Drawing(svg(figure, "phases-excerpt" if excerpt else "phases", alt), alt, caption, title)


def tracks(details: Mapping[str, Array]) -> list[Track]:
    """What each signal showed; a state that is none of its greens is a transition."""
    found = []
    for place, states in enumerate(details["phase_states"]):
        greens = {str(state): index for index, state in reversed(list(enumerate(states))) if state}
        own = details["change_signal"] == place
        shown = [greens.get(str(state), -1) for state in details["change_state"][own]]
        found.append(Track(details["change_time_s"][own].astype(np.float64), np.array(shown, np.int64)))
    return found


def _excerpt(run: RunFolder, name: str) -> tuple[float, float]:
    """The EXCERPT_S with the highest mean queue (the first ones where queues are not recorded)."""
    details = run.details[name]
    first, last = extent(details)
    length = min(EXCERPT_S, last - first)
    starts = np.arange(first, last - length + 1e-9, 60.0)
    if "queue" not in details:
        return first, first + length
    time_s, total = details["time_s"], details["queue"].sum(axis=1)  # [T]
    means = [total[(time_s >= s) & (time_s < s + length)].mean() for s in starts]
    start = float(starts[int(np.argmax(means))])
    return start, start + length


def _bars(panel: Axes, details: Mapping[str, Array], start: float, end: float) -> None:
    """Each stretch a bar; transitions thin and grey."""
    zero = extent(details)[0]
    for row, track in enumerate(tracks(details)):
        stretches = track.spans(start, end)
        for thin in (True, False):
            chosen = [stretch for stretch in stretches if (stretch[2] < 0) is thin]
            paints = [TRANSITION if phase < 0 else PHASES[phase % len(PHASES)] for *_, phase in chosen]
            bars = [((at - zero) / 60, long / 60) for at, long, _ in chosen]
            height = 0.16 if thin else 0.74
            panel.broken_barh(bars, (row - height / 2, height), facecolors=paints, linewidth=0)


def _pixels(panel: Axes, details: Mapping[str, Array], start: float, end: float) -> None:
    """The whole episode as an image, at most a pixel a second: thousands of bars would weigh megabytes."""
    at = np.linspace(start, end, min(MAX_PIXELS, max(1, round(end - start))), endpoint=False)
    palette = np.array([_rgb(paint) for paint in PHASES], np.uint8)
    own = tracks(details)
    image = np.zeros((2 * len(own), at.size, 4), np.uint8)  # a row of pixels, a gap
    for row, track in enumerate(own):
        place = np.searchsorted(track.start_s, at, side="right")
        shown = np.append(-1, track.phase)[place]  # [pixels]; before the first record: unknown
        image[2 * row, :, :3] = palette[shown % len(PHASES)]
        image[2 * row, :, 3] = 255
        image[2 * row, shown < 0] = (*_rgb(TRANSITION), 90)
    box = (0.0, (end - start) / 60, len(own) - 0.25, -0.25)
    panel.imshow(image, aspect="auto", interpolation="none", extent=box)


def _rgb(paint: str) -> tuple[int, int, int]:
    return int(paint[1:3], 16), int(paint[3:5], 16), int(paint[5:7], 16)


def _legend(highest: int) -> list[Patch]:
    from matplotlib.patches import Patch

    greens = [Patch(color=PHASES[i], label=f"green {i}") for i in range(min(highest + 1, len(PHASES)))]
    if highest >= len(PHASES):
        greens[-1].set_label(f"green {len(PHASES) - 1}; colours repeat above")
    return [*greens, Patch(color=TRANSITION, label="transition")]


def _switches(details: Mapping[str, Array], start: float, end: float) -> float:
    """Starts of another green per signal and hour inside [start, end)."""
    counts = [track.greens_started(start, end) for track in tracks(details)]
    return float(np.mean(counts)) / ((end - start) / 3600)
