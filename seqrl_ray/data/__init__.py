"""Offline datasets: a folder format, its writer, its way into a replay shard, import and export."""

from seqrl_ray.data.dataset import Dataset, obs_mean_std, select, trajectories
from seqrl_ray.data.writer import DatasetWriter

__all__ = ["Dataset", "DatasetWriter", "obs_mean_std", "select", "trajectories"]
