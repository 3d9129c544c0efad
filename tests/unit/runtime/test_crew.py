"""How many actors there shall be, who joins and who leaves: the crew on a pretended cluster, without Ray."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace

import pytest

from seqrl_ray.api import read_recipe
from seqrl_ray.errors import RecipeError, WorkerError
from seqrl_ray.recipe_labels import matches
from seqrl_ray.runtime import crew as module
from seqrl_ray.runtime import nodes
from seqrl_ray.runtime.crew import ASKED, SETTLE_S, UNPLACED_S, Crew, ask
from seqrl_ray.runtime.nodes import Node, Place
from seqrl_ray.runtime.spread import ROTATE_S, Spread
from seqrl_ray.runtime.supervisor import WINDOW_S, Budget, Supervisor


class World:
    """Nodes with CPUs; an actor stands on the first that has room for it, or waits."""

    def __init__(self, monkeypatch):
        self.cpus, self.ends, self.stands, self.autoscaler, self.now = {}, {}, {}, False, 1000.0
        monkeypatch.setattr(nodes, "look", self.look)
        monkeypatch.setattr(nodes, "place_of", lambda actor: Place(self.place(actor)))
        monkeypatch.setattr(nodes, "gone", lambda node: node not in self.cpus)
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now))

    def place(self, actor):
        if actor not in self.stands:
            free = [n for n in self.cpus if n not in self.ends and self.free(n) >= 1.0]
            if not free:
                return None
            self.stands[actor] = free[0]
        return self.stands[actor]

    def free(self, node):
        return self.cpus[node] - sum(1.0 for n in self.stands.values() if n == node)

    def look(self):
        labels = {nodes.NODE_GROUP: "actors"} if self.autoscaler else {}
        return {n: Node(n, n, 1, {"CPU": self.free(n)}, labels, self.ends.get(n)) for n in self.cpus}


class Session:
    """Does what the crew orders, at once."""

    def __init__(self, world, *overrides, **options):
        recipe = read_recipe("classic/cartpole", overrides)
        self.world, self.made = world, 0
        self.crew = Crew(recipe, **{"cpus": 1.0, "watch": True, **options})
        for index in self.crew.first():
            self.hire(index)

    def hire(self, index):
        self.made += 1
        self.crew.joined(index, f"actor {index} life {self.made}")

    def end(self, index):
        self.world.stands.pop(self.crew.members[index].handle, None)
        self.crew.left(index)

    def after(self, seconds):
        """Look after so long; return the notes."""
        self.world.now += seconds
        orders = self.crew.look()
        for index in orders.drop:
            self.end(index)
        for index in orders.join:
            self.hire(index)
        for index in self.crew.leaving:
            self.end(index)
        return orders.notes


@pytest.fixture
def world(monkeypatch):
    return World(monkeypatch)


def test_the_crew_grows_with_the_cluster_and_shrinks_with_it(world):
    world.cpus = {"head": 1.0}
    session = Session(world, "actors.count=[1,3]")
    assert session.crew.size == 1
    session.after(SETTLE_S)
    assert session.crew.size == 1
    world.cpus |= {"a": 1.0, "b": 2.0}
    session.after(SETTLE_S)
    assert sorted(session.crew.members) == [0, 1, 2]  # the most, though there is room for four
    session.after(SETTLE_S)
    for node in ("a", "b"):
        del world.cpus[node]
    lost = [i for i in session.crew.members if session.crew.lost_node(i)]
    assert len(lost) == 2
    for index in lost:
        assert not session.crew.rehires(index, node_lost=True)
        session.end(index)
    session.after(SETTLE_S)
    assert sorted(session.crew.members) == [0]


def test_free_cpus_that_were_just_taken_are_not_counted_twice(world):
    world.cpus = {"head": 1.0, "a": 1.0}
    session = Session(world, "actors.count=[1,8]")
    world.free = lambda node: 1.0  # Ray has not heard yet
    session.after(SETTLE_S)
    joined = session.made
    session.after(SETTLE_S / 2)
    assert session.made == joined


def test_an_actor_waits_for_room_once_it_is_late(world):
    world.cpus = {"head": 1.0}
    session = Session(world, "actors.count=3")
    assert session.crew.unplaced == {1, 2}
    assert session.crew.waiting == frozenset(), "a process may be starting"
    session.after(SETTLE_S + 0.1)
    assert session.crew.waiting == {1, 2}
    world.cpus["a"] = 1.0
    assert session.crew.waiting == {2}


def test_an_actor_above_the_least_does_not_wait_for_room_for_ever(world):
    world.cpus = {"head": 1.0}
    session = Session(world, "actors.count=[1,2]")
    session.hire(1)
    assert session.crew.unplaced == {1}
    assert "1 of 2 actors wait for 1 free CPUs each" in session.after(UNPLACED_S - 1.0)
    assert not session.after(0.5)
    session.after(SETTLE_S)
    assert sorted(session.crew.members) == [0]


def test_the_least_waits_for_room_and_is_there_when_it_comes(world):
    world.cpus = {"head": 1.0}
    session = Session(world, "actors.count=3")
    for _ in range(5):
        session.after(UNPLACED_S)
    assert (session.made, session.crew.size) == (3, 1)
    world.cpus["a"] = 2.0
    assert session.crew.size == 3


def test_a_fixed_crew_replaces_who_went_with_a_node(world):
    world.cpus = {"head": 1.0, "a": 1.0}
    session = Session(world, "actors.count=2")
    assert session.crew.size == 2
    del world.cpus["a"]
    (lost,) = [i for i in session.crew.members if session.crew.lost_node(i)]
    assert session.crew.rehires(lost, node_lost=True)
    assert session.crew.lost_node(1 - lost) is None


def test_where_an_autoscaler_runs_all_are_asked_for_at_once(world):
    world.cpus, world.autoscaler = {"head": 1.0}, True
    session = Session(world, "actors.count=[1,4]")
    session.after(SETTLE_S)
    assert (len(session.crew.members), session.crew.size) == (4, 1)
    session.after(10 * UNPLACED_S)
    assert len(session.crew.members) == 4  # they are the wish that the autoscaler hears


@pytest.mark.parametrize("count", ["2", "[1,2]"])
def test_who_stands_on_an_ending_node_leaves_and_is_replaced_elsewhere(world, count):
    world.cpus = {"head": 1.0, "a": 1.0}
    session = Session(world, f"actors.count={count}")
    session.after(SETTLE_S)
    session.after(SETTLE_S)
    assert session.crew.size == 2
    world.ends["a"], world.cpus["b"] = time.time() + 30.0, 1.0
    (note,) = session.after(SETTLE_S)
    assert note.startswith("node a (a) ends in ")
    assert note.endswith("s: 1 actors leave")
    assert session.crew.size == 1
    assert not session.after(SETTLE_S)  # told once
    assert session.crew.size == 2
    assert sorted(world.stands.values()) == ["b", "head"]


def test_people_may_ask_for_another_number(world, tmp_path):
    world.cpus = {"head": 4.0}
    recipe = read_recipe("classic/cartpole", ["actors.count=[1,4]"])
    session = Session(world, "actors.count=[1,4]", folder=tmp_path)
    session.after(SETTLE_S)
    assert session.crew.size == 4
    ask(tmp_path, recipe, 2, 2)
    assert session.after(SETTLE_S) == ("asked for 2 to 2 actors",)
    assert sorted(session.crew.members) == [0, 1]
    ask(tmp_path, recipe, 1, 3)
    session.after(SETTLE_S)
    assert session.crew.size == 3
    assert Session(world, "actors.count=[1,4]", folder=tmp_path).crew.most == 3  # a resumed run heeds it
    assert Session(world, "actors.count=[1,5]", folder=tmp_path).crew.most == 5  # but not with another range
    with pytest.raises(RecipeError, match="5 to 5 actors for a run of 1 to 4"):
        ask(tmp_path, recipe, 5, 5)
    with pytest.raises(RecipeError, match="in_flight=1"):
        ask(tmp_path, read_recipe("classic/cartpole", ["actors.in_flight=1"]), 1, 1)
    assert json.loads((tmp_path / ASKED).read_text()) == {"least": 1, "most": 3, "of": [1, 4]}


def test_a_machine_of_our_own_carries_what_it_carries(world):
    session = Session(world, "actors.count=[1,8]", watch=False, here=3)
    session.after(SETTLE_S)
    assert (session.crew.size, session.crew.unplaced) == (3, frozenset())


def test_exploration_spreads_over_those_who_stay(world):
    world.cpus = {"head": 3.0}
    session = Session(world, "actors.count=3")
    assert session.crew.places() == {0: (0, 3), 1: (1, 3), 2: (2, 3)}
    session.crew.members[1].leaving = True
    assert session.crew.places() == {0: (0, 2), 2: (1, 2)}


# ------------------------------------------------------------------------------------ incarnations, budgets


def test_incarnations_are_never_used_again_whoever_leaves(monkeypatch):
    made = []
    monkeypatch.setattr("ray.remote", lambda cls: type("R", (), {"options": lambda **k: R, "remote": None}))
    R = type("R", (), {"remote": staticmethod(lambda *a: made.append((a[1], a[2])))})
    three = read_recipe("classic/cartpole", ["actors.count=[1,3]"])
    first = Supervisor(three, actor_cpus=1.0)
    for index in (0, 1, 2, 1):
        first.make_actor(index)
    fewer = Supervisor(read_recipe("classic/cartpole"), actor_cpus=1.0)
    fewer.go_on_from(first.state(), exact=set())
    again = Supervisor(three, actor_cpus=1.0)
    again.go_on_from(fewer.state(), exact=set())
    for index in (0, 1, 2):
        again.make_actor(index)
    assert made == [(0, 0), (1, 0), (2, 0), (1, 1), (0, 1), (1, 2), (2, 1)]


def test_nodes_have_a_budget_of_their_own():
    budget = Budget(1, 2)
    budget.death("actor 0")
    budget.node_loss("a" * 20)
    budget.node_loss("b" * 20)
    with pytest.raises(
        WorkerError, match=r"max_node_losses_per_10_min=2 is used up by the loss of node cccccccc"
    ):
        budget.node_loss("c" * 20)
    with pytest.raises(WorkerError, match="max_restarts_per_10_min=1 is used up by the death of actor 1"):
        budget.death("actor 1")


def test_a_budget_forgets_after_ten_minutes(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("seqrl_ray.runtime.supervisor.time.monotonic", lambda: now[0])
    budget = Budget(0, 1)
    budget.node_loss("a")
    now[0] = WINDOW_S + 1.0
    budget.node_loss("b")


def test_who_joined_from_outside_asks_one_lookout_per_connection(monkeypatch):
    made = []

    class Remote:
        def __init__(self, name):
            self.name = name

        def remote(self, *given):
            return (self.name, *given)

    def lookout(kind):
        assert kind is nodes.Lookout

        def start(**options):
            assert options["num_cpus"] == 0 and nodes.HEAD in options["resources"]
            assert options["max_restarts"] == options["max_task_retries"] == -1
            made.append(options)
            return SimpleNamespace(remote=lambda: SimpleNamespace(**{n: Remote(n) for n in asked}))

        return SimpleNamespace(options=start)

    asked = ("look", "place_of", "gone")
    connection = SimpleNamespace(client_worker="first")
    outside = SimpleNamespace(is_connected=lambda: True, get_context=lambda: connection)
    monkeypatch.setattr(nodes, "client", outside)
    monkeypatch.setattr(nodes, "_lookout", (None, None))
    monkeypatch.setattr(nodes, "ray", SimpleNamespace(remote=lookout, get=lambda call: call))
    actor = SimpleNamespace(_actor_id=SimpleNamespace(hex=lambda: "a1"))
    assert nodes.look() == ("look",)
    assert nodes.place_of(actor) == ("place_of", "a1")
    assert nodes.gone("n1") is True
    assert len(made) == 1
    connection.client_worker = "another"
    nodes.look()
    assert len(made) == 2


# ----------------------------------------------------------------------------------------------- the spread


def test_actors_go_to_the_shards_in_turn():
    spread = Spread(2)
    assert [spread.join(i) for i in range(5)] == [i % 2 for i in range(5)]
    assert spread.join(3) == 1  # a replacement stays


def test_shards_stay_within_one_actor_of_one_another():
    spread = Spread(3)
    for index in range(7):
        spread.join(index)
    for index in (1, 4, 0):
        spread.leave(index)
    spread.balance(0.0)
    loads = [sum(1 for s in spread.of.values() if s == shard) for shard in range(3)]
    assert max(loads) - min(loads) <= 1
    assert sum(loads) == 4


def test_with_fewer_actors_than_shards_none_is_left_out():
    spread = Spread(3)
    seen = [spread.join(0)]
    for turn in range(1, 7):
        spread.balance(1000.0 + turn * ROTATE_S - ROTATE_S / 2)
        spread.balance(1000.0 + turn * ROTATE_S)
        seen.append(spread.of[0])
    assert set(seen[:4]) == set(seen[-3:]) == {0, 1, 2}
    still = Spread(3, rotates=False)
    still.join(0)
    for turn in range(7):
        still.balance(turn * ROTATE_S)
    assert still.of == {0: 0}


def test_an_actor_that_waits_for_room_does_not_count():
    spread = Spread(2)
    spread.waits = {1, 3}
    assert [spread.join(i) for i in range(4)] == [0, 1, 1, 0], "as they come; each has one to begin with"
    spread.of = {0: 0, 1: 1, 2: 0, 3: 1}  # two shards, two actors each, and one shard gets nothing
    spread.balance(0.0)
    assert spread.standing == {0: 0, 2: 1}
    spread.waits = set()  # now they stand: three on one side
    spread.balance(0.0)
    assert sorted(spread.of.values()) == [0, 0, 1, 1]


def test_of_actors_that_all_wait_each_shard_has_as_many():
    spread = Spread(3)
    spread.waits = set(range(1, 7))
    assert [spread.join(i) for i in range(7)] == [i % 3 for i in range(7)]
    before = dict(spread.of)
    spread.balance(0.0)
    spread.waits = set()
    spread.balance(0.0)
    assert spread.of == before, "nobody is moved when they come to stand"


def test_with_fewer_standing_than_shards_none_is_left_out():
    spread = Spread(3)
    spread.waits = {1, 2}
    for index in range(3):
        spread.join(index)
    seen = set()
    for turn in range(1, 5):
        spread.balance(1000.0 + turn * ROTATE_S)
        seen.add(spread.of[0])
    assert seen == {0, 1, 2}


# --------------------------------------------------------------------------------------------- Ray's labels


@pytest.mark.parametrize(
    ("selector", "fits"),
    [
        ({}, True),
        ({"market": "spot"}, True),
        ({"market": "!spot"}, False),
        ({"market": "in(on-demand, spot)"}, True),
        ({"market": "!in(on-demand, spot)"}, False),
        ({"zone": "a"}, False),
        ({"zone": "!a"}, True),
    ],
)
def test_label_selectors_read_as_rays(selector, fits):
    node = Node("n", "10.0.0.1", 1, {"CPU": 4.0}, {"market": "spot"})
    assert matches(node.labels, selector) is fits
    assert nodes.room([node], 1.5, selector) == (2 if fits else 0)
