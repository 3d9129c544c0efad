"""What the dashboard and the alerts say, read with a parser of PromQL: for the tests of both."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import promql_parser

ROOT = Path(__file__).parents[2]
VARIABLES = {"$__rate_interval": "40s", "$run": ".*", "$seed": ".*", "$metric": ".*"}
"""What Grafana would put in."""


def make_dashboard() -> ModuleType:
    """Import docs/make_dashboard.py."""
    spec = importlib.util.spec_from_file_location("make_dashboard", ROOT / "docs" / "make_dashboard.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_dashboard"] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


def parsed(expr: str) -> Any:
    """Return the syntax tree of an expression, of a panel or of an alert; raises where it is not PromQL."""
    for name, value in VARIABLES.items():
        expr = expr.replace(name, value)
    assert "$" not in expr, expr
    return promql_parser.parse(expr)


def nodes(expr: str) -> list[Any]:
    found: list[Any] = []
    promql_parser.walk(parsed(expr), found.append)
    return found


def metrics_of(expr: str) -> set[str]:
    """Names of the metrics that an expression reads."""
    return {str(node.name) for node in nodes(expr) if type(node).__name__ == "VectorSelector"}


def labels_of(expr: str) -> set[str]:
    """Labels that an expression chooses, groups or joins by."""
    found: set[str] = set()
    for node in nodes(expr):
        kind = type(node).__name__
        if kind == "VectorSelector":
            found |= {matcher.name for matcher in node.matchers.matchers}
        elif kind == "AggregateExpr":
            found |= set(node.modifier.labels)
        elif kind == "BinaryExpr" and node.modifier is not None and node.modifier.matching is not None:
            found |= set(node.modifier.matching.labels)
    return found


def panel_expressions(dashboard: dict[str, Any]) -> list[str]:
    return [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]


def variable_metrics(dashboard: dict[str, Any]) -> set[str]:
    """Metrics that the dashboard's variables ask for: `label_values(metric{...}, label)`."""
    found: set[str] = set()
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            selector, _, _ = variable["query"]["query"].removeprefix("label_values(").rpartition(",")
            found |= metrics_of(selector)
    return found
