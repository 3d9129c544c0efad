"""Several learners, data-parallel, on a real Ray: whole runs, their counts, their checkpoints."""

from __future__ import annotations

import json

import pytest

from seqrl_ray import api
from seqrl_ray.errors import RecipeError
from tests.system.runs import learner_state, train
from tests.system.test_kills import kill, run_with_a_death, survived

pytestmark = pytest.mark.system

TWO = (
    "learner.count=2",
    "replay.wiring=service",
    "replay.shards=2",
    "actors.count=2",
    "learner.report_every_s=0.5",
)


def reports(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == "report"]


def test_two_learners_train_one_policy_and_count_each_batch_once(ray_here, tmp_path, capsys):
    run = tmp_path / "run"
    summary = train(run, *TWO, "stop.env_steps=5000")
    last = reports(run)[-1]
    assert summary["status"] == "completed"
    assert summary["env_steps"] >= 5000
    assert summary["restarts"] == dict.fromkeys(summary["restarts"], 0)
    assert summary["evaluation"]["return"]["n"] == 2
    inserted, sampled = last["shared/pacing_inserted"], last["shared/pacing_sampled"]
    assert sampled / (inserted - 200) == pytest.approx(4.0, rel=0.02)
    assert 0 <= sampled - 32 * last["updates"] <= 2 * 4 * 32  # drawn and not learned from yet: prefetched
    drawn = sum(v for k, v in last.items() if k.endswith("sampled_items"))
    assert drawn == pytest.approx(sampled, abs=2 * 4 * 32)  # the shards gave as many as the leader counted
    assert last["all_reduce_s"] > 0
    with capsys.disabled():
        share = last["all_reduce_s"] / summary["train_s"]
        print(
            f"\n  two learners: {last['updates']} updates at {summary['updates_per_s']:.0f}/s, "
            f"{share:.0%} of the time in collectives, {last['stale_priorities']} late priorities"
        )


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_learners(ray_here, tmp_path):
    run = tmp_path / "run"
    first = train(run, *TWO, "stop.env_steps=2500")
    before = learner_state(run)
    more = api.resume(run, ["stop.env_steps=4000", "learner.count=1"], quiet=True).summary
    assert more["updates"] > first["updates"]
    again = api.resume(run, ["stop.env_steps=5500", "learner.count=4"], quiet=True).summary
    assert again["status"] == "completed"
    assert again["updates"] > more["updates"]
    after = learner_state(run)
    assert after.keys() == before.keys()
    assert after["adam_steps"] == again["updates"]


def test_a_colocated_checkpoint_is_not_gone_on_from_with_two_learners(ray_here, tmp_path):
    run = tmp_path / "run"
    train(run, "stop.env_steps=600", local=True)
    with pytest.raises(RecipeError, match=r"learner.count=2 and the checkpoint is of the colocated wiring"):
        api.resume(run, ["learner.count=2", "stop.env_steps=900"], quiet=True)


@pytest.mark.kill
@pytest.mark.parametrize("who", ["leader", "follower"])
def test_a_killed_learner_of_two_brings_both_back_from_their_checkpoint(ray_here, tmp_path, capsys, who):
    two = ("replay.wiring=service", "replay.shards=2", "learner.count=2")
    victim = (lambda s: s._learner) if who == "leader" else (lambda s: s._followers[0])
    summary = run_with_a_death(tmp_path, two, lambda session: kill(victim(session)))
    failure = survived(summary, "learner", capsys)
    assert failure["lost_steps"] == 0
    assert 0 < failure["lost_updates"] < summary["updates"]


@pytest.mark.kill
def test_a_killed_shard_of_two_learners_goes_on_from_its_snapshot(ray_here, tmp_path, capsys):
    two = ("replay.wiring=service", "replay.shards=2", "learner.count=2")
    summary = run_with_a_death(tmp_path, two, lambda session: kill(session._shards[1]))
    assert survived(summary, "shard", capsys)["lost_updates"] == 0
