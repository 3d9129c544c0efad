"""What one machine has, as plain values: read by `seqrl doctor` here, and by a task on every node.

Standard library only, and nothing of ours is imported: the module travels to the nodes by value, so that a
node which lacks seqrl-ray, or has another one, can still say so. It reads and changes nothing but the probe
files that it is told to write.
"""

from __future__ import annotations

import glob
import ipaddress
import os
import platform
import resource
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from importlib import metadata, util
from pathlib import Path
from typing import Any

SHARED_MEMORY = Path("/dev/shm")
SOCKETS = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
LISTENS = "0A"
"""State of a listening socket in the kernel's tables."""

DASHBOARD_MODULES = ("aiohttp", "aiohttp_cors", "opencensus", "opentelemetry", "prometheus_client")
"""Of what `ray[default]` adds, what Ray's dashboard and metrics cannot do without."""

SIMULATOR_S = 60.0
SEEN_WITHIN_S = 10.0
"""How long a network file system may take to show what another machine has written."""


def facts(packages: Iterable[str], spill: str | None = None) -> dict[str, Any]:
    """Return what this machine has.

    Args:
        packages: distributions whose versions are wanted.
        spill: folder that Ray writes objects to which memory cannot hold; None: Ray's default.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return {
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "executable": sys.executable,
        "versions": {name: version for name in packages if (version := version_of(name))},
        "importable": [name for name in ("seqrl_ray", *DASHBOARD_MODULES) if util.find_spec(name)],
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": len(glob.glob("/dev/nvidia[0-9]*")),
        "shared_memory_bytes": shutil.disk_usage(SHARED_MEMORY).total if SHARED_MEMORY.is_dir() else 0,
        "open_files": [_unlimited(soft), _unlimited(hard)],
        "spill": disk(Path(spill or Path(os.environ.get("RAY_TMPDIR", tempfile.gettempdir())) / "ray")),
        "auth_mode": os.environ.get("RAY_AUTH_MODE"),
        "token": token(os.environ, Path.home()),
        "listening": listening(),
        "sumo": simulator(),
    }


def version_of(name: str) -> str | None:
    """Return the installed version of a distribution, None if there is none."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _unlimited(limit: int) -> int | None:
    return None if limit == resource.RLIM_INFINITY else limit


def disk(folder: Path) -> dict[str, Any]:
    """Return size and free bytes of the disk that holds `folder`, or will when it is made."""
    while not folder.exists():
        folder = folder.parent
    usage = shutil.disk_usage(folder)
    return {"path": str(folder), "total_bytes": usage.total, "free_bytes": usage.free}


def token(environment: Mapping[str, str], home: Path) -> dict[str, Any] | None:
    """Return where Ray finds this user's token, None if nowhere. The token itself is not read.

    Args:
        environment: of the process; what stands in it goes before a file.
        home: the user's.
    Returns: "source"; for a file also "path", "mode" and "open": whether other users can read it.
    """
    if environment.get("RAY_AUTH_TOKEN"):
        return {"source": "RAY_AUTH_TOKEN"}
    given = environment.get("RAY_AUTH_TOKEN_PATH")
    path = Path(given) if given else home / ".ray" / "auth_token"
    try:
        mode, *way = modes(path)
    except OSError:
        return None
    source = "RAY_AUTH_TOKEN_PATH" if given else "file"
    return {"source": source, "path": str(path), "mode": f"{mode:04o}", "open": readable(mode, way)}


def modes(path: Path) -> list[int]:
    """Return the permissions of a file and of every folder above it.

    Raises: OSError: it is not there.
    """
    return [stat.S_IMODE(place.stat().st_mode) for place in (path, *path.resolve().parents)]


def readable(mode: int, way: Iterable[int]) -> bool:
    """Whether other users can read a file of permissions `mode` below folders of permissions `way`."""
    way = list(way)
    others = mode & stat.S_IROTH and all(m & stat.S_IXOTH for m in way)
    group = mode & stat.S_IRGRP and all(m & (stat.S_IXGRP | stat.S_IXOTH) for m in way)
    return bool(others or group)


def listening(tables: Iterable[Path] = SOCKETS) -> list[tuple[str, int]] | None:
    """Return (address, port) of every listening TCP socket of this network; None where the kernel has no such
    tables.
    """
    found: set[tuple[str, int]] = set()
    read = False
    for table in tables:
        try:
            lines = table.read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        read = True
        for line in lines:
            local, state = (line.split()[i] for i in (1, 3))
            if state == LISTENS:
                address, _, port = local.partition(":")
                found.add((address_of(address), int(port, 16)))
    return sorted(found) if read else None


def address_of(text: str) -> str:
    """Return an address as people write it, from the kernel's words of four bytes each, in this machine's
    order; IPv4 inside IPv6 comes out as IPv4.
    """
    words = [int(text[i : i + 8], 16).to_bytes(4, sys.byteorder) for i in range(0, len(text), 8)]
    address = ipaddress.ip_address(b"".join(words))
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


def simulator() -> dict[str, str]:
    """Return SUMO's version, or why it does not load; in a process of its own, which it may break."""
    code = "import libsumo; print(libsumo.getVersion()[1])"
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=SIMULATOR_S
        )
    except subprocess.TimeoutExpired:
        return {"error": f"no answer in {SIMULATOR_S:.0f} s"}
    if done.returncode == 0:
        return {"version": done.stdout.strip()}
    lines = done.stderr.strip().splitlines()
    return {"error": lines[-1] if lines else f"it ended with {done.returncode}"}


def look(folder: str, name: str, content: str, mine: str) -> dict[str, Any]:
    """Look from this machine for a file that another has written, and write one beside it.

    Args:
        folder: where the file should be.
        name: the file's.
        content: what it should hold.
        mine: name of the file to write.
    Returns: "sees" and "writes", and in "error" what went wrong.
    """
    result: dict[str, Any] = {"sees": False, "writes": False, "error": ""}
    until = time.monotonic() + SEEN_WITHIN_S
    path = Path(folder) / name
    while not result["sees"]:
        try:
            result["sees"] = path.read_text(encoding="utf-8") == content
        except OSError as error:
            result["error"] = str(error)
            if not Path(folder).is_dir():  # nothing that could still arrive
                return result
        if time.monotonic() > until:
            return result
        if not result["sees"]:
            time.sleep(0.2)
    try:
        (Path(folder) / mine).write_text(content, encoding="utf-8")
        result["writes"], result["error"] = True, ""
    except OSError as error:
        result["error"] = str(error)
    return result


def now() -> float:
    """Return this machine's clock, in seconds."""
    return time.time()
