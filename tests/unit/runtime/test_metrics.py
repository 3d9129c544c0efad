"""What is exported, from the rows of metrics.jsonl: the table's rules, and the exporter with a Ray that only
writes down what it is told.
"""

from __future__ import annotations

import math
import re
import threading

import numpy as np
import pytest

from seqrl_ray import api
from seqrl_ray.errors import RecipeError
from seqrl_ray.loops.local import LocalSession
from seqrl_ray.loops.run_folder import RunFolder
from seqrl_ray.runtime import metrics
from seqrl_ray.runtime.metric_table import BY_NAME, METRICS, PROCESSES
from tests.unit.loops.small_cartpole import SMALL

SUFFIXES = {
    "steps per second": "_per_second",
    "updates per second": "_per_second",
    "share": "_ratio",
    "bytes": "_bytes",
    "seconds": "_seconds",
    "rows": "_rows",
    "items": "_items",
    "steps": "_steps",
    "updates": "_updates",
    "episodes": "_episodes",
    "fragments": "_fragments",
    "draws": "_draws",
}
"""How a name ends, before `_total`, by unit."""
EXCEPTIONS = {
    "seqrl_fragments_in_flight": "the unit stands first",
    "seqrl_stale_priorities_total": "a priority is an item's",
}


class Told:
    """Stands for `ray.util.metrics`: keeps values by name and labels."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        self.said = 0
        told = self

        class Metric:
            def __init__(self, name, description="", tag_keys=()):
                assert name not in made, f"{name} is made twice"
                made.add(name)
                self.name, self.keys = name, set(tag_keys)

            def _key(self, tags):
                assert set(tags) == self.keys, (self.name, tags)
                assert all(isinstance(value, str) for value in tags.values())
                told.said += 1
                return self.name, tuple(sorted(tags.items()))

        class Counter(Metric):
            def inc(self, value=1.0, tags=None):
                assert value > 0, "Ray refuses it"
                self._record(value, tags)

            def _record(self, value, tags=None):
                key = self._key(tags)
                told.values[key] = told.values.get(key, 0.0) + value

        class Gauge(Metric):
            def set(self, value, tags=None):
                assert math.isfinite(value)
                told.values[self._key(tags)] = value

        made: set[str] = set()
        self.Counter, self.Gauge = Counter, Gauge

    def get(self, name, **labels):
        """Value of one series; its `run` and `seed` are those of `recipe()`."""
        return self.values.get((name, tuple(sorted({"run": "mine", "seed": "3", **labels}.items()))))


def recipe(*overrides):
    return api.read_recipe("classic/cartpole", ["name=mine", "seed=3", *overrides])


@pytest.fixture
def told():
    return Told()


@pytest.fixture
def exporter(told):
    made = metrics.Exporter(recipe(), told)
    yield made
    made.close()


# ---------------------------------------------------------------------------------------------- the table


def test_names_are_as_prometheus_wants_them():
    assert len(BY_NAME) == len(METRICS)
    for metric in METRICS:
        assert re.fullmatch(r"seqrl_[a-z0-9_]+", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric.name
        suffix = SUFFIXES.get(metric.unit, "")
        if metric.name not in EXCEPTIONS:
            assert metric.name.removesuffix("_total").endswith(suffix), (metric.name, metric.unit)
        assert metric.help.endswith("."), metric.name


def test_labels_are_what_the_fields_say():
    for metric in METRICS:
        groups = set(re.compile(metric.field).groupindex)
        if metric.row == "report":
            assert groups == set(metric.labels), metric.name
        assert not metric.begins or (len(metric.labels) == 1 and metric.kind == "counter")
        assert metric.kind == "counter" or metric.show == "value", metric.name


def test_the_kinds_of_process_are_those_a_run_counts(tmp_path):
    folder = RunFolder(tmp_path / "run", recipe(), resumed=False)
    folder.close()
    assert tuple(folder.restarts) == PROCESSES


def test_a_real_report_has_the_fields(told, exporter):
    """Those that only a run on Ray has are in the live test (tests/system/test_metrics_live.py)."""
    session = LocalSession(api.read_recipe("classic/cartpole", [*SMALL]))
    try:
        row = session.advance_to(1280, 60.0).row
    finally:
        session.close()
    exporter.row("report", {**row, "env_steps_per_s": 1.0, "updates_per_s": 1.0})
    told_of = {name for name, _ in told.values}
    wanted = {metric.name for metric in METRICS if metric.row == "report"}
    assert wanted - told_of == {
        "seqrl_actors",
        "seqrl_all_reduce_seconds_total",
        "seqrl_dropped_steps_total",
        "seqrl_queued_draws",
        "seqrl_fragments_in_flight",
        "seqrl_published_weights_bytes_total",
        "seqrl_inference_slots_total",
        "seqrl_inference_batch_slots",
        "seqrl_inference_wait_seconds",
        "seqrl_inference_busy_ratio",
    }
    assert told.get("seqrl_env_steps_total") == row["env_steps"]
    assert told.get("seqrl_sample_age_rows", policy="shared", shard="learner") > 0
    assert told.get("seqrl_weights_bytes") > 0
    algorithms = {dict(labels)["metric"] for name, labels in told.values if name == "seqrl_algorithm_metric"}
    assert {"loss", "grad_norm"} <= algorithms
    assert not [name for name in algorithms if name.startswith(("replay", "pacing"))]


# ------------------------------------------------------------------------------------------- the exporter


def test_what_alerts_stand_on_begins_with_nothing(told, exporter):
    for kind in PROCESSES:
        assert told.get("seqrl_restarts_total", kind=kind) == 0.0
    assert told.get("seqrl_nonfinite_total", source="learner") == 0.0
    assert told.get("seqrl_exploits_total", action="copy") == 0.0


def test_a_counter_goes_on_where_a_learner_went_back_to(told, exporter):
    for steps in (1000, 1500, 1500, 800, 1200):  # the fourth report is of a restored learner
        exporter.row("report", {"env_steps": steps})
    assert told.get("seqrl_env_steps_total") == 1500 + 400, "what is made again is counted again"


def test_numpy_numbers_are_numbers(told, exporter):
    exporter.row(
        "report", {"env_steps": np.int64(5), "progress": np.float32(0.5), "shared/loss": np.float32("nan")}
    )
    assert told.get("seqrl_env_steps_total") == 5.0
    assert told.get("seqrl_progress_ratio") == 0.5
    assert told.get("seqrl_nonfinite_total", source="report") == 1.0


def test_labels_of_shards_and_quantiles(told, exporter):
    exporter.row(
        "report",
        {
            "shared/replay0_rows": 10,
            "shared/replay12_rows": 20,
            "shared/replay1_insert_wait_s": 1.5,
            "shared/pacing_insert_wait_s": 0.0,
            "queued_fragments1": 3,
            "policy_lag_p50": 2.0,
            "policy_lag_p95": 7.0,
        },
    )
    assert told.get("seqrl_replay_rows", policy="shared", shard="12") == 20
    assert told.get("seqrl_insert_wait_seconds_total", policy="shared", shard="1") == 1.5
    assert told.get("seqrl_insert_wait_seconds_total", policy="shared", shard="learner") == 0.0
    assert told.get("seqrl_queued_fragments", shard="1") == 3
    assert told.get("seqrl_policy_lag_updates", quantile="0.95") == 7.0


def test_nan_is_counted_and_never_exported(told, exporter):
    exporter.row("report", {"shared/loss": 0.5, "samples_per_insert": None, "shared/pacing_error": math.nan})
    assert told.get("seqrl_nonfinite_total", source="report") == 0.0, "a ratio that has not begun is no loss"
    exporter.row("report", {"shared/loss": math.nan, "shared/q": math.inf})
    assert told.get("seqrl_nonfinite_total", source="report") == 2.0
    assert ("seqrl_algorithm_metric", (("policy", "shared"), ("metric", "loss"))) not in exporter._gauges


def test_deaths_and_what_they_cost(told, exporter):
    death = {"what": "learner", "at_s": 9.0, "recover_s": 2.5, "lost_steps": 64, "lost_updates": 0}
    exporter.row("failure", {**death, "diverged": False})
    exporter.row("failure", {**death, "recover_s": None, "diverged": True})
    assert told.get("seqrl_restarts_total", kind="learner") == 2.0
    assert told.get("seqrl_lost_env_steps_total", kind="learner") == 128.0
    assert told.get("seqrl_recovery_seconds_total", kind="learner") == 2.5
    assert told.get("seqrl_nonfinite_total", source="learner") == 1.0


def test_what_a_sweep_changes(told, exporter):
    for event in ("copy", "anew", "copy", "diverged"):
        exporter.row("sweep", {"event": event, "env_steps": 10})
    assert told.get("seqrl_exploits_total", action="copy") == 2.0
    assert told.get("seqrl_exploits_total", action="anew") == 1.0
    assert told.get("seqrl_nonfinite_total", source="learner") == 1.0


def test_returns_and_evaluations(told, exporter):
    for value in (1.0, 3.0):
        exporter.row("episode", {"actor": "actor-0", "return": value})
    exporter.row("report", {"env_steps": 8})
    assert told.get("seqrl_episode_headline", metric="return") == 2.0
    rows = [{"seed": 1, "return": 5.0}, {"seed": 2, "return": 7.0}]
    exporter.row("evaluation", {"name": "random", "final": True, "episodes": rows})
    assert told.get("seqrl_evaluation_headline", metric="return") is None
    exporter.row("evaluation", {"name": "policy", "final": False, "episodes": rows})
    assert told.get("seqrl_evaluation_headline", metric="return") == 6.0


class Clock:
    """Stands for `time`."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clocked(told, monkeypatch):
    """(an exporter whose clock stands, a function that moves it and waits until gauges are said again)."""
    clock = Clock()
    monkeypatch.setattr(metrics, "time", clock)
    monkeypatch.setattr(metrics, "REFRESH_S", 0.005)
    exporter = metrics.Exporter(recipe("learner.report_every_s=2"), told)

    def later(seconds):
        clock.now += seconds
        said = told.said
        for _ in range(500):
            if told.said >= said + 20:  # more than one round
                return
            threading.Event().wait(0.01)
        raise AssertionError("gauges are not said again")

    yield exporter, later
    exporter.close()


def test_the_age_of_the_newest_update_and_how_long_it_was_in_coming(told, clocked):
    """What the alert on a learner that stands compares; no report is needed for the age to grow."""
    exporter, later = clocked

    def seen():
        return told.get("seqrl_update_age_seconds"), told.get("seqrl_update_interval_seconds")

    exporter.row("report", {"updates": 0})
    later(20.0)
    assert seen() == (None, None), "nothing has been learned yet"
    exporter.row("report", {"updates": 5})
    assert seen() == (0.0, 20.0), "from the beginning"
    later(300.0)
    assert seen() == (300.0, 20.0)
    exporter.row("report", {"updates": 6})
    assert seen() == (0.0, 300.0)
    later(50.0)
    exporter.row("report", {"updates": 6})
    exporter.row("report", {"updates": 4})  # a restored learner's
    assert seen() == (50.0, 300.0)
    exporter.row("report", {"updates": 5})
    assert seen() == (0.0, 50.0)
    later(0.5)
    exporter.row("report", {"updates": 7})
    assert seen() == (0.0, 2.0), "at least the recipe's"


def test_a_member_that_is_judged_misses_no_updates(told, clocked):
    exporter, later = clocked
    exporter.row("report", {"updates": 5})
    exporter.trained()
    later(600.0)
    assert told.get("seqrl_training") == 0.0
    exporter.row("evaluation", {"name": "policy", "final": False, "episodes": []})
    assert told.get("seqrl_training") == 1.0 and told.get("seqrl_update_age_seconds") == 0.0
    exporter.trained()
    exporter.row("evaluation", {"name": "policy", "final": True, "episodes": []})
    assert told.get("seqrl_training") == 0.0


def test_gauges_are_said_again_until_the_end(told, monkeypatch):
    """Ray forgets a gauge that is not set anew; the thread must end with the folder."""
    monkeypatch.setattr(metrics, "REFRESH_S", 0.01)
    exporter = metrics.Exporter(recipe(), told)
    exporter.row("report", {"progress": 0.5})
    said, waited = told.said, threading.Event()
    for _ in range(500):
        if told.said >= said + 4:
            break
        waited.wait(0.01)
    assert told.said >= said + 4
    exporter.trained()
    assert told.get("seqrl_training") == 0.0
    exporter.close()
    said = told.said
    waited.wait(0.1)
    assert told.said == said
    exporter.close()


def test_the_run_folder_tells_the_same_as_it_writes(told, tmp_path):
    mine = recipe()
    folder = RunFolder(tmp_path / "run", mine, resumed=False, listener=metrics.Exporter(mine, told))
    folder.report({"env_steps": 100, "updates": 7})
    folder.failure("actor", at_s=1.0, recover_s=0.5, lost_steps=3, lost_updates=0)
    folder.change("copy", env_steps=100, donor=1)
    folder.trained()
    folder.close()
    assert told.get("seqrl_updates_total") == 7.0
    assert told.get("seqrl_restarts_total", kind="actor") == 1.0
    assert told.get("seqrl_exploits_total", action="copy") == 1.0
    assert '"diverged": false' in (tmp_path / "run" / "metrics.jsonl").read_text()


# ------------------------------------------------------------------------------------------------ the key


def test_on_is_refused_where_nothing_would_be_exported(monkeypatch, tmp_path):
    monkeypatch.setattr(metrics, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r'prometheus="on".*ray\[default\].*leave prometheus out'):
        metrics.refuse_silence(recipe("prometheus=on"))
    metrics.refuse_silence(recipe())
    assert metrics.open_exporter(recipe()) is None
    said: list[str] = []
    metrics.open_exporter(recipe(), say=said.append)
    metrics.open_exporter(recipe("prometheus=off"), say=said.append)
    assert len(said) == 1 and "ray[default]" in said[0]


def test_a_client_connection_exports_nothing(monkeypatch):
    monkeypatch.setattr(metrics, "find_spec", lambda name: object())
    assert metrics.obstacle() is None
    assert metrics.obstacle("10.0.0.1:6379") is None
    assert "ray://" in str(metrics.obstacle("ray://10.0.0.1:10001"))


def test_on_without_ray_is_refused(tmp_path):
    with pytest.raises(RecipeError, match=r'prometheus="on" with --local'):
        api.train("classic/cartpole", ["prometheus=on"], run_dir=tmp_path / "run", local=True, quiet=True)
    assert not (tmp_path / "run").exists()
