"""Judge what a cluster's nodes said: pure functions of `runtime.probing.ClusterReport`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from seqrl_ray.doctor.findings import Finding, merged
from seqrl_ray.doctor.machine_checks import machine_findings
from seqrl_ray.doctor.ports import port_findings
from seqrl_ray.runtime.probing import ClusterReport, NodeReport

MUST_AGREE = ("python", "ray", "seqrl-ray", "torch", "numpy")
"""What crosses between nodes is made and read by these."""
SKEW_WARNS_S, SKEW_FAILS_S = 2.0, 300.0
"""Rows of different nodes are out of order; object stores refuse requests that are signed so far off."""


def cluster_findings(
    report: ClusterReport, pinned: Mapping[str, str], here: Mapping[str, str]
) -> list[Finding]:
    """Return what is the matter with a cluster.

    Args:
        report: of `runtime.probing.probe`.
        pinned: of `machine_checks.pins`.
        here: package -> version on the machine that asks, "python" among them.
    """
    found = [resources_finding(report.nodes)]
    each: list[Finding] = []
    for node in report.nodes:
        if node.facts is None:
            text = (
                f"the node does not answer ({node.error}): nothing else is known of it. See its raylet's log."
            )
            each.append(Finding("FAIL", "nodes", text, node.address))
            continue
        each += agreement_findings(node, here)
        each += machine_findings(node.facts, pinned, where=node.address)
        each.append(auth_finding(node))
        each.append(skew_finding(node))
        each += port_findings(
            node.facts["listening"], token=_token(node), where=node.address, known=node.ports, certain=True
        )
    return [*found, *merged(each), *folder_findings(report)]


def _token(node: NodeReport) -> bool:
    return node.facts is not None and str(node.facts["auth_mode"] or "").lower() == "token"


def resources_finding(nodes: Sequence[NodeReport]) -> Finding:
    """Say what the cluster has in all."""
    total = {name: sum(node.resources.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU")}
    has = f"{len(nodes)} node(s), {total['CPU']:g} CPUs, {total['GPU']:g} GPUs for work"
    if total["CPU"] < 1:
        return Finding("FAIL", "nodes", f"{has}: no run can be placed. Add a node, or wait for one.")
    return Finding("OK", "nodes", f"{has}.")


def agreement_findings(node: NodeReport, here: Mapping[str, str]) -> list[Finding]:
    """Compare a node's versions with those of the machine that asks."""
    assert node.facts is not None
    there = {"python": node.facts["python"], **node.facts["versions"]}
    found = []
    if "seqrl_ray" not in node.facts["importable"]:
        text = (
            "seqrl-ray cannot be imported: no process of a run starts there. Use the same image on all nodes."
        )
        found.append(Finding("FAIL", "versions", text, node.address))
    for name, version in here.items():
        other = there.get(name)
        if other == version or (name == "seqrl-ray" and other is None):
            continue
        bad = "FAIL" if name in MUST_AGREE else "warning"
        text = f"{name} is {other or 'missing'} there and {version} here. Use the same image on all nodes."
        found.append(Finding(bad, "versions", text, node.address))  # type: ignore[arg-type]
    return found


def auth_finding(node: NodeReport) -> Finding:
    """Say whether a node's Ray asks for a token: its workers inherit the mode that it was started with."""
    if _token(node):
        return Finding("OK", "auth", "Ray asks for a token.", node.address)
    text = (
        "Ray asks nobody for a token: who reaches it runs any program there. Restart the cluster with "
        "RAY_AUTH_MODE=token and one token on every node (ray get-auth-token --generate)."
    )
    return Finding("FAIL", "auth", text, node.address)


def skew_finding(node: NodeReport) -> Finding:
    """Judge how far a node's clock is off, beyond what the round trip leaves open."""
    if node.skew_s is None:
        return Finding("warning", "clock", "its clock could not be asked.", node.address)
    off = max(0.0, abs(node.skew_s) - node.skew_within_s)
    if off < SKEW_WARNS_S:
        return Finding("OK", "clock", f"within {SKEW_WARNS_S:g} s of this machine's.", node.address)
    text = f"{off:.0f} s {'ahead of' if node.skew_s > 0 else 'behind'} this machine's"
    if off < SKEW_FAILS_S:
        text += ": rows and logs of different nodes are out of order. Run chrony or ntpd there."
        return Finding("warning", "clock", text, node.address)
    text += ": object stores refuse requests that are signed so far off. Run chrony or ntpd there."
    return Finding("FAIL", "clock", text, node.address)


def folder_findings(report: ClusterReport) -> list[Finding]:
    """Say whether the run folder is on storage that every node sees, and may write to."""
    if report.run_dir_error:
        text = f"nothing can be written to {report.run_dir} ({report.run_dir_error}): name another --run-dir."
        return [Finding("FAIL", "storage", text)]
    answered = [node for node in report.nodes if node.facts is not None]
    blind = [n.address for n in answered if not n.folder.get("sees")]
    mute = [n.address for n in answered if n.folder.get("sees") and n.address not in report.back]
    found = []
    if blind:
        text = (
            f"a file written here to {report.run_dir} is not seen there: a run that --resume brings to "
            "another node finds nothing. Give --run-dir on storage that all nodes mount."
        )
        found.append(Finding("FAIL", "storage", text, ", ".join(blind)))
    if mute:
        text = f"{report.run_dir} is seen there and cannot be written to. Give the user of Ray the right to."
        found.append(Finding("FAIL", "storage", text, ", ".join(mute)))
    if not found:
        seen = "this machine's own" if len(answered) == 1 else "seen and written by every node"
        found.append(Finding("OK", "storage", f"{report.run_dir} is {seen}."))
    return found
