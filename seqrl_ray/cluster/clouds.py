"""Rules of the clouds: how capacity is bought, and what nobody wants in a `node_config`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

from seqrl_ray.cluster.aws import AwsNode
from seqrl_ray.cluster.gcp import GcpNode
from seqrl_ray.cluster.texts import Config
from seqrl_ray.settings import Settings

MARKET = "ray.io/market-type"
"""Ray's label for how a node's capacity is bought: spot or on-demand."""

TEMPLATES = {"aws": "LaunchTemplate", "gcp": "sourceInstanceTemplate"}
"""Provider -> key of `node_config` that lets the cloud fill in the rest."""

ANYBODYS = re.compile(r"^default$|^\d+-compute@developer\.|^ray-autoscaler-sa-")
"""Google's service accounts that a node must not be: a project's default one, and the one that Ray makes."""


def from_templates(full: Config) -> Iterator[str]:
    """What lies in templates of the cloud, where only the cloud sees it."""
    template = TEMPLATES.get(full["provider"]["type"])
    for name, table in full["available_node_types"].items():
        if template and table["node_config"].get(template):
            yield (
                f"available_node_types.{name}.node_config.{template}: what it fills in (network, disks, "
                "metadata service, market) is seen by the cloud alone"
            )


def markets(full: Config, nodes: Mapping[str, Settings]) -> Iterator[str]:
    """A node type's market label is what processes are pinned by: it must tell the truth."""
    for name, node in nodes.items():
        spot = bool(getattr(node, "spot", False))
        label = full["available_node_types"][name].get("labels", {}).get(MARKET)
        truth = "spot" if spot else "on-demand"
        hidden = isinstance(node, AwsNode) and node.LaunchTemplate and not node.InstanceMarketOptions
        if isinstance(node, AwsNode | GcpNode) and label != truth and not hidden:
            yield (
                f"available_node_types.{name}.labels has {MARKET}={label} and its node_config buys {truth}: "
                f"what must not be lost would be placed by it. Set it to {truth}."
            )
        if spot and name == full["head_node_type"]:
            yield (
                f"head_node_type={name} is spot: with the head the whole cluster goes, learner and replay "
                "included. Buy it on demand."
            )


def _aws(full: Config, nodes: Mapping[str, Settings]) -> Iterator[str]:
    for name, node in nodes.items():
        assert isinstance(node, AwsNode)
        where = f"available_node_types.{name}.node_config"
        hidden = node.LaunchTemplate is not None  # it may hold what is missing here
        interfaces = node.NetworkInterfaces or []
        if (
            not hidden
            and not node.SecurityGroupIds
            and not (interfaces and all(i.Groups for i in interfaces))
        ):
            yield (
                f"{where} names no SecurityGroupIds: Ray would make a group that lets the whole internet "
                "in at port 22. Name a group of yours."
            )
        if node.InstanceType is None and not hidden:
            yield f"{where}.InstanceType is missing: EC2 would choose. Add it."
        tokens = node.MetadataOptions.HttpTokens if node.MetadataOptions else None
        if tokens != "required" and not (hidden and tokens is None):
            yield (
                f"{where}.MetadataOptions.HttpTokens is not required: any request that a process can be made "
                "to send reads the role's credentials (IMDSv1). Set it to required."
            )
    spot = any(getattr(node, "spot", False) for node in nodes.values())
    if spot and full["provider"].get("cache_stopped_nodes", True):
        yield (
            "provider.cache_stopped_nodes=true with spot nodes, which cannot be stopped; others would be, "
            "and their disks cost on. Set it to false."
        )


def _gcp(full: Config, nodes: Mapping[str, Settings]) -> Iterator[str]:
    if not (full.get("auth") or {}).get("ssh_private_key"):
        yield (
            "auth.ssh_private_key is missing: Ray would put a key of its own into the metadata of the whole "
            "project, good for every machine there. Make one, and put its public half into "
            "node_config.metadata."
        )
    for name, node in nodes.items():
        assert isinstance(node, GcpNode)
        where = f"available_node_types.{name}.node_config"
        if node.machineType is None:
            yield f"{where}.machineType is missing: Ray tells instances from TPUs by it. Add it."
        if node.networkInterfaces is None or node.public:
            yield (
                f"{where}.networkInterfaces gives the node a public address"
                f"{' (Ray would)' if node.networkInterfaces is None else ''}: its ports are then as open as "
                "the network's rules. Name a subnetwork, without accessConfigs."
            )
        if (node.gpu or node.spot) and not node.ends_on_maintenance:
            yield (
                f"{where}.scheduling.onHostMaintenance is not TERMINATE: an instance with GPUs, or a spot "
                "one, cannot migrate and is refused. Set it."
            )
        if node.machineType is not None and node.standard_disks and not node.takes_standard_disks:
            yield (
                f"{where}.disks has no diskType but pd-standard (the API's default), which "
                f"{node.machineType} does not take: it is refused. Set initializeParams.diskType to "
                "zones/ZONE/diskTypes/pd-balanced, or to a hyperdisk where the series takes those alone."
            )
        if not node.serviceAccounts and name == full["head_node_type"]:
            yield (
                f"{where}.serviceAccounts is missing: Ray would give the head an account of its own making "
                "that rules all of the project's machines, accounts and buckets. Name one of yours."
            )
        for account in node.serviceAccounts or []:
            if ANYBODYS.search(email := str(account.get("email", "default"))):
                yield (
                    f"{where}.serviceAccounts has email={email}: whoever runs code on the node has what that "
                    "account may do in the whole project. Name one of yours that may do no more than it must."
                )


OF_PROVIDER: dict[str, Callable[[Config, Mapping[str, Settings]], Iterator[str]]] = {"aws": _aws, "gcp": _gcp}
"""Provider -> rules of its own."""
