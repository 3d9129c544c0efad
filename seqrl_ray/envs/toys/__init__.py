"""Small environments with known answers: for tests, for recipes that finish in a minute, and as examples.

All are ours and need nothing but Gymnasium or PettingZoo; a recipe names them as
`seqrl_ray.envs.toys:<class>`.
"""

from seqrl_ray.envs.toys.bricks import PaddleBricks
from seqrl_ray.envs.toys.door import DoorGrid
from seqrl_ray.envs.toys.graph import ShortestPathGraph
from seqrl_ray.envs.toys.key_to_door import KeyToDoor
from seqrl_ray.envs.toys.probes import Endless, MinedChain, RecallCorridor
from seqrl_ray.envs.toys.stitch import StitchGrid

__all__ = [
    "DoorGrid",
    "Endless",
    "KeyToDoor",
    "MinedChain",
    "PaddleBricks",
    "RecallCorridor",
    "ShortestPathGraph",
    "StitchGrid",
]
