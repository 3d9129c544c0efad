"""Judge what one machine has: pure functions of `runtime.machine.facts`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from seqrl_ray.doctor.findings import Finding
from seqrl_ray.doctor.ports import port_findings

GIB = 2**30
LEAST_OPEN_FILES, GOOD_OPEN_FILES = 1_024, 65_536
"""Each Ray process takes dozens of sockets and files; Ray's own advice is the larger figure."""
LEAST_SHARED_MEMORY = GIB
"""Docker's default is 64 MiB: Ray then keeps its objects on disk, at a tenth of the speed."""
FULL_DISK = 0.95
"""Ray stops writing objects to a disk that is fuller than this."""
LOW_DISK = 5 * GIB


def pins() -> dict[str, str]:
    """Return distribution -> versions that this seqrl-ray was made for; "python" among them. Empty where it
    is not installed but only lies on the path.
    """
    try:
        about = metadata.metadata("seqrl-ray")
        wanted = [Requirement(text) for text in metadata.requires("seqrl-ray") or ()]
    except metadata.PackageNotFoundError:
        return {}
    found = {r.name: str(r.specifier) for r in wanted if r.marker is None or r.marker.evaluate({"extra": ""})}
    return {"python": about["Requires-Python"] or "", **found}


def machine_findings(
    facts: Mapping[str, Any], pinned: Mapping[str, str], *, where: str = ""
) -> list[Finding]:
    """Return what is the matter with a machine, whether it is part of a cluster or not.

    Args:
        facts: of `runtime.machine.facts`.
        pinned: of `pins`.
        where: address of the node.
    """
    versions = {"python": facts["python"], **facts["versions"]}
    return [
        *version_findings(versions, pinned, where=where),
        simulator_finding(facts["sumo"], where=where),
        dashboard_finding(facts["importable"], where=where),
        gpu_finding(facts, where=where),
        memory_finding(facts["shared_memory_bytes"], where=where),
        files_finding(facts["open_files"], where=where),
        disk_finding(facts["spill"], where=where),
    ]


def version_findings(
    versions: Mapping[str, str], pinned: Mapping[str, str], *, where: str = ""
) -> list[Finding]:
    """Hold installed versions to the pins."""
    if not pinned:
        text = "seqrl-ray lies on the path and is not installed: its pins are unknown. Run pip install -e ."
        return [Finding("warning", "versions", text, where)]
    found = []
    for name, wanted in pinned.items():
        if name not in versions:
            text = f"{name} is missing and {wanted or 'any version'} is needed. pip install '{name}{wanted}'"
            found.append(Finding("FAIL", "versions", text, where))
        elif not SpecifierSet(wanted).contains(versions[name], prereleases=True):
            text = f"{name} is {versions[name]} and {wanted} is needed. pip install '{name}{wanted}'"
            found.append(Finding("FAIL", "versions", text, where))
    main = ", ".join(f"{n} {versions[n]}" for n in ("python", "ray", "torch", "libsumo") if n in versions)
    return found or [Finding("OK", "versions", f"{main} and {len(pinned)} pins hold.", where)]


def simulator_finding(sumo: Mapping[str, str], *, where: str = "") -> Finding:
    """Say whether SUMO loads."""
    if "version" in sumo:
        return Finding("OK", "sumo", f"{sumo['version']} loads.", where)
    text = f"libsumo does not load ({sumo['error']}): traffic recipes fail here. pip install libsumo"
    return Finding("warning", "sumo", text, where)


def dashboard_finding(importable: Sequence[str], *, where: str = "") -> Finding:
    """Say whether Ray's dashboard, jobs and metrics can run."""
    from seqrl_ray.runtime.machine import DASHBOARD_MODULES

    lacking = [name for name in DASHBOARD_MODULES if name not in importable]
    if not lacking:
        return Finding(
            "OK", "metrics", "ray[default] is there: dashboard, jobs and Prometheus metrics.", where
        )
    text = (
        f"ray[default] is not there ({', '.join(lacking)}): no dashboard, no ray job submit, no Prometheus; "
        "runs write TensorBoard and metrics.jsonl. pip install 'ray[default]' if you want them."
    )
    return Finding("warning", "metrics", text, where)


def gpu_finding(facts: Mapping[str, Any], *, where: str = "") -> Finding:
    """Say whether torch can use the GPUs that are there."""
    torch = facts["versions"].get("torch", "")
    cores, gib = facts["cores"], facts["memory_bytes"] / GIB
    has = f"{cores} cores, {gib:.1f} GiB memory, {facts['gpus']} GPU(s)"
    if facts["gpus"] and "+cpu" in torch:
        text = (
            f"{has}, and torch {torch} is built for CPUs: learners will not use them. Install a CUDA build."
        )
        return Finding("warning", "resources", text, where)
    return Finding("OK", "resources", f"{has}.", where)


def memory_finding(size: int, *, where: str = "") -> Finding:
    """Judge /dev/shm, where Ray keeps its objects."""
    if size >= LEAST_SHARED_MEMORY:
        return Finding("OK", "memory", f"/dev/shm has {size / GIB:.1f} GiB.", where)
    text = (
        f"/dev/shm has {size / 2**20:.0f} MiB: what does not fit goes to disk. Start the container "
        "with --shm-size=2g, or mount a memory volume there."
    )
    return Finding("warning", "memory", text, where)


def files_finding(limits: Sequence[int | None], *, where: str = "") -> Finding:
    """Judge how many files a process may open: (soft, hard), None = no limit. Ray raises soft to hard."""
    hard = limits[1]
    if hard is None or hard >= GOOD_OPEN_FILES:
        return Finding("OK", "files", f"ulimit -n can be raised to {hard or 'any number'}.", where)
    text = f"ulimit -n ends at {hard}: a cluster of many processes runs out. Raise it to {GOOD_OPEN_FILES}."
    return Finding("FAIL" if hard < LEAST_OPEN_FILES else "warning", "files", text, where)


def disk_finding(spill: Mapping[str, Any], *, where: str = "") -> Finding:
    """Judge the disk where Ray puts logs, and objects that memory cannot hold."""
    free, total = spill["free_bytes"], spill["total_bytes"]
    has = f"{spill['path']} has {free / GIB:.1f} of {total / GIB:.1f} GiB free"
    if total and 1 - free / total > FULL_DISK:
        text = (
            f"{has}: Ray writes no objects to a disk fuller than {FULL_DISK:.0%}, and tasks stop. Free some."
        )
        return Finding("FAIL", "disk", text, where)
    if free < LOW_DISK:
        return Finding("warning", "disk", f"{has}: little for objects and logs. Free some.", where)
    return Finding("OK", "disk", f"{has}.", where)


def token_findings(token: Mapping[str, Any] | None, mode: str | None) -> list[Finding]:
    """Judge this user's token and mode, as a Ray that is started from this shell would find them."""
    found = []
    if mode is not None and mode.lower() != "token":
        text = (
            f"RAY_AUTH_MODE={mode}: a Ray that is started from this shell obeys everybody who reaches it. "
            "Unset it, or set it to token."
        )
        found.append(Finding("warning", "auth", text))
    if token is None:
        text = "there is no token yet. ray get-auth-token --generate makes one; a local run makes its own."
        found.append(Finding("OK" if mode is None else "warning", "auth", text))
    elif token.get("open"):
        text = (
            f"the token in {token['path']} can be read by other users (mode {token['mode']}): they can run "
            f"programs as you on your clusters. chmod 600 {token['path']}, and make a new one."
        )
        found.append(Finding("FAIL", "auth", text))
    else:
        source = token.get("path", token["source"])
        found.append(Finding("OK", "auth", f"the token is in {source}, closed to other users."))
    return found


def own_ports(listening: Iterable[tuple[str, int]] | None, mode: str | None) -> list[Finding]:
    """Judge this machine's open ports without a cluster to ask."""
    return port_findings(listening, token=mode is None or mode.lower() == "token")
