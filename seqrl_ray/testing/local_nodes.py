"""The nodes of a cluster that lives on one machine: loopback addresses, and which processes belong to which.

A *node* is one address (127.0.1.1, .2, ...), a home folder, and a keeper: a sleeping process that stands for
the machine being switched on. Whatever is started on a node carries the node's mark in its environment, and
so do its children; a process that has overwritten its environment (Ray's workers do, when they set their
title) belongs to the node of its parent. A node whose keeper has died is switched off, and everything on it
ends. Processes are ended by their id, never by a name: other people's Ray on this machine is not touched.

What is known stands in `state.json`, changed under a lock, because the command line, the autoscaler and its
threads all ask. Linux only: processes are read from /proc.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

MARK = "SEQRL_LOCAL_NODE"
"""Environment variable that says which node a process is on."""

GRACE_S = 1.0
"""How long a process that was asked to end may take before it is killed; a raylet would take ten seconds."""

KILL_S = 20.0
"""How long a killed process may take to be gone."""

FIRST, LAST = 1, 254
"""Last numbers of the addresses."""

Processes = dict[int, int]
"""Process id -> when it started, in clock ticks since boot: together they name one process for ever."""


class Nodes:
    """The nodes of one cluster, in one folder."""

    def __init__(self, folder: str | Path, *, subnet: str = "127.0.1") -> None:
        """Use (or make) the cluster's folder.

        Args:
            folder: absolute; short, since sockets lie in it and their paths may have 107 bytes.
            subnet: the first three numbers of the addresses, of the loopback network 127.
        Raises: OSError: the folder is another user's, or this is not Linux.
        """
        if not sys.platform.startswith("linux"):
            raise OSError(
                f"a local cluster needs /proc and loopback addresses, as on Linux; not {sys.platform}"
            )
        if not subnet.startswith("127."):
            raise OSError(f"provider.subnet={subnet} is not of the loopback network. Use e.g. 127.0.1.")
        self.folder, self.subnet = Path(folder).absolute(), subnet
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.folder.stat().st_uid != os.getuid():
            raise OSError(f"provider.folder={self.folder} belongs to another user. Name another folder.")

    def ray_folder(self, node: str) -> Path:
        """Ray's temporary folder on a node: session, logs, sockets; it outlives the node."""
        return self.folder / "ray" / node.rpartition("-")[2]

    def home(self, node: str) -> Path:
        """The node's home folder."""
        return self.folder / "nodes" / node

    def mark(self, node: str) -> str:
        """What the node's processes carry."""
        return f"{self.folder}/{node}"

    # ------------------------------------------------------------------------------------------ what is known

    @contextlib.contextmanager
    def _state(self) -> Iterator[dict[str, Any]]:
        """The state, alone; written back if the block changes it."""
        with (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            file = self.folder / "state.json"
            before = file.read_text(encoding="utf-8") if file.exists() else '{"made": 0, "nodes": {}}'
            state = json.loads(before)
            yield state
            if (after := json.dumps(state, indent=1)) != before:
                partial = file.with_suffix(".partial")
                partial.write_text(after, encoding="utf-8")
                partial.replace(file)

    def known(self) -> dict[str, dict[str, Any]]:
        """Every node there ever was: id -> ip, tags, keeper, `on`, and once it is off, whom it ended."""
        with self._state() as state:
            found: dict[str, dict[str, Any]] = state["nodes"]
            return found

    def running(self) -> dict[str, dict[str, Any]]:
        """The nodes that are on. One whose keeper has died is switched off, whoever killed it."""
        nodes = {name: node for name, node in self.known().items() if node["on"]}
        for name in [name for name, node in nodes.items() if not alive(*node["keeper"])]:
            self.switch_off(name, grace_s=0.0)
            del nodes[name]
        return nodes

    def tag(self, node: str, tags: Mapping[str, str]) -> None:
        """Add tags to a node; a node that has gone keeps its own."""
        with self._state() as state:
            if node in state["nodes"]:
                state["nodes"][node]["tags"].update(tags)

    # ------------------------------------------------------------------------------------------- on, off, use

    def switch_on(self, cluster: str, tags: Mapping[str, str]) -> str:
        """Make a node. Returns its id.

        Raises: OSError: every address is in use.
        """
        with self._state() as state:
            taken = {node["ip"] for node in state["nodes"].values() if node["on"]}
            free = (f"{self.subnet}.{last}" for last in range(FIRST, LAST + 1))
            ip = next((address for address in free if address not in taken), None)
            if ip is None:
                raise OSError(f"all {LAST} addresses of {self.subnet} are in use: no node can be added.")
            if not taken:  # a new cluster: what an old one left would be taken for its own
                shutil.rmtree(self.folder / "ray", ignore_errors=True)
            state["made"] += 1
            name = f"{cluster}-{state['made']}"
            self.home(name).mkdir(mode=0o700, parents=True)
            pid = self._keeper(name)
            state["nodes"][name] = {
                "ip": ip,
                "tags": dict(tags),
                "on": True,
                "keeper": [pid, _stat(pid)[2]],
                "ended": {},
            }
            return name

    def _keeper(self, node: str) -> int:
        """Start a process that sleeps for ever, as a child of nobody. Returns its id."""
        script = "sleep infinity </dev/null >/dev/null 2>&1 & echo $!"
        env = {**os.environ, MARK: self.mark(node)}
        done = subprocess.run(
            ["bash", "-c", script],
            env=env,
            start_new_session=True,
            check=True,
            capture_output=True,
            text=True,
        )
        return int(done.stdout)

    def switch_off(self, node: str, *, grace_s: float = GRACE_S) -> None:
        """End everything on a node, and the node; one that is off already stays so."""
        self.stop(node, grace_s=grace_s, keeper=True)
        with self._state() as state:
            state["nodes"][node]["on"] = False
        shutil.rmtree(self.home(node), ignore_errors=True)

    def stop(self, node: str, *, grace_s: float = GRACE_S, keeper: bool = False) -> None:
        """End the node's processes, by their ids; its keeper only if asked.

        Raises: TimeoutError: a process does not die.
        """
        spared = {os.getpid()} if keeper else {os.getpid(), self.known()[node]["keeper"][0]}
        began, asked = time.monotonic(), Processes()
        while found := {p: s for p, s in self.processes(node).items() if p not in spared}:
            waited = time.monotonic() - began
            if waited > grace_s + KILL_S:
                raise TimeoutError(f"processes {sorted(found)} of node {node} do not die.")
            end(found if waited >= grace_s else _without(found, asked), _signal(waited >= grace_s))
            asked |= found
            time.sleep(0.05)
        with self._state() as state:
            state["nodes"][node]["ended"].update({str(pid): started for pid, started in asked.items()})

    def processes(self, node: str) -> Processes:
        """The living processes of a node."""
        return processes().get(self.mark(node), {})

    def environment(self, node: str, extra: Mapping[str, str]) -> dict[str, str]:
        """What a process that starts on the node finds in its environment.

        A node of a cloud does not have its launcher's variables either: Ray's own are left out. What `extra`
        holds comes on top.
        """
        known = self.known()[node]
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "SEQRL_"))}
        package = str(Path(__file__).resolve().parents[2])
        paths = [package, *kept.get("PYTHONPATH", "").split(os.pathsep)]
        binaries = [str(Path(sys.executable).parent), *kept.get("PATH", os.defpath).split(os.pathsep)]
        return {
            **kept,
            "HOME": str(self.home(node)),
            "PATH": os.pathsep.join(dict.fromkeys(binaries)),
            "PYTHONPATH": os.pathsep.join(dict.fromkeys(p for p in paths if p)),
            "SPT_NOENV": "1",  # Ray's workers then leave their environment, and the mark in it, readable
            "SEQRL_NODE_IP": known["ip"],
            "SEQRL_RAY_FOLDER": str(self.ray_folder(node)),
            **extra,
            MARK: self.mark(node),
        }


def default_folder(cluster: str) -> Path:
    """Where a cluster lies that does not say: one place per user and name."""
    return Path(tempfile.gettempdir()) / f"seqrl-{os.getuid()}-{cluster}"


# ------------------------------------------------------------------------------------------------- processes


def processes() -> dict[str, Processes]:
    """The living processes of all nodes on this machine: mark -> processes."""
    parents: dict[int, int] = {}
    marks: dict[int, str | None] = {}
    started: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        pid = int(entry)
        with contextlib.suppress(OSError):  # it ended while this list was gone through
            state, parent, start = _stat(pid)
            if state not in "ZX":
                parents[pid], started[pid], marks[pid] = parent, start, _mark(pid)
    found: dict[str, Processes] = {}
    for pid in parents:
        current = pid
        while marks.get(current) is None and current in parents:
            current = parents[current]
        if (mark := marks.get(current)) is not None:
            found.setdefault(mark, {})[pid] = started[pid]
    return found


def alive(pid: int, started: int) -> bool:
    """Whether this very process lives; another one that got its id later does not count."""
    try:
        state, _, start = _stat(pid)
    except OSError:
        return False
    return start == started and state not in "ZX"


def _without(found: Processes, others: Processes) -> Processes:
    return {pid: started for pid, started in found.items() if others.get(pid) != started}


def _signal(late: bool) -> signal.Signals:
    return signal.SIGKILL if late else signal.SIGTERM


def end(found: Mapping[int, int], number: signal.Signals) -> None:
    """Send a signal to these processes, those that still are who they were."""
    for pid, started in found.items():
        if alive(pid, started):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


def _stat(pid: int) -> tuple[str, int, int]:
    """(state, parent, start time) of a process. Raises: OSError: there is none."""
    text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    fields = text.rpartition(")")[2].split()  # the name before it may hold anything
    return fields[0], int(fields[1]), int(fields[19])


def _mark(pid: int) -> str | None:
    """The mark in a process's environment, if that can be read."""
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return None
    name = f"{MARK}=".encode()
    found = next((part for part in environment.split(b"\0") if part.startswith(name)), None)
    return None if found is None else os.fsdecode(found.removeprefix(name))
