# ruff: noqa: RUF001  real minus signs, dashes and multiplication signs are what a report prints
import pytest

from seqrl_ray.report.run_folder import Difference, RunFolder, Stat
from seqrl_ray.report.wording import (
    best_rule,
    comparisons,
    duration,
    headline,
    metric_of,
    number,
    ratio,
    span,
    verdict,
    warnings,
)

LOWER, HIGHER = metric_of("delay_s"), metric_of("return")


def stat(mean, n=10):
    return Stat(mean, mean, mean, (mean - 1, mean + 1), n)


def traffic(means, paired=None, **more):
    """A run judged by delay, with these mean delays."""
    stats = {name: {"delay_s": stat(mean), **more.get(name, {})} for name, mean in means.items()}
    summary = {"status": "completed", "headline": {"metric": "delay_s", "lower_is_better": True}}
    return RunFolder(path=None, summary=summary, stats=stats, paired=paired or {})


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (float("nan"), "–"),
        (0.0, "0"),
        (18.34, "18.3"),
        (0.38449, "0.384"),
        (1234.5, "1,234"),
        (360_000, "360,000"),
        (-5.1, "−5.10"),
        (2.0, "2"),
        (0.00012345, "0.000123"),
        (3e-9, "3.00e-09"),
    ],
)
def test_number(value, text):
    assert number(value) == text


def test_signed_numbers_and_spans():
    assert number(5.1, sign=True) == "+5.10"
    assert number(0.0, sign=True) == "0"
    assert span((-6.2, -4.0), sign=True) == "−6.20 to −4"
    assert span((1000.1, 1000.4)) == "1,000.1 to 1,000.4"  # three digits would not tell the ends apart
    assert span(None) == "–"


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "–"), (1.4, "1.40 s"), (610, "10 min"), (7260, "2 h 01 min")]
)
def test_duration(seconds, text):
    assert duration(seconds).replace("\u202f", " ") == text


@pytest.mark.parametrize(
    ("interval", "metric", "word"),
    [
        ((-6.0, -4.0), LOWER, "better"),
        ((4.0, 6.0), LOWER, "worse"),
        ((4.0, 6.0), HIGHER, "better"),
        ((-6.0, -4.0), HIGHER, "worse"),
        ((-6.0, 0.1), LOWER, "unclear"),
        ((-6.0, 0.0), LOWER, "unclear"),
        (None, LOWER, "unclear"),
    ],
)
def test_a_difference_is_claimed_only_where_the_interval_excludes_zero(interval, metric, word):
    mean = 5.0 if interval is None else sum(interval) / 2
    assert verdict(Difference(mean, interval, 10), metric) == word
    assert verdict(None, metric) == ""


def test_headline_of_a_traffic_run():
    flags = {"gridlocked": Stat(0.0, 0.0, 0.0, None, 10), "safety_violations": Stat(0.1, 0.0, 0.0, None, 10)}
    run = traffic({"policy": 18.3, "fixed": 48.2, "max_pressure": 23.4, "random": 9.0}, policy=flags)
    assert best_rule(run) == "max_pressure"  # random play is no rule, however well it does
    expected = "Delay 18.3 s = 0.38 × fixed, 0.78 × the best rule (max_pressure); 10 held-out seeds; "
    assert headline(run).replace("\u202f", " ") == expected + "0 gridlocked; 1 safety violation."
    assert "must not drive a real signal" in warnings(run)[0]


def test_headline_when_the_fixed_plan_is_the_best_rule():
    run = traffic({"policy": 30.0, "fixed": 20.0, "greedy": 40.0})
    text = headline(run).replace("\u202f", " ")
    assert text == "Delay 30 s = 1.50 × fixed (the best rule); 10 held-out seeds."


def test_headline_without_baselines_or_evaluation():
    assert "no baseline to compare with" in headline(traffic({"policy": 30.0}))
    assert headline(traffic({"fixed": 20.0})) == (
        "No evaluation of the final policy: nothing is known about its delay."
    )


def test_comparisons_never_claim_what_the_interval_does_not_show():
    paired = {
        "max_pressure": {"delay_s": Difference(-0.4, (-1.1, 0.3), 10)},
        "fixed": {"delay_s": Difference(-30.0, (-32.0, -28.0), 10)},
    }
    run = traffic({"policy": 23.0, "fixed": 48.2, "max_pressure": 23.4}, paired)
    rule, fixed = (sentence.replace("\u202f", " ") for sentence in comparisons(run))
    assert rule == (
        "Against max_pressure, paired on 10 seeds: −0.400 s (95 % interval −1.10 to +0.300): "
        "the interval includes 0, no difference is shown."
    )
    assert fixed.endswith("(95 % interval −32 to −28): better.")
    assert "better" not in rule


def test_comparison_of_a_single_seed_or_of_none():
    run = traffic({"policy": 1.0, "fixed": 2.0}, {"fixed": {"delay_s": Difference(-1.0, None, 1)}})
    assert comparisons(run)[0].endswith("one pair allows no claim.")
    assert comparisons(traffic({"policy": 1.0, "fixed": 2.0})) == [
        "Against fixed: no paired comparison on the same seeds."
    ]


def test_ratios_exist_only_where_lower_is_better():
    assert ratio(traffic({"policy": 10.0, "fixed": 40.0}), "policy", "fixed") == 0.25
    assert ratio(traffic({"policy": 10.0, "fixed": 0.0}), "policy", "fixed") is None
    returns = {"policy": {"return": stat(480.0)}, "fixed": {"return": stat(20.0)}}
    assert ratio(RunFolder(path=None, stats=returns), "policy", "fixed") is None


def test_warnings_name_gridlock_and_unfinished_runs():
    run = traffic({"greedy": 80.0}, greedy={"gridlocked": Stat(0.3, 0.0, 1.0, None, 10)})
    assert warnings(run) == ["greedy: 3 of 10 episodes gridlocked: compare medians, not means."]
    assert "did not end in order" in warnings(RunFolder(path=None))[0]
    failed = RunFolder(path=None, summary={"status": "interrupted"})
    assert warnings(failed) == [
        "The run's status is “interrupted”: figures are of a run that did not finish."
    ]


def test_unknown_metrics_are_named_after_themselves():
    assert metric_of("delay_p95_s").title == "Delay p95 (s)"
    assert metric_of("jam_elsewhere").title == "Jam elsewhere"
