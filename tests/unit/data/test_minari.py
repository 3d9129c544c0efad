"""Minari in and out, judged by Minari's own reader and writer."""

from __future__ import annotations

import json
import sys
import warnings

import gymnasium
import minari
import numpy as np
import pytest
from data_world import group, make_dataset, make_episodes, rows_of, write
from gymnasium import spaces
from gymnasium.vector.utils import concatenate, create_empty_array
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from minari.data_collector.episode_buffer import EpisodeBuffer
from minari.dataset._storages.hdf5_storage import HDF5Storage

from seqrl_ray.data import Dataset
from seqrl_ray.data.minari_io import export_minari, import_minari
from seqrl_ray.envs.grouping import AGENT
from seqrl_ray.envs.gym import GymEnv
from seqrl_ray.envs.spaces import obs_codec
from seqrl_ray.errors import DataError, EnvError
from seqrl_ray.recipe_env import GymSettings, PolicySettings

NESTED = spaces.Dict(
    speed=spaces.Box(-1, 1, (2, 2), np.float64),
    gear=spaces.Discrete(4, start=-1),
    rest=spaces.Tuple((spaces.MultiBinary(3), spaces.MultiDiscrete([2, 3]))),
)
OBS = {
    "box": spaces.Box(-2, 2, (3,), np.float32),
    "box of int": spaces.Box(0, 9, (2,), np.int64),
    "discrete": spaces.Discrete(5, start=1),
    "tuple": spaces.Tuple((spaces.Discrete(2), spaces.Box(0, 1, (2,)))),
    "nested": NESTED,
    "small image": spaces.Box(0, 255, (4, 6), np.uint8),
    "image": spaces.Box(0, 255, (32, 33), np.uint8),
    "masked": spaces.Dict(observation=spaces.Box(-1, 1, (2,)), action_mask=spaces.MultiBinary(3)),
}
ACTIONS = {"discrete": spaces.Discrete(3, start=2), "box": spaces.Box(-2, 2, (2,), np.float64)}


@pytest.fixture(autouse=True)
def datasets(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path / "minari"


def batch(space, count, seed):
    space.seed(seed)
    return concatenate(space, [space.sample() for _ in range(count)], create_empty_array(space, count))


def buffers(obs_space, action_space, lengths, seed=0, **changes):
    rng = np.random.default_rng(seed)
    made = []
    for n, steps in enumerate(lengths):
        last = np.arange(steps) == steps - 1
        fields = {
            "observations": batch(obs_space, steps + 1, n),
            "actions": batch(action_space, steps, n),
            "rewards": rng.normal(size=steps),
            "terminations": last & (n % 2 == 0),
            "truncations": last & (n % 2 == 1),
            "seed": 50 + n if n % 2 else None,
        }
        made.append(EpisodeBuffer(**(fields | changes)))
    return made


def create(dataset_id, obs_space, action_space, episodes, **keys):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Minari asks for authors and links
        return minari.create_dataset_from_buffers(
            dataset_id,
            episodes,
            observation_space=obs_space,
            action_space=action_space,
            **({"jpeg_encoding": False} | keys),
        )


def assert_same(a, b):
    """Two batches of one space, whatever containers they stand in."""
    if isinstance(a, dict):
        assert sorted(a) == sorted(b)
        for name in a:
            assert_same(a[name], b[name])
    elif isinstance(a, tuple):
        for left, right in zip(a, b, strict=True):
            assert_same(left, right)
    else:
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-6)


def one(space, values, at):
    if isinstance(space, spaces.Dict):
        return {name: one(inner, values[name], at) for name, inner in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(one(inner, values[n], at) for n, inner in enumerate(space.spaces))
    return values[at]


@pytest.mark.parametrize("storage", ["hdf5", "arrow"])
@pytest.mark.parametrize("obs_name", OBS)
@pytest.mark.parametrize("action_name", ACTIONS)
def test_minari_in_and_out_again(tmp_path, storage, obs_name, action_name):
    obs_space, action_space = OBS[obs_name], ACTIONS[action_name]
    if obs_name == "masked" and action_name == "box":
        pytest.skip("a mask is of discrete actions")
    source = create(
        "suite/made-v3",
        obs_space,
        action_space,
        buffers(obs_space, action_space, [3, 1, 5]),
        data_format=storage,
    )
    ours = import_minari("suite/made-v3", tmp_path / "ours")
    assert Dataset.open(tmp_path / "ours", verify=True).lengths().tolist() == [3, 1, 5]
    inner = obs_space["observation"] if obs_name == "masked" else obs_space
    codec = obs_codec(inner, "test")
    for number, episode in enumerate(source.iterate_episodes()):
        stored = rows_of(ours, number)
        for t in range(len(episode) + 1):  # the final observation too
            given_ = one(obs_space, episode.observations, t)
            if obs_name == "masked":
                np.testing.assert_array_equal(stored["legal"][t], given_["action_mask"])
                given_ = given_["observation"]
            np.testing.assert_array_equal(
                stored["obs"][t], np.asarray(codec.encode(given_), codec.spec.dtype)
            )
        start = action_space.start if action_name == "discrete" else 0
        np.testing.assert_allclose(stored["action"][:-1], episode.actions - start, rtol=1e-6)
        np.testing.assert_allclose(stored["reward"][:-1], episode.rewards, rtol=1e-6)
        np.testing.assert_array_equal(stored["terminated"][:-1], episode.terminations)
        np.testing.assert_array_equal(stored["truncated"][:-1], episode.truncations)
    if storage == "hdf5":
        assert ours.episode_seed.tolist() == [-1, 51, -1]
    assert "notes" not in ours.meta or ours.meta["notes"] == []

    export_minari(ours, "suite/again-v0")
    again = minari.load_dataset("suite/again-v0")
    assert again.observation_space == obs_space and again.action_space == action_space
    for before, after in zip(source.iterate_episodes(), again.iterate_episodes(), strict=True):
        assert_same(before.observations, after.observations)
        assert_same(before.actions, after.actions)
        np.testing.assert_allclose(before.rewards, after.rewards, rtol=1e-6)
        np.testing.assert_array_equal(before.terminations, after.terminations)
        np.testing.assert_array_equal(before.truncations, after.truncations)


@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=5),
    kind=st.sampled_from(["vector", "image", "scalars"]),
    action=st.sampled_from(["discrete", "box"]),
    masked=st.booleans(),
    frame_stack=st.sampled_from([1, 2]),
)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_ours_out_and_in_again_is_the_same(tmp_path_factory, lengths, kind, action, masked, frame_stack):
    folder = tmp_path_factory.mktemp("d")
    of = group(kind, action=action, masked=masked and action == "discrete", frame_stack=frame_stack)
    meta = {"policy": "random", "recipe": "name = 'x'\n", "env": "Made-v0"}
    ours = write(folder / "ours", of, make_episodes(of, lengths), meta)
    path = export_minari(ours, "made-v0", root=folder / "root")
    assert path == folder / "root" / "made-v0"
    again = import_minari(path, folder / "again")
    assert again.group == ours.group
    assert {k: again.meta[k] for k in meta} == meta
    for name in (*ours.columns, "episode_start", "episode_rows", "episode_seed", "episode_return"):
        before, after = (d.folder / f"{name}.npy" for d in (ours, again))
        assert before.read_bytes() == after.read_bytes(), name


def test_metadata_travels(tmp_path):
    spec = gymnasium.spec("CartPole-v1")
    env = gymnasium.make(spec)
    create(
        "cart-v0",
        env.observation_space,
        env.action_space,
        buffers(env.observation_space, env.action_space, [4, 4], truncations=np.zeros(4, bool)),
        env=spec,
        algorithm_name="DQN, half trained",
        author="A. Nonymous",
        description="for a test",
    )
    ours = import_minari("cart-v0", tmp_path / "ours")
    assert ours.meta["env"] == "CartPole-v1" and ours.meta["policy"] == "DQN, half trained"
    assert ours.meta["source"] == {"kind": "minari", "id": "cart-v0", "storage": "hdf5"}
    assert ours.meta["notes"] == ["Episodes without an end flag, taken as truncated: 1."]
    assert ours.columns["truncated"][ours.episode_start[1] + 3]
    made = GymEnv(
        GymSettings(id="CartPole-v1"), {"shared": PolicySettings()}, num_envs=1, seeds=lambda env, episode: 0
    )
    assert ours.group == made.groups["shared"]  # a policy trained on the dataset acts in the environment
    assert ours.group.slots[0].agent == AGENT

    export_minari(ours, "cart/again-v1")
    again = minari.load_dataset("cart/again-v1")
    assert again.env_spec.id == "CartPole-v1"
    assert again.recover_environment().observation_space == env.observation_space
    metadata = again.storage.metadata
    assert metadata["algorithm_name"] == "DQN, half trained" and metadata["author"] == {"A. Nonymous"}
    assert again.total_steps == 8 and again.total_episodes == 2
    seeds = [m.get("seed") for m in again.storage.get_episode_metadata(range(2))]
    assert seeds == [None, 51]
    assert "cart/again-v1" in minari.list_local_datasets()


def test_jpeg_is_said(tmp_path):
    space = OBS["image"]
    create(
        "jpeg-v0", space, ACTIONS["discrete"], buffers(space, ACTIONS["discrete"], [2]), jpeg_encoding=True
    )
    ours = import_minari("jpeg-v0", tmp_path / "ours")
    assert ours.columns["obs"].dtype == np.uint8
    assert "JPEG" in ours.meta["notes"][0]


def test_many_episodes_come_in_order(tmp_path):
    space, actions = OBS["box"], ACTIONS["discrete"]
    lengths = [1 + n % 3 for n in range(150)]
    source = create("many-v0", space, actions, buffers(space, actions, lengths))
    ours = import_minari("many-v0", tmp_path / "ours")
    assert ours.lengths().tolist() == lengths
    np.testing.assert_allclose(
        ours.returns(), [e.rewards.sum() for e in source.iterate_episodes()], atol=1e-6
    )


# ------------------------------------------------------------------------------------------ what goes wrong


def truncated_file(path):
    file = path / "data" / "main_data.hdf5"
    file.write_bytes(file.read_bytes()[:900])


def edited(**changes):
    def damage(path):
        file = path / "data" / "metadata.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return damage


DAMAGE = {
    "cut short": (truncated_file, "cannot be read by Minari"),
    "no json": (lambda p: (p / "data" / "metadata.json").write_text("{"), "cannot be read by Minari"),
    "another version": (
        edited(minari_version="9.9.9"),
        "does not support the dataset generated by Minari 9.9.9",
    ),
    "an episode missing": (edited(total_episodes=5), "cannot be read by Minari"),
    "our description of another": (edited(seqrl=None), ""),
}


@pytest.mark.parametrize("name", [n for n in DAMAGE if DAMAGE[n][1]])
def test_damage_is_named_in_one_line(tmp_path, datasets, name):
    damage, message = DAMAGE[name]
    create("made-v0", OBS["box"], ACTIONS["box"], buffers(OBS["box"], ACTIONS["box"], [3, 2]))
    damage(datasets / "made-v0")
    with pytest.raises(DataError, match=message) as error:
        import_minari("made-v0", tmp_path / "ours")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "ours").exists()


def test_a_description_that_contradicts_the_data_is_refused(tmp_path, datasets):
    ours = make_dataset(tmp_path / "ours")
    path = export_minari(ours, "made-v0")
    other = export_minari(make_dataset(tmp_path / "other", of=group("scalars")), "other-v0")
    described = json.loads((other / "data" / "metadata.json").read_text())["seqrl"]
    edited(seqrl=described)(path)
    with pytest.raises(DataError, match=r"metadata\.seqrl describes other observations"):
        import_minari("made-v0", tmp_path / "again")


IMAGE_IN_DICT = spaces.Dict(camera=OBS["small image"], speed=OBS["box"])


@pytest.mark.parametrize(
    ("obs_space", "action_space", "message"),
    [
        (IMAGE_IN_DICT, ACTIONS["discrete"], "holds the image .* inside a Dict or Tuple"),
        (spaces.Text(5), ACTIONS["discrete"], "has no fixed-size array"),
        (OBS["box"], spaces.MultiDiscrete([2, 2]), "is neither Discrete nor a Box of floats"),
        (OBS["box"], spaces.Dict(a=spaces.Discrete(2)), "is neither Discrete nor a Box of floats"),
    ],
    ids=["image in a dict", "text", "multi-discrete actions", "dict of actions"],
)
def test_mixed_spaces_are_refused(tmp_path, obs_space, action_space, message):
    made = (
        buffers(obs_space, action_space, [2])
        if not isinstance(obs_space, spaces.Text)
        else buffers(OBS["box"], action_space, [2], observations=["a", "b", "c"])
    )
    create("mixed-v0", obs_space, action_space, made)
    with pytest.raises(EnvError, match=message):
        import_minari("mixed-v0", tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"observations": np.zeros((4, 2), np.float32)}, r"has shape \(4, 2\)"),
        ({"observations": np.zeros((3, 3), np.float32)}, "episode 1 has 3 observations for 3 steps, not 4"),
        ({"rewards": np.array([1.0, np.nan, 0.0])}, "reward of episode 1, step 1 is not finite"),
        ({"truncations": np.array([True, False, True])}, "episode 1, step 0 is set before the last decision"),
        ({"actions": np.array([2, 9, 2])}, "a discrete value is outside of its space"),
    ],
)
def test_an_episode_that_does_not_fit_is_refused(tmp_path, changes, message):
    good = buffers(OBS["box"], ACTIONS["discrete"], [3])
    bad = buffers(OBS["box"], ACTIONS["discrete"], [3], **changes)
    create("bad-v0", OBS["box"], ACTIONS["discrete"], good + bad)
    with pytest.raises((DataError, EnvError), match=message):
        import_minari("bad-v0", tmp_path / "ours")
    assert not (tmp_path / "ours").exists()


def test_episodes_without_a_step_are_dropped_and_said(tmp_path):
    space = OBS["box"]
    empty = EpisodeBuffer(
        observations=np.zeros((1, 3), np.float32),
        actions=np.zeros(0, int),
        rewards=np.zeros(0),
        terminations=np.zeros(0, bool),
        truncations=np.zeros(0, bool),
    )
    made = [empty, *buffers(space, ACTIONS["discrete"], [2])]
    create("empty-v0", space, ACTIONS["discrete"], made, data_format="arrow")
    ours = import_minari("empty-v0", tmp_path / "ours")
    assert ours.lengths().tolist() == [2]
    assert ours.meta["notes"] == ["Episodes without a step, dropped: 1."]


def test_a_source_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(DataError, match="source='nothing-v0' is neither a folder of a Minari dataset"):
        import_minari("nothing-v0", tmp_path / "ours")


def test_export_refuses_what_it_cannot_do(tmp_path, datasets):
    ours = make_dataset(tmp_path / "ours")
    for wrong in ("noversion", "a b-v0"):
        with pytest.raises(DataError, match="is not of the form"):
            export_minari(ours, wrong)
    export_minari(ours, "made-v0")
    with pytest.raises(DataError, match="id='made-v0' exists"):
        export_minari(ours, "made-v0")
    other = make_dataset(tmp_path / "other", meta={"env_spec": "{}"})
    with pytest.raises(DataError, match="is not a Gymnasium EnvSpec"):
        export_minari(other, "other-v0")
    described = {
        "observation_space": '{"type": "Discrete", "n": 3, "start": 0}',
        "action_space": '{"type": "Discrete", "n": 3, "start": 0}',
    }
    with pytest.raises(DataError, match="do not describe its columns"):
        export_minari(make_dataset(tmp_path / "wrong", meta=described), "other-v0")
    with pytest.raises(DataError, match="is not a space"):
        export_minari(
            make_dataset(tmp_path / "bad", meta=described | {"observation_space": "{}"}), "other-v0"
        )
    assert not (datasets / "other-v0").exists()


def test_an_export_that_fails_leaves_nothing(tmp_path, datasets, monkeypatch):
    def full(storage, episodes):
        raise OSError("no space left on device")

    ours = make_dataset(tmp_path / "ours")
    monkeypatch.setattr(HDF5Storage, "update_episodes", full)
    with pytest.raises(DataError, match=r"cannot be written \(no space left"):
        export_minari(ours, "suite/made-v0")
    assert not datasets.exists()


def test_without_minari_one_line_says_so(tmp_path, monkeypatch):
    ours = make_dataset(tmp_path / "ours")
    monkeypatch.setitem(sys.modules, "minari", None)
    for call in (lambda: import_minari("x-v0", tmp_path / "new"), lambda: export_minari(ours, "x-v0")):
        with pytest.raises(DataError, match='Run: pip install "minari'):
            call()
