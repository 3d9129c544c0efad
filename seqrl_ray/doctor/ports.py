"""Which of Ray's doors stand open, and what each of them means.

Ray trusts its network: who reaches its dashboard, client server or control store can run any program on the
cluster (CVE-2023-48022, "ShadowRay": thousands of clusters were taken over that way). Since 2.52 a token
guards them; Serve and the metrics ask for none. What a firewall or a NetworkPolicy keeps away cannot be seen
from inside: a socket counts as open if it listens beyond this machine.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from typing import Literal

from seqrl_ray.doctor.findings import Finding, Level

Reach = Literal["loopback", "private", "public", "everywhere"]

WATCHED: dict[int, str] = {
    6379: "gcs",
    8000: "serve",
    8080: "metrics",
    8265: "dashboard",
    10001: "client",
    52365: "agent",
}
"""Port -> what Ray has there unless told otherwise."""

MEANS = {
    "gcs": "Ray's control store: who speaks to it is part of the cluster and runs any program on it",
    "agent": "the agent of Ray's dashboard: logs, profiles and health of this node",
    "dashboard": "Ray's dashboard and jobs: who reaches it runs any program here (ShadowRay)",
    "client": "the server of ray:// clients: who reaches it runs any program here",
    "serve": "Ray Serve: it asks nobody for a token",
    "metrics": "Ray's metrics: they are told without a token",
}
CLOSE = {
    "gcs": "a firewall must leave it to the cluster's nodes alone",
    "agent": "a firewall must leave it to the cluster's nodes alone",
    "dashboard": "give --dashboard-host=127.0.0.1 and reach it through a tunnel (ssh -L 8265:127.0.0.1:8265)",
    "client": "submit jobs instead, and start the head with --ray-client-server-port=0; or leave it to the "
    "cluster's own network",
    "serve": 'give http_options={"host": "127.0.0.1"} and put a proxy that knows its callers before it',
    "metrics": "leave it to the host that collects them",
}
NEEDED_BY_NODES = {"gcs", "agent"}
"""A cluster cannot do without them, and Ray offers no way to bind them to one address."""


def reach(address: str) -> Reach:
    """Return from where a socket bound to `address` can be reached."""
    at = ipaddress.ip_address(address)
    if at.is_unspecified:
        return "everywhere"
    if at.is_loopback:
        return "loopback"
    return "public" if at.is_global else "private"


def level_of(what: str, how: Reach, *, token: bool) -> Level:
    """Return how bad it is that one of Ray's services can be reached from there.

    Args:
        what: a key of `MEANS`.
        how: from where.
        token: the cluster asks for a token.
    """
    if how == "loopback":
        return "OK"
    if what in NEEDED_BY_NODES:
        if not token:
            return "FAIL"
        return "warning" if how == "public" else "OK"
    if what == "metrics":
        return {"everywhere": "warning", "public": "FAIL", "private": "OK"}[how]  # type: ignore[return-value]
    if how in ("everywhere", "public"):
        return "FAIL"
    return "warning" if token or what == "serve" else "FAIL"


def port_findings(
    listening: Iterable[tuple[str, int]] | None,
    *,
    token: bool,
    where: str = "",
    known: Mapping[int, str] | None = None,
    certain: bool = False,
) -> list[Finding]:
    """Return what the listening sockets of one machine mean.

    Args:
        listening: (address, port), as `runtime.machine.listening` gives them; None: they cannot be listed.
        token: Ray asks for a token there.
        where: address of the node.
        known: port -> service, as a living Ray says; beside the defaults.
        certain: a Ray runs there; otherwise another program may have one of its ports.
    """
    if listening is None:
        text = "this system does not list its sockets: what is open is unknown. Use its own tools."
        return [Finding("warning", "ports", text, where)]
    watched = {**WATCHED, **(known or {})}
    found = []
    for address, port in listening:
        if port not in watched or (how := reach(address)) == "loopback":
            continue
        what = watched[port]
        level = level_of(what, how, token=token)
        place = "every address" if how == "everywhere" else f"{address}, a {how} address"
        text = f"port {port} listens on {place}: {MEANS[what]}"
        if what in NEEDED_BY_NODES and level == "OK":
            text += "; the token guards it"
        elif what in NEEDED_BY_NODES and not token:
            text += ", and no token is asked for; set RAY_AUTH_MODE=token on every node"
        if not certain:
            text += " (if it is Ray's: another program may have this port)"
        found.append(Finding(level, "ports", f"{text}. {_sentence(CLOSE[what])}", where))
    if not any(f.level != "OK" for f in found):
        watch = ", ".join(map(str, sorted(watched)))
        quiet = f"of {watch} none is open to others" + (" that should not be" if found else "")
        found.insert(0, Finding("OK", "ports", quiet + ".", where))
    return sorted(found, key=lambda f: ("FAIL", "warning", "OK").index(f.level))


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + "."
