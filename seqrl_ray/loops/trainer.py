"""The trainer: fragments in, updates out. The colocated wiring of one replay shard per policy and the
learner.

The local loop runs it in the only process there is; the Ray runtime runs the same object inside the learner's
process and feeds it from remote actors. A `turn` is: take the fragments that are there, insert them, learn
until pacing says no, offer the new weights. With one actor and one fragment in flight the order of everything
is fixed, so the local loop and a lock-step Ray run do the same arithmetic.

Where items wait for their episode's end, one fragment may bring learning for seconds, and actors with a few
fragments in flight would stand still beside it. There a turn learns for `SLICE_S` and looks for fragments
again, which enter as far as pacing lets them: actors and learner overlap.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seqrl_ray.loops import checkpoints
from seqrl_ray.loops.learner import Learner
from seqrl_ray.loops.offline import load_into, open_data
from seqrl_ray.loops.run_folder import LagCounter
from seqrl_ray.loops.source import FragmentSource
from seqrl_ray.recipe import Recipe
from seqrl_ray.replay.pacing import Pacing
from seqrl_ray.replay.restore import restore as restore_shards
from seqrl_ray.replay.shard import ReplayShard
from seqrl_ray.replay.snapshot import Snapshot
from seqrl_ray.types import GroupSpec, SampleSpec
from seqrl_ray.types_env import EpisodeEnd, Fragment, Trajectory, Weights

SLICE_S = 0.05
"""How long actors may stand still because the learner learns."""


@dataclass
class Counters:
    """Monotonic counts of a run; each says of what."""

    env_steps: int = 0
    """Vector-slot steps inserted."""
    agent_steps: int = 0
    """Agent decisions inserted."""
    episodes: int = 0
    """Environment episodes finished."""
    stale_rows: int = 0
    """Agent decisions dropped because their weights were older than learner.max_policy_lag_updates."""
    stale_priorities: int = 0
    """Priorities that came back for a row overwritten meanwhile."""
    owed_updates: int = 0
    """Updates of each policy that finished episodes of an alternating phase still ask for."""


@dataclass(frozen=True)
class Finished:
    """Episodes that ended, and who played them."""

    actor: str
    ends: tuple[EpisodeEnd, ...]


@dataclass
class Saving:
    """A checkpoint on its way: everything small is frozen already, replay is written slice by slice."""

    root: Path
    name: str
    trees: Mapping[str, Any]
    snapshots: list[Snapshot]
    keep: int

    def step(self) -> bool:
        """Write one slice; returns whether the checkpoint exists now."""
        for snapshot in self.snapshots:
            if not snapshot.done:
                snapshot.write_slice()
                return False
        checkpoints.save(self.root, self.name, self.trees, self.keep)
        return True

    def finish(self) -> None:
        """Write all that is left."""
        while not self.step():
            pass


@dataclass
class Trainer:
    """Learner, shards and a source of fragments, wired in one process."""

    recipe: Recipe
    learner: Learner
    shards: Mapping[str, ReplayShard]
    pacing: dict[str, Pacing]
    source: FragmentSource
    counters: Counters = field(default_factory=Counters)
    lag: LagCounter = field(default_factory=LagCounter)
    finished: list[Finished] = field(default_factory=list)
    saving: Saving | None = None
    pretrained: Mapping[str, Weights] = field(default_factory=dict)
    """Policy id -> the weights that the offline phase ended with; none before that, or without one."""
    arrived: deque[tuple[str, Fragment]] = field(default_factory=deque)
    """Fragments that pacing has not let in yet."""
    offered_at: float = -math.inf

    @property
    def progress(self) -> float:
        """Share of the run that is over."""
        fewest = min(a.updates for a in self.learner.algorithms.values())
        return self.recipe.spent(fewest, self.counters.env_steps)

    @property
    def offline(self) -> bool:
        """The offline phase is not over: nobody acts."""
        return any(self._offline_left(policy_id) for policy_id in self.shards)

    @property
    def overlaps(self) -> bool:
        """Learning goes on in slices, because actors go on and episodes are learned from whole."""
        return self.source.overlaps and any(shard.rule.by_episode for shard in self.shards.values())

    @property
    def done(self) -> bool:
        """The budget is spent."""
        updates = self.recipe.stop.updates
        over = not self.offline and self.counters.env_steps >= self.recipe.stop.env_steps
        return over or bool(updates and self.learner.updates >= updates)

    def load_data(self) -> None:
        """Begin a new run's replay with its offline data, where it has some."""
        groups = {policy_id: shard.group for policy_id, shard in self.shards.items()}
        offline = open_data(self.recipe, groups)
        if offline is None:
            return
        for policy_id, shard in self.shards.items():
            items = load_into(offline, shard, self.learner.algorithms[policy_id])
            self.pacing[policy_id].count_inserted(items)
        self._begin_online()

    def turn(self) -> None:
        """Take what there is, learn what pacing allows after each fragment, offer the new weights; or, in the
        offline phase, learn from one draw.
        """
        overlap = not self.offline and self.overlaps
        if self.offline:
            self._learn_offline()
        elif overlap:
            self._overlap()
        else:
            for actor, fragment in self.source.poll():
                self.insert(actor, fragment)
                self.learn()
        if self.saving is not None and self.saving.step():
            self.saving = None
        if overlap and time.monotonic() - self.offered_at < self.recipe.learner.publish_every_s:
            return
        self.offered_at = time.monotonic()
        self.source.offer(
            self.learner.all_weights(self.progress)
        )  # also without updates: exploration follows progress

    def _overlap(self) -> None:
        """Take what is there, as far as pacing lets it in, and learn for a short time."""
        if not self.arrived:
            self.arrived.extend(self.source.poll(wait=not self._may_learn()))
        while self.arrived and all(map(self._lets_in, self.arrived[0][1].trajectories)):
            self.insert(*self.arrived.popleft())
        self.learn(time.monotonic() + SLICE_S)

    def _lets_in(self, trajectory: Trajectory) -> bool:
        """Whether pacing allows the items that a fragment can release."""
        policy_id, pacing = trajectory.policy_id, self.pacing[trajectory.policy_id]
        items = self.shards[policy_id].rule.ended(trajectory)
        items = pacing.burst_items if items is None else min(items, pacing.burst_items)
        return not self.learner.algorithms[policy_id].learns or pacing.may_insert(items)

    def _may_learn(self) -> bool:
        """Whether there is something to learn now."""
        learns = {p: algorithm.learns for p, algorithm in self.learner.algorithms.items()}
        return not self.done and any(learns[p] and pacing.may_sample() for p, pacing in self.pacing.items())

    def insert(self, actor: str, fragment: Fragment) -> None:
        """Store a fragment and count it."""
        self.counters.env_steps += fragment.env_steps
        self.counters.episodes += len(fragment.episodes)
        self.counters.owed_updates += self.recipe.updates_per_episode * len(fragment.episodes)
        if fragment.episodes:
            self.finished.append(Finished(actor, fragment.episodes))
        for trajectory in fragment.trajectories:
            self._insert(trajectory)

    def _insert(self, trajectory: Trajectory) -> None:
        lag = max(0, self.learner.algorithms[trajectory.policy_id].updates - trajectory.weights[1])
        limit = self.recipe.learner.max_policy_lag_updates
        if limit and lag > limit:
            self.counters.stale_rows += trajectory.agent_steps
            return
        self.lag.add(lag)
        self.counters.agent_steps += trajectory.agent_steps
        reply = self.shards[trajectory.policy_id].insert(trajectory)
        self.pacing[trajectory.policy_id].count_inserted(reply.items)

    def _offline_left(self, policy_id: str) -> int:
        algorithm = self.learner.algorithms[policy_id]
        return max(0, self.recipe.offline_updates - algorithm.updates) if algorithm.learns else 0

    def _learn_offline(self) -> None:
        """One draw for every policy that is not through."""
        for policy_id in self.shards:
            left = self._offline_left(policy_id)
            if left:
                self._draw(policy_id, min(left, self.recipe.learner.updates_per_call))
        if not self.offline:
            self._begin_online()

    def _learn_owed(self) -> None:
        """Pay what finished episodes ask for, once there is enough to draw from."""
        counters, ready = self.counters, all(p.inserted >= p.min_items for p in self.pacing.values())
        while counters.owed_updates and ready and not self.done:
            updates = min(counters.owed_updates, self.recipe.learner.updates_per_call)
            for policy_id in self.shards:
                self._draw(policy_id, updates)
            counters.owed_updates -= updates

    def _begin_online(self) -> None:
        """Count samples per insert from here on: what the data gave and took is no part of the ratio. When
        acting begins, keep the weights to compare with, and let go of the data that is not wanted any more.
        """
        best = self.recipe.data.online_best_steps if self.recipe.data is not None else None
        if best is not None and not self.offline:
            for shard in self.shards.values():
                shard.keep_best(best)
        if self.recipe.offline_updates and not self.offline:
            self.pretrained = self.learner.judged_weights(self.progress)
        for pacing in self.pacing.values():
            pacing.retune(self.recipe.replay.samples_per_insert, self.recipe.replay.band_items)

    def _draw(self, policy_id: str, updates: int) -> None:
        """Draw so many minibatches, learn from them, and write priorities back."""
        shard, size = self.shards[policy_id], self.recipe.learner.batch_size
        batch = shard.sample(updates, size, beta=self.recipe.replay.beta(self.progress))
        self.pacing[policy_id].count_sampled(updates * size)
        priorities = self.learner.update(policy_id, batch, self.progress)
        self.counters.stale_priorities += shard.update_priorities(batch.ids, priorities)

    def learn(self, until: float = math.inf) -> int:
        """Update every policy until pacing says no, or the clock passes `until`; returns the updates done."""
        before = self.learner.updates
        if self.recipe.updates_per_episode:
            self._learn_owed()
            return self.learner.updates - before
        for policy_id in self.shards:
            pacing = self.pacing[policy_id]
            learns = self.learner.algorithms[policy_id].learns
            while learns and pacing.may_sample() and not self.done:
                self._draw(policy_id, self.recipe.learner.updates_per_call)
                if time.monotonic() > until:
                    break
        return self.learner.updates - before

    def take_finished(self) -> list[Finished]:
        """Return the episodes that ended since the last call."""
        taken, self.finished = self.finished, []
        return taken

    def report(self) -> dict[str, Any]:
        """Return one row of counts, pacing and losses."""
        row: dict[str, Any] = {
            **vars(self.counters),
            "updates": self.learner.updates,
            "progress": self.progress,
            "queued_fragments": len(self.arrived),
        }
        for policy_id, shard in self.shards.items():
            row.update({f"{policy_id}/replay_{name}": value for name, value in vars(shard.stats()).items()})
        row.update(pacing_row(self.pacing))
        row.update(self.learner.metrics())
        row["policy_lag_p50"], row["policy_lag_p95"] = self.lag.quantile(0.5), self.lag.quantile(0.95)
        return row

    def save(self, root: Path, trees: Mapping[str, Any], *, wait: bool) -> None:
        """Write a checkpoint of this moment, with `trees` in it.

        Replay is written in slices between the next turns; with `wait` at once. A checkpoint still being
        written is finished first.
        """
        if self.saving is not None:
            self.saving.finish()
        name = checkpoints.new_name(root, self.counters.env_steps)
        snapshots = [
            shard.begin_snapshot(root / name / "replay" / policy_id)
            for policy_id, shard in self.shards.items()
        ]
        keep = self.recipe.learner.keep_checkpoints
        self.saving = Saving(root, name, {**trees, "trainer": self.state()}, snapshots, keep)
        if wait:
            self.saving.finish()
            self.saving = None

    def load(self, folder: Path) -> None:
        """Take over learner, counters and replay of a checkpoint (call `checkpoints.verify` first)."""
        self.restore(checkpoints.load(folder, "trainer"))
        for policy_id, shard in self.shards.items():
            restore_shards([folder / "replay" / policy_id], [shard])

    def state(self) -> dict[str, Any]:
        """Counters and learner, as a tree a checkpoint can hold; the shards write themselves."""
        return {
            "counters": dict(vars(self.counters)),
            "lag": {str(k): v for k, v in self.lag.counts.items()},
            "pacing": {policy_id: pacing.state() for policy_id, pacing in self.pacing.items()},
            "learner": self.learner.state(),
            "pretrained": {policy_id: weights.flat for policy_id, weights in self.pretrained.items()},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over `state()`."""
        self.counters = Counters(**state["counters"])
        self.lag = LagCounter({int(k): v for k, v in state["lag"].items()})
        for policy_id, saved in state["pacing"].items():
            self.pacing[policy_id].restore(saved)
        self.learner.restore(state["learner"])
        self.pretrained = {p: Weights(p, 0, 0, flat, 1.0) for p, flat in state.get("pretrained", {}).items()}


def pacing_row(pacing: Mapping[str, Pacing]) -> dict[str, Any]:
    """Report pacing of every policy, and of all together under the plain names."""
    row: dict[str, Any] = {}
    reports = {policy_id: p.report() for policy_id, p in pacing.items()}
    for policy_id, report in reports.items():
        row.update({f"{policy_id}/pacing_{name}": value for name, value in vars(report).items()})
    counted = [r for r in reports.values() if r.samples_per_insert == r.samples_per_insert]  # NaN: not begun
    row["samples_per_insert"] = sum(r.samples_per_insert for r in counted) / len(counted) if counted else None
    return row


def longest_episode_steps(recipe: Recipe) -> int | None:
    """Return the most decisions that the recipe lets an episode have; None = it does not say."""
    env = recipe.env
    if env.kind == "traffic":
        return (env.end_s - env.begin_s) // env.decision_s
    return getattr(env, "max_episode_steps", None)


def make_pacing(recipe: Recipe, spec: SampleSpec, slots: int, *, paced: bool = True) -> Pacing:
    """Make the pacing of one policy.

    Args:
        recipe: says ratio, band and draw.
        spec: says how many items one fragment can release.
        slots: slots of the policy in one actor.
        paced: False for a policy that learns nothing: no draw ever lets a waiting insert in.
    """
    ahead = spec.n_step if spec.view == "transitions" else spec.window_steps
    burst = -(-(recipe.actors.fragment_steps + ahead) * slots // spec.period_steps)
    if spec.returns or recipe.replay.sampler in ("by_length", "by_return"):
        # An item waits for its episode's end: one insert may release whole episodes, or all that is stored.
        longest = longest_episode_steps(recipe)
        rows = recipe.replay.capacity_steps if longest is None else (longest + 1) * slots
        burst = -(-min(rows, recipe.replay.capacity_steps) // spec.period_steps)
    return Pacing(
        recipe.replay.samples_per_insert if paced else None,
        recipe.replay.min_items,
        draw_items=recipe.learner.updates_per_call * recipe.learner.batch_size,
        burst_items=burst,
        band_items=recipe.replay.band_items,
    )


def make_trainer(
    recipe: Recipe, learner: Learner, groups: Mapping[str, GroupSpec], source: FragmentSource, seed: int
) -> Trainer:
    """Wire a learner, one shard and one pacing per policy, and a source."""
    specs = {policy_id: algorithm.sample_spec() for policy_id, algorithm in learner.algorithms.items()}
    pacing = {p: make_pacing(recipe, specs[p], len(group.slots)) for p, group in groups.items()}
    return Trainer(recipe, learner, make_shards(recipe, learner, groups, seed), pacing, source)


def make_shards(
    recipe: Recipe, learner: Learner, groups: Mapping[str, GroupSpec], seed: int
) -> dict[str, ReplayShard]:
    """Make one whole shard per policy id."""
    return {
        policy_id: ReplayShard(
            group, learner.algorithms[policy_id].sample_spec(), recipe.replay, seed=seed + place
        )
        for place, (policy_id, group) in enumerate(sorted(groups.items()))
    }
