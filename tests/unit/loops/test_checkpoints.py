"""Checkpoints: what goes in comes out, and only a whole one exists."""

from __future__ import annotations

import json

import numpy as np
import pytest

from seqrl_ray.errors import CheckpointError
from seqrl_ray.loops import checkpoints

TREE = {
    "flat": np.arange(5, dtype=np.float32),
    "scalar": np.array(7, np.int64),
    "empty": np.zeros((0, 3), np.uint8),
    "nested": {"list": [1, 2.5, None, True, "text"], "tuple": (np.array([1, 2]), "x"), "big": 2**120},
}


def assert_same(a, b):
    if isinstance(a, np.ndarray):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        np.testing.assert_array_equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for name in a:
            assert_same(a[name], b[name])
    elif isinstance(a, list | tuple):
        assert type(a) is type(b)
        for one, other in zip(a, b, strict=True):
            assert_same(one, other)
    else:
        assert a == b


def test_trees_come_back_with_types_shapes_and_dtypes(tmp_path):
    folder = checkpoints.save(tmp_path, "000000000010", {"part": TREE}, keep=2)
    checkpoints.verify(folder)
    assert_same(TREE, checkpoints.load(folder, "part"))


def test_only_the_newest_are_kept_and_the_newest_is_found(tmp_path):
    for step in (1, 2, 3):
        checkpoints.save(tmp_path, f"{step:012d}", {"part": {"step": step}}, keep=2)
    assert [p.name for p in checkpoints.complete(tmp_path)] == ["000000000002", "000000000003"]
    assert checkpoints.load(checkpoints.latest(tmp_path), "part") == {"step": 3}


def test_a_kill_while_writing_leaves_the_last_good_one(tmp_path):
    good = checkpoints.save(tmp_path, "000000000001", {"part": TREE}, keep=2)
    half = tmp_path / "000000000002"
    half.mkdir()
    (half / "part.json").write_text('{"cut":')
    (half / "manifest.json.partial").write_text("{")
    assert checkpoints.latest(tmp_path) == good


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "manifest"])
def test_damage_is_found_before_anything_is_loaded(tmp_path, damage):
    folder = checkpoints.save(tmp_path, "000000000001", {"part": TREE}, keep=1)
    file = folder / "part.safetensors"
    data = bytearray(file.read_bytes())
    if damage == "truncate":
        file.write_bytes(data[:-3])
    elif damage == "flip":
        data[-1] ^= 1
        file.write_bytes(data)
    elif damage == "remove":
        file.unlink()
    else:
        (folder / "manifest.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"damaged|cannot be read"):
        checkpoints.verify(folder)


def test_another_format_is_refused(tmp_path):
    folder = checkpoints.save(tmp_path, "000000000001", {"part": {}}, keep=1)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))
    with pytest.raises(CheckpointError, match="has checkpoint format 99, this version reads 1"):
        checkpoints.verify(folder)


def test_an_empty_folder_has_nothing_to_go_on_from(tmp_path):
    with pytest.raises(CheckpointError, match="holds no complete checkpoint"):
        checkpoints.latest(tmp_path)


def test_what_is_no_plain_value_is_refused(tmp_path):
    with pytest.raises(TypeError, match="has no place in a checkpoint"):
        checkpoints.save(tmp_path, "000000000001", {"part": {"x": object()}}, keep=1)


def test_one_part_can_be_checked_alone(tmp_path):
    folder = checkpoints.save(tmp_path, "000001-10", {"trainer": TREE, "replay": TREE}, keep=1)
    (folder / "replay.json").write_text("{}")
    checkpoints.verify(folder, "trainer")
    with pytest.raises(CheckpointError, match=r"replay\.json"):
        checkpoints.verify(folder)
    (folder / "trainer.safetensors").unlink()
    with pytest.raises(CheckpointError, match="missing"):
        checkpoints.verify(folder, "trainer")


def test_acting_weights_carry_their_version(tmp_path):
    """Of our learners, and of RLlib's, whose updates are the run's counter."""
    flat = np.arange(3, dtype=np.float32)
    ours = {"epoch": 2, "policies": {"a": {"acting": flat, "private": {"updates": 7}}}}
    rllibs = {"policies": {"a": {"acting": flat}}}
    for i, (learner, version) in enumerate(((ours, (2, 7)), (rllibs, (0, 5)))):
        tree = {"trainer": {"counters": {"updates": 5}, "learner": learner}}
        found = checkpoints.acting_weights(checkpoints.save(tmp_path, f"{i}-0", tree, keep=2))["a"]
        assert found.version == version
        np.testing.assert_array_equal(found.flat, flat)
