"""Several learners without Ray: who draws what, who counts it, who waits, and what a death or an error is."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ray.exceptions import RayActorError, RayTaskError

from seqrl_ray.algorithms import make_algorithm, settings_class
from seqrl_ray.errors import DivergedError, RecipeError
from seqrl_ray.loops.feed import feed
from seqrl_ray.loops.parts import Part, check_sharing, with_own_draws
from seqrl_ray.loops.trainer import make_pacing
from seqrl_ray.replay.sampling import global_weights
from seqrl_ray.runtime import launch, learner_group, room
from seqrl_ray.runtime.collective import LearnerLost
from seqrl_ray.runtime.learner_group import Followers, Said, Word
from seqrl_ray.runtime.remote_replay import RemoteReplay
from tests.contract.algorithm_cases import GROUPS, build, make_batch
from tests.unit.runtime.service_world import GROUP, SPECS, recipe_of
from tests.unit.runtime.test_replay_service import insert, settle

TWO = ("learner.count=2", "replay.wiring=service", "replay.shards=2")


def learners_over(world, recipe, shards):
    def replay(rank):
        pacing = make_pacing(recipe, SPECS["shared"], len(GROUP.slots), paced=rank == 0)
        made = RemoteReplay(recipe, "shared", pacing, seed=rank, leads=rank == 0)
        made.use(dict(enumerate(shards)))
        return made

    return replay(0), replay(1)


def shards_of(world, recipe, rows):
    shards = [world.shard(recipe, i) for i in range(2)]
    for i, shard in enumerate(shards):
        insert(world, shard, f"actor-{i}", 0, rows)
    return shards


def counted(shards):
    return [s.server.pacing["shared"].sampled for s in shards]


def test_each_learner_draws_its_part_and_the_leader_counts_the_whole(world):
    keys = (*TWO, "learner.prefetch=1", "replay.samples_per_insert=2.0")
    recipe = recipe_of(*keys)
    shards = shards_of(world, recipe, 30)
    leader, follower = learners_over(world, recipe, shards)
    whole = recipe.learner.updates_per_call * recipe.learner.batch_size
    rounds = 0
    for _ in range(12):
        leader.pump(0.5, 0)
        follower.follow(leader.ahead, 0.5, 0)
        assert follower.ahead == leader.ahead
        settle(world, leader)
        settle(world, follower)
        if not leader.ready():
            continue
        rounds += 1
        for learner in (leader, follower):
            assert learner.next_batch().weight.shape == (2, 4)
        assert leader.pacing.sampled == rounds * whole
        assert counted(shards) == [rounds * whole] * 2  # for both shards, whoever drew from them
    assert sum(s.server.pacing["shared"].sampled_here for s in shards) == rounds * whole
    assert follower.pacing.sampled == 0
    single = recipe_of(*keys, "learner.count=1")
    alone, _ = learners_over(world, single, shards_of(world, single, 30))
    for _ in range(12):
        alone.pump(0.5, 0)
        settle(world, alone)
        alone.next_batch()
    assert alone.pacing.sampled == rounds * whole > 0  # pacing lets two learners draw what it lets one draw


def test_a_follower_asks_for_no_more_than_the_leader_has(world):
    recipe = recipe_of(*TWO, "learner.prefetch=4", "replay.samples_per_insert=100.0")
    _, follower = learners_over(world, recipe, shards_of(world, recipe, 30))
    follower.follow(0, 0.5, 0)
    assert (follower.ahead, follower.calls()) == (0, [])
    follower.follow(3, 0.5, 0)
    settle(world, follower)
    assert (follower.ahead, follower.ready()) == (3, 3)
    follower.follow(3, 0.5, 0)
    assert follower.calls() == []


def test_a_follower_that_knows_of_no_items_looks_for_some(world):
    recipe = recipe_of(*TWO, "replay.samples_per_insert=100.0")
    shards = [world.shard(recipe, i) for i in range(2)]
    _, follower = learners_over(world, recipe, shards)
    follower.follow(1, 0.5, 0)
    assert follower.ahead == 0
    for i, shard in enumerate(shards):
        insert(world, shard, f"actor-{i}", 0, 30)
    settle(world, follower)
    follower.follow(1, 0.5, 0)
    settle(world, follower)
    assert follower.ready() == 1


def test_what_is_whole_stays_when_a_shard_is_lost(world):
    """A learner that said it has its part must have it when the others begin to learn."""
    recipe = recipe_of(*TWO, "replay.samples_per_insert=100.0")
    _, follower = learners_over(world, recipe, shards_of(world, recipe, 30))
    follower.follow(1, 0.5, 0)
    settle(world, follower)
    assert follower.ready() == 1
    follower.lost.add(1)
    follower._abandon(1)
    assert follower.ready() == 1
    follower.follow(2, 0.5, 0)
    follower._abandon(0)
    assert (follower.ahead, follower.ready()) == (1, 1)


def test_importance_weights_are_divided_by_the_largest_of_the_whole_minibatch():
    rng = np.random.default_rng(0)
    probability = rng.uniform(1e-4, 1e-2, (3, 8))
    whole = global_weights(probability, 500, 0.6)
    most = ((probability * 500) ** -0.6).max(-1)
    for rows in (slice(0, 4), slice(4, 8)):
        asked = []
        weights = global_weights(probability[:, rows], 500, 0.6, lambda own, a=asked: a.append(own) or most)
        np.testing.assert_allclose(asked[0], ((probability[:, rows] * 500) ** -0.6).max(-1))
        np.testing.assert_allclose(weights, whole[:, rows], rtol=1e-6)


# --------------------------------------------------------------------------------- random numbers of a part


@pytest.mark.parametrize(("name", "group"), [("sac", "box"), ("online_dt", "box")])
def test_parts_draw_the_rows_that_one_learner_would(name, group):
    algorithm = build(name, GROUPS[group], dropout=0.0) if name == "online_dt" else build(name, GROUPS[group])
    batch = feed(make_batch(algorithm.sample_spec(), GROUPS[group], seed=0, u=2, b=6), "cpu")
    whole = algorithm.drawn(batch).extra["noise"]
    for rank in range(3):
        rows = slice(2 * rank, 2 * rank + 2)
        part = feed(make_batch(algorithm.sample_spec(), GROUPS[group], seed=rank, u=2, b=2), "cpu")
        own = with_own_draws(algorithm, part, Part(rank, 3))
        assert torch.equal(own.extra["noise"], whole[:, rows])
        assert own.obs_tm1 is part.obs_tm1 if name == "sac" else own.obs is part.obs
    assert with_own_draws(algorithm, batch, Part()) is batch


def test_dropout_differs_from_learner_to_learner():
    algorithm = build("decision_transformer", GROUPS["vector"], dropout=0.5)
    batch = feed(make_batch(algorithm.sample_spec(), GROUPS["vector"], seed=0, u=2, b=2), "cpu")
    seeds = [with_own_draws(algorithm, batch, Part(r, 3)).extra["dropout_seed"].tolist() for r in range(3)]
    assert seeds[0] == algorithm.drawn(batch).extra["dropout_seed"].tolist()
    assert len({seed for own in seeds for seed in own}) == 6


def test_an_algorithm_without_gradients_is_refused_by_name():
    random = make_algorithm("random", settings_class("random")(), GROUPS["vector"])
    with pytest.raises(RecipeError, match=r"learner.count=2 does not fit Random \(policies.shared\)"):
        check_sharing({"shared": random}, 2)
    check_sharing({"shared": random}, 1)


def test_learners_that_no_cluster_could_hold_are_refused_with_the_arithmetic(monkeypatch):
    recipe = recipe_of(*TWO)
    monkeypatch.setattr(launch, "cluster_resources", lambda: {"CPU": 8.0, "GPU": 1.0})
    with pytest.raises(RecipeError, match=r"x learner.count=2 and the cluster has 1 GPUs"):
        launch.place(recipe, local=True)
    monkeypatch.setattr(room, "present", lambda: [room.Nodes({}, 4.0)])
    monkeypatch.setattr(room, "to_come", lambda: [])
    with pytest.raises(RecipeError, match=r"2 for the learner \+ 2 shards = 5 CPUs, and the cluster has 4"):
        room.check_room(recipe, recipe.learner.count * 1, 2)


def test_several_learners_draw_from_shards_of_their_own_processes():
    assert launch.wiring(recipe_of("learner.count=2"), cpus=2.0) == "service"
    assert launch.wiring(recipe_of(), cpus=2.0) == "colocated"


# ------------------------------------------------------------------------------------- the leader's view


class Call:
    def __init__(self, handle, word):
        self.handle, self.word, self.answer = handle, word, None


class Handle:
    """Keeps what it is told; the test answers."""

    def __init__(self):
        self.calls = []
        self.step = SimpleNamespace(remote=self._remote)

    def _remote(self, word):
        self.calls.append(Call(self, word))
        return self.calls[-1]

    def answer(self, answer):
        call = next(c for c in self.calls if c.answer is None)
        call.answer = answer
        return call


@pytest.fixture
def followers(monkeypatch):
    def get(call):
        if isinstance(call.answer, Exception):
            raise call.answer
        return call.answer

    def wait(calls, num_returns=1, timeout=None):
        return [c for c in calls if c.answer is not None], [c for c in calls if c.answer is None]

    monkeypatch.setattr(learner_group, "ray", SimpleNamespace(get=get, wait=wait))
    handles = [Handle(), Handle()]
    return Followers(handles), handles


def word(learn=None, ahead=1):
    return Word(0.1, 0.5, {"shared": ahead}, learn)


def said(ready, lost=(), stale=0):
    return Said({"shared": ready}, frozenset(lost), stale)


def test_alone_nobody_is_asked_or_waited_for():
    nobody = Followers([])
    assert nobody.ready("shared")
    nobody.hand_over({0: object()}, word())
    nobody.prepare(word())
    nobody.tell(word("shared"))
    assert (nobody.calls(), nobody.lost, nobody.stale_priorities) == ([], set(), 0)
    assert nobody.gather(None, "gloo") is None


def test_nobody_is_sent_into_an_update_before_all_have_their_part(followers):
    group, (one, other) = followers
    assert not group.ready("shared")
    group.prepare(word())
    assert len(group.calls()) == 2
    group.prepare(word())
    assert len(one.calls) == 1  # it is at it already
    group.settle([one.answer(said(2, stale=3))])
    assert not group.ready("shared")
    group.prepare(word())
    assert len(one.calls) == 1  # it has what it needs
    group.settle([other.answer(said(1, stale=1))])
    assert group.ready("shared")
    assert group.stale_priorities == 4
    group.tell(word("shared"))
    assert not group.ready("shared")  # one of them had a single draw, and learns from it now
    group.settle([one.answer(said(1)), other.answer(said(1))])
    assert group.ready("shared")


def test_a_shard_that_a_follower_misses_is_lost_until_it_was_handed_over_anew(followers):
    group, (one, other) = followers
    shards = {0: object(), 1: object()}
    group.hand_over(shards, word(ahead=0))
    assert [c.word.shards for c in one.calls] == [shards]
    group.settle([one.answer(said(0)), other.answer(said(0))])
    group.hand_over(shards, word(ahead=0))
    assert len(one.calls) == 1  # nothing is new
    group.prepare(word())
    group.settle([one.answer(said(0, lost=[1])), other.answer(said(0))])
    assert group.lost == {1}
    shards = {**shards, 1: object()}
    group.hand_over(shards, word())
    assert group.lost == set()
    group.settle([one.answer(said(1)), other.answer(said(1))])
    assert group.lost == set()


@pytest.mark.parametrize(
    ("answer", "error", "text"),
    [
        (RayActorError(), LearnerLost, "learner 2 has died"),
        (
            RayTaskError("step", "traceback", LearnerLost("learner 2 lost the others")),
            LearnerLost,
            "2 lost the",
        ),
        (RayTaskError("step", "traceback", DivergedError("not finite")), DivergedError, "not finite"),
        (RayTaskError("step", "ZeroDivisionError", ZeroDivisionError()), RayTaskError, "ZeroDivisionError"),
    ],
    ids=["died", "lost others", "ours", "a defect"],
)
def test_what_ends_a_follower_is_what_the_leader_raises(followers, answer, error, text):
    group, (_, other) = followers
    group.tell(word())
    with pytest.raises(error, match=text):
        group.settle([other.answer(answer)])


def test_after_a_collective_broke_the_followers_say_why(followers):
    group, (one, _) = followers
    group.tell(word("shared"))
    group.say_why()  # nobody knows
    one.answer(RayTaskError("step", "traceback", DivergedError("not finite")))
    with pytest.raises(DivergedError):
        group.say_why()
