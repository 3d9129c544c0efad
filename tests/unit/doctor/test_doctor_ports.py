"""Which sockets are open, and how bad that is."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from seqrl_ray.doctor.ports import MEANS, WATCHED, level_of, port_findings, reach
from seqrl_ray.runtime.machine import address_of, listening


def test_the_kernels_tables_are_read(tmp_path: Path) -> None:
    """Lines as proc(5) has them: a listening, a connected one, and IPv6 with IPv4 inside."""
    head = "  sl  local_address rem_address   st tx_queue rx_queue\n"
    four, six = tmp_path / "tcp", tmp_path / "tcp6"
    four.write_text(
        head
        + "   0: 0100007F:2049 00000000:0000 0A 00000000:00000000\n"
        + "   1: 00000000:1F40 00000000:0000 0A 00000000:00000000\n"
        + "   2: 0100007F:1F90 0100007F:C350 01 00000000:00000000\n"
    )
    six.write_text(
        head
        + "   0: 00000000000000000000000000000000:18EB 0:0 0A 0:0\n"
        + "   1: 0000000000000000FFFF00000100007F:2711 0:0 0A 0:0\n"
        + "   2: 00000000000000000000000001000000:CC95 0:0 0A 0:0\n"
    )
    assert listening([four, six]) == [
        ("0.0.0.0", 8000),
        ("127.0.0.1", 8265),
        ("127.0.0.1", 10001),
        ("::", 6379),
        ("::1", 52373),
    ]
    assert listening([tmp_path / "none"]) is None
    assert address_of("050200C0") == "192.0.2.5"


@pytest.mark.parametrize(
    ("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET, ""), (socket.AF_INET6, "::1")]
)
def test_a_real_socket_is_seen_while_it_listens(family: int, address: str) -> None:
    if family == socket.AF_INET6 and not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    with socket.socket(family) as server:
        try:
            server.bind((address, 0))
        except OSError:
            pytest.skip("no such address here")
        place = (address or "0.0.0.0", server.getsockname()[1])
        assert place not in (listening() or ())
        server.listen()
        assert place in (listening() or ())
    assert place not in (listening() or ())


@pytest.mark.parametrize(
    ("address", "how"),
    [
        ("0.0.0.0", "everywhere"),
        ("::", "everywhere"),
        ("127.0.0.1", "loopback"),
        ("127.0.1.3", "loopback"),
        ("::1", "loopback"),
        ("10.0.0.7", "private"),
        ("fe80::1", "private"),
        ("8.8.8.8", "public"),
        ("2001:4860:4860::8888", "public"),
    ],
)
def test_reach(address: str, how: str) -> None:
    assert reach(address) == how


LEVELS = """
             everywhere     public         private
dashboard    FAIL FAIL      FAIL FAIL      warning FAIL
client       FAIL FAIL      FAIL FAIL      warning FAIL
serve        FAIL FAIL      FAIL FAIL      warning warning
metrics      warning warning FAIL FAIL     OK OK
gcs          OK FAIL        warning FAIL   OK FAIL
agent        OK FAIL        warning FAIL   OK FAIL
"""
"""Service by reach: with a token, without one."""


def test_levels() -> None:
    head, *rows = (line.split() for line in LEVELS.strip().splitlines())
    assert {row[0] for row in rows} == set(MEANS) == set(WATCHED.values())
    for what, *levels in rows:
        for how, pair in zip(head, zip(levels[::2], levels[1::2], strict=True), strict=True):
            assert (level_of(what, how, token=True), level_of(what, how, token=False)) == pair, (what, how)
        assert level_of(what, "loopback", token=False) == "OK"


def test_what_is_open_is_said_and_what_is_closed_is_not() -> None:
    closed = [("127.0.0.1", 8265), ("::1", 8000), ("0.0.0.0", 22)]
    (quiet,) = port_findings(closed, token=False)
    assert quiet.level == "OK"
    assert "8265" in quiet.text
    first, *rest = port_findings([*closed, ("0.0.0.0", 8265), ("10.0.0.7", 10001)], token=True, certain=True)
    assert (first.level, [f.level for f in rest]) == ("FAIL", ["warning"])
    assert "port 8265 listens on every address" in first.text
    assert "ShadowRay" in first.text
    assert "--dashboard-host=127.0.0.1" in first.text
    assert "10.0.0.7, a private address" in rest[0].text


def test_ports_that_a_living_ray_names_are_watched_too() -> None:
    open_ones = [("0.0.0.0", 18265), ("0.0.0.0", 16379)]
    assert port_findings(open_ones, token=True)[0].level == "OK"
    found = port_findings(open_ones, token=False, known={18265: "dashboard", 16379: "gcs"}, certain=True)
    assert [f.level for f in found] == ["FAIL", "FAIL"]
    assert "RAY_AUTH_MODE=token" in found[1].text + found[0].text


def test_without_a_cluster_it_may_be_another_program() -> None:
    (found,) = port_findings([("0.0.0.0", 8000)], token=True)
    assert found.level == "FAIL"
    assert "if it is Ray's" in found.text


def test_a_system_without_tables_says_so() -> None:
    (found,) = port_findings(None, token=True)
    assert found.level == "warning"
