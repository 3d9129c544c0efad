"""The experience service without Ray: a column store of streams, views, sampling, pacing, snapshots."""

from seqrl_ray.replay.pacing import Pacing, PacingReport
from seqrl_ray.replay.restore import restore
from seqrl_ray.replay.sampling import Mass, global_weights, merge, split_draw
from seqrl_ray.replay.shard import InsertReply, ReplayShard, ShardStats
from seqrl_ray.replay.snapshot import Snapshot

__all__ = [
    "InsertReply",
    "Mass",
    "Pacing",
    "PacingReport",
    "ReplayShard",
    "ShardStats",
    "Snapshot",
    "global_weights",
    "merge",
    "restore",
    "split_draw",
]
