"""Who may ask: a token, compared in constant time, or this machine alone.

The token stands in an environment variable or in a file, never in a setting, a command line or a Serve
config: those are shown by `ps` and by Ray's dashboard. What travels to the replicas of `seqrl serve` is its
SHA-256.

Without a token a service listens on loopback, and any web page in a browser of this machine could still speak
to it. So a request must name this machine as its host (a page of another name is told apart, also where DNS
says that name is 127.0.0.1), and a body must be declared as JSON, which a foreign page may not send unasked.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from seqrl_ray.errors import RecipeError
from seqrl_ray.serving.refusals import FORBIDDEN, UNAUTHORIZED, Refused

TOKEN = "SEQRL_SERVE_TOKEN"
TOKEN_PATH = "SEQRL_SERVE_TOKEN_PATH"
LEAST_CHARACTERS = 16
_SCHEME = "bearer "


def token_digest(environment: Mapping[str, str] = os.environ) -> bytes | None:
    """Return the SHA-256 of the token that this environment names, None if it names none.

    Raises: RecipeError: it is too short, not plain, in a file that others can read, or in none.
    """
    token, path = environment.get(TOKEN, ""), environment.get(TOKEN_PATH, "")
    if token and path:
        raise RecipeError(f"{TOKEN} and {TOKEN_PATH} are both set: they may differ. Unset one of them.")
    source = TOKEN
    if path:
        source = f"{TOKEN_PATH}={path}"
        token = _read(Path(path), source)
    elif not token:
        return None
    if len(token) < LEAST_CHARACTERS or not token.isascii() or not token.isprintable() or " " in token:
        raise RecipeError(
            f"{source} holds no token of at least {LEAST_CHARACTERS} printable ASCII characters without "
            "spaces: it could be guessed, or not sent. Make one: openssl rand -hex 32."
        )
    return hashlib.sha256(token.encode()).digest()


def _read(path: Path, source: str) -> str:
    try:
        mode = path.stat().st_mode
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{source} cannot be read: {error}. Name a file with the token in it.") from None
    if mode & stat.S_IROTH:
        raise RecipeError(f"{source} can be read by every user here: it is no secret. chmod 600 {path}")
    return text.strip()


def is_loopback(host: str) -> bool:
    """Whether a name or address is this machine's own loopback, without asking DNS."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Guard:
    """Lets a request through or refuses it."""

    def __init__(self, digest: bytes | None) -> None:
        """Begin.

        Args:
            digest: SHA-256 of the token; None: there is none, and only this machine is let in.
        """
        self._digest = digest

    def check(self, headers: Mapping[str, str]) -> None:
        """Look at a request.

        Args:
            headers: lower-case name -> value.
        Raises: Refused: it may not ask.
        """
        if self._digest is None:
            host = _hostname(headers.get("host", ""))
            if not is_loopback(host):
                raise Refused(
                    f"host={host[:80]!r} is not this machine, and no token is set: a web page of that name "
                    f"may be asking. Use localhost, or set {TOKEN}.",
                    FORBIDDEN,
                )
            return
        given = headers.get("authorization", "")
        token = given[len(_SCHEME) :].strip() if given.lower().startswith(_SCHEME) else ""
        seen = hashlib.sha256(token.encode("utf-8", "backslashreplace")).digest()
        if not hmac.compare_digest(seen, self._digest):
            raise Refused(
                "the token is missing or wrong: send the header Authorization: Bearer TOKEN.", UNAUTHORIZED
            )


def _hostname(header: str) -> str:
    """Return the name in a Host header, without its port."""
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""
