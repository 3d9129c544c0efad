"""`node_config` of a node type on AWS: the arguments of EC2's RunInstances, which Ray passes on unread.

Source: https://docs.aws.amazon.com/AWSEC2/latest/APIReference/API_RunInstances.html as SDKs of 2025 have it;
names as EC2 spells them. Tables in which nothing is known to go wrong are taken as they are. `MinCount` and
`MaxCount` are left out, because Ray sets them.
"""

from __future__ import annotations

from typing import Any, Literal

from seqrl_ray.settings import Settings, key

Table = dict[str, Any]


class Volume(Settings):
    """A volume."""

    DeleteOnTermination: bool | None = key(None, "whether it goes with the instance")
    Encrypted: bool | None = key(None, "whether it is encrypted at rest")
    EbsCardIndex: int | None = key(None, "index of the EBS card", ge=0)
    Iops: int | None = key(None, "operations it is provisioned for", unit="1/s", ge=100)
    KmsKeyId: str | None = key(None, "key that it is encrypted with")
    OutpostArn: str | None = key(None, "Outpost it lies on")
    SnapshotId: str | None = key(None, "what it begins with")
    Throughput: int | None = key(None, "of a gp3 volume", unit="MiB/s", ge=125)
    VolumeInitializationRate: int | None = key(None, "how fast a snapshot is loaded", unit="MiB/s")
    VolumeSize: int | None = key(None, "its size", unit="GiB", ge=1, le=65_536)
    VolumeType: Literal["gp2", "gp3", "io1", "io2", "sc1", "st1", "standard"] | None = key(None, "its kind")


class BlockDevice(Settings):
    """A disk of an instance."""

    DeviceName: str | None = key(None, "e.g. /dev/sda1")
    Ebs: Volume | None = key(None, "the volume behind it")
    NoDevice: str | None = key(None, "suppress a device of the image")
    VirtualName: str | None = key(None, "instance store")


class SpotRequest(Settings):
    """How spot capacity is asked for."""

    BlockDurationMinutes: int | None = key(None, "no longer offered", unit="min")
    InstanceInterruptionBehavior: Literal["hibernate", "stop", "terminate"] | None = key(
        None, "what an interruption does"
    )
    MaxPrice: str | None = key(None, "per hour, as text; default: the on-demand price", unit="USD")
    SpotInstanceType: Literal["one-time", "persistent"] | None = key(None, "kind of request")
    ValidUntil: str | None = key(None, "end of a persistent request")


class MarketOptions(Settings):
    """Where the capacity is bought; without it, on demand."""

    MarketType: Literal["spot", "capacity-block", "interruptible-capacity-reservation"] | None = key(
        None, "the market"
    )
    SpotOptions: SpotRequest | None = key(None, "of the spot market")


class MetadataService(Settings):
    """The instance's metadata service, which hands out the credentials of its role."""

    HttpEndpoint: Literal["enabled", "disabled"] | None = key(None, "whether there is one")
    HttpProtocolIpv6: Literal["enabled", "disabled"] | None = key(None, "over IPv6 too")
    HttpPutResponseHopLimit: int | None = key(None, "2 where containers need it", ge=1, le=64)
    HttpTokens: Literal["optional", "required"] | None = key(None, "required = IMDSv2 only")
    InstanceMetadataTags: Literal["enabled", "disabled"] | None = key(None, "tags in the metadata")


class InstanceProfile(Settings):
    """The role of an instance."""

    Arn: str | None = key(None, "its ARN")
    Name: str | None = key(None, "or its name")


class NetworkInterface(Settings):
    """A network interface; Ray then takes subnet and groups from here alone."""

    AssociateCarrierIpAddress: bool | None = key(None, "in a Wavelength zone")
    AssociatePublicIpAddress: bool | None = key(None, "whether it can be reached from the internet")
    ConnectionTrackingSpecification: Table | None = key(None, "time-outs")
    DeleteOnTermination: bool | None = key(None, "whether it goes with the instance")
    Description: str | None = key(None, "for people")
    DeviceIndex: int | None = key(None, "0 = the first", ge=0)
    EnaQueueCount: int | None = key(None, "queues", ge=1)
    EnaSrdSpecification: Table | None = key(None, "ENA Express")
    Groups: list[str] | None = key(None, "ids of security groups")
    InterfaceType: str | None = key(None, "interface, efa or efa-only")
    Ipv4PrefixCount: int | None = key(None, "prefixes")
    Ipv4Prefixes: list[Table] | None = key(None, "prefixes")
    Ipv6AddressCount: int | None = key(None, "addresses")
    Ipv6Addresses: list[Table] | None = key(None, "addresses")
    Ipv6PrefixCount: int | None = key(None, "prefixes")
    Ipv6Prefixes: list[Table] | None = key(None, "prefixes")
    NetworkCardIndex: int | None = key(None, "card", ge=0)
    NetworkInterfaceId: str | None = key(None, "an interface that exists")
    PrimaryIpv6: bool | None = key(None, "first IPv6 address is the primary")
    PrivateIpAddress: str | None = key(None, "address")
    PrivateIpAddresses: list[Table] | None = key(None, "addresses")
    SecondaryPrivateIpAddressCount: int | None = key(None, "more addresses")
    SubnetId: str | None = key(None, "its subnet")


class Place(Settings):
    """Where in a region."""

    Affinity: str | None = key(None, "to a dedicated host")
    AvailabilityZone: str | None = key(None, "zone")
    AvailabilityZoneId: str | None = key(None, "zone, by id")
    GroupId: str | None = key(None, "placement group")
    GroupName: str | None = key(None, "placement group, by name")
    HostId: str | None = key(None, "dedicated host")
    HostResourceGroupArn: str | None = key(None, "host resource group")
    PartitionNumber: int | None = key(None, "partition of the group")
    SpreadDomain: str | None = key(None, "reserved")
    Tenancy: Literal["dedicated", "default", "host"] | None = key(None, "tenancy")


class AwsNode(Settings):
    """`node_config` on AWS."""

    AdditionalInfo: str | None = key(None, "reserved")
    BlockDeviceMappings: list[BlockDevice] | None = key(None, "disks")
    CapacityReservationSpecification: Table | None = key(None, "capacity reservation")
    ClientToken: str | None = key(None, "idempotency")
    CpuOptions: Table | None = key(None, "cores and threads per core")
    CreditSpecification: Table | None = key(None, "of burstable instances")
    DisableApiStop: bool | None = key(None, "stop protection")
    DisableApiTermination: Literal[False] | None = key(None, "true would keep `ray down` from ending it")
    DryRun: bool | None = key(None, "only ask whether it would be allowed")
    EbsOptimized: bool | None = key(None, "dedicated throughput to volumes")
    ElasticGpuSpecification: list[Table] | None = key(None, "no longer offered")
    ElasticInferenceAccelerators: list[Table] | None = key(None, "no longer offered")
    EnablePrimaryIpv6: bool | None = key(None, "first IPv6 address is the primary")
    EnclaveOptions: Table | None = key(None, "Nitro enclaves")
    HibernationOptions: Table | None = key(None, "hibernation")
    IamInstanceProfile: InstanceProfile | None = key(None, "role of the instance")
    ImageId: str | None = key(None, "image; default: a Deep Learning AMI that Ray names", pattern=r"^\S+$")
    InstanceInitiatedShutdownBehavior: Literal["stop", "terminate"] | None = key(None, "what shutdown does")
    InstanceMarketOptions: MarketOptions | None = key(None, "spot or on demand")
    InstanceType: str | None = key(None, "e.g. g6.2xlarge", pattern=r"^[a-z][a-z0-9-]*\.[a-z0-9-]+$")
    Ipv6AddressCount: int | None = key(None, "addresses")
    Ipv6Addresses: list[Table] | None = key(None, "addresses")
    KernelId: str | None = key(None, "of old images")
    KeyName: str | None = key(None, "key pair for SSH")
    LaunchTemplate: Table | None = key(None, "a template that fills in the rest")
    LicenseSpecifications: list[Table] | None = key(None, "licences")
    MaintenanceOptions: Table | None = key(None, "auto recovery")
    MetadataOptions: MetadataService | None = key(None, "the metadata service")
    Monitoring: Table | None = key(None, "detailed monitoring")
    NetworkInterfaces: list[NetworkInterface] | None = key(None, "network interfaces")
    NetworkPerformanceOptions: Table | None = key(None, "bandwidth weighting")
    Operator: Table | None = key(None, "service provider")
    Placement: Place | None = key(None, "where in the region")
    PrivateDnsNameOptions: Table | None = key(None, "host names")
    PrivateIpAddress: str | None = key(None, "address")
    RamdiskId: str | None = key(None, "of old images")
    SecondaryInterfaces: list[Table] | None = key(None, "further interfaces")
    SecurityGroupIds: list[str] | None = key(None, "ids of security groups", min_length=1)
    SecurityGroups: list[str] | None = key(None, "their names, in a default VPC")
    SubnetId: str | None = key(None, "subnet")
    SubnetIds: list[str] | None = key(None, "Ray's own: subnets to try in turn", min_length=1)
    TagSpecifications: list[Table] | None = key(None, "tags; Ray adds its own")
    UserData: str | None = key(None, "script of the first boot")

    @property
    def spot(self) -> bool:
        """Whether the capacity can be taken away."""
        return self.InstanceMarketOptions is not None and self.InstanceMarketOptions.MarketType == "spot"
