"""Figures of a sweep: the population over time, the values over time, who stands on whom, all values at once.

The winner's chain (its own life and its ancestors', as far as the winner stands on them) is drawn in one
colour everywhere; the rest is grey.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from seqrl_ray.report.style import Drawing, canvas, colour, look, svg
from seqrl_ray.report.sweep_folder import Report, Sweep

MAX_ORDINARY = 60
"""Trials that are drawn one by one; of more, every one is still in the table."""


def population(sweep: Sweep) -> Drawing | None:
    """Every trial's score over its steps; copies as thin lines from the donor's score."""
    if not any(r.score is not None for life in sweep.lives.values() for r in life):
        return None
    with look():
        figure, (axes,) = canvas(3.8)
        for _, life in _shown(sweep):
            axes.plot(*_scores(life), color=colour("muted"), alpha=0.55, linewidth=1.0)
        for member, at, donor, donor_at in _copies(sweep):
            start, end = _score_at(sweep, donor, donor_at), _score_at(sweep, member, at)
            if start is not None and end is not None:
                axes.plot([donor_at, at], [start, end], color=colour("greedy"), linewidth=0.7, alpha=0.8)
        for segment in sweep.chain:
            life = [r for r in sweep.lives[segment["member"]] if _within(r, segment)]
            axes.plot(*_scores(life), color=colour("policy"), linewidth=2.2)
        if sweep.default:
            axes.plot(*_scores(sweep.default), color=colour("fixed"), linewidth=1.6, linestyle=(0, (5, 2)))
        for _, life in _shown(sweep):
            lost = [r.env_steps for r in life if r.score is None]
            axes.plot(lost, [axes.get_ylim()[0]] * len(lost), "x", color=colour("alarm"), clip_on=False)
        axes.set_xlabel("environment steps of the trial")
        axes.set_ylabel(f"{sweep.metric} ({sweep.statistic} of a score's episodes)")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        alt = f"{sweep.metric} of {len(sweep.lives)} trials over their steps."
        caption = (
            "Blue: what made the winner. Dashed: the base recipe, unchanged. Pink: copies, from the donor's "
            "score to that of who copied. Crosses: scores that were not finite. Scores are greedy, on seeds "
            "that all trials share."
        )
        return Drawing(svg(figure, "population", alt), alt, caption)


def values(sweep: Sweep) -> Drawing | None:
    """The searched numbers of every trial over its steps."""
    keys = [key for key in sweep.keys if _numbers(sweep, key)]
    if not keys:
        return None
    with look():
        figure, axes = canvas(0.6 + 1.7 * len(keys), len(keys), 1, sharex=True)
        for panel, key in zip(axes, keys, strict=True):
            for _, life in _shown(sweep):
                panel.step(*_steps(life, key), where="post", color=colour("muted"), alpha=0.55, linewidth=1.0)
            for segment in sweep.chain:
                ends = [segment["from_steps"], segment["to_steps"]]
                panel.plot(ends, [segment["values"][key]] * 2, color=colour("policy"), linewidth=2.4)
            if _log(sweep, key):
                panel.set_yscale("log")
            panel.set_title(key)
        axes[-1].set_xlabel("environment steps of the trial")
        axes[-1].xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        alt = f"Values of {', '.join(keys)} over the steps of {len(sweep.lives)} trials."
        caption = "Blue: the schedule of the winner; `seqrl tune --replay` trains one run with it."
        return Drawing(svg(figure, "values", alt), alt, caption)


def lineage(sweep: Sweep) -> Drawing | None:
    """One lane per member; arrows lead from a donor to who copied it."""
    copies = list(_copies(sweep))
    if not copies:
        return None
    with look():
        figure, (axes,) = canvas(0.9 + 0.28 * len(sweep.lives))
        lanes = {member: lane for lane, member in enumerate(sweep.lives)}
        for member, life in sweep.lives.items():
            axes.plot([0, life[-1].env_steps], [lanes[member]] * 2, color=colour("grid"), linewidth=3.0)
        for member, at, donor, donor_at in copies:
            axes.annotate(
                "",
                xy=(at, lanes[member]),
                xytext=(donor_at, lanes[donor]),
                arrowprops={"arrowstyle": "->", "color": colour("muted"), "lw": 0.8, "shrinkA": 0},
            )
        before: tuple[int, int] | None = None
        for segment in sweep.chain:
            lane = lanes[segment["member"]]
            ends = [segment["from_steps"], segment["to_steps"]]
            axes.plot(ends, [lane, lane], color=colour("policy"), linewidth=3.2, solid_capstyle="butt")
            if before is not None:
                axes.plot([before[0], ends[0]], [before[1], lane], color=colour("policy"), linewidth=1.6)
            before = (ends[1], lane)
        axes.set_yticks(list(lanes.values()), [f"member {m}" for m in lanes])
        axes.invert_yaxis()
        axes.grid(False)
        axes.set_xlabel("environment steps of the member")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        alt = f"{len(copies)} copies among {len(lanes)} members."
        chain = ", then ".join(f"member {s['member']}" for s in sweep.chain)
        caption = f"Arrows: who was copied by whom. Blue: what the winner stands on: {chain or 'no winner'}."
        return Drawing(svg(figure, "lineage", alt), alt, caption)


def coordinates(sweep: Sweep) -> Drawing | None:
    """Parallel coordinates: every stretch of life under unchanged values, and the score at its end."""
    stretches = list(_stretches(sweep))
    keys = [key for key in sweep.keys if any(key in values for _, values, _ in stretches)]
    if not stretches or not keys:
        return None
    scores = np.array([score for _, _, score in stretches])
    order = np.argsort(scores if not sweep.lower_is_better else -scores, kind="stable")  # the best on top
    columns = [_column(sweep, key, [values for _, values, _ in stretches]) for key in keys]
    columns.append(_column_of_scores(sweep, scores))
    with look():
        figure, (axes,) = canvas(3.6)
        for rank, i in enumerate(order):
            share = (rank + 1) / len(order)
            best = rank == len(order) - 1
            axes.plot(
                range(len(columns)),
                [places[i] for places, _, _ in columns],
                color=colour("policy") if share > 0.75 else colour("muted"),
                alpha=1.0 if best else 0.15 + 0.5 * share,
                linewidth=2.4 if best else 1.0,
            )
        for x, (_, low, high) in enumerate(columns):
            axes.axvline(x, color=colour("ink"), linewidth=0.8)
            for y, text, side in ((0.0, low, "top"), (1.0, high, "bottom")):
                gap = -0.03 if side == "top" else 0.03
                axes.text(x, y + gap, text, ha="center", va=side, fontsize=8)
        axes.set_xticks(range(len(columns)), [*keys, sweep.metric])
        axes.tick_params(axis="x", pad=16)
        axes.set_yticks([])
        axes.set_ylim(-0.05, 1.05)
        axes.grid(False)
        axes.spines[:].set_visible(False)
        alt = f"{len(stretches)} stretches of life under unchanged values, and the scores they ended with."
        caption = (
            "One line per stretch of a trial's life under unchanged values, to the score at its end. Blue: "
            "the best quarter; thick: the best. In a population a good score may be the donor's merit."
        )
        return Drawing(svg(figure, "coordinates", alt), alt, caption)


def seeds(sweep: Sweep) -> Drawing | None:
    """The last comparison, episode by episode."""
    final = sweep.summary.get("final")
    if not final or final.get("default") is None:
        return None
    names = list(final["episodes"])
    with look():
        figure, (axes,) = canvas(1.5)
        for row, name in enumerate(names):
            found = [v for v in final["episodes"][name] if v is not None]
            paint = colour("fixed" if name == "default" else "policy")
            axes.plot(found, [row] * len(found), "o", color=paint, alpha=0.5, markersize=4)
            axes.plot([float(np.mean(found))], [row], "D", color=paint, markersize=7)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlabel(sweep.metric)
        alt = f"{sweep.metric} of {' and '.join(names)} on {final['winner']['n']} held-out seeds."
        caption = "One point per held-out seed, the diamond is the mean. No score was made on these seeds."
        return Drawing(svg(figure, "seeds", alt), alt, caption)


# ---------------------------------------------------------------------------------------------------- reading


def _shown(sweep: Sweep) -> list[tuple[int, Sequence[Report]]]:
    return list(sweep.lives.items())[:MAX_ORDINARY]


def _within(report: Report, segment: Any) -> bool:
    return bool(segment["from_steps"] < report.env_steps <= segment["to_steps"])


def _scores(life: Sequence[Report]) -> tuple[list[int], list[float]]:
    return (
        [r.env_steps for r in life],
        [math.nan if r.score is None else r.score for r in life],
    )


def _steps(life: Sequence[Report], key: str) -> tuple[list[int], list[Any]]:
    """Where a value came into force, and which."""
    places, found = [0], [life[0].before.get(key)]
    for report in life:
        places.append(report.env_steps)
        found.append(report.after.get(key))
    return places, found


def _copies(sweep: Sweep) -> Iterator[tuple[int, int, int, int]]:
    """Yield (member, its steps, donor, the donor's steps) of every copy whose donor is known."""
    for member, life in sweep.lives.items():
        for report in life:
            if report.donor is not None and report.donor in sweep.lives and report.donor_report is not None:
                donor = sweep.lives[report.donor][report.donor_report - 1]
                yield member, report.env_steps, report.donor, donor.env_steps


def _score_at(sweep: Sweep, member: int, env_steps: int) -> float | None:
    return next((r.score for r in sweep.lives[member] if r.env_steps == env_steps), None)


def _stretches(sweep: Sweep) -> Iterator[tuple[int, dict[str, Any], float]]:
    """Yield (member, values, score at the end) of every stretch of life under unchanged values."""
    for member, life in sweep.lives.items():
        for place, report in enumerate(life):
            ends = place == len(life) - 1 or report.action != "go on"
            if ends and report.score is not None:
                yield member, dict(report.before), report.score


def _numbers(sweep: Sweep, key: str) -> bool:
    found = [r.before.get(key) for life in sweep.lives.values() for r in life]
    return bool(found) and all(isinstance(v, int | float) and not isinstance(v, bool) for v in found)


def _log(sweep: Sweep, key: str) -> bool:
    return bool(sweep.settings["search"][key].get("kind") == "log_uniform")


def _column(sweep: Sweep, key: str, found: Sequence[dict[str, Any]]) -> tuple[list[float], str, str]:
    """Return (height of every stretch in [0, 1], the lowest in words, the highest)."""
    dimension = sweep.settings["search"][key]
    if dimension["kind"] == "choice":
        choices = dimension["values"]
        top = max(1, len(choices) - 1)
        return [choices.index(v[key]) / top for v in found], str(choices[0]), str(choices[-1])
    low, high = float(dimension["low"]), float(dimension["high"])
    warp = math.log if dimension["kind"] == "log_uniform" else float
    span = warp(high) - warp(low)
    return [(warp(float(v[key])) - warp(low)) / span for v in found], f"{low:g}", f"{high:g}"


def _column_of_scores(sweep: Sweep, scores: Any) -> tuple[list[float], str, str]:
    low, high = float(scores.min()), float(scores.max())
    span = (high - low) or 1.0
    heights = [(float(s) - low) / span for s in scores]
    if sweep.lower_is_better:
        return [1.0 - h for h in heights], f"{high:.4g}", f"{low:.4g}"
    return heights, f"{low:.4g}", f"{high:.4g}"

