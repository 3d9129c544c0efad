"""The shipped files for `ray up` hold, and what nobody wants in such a file is found and named."""

from __future__ import annotations

import copy
import re
import socket
import sys
from pathlib import Path

import pytest
import yaml

from seqrl_ray.check import check_cluster
from seqrl_ray.cli import main
from seqrl_ray.cluster.check import TO_FILL_IN, WORLD, check_file, problems_of, read
from seqrl_ray.cluster.clouds import MARKET
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


def disk(config: dict, name: str) -> dict:
    return types(config, name)["node_config"]["disks"][0]["initializeParams"]


def start(config: dict, mode: str, side: str = "head") -> None:
    """Put something else in place of what turns the token on in a start command."""
    commands = config[f"{side}_start_ray_commands"]
    config[f"{side}_start_ray_commands"] = [c.replace("export RAY_AUTH_MODE=token;", mode) for c in commands]


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
        "provider.env.RAY_AUTH_MODE sets RAY_AUTH_MODE=disabled",
    ),
    "a command that turns its container's token off": (
        "aws",
        lambda c: start(c, "export RAY_AUTH_MODE=disabled;"),
        "head_start_ray_commands.1 sets RAY_AUTH_MODE=disabled",
    ),
    "a command that unsets it": (
        "aws",
        lambda c: start(c, "unset RAY_AUTH_MODE;"),
        "head_start_ray_commands.1 sets RAY_AUTH_MODE=:",
    ),
    "a container without the token": (
        "gcp",
        lambda c: c["docker"].update(run_options=["--env RAY_AUTH_MODE=disabled"]),
        "docker.run_options.0 sets RAY_AUTH_MODE=disabled",
    ),
    "a container's options without a container": (
        "onprem",
        lambda c: (start(c, ""), c.update(docker={"run_options": ["--env RAY_AUTH_MODE=token"]})),
        "head_start_ray_commands starts Ray without RAY_AUTH_MODE=token",
    ),
    "a provider's environment that nobody reads": (
        "onprem",
        lambda c: (start(c, ""), c["provider"].update(env={"RAY_AUTH_MODE": "token"})),
        "head_start_ray_commands starts Ray without RAY_AUTH_MODE=token",
    ),
    "workers' options for the head": (
        "aws",
        lambda c: (
            start(c, ""),
            c["docker"].update(run_options=[], worker_run_options=["-e RAY_AUTH_MODE=token"]),
        ),
        "head_start_ray_commands starts Ray without RAY_AUTH_MODE=token",
    ),
    "a node type's own options": (
        "aws",
        lambda c: (
            start(c, "", "worker"),
            c["docker"].update(run_options=[], worker_run_options=["-e RAY_AUTH_MODE=token"]),
            types(c, "actors")["docker"].update(worker_run_options=["--shm-size=2g"]),
        ),
        "worker_start_ray_commands starts Ray without RAY_AUTH_MODE=token",
    ),
    "a mode that is not exported": (
        "onprem",
        lambda c: start(c, "RAY_AUTH_MODE=token;"),
        "head_start_ray_commands starts Ray without RAY_AUTH_MODE=token",
    ),
    "a mode set too late": (
        "onprem",
        lambda c: c.update(head_start_ray_commands=["ray start --head; export RAY_AUTH_MODE=token"]),
        "head_start_ray_commands starts Ray without RAY_AUTH_MODE=token",
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
    "a disk that the series does not take": (
        "gcp",
        lambda c: disk(c, "head").pop("diskType"),
        "which g2-standard-8 does not take",
    ),
    "the same, by its name": (
        "gcp",
        lambda c: (
            disk(c, "actors").update(diskType="zones/us-west1-a/diskTypes/pd-standard"),
            types(c, "actors")["node_config"].update(machineType="n4-standard-16"),
        ),
        "which n4-standard-16 does not take",
    ),
    "the account that Ray makes": (
        "gcp",
        lambda c: types(c, "head")["node_config"].pop("serviceAccounts"),
        "Ray would give the head an account of its own making",
    ),
    "the project's default account": (
        "gcp",
        lambda c: types(c, "actors")["node_config"].update(serviceAccounts=[{"email": "default"}]),
        "serviceAccounts has email=default",
    ),
    "the project's default account, by its name": (
        "gcp",
        lambda c: types(c, "actors")["node_config"].update(
            serviceAccounts=[{"email": "123-compute@developer.gserviceaccount.com"}]
        ),
        "serviceAccounts has email=123-compute@",
    ),
    "a key on the whole project": (
        "gcp",
        lambda c: c["auth"].pop("ssh_private_key"),
        "auth.ssh_private_key is missing",
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


RIGHT = {
    "the container's environment alone": ("aws", lambda c: (start(c, ""), start(c, "", "worker"))),
    "in two words": (
        "aws",
        lambda c: (start(c, ""), c["docker"].update(head_run_options=["-e", "RAY_AUTH_MODE=token"])),
    ),
    "before the command": (
        "onprem",
        lambda c: c.update(
            head_start_ray_commands=["ulimit -n 9; env A=b RAY_AUTH_MODE=token ray start --head"]
        ),
    ),
    "in other letters": ("onprem", lambda c: start(c, 'export A=b RAY_AUTH_MODE="Token";')),
    "an old series and the API's disk": ("gcp", lambda c: disk(c, "actors").pop("diskType")),
    "a worker without an account": (
        "gcp",
        lambda c: types(c, "actors")["node_config"].pop("serviceAccounts"),
    ),
}


@pytest.mark.parametrize("case", RIGHT)
def test_what_is_right_is_let_through(case):
    name, change = RIGHT[case]
    assert list(problems_of(edited(name, lambda c: (_unshared(c), change(c))))) == []


def templated(config: dict) -> dict:
    """Actors of a launch template, which holds what is not said."""
    _unshared(config)
    node = types(config, "actors")["node_config"]
    for name in ("SecurityGroupIds", "InstanceType", "MetadataOptions", "InstanceMarketOptions"):
        node.pop(name)
    node["LaunchTemplate"] = {"LaunchTemplateName": "mine"}
    return node


def test_what_a_template_holds_is_not_vouched_for(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(edited("aws", templated)))
    found = check_file(path)
    assert found.ok
    (line,) = (line for line in found.lines if line.startswith("not checked"))
    assert "available_node_types.actors.node_config.LaunchTemplate" in line
    assert found.lines[-1].endswith("Not checked: the 1 thing(s) above; look at them yourself.")
    path.write_text(path.read_text().replace(TO_FILL_IN, "mine"))
    assert "nothing that was checked in it is open" in check_file(path).lines[-1]


def test_what_stands_beside_a_template_is_checked():
    config = edited("aws", lambda c: templated(c).update(MetadataOptions={"HttpTokens": "optional"}))
    assert "HttpTokens is not required" in the_problem(config)


def test_a_script_that_starts_ray_is_not_vouched_for(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(edited("onprem", lambda c: c.update(head_start_ray_commands=["./up.sh"]))))
    assert "not checked  head_start_ray_commands: no `ray start` is seen" in "\n".join(check_file(path).lines)


def test_what_the_files_say_to_do_is_in_the_readme():
    """Everything that is to be made beforehand has its command, with the names that the files use."""
    text = (data_root("cluster") / "README.md").read_text(encoding="utf-8")
    for command in (
        "ray get-auth-token --generate",
        "pip wheel . --no-deps -w dist && cp constraints.txt dist/",
        "aws ec2 create-security-group",
        "aws iam create-instance-profile",
        "aws efs create-mount-target",
        "gcloud compute firewall-rules create",
        "gcloud filestore instances create",
        "ssh-keygen -t ed25519 -f ~/.ssh/seqrl-gcp",
        "gcloud iam service-accounts disable ray-autoscaler-sa-v1@",
    ):
        assert command in text
    for name in ("head", "actors"):
        profile = types(shipped("aws"), name)["node_config"]["IamInstanceProfile"]["Name"]
        assert profile in text.split("for R in ")[1].split("; do")[0].split()
        (account,) = types(shipped("gcp"), name)["node_config"]["serviceAccounts"]
        assert f"gcloud iam service-accounts create {account['email'].partition('@')[0]}\n" in text
    (ports,) = (line for line in text.splitlines() if line.startswith("Let these ports in"))
    for command in (shipped("onprem")[f"{side}_start_ray_commands"][1] for side in ("head", "worker")):
        for port in re.findall(r"-port=(\d+)", command):
            assert port in ports or port in ("52366", "8265"), port  # within a range; on loopback


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
