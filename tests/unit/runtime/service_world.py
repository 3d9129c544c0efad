"""A replay service without Ray: shard servers in one event loop, behind handles that look like Ray's."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import numpy as np
from ray.exceptions import RayActorError

from seqrl_ray.api import read_recipe
from seqrl_ray.runtime.replay_service import ShardServer
from seqrl_ray.types import ActionSpec, ArraySpec, GroupSpec, SampleSpec, Slot
from seqrl_ray.types_env import Fragment, Trajectory

GROUP = GroupSpec(
    "shared", (Slot(0, "agent", 4, 2),), ArraySpec((4,), "float32"), ActionSpec("discrete", n=2)
)
GROUPS, SPECS = {"shared": GROUP}, {"shared": SampleSpec("transitions")}


def recipe_of(*overrides):
    small = ("learner.batch_size=8", "learner.updates_per_call=2", "replay.min_items=20")
    return read_recipe("classic/cartpole", [*small, "replay.samples_per_insert=4.0", *overrides])


def fragment(writer, offset, steps, *, weights=(0, 0), incarnation=0):
    columns = {
        "obs": np.zeros((steps, 4), np.float32),
        "action": np.zeros(steps, np.int64),
        "reward": np.ones(steps, np.float32),
        "terminated": np.zeros(steps, bool),
        "truncated": np.zeros(steps, bool),
        "final": np.zeros(steps, bool),
    }
    piece = [np.array([n], np.int64) for n in (0, 0, offset, steps)]
    return Fragment((Trajectory("shared", writer, incarnation, weights, *piece, columns, steps),), (), steps)


class Method:
    def __init__(self, world, handle, name):
        self.world, self.handle, self.name = world, handle, name

    def remote(self, *args, **kwargs):
        async def call():
            if self.handle.dead:
                raise self.handle.error
            return await getattr(self.handle.server, self.name)(*args, **kwargs)

        return self.world.loop.create_task(call())


class Handle:
    """A shard's handle; `dead` makes every later call fail with `error`."""

    def __init__(self, world, server):
        self.server, self.dead, self.error, self._world = server, False, RayActorError(), world

    def __getattr__(self, name):
        return Method(self._world, self, name)


class World:
    """The event loop, and what `ray.get` and `ray.wait` mean in it."""

    def __init__(self):
        self.loop = asyncio.new_event_loop()
        self.ray = SimpleNamespace(get=self.get, wait=self.wait)

    def shard(self, recipe, index=0, life=0, **options):
        return Handle(self, ShardServer(recipe, GROUPS, SPECS, index, life, None, None, **options))

    def get(self, task):
        return self.loop.run_until_complete(task)

    def wait(self, tasks, num_returns=1, timeout=None):
        self.turn()
        return [t for t in tasks if t.done()], [t for t in tasks if not t.done()]

    def turn(self, times=20):
        async def pause():
            for _ in range(times):
                await asyncio.sleep(0)

        self.loop.run_until_complete(pause())

    def close(self):
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self.turn()
        self.loop.close()
