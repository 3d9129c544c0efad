# ruff: noqa: RUF001  a report prints real multiplication signs
import io
import json
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
from rich.console import Console

from seqrl_ray import report

VOID = {"meta", "br", "path", "use", "rect", "image", "circle", "line", "polygon"}


class Checker(HTMLParser):
    """Collects ids, links and everything that would load from outside; checks that tags close in order."""

    def __init__(self):
        super().__init__()
        self.open, self.ids, self.links, self.outside, self.svgs, self.text = [], [], [], [], [], []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if "id" in given:
            self.ids.append(given["id"])
        if tag == "a":
            self.links.append(given["href"])
        if tag == "svg":
            self.svgs.append(given)
        for name in ("src", "href", "xlink:href"):
            if not given.get(name, "#").startswith(("#", "data:")):
                self.outside.append(given[name])
        if tag in ("script", "link", "iframe"):
            self.outside.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def check(path):
    page = path.read_text(encoding="utf-8")
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert checker.outside == []
    assert len(checker.ids) == len(set(checker.ids))
    assert {link.removeprefix("#") for link in checker.links} <= set(checker.ids)
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in checker.svgs)
    assert "url(http" not in page and "@import" not in page
    return page, checker


def terminal(run):
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(report.table(run))
    return console.export_text()


def test_traffic_report_is_whole_and_self_contained(traffic_run, tmp_path):
    run = shutil.copytree(traffic_run, tmp_path / "run")
    path = report.html(run)
    assert path == run / "report.html"
    page, checker = check(path)
    assert len(checker.svgs) == 10
    assert {
        "run",
        "controllers",
        "learning",
        "seeds",
        "signals",
        "phases",
        "trips",
        "system",
        "failures",
    } <= set(checker.ids)
    assert 'class="missing"' not in page
    assert "Delay 17.9" in page
    assert "prefers-color-scheme:dark" in page and "@media print" in page


def test_gym_report_leads_with_the_return(gym_run, tmp_path):
    page, checker = check(report.html(shutil.copytree(gym_run, tmp_path / "run")))
    assert "signals" not in checker.ids and "phases" not in checker.ids
    assert "higher is better" in page
    assert "× fixed" not in page
    assert "Nothing died." in page


@pytest.mark.parametrize(("signals", "figures"), [(1, 8), (21, 10)])
def test_any_number_of_signals(new_traffic_run, tmp_path, signals, figures):
    run = new_traffic_run(tmp_path / "run", signals=signals, seeds=1)
    page, checker = check(report.html(run))
    assert len(checker.svgs) == figures  # one signal needs no small multiples
    assert "one pair allows no claim" in page
    assert "unclear" in terminal(run)
    assert len(page) < 3_000_000


@pytest.mark.parametrize(
    ("removed", "says"),
    [
        ("summary.json", "summary.json holds no evaluation and no baselines."),
        ("metrics.jsonl", "metrics.jsonl holds no report rows."),
        ("recipe.toml", "recipe.toml is missing."),
        ("evaluation", "-details.npz is missing or lacks"),
        ("evaluation/fixed-details.npz", "No episode of fixed was recorded."),
    ],
)
def test_what_is_missing_is_said(small_run, gym_run, tmp_path, removed, says):
    run = shutil.copytree(small_run if removed.startswith("evaluation") else gym_run, tmp_path / "run")
    gone = run / removed
    shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    if removed == "recipe.toml":
        (run / "summary.json").unlink()  # versions stand there too
    page, _ = check(report.html(run))
    text = page.replace("&lt;", "<").replace("&gt;", ">")
    assert says in text
    terminal(run)


def test_names_from_files_are_escaped(new_gym_run, tmp_path):
    run = new_gym_run(tmp_path / "run")
    (run / "recipe.toml").write_text('name = "<script>alert(1)</script>"\n')
    summary = json.loads((run / "summary.json").read_text())
    summary["baselines"]["<b>&"] = summary["baselines"]["random"]
    summary["status"] = "<i>"
    (run / "summary.json").write_text(json.dumps(summary))
    page, _ = check(report.html(run))
    assert "<script>" not in page and "<b>&" not in page and "<i>" not in page
    assert "&lt;script&gt;" in page


def test_an_unclear_comparison_is_not_called_better(new_gym_run, tmp_path):
    run = new_gym_run(tmp_path / "run", policy_level=23.0)
    summary = json.loads((run / "summary.json").read_text())
    summary["paired"]["random"]["return"] = {"mean_difference": 2.0, "ci95": [-1.0, 5.0], "n": 20}
    (run / "summary.json").write_text(json.dumps(summary))
    page, _ = check(report.html(run))
    assert "the interval includes 0, no difference is shown." in page
    assert '<td class="better">' not in page and '<td class="worse">' not in page


def test_terminal_table_fits_80_columns(traffic_run):
    text = terminal(traffic_run)
    lines = text.splitlines()
    assert max(len(line) for line in lines) <= 80
    assert "…" not in text
    row = next(line for line in lines if line.strip().startswith("max_pressure"))
    assert row.split()[-1] == "better"
    assert "Failures" in text and "4,096" in text
    assert "0 safety violations" in text


def test_terminal_of_a_bare_run(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    text = terminal(tmp_path)
    assert "No evaluation of the final policy" in text
    assert "summary.json is missing" in text


def test_unknown_controllers_and_many_phases_are_drawn(small_run, tmp_path):
    run = shutil.copytree(small_run, tmp_path / "run")
    for kind in (".json", "-details.npz"):
        shutil.copy(run / "evaluation" / f"fixed{kind}", run / "evaluation" / f"zeta{kind}")
    rows = json.loads((run / "evaluation" / "zeta.json").read_text())
    (run / "evaluation" / "zeta.json").write_text(json.dumps({**rows, "name": "zeta"}))
    file = run / "evaluation" / "policy-details.npz"
    with np.load(file) as archive:
        details = dict(archive)
    greens = json.loads(str(details["phase_states"]))
    details["phase_states"] = np.array(json.dumps([["never"] * 9 + row for row in greens]))
    np.savez(file, **details)
    page, _ = check(report.html(run))
    assert "zeta" in page
    assert "colours repeat above" in page


def test_importing_report_is_light():
    code = (
        "import sys, seqrl_ray.report; print({'matplotlib', 'rich', 'numpy', 'torch'} & sys.modules.keys())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "set()"
