"""What a client is told when it is not given an action: an HTTP status and one line."""

from __future__ import annotations

BAD_REQUEST = 400
UNAUTHORIZED = 401
FORBIDDEN = 403
NOT_FOUND = 404
NOT_ALLOWED = 405
CONFLICT = 409
TOO_LARGE = 413
NOT_JSON = 415
BUSY = 503


class Refused(Exception):
    """A request that gets no action."""

    def __init__(self, text: str, status: int = BAD_REQUEST) -> None:
        super().__init__(text)
        self.status = status
