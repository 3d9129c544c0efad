"""Nodes that are processes of this machine: who is on which, and that only they are ended."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from seqrl_ray.testing.local_nodes import Nodes, alive, processes
from seqrl_ray.testing.local_provider import LocalProvider


@pytest.fixture
def provider(tmp_path):
    made = LocalProvider({"type": "external", "folder": str(tmp_path / "c"), "env": {"A": 1}}, "c")
    yield made
    for node in made.nodes.running():
        made.terminate_node(node)
    assert not [mark for mark in processes() if mark.startswith(f"{tmp_path}/")]


def make(provider: LocalProvider, **tags: str) -> str:
    (name,) = provider.create_node({}, tags, 1)
    return name


def run(provider: LocalProvider, node: str, cmd: str, **options) -> str:
    runner = provider.get_command_runner("", node, {}, "c", subprocess, False)
    return runner.run(cmd, with_output=True, **options)


def sleeper(provider: LocalProvider, node: str) -> int:
    """Start a process on the node that nobody waits for, as `ray start` does."""
    return int(run(provider, node, "sleep 600 >/dev/null 2>&1 & echo $!"))


def started(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def test_nodes_have_addresses_and_tags(provider):
    head, worker = make(provider, kind="head"), make(provider, kind="worker")
    assert provider.non_terminated_nodes({}) == [head, worker]
    assert provider.non_terminated_nodes({"kind": "worker"}) == [worker]
    assert [provider.internal_ip(n) for n in (head, worker)] == ["127.0.1.1", "127.0.1.2"]
    provider.set_node_tags(worker, {"status": "up"})
    assert provider.node_tags(worker) == {"kind": "worker", "status": "up"}
    assert LocalProvider(provider.provider_config, "c").is_running(worker)  # another process sees the same
    provider.terminate_node(worker)
    assert provider.is_terminated(worker)
    again = make(provider)
    assert again != worker  # an id is never used again, an address is
    assert provider.internal_ip(again) == "127.0.1.2"


def test_a_command_runs_on_its_node(provider):
    node = make(provider)
    assert run(provider, node, "echo $HOME $SEQRL_NODE_IP $A; pwd").split() == [
        str(provider.nodes.home(node)),
        "127.0.1.1",
        "1",
        str(provider.nodes.home(node)),
    ]
    assert run(provider, node, "echo $B", environment_variables={"B": {"CPU": 1}}) == '{"CPU": 1}\n'
    with pytest.raises(subprocess.CalledProcessError):
        run(provider, node, "exit 3")
    with pytest.raises(SystemExit) as left:
        run(provider, node, "exit 3", exit_on_fail=True)
    assert left.value.code == 3


def test_variables_of_the_launchers_own_ray_stay_outside(provider, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere:6379")
    assert run(provider, make(provider), "echo [$RAY_ADDRESS]") == "[]\n"


def test_ray_stop_ends_this_nodes_processes_and_no_others(provider):
    one, two = make(provider), make(provider)
    mine, other = sleeper(provider, one), sleeper(provider, two)
    at = {pid: started(pid) for pid in (mine, other)}
    assert mine in provider.nodes.processes(one)
    run(provider, one, "export RAY_HEAD_IP=127.0.1.1; ray stop")
    assert not alive(mine, at[mine])
    assert alive(other, at[other])
    assert provider.is_running(one)  # the machine is still on
    assert str(mine) in provider.nodes.known()[one]["ended"]


@pytest.mark.parametrize("cmd", ["ray stop --force", "ray stop; ray start --head", "sudo ray  stop"])
def test_a_longer_command_that_stops_ray_is_refused(provider, cmd):
    with pytest.raises(ValueError, match="would end every Ray of this machine"):
        run(provider, make(provider), cmd)


def test_children_belong_to_the_node_whatever_they_do_to_their_environment(provider):
    node = make(provider)
    script = "(env -i sleep 600 & echo $!; wait; true) >out 2>&1 & sleep 0.3; cat out"
    child = int(run(provider, node, script))
    assert Path(f"/proc/{child}/environ").read_bytes() == b""
    assert child in provider.nodes.processes(node)


def test_a_node_whose_keeper_was_killed_is_off_and_everything_on_it_ends(provider):
    node = make(provider)
    pid = sleeper(provider, node)
    at, keeper = started(pid), provider.nodes.known()[node]["keeper"]
    os.kill(keeper[0], signal.SIGKILL)
    until = time.monotonic() + 10
    while alive(*keeper) and time.monotonic() < until:
        time.sleep(0.01)
    assert provider.non_terminated_nodes({}) == []
    assert not alive(pid, at)


def test_a_recycled_id_is_somebody_else():
    assert alive(os.getpid(), started(os.getpid()))
    assert not alive(os.getpid(), started(os.getpid()) - 1)


def test_files_are_copied_under_home_only(provider, tmp_path):
    node = make(provider)
    runner = provider.get_command_runner("", node, {}, "c", subprocess, False)
    (tmp_path / "tree" / "inner").mkdir(parents=True)
    (tmp_path / "tree" / "inner" / "file").write_text("text")
    (tmp_path / "tree" / "left.pyc").write_text("")
    runner.run_rsync_up(f"{tmp_path}/tree/", "~/here/", {"rsync_exclude": ["*.pyc"]})
    assert run(provider, node, "cat ~/here/inner/file; ls here") == "textinner\n"
    runner.run_rsync_down("~/here/inner/file", str(tmp_path / "back"))
    assert (tmp_path / "back").read_text() == "text"
    with pytest.raises(ValueError, match="not under ~"):
        runner.run_rsync_up(str(tmp_path / "back"), "/etc/passwd")


def test_what_cannot_be_is_refused(provider, tmp_path):
    with pytest.raises(OSError, match="not of the loopback network"):
        Nodes(tmp_path / "x", subnet="10.0.0")
    with pytest.raises(ValueError, match="runs no containers"):
        provider.get_command_runner("", make(provider), {}, "c", subprocess, False, {"container_name": "x"})
