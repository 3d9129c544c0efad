"""A small run served through Ray Serve, asked over HTTP: needs `ray[serve]`, `make test-serve`."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seqrl_ray import api
from seqrl_ray.loops import checkpoints
from seqrl_ray.serving.app import NEEDED, build
from seqrl_ray.serving.guard import TOKEN
from seqrl_ray.serving.launch import why
from seqrl_ray.serving.source import Source
from seqrl_ray.types import ActInput, Array
from tests.system.runs import SMALL

pytestmark = [
    pytest.mark.system,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(
        any(find_spec(name) is None for name in NEEDED), reason="ray[serve] is not installed: make test-serve"
    ),
]

SECRET = "this-is-the-token-of-a-test"
MARK = "SEQRL_TEST_SERVING"
"""Every process of a service inherits it: that is how those left over are found."""
UP_S, SWAP_S = 240.0, 60.0
Answer = tuple[int, dict[str, Any]]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def ask(url: str, content: Any = None, **headers: str) -> Answer:
    """Ask over HTTP; (status, content)."""
    body = content if content is None or isinstance(content, bytes) else json.dumps(content).encode()
    given = {"Content-Type": "application/json", **{n.replace("_", "-"): v for n, v in headers.items()}}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, given), timeout=60.0) as reply:
            return reply.status, json.loads(reply.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def greedy(run: Path, obs: Array) -> list[int]:
    """What the newest checkpoint's policy does, without any of the service."""
    policies = Source(str(run)).policies()
    newest = checkpoints.latest(run / "checkpoints")
    algorithm = policies.algorithms["shared"]
    algorithm.load_weights(checkpoints.acting_weights(newest)["shared"].flat)
    rows = len(obs)
    action, _, _ = algorithm.act(
        ActInput(
            obs=obs,
            prev_action=np.zeros(rows, np.int64),
            prev_reward=np.zeros(rows, np.float32),
            is_first=np.ones(rows, np.bool_),
            legal=None,
            slot_params=algorithm.slot_params(1.0, np.zeros(rows, np.int64), 1),
            rng=np.random.default_rng(0),
        ),
        algorithm.initial_state(rows),
        "greedy",
    )
    found: list[int] = action.tolist()
    return found


def marked(mark: str) -> list[int]:
    """Processes that have inherited the mark."""
    found = []
    for place in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"{MARK}={mark}".encode() in place.read_bytes():
                found.append(int(place.parent.name))
        except OSError:  # gone, or somebody else's
            continue
    return found


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("runs") / "first"
    api.train("classic/cartpole", [*SMALL, "stop.env_steps=1600"], run_dir=folder, local=True, quiet=True)
    return folder


@pytest.fixture
def command(trained: Path) -> Iterator[tuple[str, subprocess.Popen[str], str]]:
    """(address, process, mark) of a `seqrl serve` with a token."""
    port, mark = free_port(), uuid.uuid4().hex
    line = [sys.executable, "-m", "seqrl_ray.cli", "serve", str(trained), "refresh_s=0.5"]
    environment = {**os.environ, TOKEN: SECRET, MARK: mark}
    process = subprocess.Popen(
        [*line, "--port", str(port), "--address", "local"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield f"http://127.0.0.1:{port}", process, mark
    finally:
        process.kill()
        process.wait()
        for number in marked(mark):
            os.kill(number, signal.SIGKILL)


def test_a_run_is_served_followed_and_taken_down(trained, command):
    url, process, mark = command
    began = time.monotonic()
    assert process.stdout is not None
    said = ""
    while "serving shared" not in said:
        line = process.stdout.readline()
        said += line
        assert line and time.monotonic() < began + UP_S, said
    up_s = time.monotonic() - began
    assert url in said and SECRET not in said
    bearer = {"authorization": f"Bearer {SECRET}"}

    # who may ask
    assert ask(f"{url}/healthz") == (200, {"status": "ok"})
    assert ask(f"{url}/spec")[0] == ask(f"{url}/act", {"obs": [[0, 0, 0, 0]]})[0] == 401
    assert ask(f"{url}/act", {"obs": [[0, 0, 0, 0]]}, authorization="Bearer wrong")[0] == 401

    # what it does is what the checkpoint's policy does
    rng = np.random.default_rng(0)
    obs = rng.normal(size=(200, 4)).astype(np.float32)
    expected = greedy(trained, obs)
    assert set(expected) == {0, 1}
    status, content = ask(f"{url}/act", {"obs": obs.tolist()}, **bearer)
    assert (status, content["action"]) == (200, expected)
    first = content["weights"]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda row: ask(f"{url}/act", {"obs": [row]}, **bearer), obs.tolist()))
    assert [answer["action"][0] for _, answer in answers] == expected

    # what it does not do
    for content, part in (
        ({"obs": [[1, 2, 3]]}, "[1, 4]"),
        ({"observation": 1}, "not a key"),
        (b"{", "no JSON"),
        ({"obs": [[1, 2, 3, None]]}, "numbers"),
    ):
        status, told = ask(f"{url}/act", content, **bearer)
        assert status == 400 and list(told) == ["error"] and part in told["error"], told
        assert "Traceback" not in told["error"] and "\n" not in told["error"]
    assert ask(f"{url}/nothing", **bearer)[0] == 404

    # a newer checkpoint
    api.resume(trained, ["stop.env_steps=3200"], local=True, quiet=True)
    written, expected = time.monotonic(), greedy(trained, obs)
    while (answer := ask(f"{url}/act", {"obs": obs.tolist()}, **bearer)[1])["weights"] == first:
        assert time.monotonic() < written + SWAP_S
        time.sleep(0.1)
    assert answer["action"] == expected and answer["weights"][1] > first[1]
    newest = checkpoints.latest(trained / "checkpoints").name
    assert ask(f"{url}/spec", **bearer)[1]["checkpoint"] == newest

    # its end
    ended = time.monotonic()
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60.0)[0]
    assert process.returncode == 0, said
    assert "Traceback" not in said and SECRET not in said, said
    while left := marked(mark):
        assert time.monotonic() < ended + 60.0, left
        time.sleep(0.2)
    print(f"\nup after {up_s:.1f} s, down in {time.monotonic() - ended:.1f} s")


def test_an_application_of_a_serve_config(ray_here, trained, monkeypatch):
    """As a config file names it: two replicas of a policy without memory, open to loopback."""
    from ray import serve
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    monkeypatch.delenv(TOKEN, raising=False)
    port = free_port()
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    try:
        args = {"run": str(trained), "replicas": 2, "ask_token": False}
        application = {"name": "seqrl", "import_path": "seqrl_ray.serving.app:build", "args": args}
        config = ServeDeploySchema.model_validate({"applications": [application]})
        _get_global_client().deploy_apps(config, _blocking=True)
        url = f"http://127.0.0.1:{port}"
        obs = np.random.default_rng(1).normal(size=(40, 4)).astype(np.float32)
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda row: ask(f"{url}/act", {"obs": [row]}), obs.tolist()))
        assert [answer["action"][0] for _, answer in answers] == greedy(trained, obs)
        (deployment,) = serve.status().applications["seqrl"].deployments.values()
        assert deployment.replica_states == {"RUNNING": 2}
        assert ask(f"{url}/spec", host="evil.example")[0] == 403
        serve.delete("seqrl")
        with pytest.raises(RuntimeError) as caught:  # it was told to ask for a token, and has none
            serve.run(build({**args, "replicas": 1, "ask_token": True}), name="seqrl")
        assert "has no SEQRL_SERVE_TOKEN" in (said := why("seqrl", caught.value)) and "\n" not in said
    finally:
        serve.shutdown()
