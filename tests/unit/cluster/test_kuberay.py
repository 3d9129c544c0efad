"""The KubeRay manifests, without a Kubernetes: KubeRay's schema, Ray's own reader, and what must be shut."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from jsonschema.protocols import Validator

from seqrl_ray.api import read_recipe
from seqrl_ray.cluster.check import SECRET, WORLD
from seqrl_ray.loops.checkpoints import MANIFEST
from seqrl_ray.serving.app import DEPLOYMENT, build
from seqrl_ray.serving.guard import TOKEN
from seqrl_ray.serving.settings import ServingSettings
from seqrl_ray.settings import parse

CLUSTER = Path(__file__).resolve().parents[3] / "cluster"
KUBERAY = CLUSTER / "kuberay"
MANIFESTS = sorted(KUBERAY.glob("*.yaml"))
TRAINING = [path for path in MANIFESTS if path.stem != "rayservice"]
SERVICE = KUBERAY / "rayservice.yaml"
RAY_KINDS = {"RayCluster", "RayJob", "RayService"}
CLUSTER_SPEC = {"RayJob": "rayClusterSpec", "RayService": "rayClusterConfig"}
SPOT_MARKS = {  # node label -> its value on a spot node, of whom Kubernetes is rented
    "cloud.google.com/gke-spot": "true",
    "eks.amazonaws.com/capacityType": "SPOT",
    "karpenter.sh/capacity-type": "spot",
    "kubernetes.azure.com/scalesetpriority": "spot",
}
DEFINITIONS = yaml.safe_load((KUBERAY / "schema" / "kuberay.yaml").read_text(encoding="utf-8"))["$defs"]


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def ray_document(path: Path) -> dict[str, Any]:
    (found,) = (d for d in documents(path) if d["kind"] in RAY_KINDS)
    return found


def cluster_spec(document: dict[str, Any]) -> dict[str, Any]:
    name = CLUSTER_SPEC.get(document["kind"])
    return document["spec"] if name is None else document["spec"][name]


def groups(path: Path) -> dict[str, dict[str, Any]]:
    spec = cluster_spec(ray_document(path))
    return {"head": spec["headGroupSpec"], **{g["groupName"]: g for g in spec["workerGroupSpecs"]}}


def pods(path: Path) -> dict[str, dict[str, Any]]:
    found = {name: group["template"] for name, group in groups(path).items()}
    submitter = ray_document(path)["spec"].get("submitterPodTemplate")
    return found if submitter is None else {**found, "submitter": submitter}


def validator(kind: str) -> Validator:
    schema = {"$ref": f"#/$defs/{kind}", "$defs": DEFINITIONS}
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def wrong(document: dict[str, Any]) -> list[str]:
    """What the schema has against a document: place and message."""
    found = validator(document["kind"]).iter_errors(document)
    return [f"{'.'.join(map(str, e.absolute_path))}: {e.message}" for e in found]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda p: p.stem)
def test_kuberay_accepts_every_document(path: Path) -> None:
    assert {d["kind"] for d in documents(path)} >= {"NetworkPolicy", "PersistentVolumeClaim"}
    assert not [line for document in documents(path) for line in wrong(document)]


PLANTED = {  # what somebody mistypes -> (path to the mapping, key, what it becomes)
    "a group's bound": (("spec", "workerGroupSpecs", 0), "maxReplicas", "maxReplica"),
    "auth": (("spec", "authOptions"), "mode", "Mode"),
    "autoscaler": (("spec", "autoscalerOptions"), "version", "versions"),
    "Ray's version": (("spec",), "rayVersion", "rayversion"),
    "a pod's field": (("spec", "headGroupSpec", "template", "spec"), "affinity", "afinity"),
    "a container's field": (
        ("spec", "headGroupSpec", "template", "spec", "containers", 0),
        "resources",
        "resource",
    ),
    "a volume's field": (
        ("spec", "headGroupSpec", "template", "spec", "volumes", 1, "emptyDir"),
        "sizeLimit",
        "size",
    ),
}


@pytest.mark.parametrize("what", PLANTED)
def test_a_misspelt_key_is_caught(what: str) -> None:
    where, key, misspelt = PLANTED[what]
    document = copy.deepcopy(ray_document(KUBERAY / "raycluster.yaml"))
    node: Any = document
    for step in where:
        node = node[step]
    node[misspelt] = node.pop(key)
    assert any(misspelt in line for line in wrong(document))


def test_a_wrong_value_is_caught() -> None:
    document = copy.deepcopy(ray_document(KUBERAY / "raycluster.yaml"))
    document["spec"]["authOptions"]["mode"] = "on"
    document["spec"]["workerGroupSpecs"][0]["maxReplicas"] = "1"
    assert len(wrong(document)) == 2
    policy = next(d for d in documents(KUBERAY / "raycluster.yaml") if d["kind"] == "NetworkPolicy")
    policy["spec"]["policyTypes"] = ["ingress"]
    policy["spec"]["ingres"] = policy["spec"].pop("ingress")
    assert len(wrong(policy)) == 2


def read_by_ray(path: Path) -> dict[str, Any]:
    """Node types, by the function with which Ray's autoscaler reads the cluster's resource."""
    from ray.autoscaler._private.kuberay import autoscaling_config

    document = {"metadata": {"name": "seqrl", "namespace": "any"}, "spec": cluster_spec(ray_document(path))}
    config = autoscaling_config._derive_autoscaling_config_from_ray_cr(document)
    found: dict[str, Any] = config["available_node_types"]
    return found


@pytest.mark.parametrize("path", TRAINING, ids=lambda p: p.stem)
def test_ray_reads_the_groups_as_meant(path: Path) -> None:
    read = read_by_ray(path)
    assert list(read) == ["headgroup", "learner", "actor"]
    head, learner, actor = read.values()
    assert head["resources"]["CPU"] == 0
    assert learner["resources"]["GPU"] == learner["resources"]["learner"] == 1
    assert learner["resources"]["CPU"] >= 2  # a learner and one shard
    assert learner["min_workers"] >= 1
    assert "GPU" not in actor["resources"]
    assert actor["max_workers"] > actor["min_workers"] >= 1
    assert learner["labels"] == {"role": "learner", "ray.io/market-type": "on-demand"}
    assert actor["labels"] == {"role": "actor", "ray.io/market-type": "spot"}
    for node_type in (learner, actor):
        assert node_type["resources"]["memory"] > 0


def test_the_job_and_the_cluster_are_the_same_machine() -> None:
    """What differs is said here; anything else would be one file changed and the other forgotten."""
    job, cluster = (copy.deepcopy(groups(KUBERAY / f"{name}.yaml")) for name in ("rayjob", "raycluster"))
    for group in job.values():
        assert group["template"].pop("metadata") == {"labels": {"app.kubernetes.io/part-of": "seqrl-train"}}
    # KubeRay's operator asks the job's dashboard how it is: it cannot stand on loopback there
    assert cluster["head"]["rayStartParams"].pop("dashboard-host") == "127.0.0.1"
    assert job == cluster


# ----------------------------------------------------------------------------------------- the job's command


def as_submitted(entrypoint: str) -> str:
    """What the job's shell gets: KubeRay writes the entry point behind `ray job submit ... --` in a bash
    command, Ray joins the arguments again.
    """
    words = shlex.split(entrypoint)
    assert not {";", "|", "&", "&&"} & set(words), "the submitter's own shell would take it apart"
    return subprocess.list2cmdline(words)


CHECKPOINT = "checkpoints/000001-400"
LEFT = {  # what tries before left in the run's folder
    "nothing": (),
    "no checkpoint": ("recipe.toml", "checkpoints/"),
    "half a checkpoint": ("recipe.toml", f"{CHECKPOINT}/state.json", f"{CHECKPOINT}/{MANIFEST}.partial"),
    "a checkpoint": ("recipe.toml", f"{CHECKPOINT}/{MANIFEST}"),
}


@pytest.mark.parametrize("left", LEFT)
def test_the_job_begins_or_goes_on(tmp_path: Path, left: str) -> None:
    """It goes on from a complete checkpoint alone: there is none to resume before, and no folder to take."""
    command = as_submitted(ray_document(KUBERAY / "rayjob.yaml")["spec"]["entrypoint"])
    runs = tmp_path / "runs"
    for tries in range(2):  # the second that began anew finds what the first has put aside
        for name in LEFT[left]:
            path = runs / "cologne8" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir(exist_ok=True) if name.endswith("/") else path.write_text("")
        resumed = left == "a checkpoint"
        told = f"train --resume {runs}/cologne8 --address auto"
        begun = f"train traffic/cologne8 actors.count=6 --run-dir {runs}/cologne8 --address auto"
        assert submitted(command, tmp_path) == (told if resumed else begun)
        assert (runs / "cologne8").exists() is resumed
        aside = sorted(p.name for p in runs.glob("cologne8-*"))
        assert len(aside) == (0 if resumed or left == "nothing" else tries + 1), aside


def submitted(command: str, tmp_path: Path) -> str:
    """What the job's command says to seqrl, with the volume at another place."""
    stub = tmp_path / "seqrl"
    stub.write_text('#!/bin/sh\necho "$@"\n')
    stub.chmod(0o755)
    done = subprocess.run(
        command.replace("/runs/", f"{tmp_path}/runs/"),
        shell=True,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_the_job_fits_the_cluster_it_begins_with() -> None:
    """seqrl refuses a run that the nodes of the moment cannot hold: the least number of nodes must do."""
    spec = ray_document(KUBERAY / "rayjob.yaml")["spec"]
    found = re.search(r"seqrl train (\S+) (actors\.count=\d+)", spec["entrypoint"])
    assert found is not None
    recipe = read_recipe(found[1], [found[2]])
    cpus = sum(
        int(g["minReplicas"] * float(g["template"]["spec"]["containers"][0]["resources"]["limits"]["cpu"]))
        for g in spec["rayClusterSpec"]["workerGroupSpecs"]
    )
    assert recipe.actors.count * recipe.actors.cpus + 1 + recipe.replay.shards <= cpus
    share = yaml.safe_load(spec["entrypointResources"])
    assert 0 < share["learner"] <= 1
    mounts = groups(KUBERAY / "rayjob.yaml")["learner"]["template"]["spec"]["containers"][0]["volumeMounts"]
    assert "/runs" in [mount["mountPath"] for mount in mounts]


# ----------------------------------------------------------------------------------------- what must be shut


def configurations() -> Iterator[Path]:
    yield from (p for p in CLUSTER.rglob("*") if p.suffix in {".yaml", ".yml"})


def values(node: Any) -> Iterator[tuple[str, Any]]:
    """(key, value) of every scalar in a tree; an item's key is its list's."""
    if isinstance(node, dict):
        for key, value in node.items():
            for inner, scalar in values(value):
                yield (inner or str(key)), scalar
    elif isinstance(node, list):
        for value in node:
            yield from values(value)
    else:
        yield "", node


@pytest.mark.parametrize("path", sorted(configurations()), ids=lambda p: p.name)
def test_nothing_binds_every_address(path: Path) -> None:
    for key, value in (pair for document in documents(path) for pair in values(document)):
        assert not WORLD.search(str(value)), (key, value)


@pytest.mark.parametrize("address", ["0.0.0.0", "--host=0.0.0.0", "http://0.0.0.0:8265", "[::]", "::"])
def test_the_pattern_sees_every_address(address: str, tmp_path: Path) -> None:
    planted = tmp_path / "planted.yaml"
    planted.write_text(yaml.safe_dump({"a": [{"dashboard-host": address}]}))
    with pytest.raises(AssertionError):
        test_nothing_binds_every_address(planted)


@pytest.mark.parametrize("path", sorted(configurations()), ids=lambda p: p.name)
def test_no_secret_stands_in_a_file(path: Path) -> None:
    assert not SECRET.search(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("text", ["RAY_AUTH_TOKEN: 0123456789abcdef0", "password='hunter2hunter2hunter2'"])
def test_the_pattern_sees_a_secret(text: str) -> None:
    assert SECRET.search(text)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda p: p.stem)
def test_auth_is_by_token_and_no_secret_is_passed_on(path: Path) -> None:
    document = ray_document(path)
    assert cluster_spec(document)["authOptions"] == {"mode": "token"}
    assert "runtimeEnvYAML" not in document["spec"]  # the dashboard shows it
    for name, pod in pods(path).items():
        for container in pod["spec"]["containers"]:
            given = [e["name"] for e in container.get("env", ()) if "value" in e]
            assert not [e for e in given if re.search("TOKEN|SECRET|PASSWORD|KEY", e)], (name, given)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda p: p.stem)
def test_pods_are_confined(path: Path) -> None:
    for name, pod in pods(path).items():
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["runAsUser"] > 0, name
        assert spec["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault", name
        if name != "head":  # whose autoscaler asks the API server
            assert spec["automountServiceAccountToken"] is False, name
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }, name
            limits, requests = container["resources"]["limits"], container["resources"]["requests"]
            assert limits.keys() == requests.keys() >= {"cpu", "memory"}, name
            assert not container.get("ports"), name
    scaler = cluster_spec(ray_document(path))["autoscalerOptions"]
    assert scaler["version"] == "v2"
    assert scaler["securityContext"]["allowPrivilegeEscalation"] is False
    assert {"cpu", "memory"} <= scaler["resources"]["limits"].keys()


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda p: p.stem)
def test_every_ray_pod_has_its_memory_and_the_runs(path: Path) -> None:
    for group in groups(path).values():
        spec = group["template"]["spec"]
        mounted = {m["mountPath"]: m["name"] for m in spec["containers"][0]["volumeMounts"]}
        volumes = {v["name"]: v for v in spec["volumes"]}
        shm = volumes[mounted["/dev/shm"]]["emptyDir"]
        assert shm["medium"] == "Memory"
        assert int(group["rayStartParams"]["object-store-memory"]) < gibibytes(shm["sizeLimit"]) * 2**30
        assert gibibytes(shm["sizeLimit"]) < gibibytes(spec["containers"][0]["resources"]["limits"]["memory"])
        claim = volumes[mounted["/runs"]]["persistentVolumeClaim"]["claimName"]
        (made,) = (d for d in documents(path) if d["kind"] == "PersistentVolumeClaim")
        assert made["metadata"]["name"] == claim
        assert made["spec"]["accessModes"] == ["ReadWriteMany"]


WORKER = {"ray.io/node-type": "worker"}
"""What KubeRay puts on every pod but the head's."""


def gibibytes(quantity: str) -> float:
    return float(quantity.removesuffix("Gi"))


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda p: p.stem)
def test_only_actors_stand_on_spot_nodes(path: Path) -> None:
    for name in groups(path).keys() - {"actor"}:
        affinity = groups(path)[name]["template"]["spec"]["affinity"]["nodeAffinity"]
        terms = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
        assert len(terms) == 1  # several would be alternatives
        refused = {e["key"]: (e["operator"], e["values"]) for e in terms[0]["matchExpressions"]}
        assert refused == {key: ("NotIn", [value]) for key, value in SPOT_MARKS.items()}
    if path == SERVICE:
        return
    affinity = groups(path)["actor"]["template"]["spec"]["affinity"]["nodeAffinity"]
    wanted = affinity["preferredDuringSchedulingIgnoredDuringExecution"]  # each alone: nobody has all marks
    liked = [tuple(e.values()) for w in wanted for e in w["preference"]["matchExpressions"]]
    assert liked == [(key, "In", [value]) for key, value in SPOT_MARKS.items()]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda p: p.stem)
def test_the_network_policy_closes_the_cluster(path: Path) -> None:
    document = ray_document(path)
    if document["kind"] == "RayCluster":  # KubeRay puts this label on every pod
        everyone = {"ray.io/cluster": document["metadata"]["name"]}
    else:
        (everyone,) = ({**pod["metadata"]["labels"]} for pod in [pods(path)["head"]])
        assert all(pod["metadata"]["labels"] == everyone for pod in pods(path).values())
    policies = [d["spec"] for d in documents(path) if d["kind"] == "NetworkPolicy"]
    (base,) = (p for p in policies if p["podSelector"]["matchLabels"] == everyone)
    peers = [{"podSelector": {"matchLabels": everyone}}]
    assert set(base["policyTypes"]) == {"Ingress", "Egress"}
    assert base["ingress"] == [{"from": peers}]
    assert base["egress"][0] == {"to": peers}
    assert [port["port"] for rule in base["egress"][1:] for port in rule["ports"]] == [53, 53]
    clients = [p for p in policies if p["podSelector"]["matchLabels"] == {**everyone, **WORKER}]
    assert len(clients) == (path == SERVICE)  # theirs has a test of its own
    (head,) = (p for p in policies if p is not base and p not in clients)
    assert head["podSelector"]["matchLabels"] == {**everyone, "ray.io/node-type": "head"}
    assert [port["port"] for rule in head["egress"] for port in rule["ports"]] == [443, 6443]
    for rule in head.get("ingress", []):  # whoever is let in is named, and to the dashboard alone
        assert [port["port"] for port in rule["ports"]] == [8265]
        assert all("podSelector" in peer for peer in rule["from"])


# ------------------------------------------------------------------------------------------------ the service


def serve_config() -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(ray_document(SERVICE)["spec"]["serveConfigV2"])
    return config


def test_the_service_names_an_application_of_ours() -> None:
    (application,) = serve_config()["applications"]
    module, _, name = application["import_path"].partition(":")
    assert getattr(importlib.import_module(module), name) is build
    settings = parse(ServingSettings, application["args"], "args")
    assert settings.ask_token  # whoever is let in needs the token, too
    assert settings.run.startswith("/runs/") and settings.checkpoint is None and settings.refresh_s > 0
    for deployment in application.get("deployments", ()):
        assert deployment["name"] == DEPLOYMENT


def test_a_misspelt_key_of_the_service_is_caught() -> None:
    document = copy.deepcopy(ray_document(SERVICE))
    document["spec"]["serveConfigV3"] = document["spec"].pop("serveConfigV2")
    assert any("serveConfigV3" in line for line in wrong(document))


@pytest.mark.skipif(importlib.util.find_spec("fastapi") is None, reason="ray[serve] is not installed")
def test_ray_serve_reads_the_service_as_meant() -> None:
    from ray.serve.schema import ServeDeploySchema

    config = serve_config()
    read = ServeDeploySchema.model_validate(config).model_dump(exclude_unset=True)
    assert read["applications"] == config["applications"]  # a key that Serve does not know would be gone


def test_the_replicas_have_the_token_the_runs_and_room() -> None:
    group = groups(SERVICE)["replica"]
    (container,) = group["template"]["spec"]["containers"]
    (variable,) = container["env"]
    assert variable["name"] == TOKEN
    assert variable["valueFrom"]["secretKeyRef"].keys() == {"name", "key"}  # not optional: no pod without it
    (application,) = serve_config()["applications"]
    settings = parse(ServingSettings, application["args"], "args")
    per_node = int(container["resources"]["limits"]["cpu"]) // settings.threads
    assert per_node * group["minReplicas"] >= settings.replicas
    read = read_by_ray(SERVICE)
    assert list(read) == ["headgroup", "replica"] and read["headgroup"]["resources"]["CPU"] == 0
    assert read["replica"]["max_workers"] > read["replica"]["min_workers"] >= 1
    assert ray_document(SERVICE)["spec"]["excludeHeadPodFromServeSvc"] is True


def test_only_named_clients_reach_the_service() -> None:
    everyone = pods(SERVICE)["head"]["metadata"]["labels"]
    policies = [d["spec"] for d in documents(SERVICE) if d["kind"] == "NetworkPolicy"]
    (clients,) = (p for p in policies if p["podSelector"]["matchLabels"] == {**everyone, **WORKER})
    assert clients["policyTypes"] == ["Ingress"]
    (rule,) = clients["ingress"]
    assert [port["port"] for port in rule["ports"]] == [8000]
    (peer,) = rule["from"]
    assert peer.keys() == {"podSelector"}  # of this namespace alone
    assert peer["podSelector"]["matchLabels"] and everyone.items().isdisjoint(
        peer["podSelector"]["matchLabels"].items()
    )


def test_the_service_and_the_cluster_have_the_same_head() -> None:
    served, standing = (
        copy.deepcopy(groups(path)["head"]) for path in (SERVICE, KUBERAY / "raycluster.yaml")
    )
    assert served["template"].pop("metadata")["labels"] == {"app.kubernetes.io/part-of": "seqrl-policy"}
    # KubeRay's operator hands the application to the dashboard: it cannot stand on loopback here
    assert standing["rayStartParams"].pop("dashboard-host") == "127.0.0.1"
    assert served == standing
