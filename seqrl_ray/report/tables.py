"""The rows of the tables, as text: the page and the terminal show the same ones."""

from __future__ import annotations

from dataclasses import dataclass

from seqrl_ray.report.run_folder import POLICY, RunFolder, number_or_none
from seqrl_ray.report.wording import duration, judged, metric_of, number, ratio, span, total, verdict


@dataclass(frozen=True)
class ControllerRow:
    """One controller in the judging metric. Texts; an en dash stands for what is unknown."""

    name: str
    mean: str
    ci95: str
    median: str
    p95: str
    n: str
    gridlocked: str
    safety_violations: str
    to_fixed: str
    """Mean over that of `fixed`."""
    difference: str
    """Policy minus this controller on the same seeds; empty for the policy itself."""
    difference_ci95: str
    verdict: str


def controller_rows(run: RunFolder) -> list[ControllerRow]:
    """A row per controller, the policy first and its best evaluation in between behind it."""
    rows = [_controller_row(run, name) for name in run.stats if run.metric in run.stats[name]]
    if run.metric in run.best:
        rows.insert(1 if rows and rows[0].name == POLICY else 0, _best_row(run))
    return rows


def other_metrics(run: RunFolder) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of the table of all other metrics: a row per metric, the mean per controller."""
    names = list(run.stats)
    own = (run.metric, "gridlocked", "safety_violations", "steps")  # shown elsewhere, or the bare length
    metrics = list(dict.fromkeys(m for name in names for m in run.stats[name] if m not in own))
    rows = [
        [
            metric_of(metric).title,
            *(number(s.mean) if (s := run.stats[n].get(metric)) else "\u2013" for n in names),
        ]
        for metric in metrics
    ]
    return ["mean of", *names], rows


def failure_rows(run: RunFolder) -> list[list[str]]:
    """A row per failure: what, at, recovered after, steps lost, updates lost."""
    return [
        [
            str(row.get("what", "?")),
            duration(number_or_none(row.get("at_s"))),
            duration(number_or_none(row.get("recover_s"))),
            number(number_or_none(row.get("lost_steps"))),
            number(number_or_none(row.get("lost_updates"))),
        ]
        for row in run.failures
    ]


BEST = "best in between*"
"""Name of the row that is no headline; `wording.best_note` is the footnote."""
FAILURE_HEADS = ("what died", "at", "recovered after", "steps lost", "updates lost")


def _best_row(run: RunFolder) -> ControllerRow:
    stat = run.best[run.metric]
    return ControllerRow(
        name=BEST,
        mean=number(stat.mean),
        ci95=span(stat.ci95),
        median=number(stat.median),
        p95=number(stat.p95),
        n=str(stat.n),
        gridlocked=number(total(run.best.get("gridlocked"))),
        safety_violations=number(total(run.best.get("safety_violations"))),
        to_fixed="\u2013",
        difference="",
        difference_ci95="",
        verdict="",
    )


def _controller_row(run: RunFolder, name: str) -> ControllerRow:
    stat = run.stats[name][run.metric]
    difference = run.paired.get(name, {}).get(run.metric)
    return ControllerRow(
        name=name,
        mean=number(stat.mean),
        ci95=span(stat.ci95),
        median=number(stat.median),
        p95=number(stat.p95),
        n=str(stat.n),
        gridlocked=number(total(run.stats[name].get("gridlocked"))),
        safety_violations=number(total(run.stats[name].get("safety_violations"))),
        to_fixed=number(ratio(run, name, "fixed")),
        difference="" if name == POLICY else number(difference.mean, sign=True) if difference else "\u2013",
        difference_ci95="" if name == POLICY or difference is None else span(difference.ci95, sign=True),
        verdict="" if name == POLICY else verdict(difference, judged(run)),
    )
