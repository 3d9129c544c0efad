"""`ray up` for real, on one machine: a cluster comes up, trains, grows, loses a node, and goes down.

The launcher, the autoscaler, the commands and the run are the real ones; only the nodes are processes on
loopback addresses (`seqrl_ray.testing.local_provider`). One story, because each step needs the one before:

    pytest -m "slow and system" tests/system/test_ray_up.py -s
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from seqrl_ray.cluster.check import check_file
from seqrl_ray.recipe import data_root
from seqrl_ray.testing.local_nodes import Nodes, Processes, alive, end, processes

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
WAIT_S = 180.0

RUN = (
    "algorithm.hidden=[32]",
    "actors.count=2",
    'actors.label_selector={"ray.io/market-type"="spot"}',
    "actors.envs_per_actor=4",
    "actors.fragment_steps=8",
    "actors.hang_timeout_s=60",
    "replay.min_items=200",
    "replay.capacity_steps=20000",
    "replay.samples_per_insert=4.0",
    'learner.label_selector={"ray.io/market-type"="on-demand"}',
    "learner.batch_size=32",
    "learner.compile=off",
    "learner.updates_per_call=4",
    "learner.report_every_s=0.5",
    "learner.checkpoint_every_s=2.0",
    "evaluation.episodes=2",
    "stop.env_steps=100000000",
)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Story:
    """One cluster, in a folder of its own, and the seconds that each step took."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.file, self.log = folder, folder / "cluster.yaml", folder / "log"
        (folder / "home").mkdir()
        (folder / "tmp").mkdir()
        kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        self.env = {
            **kept,
            "HOME": str(folder / "home"),
            "TMPDIR": str(folder / "tmp"),
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "RAY_AUTH_MODE": "token",  # and the token of this home, whatever this machine's user has
            "RAY_UP_enable_autoscaler_v2": "1",
        }
        self.port = free_port()
        text = (data_root("cluster") / "local.yaml").read_text(encoding="utf-8")
        head = f"ray start --head --include-dashboard=false --ray-client-server-port={free_port()}"
        text = text.replace("6379", str(self.port)).replace("ray start --head", head)
        config = yaml.safe_load(text)
        config["cluster_name"] = "t"
        config["provider"]["folder"] = str(folder / "c")
        self.file.write_text(yaml.safe_dump(config), encoding="utf-8")
        self.nodes = Nodes(folder / "c")
        self.address = f"127.0.1.1:{self.port}"
        self.seconds: list[tuple[str, float]] = []
        self.seen: Processes = {}

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                command, env=self.env, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def run(self, *command: str) -> int:
        return self.start(*command).wait(timeout=WAIT_S)

    def on_the_head(self, command: str) -> tuple[str, ...]:
        return ("ray", "exec", "--no-config-cache", str(self.file), command)

    def until(self, what: str, true: Callable[[], Any], *, job: subprocess.Popen[bytes] | None = None) -> Any:
        """Wait until something is true; the cluster's log is in the message if it never is."""
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            self.look()
            if found := true():
                return found
            if job is not None and job.poll() is not None:
                pytest.fail(f"the job ended before {what}:\n{self.tail()}")
            time.sleep(0.1)
        return pytest.fail(f"never {what}:\n{self.tail()}")

    def tail(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")[-6000:]

    def look(self) -> None:
        """Remember every process that there has been on any node."""
        for mark, found in processes().items():
            if mark.startswith(f"{self.nodes.folder}/"):
                self.seen |= found

    def workers(self) -> set[str]:
        nodes = {name: node for name, node in self.nodes.known().items() if node["on"]}
        return {name for name, node in nodes.items() if node["tags"].get("ray-node-type") == "worker"}

    def titles(self, node: str) -> set[str]:
        """What Ray's workers on a node call themselves, e.g. RolloutActor."""
        found = set()
        for pid in self.nodes.processes(node):
            try:
                line = Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8", errors="replace")
            except OSError:
                continue
            if match := re.match(r"ray::(\w+)", line):
                found.add(match[1])
        return found

    def took(self, step: str, since: float) -> float:
        self.seconds.append((step, time.monotonic() - since))
        return time.monotonic()


@pytest.fixture
def story() -> Iterator[Story]:
    folder = Path(tempfile.mkdtemp(prefix="up-"))  # short: sockets lie in it
    made = Story(folder)
    yield made
    left = {m: found for m, found in processes().items() if m.startswith(f"{folder}/")}
    for found in left.values():
        end(found, signal.SIGKILL)
    shutil.rmtree(folder, ignore_errors=True)


def rows(run: Path, kind: str) -> list[dict[str, Any]]:
    """Rows of the run's metrics; the last line may be half written."""
    if not (run / "metrics.jsonl").exists():
        return []
    found = []
    for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if row["kind"] == kind:
            found.append(row)
    return found


def steps(run: Path) -> int:
    return max((int(row["env_steps"]) for row in rows(run, "report")), default=0)


def actors(run: Path, *, after: int = 0) -> set[str]:
    """Actors whose episodes came when the run had made more than so many steps."""
    return {row["actor"] for row in rows(run, "episode") if row["env_steps"] > after}


def summary(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    return found


def test_up_train_grow_lose_a_node_and_down(story, capsys):
    run, pid_file = story.folder / "run", story.folder / "pid"
    train = f"seqrl train classic/cartpole --address {story.address} --run-dir {run}"
    overrides = " ".join(f"'{override}'" for override in RUN)
    assert check_file(story.file).ok

    began = since = time.monotonic()
    assert story.run("ray", "get-auth-token", "--generate") == 0
    assert story.run("ray", "up", "-y", "--no-config-cache", str(story.file)) == 0, story.tail()
    head, *others = story.nodes.known()
    assert others == []
    since = story.took("ray up: the head is there", since)

    wrong = story.on_the_head(f"RAY_AUTH_TOKEN={'0' * 64} ray status --address {story.address}")
    assert story.run(*wrong) != 0  # a call with another token is refused, one with ours is not
    assert story.run(*story.on_the_head(f"ray status --address {story.address}")) == 0, story.tail()
    since = story.took("a wrong token refused, ours taken", since)

    job = story.start(*story.on_the_head(f"echo $$ > {pid_file}; exec {train} {overrides}"))
    try:
        story.until("two workers", lambda: len(story.workers()) == 2, job=job)
        since = story.took("seqrl train: the autoscaler adds two nodes", since)
        story.until("both actors act", lambda: actors(run) == {"actor-0", "actor-1"}, job=job)
        since = story.took("both actors' episodes are learned from", since)
        first = story.workers()
        assert "ColocatedLearner" in story.titles(head)
        for worker in first:
            assert "RolloutActor" in story.titles(worker)
            assert "ColocatedLearner" not in story.titles(worker)

        victim = sorted(first)[-1]
        story.look()
        gone, at_death = story.nodes.processes(victim), steps(run)
        end(gone, signal.SIGKILL)  # its keeper and everything on it, by their ids; nobody is told
        story.until("the run goes on", lambda: steps(run) > at_death, job=job)
        since = story.took("a node is killed: the run has gone on", since)
        story.until("another node", lambda: story.workers() - first, job=job)
        since = story.took("the autoscaler has replaced the node", since)
        story.until("the lost actor is back", lambda: rows(run, "failure"), job=job)
        back_at = steps(run)
        story.until("both actors act", lambda: actors(run, after=back_at) == {"actor-0", "actor-1"}, job=job)
        since = story.took("the lost actor acts there", since)
        assert victim not in story.workers()
        assert not [pid for pid, at in gone.items() if alive(pid, at)]
        (failure,) = rows(run, "failure")
        assert (failure["what"], failure["lost_updates"]) == ("node", 0)

        os.kill(int(pid_file.read_text()), signal.SIGINT)
        assert job.wait(timeout=WAIT_S) == 130, story.tail()
    finally:
        if job.poll() is None:
            job.kill()
    assert summary(run)["status"] == "interrupted"
    since = story.took("Ctrl-C: a checkpoint, and exit code 130", since)

    more = steps(run) + 2000
    resume = f"seqrl train --resume {run} --address {story.address} stop.env_steps={more}"
    assert story.run(*story.on_the_head(resume)) == 0, story.tail()
    result = summary(run)
    assert result["status"] == "completed"
    assert result["env_steps"] >= more
    assert result["evaluation"]["return"]["n"] == 2
    since = story.took("a second job goes on from it, to the end", since)

    story.look()
    assert story.run("ray", "down", "-y", str(story.file)) == 0, story.tail()
    story.took("ray down", since)
    known = story.nodes.known()
    assert len(known) >= 4
    assert not [name for name, node in known.items() if node["on"]]
    everyone = dict(story.seen)
    for node in known.values():
        everyone |= {int(pid): at for pid, at in node["ended"].items()} | dict([node["keeper"]])
    assert len(everyone) > 20
    assert not [pid for pid, at in everyone.items() if alive(pid, at)]
    assert not [mark for mark in processes() if mark.startswith(f"{story.folder}/")]
    with capsys.disabled():
        print(f"\n  {time.monotonic() - began:5.1f} s in all, {len(everyone)} processes, none is left")
        for step, took in story.seconds:
            print(f"  {took:5.1f} s  {step}")
