"""Draws are what they claim: chances, importance weights, late priorities, and one shard equal to many."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from replay_world import life, name_of, shard, trajectory

from seqrl_ray.errors import RecipeError, ReplayError
from seqrl_ray.recipe_replay import ReplaySettings
from seqrl_ray.replay import global_weights, merge, split_draw
from seqrl_ray.replay.sampling import UniformSampler
from seqrl_ray.replay.sum_tree import SumTree
from seqrl_ray.settings import parse
from seqrl_ray.types import ArraySpec, ColumnSpec, SampleSpec


def chi_square(counts, chance):
    """(chi-square, five-sigma bound) of independent draws; stratified ones lie below."""
    expected = counts.sum() * chance
    used = expected > 0
    assert counts[~used].sum() == 0, "an item without mass was drawn"
    dof = np.count_nonzero(used) - 1
    return ((counts - expected)[used] ** 2 / expected[used]).sum(), dof + 5 * np.sqrt(2 * dof)


def keys_of(batch):
    return [name_of(obs) for obs in batch.obs_tm1.reshape(-1, 4)]


# --- sum tree


@pytest.mark.parametrize("size", [1, 15, 16, 17, 1_000, 150_000])
def test_tree_draws_in_proportion_to_mass(size):
    rng = np.random.default_rng(size)
    mass = rng.random(size) * (rng.random(size) < 0.7)
    mass[0] = 1.0
    tree = SumTree(size)
    tree.set(np.arange(size), mass)
    tree.check()
    assert tree.total == pytest.approx(mass.sum())
    draws = np.concatenate([tree.draw(512, rng) for _ in range(400)])
    if size > 10_000:  # judge sums of neighbours, so that each cell expects enough
        edge = size // 100
        folded = np.bincount(draws // edge, minlength=101).astype(float)
        chance = np.add.reduceat(mass, np.arange(0, size, edge)) / mass.sum()
        assert (mass[draws] > 0).all()
    else:
        folded, chance = np.bincount(draws, minlength=size), mass / mass.sum()
    value, bound = chi_square(folded[: chance.size], chance)
    assert value <= bound


@settings(max_examples=50, deadline=None)
@given(
    size=st.integers(1, 400),
    writes=st.lists(
        st.lists(st.tuples(st.integers(0, 399), st.floats(0, 100)), min_size=1, max_size=30), max_size=8
    ),
)
def test_tree_of_a_leaf_written_twice_the_last_write_holds(size, writes):
    tree, slow = SumTree(size), np.zeros(size)
    for write in writes:
        leaf = np.array([row % size for row, _ in write])
        tree.set(leaf, np.array([mass for _, mass in write]))
        for row, mass in write:
            slow[row % size] = mass
    tree.check()
    np.testing.assert_array_equal(tree.get(np.arange(size)), slow)
    assert tree.total == pytest.approx(slow.sum())
    if slow.sum() > 0:
        assert (slow[tree.draw(64, np.random.default_rng(0))] > 0).all()


def test_tree_without_mass_refuses_to_draw():
    with pytest.raises(ReplayError, match="nothing to draw"):
        SumTree(10).draw(1, np.random.default_rng(0))


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.sets(st.integers(0, 49), max_size=20)), max_size=15))
def test_uniform_list_holds_what_a_set_holds(steps):
    sampler, slow = UniformSampler(50), set()
    for add, rows in steps:
        if add:
            sampler.add(np.array(sorted(rows - slow), np.int64))
            slow |= rows
        else:
            sampler.remove(np.array(sorted(rows) * 2, np.int64))
            slow -= rows
        sampler.check()
        assert set(sampler.rows().tolist()) == slow
        assert sampler.count == len(slow)


# --- one shard


def filled(sampler, *, episodes=5, **kwargs):
    s = shard(sampler=sampler, **kwargs)
    for episode in range(episodes):
        s.insert(trajectory([(slot, episode, 0, 20) for slot in range(4)]))
    return s


def episode_of(name):
    return name[0][2:]


@pytest.mark.parametrize("sampler", ["uniform", "prioritised", "by_length", "by_return"])
def test_draws_follow_the_declared_chances(sampler):
    s = filled(sampler, return_low=-8.0, return_high=8.0)
    rng = np.random.default_rng(0)
    rows = s.sampler.rows()
    priority = rng.random(rows.size) * 5
    if sampler == "prioritised":
        first = s.sample(1, 4_000)  # every item comes by
        given = dict(zip(rows.tolist(), priority.tolist(), strict=True))
        assert s.update_priorities(first.ids, np.array([given[r] for r in first.ids.row.tolist()])) == 0
        chance = (priority + 1e-6) ** 0.6
    elif sampler == "uniform":
        chance = np.ones(rows.size)
    else:
        names = [name_of(s.store.columns["obs"][row]) for row in rows]
        total = {}
        for row, name in zip(rows, names, strict=True):
            total[episode_of(name)] = total.get(episode_of(name), 0.0) + float(s.store.columns["reward"][row])
        steps = {key: life(*key) for key in total}
        if sampler == "by_length":
            episode_chance = steps
        else:
            episode_chance = {key: 0.01 + 0.99 * min(max((g + 8) / 16, 0), 1) for key, g in total.items()}
        chance = np.array([episode_chance[episode_of(n)] / steps[episode_of(n)] for n in names])
    chance = chance / chance.sum()
    batches = [s.sample(8, 32) for _ in range(150)]
    drawn = np.concatenate([b.ids.row for b in batches])
    value, bound = chi_square(np.bincount(np.searchsorted(rows, drawn), minlength=rows.size), chance)
    assert value <= bound
    last = batches[-1]
    at = np.searchsorted(rows, last.ids.row).reshape(8, 32)
    np.testing.assert_allclose(last.probability, chance[at], rtol=1e-9)
    slow = (rows.size * chance[at]) ** -0.4
    np.testing.assert_allclose(last.weight, slow / slow.max(axis=1, keepdims=True), rtol=1e-6)


def test_every_minibatch_of_a_stratified_draw_reaches_the_whole_store():
    s = filled("prioritised")
    rows = s.sample(8, 64).ids.row.reshape(8, 64)
    assert (rows.max(axis=1) - rows.min(axis=1) > 0.7 * s.store.used).all()


def test_a_new_item_gets_the_largest_priority_seen():
    s = shard(sampler="prioritised", alpha=1.0)
    s.insert(trajectory([(0, 0, 0, 20)]))
    b = s.sample(1, 50)
    s.update_priorities(b.ids, np.full(50, 7.0))
    s.insert(trajectory([(1, 0, 0, 20)]))
    newest = s.sampler.rows()[-1]
    assert s.sampler.masses(np.array([newest]))[0] == pytest.approx(7.0, rel=1e-6)
    s.raise_max_priority(9.0)
    s.insert(trajectory([(2, 0, 0, 20)]))
    assert s.sampler.masses(s.sampler.rows()[-1:])[0] == pytest.approx(9.0, rel=1e-6)


def test_a_priority_column_gives_the_first_priority_and_nan_the_largest():
    spec = SampleSpec("transitions", extra=(ColumnSpec("priority", ArraySpec((), "float32")),))
    s = shard(spec, sampler="prioritised", alpha=1.0)
    fragment = trajectory([(0, next(e for e in range(50) if life(0, e) == 4), 0, 20)])
    fragment.columns["priority"] = np.array([2.0, np.nan, 3.0, 4.0, np.nan], np.float32)
    s.insert(fragment)
    np.testing.assert_allclose(s.sampler.masses(s.sampler.rows()), [2.0, 1.0, 3.0, 4.0], rtol=1e-5)


def test_late_priorities_of_items_that_left_are_ignored():
    s = filled("prioritised", capacity_steps=60)
    old = s.sample(1, 30)
    before = s.stats()
    for episode in range(5, 30):
        s.insert(trajectory([(slot, episode, 0, 20) for slot in range(4)]))
    masses = s.sampler.masses(np.arange(60))
    assert s.update_priorities(old.ids, np.full(30, 1e6)) == 30
    np.testing.assert_array_equal(s.sampler.masses(np.arange(60)), masses)
    assert s.max_priority == before.max_priority
    assert s.stats().stale_priorities == 30


def test_a_late_priority_does_not_revive_an_item_whose_frames_left():
    s = shard(sampler="prioritised", frame_stack=3, capacity_steps=40)
    for episode in range(12):
        drawn = s.sample(1, 64) if s.items else None
        s.insert(trajectory([(slot, episode, 0, 20) for slot in range(2)]))
        if drawn is not None:
            s.update_priorities(drawn.ids, np.ones(64))
        s.check()


def test_ids_of_an_earlier_life_of_the_shard_are_stale():
    first, second = filled("prioritised"), filled("prioritised", incarnation=1)
    assert second.update_priorities(first.sample(1, 16).ids, np.ones(16)) == 16


@pytest.mark.parametrize(("bad", "match"), [(np.nan, "NaN"), (-1.0, "negative"), (np.inf, "infinite")])
def test_priorities_that_cannot_be_are_refused(bad, match):
    s = filled("prioritised")
    b = s.sample(1, 4)
    with pytest.raises(ReplayError, match=match):
        s.update_priorities(b.ids, np.array([1.0, 1.0, 1.0, bad]))
    with pytest.raises(ReplayError, match="3 values for 4 items"):
        s.update_priorities(b.ids, np.ones(3))
    with pytest.raises(ReplayError, match="this is shard 5"):
        filled("prioritised", index=5).update_priorities(b.ids, np.ones(4))


def test_draws_are_a_function_of_the_seed():
    a, b, c = filled("prioritised", seed=3), filled("prioritised", seed=3), filled("prioritised", seed=4)
    rows = [s.sample(2, 16).ids.row.tolist() for s in (a, b, c)]
    assert rows[0] == rows[1] != rows[2]


# --- many shards


def spread(count, sampler="prioritised"):
    """The same 24 streams, and the same priority for each step, on `count` shards."""
    shards = [
        shard(sampler=sampler, index=i, seed=100 + i, capacity_steps=600 * count, shards=count)
        for i in range(count)
    ]
    for slot in range(4):
        for episode in range(6):
            shards[(slot * 6 + episode) % count].insert(
                trajectory([(slot, episode, 0, 20)], writer="abcd"[slot])
            )
    for s in shards:
        if s.items and sampler == "prioritised":
            rows = s.sampler.rows()
            priority = [skewed(name_of(s.store.columns["obs"][row])) for row in rows]
            s.sampler.change(rows, s._mass(np.array(priority)))
    return shards


def skewed(name):
    (_, _, slot, episode), t = name
    return 0.05 + (10.0 if (slot, episode) == (0, 0) else 1.0) * ((slot * 31 + episode * 7 + t * 3) % 11)


def draw(shards, updates, batch, beta, rng):
    masses = [s.mass for s in shards]
    total, items = sum(m.mass for m in masses), sum(m.items for m in masses)
    counts = split_draw([m.mass for m in masses], updates * batch, rng)
    parts = [
        (s.sample(1, int(n)), m.mass / total) for s, n, m in zip(shards, counts, masses, strict=True) if n
    ]
    return merge(
        [p for p, _ in parts],
        [share for _, share in parts],
        updates=updates,
        batch=batch,
        total_items=items,
        beta=beta,
        rng=rng,
    )


@pytest.mark.parametrize("sampler", ["uniform", "prioritised"])
@pytest.mark.parametrize("count", [1, 2, 8])
def test_shards_change_neither_distribution_nor_weights(count, sampler):
    shards = spread(count, sampler)
    rng = np.random.default_rng(count)
    names = [(("abcd"[s], 0, s, e), t) for s in range(4) for e in range(6) for t in range(life(s, e))]
    mass = np.array([(skewed(n) + 1e-6) ** 0.6 if sampler == "prioritised" else 1.0 for n in names])
    chance = dict(zip(names, mass / mass.sum(), strict=True))
    counts = dict.fromkeys(names, 0)
    for _ in range(120):
        batch = draw(shards, 4, 64, 0.7, rng)
        drawn = keys_of(batch)
        for name in drawn:
            counts[name] += 1
        expected = np.array([chance[name] for name in drawn]).reshape(4, 64)
        np.testing.assert_allclose(batch.probability, expected, rtol=1e-9)
        slow = (len(names) * expected) ** -0.7
        np.testing.assert_allclose(batch.weight, slow / slow.max(axis=1, keepdims=True), atol=1e-6)
    value, bound = chi_square(np.array([counts[n] for n in names]), np.array([chance[n] for n in names]))
    assert value <= bound


def test_merged_minibatches_mix_the_shards_and_priorities_find_their_way_back():
    shards = spread(2)
    batch = draw(shards, 4, 64, 0.4, np.random.default_rng(0))
    shard_of = batch.ids.shard.reshape(4, 64)
    assert all(set(row) == {0, 1} for row in shard_of.tolist())
    for s in shards:
        mine = batch.ids.shard == s.index
        ids = type(batch.ids)(batch.ids.shard[mine], batch.ids.row[mine], batch.ids.generation[mine])
        assert s.update_priorities(ids, np.full(len(ids), 3.0)) == 0
        np.testing.assert_allclose(s.sampler.masses(ids.row), (3.0 + 1e-6) ** 0.6)


def test_windows_merge_too():
    spec = SampleSpec("windows", window_steps=3, returns=True)
    shards = [shard(spec, index=i, shards=2, capacity_steps=400) for i in range(2)]
    for i, s in enumerate(shards):
        s.insert(trajectory([(slot, i, 0, 20) for slot in range(4)]))
    batch = draw(shards, 2, 16, 1.0, np.random.default_rng(1))
    assert batch.obs.shape == (2, 16, 3, 4) and batch.return_to_go.shape == (2, 16, 3)
    assert set(batch.obs[:, :, 0, 2].reshape(-1)) == {0.0, 1.0}


def test_split_draw_is_multinomial_and_refuses_nothing():
    rng = np.random.default_rng(0)
    counts = np.array([split_draw([1.0, 3.0, 0.0], 100, rng) for _ in range(2_000)])
    assert (counts.sum(axis=1) == 100).all() and (counts[:, 2] == 0).all()
    assert counts[:, 0].mean() == pytest.approx(25, abs=5 * np.sqrt(100 * 0.25 * 0.75 / 2_000))
    assert counts[:, 0].var() == pytest.approx(18.75, rel=0.2)
    with pytest.raises(ReplayError, match="nothing to draw"):
        split_draw([0.0, 0.0], 4, rng)


def test_merge_refuses_a_short_draw():
    shards = spread(2)
    with pytest.raises(ReplayError, match="not the 8 items"):
        merge(
            [shards[0].sample(1, 8)],
            [1.0],
            updates=2,
            batch=8,
            total_items=8,
            beta=1.0,
            rng=np.random.default_rng(0),
        )


def test_weights_are_at_most_one_and_one_at_beta_zero():
    chance = np.random.default_rng(0).random((3, 9))
    weight = global_weights(chance, 1_000, 0.5)
    np.testing.assert_array_equal(weight.max(axis=1), 1.0)
    np.testing.assert_array_equal(global_weights(chance, 1_000, 0.0), np.ones((3, 9), np.float32))


# --- settings


@pytest.mark.parametrize(
    ("table", "match"),
    [
        ({"min_items": 11, "capacity_steps": 10}, "min_items=11"),
        ({"shards": 6, "capacity_steps": 10, "min_items": 1}, "shards=6"),
        ({"sampler": "by_return", "return_low": 2.0}, "return_high=1.0"),
        ({"memory_bytes": 10}, "memmap_folder"),
        ({"wiring": "colocated", "shards": 2}, "wiring='colocated'"),
        ({"capacity": 10}, "replay.capacity is not a setting"),
        ({"alpha": 1.5}, "replay.alpha=1.5"),
    ],
)
def test_settings_that_contradict_are_refused(table, match):
    with pytest.raises(RecipeError, match=match):
        parse(ReplaySettings, table, "replay")


def test_beta_goes_linearly_from_start_to_end():
    s = ReplaySettings(beta_start=0.4, beta_end=1.0)
    assert [round(s.beta(p), 6) for p in (-1.0, 0.0, 0.5, 1.0, 2.0)] == [0.4, 0.4, 0.7, 1.0, 1.0]
