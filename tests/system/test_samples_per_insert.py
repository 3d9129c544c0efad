"""Samples per insert is what was asked for, in every report row from 20,000 inserted items on, undrained."""

from __future__ import annotations

import json

import pytest

from tests.system.runs import train

pytestmark = pytest.mark.system

WIRINGS = {
    "colocated": ("replay.wiring=colocated",),
    "service": ("replay.wiring=service", "replay.shards=2", "actors.count=2"),
}


@pytest.mark.parametrize("wiring", WIRINGS)
def test_samples_per_insert_is_within_one_percent_over_the_run(ray_here, tmp_path, capsys, wiring):
    overrides = ("stop.env_steps=45000", "learner.report_every_s=0.5", "replay.samples_per_insert=4.0")
    train(tmp_path / "run", *overrides, *WIRINGS[wiring])
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    reports = [r for r in rows if r["kind"] == "report"]
    for what in ("duplicate_rows", "refused_rows"):  # no fragment came out of order
        assert sum(v for r in reports for k, v in r.items() if k.endswith(what)) == 0
    assert any(k.endswith("duplicate_rows") for k in reports[-1])
    judged = [
        (r["shared/pacing_inserted"], abs(r["samples_per_insert"] / 4.0 - 1.0))
        for r in reports
        if r["shared/pacing_inserted"] >= 20_000
    ]
    assert len(judged) >= 3, "too few rows to judge"
    worst = max(error for _, error in judged)
    with capsys.disabled():
        print(f"\n  samples per insert, {wiring}: largest error {worst:.2%} over {len(judged)} rows")
    assert worst <= 0.01
