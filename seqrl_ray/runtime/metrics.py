"""Metrics for Prometheus, through Ray: the rows of metrics.jsonl, said once more as `metric_table` says.

Ray exports what `ray.util.metrics` is told where its extra `ray[default]` is installed: every node then
serves `/metrics`. Without it the calls go nowhere, so nothing is made here and the run says so.

The exporter stands where the run folder is written: in the driver, or in the process of a sweep's trial. Two
habits of Ray 2.60 shape it. A gauge is forgotten if it is not set anew within two export intervals (20 s),
which a slow report, a checkpoint or an evaluation may take: so a thread says the last ones again. A counter
does not exist before it is first raised, and Ray's `inc` refuses 0: so those that alerts stand on are begun
with 0.

Counters move only with reports, and reports may be minutes apart (`learner.report_every_s`; RLlib's come
between whole iterations). Whether a learner still learns is therefore not in the rate of a counter: the
thread says how old the newest update is, and beside it stands how long that one was in coming.
"""

from __future__ import annotations

import math
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from numbers import Real
from typing import Any

import ray
import ray.util.metrics as ray_metrics

from seqrl_ray.errors import RecipeError
from seqrl_ray.loops.evaluate import POLICY
from seqrl_ray.recipe import Recipe
from seqrl_ray.runtime.metric_table import BY_NAME, METRICS, RUN, Metric

REFRESH_S = 4.0
"""How often gauges are said again: well within Ray's 20 s."""

EPISODES = 100
"""Training episodes whose mean is shown."""

NEEDS = ("aiohttp", "opencensus", "opentelemetry", "prometheus_client")
"""What of `ray[default]` Ray's metrics agent cannot do without."""

NOT_THE_ALGORITHMS = re.compile(r"(pacing_|replay\d*_|queued_)")
"""How those fields of a report begin, after `<policy>/`, that are not the algorithm's own metrics."""

AGE, INTERVAL = "seqrl_update_age_seconds", "seqrl_update_interval_seconds"

Labels = tuple[tuple[str, str], ...]


def obstacle(address: str | None = None) -> str | None:
    """Return why metrics do not get from a run on Ray to Prometheus; None where they do.

    Args:
        address: of the cluster to join; None: a Ray of our own, or the one this process is part of.
    """
    if any(find_spec(name) is None for name in NEEDS):
        return "needs ray[default]: pip install 'seqrl-ray[ops]'"
    if address is not None and address.startswith("ray://"):
        return "does not pass a ray:// connection: run on a node of the cluster, with --address host:port"
    return None


def refuse_silence(recipe: Recipe, address: str | None = None) -> None:
    """Raise RecipeError if `prometheus` is "on" and nothing would be exported."""
    why = obstacle(address) if recipe.prometheus == "on" else None
    if why is not None:
        raise RecipeError(
            f'prometheus="on", which {why}. Nothing would be exported; leave prometheus out to have '
            "metrics.jsonl and TensorBoard alone."
        )


def open_exporter(
    recipe: Recipe, address: str | None = None, say: Callable[[str], None] | None = None
) -> Exporter | None:
    """Return the exporter of a run; None where the recipe wants none, or none is to be had.

    Args:
        recipe: the run.
        address: as in `obstacle`.
        say: is told in one line where the run's metrics are.
    """
    if recipe.prometheus == "off":
        return None
    if say is not None:
        say(where(address))
    return None if obstacle(address) is not None else Exporter(recipe)


def where(address: str | None = None) -> str:
    """Return one line for people: where the metrics of a run are. Ray must be connected."""
    if (why := obstacle(address)) is not None:
        return f"metrics: metrics.jsonl and TensorBoard; Prometheus {why}"
    return f"metrics: metrics.jsonl, TensorBoard and, for Prometheus, {url()}"


def url() -> str:
    """Where this process's node serves metrics."""
    here = ray.get_runtime_context().get_node_id()
    node = next(n for n in ray.nodes() if n["NodeID"] == here)  # type: ignore[no-untyped-call]
    return f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"


class Exporter:
    """Hears the rows of one run and tells Ray; see `seqrl_ray.loops.listener`."""

    def __init__(self, recipe: Recipe, make: Any = ray_metrics) -> None:
        """Begin the counters that alerts stand on.

        Args:
            recipe: says the labels `run` and `seed`, the headline metric and how often reports come at most.
            make: has `Counter` and `Gauge`; a test's own.
        """
        self.run = {"run": recipe.name, "seed": str(recipe.seed)}
        self.headline = recipe.evaluation.headline
        kinds = {"counter": make.Counter, "gauge": make.Gauge}
        self._told = {
            m.name: kinds[m.kind](m.name, description=m.help, tag_keys=(*RUN, *m.labels)) for m in METRICS
        }
        self._patterns = [(m, re.compile(m.field)) for m in METRICS if m.row == "report"]
        self._known: dict[str, list[tuple[Metric, Labels]]] = {}  # field of a report -> what it is
        self._last: dict[tuple[str, Labels], float] = {}  # counters as the rows had them
        self._gauges: dict[tuple[str, Labels], float] = {}
        self._lock = threading.Lock()
        self._report_every_s = recipe.learner.report_every_s
        self._updates = 0.0  # as the newest report had them
        self._updated_at = time.monotonic()  # when a report last had more of them; at first the beginning
        self._episodes: deque[float] = deque(maxlen=EPISODES)
        for metric in METRICS:
            for value in metric.begins:
                self._raise(metric.name, ((metric.labels[0], value),), 0.0)
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    # ------------------------------------------------------------------------------------------------- rows

    def row(self, kind: str, row: Mapping[str, Any]) -> None:
        """Take a row as it is written to metrics.jsonl; values may be NaN here."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._keep_alive, name="metrics", daemon=True)
            self._thread.start()
        if kind == "report":
            self._report(row)
        elif kind == "episode":
            if (value := _number(row.get(self.headline))) is not None:
                self._episodes.append(value)
        elif kind == "evaluation":
            self._evaluation(row)
        elif kind == "failure":
            self._failure(row)
        elif kind == "sweep":
            if row["event"] == "diverged":
                self._raise("seqrl_nonfinite_total", (("source", "learner"),), 1.0)
            elif row["event"] in BY_NAME["seqrl_exploits_total"].begins:
                self._raise("seqrl_exploits_total", (("action", row["event"]),), 1.0)

    def trained(self) -> None:
        """Training is over, or stands still until an evaluation comes that is not the final one."""
        self._set("seqrl_training", (), 0.0)

    def close(self) -> None:
        """Let the gauges go; closing twice is harmless."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join()

    def _report(self, row: Mapping[str, Any]) -> None:
        for field, value in row.items():
            if field not in self._known:
                self._known[field] = self._find(field)
            for metric, labels in self._known[field]:
                self._take(metric, labels, value)
        self._watch(_number(row.get("updates")))
        self._set("seqrl_training", (), 1.0)
        if self._episodes:
            mean = sum(self._episodes) / len(self._episodes)
            self._set("seqrl_episode_headline", (("metric", self.headline),), mean)

    def _evaluation(self, row: Mapping[str, Any]) -> None:
        values = [_number(episode.get(self.headline)) for episode in row["episodes"]]
        known = [value for value in values if value is not None]
        if row["name"] == POLICY and known:
            self._set("seqrl_evaluation_headline", (("metric", self.headline),), sum(known) / len(known))
        waited = self._gauges.get(("seqrl_training", ())) == 0.0
        if waited and not row["final"]:  # training goes on
            self._updated_at = time.monotonic()
            if (AGE, ()) in self._gauges:
                self._set(AGE, (), 0.0)
            self._set("seqrl_training", (), 1.0)

    def _watch(self, updates: float | None) -> None:
        """Note when updates come. Fewer than before are a restored learner's, and none of them is new."""
        if updates is None:
            return
        if updates > self._updates:
            now = time.monotonic()
            self._set(INTERVAL, (), max(self._report_every_s, now - self._updated_at))
            self._updated_at = now
            self._set(AGE, (), 0.0)
        self._updates = updates

    def _find(self, field: str) -> list[tuple[Metric, Labels]]:
        """Return the metrics that a field of a report is, with its labels."""
        found = [
            (metric, _labels(metric, match))
            for metric, pattern in self._patterns
            if (match := pattern.fullmatch(field)) is not None
        ]
        policy, slash, name = field.partition("/")
        if slash and policy != "hparam" and not NOT_THE_ALGORITHMS.match(name):
            found.append((BY_NAME["seqrl_algorithm_metric"], (("policy", policy), ("metric", name))))
        return found

    def _take(self, metric: Metric, labels: Labels, value: Any) -> None:
        number = _number(value)
        if metric.kind == "counter":
            if number is not None:
                self._advance(metric.name, labels, number)
            return
        self._set(metric.name, labels, number)
        if metric.name == "seqrl_algorithm_metric" and isinstance(value, Real) and number is None:
            self._raise("seqrl_nonfinite_total", (("source", "report"),), 1.0)

    def _failure(self, row: Mapping[str, Any]) -> None:
        labels = (("kind", str(row["what"])),)
        for metric in METRICS:
            if metric.row != "failure":
                continue
            value = _number(row[metric.field]) if metric.field else 1.0
            if value:
                self._raise(metric.name, labels, value)
        if row["diverged"]:
            self._raise("seqrl_nonfinite_total", (("source", "learner"),), 1.0)

    # ------------------------------------------------------------------------------------------------- Ray

    def _advance(self, name: str, labels: Labels, value: float) -> None:
        """Raise a counter to what a row says. A row that stands lower is of a learner that went back to its
        checkpoint: from there the counter goes on.
        """
        before = self._last.get((name, labels))
        self._last[name, labels] = value
        if before is None:
            self._raise(name, labels, value)
        elif value > before:
            self._raise(name, labels, value - before)

    def _raise(self, name: str, labels: Labels, by: float) -> None:
        tags = {**self.run, **dict(labels)}
        if by > 0.0:
            self._told[name].inc(by, tags=tags)
        else:
            self._told[name]._record(0.0, tags=tags)  # see the module docstring: `inc` refuses 0

    def _set(self, name: str, labels: Labels, value: float | None) -> None:
        """Set a gauge; None ends it."""
        with self._lock:
            if value is None:
                self._gauges.pop((name, labels), None)
                return
            self._gauges[name, labels] = value
        self._told[name].set(value, tags={**self.run, **dict(labels)})

    def _keep_alive(self) -> None:
        while not self._closed.wait(REFRESH_S):
            with self._lock:
                if (AGE, ()) in self._gauges:
                    self._gauges[AGE, ()] = time.monotonic() - self._updated_at
                gauges = dict(self._gauges)
            for (name, labels), value in gauges.items():
                self._told[name].set(value, tags={**self.run, **dict(labels)})


def _number(value: Any) -> float | None:
    """A finite number as float; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, Real):  # numpy's scalars are Real too
        return None
    return float(value) if math.isfinite(value) else None


def _labels(metric: Metric, match: re.Match[str]) -> Labels:
    """Labels that a field's name says; a shard without a number is the learner's own."""
    values = {name: value or "learner" for name, value in match.groupdict().items()}
    if metric.name == "seqrl_policy_lag_updates":
        values = {"quantile": {"50": "0.5", "95": "0.95"}[values["quantile"]]}
    return tuple((name, values[name]) for name in metric.labels)
