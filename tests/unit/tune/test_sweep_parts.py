"""Parts of a sweep without Ray: room, scores, lineage, the board's log, rolled back rows, the verdict."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from typing import Any

import pytest

from seqrl_ray import api
from seqrl_ray.errors import RecipeError, RunFolderError
from seqrl_ray.runtime.room import Nodes
from seqrl_ray.tune.board import DEFAULT, LOG, Board, lock, read_log
from seqrl_ray.tune.final import sentence, verdict
from seqrl_ray.tune.lineage import chain, experience, schedule
from seqrl_ray.tune.population import Rules
from seqrl_ray.tune.room import make_room
from seqrl_ray.tune.run import roll_back
from seqrl_ray.tune.score import score
from seqrl_ray.tune.settings import DimensionSettings, SweepSettings, load_sweep
from seqrl_ray.tune.space import Space

SPACE = Space({"rate": DimensionSettings(kind="log_uniform", low=1e-5, high=1e-2)})


def sweep(**changed: Any) -> SweepSettings:
    table: dict[str, Any] = {
        "name": "x",
        "recipe": "classic/cartpole",
        "trials": 4,
        "search": {"algorithm.gamma": {"kind": "uniform", "low": 0.5, "high": 0.9}},
        "budget": {"env_steps": 10_000},
    }
    return SweepSettings.model_validate({**table, **changed})


def room(
    settings: SweepSettings,
    cpus: float,
    gpus: float = 0.0,
    actors: int = 1,
    one: bool = True,
    keys: tuple[str, ...] = (),
    nodes: list[Nodes] | None = None,
) -> Any:
    recipe = api.read_recipe("classic/cartpole", [f"actors.count={actors}", *keys])
    return make_room(settings, recipe, one_process=one, cpus=cpus, gpus=gpus, nodes=nodes)


# ------------------------------------------------------------------------------------------------------- room


def test_a_population_shares_the_machine_out():
    assert room(sweep(), 2).bundles() == [{"CPU": 0.5}]
    assert room(sweep(), 64).bundles() == [{"CPU": 1.0}]
    many = room(sweep(trial={"gpus": 0.25}), 4, gpus=1, actors=2, one=False)
    assert many.bundles() == [{}, {"CPU": 0.25, "GPU": 0.25}, {"CPU": 0.25}, {"CPU": 0.25}, {"CPU": 0.25}]


def test_a_population_that_cannot_be_placed_at_once_is_refused_with_the_arithmetic():
    with pytest.raises(RecipeError) as refused:
        room(sweep(trial={"cpus": 1.0}), 2)
    assert str(refused.value) == (
        "trials=4 x 1 process x trial.cpus=1 = 4 CPUs and 4 x trial.gpus=0 = 0 GPUs, and there are 2 CPUs "
        "and 0 GPUs: the population cannot be placed at once, and pbt pauses nobody. Lower trials, "
        "trial.cpus or trial.gpus, or add nodes."
    )
    with pytest.raises(RecipeError, match=r"trials=4 x 4 processes x trial.cpus=0.5 = 8 CPUs"):
        room(sweep(trial={"cpus": 0.5}), 4, actors=2, one=False)
    with pytest.raises(RecipeError, match=r"4 x trial.gpus=0.5 = 2 GPUs, and there are 8 CPUs and 1 GPUs"):
        room(sweep(trial={"gpus": 0.5}), 8, gpus=1)


def test_trials_that_may_queue_need_room_for_one():
    waiting = {"scheduler": {"kind": "asha"}, "trial": {"cpus": 1.0}}
    assert room(sweep(**waiting), 2).bundles() == [{"CPU": 1.0}]
    with pytest.raises(RecipeError, match="not one trial could be placed"):
        room(sweep(**{**waiting, "trial": {"cpus": 3.0}}), 2)


HEAD = Nodes({"place": "head"}, 16.0)
STEADY = Nodes({"place": "rack", "market": "steady"}, 4.0, 1.0)
SPOT = Nodes({"place": "rack", "market": "spot"}, 4.0)
ON_SPOT, ON_STEADY = 'actors.label_selector={market="spot"}', 'learner.label_selector={market="steady"}'


def on_cluster(settings: SweepSettings, *keys: str, actors: int = 1, one: bool = True) -> Any:
    return room(settings, 24, 1.0, actors, one, keys, [HEAD, STEADY, SPOT])


def test_each_bundle_carries_the_labels_of_the_process_it_is_for():
    found = on_cluster(sweep(), ON_SPOT, ON_STEADY, actors=2, one=False)
    assert found.labels() == [{"market": "steady"}, *[{"market": "spot"}] * 3]
    assert found.factory()._bound.kwargs == {"bundle_label_selector": found.labels()}
    assert len(found.factory().bundles) == len(found.labels()), "Tune takes the empty one away"
    assert on_cluster(sweep(), ON_SPOT).labels() == [{"market": "spot"}]
    assert on_cluster(sweep(), ON_SPOT, actors=2, one=False).labels() == [{}, *[{"market": "spot"}] * 3]
    assert on_cluster(sweep()).labels() is None
    assert on_cluster(sweep()).factory()._bound.kwargs == {}


def test_a_process_of_its_own_stands_where_actors_and_learner_may():
    found = on_cluster(sweep(), 'actors.label_selector={place="rack"}', ON_STEADY)
    assert found.labels() == [{"place": "rack", "market": "steady"}]


def test_labels_mean_nothing_on_a_machine_of_our_own():
    found = room(sweep(), 2, keys=(ON_SPOT,))
    assert found.labels() is None and found.cpus == 0.5


def test_an_equal_share_is_one_of_the_nodes_that_are_chosen():
    assert on_cluster(sweep(), ON_SPOT).cpus == 1.0
    assert on_cluster(sweep(trials=5), ON_SPOT).cpus == 0.8
    assert on_cluster(sweep(), ON_SPOT, actors=2, one=False).cpus == 0.33  # 4 x 3 beside the learners
    assert on_cluster(sweep(), ON_STEADY, actors=2, one=False).cpus == 1.0
    rack = 'learner.label_selector={place="rack"}'
    assert on_cluster(sweep(), rack, 'actors.label_selector={place="rack"}', actors=2, one=False).cpus == 0.5


@pytest.mark.parametrize(
    ("trial", "keys", "said"),
    [
        (
            {"cpus": 0.5},
            (ON_SPOT, ON_STEADY),
            "trials=4 x 3 processes x trial.cpus=0.5 = 6 CPUs and 4 x trial.gpus=0 = 0 GPUs on nodes with "
            "actors.label_selector={'market': 'spot'}, and there are 4 CPUs and 0 GPUs there: the population "
            "cannot be placed at once, and pbt pauses nobody. Lower trials, trial.cpus or trial.gpus, add "
            "such nodes, or change the selector.",
        ),
        (
            {"gpus": 0.5},
            (ON_SPOT, ON_STEADY),
            "4 x trial.gpus=0.5 = 2 GPUs, and there are 24 CPUs and 1 GPUs: the population",
        ),
        (
            {"gpus": 0.25},
            ('learner.label_selector={market="spot"}',),
            "1 GPUs on nodes with learner.label_selector={'market': 'spot'}, and there are 4 CPUs and 0 GPUs "
            "there",
        ),
        (
            {"cpus": 0.6},  # 7.2 and 2.4: each fits for itself
            ('actors.label_selector={place="rack"}', 'learner.label_selector={market="spot"}'),
            "4 processes x trial.cpus=0.6 = 9.6 CPUs and 4 x trial.gpus=0 = 0 GPUs on nodes with "
            "learner.label_selector={'market': 'spot'} or actors.label_selector={'place': 'rack'}, and there "
            "are 8 CPUs",
        ),
        ({}, ('actors.label_selector={market="none"}',), "and there are 0 CPUs and 0 GPUs there"),
    ],
)
def test_only_nodes_with_the_labels_count(trial, keys, said):
    with pytest.raises(RecipeError) as refused:
        on_cluster(sweep(trial=trial), *keys, actors=2, one=False)
    assert said in str(refused.value)


def test_searches_that_may_queue_need_room_for_one_trial_on_their_nodes():
    asha = sweep(scheduler={"kind": "asha"}, trial={"cpus": 1.0})
    assert on_cluster(asha, ON_SPOT, actors=2, one=False).labels() is not None
    with pytest.raises(RecipeError, match=r"one trial x 5 processes .* not one trial could be placed"):
        on_cluster(asha, ON_SPOT, actors=4, one=False)


# ------------------------------------------------------------------------------------------------------ score


@pytest.mark.parametrize(
    ("statistic", "if_higher_is_better", "if_lower_is_better"),
    [
        ("mean", 5.25, 5.25),
        ("median", 3.5, 3.5),
        ("iqm", 4.25, 4.25),
        ("worst_quarter", 1.5, 11.0),
        ("worst", 1.0, 15.0),
    ],
)
def test_the_statistics_of_a_score(statistic, if_higher_is_better, if_lower_is_better):
    values = [4.0, 1.0, 7.0, 3.0, 15.0, 2.0, 3.0, 7.0]
    assert score(values, statistic, lower_is_better=False) == if_higher_is_better
    assert score(values, statistic, lower_is_better=True) == if_lower_is_better


def test_one_bad_episode_makes_no_score():
    assert math.isnan(score([1.0, math.nan], "median", lower_is_better=False))
    assert math.isnan(score([1.0, math.inf], "worst", lower_is_better=False))


# ---------------------------------------------------------------------------------------------- board and log


def board(folder: Any, size: int = 3) -> Board:
    return Board(folder, SPACE, Rules(quantile=0.34), size, seed=0)


def tell(to: Board, member: int, number: int, value: float, **more: Any) -> Any:
    return to.report(
        member, number, 100 * number, value, last=False, checkpoint=f"{number:06d}-{member}", **more
    )


def test_a_board_begun_again_tells_every_member_what_it_was_told_before(tmp_path):
    first = board(tmp_path)
    for number in (1, 2):
        for member, value in enumerate([3.0, 2.0, 1.0]):
            answer = tell(first, member, number, value, learned=[f"ref {member} {number}"])
    assert (answer.decision.action, answer.decision.donor, answer.decision.donor_report) == ("copy", 0, 2)
    assert answer.learned == ["ref 0 2"] and answer.donor_checkpoint == "000002-0"
    told = [first.join(member) for member in range(3)]
    text = (tmp_path / LOG).read_bytes()
    del first
    (tmp_path / LOG).write_bytes(text + b'{"event": "report", "mem')  # a kill cut this one short
    second = board(tmp_path)
    assert [second.join(member) for member in range(3)] == told
    assert (tmp_path / LOG).read_bytes().startswith(text)
    assert read_log(tmp_path / LOG)[-1]["event"] == "resumed"
    again = tell(second, 2, 2, 99.0)
    assert again.decision == answer.decision, "an answer that was lost on its way is given again"
    assert again.learned is None and again.donor_checkpoint == "000002-0", "the checkpoint has it too"
    assert again.keep == {"000002-2"}
    assert tell(second, 0, 3, 3.0).keep == {"000003-0", "000002-0"}, "member 2 stands on the older one"


def test_the_default_is_noted_and_never_told_to_copy(tmp_path):
    one = board(tmp_path)
    assert tell(one, DEFAULT, 1, math.nan).decision.action == "go on"
    assert one.join(DEFAULT).checkpoint == "000001--1"
    assert one.standing()["winner"] is None
    row = read_log(tmp_path / LOG)[-1]
    assert (row["event"], row["score"]) == ("default", None)


def test_two_boards_cannot_keep_one_log(tmp_path):
    one = board(tmp_path)
    code = f"from seqrl_ray.tune.board import lock; from pathlib import Path; lock(Path({str(tmp_path)!r}) / "
    code += "'board.jsonl.lock', patience_s=0.2)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and "the sweep is still going on there" in done.stderr
    one._lock.close()
    lock(tmp_path / "board.jsonl.lock", patience_s=0.2).close()
    with pytest.raises(RunFolderError):
        held = lock(tmp_path / "board.jsonl.lock")
        try:
            lock(tmp_path / "board.jsonl.lock", patience_s=0.0)
        finally:
            held.close()


# ---------------------------------------------------------------------------------------------------- lineage


def row(member: int, report: int, env_steps: int, action: str = "go on", **decision: Any) -> dict[str, Any]:
    made = {"action": action, "values": {}, "donor": None, "donor_report": None, **decision}
    return {"event": "report", "member": member, "report": report, "env_steps": env_steps, "decision": made}


def test_a_chain_is_the_stretches_that_made_the_weights():
    rows = [
        {"event": "begin", "members": [{"rate": 0.1}, {"rate": 0.2}, {"rate": 0.3}]},
        row(0, 1, 100),
        row(1, 1, 110),
        row(2, 1, 90, "copy", values={"rate": 0.4}, donor=1, donor_report=1),
        row(1, 2, 210, "copy", values={"rate": 0.5}, donor=0, donor_report=1),
        row(2, 2, 190),
        row(0, 2, 205, "copy", values={"rate": 0.6}, donor=2, donor_report=2),
        row(0, 3, 305),
        row(0, 4, 400, "copy", values={"rate": 0.9}, donor=1, donor_report=2),  # after its end
    ]
    found = chain(rows, 0)
    assert [(s.member, s.from_steps, s.to_steps, s.values["rate"]) for s in found] == [
        (1, 0, 110, 0.2),
        (2, 90, 190, 0.4),
        (0, 205, 400, 0.6),
    ]
    assert schedule(found) == [(0, {"rate": 0.2}), (110, {"rate": 0.4}), (210, {"rate": 0.6})]
    assert experience(found) == 110 + 100 + 195
    assert [s.member for s in chain(rows, 1, 2)] == [1], "as of a report means before that report's copy"
    rows.append(row(1, 3, 300, "anew", values={"rate": 0.7}))
    rows.append(row(1, 4, 350))
    assert [(s.from_steps, s.to_steps, s.values["rate"]) for s in chain(rows, 1)] == [(300, 350, 0.7)]
    with pytest.raises(RunFolderError, match="member 5 has made no report"):
        chain(rows, 5)


def test_rows_after_a_checkpoint_are_marked_and_those_before_it_stay_as_they_are(tmp_path):
    file = tmp_path / "metrics.jsonl"
    kept = "".join(json.dumps({"kind": "report", "env_steps": i}) + "\n" for i in range(3))
    file.write_text(kept + '{"kind": "report", "env_steps": 3}\n{"kind": "rep')
    assert roll_back(file, len(kept)) == 1
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert file.read_text().startswith(kept)
    assert rows[3] == {"kind": "report", "env_steps": 3, "rolled_back": True} and len(rows) == 4


# ------------------------------------------------------------------------------------------------ the verdict


@pytest.mark.parametrize(
    ("difference", "ci95", "lower_is_better", "said"),
    [
        (5.0, [1.0, 9.0], False, "better"),
        (5.0, [1.0, 9.0], True, "worse"),
        (-5.0, [-9.0, -1.0], True, "better"),
        (-5.0, [-9.0, -1.0], False, "worse"),
        (5.0, [-1.0, 11.0], False, "unclear"),
        (0.0, [0.0, 0.0], False, "equal"),
        (5.0, None, False, "unclear"),
    ],
)
def test_the_verdict(difference, ci95, lower_is_better, said):
    paired = {"mean_difference": difference, "ci95": ci95}
    assert verdict(paired, lower_is_better=lower_is_better) == said
    final = {
        "metric": "return",
        "winner": {"mean": 5.0, "n": 3},
        "default": {"mean": 0.0},
        "verdict": said,
    }
    assert ("does NOT beat" in sentence(final)) == (said != "better")


# ------------------------------------------------------------------------------------------------------- file


def test_a_sweep_file_may_write_keys_either_way_and_reads_back_as_it_was_written(tmp_path):
    from seqrl_ray.recipe_toml import to_toml

    text = (
        'name = "x"\nrecipe = "classic/cartpole"\ntrials = 2\n[search.algorithm.gamma]\nkind = "uniform"\n'
        'low = 0.5\nhigh = 0.9\n[search."algorithm.learning_rate"]\nkind = "choice"\nvalues = [0.1, 0.01]\n'
        "[budget]\nenv_steps = 9000\n"
    )
    (tmp_path / "x.toml").write_text(text)
    settings, folder = load_sweep(tmp_path / "x.toml", ["search.algorithm.gamma.low=0.6", "recipe.seed=3"])
    assert folder == tmp_path
    assert set(settings.search) == {"algorithm.gamma", "algorithm.learning_rate"}
    assert settings.search["algorithm.gamma"].low == 0.6
    assert settings.overrides == ("seed=3",)
    (tmp_path / "y.toml").write_text(to_toml(settings))
    assert load_sweep(tmp_path / "y.toml")[0] == settings
