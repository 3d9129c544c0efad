"""The Grafana dashboard, the alert rules and docs/metrics.md: committed as they are made, and sound."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from seqrl_ray.runtime.metric_table import METRICS, RUN
from tests.unit.dashboards import (
    ROOT,
    labels_of,
    make_dashboard,
    metrics_of,
    nodes,
    panel_expressions,
    parsed,
    variable_metrics,
)

MAKE = make_dashboard()
DASHBOARD = json.loads(MAKE.DASHBOARD.read_text(encoding="utf-8"))
RULES = yaml.safe_load(MAKE.RULES.read_text(encoding="utf-8"))["groups"][0]["rules"]
EXPRESSIONS = [*panel_expressions(DASHBOARD), *(rule["expr"] for rule in RULES)]
BY_EXPORTED = {metric.exported: metric for metric in METRICS}


@pytest.mark.parametrize("path", MAKE.files(), ids=lambda path: path.name)
def test_the_committed_files_are_those_the_table_makes(path):
    made = MAKE.files()[path]
    assert path.read_text(encoding="utf-8") == made, "run: PYTHONPATH=. python docs/make_dashboard.py"


@pytest.mark.parametrize("expr", EXPRESSIONS)
def test_every_expression_is_promql_on_known_metrics_and_labels(expr):
    names = metrics_of(expr)
    assert names and names <= set(BY_EXPORTED)
    known = set(RUN).union(*(BY_EXPORTED[name].labels for name in names))
    assert labels_of(expr) <= known
    for call in (node for node in nodes(expr) if type(node).__name__ == "Call"):
        assert call.func.name in {"rate", "increase"}
        assert all(BY_EXPORTED[name].kind == "counter" for name in metrics_of(call.args[0].prettify()))


def test_the_parser_refuses_what_is_not_promql():
    for wrong in ("sum by run (x)", "rate(x)", "x{run=~$run}", "max(x) =! 1"):
        with pytest.raises((ValueError, AssertionError)):
            parsed(wrong)


def test_every_metric_has_one_panel():
    shown = [name for expr in panel_expressions(DASHBOARD) for name in metrics_of(expr)]
    assert sorted(shown) == sorted(BY_EXPORTED)
    titles = [panel.title for panels in MAKE.SECTIONS.values() for panel in panels]
    assert sorted(set(titles)) == sorted(titles)
    assert {metric.panel for metric in METRICS} == set(titles)
    assert variable_metrics(DASHBOARD) <= set(BY_EXPORTED)


def test_the_dashboard_can_be_imported_anywhere():
    assert DASHBOARD["schemaVersion"] == 39
    assert "id" not in DASHBOARD, "an instance gives its own"
    names = [variable["name"] for variable in DASHBOARD["templating"]["list"]]
    assert names == ["datasource", "run", "seed", "metric"]
    for holder in (*DASHBOARD["panels"], *DASHBOARD["templating"]["list"]):
        for one in (holder, *holder.get("targets", ())):
            if "datasource" in one:
                assert one["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    for panel in DASHBOARD["panels"]:
        assert panel["type"] == "row" or panel["datasource"]
        used = re.findall(r"\$\{?(\w+)", json.dumps(panel))
        assert set(used) <= {*names, "__rate_interval"}
        references = [target["refId"] for target in panel.get("targets", ())]
        assert len(set(references)) == len(references)


def test_panels_do_not_overlap():
    numbers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(numbers)) == len(numbers)
    taken: dict[tuple[int, int], str] = {}
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        assert at["x"] >= 0 and at["x"] + at["w"] <= MAKE.COLUMNS
        for cell in (
            (x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])
        ):
            assert cell not in taken, f"{panel['title']} lies on {taken.get(cell)}"
            taken[cell] = panel["title"]


def test_alerts_say_whom_they_mean():
    assert len({rule["alert"] for rule in RULES}) == len(RULES)
    for rule in RULES:
        top = nodes(rule["expr"])
        groups = [set(n.modifier.labels) for n in top if type(n).__name__ == "AggregateExpr"]
        assert groups and all(set(RUN) <= group for group in groups), rule["alert"]
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}
        assert "{{ $labels.run }}" in rule["annotations"]["summary"]
        assert rule["annotations"]["description"].endswith(".")


# ------------------------------------------------------------------------------ with promtool, where it is

CASES = """\
rule_files: [alerts.yaml]
evaluation_interval: 5s
tests:
  - name: a learner that stops
    interval: 5s
    input_series:
      - series: ray_seqrl_training{run="a", seed="0", WorkerId="w"}
        values: 1x60
      - series: ray_seqrl_updates_total{run="a", seed="0", WorkerId="w"}
        values: 0+10x12 120x48
    alert_rule_test:
      - {eval_time: 60s, alertname: SeqrlNoLearnerStep}
      - {eval_time: 115s, alertname: SeqrlNoLearnerStep}
      - eval_time: 150s
        alertname: SeqrlNoLearnerStep
        exp_alerts: [{exp_labels: {run: a, seed: "0", severity: critical}, exp_annotations: *ANY*}]
  - name: a run that has ended, and one that has not begun to learn
    interval: 5s
    input_series:
      - series: ray_seqrl_training{run="a", seed="0"}
        values: 1x12 0x48
      - series: ray_seqrl_updates_total{run="a", seed="0"}
        values: 0+10x12 120x48
      - series: ray_seqrl_training{run="b", seed="0"}
        values: 1x60
      - series: ray_seqrl_updates_total{run="b", seed="0"}
        values: 0x60
    alert_rule_test:
      - {eval_time: 250s, alertname: SeqrlNoLearnerStep}
  - name: a resumed run counts on in a series of its own
    interval: 5s
    input_series:
      - series: ray_seqrl_training{run="a", seed="0", WorkerId="new"}
        values: 1x60
      - series: ray_seqrl_updates_total{run="a", seed="0", WorkerId="old"}
        values: 500x60
      - series: ray_seqrl_updates_total{run="a", seed="0", WorkerId="new"}
        values: 500+5x60
    alert_rule_test:
      - {eval_time: 250s, alertname: SeqrlNoLearnerStep}
  - name: deaths
    interval: 10s
    input_series:
      - series: ray_seqrl_restarts_total{run="a", seed="0", kind="actor"}
        values: 0x6 1 2 3 4 5 6 7 8x60
      - series: ray_seqrl_restarts_total{run="a", seed="0", kind="learner"}
        values: 0x6 1x60
      - series: ray_seqrl_restarts_total{run="a", seed="0", kind="node"}
        values: 0x6 1x60
      - series: ray_seqrl_nonfinite_total{run="a", seed="0", source="learner"}
        values: 0x6 1x60
      - series: ray_seqrl_restarts_total{run="b", seed="0", kind="actor"}
        values: 0x6 1x60
    alert_rule_test:
      - {eval_time: 50s, alertname: SeqrlNotFinite}
      - eval_time: 120s
        alertname: SeqrlNotFinite
        exp_alerts: [{exp_labels: {run: a, seed: "0", severity: critical}, exp_annotations: *ANY*}]
      - eval_time: 120s
        alertname: SeqrlNodeLost
        exp_alerts: [{exp_labels: {run: a, seed: "0", severity: warning}, exp_annotations: *ANY*}]
      - eval_time: 120s
        alertname: SeqrlLearnerOrShardRestart
        exp_alerts: [{exp_labels: {run: a, seed: "0", severity: warning}, exp_annotations: *ANY*}]
      - eval_time: 150s
        alertname: SeqrlActorRestarts
        exp_alerts: [{exp_labels: {run: a, seed: "0", severity: warning}, exp_annotations: *ANY*}]
  - name: waits, age and ratio
    interval: 60s
    input_series:
      - series: ray_seqrl_insert_wait_seconds_total{run="a", seed="0", policy="shared", shard="0"}
        values: 0+59x40
      - series: ray_seqrl_sample_wait_seconds_total{run="b", seed="0", policy="shared"}
        values: 0+59x40
      - series: ray_seqrl_insert_wait_seconds_total{run="c", seed="0", policy="shared", shard="0"}
        values: 0+59x40
      - series: ray_seqrl_sample_wait_seconds_total{run="c", seed="0", policy="shared"}
        values: 0+57x40
      - series: ray_seqrl_sample_age_rows{run="a", seed="0", policy="shared", shard="0"}
        values: 95x40
      - series: ray_seqrl_replay_rows{run="a", seed="0", policy="shared", shard="0"}
        values: 100x40
      - series: ray_seqrl_samples_per_insert_error_ratio{run="a", seed="0", policy="shared"}
        values: 0.2x40
    alert_rule_test:
      - eval_time: 30m
        alertname: SeqrlActorsHeldBack
        exp_alerts: [{exp_labels: {run: a, seed: "0", severity: info}, exp_annotations: *ANY*}]
      - eval_time: 30m
        alertname: SeqrlLearnerStarved
        exp_alerts: [{exp_labels: {run: b, seed: "0", severity: info}, exp_annotations: *ANY*}]
      - eval_time: 30m
        alertname: SeqrlSampleAge
        exp_alerts:
          - exp_labels: {run: a, seed: "0", policy: shared, shard: "0", severity: warning}
            exp_annotations: *ANY*
      - eval_time: 30m
        alertname: SeqrlSamplesPerInsert
        exp_alerts:
          - exp_labels: {run: a, seed: "0", policy: shared, severity: warning}
            exp_annotations: *ANY*
"""
"""Series in promtool's notation, and the alerts that must, or must not, fire; *ANY* = the rule's own text."""


def cases() -> str:
    """`CASES` with the annotations that the rules would give."""
    text, rules = CASES, {rule["alert"]: rule["annotations"] for rule in RULES}
    table = yaml.safe_load(text.replace("*ANY*", "ANY"))
    for test in table["tests"]:
        for case in test["alert_rule_test"]:
            for alert in case.get("exp_alerts", ()):
                run, seed = alert["exp_labels"]["run"], alert["exp_labels"]["seed"]
                alert["exp_annotations"] = {
                    name: value.replace("{{ $labels.run }}", run).replace("{{ $labels.seed }}", seed)
                    for name, value in rules[case["alertname"]].items()
                }
    return yaml.safe_dump(table, sort_keys=False)


def test_every_alert_has_a_case():
    fired = {
        case["alertname"]
        for test in yaml.safe_load(cases())["tests"]
        for case in test["alert_rule_test"]
        if case.get("exp_alerts")
    }
    assert fired == {rule["alert"] for rule in RULES}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (Debian: prometheus) is not installed")
def test_alerts_fire_when_they_should_and_only_then(tmp_path: Path):
    shutil.copy(MAKE.RULES, tmp_path / "alerts.yaml")
    (tmp_path / "cases.yaml").write_text(cases(), encoding="utf-8")
    for command in (
        ["promtool", "test", "rules", str(tmp_path / "cases.yaml")],
        ["promtool", "check", "config", str(ROOT / "docker" / "prometheus" / "prometheus.yaml")],
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
