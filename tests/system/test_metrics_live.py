"""A real training, and what Prometheus would scrape meanwhile: every metric that the dashboard or an alert
names is there, with the labels they group by. Needs `ray[default]`: `make test-ops`.
"""

from __future__ import annotations

import json
import time
import urllib.request
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

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


Scraped = dict[str, dict[tuple[tuple[str, str], ...], float]]
"""Name -> labels -> newest value."""


def scrape() -> Scraped:
    """Return every series that this node serves now."""
    from prometheus_client.parser import text_string_to_metric_families

    text = urllib.request.urlopen(metrics.url(), timeout=30.0).read().decode()
    found: Scraped = defaultdict(dict)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name][tuple(sorted(sample.labels.items()))] = sample.value
    return found


@pytest.fixture(scope="module")
def trained(ray_here, tmp_path_factory):
    """(folder of runs, summaries of two small ones, one per wiring, everything that was ever scraped).

    Scraped all the while, as Prometheus does: a gauge is gone soon after its run.
    """
    root: Path = tmp_path_factory.mktemp("runs")
    summaries: dict[str, Any] = {}

    def train() -> None:
        for name, overrides in RUNS.items():
            own = (*SMALL, f"name={name}", "prometheus=on", "learner.report_every_s=0.5", *overrides)
            summaries[name] = api.train("classic/cartpole", own, run_dir=root / name, quiet=True).summary

    found: Scraped = defaultdict(dict)
    wanted = {metric.exported for metric in METRICS}
    with ThreadPoolExecutor(1) as pool:
        runs, done_at = pool.submit(train), 0.0
        while not done_at or time.monotonic() < done_at + WAIT_S:
            if runs.done() and not done_at:
                done_at = time.monotonic()
            for name, series in scrape().items():
                found[name].update(series)
            if done_at and wanted <= set(found) and ended(found, summaries):
                break
            time.sleep(1.0)
        runs.result()
    print(f"all there {time.monotonic() - done_at:.1f} s after the end")
    return root, summaries, found


def ended(found: Scraped, summaries: dict[str, Any]) -> bool:
    """Whether the counters' last values have come."""
    updates = {dict(labels)["run"]: value for labels, value in found["ray_seqrl_updates_total"].items()}
    return updates == {name: summary["updates"] for name, summary in summaries.items()}


def test_every_expression_finds_its_metrics_and_labels(trained):
    _, _, found = trained
    dashboard = make_dashboard().dashboard()
    expressions = [*panel_expressions(dashboard), *(alert.expr for alert in make_dashboard().ALERTS)]
    named = set().union(*map(metrics_of, expressions), variable_metrics(dashboard))
    missing = named - set(found)
    assert named and not missing
    for metric in METRICS:
        for labels in map(dict, found[metric.exported]):
            assert {*RUN, *metric.labels} <= set(labels), metric.name
    for expr in expressions:
        for name in metrics_of(expr):
            assert all(labels_of(expr) <= set(dict(labels)) for labels in found[name]), expr


def test_the_table_has_nothing_that_is_not_exported(trained):
    _, _, found = trained
    missing = {metric.exported for metric in METRICS} - set(found)
    assert not missing


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
        values = [value for labels, value in found[exported].items() if ("run", name) in labels]
        assert values == [last[field]] == [summaries[name][field]], exported


def test_the_run_labels_are_names_and_seeds(trained):
    _, _, found = trained
    for metric in METRICS:
        labels = map(dict, found[metric.exported])
        assert {(each["run"], each["seed"]) for each in labels} <= {(name, "0") for name in RUNS}


def test_gauges_end_with_their_run(trained):
    """Ray forgets what is not said again: a dashboard shows no run that is over."""
    until = time.monotonic() + WAIT_S
    while time.monotonic() < until and scrape()["ray_seqrl_training"]:
        time.sleep(1.0)
    assert not scrape()["ray_seqrl_training"]
