"""Write the Grafana dashboard, the alert rules and docs/metrics.md from the table of metrics:
`python docs/make_dashboard.py`. A test compares them.

The table is `seqrl_ray/runtime/metric_table.py`; what is on the page and when somebody is woken stands here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from seqrl_ray.runtime.metric_table import METRICS, RUN, Metric

ROOT = Path(__file__).resolve().parents[1]
DASHBOARD = ROOT / "docker" / "grafana" / "dashboards" / "seqrl.json"
RULES = ROOT / "docker" / "prometheus" / "alerts.yaml"
PAGE = ROOT / "docs" / "metrics.md"

BY = ", ".join(RUN)
COLUMNS = 24
WIDTH, HEIGHT = 8, 8


@dataclass(frozen=True)
class Panel:
    """One panel of the dashboard."""

    title: str
    help: str
    repeat: str = ""
    """Variable of which every value has a panel of its own."""


@dataclass(frozen=True)
class Alert:
    """One alert rule."""

    name: str
    expr: str
    hold: str
    """How long the condition must hold."""
    severity: Literal["critical", "warning", "info"]
    summary: str
    help: str
    """What it means and what to do."""


UNITS = {
    "ratio": "none",
    "value": "none",
    "share": "percentunit",
    "seconds": "s",
    "bytes": "bytes",
    "on": "bool_on_off",
}
"""Unit in words -> Grafana's; "short" for all counts."""

RATES = {"seconds": "percentunit", "bytes": "Bps"}
"""The same for a rate per second."""

SECTIONS: dict[str, tuple[Panel, ...]] = {
    "Throughput": (
        Panel("Environment steps per second", "Falls when actors wait, die or are slow."),
        Panel("Updates per second", "Falls when the learner waits for data."),
        Panel("Steps, updates, episodes", "Where the run stands."),
        Panel("Progress", "Share of the budget that is spent."),
        Panel("Training", "On while the run trains; off in evaluations it waits for; ends with the run."),
        Panel("Newest update", "Its age, and how long it was in coming; an alert at 3 times that."),
        Panel("Weights published", "Bytes per second sent to the weight board."),
        Panel("Actors", "How many stand; where `actors.count` is a range they follow the cluster."),
        Panel("All-reduce", "100 % = all the time: several learners wait for one another, or the network."),
    ),
    "Learning": (
        Panel("Training episodes", "Headline metric: mean of the last 100 training episodes."),
        Panel("Evaluations", "Headline metric of the policy's newest evaluation: greedy, held-out seeds."),
        Panel("Policy lag", "Median and 95 % point in updates, over the run so far."),
        Panel("$metric", "A metric of the algorithm's own.", repeat="metric"),
    ),
    "Replay and queues": (
        Panel("Samples per insert", "Held from both sides to what the recipe asks for."),
        Panel("Samples per insert, error", "Share by which it is off; large only at the beginning."),
        Panel("Items per second", "Inserted and drawn."),
        Panel("Waits", "100 % = all the time. insert: actors wait for room; sample: the learner for data."),
        Panel("Queues", "Fragments that wait for room; fragments and draws on their way."),
        Panel("Sample age", "Rows taken in since what is drawn was; compare with the rows held."),
        Panel("Replay rows", "Rows held."),
        Panel("Replay size", "Bytes of the columns."),
        Panel("Weights", "Bytes of one version."),
    ),
    "Policy server": (
        Panel("Policy server", "Decisions per second (actors.inference = central)."),
        Panel("Batches of the policy server", "Slots per batch; grows by itself where the server is busy."),
        Panel("Wait for the policy server", "From a request's coming to its batch's beginning, mean."),
        Panel("Policy server busy", "Near 100 % it is what actors wait for."),
    ),
    "Trouble": (
        Panel("Restarts", "Processes that died, by kind."),
        Panel("Lost steps", "Environment steps lost with them."),
        Panel("Lost updates", "Updates lost with them."),
        Panel("Recovery", "Seconds spent recovering, added up."),
        Panel("Not finite", "NaN and infinity in the learner."),
        Panel("Dropped", "Per second: rows and priorities that came too late to be used."),
    ),
    "Sweep": (Panel("Exploits", "Copies and new beginnings of each member."),),
}


def total(expr: str) -> str:
    """Add an expression up over everything but run and seed."""
    return f"sum by ({BY}) ({expr})"


def waits(side: str) -> str:
    """Return the share of the time that a side waits; of several policies and shards the largest."""
    return f"max by ({BY}) (rate(ray_seqrl_{side}_wait_seconds_total[5m]))"


ALERTS: tuple[Alert, ...] = (
    Alert(
        "SeqrlNoLearnerStep",
        f"max by ({BY}) (ray_seqrl_training) == 1"
        f" and on ({BY}) max by ({BY}) (ray_seqrl_update_age_seconds) > 60"
        f" and on ({BY}) max by ({BY}) (ray_seqrl_update_age_seconds)"
        f" > 3 * max by ({BY}) (ray_seqrl_update_interval_seconds)",
        "15s",
        "critical",
        "no learner step in 60 s, nor in three times what the one before took to come",
        "The run trains, has made updates before, and makes none. The learner waits for data (see Waits, "
        "and whether actors live), compiles, is being replaced, or hangs: `ray stack` on its node tells. "
        "Updates are seen when a report has them: rare reports (`learner.report_every_s`, RLlib's long "
        "iterations), and long episodes that are learned from as a whole, make it later, not wrong. It is "
        "wrong where updates suddenly come three times as rarely as before: a long checkpoint, for one.",
    ),
    Alert(
        "SeqrlActorRestarts",
        total('increase(ray_seqrl_restarts_total{kind="actor"}[10m])') + " > 5",
        "0s",
        "warning",
        "more than 5 actors died in 10 minutes",
        "`actors.max_restarts_per_10_min` ends the run. On spot nodes this is weather; elsewhere look at "
        "memory first: `dmesg`, or Ray's logs on the actor's node.",
    ),
    Alert(
        "SeqrlNodeLost",
        total('increase(ray_seqrl_restarts_total{kind="node"}[10m])') + " > 0",
        "0s",
        "warning",
        "a node was lost",
        "The run goes on with what is left, and grows back where it may; `actors.max_node_losses_per_10_min` "
        "ends it. Announce a node's end where you can (docs/operations.md): then nothing is lost.",
    ),
    Alert(
        "SeqrlLearnerOrShardRestart",
        total('increase(ray_seqrl_restarts_total{kind=~"learner|shard"}[10m])') + " > 0",
        "0s",
        "warning",
        "a learner or a shard died",
        "It went on from the newest checkpoint; what that cost is in Lost steps and Lost updates. Lower "
        "`learner.checkpoint_every_s` if it cost too much.",
    ),
    Alert(
        "SeqrlNotFinite",
        total("increase(ray_seqrl_nonfinite_total[10m])") + " > 0",
        "0s",
        "critical",
        "NaN or infinity in the learner",
        "The weights are lost or about to be. Lower `algorithm.learning_rate`, scale rewards down, look for "
        "NaN in the observations. A member of a sweep is replaced without you.",
    ),
    Alert(
        "SeqrlActorsHeldBack",
        f"{waits('insert')} > 0.9 unless on ({BY}) {waits('sample')} > 0.5",
        "10m",
        "info",
        "actors wait for room nearly all the time, and the learner for nothing",
        "The learner is the narrow place: what actors make waits in the queue. More of them would not help; "
        "a faster learner (`learner.compile=on`, a GPU) or a lower `replay.samples_per_insert` would. Where "
        "both sides wait, pacing holds both, as it should.",
    ),
    Alert(
        "SeqrlLearnerStarved",
        f"{waits('sample')} > 0.9 unless on ({BY}) {waits('insert')} > 0.5",
        "10m",
        "info",
        "the learner waits for data nearly all the time, and actors for nothing",
        "Actors are the narrow place: raise `actors.count`, `actors.envs_per_actor` or "
        "`replay.samples_per_insert`.",
    ),
    Alert(
        "SeqrlSampleAge",
        f"max by ({BY}, policy, shard) (ray_seqrl_sample_age_rows)"
        f" / on ({BY}, policy, shard) max by ({BY}, policy, shard) (ray_seqrl_replay_rows) > 0.9",
        "10m",
        "warning",
        "what is drawn is nearly as old as the replay",
        "Old items keep the highest priorities: look at `replay.alpha` and at whether priorities come back "
        "in time (Dropped), or lower `replay.capacity_steps`.",
    ),
    Alert(
        "SeqrlSamplesPerInsert",
        f"max by ({BY}, policy) (ray_seqrl_samples_per_insert_error_ratio) > 0.05",
        "15m",
        "warning",
        "samples per insert is more than 5 % off",
        "Normal only while few items are inserted. Otherwise a side is not held: look at Waits, and at "
        "whether a shard died.",
    ),
)


# -------------------------------------------------------------------------------------------------- dashboard


def dashboard() -> dict[str, Any]:
    """Return the dashboard as Grafana imports it."""
    panels: list[dict[str, Any]] = []
    below = 0
    for section, wanted in SECTIONS.items():
        panels.append(
            {
                "id": len(panels) + 1,
                "type": "row",
                "title": section,
                "collapsed": False,
                "panels": [],
                "gridPos": {"h": 1, "w": COLUMNS, "x": 0, "y": below},
            }
        )
        below += 1
        across = 0
        for panel in wanted:
            if panel.repeat and across:  # a repeated panel begins a line and fills as many as it needs
                across, below = 0, below + HEIGHT
            place = {"h": HEIGHT, "w": WIDTH, "x": across, "y": below}
            panels.append(drawn(panel, len(panels) + 1, place))
            across += WIDTH
            if across == COLUMNS:
                across, below = 0, below + HEIGHT
        below += HEIGHT if across else 0
    return {
        "uid": "seqrl-ray",
        "title": "seqrl-ray",
        "description": "Runs of seqrl-ray. Made by docs/make_dashboard.py from the table of metrics.",
        "tags": ["seqrl-ray", "ray"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timepicker": {},
        "timezone": "browser",
        "weekStart": "",
        "fiscalYearStartMonth": 0,
        "liveNow": False,
        "links": [],
        "annotations": {"list": []},
        "templating": {"list": [datasource(), *variables()]},
        "panels": panels,
    }


SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def datasource() -> dict[str, Any]:
    """Return the variable that chooses among Prometheus servers."""
    return {
        "name": "datasource",
        "label": "Prometheus",
        "type": "datasource",
        "query": "prometheus",
        "hide": 0,
        "includeAll": False,
        "multi": False,
        "options": [],
        "refresh": 1,
        "regex": "",
        "skipUrlSync": False,
    }


def variables() -> list[dict[str, Any]]:
    """Return the variables whose values Prometheus knows."""
    return [
        variable("run", "Run", "label_values(ray_seqrl_training, run)", hide=0),
        variable("seed", "Seed", 'label_values(ray_seqrl_training{run=~"$run"}, seed)', hide=0),
        variable("metric", "", 'label_values(ray_seqrl_algorithm_metric{run=~"$run"}, metric)', hide=2),
    ]


def variable(name: str, label: str, query: str, *, hide: int) -> dict[str, Any]:
    """Return one variable of many values, all chosen at first."""
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": "PrometheusVariableQueryEditor-VariableQuery"},
        "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        "includeAll": True,
        "allValue": ".*",
        "multi": True,
        "hide": hide,
        "options": [],
        "refresh": 2,
        "regex": "",
        "skipUrlSync": False,
        "sort": 1,
    }


def drawn(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    """Return one panel with a line for every metric that names it."""
    shown = [metric for metric in METRICS if metric.panel == panel.title]
    units = {unit_of(metric) for metric in shown}
    assert len(units) == 1, f"{panel.title}: one axis, several units {units}"
    found: dict[str, Any] = {
        "id": number,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.help,
        "datasource": SOURCE,
        "gridPos": place,
        "fieldConfig": {
            "defaults": {
                "unit": units.pop(),
                "custom": {
                    "drawStyle": "line",
                    "lineWidth": 1,
                    "fillOpacity": 0,
                    "showPoints": "never",
                    "spanNulls": False,
                },
            },
            "overrides": [],
        },
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "targets": [
            {
                "refId": chr(ord("A") + i),
                "datasource": SOURCE,
                "expr": expression(metric),
                "legendFormat": legend(metric, several=len(shown) > 1),
                "editorMode": "code",
                "range": True,
            }
            for i, metric in enumerate(shown)
        ],
    }
    if panel.repeat:
        found |= {"repeat": panel.repeat, "repeatDirection": "h", "maxPerRow": COLUMNS // WIDTH}
    return found


def unit_of(metric: Metric) -> str:
    """Return the Grafana unit of what a panel shows of a metric."""
    return RATES.get(metric.unit, "short") if metric.show == "rate" else UNITS.get(metric.unit, "short")


def expression(metric: Metric) -> str:
    """Return the PromQL of what a panel shows of a metric."""
    chosen = 'run=~"$run", seed=~"$seed"'
    if "metric" in metric.labels and metric.panel == "$metric":
        chosen += ', metric=~"$metric"'
    series = f"{metric.exported}{{{chosen}}}"
    by = ", ".join([*RUN, *metric.labels])
    if metric.show == "rate":
        return f"sum by ({by}) (rate({series}[$__rate_interval]))"
    return f"{'sum' if metric.show == 'sum' else 'max'} by ({by}) ({series})"


def legend(metric: Metric, *, several: bool) -> str:
    """Return the name of a line: what it is, where a panel shows several metrics, then its labels."""
    what = metric.name.removeprefix("seqrl_").removesuffix("_total").replace("_", " ")
    labels = [label for label in metric.labels if metric.panel != "$metric" or label != "metric"]
    return " ".join([*([what] if several else []), *(f"{{{{{label}}}}}" for label in [*labels, *RUN])])


# ------------------------------------------------------------------------------------------- rules and page


def rules() -> str:
    """Return the alert rules as Prometheus reads them."""
    group = {
        "name": "seqrl-ray",
        "rules": [
            {
                "alert": alert.name,
                "expr": alert.expr,
                "for": alert.hold,
                "labels": {"severity": alert.severity},
                "annotations": {
                    "summary": "{{ $labels.run }}, seed {{ $labels.seed }}: " + alert.summary,
                    "description": alert.help,
                },
            }
            for alert in ALERTS
        ],
    }
    text: str = yaml.safe_dump({"groups": [group]}, sort_keys=False, width=110)
    return f"# Made by docs/make_dashboard.py; do not edit.\n{text}"


def page() -> str:
    """Return docs/metrics.md."""
    rows = [f"| `{m.exported}` | {m.kind} | {m.unit} | {', '.join(m.labels)} | {m.help} |" for m in METRICS]
    alerts = [
        f"| `{a.name}` | {a.severity} | {a.summary}{'' if a.hold == '0s' else f', for {a.hold}'} | {a.help} |"
        for a in ALERTS
    ]
    return "\n".join(
        [
            "# Metrics and alerts\n",
            "Made by `docs/make_dashboard.py` from `seqrl_ray/runtime/metric_table.py`; do not edit. "
            "[Operations](operations.md#metrics) says how to look at them.\n",
            "Every metric has the labels `run` (the recipe's `name`) and `seed`; Ray adds its own.\n",
            "| metric | kind | unit | labels beside these | what it is |",
            "|---|---|---|---|---|",
            *rows,
            "\n## Alerts\n",
            "| alert | severity | when | what it means and what to do |",
            "|---|---|---|---|",
            *alerts,
            "",
        ]
    )


def files() -> dict[Path, str]:
    """Return every file made here with its text."""
    return {
        DASHBOARD: json.dumps(dashboard(), indent=1) + "\n",
        RULES: rules(),
        PAGE: page(),
    }


if __name__ == "__main__":
    for path, text in files().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
