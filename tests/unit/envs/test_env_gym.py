import json
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from seqrl_ray.api import read_recipe
from seqrl_ray.envs.gym import GymEnv
from seqrl_ray.envs.make import controllers, make_env, metric_names
from seqrl_ray.envs.own_metrics import TAKEN
from seqrl_ray.envs.seeds import EpisodeSeeds, FixedSeeds
from seqrl_ray.errors import EnvError, RecipeError
from seqrl_ray.loops.run_folder import RunFolder
from seqrl_ray.recipe_env import GymSettings, PolicySettings
from seqrl_ray.types_env import EpisodeEnd

HERE = Path(__file__).parent
P = {"p": PolicySettings()}


def make(name, num_envs=2, seeds=None, policies=P, **settings):
    table = GymSettings(id=name if ":" in name or "-" in name else f"env_cases:{name}", **settings)
    return make_env(table, policies, num_envs=num_envs, seeds=seeds or EpisodeSeeds(0), folder=HERE)


def act(env, *actions):
    return env.step({"p": np.array(actions)})


def test_same_step_autoreset_gives_the_final_and_the_first_observation():
    env = make("Countdown", seeds=FixedSeeds([1, 2, 3, 4], 2), kwargs={"limit": 2})
    first = env.reset().groups["p"]
    opening = first.obs.copy()
    assert first.is_first.all() and first.active.all() and not first.valid.any()
    assert not act(env, 1, 2).groups["p"].final_slots.size
    done = act(env, 3, 0)
    step = done.groups["p"]
    assert step.terminated.all() and not step.truncated.any()
    assert step.final_slots.tolist() == [0, 1]
    assert step.final_obs.tolist() == [[opening[0, 0], 2.0], [opening[1, 0], 2.0]]
    assert step.obs[:, 1].tolist() == [0.0, 0.0]  # already the next episode's first
    assert step.is_first.all() and step.valid.all() and step.episode_id.tolist() == [1, 1]
    assert [(e.env, e.seed, e.steps, e.metrics["return"]) for e in done.episodes] == [
        (0, 1, 2, 4.0),
        (1, 2, 2, 2.0),
    ]
    assert done.env_steps == 2


def test_truncation_is_kept_apart_and_the_time_limit_key_truncates():
    own = make("Countdown", kwargs={"limit": 1, "truncates": True})
    own.reset()
    step = act(own, 0, 0).groups["p"]
    assert step.truncated.all() and not step.terminated.any()
    limited = make("Countdown", kwargs={"limit": 9}, max_episode_steps=2)
    limited.reset()
    act(limited, 0, 0)
    assert act(limited, 0, 0).groups["p"].truncated.all()


def test_every_episode_has_the_seed_of_its_place():
    seeds = EpisodeSeeds(5)
    env = make("Countdown", seeds=seeds, kwargs={"limit": 1})
    env.reset()
    ends = [e for _ in range(3) for e in act(env, 0, 0).episodes]
    assert [e.seed for e in ends] == [seeds(copy, episode) for episode in range(3) for copy in range(2)]


def test_observations_survive_the_next_step():
    env = make("Countdown", kwargs={"limit": 5})
    env.reset()
    one = act(env, 0, 0).groups["p"].obs
    kept = one.copy()
    act(env, 0, 0)
    assert np.array_equal(one, kept)


def test_discrete_actions_are_shifted_and_checked():
    env = make("Countdown", kwargs={"start": 5})
    env.reset()
    act(env, 0, 3)
    assert [copy.unwrapped.received for copy in env._envs] == [[5], [8]]
    for wrong in ([0, 4], [-1, 0]):
        with pytest.raises(EnvError, match=r"are not all in \[0, 4\)"):
            act(env, *wrong)
    with pytest.raises(EnvError, match=r"have shape \(1,\), not \(2,\)"):
        act(env, 0)


def test_box_actions_are_clipped_to_their_bounds():
    space = gymnasium.spaces.Box(np.array([-1.0, 0.0]), np.array([1.0, 2.0]), dtype=np.float64)
    env = make("Countdown", kwargs={"action_space": space})
    env.reset()
    act(env, [-3.0, 3.0], [0.5, 1.5])
    assert [copy.received[0].tolist() for copy in env._envs] == [[-1.0, 2.0], [0.5, 1.5]]
    assert env._envs[0].received[0].dtype == np.float64
    assert env.groups["p"].action.low == (-1.0, 0.0)


def test_dict_observations_are_flattened_with_one_hots():
    env = make("Structured")
    assert env.reset().groups["p"].obs[0].tolist() == [0.0, 0.0, 1.0, 0.5, -0.5]  # keys sorted: a, b
    assert act(env, 0, 1).groups["p"].obs[1].tolist() == [1.0, 0.0, 0.0, 0.25, 0.0]


def test_discrete_observations_become_one_hot_and_masks_come_from_info():
    taxi = make("Taxi-v3", num_envs=1)
    group = taxi.groups["p"]
    step = taxi.reset().groups["p"]
    assert group.obs.shape == (500,) and step.obs.sum() == 1.0
    assert group.masked and 1 <= step.legal.sum() <= 6


def test_masks_follow_the_step_also_at_the_end():
    env = make("InfoMask", num_envs=1, kwargs={"limit": 3})
    assert env.reset().groups["p"].legal.tolist() == [[True, False, False, False]]
    assert act(env, 0).groups["p"].legal.tolist() == [[False, True, True, False]]
    act(env, 1)
    step = act(env, 0).groups["p"]
    assert step.final_legal.tolist() == [[False, True, True, False]]
    assert step.legal.tolist() == [[True, False, False, False]]
    lost = make("LosesMask", num_envs=1)
    lost.reset()
    with pytest.raises(EnvError, match="no 'action_mask' beside this observation"):
        act(lost, 0)


@pytest.mark.parametrize(
    ("space", "words"),
    [
        (gymnasium.spaces.MultiDiscrete([2, 3]), "neither Discrete nor a Box of floats"),
        (gymnasium.spaces.Box(0, 5, (2,), np.int64), "neither Discrete nor a Box of floats"),
    ],
)
def test_other_action_spaces_are_refused(space, words):
    with pytest.raises(EnvError, match=words):
        make("Countdown", kwargs={"action_space": space})


@pytest.mark.parametrize(
    ("space", "words"),
    [
        (gymnasium.spaces.Text(5), "has no fixed-size array"),
        (gymnasium.spaces.Dict({"i": gymnasium.spaces.Box(0, 255, (8, 8, 3), np.uint8)}), "the image"),
        (
            gymnasium.spaces.Tuple([gymnasium.spaces.Graph(gymnasium.spaces.Discrete(2), None)]),
            "has no fixed-size array",
        ),
    ],
)
def test_other_observation_spaces_are_refused(space, words):
    with pytest.raises(EnvError, match=words):
        make("Countdown", kwargs={"observation_space": space})


def test_image_rule():
    spaces = gymnasium.spaces
    cases = [
        (spaces.Box(0, 255, (8, 8), np.uint8), (8, 8), "uint8"),
        (spaces.Box(0, 1, (8, 8), np.float32), (64,), "float32"),
        (spaces.Box(0, 1, (3, 8, 8), np.float64), (3, 8, 8), "float32"),
        (spaces.Box(0, 1, (8, 8, 3), np.bool_), (8, 8, 3), "uint8"),
        (spaces.Box(0, 1, (), np.float32), (1,), "float32"),
    ]
    for space, shape, dtype in cases:
        obs = make("Countdown", kwargs={"observation_space": space}).groups["p"].obs
        assert (obs.shape, obs.dtype) == (shape, dtype), space


@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("CartPole-v7", {}, 'Did you mean "CartPole-v1"?'),
        ("Cartpole-v1", {}, 'Did you mean "CartPole-v1"?'),
        ("CartPole-v1", {"kwargs": {"gravity": 1}}, "env.kwargs={'gravity': 1} cannot be made"),
        ("no_such_module:Env", {}, "module 'no_such_module' does not import"),
        ("env_cases:Countdwn", {}, 'Did you mean "Countdown"?'),
        ("env_cases:np.pi", {}, "names a float, not a callable"),
        ("env_cases:np.zeros", {"kwargs": {"shape": 1}}, "returned a ndarray, not a gymnasium.Env"),
        ("env_cases:Countdown", {"kwargs": {"limits": 1}}, "unexpected keyword argument 'limits'"),
    ],
)
def test_what_cannot_be_made_is_refused_in_one_line(name, settings, words):
    with pytest.raises(EnvError) as error:
        make(name, **settings)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_an_environment_may_stand_beside_its_recipe(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "beside_recipe.py").write_text(
        "import gymnasium\ndef cart(**kw):\n    return gymnasium.make('CartPole-v1', **kw)\n"
    )
    settings = GymSettings(id="beside_recipe:cart")
    with pytest.raises(EnvError, match="does not import"):
        GymEnv(settings, P, num_envs=1, seeds=EpisodeSeeds(0))
    env = make_env(settings, P, num_envs=1, seeds=EpisodeSeeds(0), folder=tmp_path)
    assert env.groups["p"].obs.shape == (4,)


def test_policies_must_fit_the_one_agent():
    with pytest.raises(RecipeError, match=r"policies\.q\.agents"):
        make("Countdown", policies={"p": PolicySettings(), "q": PolicySettings(agents=("other",))})


def test_controllers_are_named():
    settings = GymSettings(id="CartPole-v1")
    assert controllers(settings) == ("random",)
    with pytest.raises(EnvError, match="controller='fixed' is not offered by a gym environment"):
        make_env(settings, P, num_envs=1, seeds=EpisodeSeeds(0), controller="fixed")
    with pytest.raises(EnvError, match="num_envs=0 is below 1"):
        make_env(settings, P, num_envs=0, seeds=EpisodeSeeds(0))


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1"])
def test_restored_episodes_go_on_exactly(name):
    def play(env, step, actions):
        for action in actions:
            step = env.step({"p": action})
        return step.groups["p"], step.episodes

    rng = np.random.default_rng(0)
    one, two = make(name, num_envs=3), make(name, num_envs=3)
    draw = (
        rng.integers(0, 2, (60, 3))
        if name == "CartPole-v1"
        else rng.uniform(-2, 2, (60, 3, 1)).astype(np.float32)
    )
    one_now, _ = play(one, one.reset(), draw[:33])
    restored = two.restore(one.open_episodes()).groups["p"]
    for field in ("obs", "is_first", "episode_id", "active"):
        assert np.array_equal(getattr(one_now, field), getattr(restored, field)), field
    assert not restored.valid.any()
    (a, a_ends), (b, b_ends) = play(one, None, draw[33:]), play(two, None, draw[33:])
    assert np.array_equal(a.obs, b.obs) and np.array_equal(a.reward, b.reward)
    assert np.array_equal(a.episode_id, b.episode_id) and a_ends == b_ends


def test_restoring_what_is_not_deterministic_is_refused_and_ids_go_on():
    one, two = make("Forgetful"), make("Forgetful")
    one.reset()
    for _ in range(4):
        act(one, 0, 0)
    saved = one.open_episodes()
    with pytest.raises(EnvError, match=r"led elsewhere \(its observation is another\)"):
        two.restore(saved)
    assert two.reset().groups["p"].episode_id.tolist() == [2, 2]
    with pytest.raises(EnvError, match="do not fit 2 copies"):
        two.restore(saved[:1])
    short = make("Countdown", kwargs={"limit": 1})
    long = make("Countdown", kwargs={"limit": 5})
    long.reset()
    act(long, 0, 0)
    with pytest.raises(EnvError, match="it ended after 1 steps"):
        short.restore(long.open_episodes())


def test_an_unrestorable_recipe_keeps_no_episodes():
    env = make("Countdown", restorable=False)
    env.reset()
    act(env, 0, 0)
    assert env.open_episodes() is None


def test_closing_twice_is_fine():
    env = make("CartPole-v1")
    env.close()
    env.close()


def test_a_class_without_spaces_is_told_what_it_lacks():
    with pytest.raises(EnvError, match="NoSpaces without observation_space, action_space"):
        make("NoSpaces")


def test_an_environments_own_metrics_are_those_of_the_last_step():
    for settings in ({"kwargs": {"limit": 3}}, {"kwargs": {"limit": 9}, "max_episode_steps": 3}):
        env = make("Scored", num_envs=1, **settings)
        env.reset()
        ends = [end for _ in range(3) for end in act(env, 1).episodes]
        assert [dict(end.metrics) for end in ends] == [{"return": 3.0, "clock": 3.0, "early": 0.0}]
        assert {type(value) for value in ends[0].metrics.values()} == {float}
    assert metric_names(GymSettings(id="env_cases:Scored"), P, HERE) == ("return", "clock")
    assert metric_names(GymSettings(id="env_cases:Countdown"), P, HERE) == ("return",)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"other": 1.0}, "is without 'clock', which its class promises"),
        ({"clock": 1, "return": 2}, "has 'return', which means something else"),
        ({"clock": 1, "seed": 2}, "has 'seed', which means something else"),
        ({"clock": "late"}, "has 'clock', which is no number"),
    ],
)
def test_wrong_metrics_of_an_environment_are_refused(given, words):
    env = make("Scored", num_envs=1, kwargs={"limit": 1, "given": given})
    env.reset()
    with pytest.raises(EnvError, match=words):
        act(env, 0)


def test_names_of_metrics_that_are_taken_are_those_of_a_row_of_an_episode(tmp_path):
    folder = RunFolder(tmp_path / "run", read_recipe("classic/cartpole"), resumed=False)
    folder.episodes([EpisodeEnd(0, 1, 2, {"return": 3.0})], actor="0", env_steps=4)
    folder.close()
    (row,) = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert set(json.loads(row)) == TAKEN
