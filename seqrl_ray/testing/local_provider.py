"""`ray up` on one machine: a node provider for Ray's cluster launcher whose nodes are processes here.

    provider:
        type: external
        module: seqrl_ray.testing.local_provider.LocalProvider

With it the launcher, the autoscaler and the commands around them (`ray up`, `exec`, `down`,
`kill-random-node`) do all that they do in a cloud, except asking one: `cluster/local.yaml` is such a file.
Keys of `provider` beside those: `folder` (default: one per user and cluster name under the temporary
folder), `subnet` (default 127.0.1), `env` (variables of every process on every node). Commands find their
node's address in `SEQRL_NODE_IP` and a folder for `ray start --temp-dir` in `SEQRL_RAY_FOLDER`; both must be
given to `ray start`, or it would take the machine's own address, and workers that start together each
other's sockets.

Two things differ from a machine of one's own, and are taken care of here. Every node sees the same files, so
`~` is a folder of the node and only paths under it can be copied to. And `ray stop` would end every Ray of
this machine: the literal command, which the launcher sends itself, ends this node's processes alone, and a
longer command with it is refused.

Source: the interface is `ray.autoscaler.node_provider.NodeProvider` and
`ray.autoscaler.command_runner.CommandRunnerInterface` of Ray 2.60.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from ray.autoscaler.command_runner import CommandRunnerInterface
from ray.autoscaler.node_provider import NodeProvider

from seqrl_ray.testing.local_nodes import Nodes, default_folder

EXPORTS = re.compile(r"^(?:\s*export [A-Za-z_]\w*=[^;]*;)*\s*")
"""What the launcher puts before each command that starts Ray."""

STOPS_RAY = re.compile(r"\bray\s+stop\b")


class LocalProvider(NodeProvider):
    """Nodes of this machine, for Ray's launcher and autoscaler."""

    def __init__(self, provider_config: dict[str, Any], cluster_name: str) -> None:
        super().__init__(provider_config, cluster_name)
        folder = provider_config.get("folder") or default_folder(cluster_name)
        self.nodes = Nodes(folder, subnet=provider_config.get("subnet", "127.0.1"))

    def non_terminated_nodes(self, tag_filters: Mapping[str, str]) -> list[str]:
        return [
            name
            for name, node in self.nodes.running().items()
            if all(node["tags"].get(key) == value for key, value in tag_filters.items())
        ]

    def is_running(self, node_id: str) -> bool:
        return node_id in self.nodes.running()

    def is_terminated(self, node_id: str) -> bool:
        return not self.is_running(node_id)

    def node_tags(self, node_id: str) -> dict[str, str]:
        tags: dict[str, str] = self.nodes.known()[node_id]["tags"]
        return tags

    def internal_ip(self, node_id: str) -> str:
        return str(self.nodes.known()[node_id]["ip"])

    def external_ip(self, node_id: str) -> str:
        return self.internal_ip(node_id)

    def create_node(
        self, node_config: dict[str, Any], tags: dict[str, str], count: int
    ) -> dict[str, dict[str, Any]]:
        return {self.nodes.switch_on(self.cluster_name, tags): {} for _ in range(count)}

    def set_node_tags(self, node_id: str, tags: dict[str, str]) -> None:
        self.nodes.tag(node_id, tags)

    def terminate_node(self, node_id: str) -> None:
        self.nodes.switch_off(node_id)

    def get_command_runner(
        self,
        log_prefix: str,
        node_id: str,
        auth_config: dict[str, Any],
        cluster_name: str,
        process_runner: ModuleType,
        use_internal_ip: bool,
        docker_config: dict[str, Any] | None = None,
    ) -> LocalRunner:
        if docker_config and docker_config.get("container_name"):
            raise ValueError(
                "docker.container_name is set: a local cluster runs no containers. Leave it out."
            )
        return LocalRunner(self.nodes, node_id, env=self.provider_config.get("env") or {})


class LocalRunner(CommandRunnerInterface):
    """Runs the launcher's commands on one node."""

    def __init__(self, nodes: Nodes, node: str, *, env: Mapping[str, Any]) -> None:
        self.nodes, self.node = nodes, node
        self.env = {name: str(value) for name, value in env.items()}

    def run(
        self,
        cmd: str | None = None,
        timeout: int = 120,
        exit_on_fail: bool = False,
        port_forward: Any = None,
        with_output: bool = False,
        environment_variables: Mapping[str, object] | None = None,
        run_env: str = "auto",
        ssh_options_override_ssh_key: str = "",
        shutdown_after_run: bool = False,
    ) -> str:
        """Run a command in the node's environment; without one, a shell.

        Returns: its output, with `with_output`.
        Raises: CalledProcessError: it failed; with `exit_on_fail` this process ends with its exit code.
        """
        if cmd is None:
            cmd = "sleep infinity" if port_forward else "exec bash"  # the node's ports are this machine's
        if STOPS_RAY.search(cmd):
            return self._stop_ray(cmd)
        given = {
            k: v if isinstance(v, str) else json.dumps(v) for k, v in (environment_variables or {}).items()
        }
        done = subprocess.run(
            ["bash", "-c", cmd],
            env=self.nodes.environment(self.node, {**self.env, **given}),
            cwd=self.nodes.home(self.node),
            stdout=subprocess.PIPE if with_output else None,
            text=True,
        )
        if done.returncode and exit_on_fail:
            raise SystemExit(done.returncode)
        done.check_returncode()
        if shutdown_after_run:
            self.nodes.switch_off(self.node)
        return done.stdout or ""

    def _stop_ray(self, cmd: str) -> str:
        if EXPORTS.sub("", cmd).strip() != "ray stop":
            raise ValueError(
                f"{cmd!r} holds `ray stop` among other things: it would end every Ray of this machine. Give "
                "`ray stop` as a command of its own; here it ends this node's processes."
            )
        self.nodes.stop(self.node)
        return ""

    def run_rsync_up(self, source: str, target: str, options: Mapping[str, Any] | None = None) -> None:
        """Copy a file, or what a folder holds, to the node."""
        self._copy(Path(source), self._path(target), options or {})

    def run_rsync_down(self, source: str, target: str, options: Mapping[str, Any] | None = None) -> None:
        """Copy a file, or what a folder holds, from the node."""
        self._copy(self._path(source), Path(target).expanduser(), options or {})

    def _path(self, path: str) -> Path:
        if path != "~" and not path.startswith("~/"):
            raise ValueError(
                f"{path} is not under ~: every node of a local cluster sees the same files, so it would be "
                "this machine's own. Use a path that begins with ~/."
            )
        return self.nodes.home(self.node) / path.removeprefix("~").removeprefix("/")

    @staticmethod
    def _copy(source: Path, target: Path, options: Mapping[str, Any]) -> None:
        if options.get("rsync_filter"):
            raise ValueError("rsync_filter is set: a local cluster copies without rsync. Use rsync_exclude.")
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            left_out = shutil.ignore_patterns(*(options.get("rsync_exclude") or []))
            shutil.copytree(source, target, dirs_exist_ok=True, symlinks=True, ignore=left_out)
        else:
            shutil.copy2(source, target)

    def remote_shell_command_str(self) -> str:
        """The command that opens a shell on the node: where its files are, as far as a string can say it."""
        return f"cd {self.nodes.home(self.node)} && bash"
