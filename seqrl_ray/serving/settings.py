"""The settings of a service: what `seqrl serve` is told, and the `args` of a Ray Serve config file."""

from __future__ import annotations

from seqrl_ray.settings import Settings, key


class ServingSettings(Settings):
    """What is served, and how; the same keys are `args` of a Ray Serve config file."""

    run: str = key(description="the run folder, as the replicas' nodes see it", min_length=1)
    checkpoint: str | None = key(
        None,
        "keep to this checkpoint (its folder's name); none: the newest complete one, and newer ones as they "
        "come",
    )
    refresh_s: float = key(10.0, "look for a newer checkpoint this often; 0 = never", unit="s", ge=0.0)
    replicas: int = key(
        1, "processes that answer; several only for policies that keep no state between decisions", ge=1
    )
    threads: int = key(1, "CPUs of a replica, and threads of its networks", ge=1)
    explore: bool = key(False, "a request may ask for exploring actions; else they are refused")
    ask_token: bool = key(
        True, "ask every client for the token of SEQRL_SERVE_TOKEN or SEQRL_SERVE_TOKEN_PATH"
    )
    max_rows: int = key(
        256, "rows in one request, and in one call of the network, at most", unit="rows", ge=1
    )
    max_waiting_rows: int = key(
        4096, "rows that may wait for the network; more are told to come again", unit="rows", ge=1
    )
    max_request_bytes: int = key(
        16 * 2**20, "length of a request's body, at most", unit="bytes", ge=1024, le=2**30
    )
    max_states: int = key(
        1024, "acting states that are kept at most; a session has one per row", unit="rows", ge=1
    )
    session_idle_s: float = key(600.0, "a session not heard of for so long is forgotten", unit="s", gt=0.0)
