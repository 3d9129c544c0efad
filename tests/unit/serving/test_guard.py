"""Who may ask: the token, where it may stand, and what keeps web pages away where there is none."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from seqrl_ray.errors import RecipeError
from seqrl_ray.serving.guard import TOKEN, TOKEN_PATH, Guard, is_loopback, token_digest
from seqrl_ray.serving.refusals import FORBIDDEN, UNAUTHORIZED, Refused

SECRET = "correct-horse-battery"


def status(guard: Guard, **headers: str) -> int:
    try:
        guard.check({name.replace("_", "-"): value for name, value in headers.items()})
    except Refused as refused:
        assert SECRET not in str(refused)
        return refused.status
    return 200


def test_the_token_alone_lets_in():
    guard = Guard(token_digest({TOKEN: SECRET}))
    assert status(guard, authorization=f"Bearer {SECRET}") == 200
    assert status(guard, authorization=f"bearer {SECRET}", host="policy.example:8000") == 200
    for wrong in (
        "",
        "Bearer",
        "Bearer ",
        f"Basic {SECRET}",
        SECRET,
        f"Bearer {SECRET}x",
        f"Bearer {SECRET[:-1]}",
    ):
        assert status(guard, authorization=wrong, host="localhost") == UNAUTHORIZED
    assert status(guard, host="localhost") == UNAUTHORIZED
    assert status(guard, authorization="Bearer \udcff\udc00") == UNAUTHORIZED


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "127.0.0.1:8000", "127.8.8.8", "[::1]:8000"])
def test_without_a_token_this_machine_is_let_in(host):
    assert status(Guard(None), host=host) == 200


@pytest.mark.parametrize(
    "host",
    [
        "",
        "evil.example",
        "localhost.evil.example",
        "10.0.0.1:8000",
        "[::1",
        "[::2]:8000",
        "127.0.0.1.evil.example",
    ],
)
def test_without_a_token_nobody_else_is(host):
    assert status(Guard(None), host=host) == FORBIDDEN
    assert status(Guard(None)) == FORBIDDEN


def test_loopback_is_known_without_asking_dns():
    assert [is_loopback(h) for h in ("127.0.0.1", "::1", "LOCALHOST", "0.0.0.0", "::", "10.0.0.1", "me")] == [
        True,
        True,
        True,
        False,
        False,
        False,
        False,
    ]


def test_the_token_comes_from_the_environment_or_a_closed_file(tmp_path: Path):
    digest = hashlib.sha256(SECRET.encode()).digest()
    assert token_digest({}) is None
    assert token_digest({TOKEN: SECRET}) == digest
    path = tmp_path / "token"
    path.write_text(f"{SECRET}\n")
    path.chmod(0o600)
    assert token_digest({TOKEN_PATH: str(path)}) == digest
    path.chmod(0o644)
    with pytest.raises(RecipeError, match="chmod 600"):
        token_digest({TOKEN_PATH: str(path)})


@pytest.mark.parametrize(
    "environment",
    [
        {TOKEN: "short"},
        {TOKEN: "spaces are in this one here"},
        {TOKEN: "ümläute-überall-und-lang"},
        {TOKEN_PATH: os.devnull + "/nothing"},
        {TOKEN: SECRET, TOKEN_PATH: "somewhere"},
    ],
)
def test_what_is_no_token_is_refused(environment):
    with pytest.raises(RecipeError) as caught:
        token_digest(environment)
    assert SECRET not in str(caught.value) and "\n" not in str(caught.value)
