"""`node_config` of a node type on Google Cloud: an Instance resource of Compute Engine v1, passed on unread.

Source: https://cloud.google.com/compute/docs/reference/rest/v1/instances, the fields that a request may set;
names as the API spells them. Tables in which nothing is known to go wrong are taken as they are. TPU nodes
have another resource and are not covered.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import field_validator

from seqrl_ray.settings import Settings, key

Table = dict[str, Any]


GPU_MACHINES = ("a2-", "a3-", "a4-", "a4x-", "g2-", "g4-")
"""Machine types that hold GPUs of their own."""

STANDARD_DISK = "pd-standard"
"""Kind of a disk that names none."""

STANDARD_DISK_MACHINES = (
    *("n1-", "n2-", "n2d-", "e2-", "c2-", "c2d-", "t2a-", "t2d-", "m1-", "m2-", "a2-"),
    *("custom-", "f1-micro", "g1-small"),
)
"""Machine types that take such disks; the series after them (G2, A3, C3, N4, ...) do not."""


class InitializeParams(Settings):
    """A disk that is made with the instance."""

    architecture: Literal["ARM64", "X86_64"] | None = key(None, "of the disk")
    description: str | None = key(None, "for people")
    diskName: str | None = key(None, "its name")
    diskSizeGb: int | str | None = key(None, "its size", unit="GB")
    diskType: str | None = key(None, "zones/ZONE/diskTypes/KIND")
    enableConfidentialCompute: bool | None = key(None, "confidential mode")
    labels: dict[str, str] | None = key(None, "labels of the disk")
    licenses: list[str] | None = key(None, "licences")
    onUpdateAction: str | None = key(None, "for update requests")
    provisionedIops: int | str | None = key(None, "operations it is provisioned for", unit="1/s")
    provisionedThroughput: int | str | None = key(None, "throughput", unit="MB/s")
    replicaZones: list[str] | None = key(None, "zones of a regional disk")
    resourceManagerTags: Table | None = key(None, "tags")
    resourcePolicies: list[str] | None = key(None, "e.g. snapshots")
    sourceImage: str | None = key(None, "projects/PROJECT/global/images/[family/]NAME")
    sourceImageEncryptionKey: Table | None = key(None, "key")
    sourceSnapshot: str | None = key(None, "or a snapshot")
    sourceSnapshotEncryptionKey: Table | None = key(None, "key")
    storagePool: str | None = key(None, "storage pool")


class Disk(Settings):
    """A disk of an instance."""

    autoDelete: bool | None = key(None, "whether it goes with the instance; else it stays and costs")
    boot: bool | None = key(None, "whether it is the boot disk")
    deviceName: str | None = key(None, "its name inside")
    diskEncryptionKey: Table | None = key(None, "key")
    diskSizeGb: int | str | None = key(None, "its size", unit="GB")
    forceAttach: bool | None = key(None, "even if attached elsewhere")
    guestOsFeatures: list[Table] | None = key(None, "features")
    index: int | None = key(None, "0 = boot")
    initializeParams: InitializeParams | None = key(None, "how it is made")
    interface: Literal["NVME", "SCSI"] | None = key(None, "interface")
    mode: Literal["READ_ONLY", "READ_WRITE"] | None = key(None, "mode")
    source: str | None = key(None, "a disk that exists")
    type: Literal["PERSISTENT", "SCRATCH"] | None = key(None, "kind")


class Accelerator(Settings):
    """GPUs of an instance."""

    acceleratorCount: int | None = key(None, "how many", ge=1, le=16)
    acceleratorType: str | None = key(None, "e.g. nvidia-l4")


class NetworkInterface(Settings):
    """A network interface."""

    accessConfigs: list[Table] | None = key(None, "public addresses")
    aliasIpRanges: list[Table] | None = key(None, "alias ranges")
    internalIpv6PrefixLength: int | None = key(None, "length")
    ipv6AccessConfigs: list[Table] | None = key(None, "public IPv6 addresses")
    ipv6Address: str | None = key(None, "address")
    kind: str | None = key(None, "compute#networkInterface")
    network: str | None = key(None, "global/networks/NAME")
    networkAttachment: str | None = key(None, "attachment")
    networkIP: str | None = key(None, "address")
    nicType: Literal["GVNIC", "VIRTIO_NET", "IDPF", "MRDMA", "IRDMA"] | None = key(None, "kind of card")
    queueCount: int | None = key(None, "queues")
    stackType: Literal["IPV4_IPV6", "IPV4_ONLY", "IPV6_ONLY"] | None = key(None, "stack")
    subnetwork: str | None = key(None, "regions/REGION/subnetworks/NAME")


class Scheduling(Settings):
    """What becomes of an instance when capacity or its host goes."""

    automaticRestart: bool | None = key(None, "after a crash")
    availabilityDomain: int | None = key(None, "domain of a spread policy")
    instanceTerminationAction: Literal["DELETE", "STOP"] | None = key(None, "of a spot instance")
    localSsdRecoveryTimeout: Table | None = key(None, "time-out")
    locationHint: str | None = key(None, "reserved")
    maxRunDuration: Table | None = key(None, "then it ends")
    minNodeCpus: int | None = key(None, "of sole tenancy")
    nodeAffinities: list[Table] | None = key(None, "of sole tenancy")
    onHostMaintenance: Literal["MIGRATE", "TERMINATE"] | None = key(None, "TERMINATE with GPUs or spot")
    onInstanceStopAction: Table | None = key(None, "local SSD data")
    preemptible: bool | None = key(None, "the older kind of spot")
    provisioningModel: Literal["FLEX_START", "RESERVATION_BOUND", "SPOT", "STANDARD"] | None = key(
        None, "spot or on demand"
    )
    terminationTime: str | None = key(None, "then it ends")


class Metadata(Settings):
    """What the instance finds in its metadata service."""

    fingerprint: str | None = key(None, "set by the service")
    items: list[Table] | None = key(None, "key and value")
    kind: str | None = key(None, "compute#metadata")


class GcpNode(Settings):
    """`node_config` on Google Cloud."""

    advancedMachineFeatures: Table | None = key(None, "threads per core")
    canIpForward: bool | None = key(None, "routing")
    confidentialInstanceConfig: Table | None = key(None, "confidential computing")
    deletionProtection: Literal[False] | None = key(None, "true would keep `ray down` from ending it")
    description: str | None = key(None, "for people")
    disks: list[Disk] | None = key(None, "disks", min_length=1)
    displayDevice: Table | None = key(None, "display")
    guestAccelerators: list[Accelerator] | None = key(None, "GPUs; machine types that hold theirs need none")
    hostname: str | None = key(None, "host name")
    keyRevocationActionType: str | None = key(None, "on revocation of a key")
    labels: dict[str, str] | None = key(None, "Google's labels; Ray adds its own")
    machineType: str | None = key(None, "e.g. g2-standard-8", pattern=r"^\S+$")
    metadata: Metadata | None = key(None, "metadata")
    minCpuPlatform: str | None = key(None, "oldest processor")
    networkInterfaces: list[NetworkInterface] | None = key(None, "network interfaces", min_length=1)
    networkPerformanceConfig: Table | None = key(None, "bandwidth tier")
    params: Table | None = key(None, "tags")
    privateIpv6GoogleAccess: str | None = key(None, "access to Google's services")
    reservationAffinity: Table | None = key(None, "reservation")
    resourcePolicies: list[str] | None = key(None, "policies")
    scheduling: list[Scheduling] | None = key(None, "a table, or a list of tables as in Ray's own examples")
    serviceAccounts: list[Table] | None = key(None, "role of the instance")
    shieldedInstanceConfig: Table | None = key(None, "secure boot")
    sourceInstanceTemplate: str | None = key(None, "a template that fills in the rest")
    sourceMachineImage: str | None = key(None, "machine image")
    tags: Table | None = key(None, "network tags: items")
    workloadIdentityConfig: Table | None = key(None, "identity")

    @field_validator("scheduling", mode="before")
    @classmethod
    def _listed(cls, given: Any) -> Any:
        return [given] if isinstance(given, dict) else given

    @property
    def spot(self) -> bool:
        """Whether the capacity can be taken away."""
        return any(s.preemptible or s.provisioningModel == "SPOT" for s in self.scheduling or [])

    @property
    def ends_on_maintenance(self) -> bool:
        """Whether it says that host maintenance ends it."""
        return any(s.onHostMaintenance == "TERMINATE" for s in self.scheduling or [])

    @property
    def gpu(self) -> bool:
        """Whether it has GPUs, of its own or by its machine type."""
        return bool(self.guestAccelerators) or str(self.machineType).startswith(GPU_MACHINES)

    @property
    def standard_disks(self) -> bool:
        """Whether a disk is made of the kind that the API makes unless told."""
        made = [d.initializeParams for d in self.disks or [] if d.type != "SCRATCH" and d.source is None]
        kinds = [(params and params.diskType) or STANDARD_DISK for params in made]
        return any(kind.rpartition("/")[2] == STANDARD_DISK for kind in kinds)

    @property
    def takes_standard_disks(self) -> bool:
        """Whether its machine type takes them."""
        return str(self.machineType).rpartition("/")[2].startswith(STANDARD_DISK_MACHINES)

    @property
    def public(self) -> bool:
        """Whether it has a public address."""
        return any(i.accessConfigs or i.ipv6AccessConfigs for i in self.networkInterfaces or [])
