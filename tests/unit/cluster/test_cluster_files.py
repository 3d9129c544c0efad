"""The shipped files for `ray up` hold, and what nobody wants in such a file is found and named."""

from __future__ import annotations

import copy
import socket
import sys
from pathlib import Path

import pytest
import yaml

from seqrl_ray.check import check_cluster
from seqrl_ray.cli import main
from seqrl_ray.cluster.check import MARKET, TO_FILL_IN, WORLD, check_file, problems_of, read
from seqrl_ray.errors import RecipeError
from seqrl_ray.recipe import data_root

FILES = [data_root("cluster") / f"{name}.yaml" for name in ("aws", "gcp", "local", "onprem")]


def shipped(name: str) -> dict:
    return read(data_root("cluster") / f"{name}.yaml")


def the_problem(config: dict) -> str:
    (problem,) = problems_of(config)
    return problem


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("a check asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_a_shipped_file_holds(path, no_network):
    found = check_file(path)
    assert found.problems == ()
    assert found.lines[-1].startswith("OK")
    assert {"boto3", "googleapiclient"}.isdisjoint(sys.modules)  # no cloud's SDK was needed


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_nothing_shipped_is_open_to_the_world(path):
    """The text itself, comments apart; `problems_of` looks at it with Ray's defaults filled in."""
    values = yaml.safe_dump(yaml.safe_load(path.read_text(encoding="utf-8")))
    assert not WORLD.search(values)
    assert "--dashboard-host=127.0.0.1" in values
    assert "RAY_AUTH_MODE" in values


@pytest.mark.parametrize("text", ["--dashboard-host=0.0.0.0", "0.0.0.0/0", "::/0", "--host ::", "[::]:8265"])
def test_the_world_is_known_by_all_its_names(text):
    assert WORLD.search(text)


@pytest.mark.parametrize("text", ["10.0.0.0/8", "110.0.0.0", "fd00::/8", "a::b", "0.0.0.01"])
def test_a_range_is_not_the_world(text):
    assert not WORLD.search(text)


def test_a_misspelt_instance_type_is_caught():
    config = shipped("aws")
    node = config["available_node_types"]["actors"]["node_config"]
    node["InstanceTyp"] = node.pop("InstanceType")
    problem = next(iter(problems_of(config)))
    assert problem.startswith(
        'available_node_types.actors.node_config.InstanceTyp is not a setting. Did you mean "InstanceType"?'
    )


def test_a_misspelt_key_deep_inside_names_its_neighbours():
    config = shipped("aws")
    disk = config["available_node_types"]["head"]["node_config"]["BlockDeviceMappings"][0]
    disk["Ebs"] = {"VolumSize": 10}
    problem = next(iter(problems_of(config)))
    assert 'BlockDeviceMappings.0.Ebs.VolumSize is not a setting. Did you mean "VolumeSize"?' in problem


def edited(name: str, change) -> dict:
    config = copy.deepcopy(shipped(name))  # anchors share tables: a change would show twice
    change(config)
    return config


def types(config: dict, name: str) -> dict:
    return config["available_node_types"][name]


WRONG = {
    "a key Ray does not know": ("aws", lambda c: c.update(idle_timeout_minuts=5), "Did you mean"),
    "a key of a node type": ("gcp", lambda c: types(c, "actors").update(max_worker=5), 'mean "max_workers"'),
    "a head that is not there": ("aws", lambda c: c.update(head_node_type="haed"), "head_node_type"),
    "a wrong type": ("aws", lambda c: c.update(max_workers="many"), "max_workers is refused by Ray"),
    "a key an external provider needs": ("local", lambda c: c.pop("file_mounts"), "file_mounts"),
    "a public dashboard": (
        "aws",
        lambda c: c["head_start_ray_commands"].append(
            "ray start --dashboard-host=0.0.0.0; RAY_AUTH_MODE=token"
        ),
        "open to every address",
    ),
    "Ray's own start commands": ("gcp", lambda c: c.pop("head_start_ray_commands"), "open to every address"),
    "an open range": (
        "aws",
        lambda c: c["provider"].update(security_group={"IpPermissions": [{"CidrIp": "0.0.0.0/0"}]}),
        "open to every address",
    ),
    "no token": ("onprem", lambda c: c["file_mounts"].pop("~/.ray/auth_token"), "file_mounts brings no"),
    "no token mode": ("local", lambda c: c["provider"].pop("env"), "without RAY_AUTH_MODE=token"),
    "a token mode that is off": (
        "local",
        lambda c: c["provider"].update(env={"RAY_AUTH_MODE": "disabled"}),
        "without RAY_AUTH_MODE=token",
    ),
    "a secret": (
        "onprem",
        lambda c: c["setup_commands"].append("export WANDB_API_KEY=123abc"),
        "looks like a secret",
    ),
    "a spot head": (
        "aws",
        lambda c: types(c, "head")["node_config"].update(InstanceMarketOptions={"MarketType": "spot"}),
        "head_node_type=head is spot",
    ),
    "a label that lies": (
        "gcp",
        lambda c: types(c, "actors")["labels"].update({MARKET: "on-demand"}),
        "buys spot",
    ),
    "no security group": (
        "aws",
        lambda c: types(c, "actors")["node_config"].pop("SecurityGroupIds"),
        "whole internet in at port 22",
    ),
    "IMDSv1": (
        "aws",
        lambda c: types(c, "actors")["node_config"].update(MetadataOptions={"HttpTokens": "optional"}),
        "Set it to required",
    ),
    "stopped spot nodes": (
        "aws",
        lambda c: c["provider"].pop("cache_stopped_nodes"),
        "cache_stopped_nodes=true",
    ),
    "a protected instance": (
        "aws",
        lambda c: types(c, "actors")["node_config"].update(DisableApiTermination=True),
        "DisableApiTermination",
    ),
    "a public address": (
        "gcp",
        lambda c: types(c, "actors")["node_config"].update(
            networkInterfaces=[{"subnetwork": "s", "accessConfigs": [{"type": "ONE_TO_ONE_NAT"}]}]
        ),
        "public address",
    ),
    "the public address Ray gives": (
        "gcp",
        lambda c: types(c, "actors")["node_config"].pop("networkInterfaces"),
        "(Ray would)",
    ),
    "a GPU that cannot migrate": (
        "gcp",
        lambda c: types(c, "head")["node_config"].pop("scheduling"),
        "onHostMaintenance is not TERMINATE",
    ),
    "no machine type": (
        "gcp",
        lambda c: types(c, "actors")["node_config"].pop("machineType"),
        "machineType is",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_nobody_wants_is_named(case):
    name, change, words = WRONG[case]
    problems = list(problems_of(edited(name, lambda c: (_unshared(c), change(c)))))
    assert any(words in problem for problem in problems), problems


def _unshared(config: dict) -> None:
    """Give each node type tables of its own, where the file shares them by an anchor."""
    for table in config.get("available_node_types", {}).values():
        table["node_config"] = copy.deepcopy(table["node_config"])


@pytest.mark.parametrize(
    ("given", "fine"),
    [
        ("export RAY_AUTH_TOKEN_PATH=/run/token", True),
        ('export WANDB_API_KEY="$(cat key)"', True),
        ("export WANDB_API_KEY=$KEY", True),
        ("export RAY_AUTH_TOKEN=abc", False),
        ("aws configure set aws_secret_access_key AKIAABCDEFGHIJKLMNOP", False),
    ],
)
def test_a_secret_is_a_value_and_not_a_place(given, fine):
    config = edited("onprem", lambda c: c["setup_commands"].append(given))
    assert (not list(problems_of(config))) == fine


def test_what_to_fill_in_is_listed_and_no_problem(tmp_path):
    lines = check_file(data_root("cluster") / "onprem.yaml").lines
    assert [line.split()[-1] for line in lines if line.startswith("to fill in")] == [
        "auth.ssh_user",
        "provider.head_ip",
        "provider.worker_ips.0",
        "provider.worker_ips.1",
    ]
    filled = tmp_path / "mine.yaml"
    text = (data_root("cluster") / "onprem.yaml").read_text().replace(TO_FILL_IN, "mine")
    filled.write_text(text)
    assert check_file(filled).lines[-1].startswith("OK: ")


def test_the_command_says_it_and_leaves_with_2(tmp_path, capsys):
    wrong = tmp_path / "wrong.yaml"
    config = shipped("local")
    config["provider"].pop("env")
    wrong.write_text(yaml.safe_dump(config))
    with pytest.raises(SystemExit) as stopped:
        main(["check", str(wrong)])
    assert stopped.value.code == 2
    assert "NOT OK, 2 problem(s)" in capsys.readouterr().out
    assert check_cluster("cluster/local.yaml").ok  # by its shipped name too
    assert check_cluster("local.yaml").ok


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [1", "not a YAML file"),
        ("apiVersion: ray.io/v1\nkind: RayCluster", "Kubernetes manifest"),
        ("cluster_name: x", "no cluster_name and provider"),
        ("cluster_name: x\nprovider: {type: awz}", 'Did you mean "aws"?'),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path, text, words):
    path = tmp_path / "file.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=words.replace("?", r"\?")):
        check_file(path)
    with pytest.raises(RecipeError, match="Shipped: aws"):
        check_cluster(str(Path("nowhere.yaml")))
