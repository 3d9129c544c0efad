"""The cluster's nodes, seen from the supervisor: who lives, who is about to go, who stands where, who has
room.

Ray has no public call for draining nodes, for one actor's place or for one node's free resources; its own
libraries (Train's preemption watcher, Data's autoscaler) read them from the global state that this file reads
too. Everything of Ray's that is not a public name stands here (Ray 2.60).

A node *drains* when its end was announced: by whoever hears a cloud's preemption notice, by an autoscaler, or
by `ray drain-node --node-id ... --reason DRAIN_NODE_REASON_PREEMPTION --deadline-remaining-seconds ...`. Ray
then places nothing on it any more, and leaves what stands there alone until the deadline.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import ray
from ray._private.state import state as global_state
from ray.util.client import ray as client

from seqrl_ray.recipe_labels import matches

NODE_GROUP = "ray.io/node-group"
"""Ray's label for the kind of node that a launcher started."""

HEAD = "node:__internal_head__"
"""Ray's resource of the head node."""

KNOCK_S = 1.0
"""How long a node may take to accept a connection before it counts as gone."""


@dataclass(frozen=True)
class Node:
    """One living node."""

    node_id: str
    address: str
    port: int
    free: Mapping[str, float] = field(default_factory=dict)
    """Resource -> amount that nobody has reserved; Ray hears of it up to a few seconds late."""
    labels: Mapping[str, str] = field(default_factory=dict)
    ends_at: float | None = None
    """Wall clock (seconds since 1970) of its announced end; infinite where no time was given; None: no end
    was announced.
    """

    @property
    def draining(self) -> bool:
        """Whether its end has been announced."""
        return self.ends_at is not None


@dataclass(frozen=True)
class Place:
    """Where an actor is."""

    node_id: str | None
    """None: nowhere yet."""
    started: bool = False
    """Its constructor is through."""
    pid: int = 0
    """Its process there; 0: none yet."""


class Lookout:
    """Sees the cluster for a process that joined it through a `ray://` address, and so has no global state; a
    small Ray actor on the head, without which there is no cluster either.
    """

    def look(self) -> dict[str, Node]:
        """See the function."""
        return look()

    def place_of(self, actor_id: str) -> Place:
        """See the function."""
        return _place_of(actor_id)

    def gone(self, node_id: str) -> bool:
        """See the function."""
        return gone(node_id)


_lookout: tuple[Any, Any] = (None, None)
"""(connection, the lookout made over it)."""


def _through() -> Any:
    """Return the lookout where this process needs one, else None."""
    global _lookout
    if not client.is_connected():  # type: ignore[no-untyped-call]
        return None
    connection = client.get_context().client_worker  # type: ignore[no-untyped-call]
    if _lookout[0] is not connection:
        kind = ray.remote(Lookout).options(
            num_cpus=0, resources={HEAD: 0.001}, max_restarts=-1, max_task_retries=-1
        )
        _lookout = (connection, kind.remote())
    return _lookout[1]


def look() -> dict[str, Node]:
    """Return the living nodes by id."""
    if (lookout := _through()) is not None:
        seen: dict[str, Node] = ray.get(lookout.look.remote())
        return seen
    free = global_state.available_resources_per_node()  # type: ignore[no-untyped-call]
    draining = global_state.get_draining_nodes()
    found = {}
    for row in ray.nodes():  # type: ignore[no-untyped-call]
        node_id = str(row["NodeID"])
        if row["Alive"]:
            ends_ms = draining.get(node_id)
            ends_at = None if ends_ms is None else ends_ms / 1000.0 or float("inf")
            found[node_id] = Node(
                node_id,
                str(row["NodeManagerAddress"]),
                int(row["NodeManagerPort"]),
                free.get(node_id, {}),
                row.get("Labels") or {},
                ends_at,
            )
    return found


def place_of(actor: Any) -> Place:
    """Return where an actor of ours is, or was before it died.

    Before it has a process, Ray names the node at which it queues, and may yet send it to another.
    """
    actor_id = actor._actor_id.hex()
    if (lookout := _through()) is not None:
        found: Place = ray.get(lookout.place_of.remote(actor_id))
        return found
    return _place_of(actor_id)


def _place_of(actor_id: str) -> Place:
    row: Mapping[str, Any] = global_state.actor_table(actor_id)
    if not row or not row["Pid"]:
        return Place(None)
    return Place(row["Address"]["NodeID"], started=row["State"] == "ALIVE", pid=int(row["Pid"]))


def gone(node_id: str) -> bool:
    """Whether a node is dead, or so far gone that nothing on it can be reached.

    Ray calls a node dead after several missed health checks (ten seconds and more as it comes). Its own
    process not accepting connections says so at once.
    """
    if (lookout := _through()) is not None:
        return bool(ray.get(lookout.gone.remote(node_id)))
    node = look().get(node_id)
    if node is None:
        return True
    try:
        socket.create_connection((node.address, node.port), timeout=KNOCK_S).close()
    except OSError:
        return True
    return False


def room(nodes: Iterable[Node], cpus: float, selector: Mapping[str, str] | None = None) -> int:
    """Count the actors of `cpus` CPUs each that fit on nodes that are to stay (and carry the labels)."""
    fits = [n for n in nodes if not n.draining and matches(n.labels, selector or {})]
    return sum(int((n.free.get("CPU", 0.0) + 1e-9) / cpus) for n in fits)


def autoscales(nodes: Iterable[Node]) -> bool:
    """Whether nodes are started by an autoscaler (or KubeRay), which adds some for actors that wait for room.

    It names the group of every node it starts; a node started by hand has none.
    """
    return any(NODE_GROUP in node.labels for node in nodes)


def seconds_left(node: Node) -> float:
    """Return the seconds until a draining node's announced end; infinite where none is known."""
    return float("inf") if node.ends_at is None else node.ends_at - time.time()
