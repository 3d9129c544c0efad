import json
import shutil

import numpy as np
import pytest

from seqrl_ray.errors import RunFolderError
from seqrl_ray.report.run_folder import controller_order, number_or_none, read_run


@pytest.fixture
def copy(traffic_run, tmp_path):
    return shutil.copytree(traffic_run, tmp_path / "run")


def test_reads_every_part(traffic_run):
    run = read_run(traffic_run)
    assert run.recipe["name"] == "cologne8_double_dqn"
    assert (run.metric, run.lower_is_better) == ("delay_s", True)
    assert list(run.stats) == ["policy", "fixed", "actuated", "max_pressure", "greedy", "random"]
    assert run.baselines == ("fixed", "actuated", "max_pressure", "greedy", "random")
    assert (len(run.reports), len(run.episodes), len(run.evaluations), len(run.failures)) == (120, 500, 9, 3)
    assert run.stats["policy"]["delay_s"].n == 10
    assert run.paired["fixed"]["delay_s"].mean < 0
    assert sorted(run.by_seed["policy"]) == list(range(1_000_000, 1_000_010))
    assert run.details["fixed"]["queue"].shape == (720, 8)
    assert run.notes == ()


def test_metric_falls_back_to_the_recipe_then_to_return(copy, gym_run, tmp_path):
    (copy / "summary.json").unlink()
    assert read_run(copy).metric == "delay_s"
    assert read_run(copy).lower_is_better is True
    (copy / "recipe.toml").unlink()
    assert (read_run(copy).metric, read_run(copy).lower_is_better) == ("return", False)


@pytest.mark.parametrize("kept", ["recipe.toml", "summary.json", "metrics.jsonl"])
def test_one_file_is_enough(copy, kept):
    for name in {"recipe.toml", "summary.json", "metrics.jsonl"} - {kept}:
        (copy / name).unlink()
    shutil.rmtree(copy / "evaluation")
    assert read_run(copy).by_seed == {}


def test_failures_come_from_the_summary_where_the_rows_have_none(copy):
    (copy / "metrics.jsonl").unlink()
    assert [row["what"] for row in read_run(copy).failures] == ["actor", "shard", "learner"]


def test_no_folder_and_no_run_are_refused(tmp_path):
    with pytest.raises(RunFolderError, match=r"is no folder: there is nothing to report\. Give the folder"):
        read_run(tmp_path / "absent")
    with pytest.raises(RunFolderError, match=r"holds no recipe\.toml, summary\.json or metrics\.jsonl"):
        read_run(tmp_path)


def test_a_half_written_last_line_is_named_and_a_broken_line_inside_refused(copy):
    file = copy / "metrics.jsonl"
    text = file.read_text()
    file.write_text(text + '{"kind": "report", "at_s": 3')
    run = read_run(copy)
    assert run.notes == (
        "The last line of metrics.jsonl is half-written (the run was killed while writing it).",
    )
    assert len(run.reports) == 120
    file.write_text('{"kind": "rep\n' + text)
    with pytest.raises(
        RunFolderError, match=r"metrics\.jsonl:1 is not valid JSON .*: rows are lost\. Repair"
    ):
        read_run(copy)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("summary.json", "{", r"summary\.json is not valid JSON .*: no report\. Restore or delete it\."),
        ("summary.json", "[1]", r"summary\.json holds no JSON object"),
        ("recipe.toml", "a = ", r"recipe\.toml is not valid TOML"),
        ("evaluation/fixed.json", '{"name": "fixed"}', r"fixed\.json lacks `episodes`: it is no evaluation"),
        (
            "evaluation/fixed-details.npz",
            "junk",
            r"fixed-details\.npz is unreadable .*: the episode cannot be drawn",
        ),
    ],
)
def test_damaged_files_are_refused_by_name(copy, file, content, message):
    (copy / file).write_text(content)
    with pytest.raises(RunFolderError, match=message):
        read_run(copy)


def test_details_of_a_wrong_shape_or_with_objects_are_refused(copy):
    file = copy / "evaluation" / "fixed-details.npz"
    np.savez(file, queue=np.zeros(5))
    with pytest.raises(RunFolderError, match=r"queue has shape \(5,\), not 2 dimensions"):
        read_run(copy)
    np.savez(file, signal_names=np.array(["a", None], object))
    with pytest.raises(RunFolderError, match=r"unreadable .*Object arrays cannot be loaded"):
        read_run(copy)


def test_ragged_phase_states_are_read_from_json(copy):
    file = copy / "evaluation" / "fixed-details.npz"
    np.savez(file, phase_states=np.array(json.dumps([["Gr", "rG", "GG"], ["G"]])))
    assert read_run(copy).details["fixed"]["phase_states"].tolist() == [["Gr", "rG", "GG"], ["G", "", ""]]
    np.savez(file, phase_states=np.array("[["))
    with pytest.raises(RunFolderError, match=r"fixed-details\.npz is unreadable"):
        read_run(copy)


def test_null_statistics_are_none(copy):
    summary = json.loads((copy / "summary.json").read_text())
    summary["evaluation"] = {"delay_s": {"mean": None, "median": None, "p95": None, "ci95": None, "n": 0}}
    summary["paired"] = {"fixed": {"delay_s": {"mean_difference": None, "ci95": None, "n": 0}}}
    (copy / "summary.json").write_text(json.dumps(summary))
    run = read_run(copy)
    assert run.mean("policy") is None
    assert run.paired == {"fixed": {}}


def test_helpers():
    assert controller_order(["zeta", "random", "alpha", "policy", "fixed"]) == [
        "policy",
        "fixed",
        "random",
        "alpha",
        "zeta",
    ]
    assert [number_or_none(v) for v in (1, 2.5, None, "x", float("nan"), True)] == [
        1.0,
        2.5,
        None,
        None,
        None,
        1.0,
    ]
