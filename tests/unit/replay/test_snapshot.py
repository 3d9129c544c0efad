"""Snapshots: written while the shard lives on, read back exactly or onto other numbers of shards, damage
refused.
"""

import json

import numpy as np
import pytest
from replay_world import VALUE, life, name_of, shard, trajectory

from seqrl_ray.errors import CheckpointError, ReplayError
from seqrl_ray.replay import restore
from seqrl_ray.types import SampleSpec

SPECS = {
    "transitions": (SampleSpec("transitions", n_step=2, extra=(VALUE,)), 2),
    "returns": (SampleSpec("windows", window_steps=4, returns=True, return_gamma=0.9, extra=(VALUE,)), 1),
}
SAMPLERS = ["uniform", "prioritised", "by_length"]


def feed(s, first, last, chunk=3):
    for episode in range(first, last):
        for offset in range(0, 12, chunk):
            fragment = trajectory([(slot, episode, offset, chunk) for slot in range(4)], weights=(1, episode))
            if fragment.rows:
                s.insert(fragment)


def prioritise(s, seed=0):
    batch = s.sample(1, 64)
    s.update_priorities(batch.ids, np.random.default_rng(seed).random(64) * 4)


def contents(shards):
    """Every item's name -> its mass."""
    found = {}
    for s in shards:
        s.check()
        rows = s.sampler.rows()
        for row, mass in zip(rows, s.sampler.masses(rows), strict=True):
            name = name_of(s.store.columns["obs"][row])
            assert name not in found, "an item is on two shards"
            found[name] = float(mass)
    return found


def assert_same_batch(a, b):
    for name in a.__dataclass_fields__:
        x, y = getattr(a, name), getattr(b, name)
        if name == "ids":
            np.testing.assert_array_equal(x.row, y.row)
        elif name == "extra":
            np.testing.assert_array_equal(x["value"], y["value"])
        elif x is not None:
            np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("kind", sorted(SPECS))
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("eviction", ["fifo_steps", "fifo_episodes", "lowest_return_first"])
def test_a_snapshot_taken_during_inserts_is_that_of_its_moment(tmp_path, kind, sampler, eviction):
    spec, stack = SPECS[kind]
    make = {
        "frame_stack": stack,
        "sampler": sampler,
        "eviction": eviction,
        "capacity_steps": 150,
        "snapshot_slice_bytes": 4_096,
    }
    s, twin = shard(spec, **make), shard(spec, **make)
    for one in (s, twin):
        feed(one, 0, 9)
        prioritise(one)
    snapshot = s.begin_snapshot(tmp_path / "s")
    slices = 0
    episode = 9
    while not snapshot.write_slice():  # the whole store is overwritten while it is written
        slices += 1
        feed(s, episode, episode + 12)
        prioritise(s, slices)
        episode += 12
    assert slices >= 3
    assert contents([s]).keys() != contents([twin]).keys()

    again = shard(spec, **make)
    restore([tmp_path / "s"], [again])
    assert contents([again]) == contents([twin])
    for _ in range(3):  # and it goes on as if nothing had been
        assert_same_batch(again.sample(2, 16), twin.sample(2, 16))
        feed(again, 9, 11)
        feed(twin, 9, 11)
    assert contents([again]) == contents([twin])
    assert again.stats().inserted_items == twin.stats().inserted_items


def snapshot_all(shards, folder):
    folders = [folder / str(s.index) for s in shards]
    for s, path in zip(shards, folders, strict=True):
        s.begin_snapshot(path).write_all()
    return folders


@pytest.mark.parametrize("kind", sorted(SPECS))
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("eviction", ["fifo_steps", "fifo_episodes", "lowest_return_first"])
def test_one_to_three_to_two_shards_keeps_items_and_priorities(tmp_path, kind, sampler, eviction):
    spec, stack = SPECS[kind]

    def make(count):
        return [
            shard(
                spec,
                frame_stack=stack,
                sampler=sampler,
                eviction=eviction,
                index=i,
                seed=i,
                shards=count,
                capacity_steps=300 * count,
                incarnation=count,
            )
            for i in range(count)
        ]

    one, three, two = make(1), make(3), make(2)
    feed(one[0], 0, 9)
    one[0].insert(trajectory([(0, 20, 0, 2)]))  # an open stream
    prioritise(one[0])
    expected = contents(one)
    restore(snapshot_all(one, tmp_path / "1"), three)
    assert contents(three) == expected
    assert all(s.items > 0 for s in three)
    sizes = [s.stats().rows for s in three]
    assert max(sizes) - min(sizes) <= 10  # the longest stream
    restore(snapshot_all(three, tmp_path / "3"), two)
    assert contents(two) == expected
    assert two[0].max_priority == one[0].max_priority
    late = one[0].sample(1, 8)
    assert two[0].update_priorities(late.ids, np.ones(8)) == (8 if sampler == "prioritised" else 0)
    assert two[0].insert(trajectory([(slot, 8, 0, 20) for slot in range(4)])).rows == 0  # still known
    for s in two:  # the stores go on, and evict what is oldest
        feed(s, 30, 80)
        s.check()
        assert min(n[0][3] for n in contents([s])) > 8 or eviction == "lowest_return_first"


def test_returns_and_views_survive_a_change_of_shards(tmp_path):
    spec, stack = SPECS["returns"]
    one = shard(spec, frame_stack=stack)
    feed(one, 0, 5)
    two = [shard(spec, frame_stack=stack, index=i, shards=2, capacity_steps=400) for i in range(2)]
    restore(snapshot_all([one], tmp_path), two)
    batch = two[0].sample(1, 64)
    for i in range(64):
        (_, _, slot, episode), t = name_of(batch.obs[0, i, 0])
        row = next(
            r
            for r in one.sampler.rows()
            if name_of(one.store.columns["obs"][r]) == (("w", 0, slot, episode), t)
        )
        assert batch.return_to_go[0, i, 0] == one.store.columns["return_to_go"][row]
        assert batch.weights_counter[0, i] == episode


@pytest.mark.parametrize("eviction", ["fifo_steps", "fifo_episodes"])
def test_a_smaller_store_keeps_what_is_newest(tmp_path, eviction):
    big = shard(frame_stack=2, eviction=eviction)
    feed(big, 0, 8)
    small = shard(frame_stack=2, eviction=eviction, capacity_steps=60)
    restore(snapshot_all([big], tmp_path), [small])
    kept, had = contents([small]), contents([big])
    assert set(kept) < set(had)
    assert 40 <= small.stats().rows <= 60
    newest = [n for n in had if n[0][3] == 7]
    assert set(newest) <= set(kept)
    feed(small, 8, 30)
    small.check()


def test_rows_sent_on_after_a_spread_are_stored_but_not_joined(tmp_path):
    slot, episode = next((x, e) for x in range(4) for e in range(60) if life(x, e) == 9)
    one = shard()
    one.insert(trajectory([(slot, episode, 0, 5)]))
    two = [shard(index=i, shards=2, capacity_steps=400) for i in range(2)]
    restore(snapshot_all([one], tmp_path), two)
    for s in two:
        assert s.insert(trajectory([(slot, episode, 3, 7)])).rows == 5
    steps = [sorted(t for _, t in contents([s])) for s in two]
    assert sorted(steps) == [[0, 1, 2, 3, 5, 6, 7, 8], [5, 6, 7, 8]]


def test_a_restored_shard_knows_its_open_streams(tmp_path):
    slot, episode = next((x, e) for x in range(4) for e in range(60) if life(x, e) == 9)
    one, again = shard(), shard()
    one.insert(trajectory([(slot, episode, 0, 5)]))
    restore(snapshot_all([one], tmp_path), [again])
    assert again.insert(trajectory([(slot, episode, 4, 6)])).rows == 5
    assert sorted(t for _, t in contents([again])) == list(range(9))


def damaged(kind, folder):
    data = folder / "rows-00000.arrow"
    if kind == "truncated":
        data.write_bytes(data.read_bytes()[:-100])
    elif kind == "altered":
        raw = bytearray(data.read_bytes())
        raw[len(raw) // 2] ^= 1
        data.write_bytes(raw)
    elif kind == "missing":
        data.unlink()
    elif kind == "unfinished":
        (folder / "manifest.json").unlink()
    elif kind == "manifest":
        (folder / "manifest.json").write_text("{")
    elif kind == "format":
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps(manifest | {"format": "other"}))


@pytest.mark.parametrize(
    ("kind", "match"),
    [
        ("truncated", "is damaged"),
        ("altered", "is damaged"),
        ("missing", "is missing"),
        ("unfinished", "never finished"),
        ("manifest", "never finished or is damaged"),
        ("format", "has format 'other'"),
    ],
)
def test_damage_is_refused_in_one_line(tmp_path, kind, match):
    s = shard()
    feed(s, 0, 3)
    (folder,) = snapshot_all([s], tmp_path)
    damaged(kind, folder)
    with pytest.raises(CheckpointError, match=match) as caught:
        restore([folder], [shard()])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("other", "match"),
    [
        ({"sampler": "prioritised"}, "setting 'sampler' was 'uniform'"),
        ({"alpha": 0.3}, "setting 'alpha'"),
        ({"spec": SampleSpec("transitions", n_step=2)}, "setting 'n_step' was 1"),
        ({"masked": True}, "column 'legal' was None"),
    ],
)
def test_other_rules_are_refused(tmp_path, other, match):
    s = shard()
    feed(s, 0, 3)
    with pytest.raises(CheckpointError, match=match):
        restore(snapshot_all([s], tmp_path), [shard(**other)])


def test_an_older_manifest_does_not_vouch_for_an_unfinished_snapshot(tmp_path):
    s = shard()
    feed(s, 0, 3)
    snapshot_all([s], tmp_path)
    s.begin_snapshot(tmp_path / "0")
    with pytest.raises(CheckpointError, match="never finished"):
        restore([tmp_path / "0"], [shard()])
    with pytest.raises(ReplayError, match="another snapshot is being written"):
        s.begin_snapshot(tmp_path / "1")


def test_a_folder_that_cannot_be_written_is_a_checkpoint_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="cannot be written"):
        shard().begin_snapshot(tmp_path / "file")


def test_an_empty_shard_can_be_saved_and_restored(tmp_path):
    again = shard()
    restore(snapshot_all([shard()], tmp_path), [again])
    feed(again, 0, 2)
    again.check()
    assert again.items > 0
