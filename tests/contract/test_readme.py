"""What README.md shows runs as it stands there."""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
from pathlib import Path

import pytest

from seqrl_ray.check import check_recipe

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(\w+)(?: title=(\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(language: str) -> dict[str, str]:
    """Title ("" without one) -> text of the fenced blocks of a language."""
    return {title: text for found, title, text in BLOCK.findall(README) if found == language}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder with all titled blocks as files, and a district where the text says one stands."""
    for language in ("python", "toml"):
        for title, text in blocks(language).items():
            if title:
                (tmp_path / title).write_text(text, encoding="utf-8")
    spec = importlib.util.find_spec("sumo_rl")
    assert spec is not None and spec.submodule_search_locations
    nets = Path(spec.submodule_search_locations[0]) / "nets" / "single-intersection"
    shutil.copy(nets / "single-intersection.net.xml", tmp_path / "mytown.net.xml")
    shutil.copy(nets / "single-intersection.rou.xml", tmp_path / "mytown.rou.xml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


@pytest.mark.parametrize(("recipe", "steps"), [("corridor.toml", 120), ("mytown.toml", 20)])
def test_an_environment_of_ones_own_keeps_the_contract(recipe, steps, here):
    found = check_recipe(here / recipe, steps=steps)
    assert found.ok, found.lines
    assert found.lines[-1].startswith("OK")


def test_the_python_example_runs(here, capsys):
    exec(compile(blocks("python")[""], "README.md", "exec"), {"__name__": "readme"})
    assert float(capsys.readouterr().out) > 0
    assert (here / "runs" / "first" / "summary.json").is_file()


def test_the_commands_exist(capsys):
    from seqrl_ray.cli import main

    commands = set(re.findall(r"^    seqrl (\w+)", README, re.MULTILINE))
    assert {"train", "evaluate", "report", "check", "doctor"} <= commands
    for command in commands:
        with pytest.raises(SystemExit) as stopped:
            main([command, "--help"])
        assert stopped.value.code == 0
    capsys.readouterr()


def test_links_lead_somewhere():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert link.startswith("https://") or (page.parent / link).exists(), f"{page.name}: {link}"
