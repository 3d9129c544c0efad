"""When an alert fires on given series: the few forms of PromQL that our rules use, worked out here, because
promtool is not everywhere that tests run. Any other form is refused, never guessed.

Known are: selectors with matchers, `rate` and `increase` of counters, `sum by` and `max by`, `+ - * /`,
comparisons that filter, `and` and `unless`, with or without `on`. What they mean is taken from Prometheus:
https://prometheus.io/docs/prometheus/latest/querying/operators/, and `extrapolatedRate` in its
promql/functions.go. Series are in promtool's notation.
"""

from __future__ import annotations

import itertools
import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import promql_parser

LOOKBACK_S = 300.0
"""How old a sample may be that stands for now."""

Labels = frozenset[tuple[str, str]]
Vector = dict[Labels, float]

ARITHMETIC: dict[str, Callable[[float, float], float]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": lambda a, b: a / b if b else math.nan,
}
COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    "<": operator.lt,
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
}
MATCHES: dict[str, Callable[[str, str], bool]] = {
    "MatchOp.Equal": lambda value, wanted: value == wanted,
    "MatchOp.NotEqual": lambda value, wanted: value != wanted,
    "MatchOp.Re": lambda value, wanted: re.fullmatch(wanted, value) is not None,
    "MatchOp.NotRe": lambda value, wanted: re.fullmatch(wanted, value) is None,
}


@dataclass(frozen=True)
class Series:
    """One series: its name, its labels, and (seconds, value) of each sample."""

    name: str
    labels: Labels
    samples: tuple[tuple[float, float], ...]

    @classmethod
    def read(cls, series: str, values: str, interval: str) -> Series:
        """Read promtool's notation: `name{label="value"}`; `1`, `1x3` (four samples), `1+2x3`, `_`, `_x3`."""
        selector = promql_parser.parse(series)
        labels = frozenset((m.name, m.value) for m in selector.matchers.matchers)
        every_s, at = seconds(interval), 0
        samples: list[tuple[float, float]] = []
        for word in values.split():
            if found := re.fullmatch(r"_(?:x(\d+))?", word):
                at += int(found[1] or 1)
                continue
            found = re.fullmatch(r"(-?[\d.]+)(?:([+-][\d.]+)?x(\d+))?", word)
            assert found is not None, f"{word!r} is not known here"
            for i in range(int(found[3] or 0) + 1):
                samples.append((at * every_s, float(found[1]) + i * float(found[2] or 0)))
                at += 1
        return cls(selector.name, labels, tuple(samples))


def seconds(text: str) -> float:
    """Return the seconds of one number and unit: `90s`, `10m`, `1h`."""
    return float(text[:-1]) * {"s": 1.0, "m": 60.0, "h": 3600.0}[text[-1]]


def fires(tree: Any, hold: str, series: Sequence[Series], at: str, every: str) -> list[dict[str, str]]:
    """Return the labels of what fires at a time.

    Args:
        tree: of the rule's expression.
        hold: the rule's `for`.
        series: all there are.
        at: when.
        every: how often the rule is evaluated, from 0 on.
    """
    since: dict[Labels, float] = {}
    now, until, step = 0.0, seconds(at), seconds(every)
    while now <= until:
        found = evaluate(tree, series, now)
        assert isinstance(found, dict), "an alert needs a vector"
        since = {labels: since.get(labels, now) for labels in found}
        now += step
    return [dict(labels) for labels, began in since.items() if now - step - began >= seconds(hold)]


def evaluate(node: Any, series: Sequence[Series], now: float) -> Vector | float:
    """Return what an expression is at a time: labels -> value, or a number."""
    kind = type(node).__name__
    if kind == "NumberLiteral":
        return float(node.val)
    if kind == "ParenExpr":
        return evaluate(node.expr, series, now)
    if kind == "VectorSelector":
        return {
            one.labels: recent[-1][1]
            for one in chosen(node, series)
            if (recent := within(one, now, LOOKBACK_S))
        }
    if kind == "Call":
        return called(node, series, now)
    if kind == "AggregateExpr":
        return aggregated(node, series, now)
    if kind == "BinaryExpr":
        return joined(node, series, now)
    raise NotImplementedError(kind)


def chosen(selector: Any, series: Sequence[Series]) -> list[Series]:
    """Return the series that a selector means."""
    if selector.offset is not None or selector.at is not None or selector.matchers.or_matchers:
        raise NotImplementedError(selector.prettify())
    wanted = [(m.name, MATCHES[str(m.op)], m.value) for m in selector.matchers.matchers]
    return [
        one
        for one in series
        if one.name == selector.name
        and all(test(dict(one.labels).get(label, ""), value) for label, test, value in wanted)
    ]


def within(one: Series, now: float, range_s: float) -> list[tuple[float, float]]:
    """Return the samples of the last `range_s` seconds; one that is exactly as old is out."""
    return [(t, value) for t, value in one.samples if now - range_s < t <= now]


def called(node: Any, series: Sequence[Series], now: float) -> Vector:
    """Return `rate` or `increase` of each series that has two samples in the range."""
    if node.func.name not in {"rate", "increase"}:
        raise NotImplementedError(node.func.name)
    (matrix,) = node.args
    range_s = matrix.range.total_seconds()
    found: Vector = {}
    for one in chosen(matrix.vector_selector, series):
        samples = within(one, now, range_s)
        if len(samples) >= 2:
            grown = increase(samples, now, range_s)
            found[one.labels] = grown / range_s if node.func.name == "rate" else grown
    return found


def increase(samples: Sequence[tuple[float, float]], now: float, range_s: float) -> float:
    """Return by how much a counter grew in the range, extrapolated to its edges as Prometheus does it: over a
    whole gap where that is about as long as the gaps between samples, else over half of one; never below 0.
    """
    (first_s, first), (last_s, _) = samples[0], samples[-1]
    pairs = itertools.pairwise(value for _, value in samples)
    grown = sum(b - a if b >= a else b for a, b in pairs)  # one that falls has begun again
    sampled_s = last_s - first_s
    gap_s = sampled_s / (len(samples) - 1)
    before_s, after_s = first_s - (now - range_s), now - last_s
    before_s = before_s if before_s < 1.1 * gap_s else gap_s / 2
    after_s = after_s if after_s < 1.1 * gap_s else gap_s / 2
    if grown > 0 and first >= 0:
        before_s = min(before_s, sampled_s * first / grown)
    return grown * (sampled_s + before_s + after_s) / sampled_s


def aggregated(node: Any, series: Sequence[Series], now: float) -> Vector:
    """Return `sum by (...)` or `max by (...)`."""
    by, fold = node.modifier, {"sum": math.fsum, "max": max}.get(str(node.op))
    if fold is None or by is None or by.type != promql_parser.AggModifierType.By:
        raise NotImplementedError(node.prettify())
    inner = evaluate(node.expr, series, now)
    assert isinstance(inner, dict)
    groups: dict[Labels, list[float]] = {}
    for labels, value in inner.items():
        groups.setdefault(only(labels, by.labels), []).append(value)
    return {labels: fold(values) for labels, values in groups.items()}


def only(labels: Labels, names: Sequence[str] | None) -> Labels:
    """Return the named labels; None = all."""
    return labels if names is None else frozenset(pair for pair in labels if pair[0] in names)


def joined(node: Any, series: Sequence[Series], now: float) -> Vector | float:
    """Return an operator of two sides; vectors are matched one to one, except by `and` and `unless`."""
    op, modifier, on = str(node.op), node.modifier, None
    if modifier is not None:
        one_to_one = modifier.card == promql_parser.VectorMatchCardinality.OneToOne
        if modifier.return_bool or not (one_to_one or op in {"and", "unless"}):
            raise NotImplementedError(node.prettify())
        if modifier.matching is not None:
            if modifier.matching.type != promql_parser.LabelModifierType.Include:
                raise NotImplementedError(node.prettify())
            on = modifier.matching.labels
    left, right = evaluate(node.lhs, series, now), evaluate(node.rhs, series, now)
    if op in {"and", "unless"}:
        assert isinstance(left, dict) and isinstance(right, dict)
        there = {only(labels, on) for labels in right}
        return {k: value for k, value in left.items() if (only(k, on) in there) == (op == "and")}
    if op not in ARITHMETIC and op not in COMPARISONS:
        raise NotImplementedError(op)
    if isinstance(left, float) and isinstance(right, float):
        if op in COMPARISONS:
            raise NotImplementedError(node.prettify())
        return ARITHMETIC[op](left, right)
    if isinstance(right, float):
        assert isinstance(left, dict)
        pairs = {k: (value, right, value) for k, value in left.items()}
    elif isinstance(left, float):
        pairs = {k: (left, value, value) for k, value in right.items()}
    else:
        ours, theirs = ({only(k, on): value for k, value in side.items()} for side in (left, right))
        assert len(ours) == len(left) and len(theirs) == len(right), f"many to many: {node.prettify()}"
        pairs = {k: (value, theirs[k], value) for k, value in ours.items() if k in theirs}
    if op in COMPARISONS:
        return {k: kept for k, (a, b, kept) in pairs.items() if COMPARISONS[op](a, b)}
    return {k: ARITHMETIC[op](a, b) for k, (a, b, _) in pairs.items()}
