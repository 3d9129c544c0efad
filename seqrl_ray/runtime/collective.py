"""What the learners of one run do together: they add up gradients, and see that they are all alike.

A thin layer over one torch.distributed process group (gloo between CPUs, NCCL where each learner has a GPU of
its own): the gradient, what to divide it by and the metrics of an update travel as one flat buffer, in one
all-reduce. The result is the same to the last bit for every learner, so equal parameters stay equal.
A process group does not survive a member: what a call finds wrong with another learner is `LearnerLost`, and
the whole group is made anew from a checkpoint.
Knows no Ray: tests and benchmarks run it between plain processes.
Dims: P parameters, U updates, M metrics.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable
from datetime import timedelta
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed

from seqrl_ray.algorithms.flat_learner import Gradients
from seqrl_ray.errors import WorkerError

dist: Any = distributed
"""Its stubs do not name what makes up a process group."""

PATIENCE_S = 120.0
"""How long a learner waits for the others in one collective before it takes one for dead."""

Kind = Literal["gloo", "nccl"]


class LearnerLost(Exception):
    """Another learner of the group has died, or does not answer."""


def open_store(host: str) -> Any:
    """Open the meeting point of a group on a free port of `host`; it lives as long as the returned object."""
    return dist.TCPStore(
        host, 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=PATIENCE_S)
    )


def find_store(host: str, port: int) -> Any:
    """Go to the meeting point. Raises: LearnerLost: nobody is there."""
    try:
        return dist.TCPStore(
            host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=PATIENCE_S)
        )
    except dist.DistError as error:
        raise LearnerLost(f"no learner waits at {host}:{port}: {error}") from error


class Collective:
    """One learner's place in the group."""

    def __init__(
        self,
        store: Any,
        rank: int,
        learners: int,
        *,
        kind: Kind = "gloo",
        host: str = "127.0.0.1",
        device: torch.device | str = "cpu",
        patience_s: float = PATIENCE_S,
    ) -> None:
        """Join; returns once all have.

        Args:
            store: the meeting point.
            rank: this learner's number, in [0, learners).
            learners: how many there are.
            kind: nccl where every learner has a GPU of its own.
            host: address of this machine that the others reach (gloo).
            device: where the gradients are.
            patience_s: how long one waits for the others.
        Raises: LearnerLost: another did not come.
        """
        self.rank, self.learners, self.kind, self.device = rank, learners, kind, torch.device(device)
        self.seconds = 0.0
        """Spent in collectives so far, waiting for the others included."""
        self._buffer = torch.zeros(0)
        patience = timedelta(seconds=patience_s)
        try:
            if kind == "nccl":
                self._group: Any = _nccl(store, rank, learners, patience)
            else:
                self._group = _gloo(store, rank, learners, host, patience)
        except RuntimeError as error:
            raise LearnerLost(f"the {learners} learners did not come together: {error}") from error

    def add_up(self, own: Gradients) -> Gradients:
        """Return gradients [P] and elements summed over all learners, and the mean of their metrics.

        Every learner must call it at the same update; the tensors returned are good until the next call.

        Raises: LearnerLost: another has died, or takes longer than the group's patience.
        """
        size, names = own.total.numel(), sorted(own.metrics)
        if self._buffer.numel() != size + 1 + len(names) or self._buffer.dtype != own.total.dtype:
            self._buffer = own.total.new_zeros(size + 1 + len(names))  # [P + 1 + M]
        buffer = self._buffer
        buffer[:size] = own.total
        buffer[size] = own.elements
        for place, name in enumerate(names, size + 1):
            buffer[place] = own.metrics[name]
        self._all_reduce(buffer, dist.ReduceOp.SUM)
        means = buffer[size + 1 :] / self.learners  # [M]
        return Gradients(
            buffer[:size], buffer[size], own.priorities, dict(zip(names, means.unbind(), strict=True))
        )

    def largest(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the largest of each of the values [U] that any learner has. Raises: LearnerLost."""
        tensor = torch.from_numpy(np.array(values, np.float64))  # [U]
        if self.kind == "nccl":
            tensor = tensor.to(self.device)
        self._all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor.cpu().numpy()

    def check_alike(self, vectors: Iterable[NDArray[Any]], updates: int) -> None:
        """See that all learners hold the same bytes.

        Raises: WorkerError: they do not. LearnerLost: another has died.
        """
        digest = hashlib.blake2b(digest_size=6)  # 48 bits: exact as a float
        for vector in vectors:
            digest.update(np.ascontiguousarray(vector).data)
        own = float(int.from_bytes(digest.digest(), "big"))
        most, least = self.largest(np.array([own, -own]))
        if most != -least:
            raise WorkerError(
                f"the learners' parameters differ after {updates} updates: they do not do together what one "
                "would. Give all learners the same kind of processor, the same libraries and the same "
                "learner.threads, or set learner.count=1."
            )

    def close(self) -> None:
        """Leave: whoever waits for this learner hears at once that it is gone."""
        self._group = None

    def _all_reduce(self, tensor: Tensor, operation: Any) -> None:
        """Reduce `tensor` in place over all learners."""
        began = time.perf_counter()
        staged = tensor.cpu() if self.kind == "gloo" else tensor  # itself where it is on the CPU
        options = dist.AllreduceOptions()
        options.reduceOp = operation
        if self._group is None:
            raise LearnerLost("this learner has left the group")
        try:
            self._group.allreduce([staged], options).wait()
        except RuntimeError as error:
            raise LearnerLost(f"learner {self.rank} lost the others: {error}") from error
        if staged is not tensor:
            tensor.copy_(staged)
        self.seconds += time.perf_counter() - began


def _gloo(store: Any, rank: int, learners: int, host: str, patience: timedelta) -> Any:
    """Make a group on the network interface that has `host`; by itself gloo asks the host's name, which on
    many machines means the loopback interface.
    """
    options = dist.ProcessGroupGloo._Options()
    options._devices = [dist.ProcessGroupGloo.create_device(hostname=host)]
    options._timeout = patience
    return dist.ProcessGroupGloo(dist.PrefixStore("gloo", store), rank, learners, options)


def _nccl(store: Any, rank: int, learners: int, patience: timedelta) -> Any:
    options = dist.ProcessGroupNCCL.Options()
    options._timeout = patience
    return dist.ProcessGroupNCCL(dist.PrefixStore("nccl", store), rank, learners, options)
