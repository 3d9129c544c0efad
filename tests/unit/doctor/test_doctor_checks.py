"""Every check of `seqrl doctor` on made-up facts: what passes, what warns, what fails."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from seqrl_ray import doctor
from seqrl_ray.cli import main
from seqrl_ray.doctor import cluster_checks, machine_checks
from seqrl_ray.doctor.findings import Examination, Finding, merged
from seqrl_ray.runtime import machine
from seqrl_ray.runtime.probing import ClusterReport, NodeReport

GIB = 2**30
PINS = {"python": ">=3.11", "ray": "==2.60.*", "torch": ">=2.13,<3", "numpy": ">=2"}
VERSIONS = {
    "ray": "2.60.0",
    "torch": "2.13.0+cpu",
    "numpy": "2.4.6",
    "seqrl-ray": "0.1.0",
    "libsumo": "1.28.0",
}
FACTS: dict[str, Any] = {
    "host": "here",
    "python": "3.11.7",
    "executable": "python",
    "versions": VERSIONS,
    "importable": ["seqrl_ray", *machine.DASHBOARD_MODULES],
    "cores": 8,
    "memory_bytes": 32 * GIB,
    "gpus": 0,
    "shared_memory_bytes": 8 * GIB,
    "open_files": [1024, 1_048_576],
    "spill": {"path": "/tmp", "total_bytes": 100 * GIB, "free_bytes": 50 * GIB},
    "auth_mode": "token",
    "token": None,
    "listening": [("127.0.0.1", 8265)],
    "sumo": {"version": "SUMO 1.28.0"},
}
HERE = {"python": "3.11.7", **VERSIONS}


def facts(**changed: Any) -> dict[str, Any]:
    return {**copy.deepcopy(FACTS), **changed}


def node(address: str = "10.0.0.1", **changed: Any) -> NodeReport:
    given = {
        "facts": facts(),
        "skew_s": 0.0,
        "folder": {"sees": True, "writes": True, "error": ""},
        **changed,
    }
    return NodeReport(address, False, {"CPU": 8.0}, {}, **given)


def levels(findings: list[Finding], check: str) -> list[str]:
    return [f.level for f in findings if f.check == check]


def only(findings: list[Finding]) -> dict[str, str]:
    """check -> worst level."""
    order = ("OK", "warning", "FAIL")
    worst: dict[str, str] = {}
    for f in findings:
        worst[f.check] = max(worst.get(f.check, "OK"), f.level, key=order.index)
    return worst


# ----------------------------------------------------------------------------------------------- one machine


def test_a_good_machine_has_nothing_to_hear() -> None:
    found = machine_checks.machine_findings(facts(), PINS)
    assert {f.level for f in found} == {"OK"}
    assert {f.check for f in found} == {"versions", "sumo", "metrics", "resources", "memory", "files", "disk"}


BAD: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "old ray": ({"versions": {**VERSIONS, "ray": "2.59.1"}}, "versions", "FAIL", "ray is 2.59.1"),
    "old python": ({"python": "3.10.2"}, "versions", "FAIL", "python is 3.10.2"),
    "no numpy": (
        {"versions": {k: v for k, v in VERSIONS.items() if k != "numpy"}},
        "versions",
        "FAIL",
        "numpy is missing",
    ),
    "no sumo": ({"sumo": {"error": "No module named 'libsumo'"}}, "sumo", "warning", "No module"),
    "no ray[default]": ({"importable": ["seqrl_ray", "aiohttp"]}, "metrics", "warning", "prometheus_client"),
    "a GPU, torch for CPUs": ({"gpus": 2}, "resources", "warning", "2 GPU(s)"),
    "docker's shared memory": ({"shared_memory_bytes": 64 * 2**20}, "memory", "warning", "64 MiB"),
    "few files": ({"open_files": [1024, 4096]}, "files", "warning", "65536"),
    "hardly any files": ({"open_files": [256, 512]}, "files", "FAIL", "512"),
    "a full disk": (
        {"spill": {"path": "/tmp", "total_bytes": 100 * GIB, "free_bytes": 4 * GIB}},
        "disk",
        "FAIL",
        "95%",
    ),
    "a small disk": (
        {"spill": {"path": "/tmp", "total_bytes": 10 * GIB, "free_bytes": 4 * GIB}},
        "disk",
        "warning",
        "4.0 of 10.0 GiB",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_each_fault_is_found_and_nothing_else(what: str) -> None:
    changed, check, level, said = BAD[what]
    found = machine_checks.machine_findings(facts(**changed), PINS)
    assert {c: lev for c, lev in only(found).items() if lev != "OK"} == {check: level}
    (finding,) = (f for f in found if f.level != "OK")
    assert said in finding.text
    assert "\n" not in finding.text


def test_no_limit_is_enough_files() -> None:
    assert machine_checks.files_finding([None, None]).level == "OK"


def test_a_gpu_with_a_cuda_torch_is_fine() -> None:
    found = machine_checks.gpu_finding(facts(gpus=1, versions={**VERSIONS, "torch": "2.13.0+cu130"}))
    assert found.level == "OK"


def test_the_pins_are_those_of_the_package_and_hold_here() -> None:
    pinned = machine_checks.pins()
    assert pinned["ray"] == "==2.60.*"
    assert "pytest" not in pinned, "an extra is no pin"
    here = machine.facts(pinned)
    found = machine_checks.version_findings({"python": here["python"], **here["versions"]}, pinned)
    assert [f.level for f in found] == ["OK"]
    assert machine_checks.version_findings(HERE, {})[0].level == "warning"


@pytest.mark.parametrize(
    ("mode", "home", "is_open"),
    [
        (0o600, 0o755, False),
        (0o644, 0o700, False),
        (0o644, 0o755, True),
        (0o640, 0o750, True),
        (0o640, 0o700, False),
        (0o604, 0o711, True),
    ],
)
def test_a_token_that_others_can_read(mode: int, home: int, is_open: bool) -> None:
    assert machine.readable(mode, [0o755, home, 0o755]) is is_open
    token = {"source": "file", "path": "/a/b", "mode": f"{mode:04o}", "open": is_open}
    assert [f.level for f in machine_checks.token_findings(token, "token")] == ["FAIL" if is_open else "OK"]


def test_a_token_file_is_found_and_not_read(tmp_path: Path) -> None:
    file = tmp_path / ".ray" / "auth_token"
    file.parent.mkdir()
    file.write_text("secret")
    file.chmod(0o600)
    token = machine.token({}, tmp_path)
    assert token == {"source": "file", "path": str(file), "mode": "0600", "open": False}
    given = machine.token({"RAY_AUTH_TOKEN_PATH": str(file)}, tmp_path / "nobody")
    assert given == {**token, "source": "RAY_AUTH_TOKEN_PATH"}
    assert "secret" not in str(machine_checks.token_findings(token, None))


def test_where_a_token_comes_from(tmp_path: Path) -> None:
    assert machine.token({"RAY_AUTH_TOKEN": "secret"}, tmp_path) == {"source": "RAY_AUTH_TOKEN"}
    assert machine.token({}, tmp_path) is None
    assert [f.level for f in machine_checks.token_findings(None, None)] == ["OK"]
    assert [f.level for f in machine_checks.token_findings(None, "token")] == ["warning"]
    off = machine_checks.token_findings({"source": "RAY_AUTH_TOKEN"}, "disabled")
    assert [f.level for f in off] == ["warning", "OK"]


def test_facts_of_this_machine_are_plain_values() -> None:
    here = machine.facts(["ray", "no-such-thing"])
    assert set(here) == set(FACTS)
    assert list(here["versions"]) == ["ray"]
    assert here["sumo"] == {"version": here["sumo"]["version"]}
    json.dumps(here)


# ------------------------------------------------------------------------------------------------- a cluster


def report(*nodes: NodeReport, **changed: Any) -> ClusterReport:
    back = frozenset(n.address for n in nodes)
    return ClusterReport("10.0.0.1:6379", nodes, Path("/runs"), **{"back": back, **changed})


def test_a_good_cluster_has_nothing_to_hear() -> None:
    found = cluster_checks.cluster_findings(report(node(), node("10.0.0.2")), PINS, HERE)
    assert {f.level for f in found} == {"OK"}
    assert "2 node(s), 16 CPUs" in found[0].text
    ram = next(f for f in found if f.check == "memory")
    assert ram.where == "10.0.0.1, 10.0.0.2", "what two nodes say alike is said once"


FAULTY: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "another ray": (
        {"facts": facts(versions={**VERSIONS, "ray": "2.60.1"})},
        "versions",
        "FAIL",
        "ray is 2.60.1 there and 2.60.0 here",
    ),
    "another python": ({"facts": facts(python="3.11.9")}, "versions", "FAIL", "python is 3.11.9 there"),
    "another sumo": (
        {"facts": facts(versions={**VERSIONS, "libsumo": "1.27.0"})},
        "versions",
        "warning",
        "libsumo is 1.27.0 there",
    ),
    "nothing of ours": (
        {"facts": facts(importable=list(machine.DASHBOARD_MODULES))},
        "versions",
        "FAIL",
        "seqrl-ray cannot be imported",
    ),
    "no token": ({"facts": facts(auth_mode="disabled")}, "auth", "FAIL", "RAY_AUTH_MODE=token"),
    "no mode": ({"facts": facts(auth_mode=None)}, "auth", "FAIL", "RAY_AUTH_MODE=token"),
    "an open dashboard": ({"facts": facts(listening=[("0.0.0.0", 8265)])}, "ports", "FAIL", "ShadowRay"),
    "its clock a minute late": ({"skew_s": -60.0}, "clock", "warning", "60 s behind"),
    "its clock an hour early": ({"skew_s": 3600.0}, "clock", "FAIL", "3600 s ahead"),
    "no clock": ({"skew_s": None}, "clock", "warning", "could not be asked"),
    "no answer": ({"facts": None, "error": "no answer in 90 s"}, "nodes", "FAIL", "no answer in 90 s"),
    "another disk": ({"folder": {"sees": False, "writes": False}}, "storage", "FAIL", "not seen there"),
    "no SUMO": ({"facts": facts(sumo={"error": "libGL.so.1"})}, "sumo", "warning", "libGL.so.1"),
}


@pytest.mark.parametrize("what", FAULTY)
def test_each_fault_of_a_node_is_found_and_nothing_else(what: str) -> None:
    changed, check, level, said = FAULTY[what]
    found = cluster_checks.cluster_findings(report(node(), node("10.0.0.2", **changed)), PINS, HERE)
    assert {c: lev for c, lev in only(found).items() if lev != "OK"} == {check: level}
    assert any(said in f.text and f.where == "10.0.0.2" and f.level == level for f in found)


def test_a_slow_answer_is_no_wrong_clock() -> None:
    assert cluster_checks.skew_finding(node(skew_s=30.0, skew_within_s=29.0)).level == "OK"
    assert cluster_checks.skew_finding(node(skew_s=30.0, skew_within_s=1.0)).level == "warning"


def test_storage_that_cannot_be_written() -> None:
    seen = report(node(), node("10.0.0.2"), back=frozenset({"10.0.0.1"}))
    (found,) = cluster_checks.folder_findings(seen)
    assert (found.level, found.where) == ("FAIL", "10.0.0.2")
    assert "cannot be written" in found.text
    (found,) = cluster_checks.folder_findings(replace(seen, run_dir_error="Read-only file system"))
    assert found.level == "FAIL" and "Read-only" in found.text


def test_a_cluster_of_a_head_alone_places_nothing() -> None:
    head = NodeReport("10.0.0.1", True, {"CPU": 0.0}, {}, facts())
    assert cluster_checks.resources_finding([head]).level == "FAIL"


def test_what_a_node_writes_is_looked_for(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    assert machine.look(str(tmp_path), "a", "1", "b") == {"sees": True, "writes": True, "error": ""}
    assert (tmp_path / "b").read_text() == "1"
    gone = machine.look(str(tmp_path / "none"), "a", "1", "b")
    assert (gone["sees"], gone["writes"]) == (False, False)


# ------------------------------------------------------------------------------------------ the command line


def test_lines_of_many_nodes_are_merged_in_order() -> None:
    found = [
        Finding("OK", "a", "x", "1"),
        Finding("FAIL", "a", "y", "2"),
        Finding("OK", "a", "x", "3"),
    ]
    assert merged(found) == [Finding("OK", "a", "x", "1, 3"), Finding("FAIL", "a", "y", "2")]


@pytest.mark.parametrize(("level", "code"), [("OK", 0), ("warning", 0), ("FAIL", 1)])
def test_the_exit_code_is_the_verdict(
    level: Any, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = Examination(("python  3",), (Finding(level, "ports", "said", "10.0.0.1"),), "10.0.0.1:6379")
    asked: list[Any] = []
    monkeypatch.setattr(doctor, "examine", lambda *given: asked.append(given) or made)
    for flags in ([], ["--json"]):
        with pytest.raises(SystemExit) as stopped:
            main(["doctor", "--address", "10.0.0.1:6379", "--run-dir", "/runs", *flags])
        assert (stopped.value.code or 0) == code
        out = capsys.readouterr().out
        assert "10.0.0.1" in out and "said" in out
    told = json.loads(out)
    assert told["ok"] is (code == 0)
    assert told["findings"] == [{"level": level, "check": "ports", "text": "said", "where": "10.0.0.1"}]
    assert asked == [("10.0.0.1:6379", "/runs")] * 2


def test_this_machine_alone(tmp_path: Path) -> None:
    found = doctor.examine(None, tmp_path / "runs" / "new")
    assert found.cluster is None
    assert {f.check for f in found.findings} >= {"versions", "auth", "ports", "storage", "disk"}
    assert "No cluster was looked at" in found.report()[-1]
    assert not (tmp_path / "runs").exists()
    json.dumps(found.as_json())


def test_remote_storage_is_tried_out(tmp_path: Path) -> None:
    good = doctor.storage_finding(f"file://{tmp_path}/runs")
    assert (good.level, list((tmp_path / "runs").iterdir())) == ("OK", [])
    (tmp_path / "file").write_text("")
    for wrong in (f"file://{tmp_path}/file/runs", "nonsense://bucket/runs"):
        assert doctor.storage_finding(wrong).level == "FAIL"


@pytest.mark.parametrize("address", ["nowhere", "127.0.0.1:1"])
def test_an_address_that_is_none_is_bad_input(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["doctor", "--address", address])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert address in error and len(error.splitlines()) == 1
