"""The Dockerfile and the compose files, without an engine: what is published, pinned, copied, kept secret."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from seqrl_ray.cluster.check import WORLD

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text(encoding="utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
FILES = sorted(path for path in DOCKER.rglob("*") if path.is_file())
UID = "1000"
"""Of Ray's own images, too."""
PINS = {
    line.partition("==")[0].lower()
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if "==" in line
}


def instructions() -> list[str]:
    """The Dockerfile's instructions, comments out, continued lines joined."""
    text = "\n".join(line for line in DOCKERFILE.splitlines() if not line.startswith("#"))
    return [" ".join(line.split()) for line in text.replace("\\\n", " ").splitlines() if line.strip()]


def stages() -> dict[str, list[str]]:
    """Name of each stage -> its instructions."""
    found: dict[str, list[str]] = {}
    for line in instructions():
        if match := re.fullmatch(r"FROM (\S+) AS (\S+)", line):
            found[match[2]] = []
        elif found:
            found[list(found)[-1]].append(line)
    return found


def option(service: str, name: str) -> str:
    """Value of `--name=value` in a service's command."""
    values = [
        part.partition("=")[2] for part in SERVICES[service]["command"] if part.startswith(f"--{name}=")
    ]
    assert len(values) == 1, (service, name, values)
    return values[0]


# ----------------------------------------------------------------------------------------------- who may in


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_nothing_listens_to_the_world(path):
    text = path.read_text(encoding="utf-8")
    assert not WORLD.search(text)
    assert "network_mode" not in text


def test_ports_are_published_on_loopback_only():
    published = {name: service.get("ports", []) for name, service in SERVICES.items()}
    for name, ports in published.items():
        for port in ports:
            assert re.fullmatch(r"127\.0\.0\.1:(\d+):\1", port), f"{name}: {port}"
    assert {name for name, ports in published.items() if ports} == {"head", "prometheus", "grafana"}


def test_ray_asks_for_a_token_everywhere():
    for name in ("head", "worker"):
        environment = SERVICES[name]["environment"]
        assert environment["RAY_AUTH_MODE"] == "token"
        assert environment["RAY_AUTH_TOKEN"].startswith("${RAY_AUTH_TOKEN:?")
    assert "RAY_AUTH_TOKEN" not in str(SERVICES["prometheus"]) + str(SERVICES["grafana"])


def test_no_secret_is_here():
    """What is secret has a value only from outside, and without one nothing starts."""
    for name, service in SERVICES.items():
        for key, value in service.get("environment", {}).items():
            if re.search(r"TOKEN|PASSWORD|SECRET|KEY", key):
                assert re.fullmatch(r"\$\{[A-Z_]+:\?[^}]+\}", value), f"{name}: {key}"
    assert not [path for path in FILES if path.suffix == ".env" or path.name.startswith(".env")]
    for ignored in (".gitignore", ".dockerignore"):
        assert re.search(r"^(\*\*/)?\*\.env$", (ROOT / ignored).read_text(encoding="utf-8"), re.MULTILINE)
    assert not re.search(r"ARG \w*(TOKEN|PASSWORD|SECRET)|ENV .*(TOKEN|PASSWORD|SECRET)", DOCKERFILE)


def test_services_have_no_privileges():
    for name, service in SERVICES.items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not {"privileged", "user", "pid", "ipc", "cap_add"} & set(service), name
        for volume in service.get("volumes", []):
            assert volume.startswith("./") is volume.endswith(":ro"), f"{name}: {volume}"
            assert "docker.sock" not in volume
    assert set(SERVICES["grafana"]["networks"]) == {"watch"}, "Grafana need not reach Ray"


# --------------------------------------------------------------------------------------------- what is meant


def test_images_are_pinned():
    for name in ("prometheus", "grafana"):
        assert re.fullmatch(r"[a-z]+/[a-z]+:v?\d+\.\d+\.\d+", SERVICES[name]["image"])
    (base,) = re.findall(r"^ARG BASE=(\S+)$", DOCKERFILE, re.MULTILINE)
    assert re.fullmatch(r"python:3\.11\.\d+-slim-bookworm", base)
    stages_from = {line.split()[1] for line in instructions() if line.startswith("FROM ")}
    assert stages_from <= {"${BASE}", *stages()}


def test_the_cluster_is_a_head_and_two_workers():
    assert set(SERVICES) == {"head", "worker", "prometheus", "grafana"}
    assert SERVICES["worker"]["deploy"]["replicas"] == 2
    assert "--head" in SERVICES["head"]["command"]
    port = option("head", "port")
    assert option("worker", "address") == f"{SERVICES['head']['hostname']}:{port}"
    for name in ("head", "worker"):
        service = SERVICES[name]
        assert service["command"][:2] == ["ray", "start"] and "--block" in service["command"]
        assert service["healthcheck"]["test"][-1] == f"--address=head:{port}"
        assert service["build"]["target"] == "${SEQRL_TARGET:-cpu}"
    assert SERVICES["head"]["ports"] == [f"127.0.0.1:{option('head', 'dashboard-port')}:8265"]


def test_the_object_store_fits_into_shared_memory():
    for name in ("head", "worker"):
        amount, unit = re.fullmatch(r"(\d+)(gb|mb)", SERVICES[name]["shm_size"]).groups()
        assert int(option(name, "object-store-memory")) < int(amount) * 2 ** {"gb": 30, "mb": 20}[unit]


def test_prometheus_scrapes_where_ray_serves():
    config = yaml.safe_load((DOCKER / "prometheus" / "prometheus.yaml").read_text(encoding="utf-8"))
    (job,) = config["scrape_configs"]
    (found,) = job["dns_sd_configs"]
    assert set(found["names"]) == {"head", "worker"}
    for name in found["names"]:
        assert option(name, "metrics-export-port") == str(found["port"])
        assert set(SERVICES[name]["networks"]) & set(SERVICES["prometheus"]["networks"])
    for rules in config["rule_files"]:
        assert (DOCKER / "prometheus" / rules).is_file()
    assert option("prometheus", "config.file") == "/etc/prometheus/prometheus.yaml"


def test_grafana_is_given_what_is_here():
    mounts = dict(volume.split(":")[:2] for volume in SERVICES["grafana"]["volumes"])
    inside = {there: DOCKER / here for here, there in mounts.items() if here.startswith("./")}
    provider = yaml.safe_load((DOCKER / "grafana/provisioning/dashboards/seqrl.yaml").read_text())
    folder = provider["providers"][0]["options"]["path"]
    assert (inside[folder] / "seqrl.json").is_file()
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{folder}/seqrl.json"
    source = yaml.safe_load((DOCKER / "grafana/provisioning/datasources/prometheus.yaml").read_text())
    assert source["datasources"][0]["url"] == "http://prometheus:9090"
    assert set(SERVICES["grafana"]["networks"]) & set(SERVICES["prometheus"]["networks"])


def test_what_is_mounted_and_named_exists():
    volumes, networks = set(COMPOSE["volumes"]), set(COMPOSE["networks"])
    for name, service in SERVICES.items():
        assert set(service["networks"]) <= networks
        for volume in service.get("volumes", []):
            here = volume.split(":")[0]
            assert (DOCKER / here).is_dir() if here.startswith("./") else here in volumes, f"{name}: {volume}"
    gpu = yaml.safe_load((DOCKER / "compose.gpu.yaml").read_text(encoding="utf-8"))
    assert set(gpu["services"]) <= set(SERVICES)


# --------------------------------------------------------------------------------------------- the Dockerfile


def test_the_targets_are_there_and_run_without_privileges():
    found = stages()
    for target in ("cpu", "gpu"):
        assert f"COPY --from=venv-{target} /opt/seqrl /opt/seqrl" in found[target]
        users = [line.removeprefix("USER ") for line in found[target] if line.startswith("USER ")]
        assert users == [f"{UID}:{UID}"]
        assert found[target].index(f"USER {users[0]}") > found[target].index(
            f"COPY --from=venv-{target} /opt/seqrl /opt/seqrl"
        )
    assert list(found)[-1] == "cpu", "what a build without --target makes"


def test_one_user_everywhere():
    """The image's, the pods', and the owner of the folder that cloud nodes share are one number."""
    base = " ".join(stages()["base"])
    assert f"useradd --uid {UID} " in base and f"groupadd --gid {UID} " in base
    home = re.search(r"--home-dir (\S+)", base)[1]
    assert f" HOME={home}" in base and f"chmod 1777 {home}" in base  # also for `docker run --user`
    for name in ("raycluster", "rayjob"):
        text = (ROOT / "cluster" / "kuberay" / f"{name}.yaml").read_text(encoding="utf-8")
        assert set(re.findall(r"(?:runAsUser|runAsGroup|fsGroup): (\d+)", text)) == {UID}
    for name in ("aws", "gcp"):
        config = yaml.safe_load((ROOT / "cluster" / f"{name}.yaml").read_text(encoding="utf-8"))
        assert config["docker"]["image"].startswith("rayproject/ray:"), "whose user has that number"
        *_, mount, owned = config["initialization_commands"]
        assert " mount -t nfs" in mount
        assert owned == f"sudo install -d -o {UID} /mnt/shared/runs"


def test_what_is_copied_exists():
    root = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]["head"]["build"]["context"]
    assert (DOCKER / root).resolve() == ROOT
    for line in instructions():
        if line.startswith("COPY "):
            *sources, _ = [part for part in line.split()[1:] if not part.startswith("--")]
            if "--from=" not in line:
                assert [s for s in sources if not (ROOT / s).exists()] == [], line
            else:
                (stage,) = re.findall(r"--from=(\S+)", line)
                assert stage in stages()
    wheel = " ".join(stages()["wheel"])
    for folder in ("seqrl_ray", "envs", "tune", "cluster", "docker"):
        assert f"COPY {folder} ./{folder}" in wheel, "the wheel has it as package data"
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").split()
    assert not {"seqrl_ray", "envs", "tune", "cluster", "docker", "constraints.txt"} & set(ignored)


def test_pip_installs_exact_versions():
    calls = [call for line in instructions() for call in re.findall(r"pip install [^&|;]+", line)]
    assert len(calls) == 5
    for call in calls:
        assert call.strip().endswith("-c constraints.txt"), call
    assert {"torch", "ray", "hatchling", "tomlkit", "prometheus_client", "opencensus"} <= PINS
    wheels = [line for line in instructions() if "pip wheel" in line]
    assert len(wheels) == 1 and "--no-build-isolation" in wheels[0]


def test_the_readme_says_that_it_was_never_built():
    assert "**Never built here.**" in (DOCKER / "README.md").read_text(encoding="utf-8")
