"""`seqrl serve` before anything is started: what it refuses, in one line and with exit code 2."""

from __future__ import annotations

import ast
import re
import socket
from pathlib import Path

import pytest

from seqrl_ray import cli
from seqrl_ray.errors import RecipeError
from seqrl_ray.serving import app, launch
from seqrl_ray.serving.guard import TOKEN

ROOM = Path(app.__file__).parent
WITH_RAY = {"app.py", "launch.py"}


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of Ray is started, whatever is installed; no token is set."""

    def never(address: str | None) -> None:
        raise AssertionError("Ray would have been started")

    monkeypatch.setattr(launch, "connected", never)
    monkeypatch.setattr(launch, "require_serve", lambda: None)
    monkeypatch.delenv(TOKEN, raising=False)


def refusal(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    with pytest.raises(SystemExit) as caught:
        cli.main(["serve", *args])
    told = capsys.readouterr().err
    assert caught.value.code == 2 and told.count("\n") == 1, told
    return told


def test_the_missing_extra_is_named(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(app, "find_spec", lambda name: None if name == "uvicorn" else object())
    monkeypatch.setattr(launch, "require_serve", app.require_serve)
    assert "uvicorn missing" in (told := refusal(capsys, str(tmp_path)))
    assert "'seqrl-ray[serve]'" in told


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "policy.example"])
def test_beyond_this_machine_needs_a_token(host, capsys, monkeypatch, tmp_path):
    assert TOKEN in refusal(capsys, str(tmp_path), "--host", host)
    monkeypatch.setenv(TOKEN, "short")
    assert "guessed" in refusal(capsys, str(tmp_path), "--host", host)
    monkeypatch.setenv(TOKEN, "0123456789abcdef")
    assert "not a run folder" in refusal(capsys, str(tmp_path), "--host", host)  # it got that far


def test_runs_keys_and_ports(capsys, monkeypatch, tmp_path):
    assert "not a folder" in refusal(capsys, str(tmp_path / "no"))
    assert "remote" in refusal(capsys, "s3://bucket/runs/first")
    assert 'Did you mean "refresh_s"' in refusal(capsys, str(tmp_path), "refresh=3")
    assert "refresh_s=-1" in refusal(capsys, str(tmp_path), "refresh_s=-1")
    assert "SEQRL_SERVE_TOKEN" in refusal(capsys, str(tmp_path), "ask_token=true")
    assert "--port" in refusal(capsys, str(tmp_path), "--port", "70000")
    taken = socket.create_server(("127.0.0.1", 0))
    port = taken.getsockname()[1]
    with taken, pytest.raises(RecipeError, match="cannot be listened on: Address already in use"):
        launch._free("127.0.0.1", port)
    launch._free("127.0.0.1", port)


def test_the_core_imports_no_ray():
    """It is tested without one, and runs behind any other HTTP server."""
    for path in ROOM.glob("*.py"):
        tree = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        named = {n.module or "" for n in tree if isinstance(n, ast.ImportFrom)}
        ray = any(re.match(r"ray(\.|$)|seqrl_ray\.runtime", name) for name in named)
        assert ray == (path.name in WITH_RAY), path.name


def test_what_a_replica_says_is_told_in_one_line():
    text = (
        "Deploying failed:\nTraceback (most recent call last):\n  File x\nseqrl_ray.errors.EnvError: no run"
    )
    assert launch.reason(text) == "no run"
    assert launch.reason("a\nb") == "b"
    assert launch.reason("") == "no reason is given"
