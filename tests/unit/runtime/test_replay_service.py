"""Shard servers and the learner's view of them, without Ray: counts, lineages, pacing, snapshots."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from ray.exceptions import ObjectLostError, RayActorError

from seqrl_ray.loops.trainer import make_pacing
from seqrl_ray.replay.pacing import Pacing
from seqrl_ray.replay.sampling import Mass
from seqrl_ray.runtime.remote_replay import RemoteReplay
from seqrl_ray.runtime.replay_service import Request, spread
from seqrl_ray.runtime.wire import pack, pack_fragment, unpack
from seqrl_ray.types import ItemIds
from tests.unit.runtime.service_world import GROUP, SPECS, fragment, recipe_of


def replay_over(world, recipe, shards, *, epoch=0, paced=True):
    pacing = make_pacing(recipe, SPECS["shared"], len(GROUP.slots), paced=paced)
    replay = RemoteReplay(recipe, "shared", pacing, seed=0, epoch=epoch)
    replay.use(dict(enumerate(shards)))
    return replay


def settle(world, replay):
    world.turn()
    replay.settle([call for call in replay.calls() if call.done()])


def inserting(shard, writer, offset, steps, *, number=None, incarnation=0, opened=0, **kwargs):
    """The call that inserts a fragment; as the next of its source unless `number` is given."""
    source = (writer, incarnation, opened)
    number = int(shard.server._turns._next.get(source, 0)) if number is None else number
    message = pack_fragment(fragment(writer, offset, steps, incarnation=incarnation, **kwargs))
    return shard.insert.remote(message, source, number)


def insert(world, shard, *args, **kwargs):
    return world.get(inserting(shard, *args, **kwargs))


def request(**changes):
    plain = {
        "policy_id": "shared", "epoch": 0, "draws": (), "beta": 0.5, "updates": 0, "inserted": 0, "heard": 0,
        "sampled": 0, "max_priority": 1.0,
    }  # fmt: skip
    return pack(Request(**{**plain, **changes}), [])


def two_shards_of_thirty(world, recipe):
    shards = [world.shard(recipe, i) for i in range(2)]
    for i, shard in enumerate(shards):
        insert(world, shard, f"actor-{i}", 0, 30)
    return shards, replay_over(world, recipe, shards)


def exchange(world, shard, **changes):
    return unpack(world.get(shard.exchange.remote(request(**changes))))


def test_every_shard_knows_the_global_number_of_samples_and_counts_its_own_once(world):
    recipe = recipe_of("replay.shards=2", "learner.prefetch=1", "replay.samples_per_insert=2.0")
    shards, replay = two_shards_of_thirty(world, recipe)
    drawn = 0
    for _ in range(3):
        replay.pump(0.5, 0)
        settle(world, replay)
        if (batch := replay.next_batch()) is not None:
            drawn += len(batch.ids)
            assert [s.server.pacing["shared"].sampled for s in shards] == [drawn, drawn]
    assert drawn == 48
    assert sum(s.server.pacing["shared"].sampled_here for s in shards) == drawn


def test_draws_are_asked_for_together_once_half_of_those_ahead_are_used_up(world):
    recipe = recipe_of("replay.shards=2", "learner.prefetch=4", "replay.samples_per_insert=100.0")
    shards, replay = two_shards_of_thirty(world, recipe)
    replay.pump(0.5, 0)
    assert len(replay.calls()) == 2  # four draws, one call to each shard
    settle(world, replay)
    rows = [replay.next_batch()]
    replay.pump(0.5, 0)
    assert not replay.calls()  # three draws are still there
    rows.append(replay.next_batch())
    replay.pump(0.5, 0)
    assert len(replay.calls()) == 2
    settle(world, replay)
    while (batch := replay.next_batch()) is not None:
        rows.append(batch)
    assert len(rows) == 6
    items = recipe.learner.updates_per_call * recipe.learner.batch_size
    assert all(len(batch.ids) == items for batch in rows)
    assert len({tuple(batch.ids.row.tolist()) for batch in rows}) == 6  # each its own draw
    assert replay.pacing.sampled == sum(s.server.pacing["shared"].sampled_here for s in shards) == 6 * items


@pytest.mark.parametrize("prefetch", [2, 4])
def test_a_shard_that_ran_empty_leaves_no_draw_behind(world, prefetch):
    recipe = recipe_of("replay.shards=2", f"learner.prefetch={prefetch}", "replay.samples_per_insert=100.0")
    shards, replay = two_shards_of_thirty(world, recipe)
    replay.pump(0.5, 0)
    shards[1].server.shards["shared"] = SimpleNamespace(
        items=0,
        mass=Mass(0.0, 0, 10**9),
        max_priority=1.0,
        raise_max_priority=lambda value: None,
    )
    settle(world, replay)
    assert replay.next_batch() is None
    assert replay.pacing.sampled == 0
    replay.pump(0.5, 0)
    assert replay.calls()
    settle(world, replay)
    assert set(replay.next_batch().ids.shard.tolist()) == {0}


def test_grouped_draws_that_a_dead_shard_has_a_part_in_count_as_not_drawn(world):
    recipe = recipe_of("replay.shards=2", "learner.prefetch=4", "replay.samples_per_insert=100.0")
    _, replay = two_shards_of_thirty(world, recipe)
    replay.pump(0.5, 0)
    replay.lost.add(1)
    replay._abandon(1)
    settle(world, replay)
    assert replay.next_batch() is None
    assert replay.pacing.sampled == 0
    replay.pump(0.5, 0)
    settle(world, replay)
    assert set(replay.next_batch().ids.shard.tolist()) == {0}


def test_a_learner_that_forgot_draws_hears_of_them_from_the_shards(world):
    recipe = recipe_of()
    shard = world.shard(recipe)
    insert(world, shard, "actor-0", 0, 60)
    first = replay_over(world, recipe, [shard])
    first.pump(0.5, 0)
    settle(world, first)
    drawn = first.pacing.sampled
    assert drawn > 0
    second = replay_over(world, recipe, [shard], epoch=1)
    assert second.pacing.sampled == drawn
    exchange(world, shard, epoch=1, inserted=60, heard=60, sampled=drawn)
    assert shard.server.pacing["shared"].sampled == drawn


def test_an_older_lineage_neither_writes_nor_draws_nor_counts(world):
    recipe = recipe_of("replay.sampler=prioritised")
    shard = world.shard(recipe)
    insert(world, shard, "actor-0", 0, 60)
    ids = exchange(world, shard, epoch=1, draws=(4,), sampled=4, inserted=59, heard=59).batches[0].ids
    before = shard.server.shards["shared"].mass, shard.server.pacing["shared"].state()
    written = ((ids, np.full(4, 9.0, np.float32)),)
    late = exchange(world, shard, epoch=0, draws=(4,), sampled=99, inserted=500, written=written, updates=7)
    assert late.batches == (None,)
    assert (shard.server.shards["shared"].mass, shard.server.pacing["shared"].state()) == before
    assert shard.server.updates["shared"] == 0
    assert exchange(world, shard, epoch=1, draws=(4,), sampled=8, written=written).batches[0] is not None
    assert shard.server.shards["shared"].mass != before[0]


def test_lag_is_not_counted_between_lineages(world):
    recipe = recipe_of()
    shard = world.shard(recipe)
    exchange(world, shard, epoch=1, updates=100)
    insert(world, shard, "actor-0", 0, 5, weights=(1, 90))
    insert(world, shard, "actor-0", 5, 5, weights=(0, 500))
    assert dict(shard.server.lag.counts) == {10: 1}
    assert (shard.server.counted.other_epoch_rows, shard.server.counted.stale_rows) == (5, 0)
    assert shard.server.counted.agent_steps == 10


def test_with_a_lag_limit_another_lineage_is_too_old(world):
    shard = world.shard(recipe_of("learner.max_policy_lag_updates=20"))
    exchange(world, shard, epoch=1, updates=100)
    insert(world, shard, "actor-0", 0, 5, weights=(1, 90))
    insert(world, shard, "actor-0", 5, 5, weights=(0, 100))
    insert(world, shard, "actor-0", 10, 5, weights=(1, 79))
    counted = shard.server.counted
    assert (counted.agent_steps, counted.stale_rows, counted.other_epoch_rows) == (5, 10, 5)
    assert counted.env_steps == 15  # they were made, and spend the budget as in the colocated wiring


def test_duplicates_and_dead_writers_are_not_counted(world):
    shard = world.shard(recipe_of())
    assert insert(world, shard, "actor-0", 0, 5) == 5
    assert insert(world, shard, "actor-0", 0, 5) == 5
    world.get(shard.writer_gone.remote("actor-0", 0))
    assert insert(world, shard, "actor-0", 5, 5, number=1) == 5
    assert (shard.server.counted.env_steps, shard.server.counted.agent_steps) == (5, 5)


def test_a_fragment_that_overtook_another_waits_for_it(world):
    shard = world.shard(recipe_of())
    late = inserting(shard, "actor-0", 10, 5, number=2)
    middle = inserting(shard, "actor-0", 5, 5, number=1)
    world.turn()
    assert not late.done()
    assert not middle.done()
    assert insert(world, shard, "actor-1", 0, 5, number=0) == 5  # others need not wait for it
    assert insert(world, shard, "actor-0", 0, 5, number=0) == 10
    world.turn()
    assert (middle.result(), late.result()) == (15, 20)
    stats = shard.server.shards["shared"].stats()
    assert (stats.duplicate_rows, stats.rows) == (0, 20)


def test_fragments_of_a_dead_writer_wait_for_nothing(world):
    shard = world.shard(recipe_of())
    late = inserting(shard, "actor-0", 5, 5, number=1)
    world.turn()
    assert not late.done()
    world.get(shard.writer_gone.remote("actor-0", 0))
    world.turn()
    assert late.done()
    unseen = inserting(shard, "actor-0", 15, 5, number=7, opened=3)  # of the same dead incarnation
    world.turn()
    assert unseen.done()
    waits = inserting(shard, "actor-0", 5, 5, number=1, incarnation=1)
    world.turn()
    assert not waits.done()
    before = shard.server.counted.env_steps
    assert insert(world, shard, "actor-0", 0, 5, number=0, incarnation=1) == before + 5
    world.turn()
    assert waits.result() == before + 10


def test_what_a_lost_call_carried_is_not_waited_for_once_its_actor_begins_anew(world):
    shard = world.shard(recipe_of())
    insert(world, shard, "actor-0", 0, 5, number=0)
    parked = inserting(shard, "actor-0", 10, 5, number=2)  # number 1 never comes
    world.turn()
    assert not parked.done()
    assert insert(world, shard, "actor-0", 20, 5, number=0, opened=1) > 5
    world.turn()
    assert parked.done()


def test_a_policy_that_does_not_learn_never_waits_and_is_heard(world):
    recipe = recipe_of("replay.shards=2")
    shards = [world.shard(recipe, i, unpaced=["shared"]) for i in range(2)]
    replay = replay_over(world, recipe, shards, paced=False)
    for n in range(20):
        calls = [inserting(s, f"actor-{i}", n * 50, 50) for i, s in enumerate(shards)]
        world.turn()
        assert all(call.done() for call in calls)
        replay.listen(0.5, 0)
        settle(world, replay)
    replay.use({})
    replay.listen(0.5, 0)
    assert replay.env_steps >= 1900
    assert replay.pacing.sampled == 0


def test_a_shard_whose_answer_was_lost_is_taken_back_when_it_lives(world):
    recipe = recipe_of()
    shard = world.shard(recipe, unpaced=["shared"])
    insert(world, shard, "actor-0", 0, 60)
    replay = replay_over(world, recipe, [shard])
    shard.dead, shard.error = True, ObjectLostError("00", None, "")
    replay.pump(0.5, 0)
    settle(world, replay)
    assert replay.lost == {0}
    assert (replay.pacing.sampled, replay.counts()) == (0, {0: 60})
    shard.dead = False
    insert(world, shard, "actor-0", 60, 10)
    replay.use({0: shard})
    assert replay.lost == set()
    assert replay.env_steps == 70


def test_what_a_dead_shard_had_counted_stays_counted(world):
    recipe = recipe_of("replay.shards=2")
    shards = [world.shard(recipe, i) for i in range(2)]
    for i, shard in enumerate(shards):
        insert(world, shard, f"actor-{i}", 0, 10)
    replay = replay_over(world, recipe, shards)
    shards[1].dead, shards[1].error = True, RayActorError()
    replay.listen(0.5, 0)
    settle(world, replay)
    assert replay.lost == {1}
    replay.use({0: shards[0], 1: world.shard(recipe, 1, life=1)})
    assert replay.env_steps == 20


def test_a_save_waits_for_one_that_was_given_up(world, tmp_path):
    recipe = recipe_of("replay.snapshot_slice_bytes=4096")
    shard = world.shard(recipe, unpaced=["shared"])
    insert(world, shard, "actor-0", 0, 2000)
    first = shard.save.remote(tmp_path / "a")
    world.turn(1)
    assert not first.done()
    second = shard.save.remote(tmp_path / "b")
    world.get(first)
    state = world.get(second)
    for name in "ab":
        assert (tmp_path / name / "shared" / "shard-0000" / "manifest.json").is_file()
    assert state["counted"]["env_steps"] == 2000


def test_spread_keeps_the_sums(world):
    states = {}
    for i in range(3):
        shard = world.shard(recipe_of("replay.shards=3"), i)
        insert(world, shard, f"actor-{i}", 0, 10 + i)
        exchange(world, shard, draws=(4,), sampled=4)
        states[str(i)] = {
            "pacing": {"shared": shard.server.pacing["shared"].state()},
            "counted": dict(vars(shard.server.counted)),
        }
    new = spread(states, 2)
    assert sum(s["counted"]["env_steps"] for s in new.values()) == 33
    assert sum(s["pacing"]["shared"]["sampled"] for s in new.values()) == 12
    assert sum(s["pacing"]["shared"]["inserted"] for s in new.values()) == 30


def test_eight_shards_and_a_slow_learner_keep_the_ratio(world):
    """Actors insert whatever a shard lets in; the learner looks only now and then."""
    shards_count, burst, spi, minimum = 8, 16, 8.0, 100
    recipe = recipe_of(
        f"replay.shards={shards_count}", f"replay.samples_per_insert={spi}", f"replay.min_items={minimum}"
    )
    shards = [world.shard(recipe, i) for i in range(shards_count)]
    for shard in shards:
        shard.server.pacing["shared"] = Pacing(spi, minimum, draw_items=512, burst_items=burst)
    learner = Pacing(spi, minimum, draw_items=512, burst_items=burst)
    heard = [0] * shards_count
    worst = 0.0
    while sum(heard) < 22_000:
        for shard in shards:  # as many inserts as each believes it may do
            while shard.server._may_insert("shared"):
                shard.server.pacing["shared"].count_inserted(burst)
        here = [s.server.pacing["shared"].inserted_here for s in shards]
        if sum(here) >= 20_000:
            error = (sum(here) - minimum) * spi / learner.sampled - 1.0
            worst = max(worst, abs(error))
        learner.elsewhere(sum(heard), 0)
        if learner.may_sample():
            learner.count_sampled(512)
        for i, shard in enumerate(shards):
            reply = exchange(world, shard, inserted=sum(heard), heard=heard[i], sampled=learner.sampled)
            here[i] = reply.inserted
        heard = here
    assert 0.0 < worst <= 0.01


def test_item_ids_of_another_shard_stay_with_it(world):
    recipe = recipe_of("replay.shards=2")
    replay = replay_over(world, recipe, [world.shard(recipe, i) for i in range(2)])
    ids = ItemIds(np.array([0, 1, 1], np.int32), np.arange(3), np.zeros(3, np.int64))
    replay.write_back(ids, np.array([1.0, 2.0, 3.0]))
    assert [[p.tolist() for _, p in replay.shards[i].written] for i in range(2)] == [[[1.0]], [[2.0, 3.0]]]
