"""Figure of return conditioning: what the policy earns against what it is asked for.

Source of the figure: Chen et al. (2021), arXiv:2106.01345, figure 4.
"""

from __future__ import annotations

from seqrl_ray.report.run_folder import POLICY, RunFolder, Stat, number_or_none
from seqrl_ray.report.style import Drawing, canvas, colour, look, svg
from seqrl_ray.report.wording import NARROW, number, span

HEIGHT_IN = 4.2
EARNED = "return"


def conditioning(run: RunFolder) -> Drawing | None:
    """Mean return at each target with its 95 % interval, the line of equals, and the data's range."""
    points = [(target, table[EARNED]) for target, table in sorted(run.targets.items()) if EARNED in table]
    points = [(target, stat) for target, stat in points if stat.mean is not None]
    means = [stat.mean for _, stat in points if stat.mean is not None]
    if not points:
        return None
    places = [target for target, _ in points]
    own = _own(run)
    reach = [*places, *([own[0]] if own else [])]
    room = 0.04 * (max(reach) - min(reach)) or max(0.1 * abs(max(reach)), 1.0)
    low, high = min(reach) - room, max(reach) + room
    with look():
        figure, (axes,) = canvas(HEIGHT_IN)
        if run.data_returns is not None:
            axes.axvspan(
                max(low, run.data_returns[0]),
                min(high, run.data_returns[1]),
                color=colour("grid"),
                alpha=0.6,
                linewidth=0,
                label="returns in the data",
                zorder=0,
            )
        axes.plot(
            [low, high],
            [low, high],
            color=colour("muted"),
            linewidth=1.1,
            linestyle=(0, (5, 2)),
            label="as asked",
        )
        ends = [stat.ci95 for _, stat in points]
        axes.vlines(
            [at for at, interval in zip(places, ends, strict=True) if interval],
            [interval[0] for interval in ends if interval],
            [interval[1] for interval in ends if interval],
            color=colour(POLICY),
            linewidth=1.6,
        )
        axes.plot(
            places,
            means,
            "o-",
            color=colour(POLICY),
            markersize=5,
            label="policy: mean and 95 % interval",
        )
        if own is not None:
            axes.plot(*own, "D", color=colour("ink"), markersize=6, label="the headline's target", zorder=5)
        axes.set_xlim(low, high)
        axes.set_xlabel("target: return asked for")
        axes.set_ylabel("return earned")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=4, borderaxespad=0.2)
        alt = "Return earned at each target return. " + " ".join(
            f"Asked for {number(at)}: {number(stat.mean)} (95{NARROW}% interval {span(stat.ci95)})."
            for at, stat in points
        )
        caption = (
            f"Every target is played on the same {points[0][1].n} held-out seeds. On the dashed line the "
            "policy would earn what it is asked for. None of these is the headline: its target was fixed "
            "before."
        )
        if run.data_returns is not None:
            caption += f" The data's episodes earned {span(run.data_returns)}."
        return Drawing(svg(figure, "conditioning", alt), alt, caption)


def _own(run: RunFolder) -> tuple[float, float] | None:
    """(target, mean return) of the headline's evaluation, where the recipe names its target."""
    target = number_or_none(run.recipe.get("algorithm", {}).get("target_return"))
    stat: Stat | None = run.stats.get(POLICY, {}).get(EARNED)
    return None if target is None or stat is None or stat.mean is None else (target, stat.mean)
