"""How messages travel between Ray actors, and how it shows that one never will.

A small message goes as one bytes blob: Ray's own treatment of many little arrays costs more than the arrays.
A large one goes as it is, so that its arrays lie in shared memory and are read without a copy (read-only
there).
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from typing import Any

from ray.exceptions import ObjectLostError, RayActorError

from seqrl_ray.types import Array
from seqrl_ray.types_env import Fragment

GONE = (RayActorError, ObjectLostError)
"""What a call ends with when its process, or the node that held its answer, has died."""

INLINE_BYTES = 90_000
"""Ray keeps replies up to 100 KB inside the message; larger ones go through the object store."""


def pack(message: Any, arrays: Iterable[Array]) -> Any:
    """Return `message` as bytes if its `arrays` are small, else as it is."""
    return pickle.dumps(message, protocol=5) if sum(a.nbytes for a in arrays) < INLINE_BYTES else message


def unpack(message: Any) -> Any:
    """Undo `pack`."""
    return pickle.loads(message) if isinstance(message, bytes) else message


def pack_fragment(fragment: Fragment) -> Any:
    """Pack a fragment."""
    return pack(fragment, (a for t in fragment.trajectories for a in t.columns.values()))
