"""`seqrl data`: what is printed, and one line and exit code 2 for bad input."""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path

import minari
import numpy as np
import pytest
from data_world import group, make_dataset, make_episodes
from pyarrow import parquet

from seqrl_ray.cli import main
from seqrl_ray.data import Dataset
from seqrl_ray.data.info import describe, lines
from seqrl_ray.data.manifest import EPISODE_FILES, column_specs
from seqrl_ray.recipe_replay import ReplaySettings
from seqrl_ray.replay import ReplayShard
from seqrl_ray.types import SampleSpec


def seqrl(capsys, *args):
    with pytest.raises(SystemExit) as stop:
        main([str(arg) for arg in args])
    out, err = capsys.readouterr()
    return stop.value.code or 0, out, err


@pytest.fixture
def ours(tmp_path):
    return make_dataset(
        tmp_path / "ours", [3, 1, 7, 4], meta={"policy": "random", "recipe": "name = 'x'\n[env]\n"}
    )


def test_info_says_what_is_there(ours, capsys):
    code, out, _ = seqrl(capsys, "data", "info", ours.folder)
    assert code == 0
    for expected in (
        f"{ours.folder}: 4 episodes, 15 steps, ",
        "length   min 1, mean 3.8, max 7 steps",
        "obs      float32 4 in [-inf, inf]",
        "action   discrete, 3",
        "episodes by return",
        "obs          float32  19 x 4",
        "policy: random",
        "recipe:\n  name = 'x'\n  [env]\n",
    ):
        assert expected in out, expected


def test_info_as_json(ours, capsys):
    code, out, _ = seqrl(capsys, "data", "info", ours.folder, "--json", "--verify")
    found = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert code == 0 and found == describe(ours)
    returns = ours.returns()
    assert found["return"] == {
        "min": returns.min(),
        "mean": returns.mean(),
        "max": returns.max(),
        "median": np.median(returns),
    }
    assert found["episode_steps"] == {"min": 1, "mean": 3.75, "max": 7}
    assert sum(found["return_histogram"]["episodes"]) == 4
    assert found["ends"]["terminated"] == ours.columns["terminated"].sum()
    assert found["ends"]["truncated"] == ours.columns["truncated"].sum()
    assert found["seeds_known"] == 2
    assert found["bytes"] == sum(column.nbytes for column in ours.columns.values())


def test_equal_returns_are_one_bar(tmp_path):
    dataset = make_dataset(tmp_path / "one", [5])
    histogram = [line for line in lines(describe(dataset)) if "#" in line]
    assert len(histogram) == 1 and histogram[0].endswith(" 1 " + "#" * 40)


def test_through_every_format(ours, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "root"))
    assert seqrl(capsys, "data", "export", ours.folder, "made-v0")[0] == 0
    assert minari.load_dataset("made-v0").total_steps == 15
    code, out, _ = seqrl(
        capsys, "data", "export", ours.folder, tmp_path / "there", "--id", "suite/b-v1", "--format", "minari"
    )
    assert (code, out) == (0, f"{tmp_path / 'there' / 'suite' / 'b-v1'}: 4 episodes, 15 steps\n")
    assert seqrl(capsys, "data", "export", ours.folder, tmp_path / "t.parquet")[0] == 0
    assert parquet.read_table(tmp_path / "t.parquet").num_rows == 15
    assert seqrl(capsys, "data", "export", ours.folder, tmp_path / "t", "--format", "arrow")[0] == 0

    code, out, _ = seqrl(capsys, "data", "import", "made-v0", tmp_path / "again")
    assert (code, out) == (0, f"{tmp_path / 'again'}: 4 episodes, 15 steps\n")
    np.testing.assert_array_equal(Dataset.open(tmp_path / "again").columns["obs"], ours.columns["obs"])

    episode = make_episodes(ours.group, [6])[0].columns
    arrays = {"observations": episode["obs"], "actions": episode["action"] % 2, "rewards": episode["reward"]}
    arrays |= {"terminals": np.zeros(6, bool), "timeouts": np.arange(6) == 5}
    np.savez(tmp_path / "a.npz", **arrays)
    code, out, _ = seqrl(
        capsys, "data", "import", tmp_path / "a.npz", tmp_path / "npz", "--env", "CartPole-v1"
    )
    assert (code, out.splitlines()) == (
        0,
        [
            f"{tmp_path / 'npz'}: 1 episodes, 5 steps",
            "note: Truncated episodes without next_observations, whose last decision was dropped and gives "
            "the final observation: 1.",
        ],
    )


BAD = {
    "no dataset": (["info", "{}/nothing"], "has no manifest.json: it is no dataset"),
    "a folder that exists": (
        ["import", "{}/a.npz", "{}/ours"],
        "exists: writing there would mix two datasets",
    ),
    "no source": (["import", "{}/missing.hdf5", "{}/new"], "cannot be read"),
    "no Minari dataset": (["import", "nothing-v0", "{}/new"], "is neither a folder of a Minari dataset nor"),
    "an env for Minari": (["import", "x-v0", "{}/new", "--env", "CartPole-v1"], "Leave --env out"),
    "an id for a table": (["export", "{}/ours", "{}/t.parquet", "--id", "x-v0"], "Leave --id out"),
    "a NaN, far below": (
        ["import", "{}/nan.npz", "{}/new/folders/below"],
        "reward of episode 0, step 0 is not finite",
    ),
    "a malformed id": (["export", "{}/ours", "x"], "is not of the form (namespace/)name-v0"),
    "an unknown format": (["export", "{}/ours", "x", "--format", "csv"], "Try: seqrl --help"),
    "an unknown command": (["collekt"], "Try: seqrl --help"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(ours, tmp_path, capsys, monkeypatch, name):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "root"))
    flags = {"terminals": np.ones(2, bool), "timeouts": np.zeros(2, bool)}
    np.savez(
        tmp_path / "a.npz", observations=np.zeros((2, 3)), actions=np.arange(2), rewards=np.ones(2), **flags
    )
    np.savez(
        tmp_path / "nan.npz",
        observations=np.zeros((2, 3)),
        actions=np.arange(2),
        rewards=[np.nan] * 2,
        **flags,
    )
    args, message = BAD[name]
    before = sorted(tmp_path.rglob("*"))
    code, out, err = seqrl(capsys, "data", *(arg.replace("{}", str(tmp_path)) for arg in args))
    assert code == 2 and not out
    assert sorted(tmp_path.rglob("*")) == before, "something was created"
    assert err.startswith("seqrl: ") and err.count("\n") == 1 and message in err


PAGE = (Path(__file__).parents[3] / "docs" / "data.md").read_text(encoding="utf-8")


def test_the_page_s_python_runs(tmp_path, monkeypatch):
    dataset = make_dataset(tmp_path / "runs" / "data" / "hopper", [5] * 30)
    monkeypatch.chdir(tmp_path)
    block = re.search(r"(?:^    .*\n|^\n)+", PAGE[PAGE.index("    from seqrl_ray.data") :], re.M).group()
    settings = ReplaySettings(capacity_steps=1_000, min_items=1)
    names = {"shard": ReplayShard(dataset.group, SampleSpec("windows", returns=True), settings, 0)}
    exec(textwrap.dedent(block), names)
    assert names["shard"].items == 15 and names["mean"].shape == (4,)


def test_the_page_s_commands_and_keys_exist(capsys):
    commands = re.findall(r"^    seqrl (data \w+) [A-Z].*?((?: \[.*\])*)$", PAGE, re.M)  # not the examples
    named = [command.removeprefix("data ") for command, _ in commands]
    assert named == ["collect", "replay", "merge", "import", "info", "export"]
    for command, options in commands:
        code, out, _ = seqrl(capsys, *command.split(), "--help")
        assert code == 0 and all(option in out for option in re.findall(r"--\w+", options))
    for name in (*column_specs(group(masked=True)), *EPISODE_FILES):
        assert f"`{name}.npy`" in PAGE
