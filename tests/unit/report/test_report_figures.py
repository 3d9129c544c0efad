import re

import numpy as np
import pytest

from seqrl_ray.report.learning import learning_curve, seed_by_seed
from seqrl_ray.report.phases import Track, phases, tracks
from seqrl_ray.report.run_folder import RunFolder, read_run
from seqrl_ray.report.style import PALETTE, canvas, label_lines, look, shorten, spread, svg, wants_log
from seqrl_ray.report.system import learner_metrics, rates
from seqrl_ray.report.traffic import extent, per_minute, per_signal, totals, trip_delay

EMPTY = RunFolder(path=None)
TEXT = re.compile(r"<text[^>]*>([^<]*)</text>")


@pytest.fixture(scope="module")
def run(traffic_run):
    return read_run(traffic_run)


def test_palette_can_be_found_again():
    light = [pair[0] for pair in PALETTE.values()]
    assert len(set(light)) == len(light)
    assert all(re.fullmatch("#[0-9a-f]{6}", paint) for pair in PALETTE.values() for paint in pair)


def contrast(one, other):
    def luminance(paint):
        channels = [int(paint[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [0, 1])
def test_text_is_legible_in_both_themes(theme):
    paper = PALETTE["paper"][theme]
    for name in PALETTE.keys() - {"grid", "paper", "random"}:
        assert contrast(PALETTE[name][theme], paper) >= 4.5, name  # WCAG 2.1 AA for text
    assert contrast(PALETTE["random"][theme], paper) >= 3.0  # lines


@pytest.mark.parametrize(
    ("places", "gap", "expected"),
    [
        ([], 1.0, []),
        ([3.0], 1.0, [3.0]),
        ([0.0, 5.0], 1.0, [0.0, 5.0]),
        ([0.0, 0.0], 1.0, [-0.5, 0.5]),
        ([1.0, 0.9, 5.0], 1.0, [1.45, 0.45, 5.0]),
        ([0.0, 0.0, 0.0, 1.2], 1.0, [-1.2, -0.2, 0.8, 1.8]),
    ],
)
def test_spread(places, gap, expected):
    assert spread(places, gap) == pytest.approx(expected)


def test_spread_keeps_order_and_distance():
    places = np.random.default_rng(0).uniform(0, 10, 40)
    moved = np.array(spread(list(places), 0.3))
    order = np.argsort(places)
    assert np.diff(moved[order]).min() >= 0.3 - 1e-9
    assert moved.mean() == pytest.approx(places.mean())


def test_svg_is_themed_unique_and_self_contained():
    with look():
        figure, (axes,) = canvas(2)
        axes.plot([0, 1], [0, 1], color=PALETTE["policy"][0])
        axes.set_ylim(0, 1)
        label_lines(axes, [("a & b", 0.5, PALETTE["fixed"][0])], height_in=2)
        first, second = svg(figure, "one", 'say "x" < y'), svg(figure, "two", "y")
    assert 'aria-label="say &quot;x&quot; &lt; y"' in first
    assert "a &amp; b" in first
    assert "var(--policy)" in first
    assert not any(light in first for light, _ in PALETTE.values())
    ids = re.findall(r'\bid="([^"]+)"', first)
    assert len(ids) == len(set(ids))
    assert not set(ids) & set(re.findall(r'\bid="([^"]+)"', second))
    for reference in re.findall(r'(?:href="|url\()#([^")]+)', first):
        assert reference in ids
    assert "<metadata" not in first


def test_a_figure_is_a_function_of_the_run(run):
    assert learning_curve(run) == learning_curve(run)


def test_per_minute_by_hand():
    time_s, values = np.array([110.0, 160.0, 170.0, 300.0]), np.array([[1.0], [3.0], [7.0], [5.0]])
    minute, means = per_minute(time_s, values, 100.0)
    assert list(minute) == [0.5, 1.5, 3.5]  # no samples in the third minute: no point
    assert means.ravel().tolist() == [2.0, 7.0, 5.0]  # 160 ends the first minute


def test_the_episode_begins_with_its_first_change():
    sampled = {"time_s": np.array([10.0, 20.0, 30.0])}
    assert extent(sampled) == (10.0, 30.0)
    assert extent({**sampled, "change_time_s": np.array([0.0, 12.0])}) == (0.0, 30.0)


def test_track_spans_and_switches_by_hand():
    track = Track(np.array([0.0, 10.0, 13.0, 30.0, 33.0]), np.array([0, -1, 1, -1, 1]))
    assert track.spans(5.0, 32.0) == [(5.0, 5.0, 0), (10.0, 3.0, -1), (13.0, 17.0, 1), (30.0, 2.0, -1)]
    assert (
        track.greens_started(0.0, 100.0) == 1
    )  # 0 -> 1; green 1 resumed after the transition is no other green
    assert track.greens_started(0.0, 10.0) == 0


def test_tracks_name_greens_by_their_place_and_all_else_transition():
    details = {
        "phase_states": np.array([["Gr", "rG", "Gr"], ["G", "", ""]]),  # one stands twice: its first place
        "change_time_s": np.array([0.0, 5.0, 20.0, 30.0, 40.0]),
        "change_signal": np.array([0, 1, 0, 0, 0]),
        "change_state": np.array(["Gr", "G", "rG", "ry", "rG"]),
    }
    first, second = tracks(details)
    assert first.spans(0.0, 50.0) == [(0.0, 20.0, 0), (20.0, 10.0, 1), (30.0, 10.0, -1), (40.0, 10.0, 1)]
    assert second.spans(0.0, 50.0) == [(5.0, 45.0, 0)]


def test_learning_curve_shows_curve_evaluations_baselines_and_final_policy(run):
    drawing = learning_curve(run)
    texts = TEXT.findall(drawing.svg)
    final, fixed = run.mean("policy"), run.mean("fixed")
    assert f"fixed {fixed:.1f}" in texts
    assert {"training: median and middle half", "evaluation: mean and range", "final policy"} <= set(texts)
    assert f"Final policy {final:.1f}" in drawing.alt
    assert "500 training episodes" in drawing.alt


def test_learning_curve_of_a_few_episodes_shows_each(run):
    few = RunFolder(path=None, episodes=tuple({"env_steps": i, "return": 1.0} for i in range(1, 6)))
    assert "training episode" in TEXT.findall(learning_curve(few).svg)


def test_seed_figure_names_controllers_and_says_what_it_leaves_out(run):
    drawing = seed_by_seed(run)
    assert {"policy", "fixed", "max_pressure", "random"} <= set(TEXT.findall(drawing.svg))
    assert "random is left out there" in drawing.caption
    assert "Policy minus fixed" in drawing.alt
    assert "Policy minus random" not in drawing.alt


def test_per_signal_has_a_panel_per_signal(run):
    texts = TEXT.findall(per_signal(run, "queue").svg)
    assert [t for t in texts if t.startswith("gneJ")] == ["gneJ7"]
    assert "247379907" in texts


def test_phase_figure_compares_policy_with_fixed(run):
    for excerpt in (True, False):
        drawing = phases(run, excerpt=excerpt)
        assert {"policy", "fixed", "green 0", "green 3", "transition"} <= set(TEXT.findall(drawing.svg))
        assert re.search(r"hour: policy \d+, fixed \d+", drawing.caption)
    assert phases(run, excerpt=True).title == "Minutes 25 to 35, where queues are longest under policy"


def test_trip_figure_gives_median_and_p95_of_everyone(run):
    delay = run.details["policy"]["trip_delay_s"]
    median, late = np.percentile(delay, (50, 95))
    assert f"policy {median:.1f} / {late:.1f} s" in trip_delay(run).alt


def test_rates_and_learner_figures(run):
    texts = TEXT.findall(rates(run).svg)
    assert {"updates per s", "samples per insert", "p50", "p95", "actors, shared", "learner, shared"} <= set(
        texts
    )
    assert "Dotted lines mark failures." in rates(run).caption
    shown = set(TEXT.findall(learner_metrics(run).svg))
    assert {"loss", "epsilon"} <= shown
    assert not any("pacing" in text or "replay" in text for text in shown)


def test_every_figure_is_absent_without_its_data():
    assert learning_curve(EMPTY) is None
    assert seed_by_seed(EMPTY) is None
    assert totals(EMPTY) is None
    assert per_signal(EMPTY, "delay_rate") is None
    assert phases(EMPTY, excerpt=True) is None
    assert trip_delay(EMPTY) is None
    assert rates(EMPTY) is None
    assert learner_metrics(EMPTY) is None


def test_small_helpers():
    assert shorten("cluster_1757124350_1757124352", 11) == "clust…24352"
    assert shorten("short", 11) == "short"
    assert wants_log(np.array([1.0, 13.0]))
    assert not wants_log(np.array([1.0, 12.0]))
    assert not wants_log(np.array([0.0, 100.0]))
    assert not wants_log(np.array([]))
