"""The toys that offline data are collected from: every figure they state, by another way."""

import itertools

import numpy as np
import pytest

from seqrl_ray.api import read_recipe
from seqrl_ray.envs.check import random_actions
from seqrl_ray.envs.make import make_env
from seqrl_ray.envs.seeds import EpisodeSeeds
from seqrl_ray.envs.toys import KeyToDoor, ShortestPathGraph, StitchGrid
from seqrl_ray.envs.toys.graph import GOAL, draw_graph
from seqrl_ray.envs.toys.stitch import HALF, PATH_RETURNS, PATHS, START_ROW, STEPS, behaviour_action
from seqrl_ray.errors import EnvError
from seqrl_ray.recipe_env import GymSettings, PolicySettings

P = {"p": PolicySettings()}
STARTS = ("train", "held_out", "all")


def run(env, actions, seed=0):
    """(observations, rewards, masks, last info) of one episode of given actions, or of a rule of the info."""
    obs, info = env.reset(seed=seed)
    seen, rewards, masks, over = [obs], [], [info.get("action_mask")], False
    for action in actions:
        assert not over
        obs, reward, over, _, info = env.step(action(obs, info) if callable(action) else action)
        seen.append(obs)
        rewards.append(reward)
        masks.append(info.get("action_mask"))
    return seen, rewards, masks, info


def random_ends(name, episodes, kwargs=None, limit=None, num_envs=50, seed=0):
    """Finished episodes of random legal actions, through the door."""
    table = GymSettings(id=f"seqrl_ray.envs.toys:{name}", kwargs=kwargs or {}, max_episode_steps=limit)
    env = make_env(table, P, num_envs=num_envs, seeds=EpisodeSeeds(seed))
    rng, now, ends = np.random.default_rng(seed), env.reset(), []
    while len(ends) < episodes:
        now = env.step(random_actions(env.groups, now, rng))
        ends += now.episodes
    return ends[:episodes]


def column(ends, name):
    return np.array([end.metrics[name] for end in ends])


# ------------------------------------------------------------------------------------------------------ graph


def floyd(edges):
    """Shortest path lengths to GOAL by Floyd's algorithm."""
    length = np.where(edges, 1.0, np.inf)
    np.fill_diagonal(length, 0.0)
    for via in range(len(edges)):
        length = np.minimum(length, length[:, via, None] + length[None, via])
    return length[:, GOAL]


@pytest.mark.parametrize("graph_seed", [*range(5), 20])
def test_shortest_paths_are_floyds_and_greedy_descent_earns_the_optimum(graph_seed):
    env = ShortestPathGraph(graph_seed=graph_seed)
    lengths = floyd(env.edges)
    assert [env.shortest_path_steps(node) for node in range(21)] == lengths.tolist()
    assert lengths.max() <= 10 and not env.edges[GOAL].any() and not env.edges.diagonal().any()
    returns = {}
    for seed in range(200):
        obs, _ = env.reset(seed=seed)
        start, total, over, steps = obs, 0.0, False, 0
        while not over:
            nexts = np.flatnonzero(env.edges[obs])
            obs, reward, over, _, info = env.step(int(nexts[lengths[nexts].argmin()]))
            total, steps = total + reward, steps + 1
        assert steps == lengths[start] and total == 1.0 - steps
        assert info["episode_metrics"] == {"reached_goal": 1.0, "path_ratio": 1.0, "within_1_1": 1.0}
        returns[start] = total
    assert set(returns) == set(env.start_nodes) == set(range(1, 21))
    assert env.optimum() == pytest.approx(np.mean(list(returns.values())))


def test_a_step_along_no_edge_is_a_stay_and_detours_show_in_the_metrics():
    env = ShortestPathGraph()
    obs, _ = env.reset(seed=3)
    shortest = env.shortest_path_steps(obs)
    nowhere = int(np.flatnonzero(~env.edges[obs])[-1])
    same, reward, terminated, truncated, info = env.step(nowhere)
    assert (same, reward, terminated, truncated) == (obs, -1.0, False, False)
    assert info["episode_metrics"] == {"reached_goal": 0.0, "path_ratio": 2.0 / shortest, "within_1_1": 0.0}
    over = False
    while not over:
        nexts = np.flatnonzero(env.edges[obs])
        obs, _, over, _, info = env.step(int(min(nexts, key=env.shortest_path_steps)))
    wanted = {"reached_goal": 1.0, "path_ratio": (shortest + 1) / shortest, "within_1_1": 0.0}
    assert info["episode_metrics"] == pytest.approx(wanted)


def test_held_out_starts_are_never_drawn_in_training_and_can_be_walked_to():
    envs = {starts: ShortestPathGraph(starts=starts) for starts in STARTS}
    drawn = {starts: {env.reset(seed=seed)[0] for seed in range(400)} for starts, env in envs.items()}
    assert all(drawn[starts] == set(env.start_nodes) for starts, env in envs.items())
    assert not drawn["train"] & drawn["held_out"] and drawn["train"] | drawn["held_out"] == drawn["all"]
    assert len(drawn["held_out"]) == 5 and GOAL not in drawn["all"]
    edges = envs["all"].edges
    assert all((envs[starts].edges == edges).all() for starts in STARTS)
    assert all(edges[list(drawn["train"]), node].any() for node in drawn["held_out"])


def test_the_graph_is_its_seeds_alone():
    one, two, other = ShortestPathGraph(), ShortestPathGraph(masked=True), ShortestPathGraph(graph_seed=2)
    assert np.array_equal(one.edges, two.edges) and not np.array_equal(one.edges, other.edges)


@pytest.mark.parametrize(("masked", "known"), [(False, 0.0558), (True, 0.3577)])
def test_random_walks_reach_the_goal_as_often_as_the_chain_says(masked, known):
    env = ShortestPathGraph(starts="train")
    edges = env.edges.astype(float)
    chain = edges / np.maximum(edges.sum(1, keepdims=True), 1.0) if masked else edges / 21
    chain += np.diag(1.0 - chain.sum(1))  # the goal keeps, and without a mask most actions are stays
    place = np.isin(np.arange(21), env.start_nodes) / 15.0
    wanted = (place @ np.linalg.matrix_power(chain, 10))[GOAL]
    assert wanted == pytest.approx(known, abs=5e-5)
    episodes = 4_000
    ends = random_ends("ShortestPathGraph", episodes, {"starts": "train", "masked": masked}, limit=10)
    error = 4.0 * np.sqrt(wanted * (1.0 - wanted) / episodes)
    assert abs(column(ends, "reached_goal").mean() - wanted) < error
    assert (column(ends, "path_ratio") >= 1.0).all()
    assert not (column(ends, "within_1_1") > column(ends, "reached_goal")).any()
    cut = [end for end in ends if not end.metrics["reached_goal"]]
    assert {end.steps for end in cut} == {10} and {end.metrics["return"] for end in cut} == {-10.0}


def test_the_graphs_mask_is_its_edges():
    env = ShortestPathGraph(masked=True)
    obs, info = env.reset(seed=1)
    while obs != GOAL:
        assert np.array_equal(info["action_mask"], env.edges[obs])
        nexts = np.flatnonzero(info["action_mask"])
        obs, _, over, _, info = env.step(int(min(nexts, key=env.shortest_path_steps)))
    assert over and np.flatnonzero(info["action_mask"]).tolist() == [GOAL]
    assert "action_mask" not in ShortestPathGraph().reset(seed=1)[1]


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"starts": "test"}, "starts='test' is not one of train, held_out, all"),
        ({"held_out_starts": 20}, "held_out_starts=20 is not within 1 .. 19"),
        ({"held_out_starts": 0}, "held_out_starts=0 is not within"),
        ({"p_edge": 0.001}, "p_edge=0.001 gave no graph of nodes=21"),
    ],
)
def test_a_graph_that_cannot_be_is_refused(kwargs, words):
    with pytest.raises(EnvError, match=words):
        ShortestPathGraph(**kwargs)


def test_every_drawn_graph_can_be_solved():
    for graph_seed in range(30):
        edges, held_out = draw_graph(12, 0.2, 3, graph_seed)
        assert np.isfinite(floyd(edges)).all() and len(set(held_out.tolist())) == 3


# ------------------------------------------------------------------------------------------------ key to door


def towards(target):
    """The move that nears the target cell: rows first."""

    def rule(obs, info):
        side = round(np.sqrt(len(obs) - 4))
        (row, col), (to_row, to_col) = divmod(int(obs[3:-1].argmax()), side), divmod(target, side)
        if row != to_row:
            return 0 if row > to_row else 1
        return 2 if col > to_col else 3

    return rule


def straight(key=True, door=True):
    """Actions of 20 steps: to the key or away from it, anything, to the door or away from it."""
    corner, far = towards(0), towards(15)
    return [corner if key else far] * 8 + [far] * 4 + [far if door else corner] * 8


@pytest.mark.parametrize(("key", "door"), [*itertools.product((False, True), repeat=2)])
def test_the_door_pays_whoever_has_the_key_and_only_at_the_end(key, door):
    env = KeyToDoor()
    for seed in range(40):
        seen, rewards, _, info = run(env, straight(key, door), seed)
        assert len(rewards) == 20 and not any(rewards[:-1])
        assert rewards[-1] == float(key and door)
        assert info["episode_metrics"] == {"success": key and door, "picked_key": key, "reached_door": door}
        rooms = [int(obs[:3].argmax()) for obs in seen]
        assert rooms == [0] * 8 + [1] * 4 + [2] * 9
        assert all(obs[:3].sum() == obs[3:-1].sum() == 1.0 for obs in seen)
    assert env.optimum == 1.0


def test_the_key_is_not_to_be_seen_in_the_other_rooms():
    env = KeyToDoor()
    for key in (False, True):
        seen, *_ = run(env, straight(key), seed=7)
        sights = [obs[-1] for obs in seen]
        assert not any(sights[8:])
        assert sights[0] == 1.0 and all(sights[:8]) == (not key)
    with_key, without = (run(KeyToDoor(), straight(key), seed=7)[0][8:] for key in (True, False))
    assert np.array_equal(with_key, without)  # starts are the seed's, whatever was done


def test_random_play_succeeds_as_often_as_published_and_as_worked_out():
    ends = random_ends("KeyToDoor", 20_000)
    assert {end.steps for end in ends} == {20}
    success, key, door = (column(ends, name) for name in ("success", "picked_key", "reached_door"))
    assert np.array_equal(success, column(ends, "return")) and np.array_equal(success, key * door)
    exact = KeyToDoor().random_success()
    assert exact == pytest.approx(0.0310, abs=5e-5)  # the published random policy: 3.1 %
    assert abs(success.mean() - exact) < 3.5 * np.sqrt(exact * (1 - exact) / 20_000)
    assert abs(key.mean() - np.sqrt(exact)) < 0.01 and abs(door.mean() - np.sqrt(exact)) < 0.01


def test_a_small_random_success_by_enumeration():
    # All 16 pairs of actions from each of the three starts in a room of four cells.
    env, hits = KeyToDoor(side=2, key_steps=2, distractor_steps=0, door_steps=2), 0
    for start, first, second in itertools.product((1, 2, 3), range(4), range(4)):
        one = env._moved(start, first)
        hits += one == 0 or env._moved(one, second) == 0
    assert env.random_success() == pytest.approx((hits / 48) ** 2)


@pytest.mark.parametrize("name", ["key_steps", "door_steps"])
def test_a_phase_too_short_is_refused(name):
    with pytest.raises(EnvError, match=rf"{name}=5 is below 2 \* \(side - 1\) = 6"):
        KeyToDoor(**{name: 5})


# ----------------------------------------------------------------------------------------------------- stitch


def halves():
    """Returns of all 3^6 ways through each half, and where they end."""
    env, first, second = StitchGrid(), [], []
    for actions in itertools.product(range(3), repeat=HALF):
        seen, rewards, *_ = run(env, actions)
        assert seen[-1].tolist() == [HALF, START_ROW]  # every way leads through the waist
        first.append(sum(rewards))
        _, rewards, *_ = run(env, (1,) * HALF + actions)
        assert not any(rewards[:HALF])
        second.append(sum(rewards[HALF:]))
    return first, second


def test_stitching_returns_by_exhaustive_search():
    first, second = halves()
    assert set(first) == {0.0, 1.0, 3.0} and set(second) == {0.0, 1.0, 2.0}
    assert max(first) + max(second) == StitchGrid.optimum == 5.0
    assert np.mean(first) + np.mean(second) == pytest.approx(StitchGrid.chance)
    of = {}
    for one, two in itertools.product("ab", repeat=2):
        _, rewards, _, info = run(StitchGrid(), PATHS[one][:HALF] + PATHS[two][HALF:])
        of[one + two] = sum(rewards)
        assert len(rewards) == STEPS and info["episode_metrics"] == {"stitched": one + two == "ab"}
    assert of == {"aa": 4.0, "bb": 3.0, "ab": 5.0, "ba": 2.0}
    assert {"a": of["aa"], "b": of["bb"]} == PATH_RETURNS


def test_the_two_paths_cross_once_alike_but_for_what_is_still_to_come():
    (seen_a, rewards_a, *_), (seen_b, rewards_b, *_) = (run(StitchGrid(), PATHS[path]) for path in "ab")
    alike = [t for t, (a, b) in enumerate(zip(seen_a, seen_b, strict=True)) if np.array_equal(a, b)]
    assert alike == [0, HALF] and HALF % 2 == 0
    assert PATHS["a"][HALF] != PATHS["b"][HALF]
    assert (sum(rewards_a[HALF:]), sum(rewards_b[HALF:])) == (1.0, 2.0)  # b's continuation is the better,
    assert sum(rewards_a) > sum(rewards_b)  # though a is the better path


@pytest.mark.parametrize("behaviour", ["a", "b", "both"])
def test_exactly_the_behaviours_action_is_legal_and_nothing_else_tells_which(behaviour):
    env, taken = StitchGrid(behaviour), []
    for seed in range(100):
        seen, rewards, masks, info = run(
            env, [lambda obs, info: int(info["action_mask"].argmax())] * 12, seed
        )
        assert all(mask.sum() == 1 for mask in masks) and set(info) == {"action_mask", "episode_metrics"}
        actions = tuple(int(mask.argmax()) for mask in masks[:-1])
        (path,) = (path for path in "ab" if PATHS[path] == actions)
        assert actions == tuple(behaviour_action(path, obs) for obs in seen[:-1])
        assert sum(rewards) == PATH_RETURNS[path]
        taken.append(path)
    assert set(taken) == set("ab" if behaviour == "both" else behaviour)
    if behaviour == "both":
        assert 30 < taken.count("a") < 70
    assert "action_mask" not in StitchGrid().reset(seed=0)[1]
    with pytest.raises(EnvError, match="behaviour='c' is not one of a, b, both"):
        StitchGrid("c")


def test_a_random_policy_collects_both_paths_and_no_other():
    ends = random_ends("StitchGrid", 400, {"behaviour": "both"})
    assert set(column(ends, "return")) == {3.0, 4.0} and not column(ends, "stitched").any()
    free = random_ends("StitchGrid", 4_000)
    assert abs(column(free, "return").mean() - StitchGrid.chance) < 0.1
    assert abs(column(free, "stitched").mean() - (108 / 729) ** 2) < 0.01


# -------------------------------------------------------------------------------------------------------- all


@pytest.mark.parametrize(
    ("name", "kwargs", "limit"),
    [("ShortestPathGraph", {"masked": True}, 10), ("KeyToDoor", {}, None), ("StitchGrid", {}, None)],
)
def test_the_same_seed_gives_the_same_episodes_and_another_does_not(name, kwargs, limit):
    one, same, other = (random_ends(name, 100, kwargs, limit, seed=seed) for seed in (0, 0, 1))
    assert one == same and one != other


@pytest.mark.parametrize("name", ["graph_random", "key_to_door_random", "grid_stitch_random"])
def test_what_a_network_sees_is_vectors_of_one_hots(name):
    recipe = read_recipe(f"classic/{name}")
    env = make_env(recipe.env, recipe.policies, num_envs=2, seeds=EpisodeSeeds(0))
    ((_, group),) = env.groups.items()
    sizes, ones = {"graph_random": (21, 1), "key_to_door_random": (20, 3), "grid_stitch_random": (18, 2)}[
        name
    ]
    obs = env.reset().groups["shared"].obs
    assert obs.shape == (2, sizes) and obs.dtype == np.float32 and (obs.sum(1) == ones).all()
    assert group.masked == (name != "key_to_door_random")
