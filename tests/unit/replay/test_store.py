"""The store against a slow store of lists: random fragments, duplicates, gaps, deaths, all ways of
eviction.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from replay_world import Oracle, life, name_of, reward_of, shard, trajectory

from seqrl_ray.errors import RecipeError, ReplayError
from seqrl_ray.types import SampleSpec

SPECS = {
    "one_step": (SampleSpec("transitions"), 1),
    "n_step": (SampleSpec("transitions", n_step=3), 1),
    "stacked": (SampleSpec("transitions", n_step=2), 3),
    "windows": (SampleSpec("windows", window_steps=3, period_steps=2), 1),
    "windows_stacked": (SampleSpec("windows", window_steps=2, period_steps=2), 3),
    "returns": (SampleSpec("windows", window_steps=4, period_steps=1, returns=True), 1),
}

piece = st.tuples(
    st.integers(0, 3), st.sampled_from(["on", "on", "on", "again", "gap", "next"]), st.integers(1, 6)
)
step = st.one_of(
    st.tuples(st.just("insert"), st.sampled_from("ab"), st.lists(piece, min_size=0, max_size=5)),
    st.tuples(st.just("insert"), st.sampled_from("ab"), st.lists(piece, min_size=3, max_size=5)),
    st.tuples(st.just("gone"), st.sampled_from("ab"), st.none()),
    st.tuples(st.just("reborn"), st.sampled_from("ab"), st.none()),
    st.tuples(st.just("stale"), st.sampled_from("ab"), st.none()),
)


class Actors:
    """Writers that send what a hypothesis step says, and remember where each slot is."""

    def __init__(self):
        self.incarnation = {"a": 0, "b": 0}
        self.at = {}  # (writer, slot) -> [episode, offset]

    def fragment(self, writer, pieces):
        built = []
        for slot, how, length in pieces:
            episode, offset = self.at.get((writer, slot), [0, 0])
            if how == "again":
                offset = max(0, offset - 2)
            elif how == "gap":
                offset = min(offset + 2, life(slot, episode))
            elif how == "next":
                episode, offset = episode + 1, 0
            if offset > life(slot, episode):
                episode, offset = episode + 1, 0
            end = min(offset + length, life(slot, episode) + 1)
            built.append((slot, episode, offset, length))
            now = self.at.get((writer, slot), [0, 0])
            self.at[writer, slot] = max(now, [episode, end])
        return trajectory(built, writer, self.incarnation[writer])

    def reborn(self, writer):
        self.incarnation[writer] += 1
        for slot in range(4):
            self.at.pop((writer, slot), None)


def live_names(s):
    return {name_of(s.store.columns["obs"][row]) for row in s.sampler.rows()}


@pytest.mark.parametrize("sampler", ["uniform", "prioritised", "by_length"])
@pytest.mark.parametrize("eviction", ["fifo_steps", "fifo_episodes", "lowest_return_first"])
@settings(max_examples=40, deadline=None)
@given(steps=st.lists(step, max_size=20), kind=st.sampled_from(sorted(SPECS)), capacity=st.integers(36, 60))
def test_items_are_those_of_a_slow_store(sampler, eviction, steps, kind, capacity):
    spec, stack = SPECS[kind]
    s = shard(spec, frame_stack=stack, sampler=sampler, eviction=eviction, capacity_steps=capacity)
    oracle = Oracle(spec, capacity, eviction, stack, by_episode=sampler == "by_length")
    spec_extra = {"legal", "value"}
    actors = Actors()
    for what, writer, pieces in steps:
        if what == "insert":
            fragment = actors.fragment(writer, pieces)
            assert spec_extra <= set(
                fragment.columns
            )  # columns nobody declared are let through and not stored
            reply = s.insert(fragment)
            assert reply.items == oracle.insert(fragment)
            assert s.insert(fragment).rows == 0, "the same fragment twice stored something"
        elif what == "gone":
            s.writer_gone(writer)
            oracle.writer_gone(writer)
        elif what == "reborn":
            actors.reborn(writer)
        elif actors.incarnation[writer] > 0 and oracle.incarnation.get(writer) == actors.incarnation[writer]:
            late = trajectory([(0, 50, 0, 3)], writer, actors.incarnation[writer] - 1)
            reply = s.insert(late)
            assert (reply.rows, reply.refused_rows) == (0, late.rows)
        s.check()
        assert live_names(s) == oracle.live()
        assert s.store.used == len(oracle.rows)


def test_fragments_of_a_stream_are_joined_across_inserts_and_inside_one():
    s = shard(SampleSpec("transitions", n_step=4))
    slot, episode = next((x, e) for x in range(4) for e in range(50) if life(x, e) == 9)
    s.insert(trajectory([(slot, episode, 0, 2)]))
    s.insert(trajectory([(slot, episode, 2, 3), (slot, episode, 5, 5)]))
    assert live_names(s) == {(("w", 0, slot, episode), t) for t in range(9)}
    assert s.store.streams.open == 0


def test_rows_after_a_final_row_are_refused_and_change_nothing():
    s = shard()
    s.insert(trajectory([(0, 0, 0, 20)]))
    s.sample(1, 1)
    good = trajectory([(1, 0, 0, 2)])
    bad = trajectory([(1, 0, 0, 2)])
    object.__setattr__(bad, "slot", np.array([0]))
    object.__setattr__(bad, "offset", np.array([life(0, 0) + 1]))
    before = s.stats()
    with pytest.raises(ReplayError, match="rows follow the final"):
        s.insert(bad)
    assert s.stats() == before
    assert s.insert(good).rows == good.rows


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"columns": {"obs": np.zeros((2, 5), np.float32)}}, "column 'obs' has shape"),
        ({"columns": {"action": np.zeros(2, np.float32)}}, "column 'action' has dtype float32"),
        ({"columns": {"reward": None}}, "column 'reward' is missing"),
        ({"policy_id": "other"}, "policy_id='other'"),
        ({"length": np.array([3])}, "does not cut 2 rows"),
        ({"offset": np.array([-1])}, "negative"),
    ],
)
def test_a_fragment_that_does_not_fit_is_refused(change, match):
    s = shard()
    fragment = trajectory([(0, next(e for e in range(50) if life(0, e) > 3), 0, 2)])
    for name, value in change.items():
        if name == "columns":
            value = {k: v for k, v in (dict(fragment.columns) | value).items() if v is not None}
        object.__setattr__(fragment, name, value)
    with pytest.raises(ReplayError, match=match):
        s.insert(fragment)
    assert s.stats().rows == 0


def test_a_fragment_larger_than_the_shard_is_refused():
    s = shard(capacity_steps=4)
    with pytest.raises(ReplayError, match="capacity_steps=4"):
        s.insert(trajectory([(slot, 0, 0, 9) for slot in range(4)]))
    assert s.stats().rows == 0


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        (SampleSpec("transitions", n_step=0), "n_step=0"),
        (SampleSpec("windows", window_steps=4, burn_in_steps=4), "burn_in_steps=4"),
        (SampleSpec("transitions", returns=True), "returns=True"),
        (SampleSpec("windows", window_steps=200), "200 steps of one item"),
    ],
)
def test_specs_that_can_never_give_an_item_are_refused(spec, match):
    with pytest.raises(RecipeError, match=match):
        shard(spec)


def test_memory_beyond_the_budget_is_mapped_and_reads_the_same(tmp_path):
    budget = 200 * 60  # less than the columns need
    mapped = shard(memory_bytes=budget, memmap_folder=str(tmp_path))
    plain = shard()
    for s in (mapped, plain):
        s.insert(trajectory([(slot, 0, 0, 20) for slot in range(4)]))
    assert 0 < mapped.stats().memmap_bytes <= sum(f.stat().st_size for f in tmp_path.rglob("*.column"))
    assert mapped.stats().column_bytes - mapped.stats().memmap_bytes <= budget
    assert plain.stats().memmap_bytes == 0
    np.testing.assert_array_equal(mapped.sample(2, 8).obs_t, plain.sample(2, 8).obs_t)


def test_an_atari_step_takes_less_than_7500_bytes():
    from seqrl_ray.recipe_replay import ReplaySettings
    from seqrl_ray.replay import ReplayShard
    from seqrl_ray.types import ActionSpec, ArraySpec, GroupSpec, Slot

    atari = GroupSpec(
        "shared", (Slot(0, "agent", 0, 6),), ArraySpec((84, 84), "uint8"), ActionSpec("discrete", 6), 4
    )
    for sampler in ("uniform", "prioritised"):
        s = ReplayShard(
            atari,
            SampleSpec("transitions", n_step=3),
            ReplaySettings(sampler=sampler, capacity_steps=2_000),
            0,
        )
        assert (s.stats().column_bytes + s.stats().index_bytes) / 2_000 <= 7_500


@pytest.mark.parametrize("eviction", ["fifo_steps", "fifo_episodes"])
def test_a_stream_whose_tail_was_evicted_goes_on_without_joining_what_took_its_place(eviction):
    slot, episode = next((x, e) for x in range(4) for e in range(60) if life(x, e) == 9)
    s = shard(eviction=eviction, capacity_steps=12)
    oracle = Oracle(s.spec, 12, eviction)
    others = [trajectory([(0, e, 0, 20)], writer="b") for e in range(8)]
    for fragment in [
        trajectory([(slot, episode, 0, 3)]),
        *others,
        trajectory([(slot, episode, 3, 2)]),
        trajectory([(slot, episode, 5, 5)]),
    ]:
        assert s.insert(fragment).items == oracle.insert(fragment)
        s.check()
        assert live_names(s) == oracle.live()


def test_the_best_episodes_stay_and_the_store_goes_on():
    held = shard(SampleSpec("windows", window_steps=4, returns=True), eviction="fifo_episodes")
    whole = [(slot, episode, 0, 20) for slot in range(4) for episode in range(3)]
    held.insert(trajectory(whole))
    held.insert(trajectory([(0, 3, 0, 1)]))  # an open one, which must stay
    totals = {
        (s, e): (sum(float(reward_of(s, e, t)) for t in range(life(s, e))), life(s, e) + 1)
        for s, e, _, _ in whole
    }
    best, rows = sorted(totals, key=lambda k: -totals[k][0])[:5], 1
    rows += sum(totals[k][1] for k in best)
    before = held.store.used
    assert held.keep_best(rows) == before - rows
    held.check()
    kept = {name_of(held.store.columns["obs"][row])[0][2:] for row in held.store.live_rows().tolist()}
    assert kept == {*best, (0, 3)}
    assert held.items == rows - 1 - len(best)  # every decision of whole episodes, no final row
    assert held.keep_best(rows) == 0
    held.insert(trajectory([(s, e, 0, 20) for s in range(4) for e in range(4, 9)], "v"))
    held.check()
    assert held.keep_best(0) == held.store.used + held.store.evicted_rows - (before - rows) - 1
    assert held.store.used == 1  # what is open is no episode yet


def test_single_steps_cannot_be_ranked():
    with pytest.raises(ReplayError, match="fifo_episodes"):
        shard().keep_best(10)
