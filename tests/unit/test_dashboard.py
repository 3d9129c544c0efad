"""The Grafana dashboard, the alert rules and docs/metrics.md: committed as they are made, and sound."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

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
from tests.unit.promql import Series, evaluate, fires

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


# -------------------------------------------------------------------------------------------- what fires

CASES = """\
rule_files: [alerts.yaml]
evaluation_interval: 5s
tests:
  - name: a learner that stops
    interval: 5s
    input_series:
      - series: ray_seqrl_training{run="a", seed="0", WorkerId="w"}
        values: 1x60
      - series: ray_seqrl_update_age_seconds{run="a", seed="0", WorkerId="w"}
        values: 1x12 5+5x47
      - series: ray_seqrl_update_interval_seconds{run="a", seed="0", WorkerId="w"}
        values: 2x60
    alert_rule_test:
      - {eval_time: 60s, alertname: SeqrlNoLearnerStep}
      - {eval_time: 135s, alertname: SeqrlNoLearnerStep}
      - eval_time: 150s
        alertname: SeqrlNoLearnerStep
        exp_alerts: [{exp_labels: {run: a, seed: "0", severity: critical}, exp_annotations: *ANY*}]
  - name: reports that come every 5 minutes, and then no more
    interval: 5s
    input_series:
      - series: ray_seqrl_training{run="a", seed="0"}
        values: 1x300
      - series: ray_seqrl_update_age_seconds{run="a", seed="0"}
        values: 0+5x59 0+5x240
      - series: ray_seqrl_update_interval_seconds{run="a", seed="0"}
        values: 300x300
    alert_rule_test:
      - {eval_time: 120s, alertname: SeqrlNoLearnerStep}
      - {eval_time: 295s, alertname: SeqrlNoLearnerStep}
      - {eval_time: 1215s, alertname: SeqrlNoLearnerStep}
      - eval_time: 1230s
        alertname: SeqrlNoLearnerStep
        exp_alerts: [{exp_labels: {run: a, seed: "0", severity: critical}, exp_annotations: *ANY*}]
  - name: a run that has ended, and one that has not begun to learn
    interval: 5s
    input_series:
      - series: ray_seqrl_training{run="a", seed="0"}
        values: 1x12 0x48
      - series: ray_seqrl_update_age_seconds{run="a", seed="0"}
        values: 1x12 5+5x47
      - series: ray_seqrl_update_interval_seconds{run="a", seed="0"}
        values: 2x60
      - series: ray_seqrl_training{run="b", seed="0"}
        values: 1x60
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


def test_the_evaluator_works_out_what_prometheus_does():
    """By hand; what a rule makes of series promtool says too, below, where it is."""
    series = [
        Series.read('x{k="a", s="0"}', "0+10x12", "5s"),
        Series.read('x{k="b", s="0"}', "40+10x2 0+10x9", "5s"),  # begins again at 15 s
        Series.read('y{s="0"}', "_x3 7", "5s"),
    ]

    def at(expr: str, now: float = 60.0) -> dict[str, float] | float:
        found = evaluate(parsed(expr), series, now)
        if isinstance(found, float):
            return found
        return {",".join(f"{k}={v}" for k, v in sorted(labels)): value for labels, value in found.items()}

    assert at("1 + 2 * 3") == 7.0
    assert at("x") == {"k=a,s=0": 120.0, "k=b,s=0": 90.0}
    assert at("y", 14.0) == {} and at("y") == {"s=0": 7.0} and at("y", 320.0) == {}
    assert at('rate(x{k="a"}[20s])') == {"k=a,s=0": pytest.approx(2.0)}  # 15 s seen, a gap of 5 s before
    assert at('increase(x{k="a"}[60s])', 10.0) == {"k=a,s=0": pytest.approx(20.0)}, "not below 0"
    assert at('increase(x{k="b"}[20s])', 20.0) == {"k=b,s=0": pytest.approx((10 + 0 + 10) * 20 / 15)}
    assert at("sum by (s) (x)") == {"s=0": 210.0} and at('max by (k) (x{k=~"a|c"})') == {"k=a": 120.0}
    assert at("x > 100") == {"k=a,s=0": 120.0} and at("100 > x") == {"k=b,s=0": 90.0}
    assert at('x unless on (k) x{k!="a"}') == {"k=a,s=0": 120.0}
    assert at("x and on (s) y == 7") == at("x") and at("x and on (s) y > 7") == {}
    assert at('x{k="a"} / on (s) y') == {"s=0": 120.0 / 7.0}
    assert at('x{k="a"} / y') == {} and at('x{k="a"} > on (s) 3 * y') == {"s=0": 120.0}
    for unknown in (
        "x or y",
        "avg(x)",
        "delta(x[1m])",
        "x offset 5m",
        "x > bool 1",
        "sum without (k) (x)",
        "-x",
    ):
        with pytest.raises(NotImplementedError):
            at(unknown)
    with pytest.raises(AssertionError, match="many to many"):
        at("x / on (s) y")


def untrue(rules: list[dict[str, Any]], name: str) -> list[str]:
    """Return the cases of an alert that its rule, as it stands in `rules`, does not bear out."""
    rule = next(rule for rule in rules if rule["alert"] == name)
    table = yaml.safe_load(cases())
    found: list[str] = []
    for test in table["tests"]:
        series = [Series.read(one["series"], one["values"], test["interval"]) for one in test["input_series"]]
        for case in test["alert_rule_test"]:
            if case["alertname"] != name:
                continue
            wanted = [alert["exp_labels"] for alert in case.get("exp_alerts", ())]
            got = [
                {**labels, **rule["labels"]}
                for labels in fires(
                    parsed(rule["expr"]), rule["for"], series, case["eval_time"], table["evaluation_interval"]
                )
            ]
            if sorted(got, key=str) != sorted(wanted, key=str):
                found.append(f"{test['name']}, {case['eval_time']}: {got}, not {wanted}")
    return found


@pytest.mark.parametrize("name", [rule["alert"] for rule in RULES])
def test_alerts_fire_when_they_should_and_only_then(name):
    assert untrue(RULES, name) == []


TURNED = {">": "<", "<": ">", "==": "!=", "and": "unless", "unless": "and"}
"""What could be written by mistake."""
PLACES = [
    (rule["alert"], *found.span())
    for rule in RULES
    for found in re.finditer(r"(?<= )(>|<|==|and|unless)(?= )", rule["expr"])
]


@pytest.mark.parametrize(("name", "start", "end"), PLACES)
def test_a_rule_turned_round_is_noticed(name, start, end):
    rules = copy.deepcopy(RULES)
    rule = next(rule for rule in rules if rule["alert"] == name)
    expr = rule["expr"]
    rule["expr"] = expr[:start] + TURNED[expr[start:end]] + expr[end:]
    assert untrue(rules, name), rule["expr"]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (Debian: prometheus) is not installed")
def test_promtool_says_the_same(tmp_path: Path):
    shutil.copy(MAKE.RULES, tmp_path / "alerts.yaml")
    (tmp_path / "cases.yaml").write_text(cases(), encoding="utf-8")
    for command in (
        ["promtool", "test", "rules", str(tmp_path / "cases.yaml")],
        ["promtool", "check", "config", str(ROOT / "docker" / "prometheus" / "prometheus.yaml")],
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
