"""Merging datasets: every row is somebody's, in order; what does not fit is refused in one line."""

from __future__ import annotations

import numpy as np
import pytest
from data_world import group, make_dataset

from seqrl_ray.cli import main
from seqrl_ray.data import Dataset
from seqrl_ray.data.dataset import check_flags
from seqrl_ray.data.merge import merge
from seqrl_ray.errors import DataError


@pytest.mark.parametrize(
    "of",
    [group(), group(masked=True), group("image", frame_stack=2), group(action="box")],
    ids=["vector", "masked", "stacked", "box"],
)
def test_a_merged_dataset_is_its_parts_end_to_end(tmp_path, of):
    parts = [
        make_dataset(tmp_path / name, lengths, of=of, seed=seed)
        for seed, (name, lengths) in enumerate([("a", [3, 1]), ("b", [5]), ("c", [2, 2, 4])])
    ]
    merged = merge([part.folder for part in parts], tmp_path / "new" / "all")
    assert (merged.group, merged.episodes, merged.steps) == (of, 6, 17)
    for name, column in merged.columns.items():
        np.testing.assert_array_equal(column, np.concatenate([part.columns[name] for part in parts]), name)
    for name in ("episode_rows", "episode_seed", "episode_return"):
        np.testing.assert_array_equal(
            getattr(merged, name), np.concatenate([getattr(part, name) for part in parts]), name
        )
    check_flags(Dataset.open(merged.folder, verify=True))


def test_metadata_says_who_made_what(tmp_path):
    shared = {"env": "CartPole-v1", "seed": 3}
    a = make_dataset(tmp_path / "a", [3], meta={**shared, "policy": "random"})
    b = make_dataset(tmp_path / "b", [2, 4], meta={**shared, "policy": "expert", "notes": ["x"]})
    assert merge([a.folder, b.folder], tmp_path / "ab").meta == {
        **shared,
        "merged": [
            {"source": str(a.folder), "episodes": 1, "steps": 3, "policy": "random"},
            {"source": str(b.folder), "episodes": 2, "steps": 6, "policy": "expert", "notes": ["x"]},
        ],
    }


def test_what_does_not_fit_is_refused_and_leaves_nothing(tmp_path):
    a = make_dataset(tmp_path / "a", [3])
    box = make_dataset(tmp_path / "box", [3], of=group(action="box"))
    with pytest.raises(DataError, match=r"box has .*: no policy is for both"):
        merge([a.folder, box.folder], tmp_path / "new")
    with pytest.raises(DataError, match="fewer than two datasets"):
        merge([a.folder], tmp_path / "new")
    with pytest.raises(DataError, match="has no manifest"):
        merge([a.folder, tmp_path / "nothing"], tmp_path / "new")
    assert not (tmp_path / "new").exists()
    with pytest.raises(DataError, match="exists: writing there would mix two datasets"):
        merge([a.folder, a.folder], box.folder)


def test_on_the_command_line(tmp_path, capsys):
    folders = [str(make_dataset(tmp_path / name, [3, 2]).folder) for name in "abc"]
    with pytest.raises(SystemExit) as stop:
        main(["data", "merge", *folders, str(tmp_path / "all")])
    assert not stop.value.code
    assert capsys.readouterr().out == f"{tmp_path / 'all'}: 6 episodes, 15 steps\n"
