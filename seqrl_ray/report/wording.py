"""What a report says: names and units of metrics, numbers as text, sentences that never claim too much.

A controller is called better or worse only where the 95 % interval of the paired difference excludes 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from seqrl_ray.report.run_folder import (
    POLICY,
    PRETRAINED,
    Difference,
    RunFolder,
    Stat,
    number_or_none,
)

MINUS, NARROW = "\u2212", "\u202f"
"""A real minus sign; a thin space that does not break."""
UNCLEAR = "unclear"


@dataclass(frozen=True)
class Metric:
    """How a metric is called."""

    label: str
    unit: str
    better: int
    """-1: lower is better, +1: higher is better, 0: neither is said."""

    @property
    def title(self) -> str:
        """Label with its unit, capitalised, for axes and heads."""
        text = self.label[:1].upper() + self.label[1:]
        return f"{text} ({self.unit})" if self.unit else text


METRICS: Mapping[str, Metric] = {
    "return": Metric("return", "", 1),
    "delay_s": Metric("delay", "s", -1),
    "travel_time_s": Metric("travel time", "s", -1),
    "waiting_s": Metric("waiting", "s", -1),
    "stops": Metric("stops per vehicle", "", -1),
    "queue_vehicles": Metric("queue", "vehicles", -1),
    "throughput_vehicles": Metric("throughput", "vehicles", 1),
    "teleports": Metric("teleports", "", -1),
    "gridlocked": Metric("gridlocked share", "", -1),
    "safety_violations": Metric("safety violations", "", -1),
}
UNITS = ("s", "steps", "vehicles", "frames", "m", "kg")
"""Units that an unknown metric's name may end in."""


def metric_of(name: str) -> Metric:
    """The metric called `name`; an unknown one is named after itself and nothing is called better in it."""
    if name in METRICS:
        return METRICS[name]
    stem, _, unit = name.rpartition("_")
    label, unit = (stem, unit) if stem and unit in UNITS else (name, "")
    return Metric(label.replace("_", " "), unit, 0)


def judged(run: RunFolder) -> Metric:
    """The metric the run is judged by, with the direction its recipe gives."""
    metric = metric_of(run.metric)
    return Metric(metric.label, metric.unit, -1 if run.lower_is_better else 1)


def number(value: float | None, digits: int = 3, sign: bool = False) -> str:
    """`value` with `digits` significant digits, but all of its whole ones; an en dash for None."""
    if value is None or not math.isfinite(value):
        return "\u2013"
    if value == 0:
        return "0"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    text = f"{abs(value):,.{min(places, 6)}f}"
    if text.strip("0.,") == "":
        text = f"{abs(value):.{digits - 1}e}"
    if float(value).is_integer() and "." in text:
        text = text.rstrip("0").rstrip(".")
    return (MINUS if value < 0 else "+" if sign else "") + text


def span(interval: tuple[float, float] | None, sign: bool = False) -> str:
    """An interval as "low to high", with enough digits that its ends differ."""
    if interval is None:
        return "\u2013"
    for digits in (3, 4, 5, 6):
        low, high = (number(value, digits, sign) for value in interval)
        if low != high:
            break
    return f"{low} to {high}"


def with_unit(value: float | None, metric: Metric, sign: bool = False) -> str:
    """A value and its unit."""
    text = number(value, sign=sign)
    return f"{text}{NARROW}{metric.unit}" if metric.unit and value is not None else text


def duration(seconds: float | None) -> str:
    """Seconds as a person says them."""
    if seconds is None:
        return "\u2013"
    if seconds < 120:
        return f"{number(seconds)}{NARROW}s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes}{NARROW}min"
    return f"{minutes // 60}{NARROW}h {minutes % 60:02d}{NARROW}min"


def verdict(difference: Difference | None, metric: Metric) -> str:
    """One word on policy minus controller: only an interval that excludes 0 is called a difference."""
    if difference is None:
        return ""
    if difference.ci95 is None or difference.ci95[0] <= 0.0 <= difference.ci95[1]:
        return UNCLEAR
    return "better" if (difference.mean > 0) == (metric.better > 0) else "worse"


def best_rule(run: RunFolder) -> str | None:
    """The baseline with the best mean of the judging metric (neither random play nor the policy's own
    past is a rule), or None.
    """
    better = judged(run).better
    means = {
        n: m for n in run.baselines if n not in ("random", PRETRAINED) and (m := run.mean(n)) is not None
    }
    return max(means, key=lambda name: better * means[name]) if means else None


def ratio(run: RunFolder, controller: str, to: str) -> float | None:
    """Mean of the judging metric of `controller` over that of `to`; None where that says nothing."""
    if not run.lower_is_better:  # a ratio needs a true zero
        return None
    above, below = run.mean(controller), run.mean(to)
    return above / below if above is not None and below is not None and below > 0 else None


def total(stat: Stat | None) -> float | None:
    """The sum over episodes behind a mean (of flags: how many)."""
    return round(stat.mean * stat.n, 6) if stat is not None and stat.mean is not None else None


def headline(run: RunFolder) -> str:
    """The sentence a reader takes away."""
    metric = judged(run)
    stat = run.stats.get(POLICY, {}).get(run.metric)
    if stat is None or stat.mean is None:
        return f"No evaluation of the final policy: nothing is known about its {metric.label}."
    parts = [f"{metric.label.capitalize()} {with_unit(stat.mean, metric)}{_ratios(run)}"]
    parts.append(f"{stat.n} held-out seed{'s' if stat.n != 1 else ''}")
    gridlocked = total(run.stats[POLICY].get("gridlocked"))
    if gridlocked is not None:
        parts.append(f"{number(gridlocked)} gridlocked")
    violations = total(run.stats[POLICY].get("safety_violations"))
    if violations is not None:
        parts.append(f"{number(violations)} safety violation{'s' if violations != 1 else ''}")
    return "; ".join(parts) + "."


def comparisons(run: RunFolder) -> list[str]:
    """A sentence per comparison that matters: with the best rule, the fixed plan, or random play; with what
    the policy was before it acted.
    """
    metric = judged(run)
    chosen = [name for name in (best_rule(run), "fixed") if name is not None and name in run.baselines]
    if not chosen and "random" in run.baselines:
        chosen = ["random"]
    chosen += [PRETRAINED] if PRETRAINED in run.baselines else []
    sentences = []
    for name in dict.fromkeys(chosen):
        difference = run.paired.get(name, {}).get(run.metric)
        if difference is None:
            sentences.append(f"Against {name}: no paired comparison on the same seeds.")
            continue
        value = with_unit(difference.mean, metric, sign=True)
        word = verdict(difference, metric)
        if difference.ci95 is None:
            sentences.append(
                f"Against {name}, on {difference.n} common seed: {value}; one pair allows no claim."
            )
            continue
        claim = "the interval includes 0, no difference is shown." if word == UNCLEAR else f"{word}."
        interval = span(difference.ci95, sign=True)
        seeds = f"paired on {difference.n} seeds"
        sentences.append(f"Against {name}, {seeds}: {value} (95{NARROW}% interval {interval}): {claim}")
    return sentences


def best_note(run: RunFolder) -> str:
    """What the row of the best evaluation in between is, and is not; empty where there is none."""
    if run.metric not in run.best:
        return ""
    found = run.summary["best"]
    after = f"{whole(found['updates'])} updates and {whole(found['env_steps'])} environment steps"
    return (
        f"* Not the headline: the best of {found['of']} evaluations in between (after {after}), chosen by "
        "its own result on seeds of its own, which flatters it. The headline is the last policy."
    )


def warnings(run: RunFolder) -> list[str]:
    """What a reader must know before trusting the page."""
    found = list(run.notes)
    status = run.summary.get("status")
    if not run.summary:
        found.append("summary.json is missing: the run did not end in order, final figures are unknown.")
    elif status != "completed":
        found.append(f"The run's status is \u201c{status}\u201d: figures are of a run that did not finish.")
    for name in run.stats:
        gridlocked, violations = (total(run.stats[name].get(m)) for m in ("gridlocked", "safety_violations"))
        if gridlocked and name != "random":
            count = run.stats[name]["gridlocked"].n
            found.append(
                f"{name}: {number(gridlocked)} of {count} episodes gridlocked: compare medians, not means."
            )
        if violations and name == POLICY:
            found.append(f"{name}: {number(violations)} safety violations; it must not drive a real signal.")
    return found


def facts(run: RunFolder) -> list[tuple[str, str]]:
    """Name and value of what identifies and measures the run; what is unknown is left out."""
    summary, recipe = run.summary, run.recipe
    env, algorithm = recipe.get("env", {}), recipe.get("algorithm", {})
    place = next((str(env[k]) for k in ("map", "net", "game", "id") if env.get(k)), None)
    versions = summary.get("versions") or {}
    lag = summary.get("policy_lag") or {}
    lag_text = f"{number(lag.get('p50'))} / {number(lag.get('p95'))} updates" if lag else None
    restarts = summary.get("restarts")
    known = [
        ("recipe", recipe.get("name")),
        ("environment", " ".join(str(v) for v in (env.get("kind"), place) if v) or None),
        ("algorithm", algorithm.get("name")),
        ("seed", recipe.get("seed")),
        ("status", summary.get("status")),
        (
            "version",
            " ".join(str(versions[k]) for k in ("seqrl_ray", "seqrl-ray", "commit") if k in versions),
        ),
        ("wall time", _known(summary, "wall_s", duration)),
        ("environment steps", _known(summary, "env_steps", whole)),
        ("agent steps", _known(summary, "agent_steps", whole)),
        ("updates", _known(summary, "updates", whole)),
        ("episodes", _known(summary, "episodes", whole)),
        ("environment steps per s", _known(summary, "env_steps_per_s", number)),
        ("updates per s", _known(summary, "updates_per_s", number)),
        ("samples per insert", _known(summary, "samples_per_insert", number)),
        ("policy lag, median / p95", lag_text),
        ("restarts", ", ".join(f"{k} {v}" for k, v in restarts.items()) if restarts else None),
    ]
    return [(name, str(value)) for name, value in known if value not in (None, "")]


def whole(value: float) -> str:
    """A count with thousands apart."""
    return f"{round(value):,}"


def _known(table: Mapping[str, Any], name: str, text: Any) -> str | None:
    value = number_or_none(table.get(name))
    return None if value is None else str(text(value))


def _times(value: float) -> str:
    """A ratio to a hundredth: 0.38, 1.03."""
    return number(value, 3 if value >= 1 else 2)


def _ratios(run: RunFolder) -> str:
    """' = 0.38 x fixed, ...', as far as known; only where lower is better, since 0 is the ideal there."""
    if not run.lower_is_better:
        return f" (random {number(random)})" if (random := run.mean("random")) is not None else ""
    best, fixed = best_rule(run), ratio(run, POLICY, "fixed")
    texts = [f"{_times(fixed)} \u00d7 fixed"] if fixed is not None else []
    if best is not None and best != "fixed" and (value := ratio(run, POLICY, best)) is not None:
        texts.append(f"{_times(value)} \u00d7 the best rule ({best})")
    elif best == "fixed" and texts and len(run.baselines) > 1:
        texts[0] += " (the best rule)"
    return " = " + ", ".join(texts) if texts else " (no baseline to compare with)"
