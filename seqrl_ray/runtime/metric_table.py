"""Every metric that a run exports to Prometheus: one table.

`runtime/metrics.py` exports by it; `docs/make_dashboard.py` makes the Grafana dashboard, the alert rules and
docs/metrics.md from it. Plain data: nothing here needs Ray.

A metric is taken from the rows that go to metrics.jsonl (docs/operations.md), so both tell the same. Ray puts
`ray_` before each name. Names are as Prometheus wants them: a unit at the end, `_total` for what only grows.

Labels: every series has `run`, the recipe's name, and `seed`, its seed. Neither is an id of a moment: a run
that is resumed, or begun again tomorrow, goes on under the same labels, and dashboards and alerts need not
change. Two runs of one name and seed at one time would be added up: give one another `name`. A member of a
sweep is a run of its own, `<name>-<number>`. The other labels are policies, shards, kinds of process and
names of metrics: a handful each, given by the recipe. Ray adds labels of its own, WorkerId among them: each
driver process makes some fifty new series, and every expression adds up or maximises over them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from seqrl_ray.loops.listener import PROCESSES

Show = Literal["rate", "value", "sum", "largest"]
"""How a panel shows a metric: a counter's rate per second; a gauge as it is; a counter of events, added up
over the processes that counted; a counter that begins where an earlier process left it, the largest of them.
"""

RUN = ("run", "seed")
"""Labels of every metric."""

PREFIX = "ray_"
"""What Ray puts before the names."""


@dataclass(frozen=True)
class Metric:
    """One metric."""

    name: str
    kind: Literal["counter", "gauge"]
    unit: str
    """In words."""
    labels: tuple[str, ...]
    """Beside `RUN`."""
    help: str
    panel: str
    """Title of the panel that shows it."""
    show: Show
    row: Literal["report", "failure", "sweep", "own"]
    """Kind of the row it is taken from; "own" = worked out by the exporter, see `metrics.Exporter`."""
    field: str = ""
    """Regular expression of the whole name of a field; a named group is a label's value. "" = rows are
    counted.
    """
    begins: tuple[str, ...] = ()
    """Values of the only label that count from 0 before anything has happened: a counter that begins with its
    first event has not increased, and no alert hears of it.
    """

    @property
    def exported(self) -> str:
        """Name in Prometheus."""
        return PREFIX + self.name


METRICS: tuple[Metric, ...] = (
    # ---- throughput
    Metric(
        "seqrl_env_steps_per_second", "gauge", "steps per second", (),
        "Steps of environment copies per second since the report before.",
        "Environment steps per second", "value", "report", "env_steps_per_s",
    ),
    Metric(
        "seqrl_updates_per_second", "gauge", "updates per second", (),
        "Gradient steps of all policies per second since the report before.",
        "Updates per second", "value", "report", "updates_per_s",
    ),
    Metric(
        "seqrl_progress_ratio", "gauge", "share", (),
        "Share of the run's budget that is spent.",
        "Progress", "value", "report", "progress",
    ),
    Metric(
        "seqrl_training", "gauge", "on", (),
        "1 from the first report to the end of training, 0 afterwards, and while a sweep's member is judged; "
        "the series ends with the run.",
        "Training", "value", "own",
    ),
    Metric(
        "seqrl_update_age_seconds", "gauge", "seconds", (),
        "Seconds since a report had new updates; begins with the run's first.",
        "Newest update", "value", "own",
    ),
    Metric(
        "seqrl_update_interval_seconds", "gauge", "seconds", (),
        "How long the newest updates were in coming: seconds between the newest two reports that had some, "
        "or from the run's beginning to the first; at least learner.report_every_s.",
        "Newest update", "value", "own",
    ),
    Metric(
        "seqrl_env_steps_total", "counter", "steps", (),
        "Steps of environment copies. Begins where a resumed run stands; what a death lost is made, and "
        "counted, again.",
        "Steps, updates, episodes", "largest", "report", "env_steps",
    ),
    Metric(
        "seqrl_agent_steps_total", "counter", "steps", (),
        "Decisions of agents, likewise.",
        "Steps, updates, episodes", "largest", "report", "agent_steps",
    ),
    Metric(
        "seqrl_updates_total", "counter", "updates", (),
        "Gradient steps of all policies, likewise.",
        "Steps, updates, episodes", "largest", "report", "updates",
    ),
    Metric(
        "seqrl_episodes_total", "counter", "episodes", (),
        "Training episodes that ended, likewise.",
        "Steps, updates, episodes", "largest", "report", "episodes",
    ),
    # ---- learning
    Metric(
        "seqrl_episode_headline", "gauge", "value", ("metric",),
        "Mean of the recipe's headline metric over the last 100 training episodes, in that metric's unit.",
        "Training episodes", "value", "own",
    ),
    Metric(
        "seqrl_evaluation_headline", "gauge", "value", ("metric",),
        "Mean of the headline metric of the policy's newest evaluation, in that metric's unit.",
        "Evaluations", "value", "own",
    ),
    Metric(
        "seqrl_policy_lag_updates", "gauge", "updates", ("quantile",),
        "Updates between the weights that acted and the learner's: median and 95 % point of all fragments of "
        "the run so far.",
        "Policy lag", "value", "report", r"policy_lag_p(?P<quantile>50|95)",
    ),
    Metric(
        "seqrl_algorithm_metric", "gauge", "value", ("policy", "metric"),
        "The algorithm's own metrics (losses, values, norms): means since the report before.",
        "$metric", "value", "own",
    ),
    # ---- replay
    Metric(
        "seqrl_samples_per_insert", "gauge", "ratio", (),
        "Items drawn per item inserted, as it came out so far; mean over policies.",
        "Samples per insert", "value", "report", "samples_per_insert",
    ),
    Metric(
        "seqrl_samples_per_insert_error_ratio", "gauge", "share", ("policy",),
        "How far samples per insert is from what the recipe asks for.",
        "Samples per insert, error", "value", "report", r"(?P<policy>[^/]+)/pacing_error",
    ),
    Metric(
        "seqrl_inserted_items_total", "counter", "items", ("policy",),
        "Items that became sampleable.",
        "Items per second", "rate", "report", r"(?P<policy>[^/]+)/pacing_inserted",
    ),
    Metric(
        "seqrl_sampled_items_total", "counter", "items", ("policy",),
        "Items drawn.",
        "Items per second", "rate", "report", r"(?P<policy>[^/]+)/pacing_sampled",
    ),
    Metric(
        "seqrl_sample_age_rows", "gauge", "rows", ("policy", "shard"),
        "Rows a shard took in since the items of its latest draw were inserted, on average.",
        "Sample age", "value", "report", r"(?P<policy>[^/]+)/replay(?P<shard>\d*)_mean_item_age_rows",
    ),
    Metric(
        "seqrl_replay_rows", "gauge", "rows", ("policy", "shard"),
        "Rows a shard holds.",
        "Replay rows", "value", "report", r"(?P<policy>[^/]+)/replay(?P<shard>\d*)_rows",
    ),
    Metric(
        "seqrl_replay_bytes", "gauge", "bytes", ("policy", "shard"),
        "Size of a shard's columns.",
        "Replay size", "value", "report", r"(?P<policy>[^/]+)/replay(?P<shard>\d*)_column_bytes",
    ),
    # ---- queues and waits
    Metric(
        "seqrl_insert_wait_seconds_total", "counter", "seconds", ("policy", "shard"),
        "Seconds in which pacing held back what actors had made: they waited for room.",
        "Waits", "rate", "report", r"(?P<policy>[^/]+)/(?:pacing|replay(?P<shard>\d+))_insert_wait_s",
    ),
    Metric(
        "seqrl_sample_wait_seconds_total", "counter", "seconds", ("policy",),
        "Seconds in which pacing held back the learner: it waited for data.",
        "Waits", "rate", "report", r"(?P<policy>[^/]+)/pacing_sample_wait_s",
    ),
    Metric(
        "seqrl_queued_fragments", "gauge", "fragments", ("shard",),
        "Fragments that have arrived and are not inserted yet.",
        "Queues", "value", "report", r"queued_fragments(?P<shard>\d*)",
    ),
    Metric(
        "seqrl_queued_draws", "gauge", "draws", ("policy",),
        "Draws that the learner has asked shards for and not used yet (service wiring).",
        "Queues", "value", "report", r"(?P<policy>[^/]+)/queued_draws",
    ),
    Metric(
        "seqrl_fragments_in_flight", "gauge", "fragments", (),
        "Fragments that the learner has asked actors for (colocated wiring).",
        "Queues", "value", "report", "fragments_in_flight",
    ),
    Metric(
        "seqrl_actors", "gauge", "actors", (),
        "Actors that stand on a node.",
        "Actors", "value", "report", "actors",
    ),
    Metric(
        "seqrl_all_reduce_seconds_total", "counter", "seconds", (),
        "Seconds that the leader of several learners spent adding up gradients, waiting for others included.",
        "All-reduce", "rate", "report", "all_reduce_s",
    ),
    Metric(
        "seqrl_weights_bytes", "gauge", "bytes", (),
        "Size of one version of all policies' weights.",
        "Weights", "value", "report", "weights_bytes",
    ),
    Metric(
        "seqrl_published_weights_bytes_total", "counter", "bytes", (),
        "Weights sent to the board.",
        "Weights published", "rate", "report", "published_bytes",
    ),
    Metric(
        "seqrl_inference_slots_total", "counter", "decisions", (),
        "Decisions that the policy server took (actors.inference = central).",
        "Policy server", "rate", "report", "inference_slots",
    ),
    Metric(
        "seqrl_inference_batch_slots", "gauge", "slots", (),
        "Slots that it decided for in one batch, mean.",
        "Batches of the policy server", "value", "report", "inference_batch_slots",
    ),
    Metric(
        "seqrl_inference_wait_seconds", "gauge", "seconds", (),
        "Seconds that a request waited for its batch to begin, mean.",
        "Wait for the policy server", "value", "report", "inference_wait_s",
    ),
    Metric(
        "seqrl_inference_busy_ratio", "gauge", "share", (),
        "Share of its time that the policy server computes; near 1 it is what actors wait for.",
        "Policy server busy", "value", "report", "inference_busy",
    ),
    # ---- trouble
    Metric(
        "seqrl_restarts_total", "counter", "deaths", ("kind",),
        "Processes of the run that died, by kind; each is replaced while the budget lasts.",
        "Restarts", "sum", "failure", begins=PROCESSES,
    ),
    Metric(
        "seqrl_lost_env_steps_total", "counter", "steps", ("kind",),
        "Environment steps lost with them.",
        "Lost steps", "sum", "failure", "lost_steps", begins=PROCESSES,
    ),
    Metric(
        "seqrl_lost_updates_total", "counter", "updates", ("kind",),
        "Updates lost with them.",
        "Lost updates", "sum", "failure", "lost_updates", begins=PROCESSES,
    ),
    Metric(
        "seqrl_recovery_seconds_total", "counter", "seconds", ("kind",),
        "Seconds from noticing a death to the replacement's first work, added up.",
        "Recovery", "sum", "failure", "recover_s", begins=PROCESSES,
    ),
    Metric(
        "seqrl_nonfinite_total", "counter", "events", ("source",),
        "NaN or infinity found; source=learner: updates after which a learner's weights were lost, "
        "source=report: values of the algorithm's own metrics.",
        "Not finite", "sum", "own", begins=("learner", "report"),
    ),
    Metric(
        "seqrl_dropped_steps_total", "counter", "steps", (),
        "Environment steps that a dead or left shard did not take (service wiring).",
        "Dropped", "rate", "report", "dropped_steps",
    ),
    Metric(
        "seqrl_stale_rows_total", "counter", "rows", (),
        "Agent decisions dropped because their weights were older than learner.max_policy_lag_updates.",
        "Dropped", "rate", "report", "stale_rows",
    ),
    Metric(
        "seqrl_stale_priorities_total", "counter", "items", (),
        "Priorities that came back for a row overwritten meanwhile.",
        "Dropped", "rate", "report", "stale_priorities",
    ),
    # ---- sweeps
    Metric(
        "seqrl_exploits_total", "counter", "events", ("action",),
        "What a sweep's board told this member to do: copy another, or begin anew.",
        "Exploits", "sum", "sweep", begins=("copy", "anew"),
    ),
)  # fmt: skip

BY_NAME = {metric.name: metric for metric in METRICS}
