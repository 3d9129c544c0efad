"""Whether a run fits on a cluster: what is there, what an autoscaler may add, and labels."""

from __future__ import annotations

import time

import pytest

from seqrl_ray import api
from seqrl_ray.errors import RecipeError
from seqrl_ray.recipe_labels import matches
from seqrl_ray.runtime import launch, learner, room
from seqrl_ray.runtime.nodes import NODE_GROUP
from seqrl_ray.runtime.room import Nodes, check_room, cpus, to_come

HEAD = Nodes({"role": "learner", NODE_GROUP: "head"}, 2.0)
ACTOR = Nodes({"role": "actor", NODE_GROUP: "actors"}, 4.0)
FILE = {
    "max_workers": 5,
    "head_node_type": "head",
    "available_node_types": {
        "head": {"resources": {"CPU": 2}, "max_workers": 0, "labels": {"role": "learner"}},
        "actors": {"resources": {"CPU": 4}, "max_workers": 3, "labels": {"role": "actor"}},
        "others": {"resources": {"CPU": 1}, "max_workers": 9},
    },
}


@pytest.fixture
def cluster(monkeypatch):
    def make(*nodes: Nodes, file: dict | None = None) -> None:
        monkeypatch.setattr(room, "present", lambda: list(nodes))
        monkeypatch.setattr(room, "_cluster_file", lambda: file)

    return make


def recipe_of(*overrides: str):
    return api.read_recipe("classic/cartpole", list(overrides))


@pytest.mark.parametrize(
    ("labels", "selector", "fits"),
    [
        ({}, {}, True),
        ({"a": "1"}, {"a": "1"}, True),
        ({"a": "2"}, {"a": "1"}, False),
        ({}, {"a": "1"}, False),
        ({}, {"a": "!1"}, True),
        ({"a": "1"}, {"a": "!1"}, False),
        ({"a": "2"}, {"a": "in(1, 2)"}, True),
        ({"a": "3"}, {"a": "in(1,2)"}, False),
        ({"a": "3"}, {"a": "!in(1, 2)"}, True),
        ({"a": "1", "b": "1"}, {"a": "1", "b": "2"}, False),
    ],
)
def test_labels_match_as_rays_do(labels, selector, fits):
    """The three that matter are checked against Ray itself in tests/system/test_labels.py."""
    assert matches(labels, selector) == fits


def test_what_the_autoscaler_may_add_is_what_is_missing_of_each_type(cluster):
    cluster(HEAD, ACTOR, file=FILE)
    added = to_come()
    assert cpus(added, {"role": "actor"}) == 2 * 4.0  # one of three is there
    assert cpus(added) == 2 * 4.0 + 4 * 1.0  # and never more than max_workers of one type: 5 - 1
    cluster(HEAD, ACTOR)
    assert to_come() == []


def test_a_run_that_fits_asks_for_no_nodes(cluster, monkeypatch):
    cluster(HEAD, ACTOR)
    monkeypatch.setattr(room, "to_come", lambda: pytest.fail("the head's file is not needed"))
    assert check_room(recipe_of("actors.count=4", 'actors.label_selector={role="actor"}'), 1, 0) is False


def test_a_run_that_fits_once_nodes_have_come_may_begin(cluster):
    cluster(HEAD, file=FILE)
    assert check_room(recipe_of("actors.count=12", 'actors.label_selector={role="actor"}'), 1, 0) is True


@pytest.mark.parametrize(
    ("nodes", "file", "overrides", "message"),
    [
        (
            (HEAD, ACTOR),
            None,
            ("actors.count=9",),
            "actors.count=9 x actors.cpus=1 + 1 for the learner + 0 shards = 10 CPUs, and the cluster has 6: "
            "the run could never be placed. Lower actors.count or add nodes.",
        ),
        (
            (HEAD,),
            FILE,
            ("actors.count=90",),
            "actors.count=90 x actors.cpus=1 + 1 for the learner + 0 shards = 91 CPUs, and the cluster has 2 "
            "and may grow to 19: the run could never be placed. Lower actors.count or add nodes.",
        ),
        (
            (HEAD, ACTOR),
            None,
            ("actors.count=5", 'actors.label_selector={role="actor"}'),
            "actors.label_selector={'role': 'actor'}: 5 CPUs are needed on nodes with these labels, and the "
            "cluster has 4 there: the run could never be placed. Add nodes with these labels, or change the "
            "selector.",
        ),
        (
            (HEAD, ACTOR),
            None,
            ('learner.label_selector={role="nobody"}',),
            "learner.label_selector={'role': 'nobody'}: 1 CPUs are needed on nodes with these labels, and "
            "the cluster has 0 there: the run could never be placed. Add nodes with these labels, or change "
            "the selector.",
        ),
    ],
)
def test_a_run_that_could_never_be_placed_is_refused(cluster, nodes, file, overrides, message):
    cluster(*nodes, file=file)
    with pytest.raises(RecipeError) as error:
        check_room(recipe_of(*overrides), 1, 0)
    assert str(error.value) == message


def test_a_file_that_is_none_is_none(tmp_path):
    assert room._read(str(tmp_path / "none")) is None
    (tmp_path / "other").write_text('{"a": 1}')
    assert room._read(str(tmp_path / "other")) is None
    (tmp_path / "broken").write_text("{")
    assert room._read(str(tmp_path / "broken")) is None


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (['actors.label_selector={"a b"="1"}'], "no label and value"),
        (['actors.label_selector={a="in()"}'], "no label and value"),
        (['actors.label_selector="spot"'], "valid dictionary"),
        (['replay.label_selector={a="1"}', "replay.wiring=colocated"], "Set learner.label_selector"),
    ],
)
def test_a_selector_that_is_none_is_refused(overrides, words):
    with pytest.raises(RecipeError, match=words):
        recipe_of(*overrides)


def test_a_selector_survives_the_resolved_recipe(tmp_path):
    from seqrl_ray.recipe import write

    made = recipe_of('actors.label_selector={"ray.io/market-type"="spot"}')
    write(made, tmp_path / "recipe.toml")
    again = api.read_recipe(tmp_path / "recipe.toml")
    assert again.actors.label_selector == {"ray.io/market-type": "spot"}


@pytest.mark.parametrize(("waits", "lost"), [(True, []), (False, ["hung"])])
def test_an_actor_that_no_node_has_room_for_is_not_silent(monkeypatch, waits, lost):
    monkeypatch.setattr(learner.RemoteSource, "_arm", lambda self, index: None)
    source = learner.RemoteSource(recipe_of("actors.hang_timeout_s=5"))
    source.unplaced = frozenset({0} if waits else ())
    source.add(0, object(), replacement=False)
    source._calls = {"call": (0, time.monotonic() - 1000.0)}
    source._look_for_silence()
    assert [gone.cause for gone in source.lost] == lost
    assert len(source._calls) == (not lost)
    source._next_look = 0.0
    source.unplaced = frozenset()
    source._look_for_silence()  # its time runs from when it was last seen to have no room
    assert [gone.cause for gone in source.lost] == lost


@pytest.mark.parametrize(
    ("overrides", "given", "advice"),
    [
        (["learner.count=2"], "auto, one each, x learner.count=2", "Lower learner.count, add"),
        (["learner.num_gpus=2"], "2 x learner.count=1", "Lower learner.num_gpus or learner.count, add"),
    ],
)
def test_too_few_gpus_are_told_without_advising_what_was_given(monkeypatch, overrides, given, advice):
    monkeypatch.setattr(launch, "cluster_resources", lambda: {"CPU": 64.0, "GPU": 1.0})
    with pytest.raises(RecipeError) as refused:
        launch.place(recipe_of(*overrides), local=True)
    assert str(refused.value).startswith(f"learner.num_gpus={given} and the cluster has 1 GPUs: the learner")
    assert advice in str(refused.value)
