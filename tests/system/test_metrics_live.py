"""A real training, and what Prometheus would scrape meanwhile: every metric that the dashboard or an alert
names is there, with the labels they group by. Needs `ray[default]`: `make test-ops`.
"""

from __future__ import annotations

import json
import time
import urllib.request
from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path

import pytest

from seqrl_ray import api
from seqrl_ray.runtime import metrics
from seqrl_ray.runtime.metric_table import METRICS, RUN
from tests.system.runs import SMALL
from tests.unit.dashboards import labels_of, make_dashboard, metrics_of, panel_expressions, variable_metrics

pytestmark = [
    pytest.mark.system,
    pytest.mark.slow,
    pytest.mark.skipif(
        find_spec("opencensus") is None, reason="ray[default] is not installed: make test-ops"
    ),
]

WAIT_S = 60.0
"""Ray exports every 10 s."""
RUNS = {
    "colocated": ("replay.wiring=colocated", "actors.count=1"),
    "service": ("replay.wiring=service", "replay.shards=2", "actors.count=2", "learner.count=2"),
}


def scrape() -> dict[str, list[tuple[dict[str, str], float]]]:
    """Name -> (labels, value) of every series that this node serves now."""
    from prometheus_client.parser import text_string_to_metric_families

    text = urllib.request.urlopen(metrics.url(), timeout=10.0).read().decode()
    found = defaultdict(list)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name].append((sample.labels, sample.value))
    return found


@pytest.fixture(scope="module")
def trained(ray_here, tmp_path_factory):
    """(summaries of two small runs, one per wiring; a scrape that has everything, or the last one)."""
    root: Path = tmp_path_factory.mktemp("runs")
    summaries = {}
    for name, overrides in RUNS.items():
        own = (*SMALL, f"name={name}", "prometheus=on", "learner.report_every_s=0.5", *overrides)
        summaries[name] = api.train("classic/cartpole", own, run_dir=root / name, quiet=True).summary
    wanted = {metric.exported for metric in METRICS}
    until, began = time.monotonic() + WAIT_S, time.monotonic()
    found = scrape()
    while time.monotonic() < until and not wanted <= set(found):
        time.sleep(1.0)
        found.update({name: series for name, series in scrape().items()})
    print(f"all there after {time.monotonic() - began:.1f} s")
    return root, summaries, found


def test_every_expression_finds_its_metrics_and_labels(trained):
    _, _, found = trained
    dashboard = make_dashboard().dashboard()
    expressions = [*panel_expressions(dashboard), *(alert.expr for alert in make_dashboard().ALERTS)]
    named = set().union(*map(metrics_of, expressions), variable_metrics(dashboard))
    assert named and not named - set(found)
    for metric in METRICS:
        for labels, _ in found[metric.exported]:
            assert {*RUN, *metric.labels} <= set(labels), metric.name
    for expr in expressions:
        for name in metrics_of(expr):
            assert all(labels_of(expr) <= set(labels) for labels, _ in found[name]), expr


def test_the_table_has_nothing_that_is_not_exported(trained):
    _, _, found = trained
    assert not {metric.exported for metric in METRICS} - set(found)


@pytest.mark.parametrize("name", RUNS)
def test_counters_end_where_the_run_ended(trained, name):
    root, summaries, found = trained
    rows = [json.loads(line) for line in (root / name / "metrics.jsonl").read_text().splitlines()]
    last = [row for row in rows if row["kind"] == "report"][-1]
    for exported, field in (
        ("ray_seqrl_env_steps_total", "env_steps"),
        ("ray_seqrl_updates_total", "updates"),
        ("ray_seqrl_episodes_total", "episodes"),
    ):
        values = [value for labels, value in found[exported] if labels["run"] == name]
        assert values == [last[field]] == [summaries[name][field]], exported


def test_the_run_labels_are_names_and_seeds(trained):
    _, _, found = trained
    for metric in METRICS:
        assert {(labels["run"], labels["seed"]) for labels, _ in found[metric.exported]} <= {
            (name, "0") for name in RUNS
        }


def test_gauges_end_with_their_run(trained):
    """Ray forgets what is not said again: a dashboard shows no run that is over."""
    until = time.monotonic() + WAIT_S
    while time.monotonic() < until and scrape()["ray_seqrl_training"]:
        time.sleep(1.0)
    assert not scrape()["ray_seqrl_training"]
