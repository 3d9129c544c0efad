"""The service without HTTP and without Ray: a small run served, followed, refused; whole episodes played
through it earn what the evaluation of the same seeds earns.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from seqrl_ray import api
from seqrl_ray.errors import CheckpointError, RecipeError, RunFolderError
from seqrl_ray.loops import checkpoints
from seqrl_ray.serving.app import check
from seqrl_ray.serving.guard import Guard, token_digest
from seqrl_ray.serving.service import Reply, Service
from seqrl_ray.serving.settings import ServingSettings
from seqrl_ray.serving.source import Source
from tests.unit.loops.small_cartpole import SMALL

RECURRENT = """
name = "recurrent"
[env]
kind = "gym"
id = "CartPole-v1"
[algorithm]
name = "toy_recurrent"
[actors]
envs_per_actor = 4
fragment_steps = 8
[replay]
min_items = 20
capacity_steps = 2000
samples_per_insert = 4.0
[learner]
batch_size = 8
updates_per_call = 4
[evaluation]
episodes = 3
[stop]
env_steps = 800
"""
SHORT = ("stop.env_steps=800", "evaluation.episodes=3")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "first"
    api.train("classic/cartpole", [*SMALL, *SHORT], run_dir=folder, local=True, quiet=True)
    return folder


@pytest.fixture(scope="module")
def recurrent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("recurrent")
    (root / "recurrent.toml").write_text(RECURRENT)
    api.train(root / "recurrent.toml", run_dir=root / "run", local=True, quiet=True)
    return root / "run"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the trained run, for tests that change it."""
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def serve(run: Path, digest: bytes | None = None, **keys: Any) -> Service:
    checkpoint = keys.get("checkpoint")
    return Service(ServingSettings(run=str(run), **keys), Source(str(run), checkpoint), Guard(digest))


Ask = Callable[..., Awaitable[Reply]]


def ask_of(service: Service) -> Ask:
    async def ask(path: str, content: Any = None, *, method: str | None = None, **headers: str) -> Reply:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()

        async def pieces() -> AsyncIterator[bytes]:
            for at in range(0, len(body), 1000):
                yield body[at : at + 1000]

        given = {"host": "localhost:8000", "content-type": "application/json"}
        given |= {name.replace("_", "-"): value for name, value in headers.items()}
        method = method or ("POST" if content is not None else "GET")
        reply = await service.answer(method, path, given, pieces())
        assert json.loads(reply.body) == reply.content
        if reply.status != 200:
            assert list(reply.content) == ["error"] and "\n" not in reply.content["error"]
        return reply

    return ask


def served(service: Service, talk: Callable[[Ask], Awaitable[None]]) -> None:
    async def run() -> None:
        await talk(ask_of(service))
        service.batcher.close()

    asyncio.run(run())


def test_it_says_what_it_serves(trained):
    async def talk(ask: Ask) -> None:
        for path in ("/", "/healthz", "/healthz/"):
            assert (await ask(path)).content == {"status": "ok"}
        content = (await ask("/spec")).content
        newest = checkpoints.latest(trained / "checkpoints")
        assert content["checkpoint"] == newest.name and content["env_steps"] == checkpoints.steps_of(newest)
        policy = content["policies"]["shared"]
        assert policy["obs"]["shape"] == [4] and policy["obs"]["dtype"] == "float32"
        assert policy["action"] == {"kind": "discrete", "n": 2}
        assert policy["agents"] == [{"agent": "agent", "obs_size": 4, "actions": 2}]
        assert policy["sessions"] is policy["legal"] is False
        trainer = checkpoints.load(newest, "trainer")["learner"]
        updates = trainer["policies"]["shared"]["private"]["updates"]
        assert policy["weights"] == [trainer["epoch"], updates] and updates > 0

    served(serve(trained), talk)


async def play(ask: Ask, seed: int, session: str | None) -> float:
    """Play one episode as a client does."""
    env = gymnasium.make("CartPole-v1")
    obs, _ = env.reset(seed=seed)
    earned, reward, first = 0.0, 0.0, True
    while True:
        content: dict[str, Any] = {"obs": [obs.tolist()]}
        if session is not None:
            content |= {"session": session, "is_first": first, "reward": [reward]}
        reply = await ask("/act", content)
        assert reply.status == 200, reply.content
        obs, reward, terminated, truncated, _ = env.step(reply.content["action"][0])
        earned, first = earned + float(reward), False
        if terminated or truncated:
            env.close()
            return earned


@pytest.mark.parametrize("kind", ["trained", "recurrent"])
def test_episodes_played_through_it_earn_what_the_evaluation_says(kind, request):
    """All episodes at once: their requests share calls, and their sessions must not mix."""
    run: Path = request.getfixturevalue(kind)
    name = None if kind == "trained" else "episode"
    seed = api.read_recipe(run / "recipe.toml").evaluation.seed

    async def talk(ask: Ask) -> None:
        plays = [play(ask, seed + i, name and f"{name} {i}") for i in range(3)]
        earned = await asyncio.gather(*plays)
        rows = json.loads((run / "evaluation" / "policy.json").read_text())["episodes"]
        assert earned == [row["return"] for row in rows]

    service = serve(run)
    served(service, talk)
    assert service.sessions.states == (0 if name is None else 3)


def test_it_follows_the_run_and_names_the_weights(run):
    service = serve(run)
    before = service.loaded.checkpoint

    async def talk(ask: Ask) -> None:
        old = (await ask("/act", {"obs": [[0, 0, 0, 0]]})).content["weights"]
        assert not await service.look()
        api.resume(run, ["stop.env_steps=1600"], local=True, quiet=True)
        # what had begun before the look is answered, with one version or the other
        looked, *replies = await asyncio.gather(
            service.look(), *(ask("/act", {"obs": [[0, 0, 0, 0]]}) for _ in range(20))
        )
        assert looked and service.loaded.checkpoint.name > before.name
        new = (await ask("/act", {"obs": [[0, 0, 0, 0]]})).content["weights"]
        assert new[1] > old[1]
        assert {tuple(reply.content["weights"]) for reply in replies} <= {tuple(old), tuple(new)}
        assert (await ask("/spec")).content["checkpoint"] == service.loaded.checkpoint.name
        learned = checkpoints.acting_weights(service.loaded.checkpoint)["shared"].flat
        np.testing.assert_array_equal(service.policies.algorithms["shared"].weights(), learned)

    served(service, talk)


def test_a_damaged_checkpoint_is_named_and_the_old_one_goes_on(run):
    service = serve(run)
    newest = checkpoints.latest(run / "checkpoints")

    async def talk(ask: Ask) -> None:
        bad = newest.with_name(checkpoints.new_name(newest.parent, 9999))
        shutil.copytree(newest, bad)
        path = bad / "trainer.safetensors"
        path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\1")
        assert not await service.look()
        spec = (await ask("/spec")).content
        assert "damaged" in spec["refresh_error"] and spec["checkpoint"] == newest.name
        assert (await ask("/act", {"obs": [[0, 0, 0, 0]]})).status == 200
        shutil.rmtree(bad)
        assert not await service.look()
        assert (await ask("/spec")).content["refresh_error"] is None

    served(service, talk)
    (newest / "trainer.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="damaged"):
        serve(run)


def test_a_checkpoint_that_goes_while_it_is_read_is_not_waited_for(run, monkeypatch):
    """A living run keeps few of them."""
    newest = checkpoints.latest(run / "checkpoints")
    newer = newest.with_name(checkpoints.new_name(newest.parent, 9999))
    shutil.copytree(newest, newer)
    load, seen = checkpoints.load, []

    def slow(folder: Path, part: str) -> Any:
        seen.append(folder.name)
        if folder == newer:
            shutil.rmtree(newer)
        return load(folder, part)

    monkeypatch.setattr(checkpoints, "load", slow)
    assert serve(run).loaded.checkpoint == newest
    assert seen == [newer.name, newest.name]


def test_a_named_checkpoint_is_kept_to(run):
    first = checkpoints.latest(run / "checkpoints").name
    api.resume(run, ["stop.env_steps=1600"], local=True, quiet=True)
    service = serve(run, checkpoint=first)
    assert service.loaded.checkpoint.name == first
    served(service, lambda ask: looks(service))
    assert service.loaded.checkpoint.name == first
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        serve(run, checkpoint="000099-1")


async def looks(service: Service) -> None:
    assert not await service.look()


def test_the_replay_of_a_checkpoint_is_not_read(run):
    """It may be many gigabytes: also not for its hash."""
    newest = checkpoints.latest(run / "checkpoints")
    shutil.rmtree(newest / "replay")
    assert serve(run).loaded.checkpoint == newest


def test_what_cannot_be_served_is_refused(tmp_path, trained, recurrent):
    with pytest.raises(RunFolderError, match="no run there"):
        serve(tmp_path / "nothing")
    with pytest.raises(RunFolderError, match="remote"):
        Source("s3://bucket/runs/first")
    check(4, serve(trained))
    check(1, serve(recurrent))
    with pytest.raises(RecipeError, match="Set replicas=1"):
        check(2, serve(recurrent))


def test_paths_methods_types_and_lengths(trained):
    async def talk(ask: Ask) -> None:
        assert (await ask("/action", {})).status == 404
        assert (await ask("/act")).status == 405
        assert (await ask("/spec", {})).status == 405
        assert (await ask("/act", {"obs": [[0, 0, 0, 0]]}, content_type="text/plain")).status == 415
        assert (await ask("/act", b"x" * 5000)).status == 413
        assert (await ask("/act", b"x" * 4000)).status == 400
        json_type = "application/json; charset=utf-8"
        assert (await ask("/act", {"obs": [[0, 0, 0, 0]]}, content_type=json_type)).status == 200

    served(serve(trained, max_request_bytes=4500), talk)


def test_the_token_is_asked_for_before_anything_is_read(trained):
    async def talk(ask: Ask) -> None:
        assert (await ask("/healthz", host="policy.example")).status == 200
        for path, content in (("/spec", None), ("/act", {"obs": [[0, 0, 0, 0]]}), ("/act", b"x" * 10**6)):
            reply = await ask(path, content, host="localhost")
            assert reply.status == 401 and reply.headers == {"www-authenticate": "Bearer"}
        bearer = {"authorization": "Bearer 0123456789abcdef", "host": "policy.example"}
        assert (await ask("/act", {"obs": [[0, 0, 0, 0]]}, **bearer)).status == 200

    served(serve(trained, token_digest({"SEQRL_SERVE_TOKEN": "0123456789abcdef"})), talk)
    served(serve(trained), foreign)


async def foreign(ask: Ask) -> None:
    assert (await ask("/act", {"obs": [[0, 0, 0, 0]]}, host="evil.example")).status == 403


def test_sessions_through_requests(recurrent):
    def request(**more: Any) -> dict[str, Any]:
        return {"obs": [[0.1, 0.2, 0.3, 0.4]], "session": "a", **more}

    async def talk(ask: Ask) -> None:
        assert (await ask("/act", request(reward=[1]))).status == 404
        assert (await ask("/act", request(is_first=True))).status == 200
        one = await ask("/act", request(reward=[1]))
        # two at once for one session: one is answered, the other told to wait
        both = await asyncio.gather(*(ask("/act", request(reward=[1])) for _ in range(2)))
        assert sorted(reply.status for reply in both) == [200, 409]
        assert one.status == 200
        assert (await ask("/act", request(reward=[1], end=True))).status == 200
        assert (await ask("/act", request(reward=[1]))).status == 404

    service = serve(recurrent)
    served(service, talk)
    assert len(service.sessions) == 0


def test_a_client_who_leaves_finds_its_session_as_it_was(recurrent):
    async def talk(ask: Ask) -> None:
        await ask("/act", {"obs": [[0, 0, 0, 0]], "session": "a", "is_first": True})
        session = service.sessions._held["shared", "a"]
        state = session.state.copy()
        task = asyncio.ensure_future(ask("/act", {"obs": [[1, 1, 1, 1]], "session": "a", "reward": [1]}))
        while not session.busy:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not session.busy and (session.state == state).all()
        assert (await ask("/act", {"obs": [[1, 1, 1, 1]], "session": "a", "reward": [1]})).status == 200
        assert not (session.state == state).all()

    service = serve(recurrent)
    served(service, talk)
