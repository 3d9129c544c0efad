"""`seqrl doctor`: examine this machine, or a living cluster; say what is open and what to do.

The facts are gathered in `runtime/machine.py` and `runtime/probing.py` and judged here, each check a pure
function. Nothing is changed and nothing stays running.
"""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Any

from seqrl_ray.doctor.findings import Examination, Finding
from seqrl_ray.errors import RunFolderError

RUNS = Path("runs")
"""Where `seqrl train` puts runs unless told otherwise."""


def examine(address: str | None = None, run_dir: str | Path = RUNS) -> Examination:
    """Examine this machine, and a cluster if there is an address.

    Args:
        address: `host:port`, `ray://host:port` or `auto`; None: only this machine.
        run_dir: where runs shall go, a folder or a remote place; need not exist.
    Raises: RecipeError: no cluster answers at `address`.
    """
    from seqrl_ray.doctor.machine_checks import machine_findings, own_ports, pins, token_findings
    from seqrl_ray.loops.remote import is_url
    from seqrl_ray.loops.run_folder import PACKAGES
    from seqrl_ray.runtime.machine import facts

    pinned = pins()
    packages = tuple(dict.fromkeys([*PACKAGES, *pinned, "seqrl-ray"]))
    here = facts(packages)
    found = token_findings(here["token"], here["auth_mode"])
    if address is None:
        found = [*machine_findings(here, pinned), *found, *own_ports(here["listening"], here["auth_mode"])]
        return Examination(machine_lines(here), (*found, storage_finding(run_dir)))
    remote = is_url(run_dir)
    where, more = _cluster(address, RUNS if remote else Path(run_dir), packages, pinned, here)
    if remote:  # the nodes need not share a folder: the copy is made by the driver
        more = [*(finding for finding in more if finding.check != "storage"), storage_finding(run_dir)]
    return Examination(machine_lines(here), (*found, *more), cluster=where)


def _cluster(
    address: str, run_dir: Path, packages: tuple[str, ...], pinned: dict[str, str], here: dict[str, Any]
) -> tuple[str, list[Finding]]:
    """Join the cluster and examine it."""
    from seqrl_ray.doctor.cluster_checks import cluster_findings
    from seqrl_ray.runtime.launch import connected
    from seqrl_ray.runtime.probing import probe

    versions = {"python": here["python"], **here["versions"]}
    try:
        with connected(address):
            report = probe(run_dir, packages)
    except RuntimeError as error:
        if "ersion mismatch" not in str(error):
            raise
        text = " ".join(str(error).split())
        return address, [Finding("FAIL", "versions", f"{text} Use the cluster's versions here.")]
    return report.address or address, cluster_findings(report, pinned, versions)


def storage_finding(run_dir: str | Path) -> Finding:
    """Say whether runs can be written there; which nodes see a folder, only a cluster can tell."""
    from seqrl_ray.loops.remote import Remote, is_url
    from seqrl_ray.runtime.probing import nearest

    if is_url(run_dir):
        try:
            Remote(str(run_dir)).try_out()
        except (OSError, RunFolderError) as error:
            text = f"{run_dir} cannot be used: {error}. Look at the address and at your credentials."
            return Finding("FAIL", "storage", text)
        return Finding("OK", "storage", f"{run_dir} is written, listed and read from here.")
    folder = nearest(Path(run_dir).absolute())
    if os.access(folder, os.W_OK | os.X_OK):
        return Finding("OK", "storage", f"runs can be written to {run_dir}.")
    return Finding("FAIL", "storage", f"nothing can be written to {folder}. Name another --run-dir.")


def machine_lines(here: dict[str, Any]) -> tuple[str, ...]:
    """Say what this machine has and what a run would use; nothing is started."""
    import torch

    from seqrl_ray.algorithms.compiled import compiler
    from seqrl_ray.loops.run_folder import versions
    from seqrl_ray.recipe import data_root, shipped
    from seqrl_ray.runtime.launch import SMALL_MACHINE_CORES

    cores = os.cpu_count() or 1
    place = "processes of its own" if cores > SMALL_MACHINE_CORES else "the learner's process"
    gib = here["memory_bytes"] / 2**30
    device = f"cuda ({torch.cuda.get_device_name()})" if torch.cuda.is_available() else "cpu"
    known = ", ".join(f"{name} {version}" for name, version in versions().items() if name != "python")
    return (
        f"python       {platform.python_version()} at {sys.executable}",
        f"machine      {platform.system()} {platform.machine()}, {cores} cores, {gib:.1f} GiB memory",
        f"packages     {known}",
        f"device       {device}",
        f"compiler     {compiler() or 'no C++ compiler: updates stay eager on the CPU'}",
        f"recipes      {len(shipped())} in {data_root('envs')}",
        f"a run here   starts a Ray of its own; one replay shard stands in {place} (replay.wiring=auto)",
    )
