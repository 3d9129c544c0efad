"""A made-up world whose every row is a pure function of its stream, and a slow store of lists as oracle.

A stream is (writer, incarnation, slot, episode). Row t of it is a decision for t < life, the final row at t
== life.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from seqrl_ray.recipe_replay import ReplaySettings
from seqrl_ray.replay import ReplayShard
from seqrl_ray.types import ActionSpec, ArraySpec, ColumnSpec, GroupSpec, SampleSpec, Slot
from seqrl_ray.types_env import Trajectory

ACTIONS = 3
Key = tuple[str, int, int, int]


def group(frame_stack=1, masked=False, slots=4):
    return GroupSpec(
        "shared",
        tuple(Slot(s, "agent", 4, ACTIONS) for s in range(slots)),
        ArraySpec((4,), "float32"),
        ActionSpec("discrete", ACTIONS),
        frame_stack=frame_stack,
        masked=masked,
    )


def shard(spec=None, *, frame_stack=1, masked=False, seed=0, index=0, incarnation=0, **settings):
    settings = {"capacity_steps": 200, "min_items": 1} | settings
    return ReplayShard(
        group(frame_stack, masked),
        spec or SampleSpec("transitions"),
        ReplaySettings(**settings),
        seed,
        index=index,
        incarnation=incarnation,
    )


def _noise(*numbers):
    """A fixed number in [0, 1) for integers."""
    value = 12345
    for number in numbers:
        value = (value * 6364136223846793005 + int(number) * 1442695040888963407 + 1) % (1 << 64)
        value ^= value >> 29
    return (value % 10_007) / 10_007


def life(slot, episode):
    return 1 + int(_noise(1, slot, episode) * 9)


def terminates(slot, episode):
    return _noise(2, slot, episode) < 0.5


def reward_of(slot, episode, t):
    return np.float32(round(_noise(3, slot, episode, t) * 32 - 16) / 4)  # sums are exact


def action_of(slot, episode, t):
    return int(_noise(4, slot, episode, t) * ACTIONS)


def legal_of(slot, episode, t):
    return np.array([_noise(5, slot, episode, t, a) < 0.6 for a in range(ACTIONS)])


def obs_of(key, t):
    writer, incarnation, slot, episode = key
    return np.array(
        [ord(writer[0]) * 10 + incarnation, slot, episode, t + 1], np.float32
    )  # t + 1: never all 0


def name_of(obs):
    """The (key, t) that an observation tells."""
    first, slot, episode, t = (int(x) for x in obs)
    return (chr(first // 10), first % 10, slot, episode), t - 1


def trajectory(pieces, writer="w", incarnation=0, weights=(0, 0), poison=False):
    """A fragment of pieces (slot, episode, offset, length), cut off at the streams' ends."""
    kept = [(s, e, o, min(n, life(s, e) + 1 - o)) for s, e, o, n in pieces if o <= life(s, e)]
    rows = [(s, e, t) for s, e, o, n in kept for t in range(o, o + n)]
    final = np.array([t == life(s, e) for s, e, t in rows], bool)
    last = np.array([t == life(s, e) - 1 for s, e, t in rows], bool)
    ends = np.array([terminates(s, e) for s, e, _ in rows], bool)
    columns = {
        "obs": np.array([obs_of((writer, incarnation, s, e), t) for s, e, t in rows], np.float32).reshape(
            -1, 4
        ),
        "action": np.array([action_of(s, e, t) for s, e, t in rows], np.int64),
        "reward": np.array([reward_of(s, e, t) for s, e, t in rows], np.float32),
        "terminated": last & ends,
        "truncated": last & ~ends,
        "final": final,
        "legal": np.array([legal_of(s, e, t) for s, e, t in rows], bool).reshape(-1, ACTIONS),
        "value": np.array([[s, e, t] for s, e, t in rows], np.float32).reshape(-1, 3),
    }
    if poison:  # what a final row carries besides its observation and mask is padding, and must not leave
        columns["reward"][final] = np.nan
        columns["action"][final] = -99
        columns["terminated"][final] = True
        columns["value"][final] = np.nan
    part = np.array(kept, np.int64).reshape(-1, 4)
    return Trajectory(
        "shared",
        writer,
        incarnation,
        weights,
        part[:, 0],
        part[:, 1],
        part[:, 2],
        part[:, 3],
        columns,
        len(rows),
    )


VALUE = ColumnSpec("value", ArraySpec((3,), "float32"))


@dataclass
class Row:
    key: Key
    t: int
    segment: int

    @property
    def final(self):
        return self.t == life(*self.key[2:])


@dataclass
class Oracle:
    """The store's rules, one row at a time."""

    spec: SampleSpec
    capacity: int
    eviction: str = "fifo_steps"
    stack: int = 1
    by_episode: bool = False
    rows: list[Row] = field(default_factory=list)
    expected: dict[tuple[str, int], list] = field(
        default_factory=dict
    )  # (writer, slot) -> [inc, ep, next, segment, ended]
    incarnation: dict[str, int] = field(default_factory=dict)
    gone: set[tuple[str, int]] = field(default_factory=set)
    closed: list[int] = field(default_factory=list)
    segments: int = 0

    def insert(self, fragment):
        writer, incarnation = fragment.writer, fragment.incarnation
        if incarnation < self.incarnation.get(writer, -1) or (writer, incarnation) in self.gone:
            return 0
        if incarnation > self.incarnation.get(writer, -1):
            self.forget(writer)
        self.incarnation[writer] = incarnation
        new, cut = [], []
        table = np.stack([fragment.slot, fragment.episode, fragment.offset, fragment.length], axis=1)
        for s, e, o, n in table.tolist():
            for t in range(o, o + n):
                now = self.expected.get((writer, s))
                if now is not None and (e < now[0] or (e == now[0] and t < now[1])):
                    continue
                if now is None or e > now[0] or t > now[1]:
                    if now is not None and not now[3]:
                        cut.append(now[2])
                    now = [e, t, self.segments, False]
                    self.segments += 1
                row = Row((writer, incarnation, s, e), t, now[2])
                new.append(row)
                self.expected[writer, s] = [e, t + 1, now[2], row.final]
        grown = {row.segment for row in new}
        self.closed += [segment for segment in cut if segment not in grown]
        before = self.live()
        self.make_room(len(new))
        for row in new:
            self.rows.append(row)
        self.closed += [row.segment for row in new if row.final]
        self.closed += [segment for segment in cut if segment in grown]
        return len(self.live() - before)

    def forget(self, writer):
        for (name, slot), (_, _, segment, ended) in sorted(self.expected.items()):
            if name == writer:
                if not ended:
                    self.closed.append(segment)
                del self.expected[name, slot]

    def writer_gone(self, writer):
        if writer in self.incarnation:
            self.forget(writer)
            self.gone.add((writer, self.incarnation[writer]))

    def make_room(self, needed):
        if self.eviction == "fifo_steps":
            excess = max(0, len(self.rows) + needed - self.capacity)
            self.rows = self.rows[excess:]
            return
        while len(self.rows) + needed > self.capacity:
            held = {row.segment for row in self.rows}
            closed = [segment for segment in self.closed if segment in held]
            if not closed:
                victim = self.rows[0].segment
            elif self.eviction == "fifo_episodes":
                victim = closed[0]
            else:
                victim = min(closed, key=lambda s: (self.gain(s), closed.index(s)))
            self.rows = [row for row in self.rows if row.segment != victim]

    def gain(self, segment):
        return sum(
            np.float64(reward_of(*r.key[2:], r.t)) for r in self.rows if r.segment == segment and not r.final
        )

    def live(self):
        """Names (key, t) of the items that have all they read."""
        held = {(row.segment, row.t) for row in self.rows}
        horizon = self.spec.n_step if self.spec.view == "transitions" else self.spec.window_steps
        period = self.spec.period_steps if self.spec.view == "windows" else 1
        items = set()
        for row in self.rows:
            end = life(*row.key[2:])
            reach = end if self.by_episode or self.spec.returns else min(end, row.t + horizon)
            reads = range(max(0, row.t - self.stack + 1), reach + 1)
            if not row.final and row.t % period == 0 and all((row.segment, t) in held for t in reads):
                items.add((row.key, row.t))
        return items
