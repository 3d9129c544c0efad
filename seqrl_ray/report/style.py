"""The look of every figure: one palette for light and dark, one typography, and matplotlib -> inline SVG.

A figure is drawn in the light colours; in the SVG each becomes a CSS variable, so that the page decides. Text
stays text: it can be searched, selected and read aloud. Ids are made unique, since many SVGs share one page.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from seqrl_ray.types import FloatArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = {  # CSS variable -> (light, dark); light colours must differ, they are found again in the SVG
    "ink": ("#1b2430", "#e6e9ee"),
    "muted": ("#5d6978", "#a3adba"),
    "grid": ("#dde2e8", "#333c48"),
    "paper": ("#fefefe", "#151a21"),
    "policy": ("#0b62c4", "#6db3ff"),
    "pretrained": ("#3f6f9f", "#8fb8e0"),
    "fixed": ("#b84f14", "#f29a63"),
    "actuated": ("#7a5c00", "#d8b648"),
    "max-pressure": ("#0f7b5f", "#4fcfa8"),
    "occupancy": ("#8e3f9e", "#d68fe5"),
    "greedy": ("#b0305c", "#f08aae"),
    "random": ("#7b8794", "#8f9baa"),
    "alarm": ("#b3261e", "#ff8a80"),
}
PHASES = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#ee7733", "#009988")
"""Greens by index (Paul Tol's bright scheme and two of his vibrant), legible on light and dark."""
TRANSITION = "#8b949e"

WIDTH_IN = 10.0
_RC: Any = {  # Any: matplotlib types its keys one by one
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 8.5,
    "axes.labelcolor": PALETTE["muted"][0],
    "axes.edgecolor": PALETTE["muted"][0],
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": PALETTE["grid"][0],
    "grid.linewidth": 0.6,
    "text.color": PALETTE["ink"][0],
    "xtick.color": PALETTE["muted"][0],
    "ytick.color": PALETTE["muted"][0],
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.fontsize": 8.5,
}


@dataclass(frozen=True)
class Drawing:
    """A finished figure: the SVG, its content in words for those who cannot see it, its caption and title."""

    svg: str
    alt: str
    caption: str
    title: str = ""


def colour(name: str) -> str:
    """The (light) colour of a controller or a role; unknown controllers share one."""
    return PALETTE.get(name.replace("_", "-"), PALETTE["muted"])[0]


def look() -> AbstractContextManager[None]:
    """The typography and colours, for the time of one figure."""
    import matplotlib

    context: AbstractContextManager[None] = matplotlib.rc_context(_RC)
    return context


def canvas(height_in: float, rows: int = 1, columns: int = 1, **kwargs: Any) -> tuple[Figure, list[Axes]]:
    """A figure of the page's width with its axes in reading order."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, columns, **kwargs)).ravel()
    return figure, list(axes)


def svg(figure: Figure, name: str, alt: str) -> str:
    """Turn a figure into inline SVG whose colours are CSS variables and whose ids begin with `name`."""
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\n?", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r'(href="|url\()#([^")]+)', rf"\1#{name}-\2", text)
    text = text.replace("'DejaVu Sans'", "var(--font)")
    for role, (light, _) in PALETTE.items():
        text = text.replace(light, f"var(--{role})")
    head = f'<svg role="img" aria-label="{html.escape(alt, quote=True)}"'
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    return text.replace("<svg", head, 1)


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Move labels apart: as near as possible to the places given, in their order, at least `gap` between two.

    Least squares under order constraints: pool adjacent violators on `place - rank * gap`.
    """
    order = np.argsort(np.asarray(places), kind="stable")
    blocks: list[tuple[float, int]] = []  # mean, size
    for rank, index in enumerate(order):
        mean, size = float(places[index]) - rank * gap, 1
        while blocks and blocks[-1][0] > mean:
            other, count = blocks.pop()
            mean, size = (mean * size + other * count) / (size + count), size + count
        blocks.append((mean, size))
    level = [mean for mean, size in blocks for _ in range(size)]
    moved = [0.0] * len(level)
    for rank, index in enumerate(order):
        moved[index] = level[rank] + rank * gap
    return moved


def wants_log(values: FloatArray) -> bool:
    """True where a linear axis would press most values flat: all above 0, largest over 12 x smallest."""
    return bool(values.size) and float(values.min()) > 0 and float(values.max()) > 12 * float(values.min())


def label_lines(axes: Axes, labels: Sequence[tuple[str, float, str]], *, height_in: float) -> None:
    """Name horizontal values at the right edge, moved apart where they would overlap.

    Args:
        axes: axes whose limits and scale are final.
        labels: (text, value on the y axis, colour).
        height_in: of the figure.
    """
    low, high = axes.get_ylim()
    warp = np.log10 if axes.get_yscale() == "log" else np.asarray
    spots = [float((warp(v) - warp(low)) / (warp(high) - warp(low))) for _, v, _ in labels]
    for (text, _, paint), spot, moved in zip(labels, spots, spread(spots, 0.19 / height_in), strict=True):
        axes.annotate(
            text,
            xy=(1.0, spot),
            xytext=(1.025, moved),
            xycoords="axes fraction",
            textcoords="axes fraction",
            va="center",
            color=paint,
            fontsize=8.5,
            arrowprops={"arrowstyle": "-", "color": paint, "lw": 0.6, "shrinkA": 1, "shrinkB": 0},
        )


def shorten(text: str, limit: int) -> str:
    """`text`, its middle left out where it is longer than `limit` characters."""
    if len(text) <= limit:
        return text
    head = (limit - 1) // 2
    return f"{text[:head]}\u2026{text[-(limit - 1 - head) :]}"
