"""Reading a net: a district written by hand, and what the lint says about it."""

import gzip
from pathlib import Path

import pytest

from seqrl_ray.envs.traffic.files import district_files
from seqrl_ray.envs.traffic.lint import lint
from seqrl_ray.envs.traffic.net import Network, read_network
from seqrl_ray.errors import EnvError
from seqrl_ray.recipe_traffic import MAPS, TrafficSettings

# far --> mid --> in --> [X] --> out --> [Y] --> end, and side --> [X]; Y has one green only
NET = """<net>
  <edge id=":X_0" function="internal"><lane id=":X_0_0" index="0" speed="8" length="9"/></edge>
  <edge id="far" from="f" to="p"><lane id="far_0" index="0" speed="14" length="90"/></edge>
  <edge id="mid" from="p" to="q"><lane id="mid_0" index="0" speed="14" length="60"/></edge>
  <edge id="in" from="q" to="X">
    <lane id="in_0" index="0" speed="14" length="30"/><lane id="in_1" index="1" speed="14" length="30"/>
  </edge>
  <edge id="side" from="s" to="X"><lane id="side_0" index="0" speed="8" length="250"/></edge>
  <edge id="out" from="X" to="Y"><lane id="out_0" index="0" speed="14" length="100"/></edge>
  <edge id="end" from="Y" to="e"><lane id="end_0" index="0" speed="14" length="100"/></edge>
  <tlLogic id="X" type="static" programID="0" offset="0">
    <phase duration="30" state="GGr"/><phase duration="2" state="yyr"/><phase duration="5" state="rrr"/>
    <phase duration="30" state="{second}"/><phase duration="3" state="rry"/><phase duration="9" state="oor"/>
  </tlLogic>
  <tlLogic id="Y" type="static" programID="0" offset="0">
    <phase duration="30" state="G"/><phase duration="3" state="y"/>
  </tlLogic>
  <junction id="X" type="traffic_light" incLanes="in_0 in_1 side_0">
    <request index="0" foes="100"/><request index="1" foes="100"/><request index="2" foes="011"/>
  </junction>
  <connection from="far" to="mid" fromLane="0" toLane="0" dir="s" state="M"/>
  <connection from="mid" to="in" fromLane="0" toLane="0" dir="s" state="M"/>
  <connection from="side" to="out" fromLane="0" toLane="0" tl="X" linkIndex="2" dir="l" state="o"/>
  <connection from="in" to="out" fromLane="0" toLane="0" tl="X" linkIndex="0" dir="s" state="O"/>
  <connection from="in" to="out" fromLane="1" toLane="0" tl="X" linkIndex="1" dir="s" state="O"/>
  <connection from="out" to="end" fromLane="0" toLane="0" tl="Y" linkIndex="0" dir="s" state="O"/>
  <connection from=":X_0" to="out" fromLane="0" toLane="0" dir="s" state="M"/>
</net>"""

RULES = TrafficSettings(net="x", route="y")


def network(tmp_path: Path, second: str = "rrG") -> Network:
    path = tmp_path / "x.net.xml"
    path.write_text(NET.format(second=second), encoding="utf-8")
    return read_network(path)


def test_phases_lanes_and_movements(tmp_path: Path) -> None:
    net = network(tmp_path)
    (signal,) = net.signals
    assert signal.greens == ("GGr", "rrG")  # no yellow, no all-red, no lamps off
    assert signal.lanes == ("in_0", "in_1", "side_0")  # by link, not by place in the file
    assert signal.out_lanes == ("out_0",)
    assert signal.junctions == ("X",)
    assert signal.lanes_of(0) == ("in_0", "in_1")
    assert [(m.from_lane, m.to_lane) for m in signal.movements_of(1)] == [("side_0", "out_0")]
    assert [s.id for s in net.uncontrolled] == ["Y"]


@pytest.mark.parametrize(
    ("range_m", "edges"),
    [(0, ()), (30, ()), (31, ("mid",)), (90, ("mid",)), (91, ("mid", "far")), (999, ("mid", "far"))],
)
def test_upstream_follows_plain_junctions_within_range(
    tmp_path: Path, range_m: float, edges: tuple[str, ...]
) -> None:
    assert network(tmp_path).upstream("in_0", range_m) == edges


def test_upstream_stops_at_lanes_nothing_feeds_and_at_signals(tmp_path: Path) -> None:
    net = network(tmp_path)
    assert net.upstream("in_1", 999) == ()  # only in_0 is fed
    assert net.upstream("out_0", 999) == ()  # fed across a signal


def test_gzip_reads_the_same(tmp_path: Path) -> None:
    plain = network(tmp_path)
    packed = tmp_path / "x.net.xml.gz"
    packed.write_bytes(gzip.compress((tmp_path / "x.net.xml").read_bytes()))
    assert read_network(packed) == plain


def test_lint_of_a_sound_signal_names_only_the_short_yellow_and_the_lone_green(tmp_path: Path) -> None:
    found = lint(network(tmp_path), RULES)
    assert found == (
        "signal X: its own programme has a yellow of 2 s, below yellow_s=3.",
        "signal Y: 1 green phase(s) to choose among, so it is no agent and keeps its own programme.",
    )


def test_lint_finds_never_released_traffic(tmp_path: Path) -> None:
    assert any(
        "links 2 are green in no phase" in text and "side_0" in text
        for text in lint(network(tmp_path, "Grr"), RULES)
    )


def test_lint_finds_a_plan_without_yellow(tmp_path: Path) -> None:
    net = tmp_path / "x.net.xml"
    text = NET.format(second="rrG").replace('<phase duration="2" state="yyr"/>', "")
    net.write_text(text, encoding="utf-8")
    assert any(
        "links 0, 1 turn from green to red without yellow" in t for t in lint(read_network(net), RULES)
    )


def test_lint_finds_crossing_greens(tmp_path: Path) -> None:
    found = lint(network(tmp_path, "rGG"), RULES)
    assert any("green 1 gives the right of way to crossing links 1/2: unsafe" in text for text in found)
    assert not any("crossing" in text for text in lint(network(tmp_path, "rgG"), RULES))  # g yields


def test_lint_finds_the_phase_removed_from_the_packaged_ingolstadt7() -> None:
    settings = TrafficSettings(map="ingolstadt7")
    found = lint(read_network(district_files(settings, None)[0]), settings)
    assert [
        text
        for text in found
        if 'commented out of its programme (<phase duration="25" state="rrrrrrGGGGrr"/>)' in text
    ]
    whole = TrafficSettings(map="ingolstadt1")
    assert not any(
        "commented out" in text for text in lint(read_network(district_files(whole, None)[0]), whole)
    )


@pytest.mark.parametrize("name", MAPS)
def test_packaged_maps_have_their_files(name: str) -> None:
    settings = TrafficSettings(map=name)
    net, route = district_files(settings, None)
    assert net.is_file() and route.is_file()
    assert len(read_network(net).signals) == int("".join(c for c in name if c.isdigit()).replace("44", "16"))


@pytest.mark.parametrize("text", ["<net>", "<routes/>", "<net/>"])
def test_a_file_that_is_no_net_says_so(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.net.xml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(EnvError, match=r"env\.net="):
        read_network(path)


def test_files_resolve_absolute_relative_and_packaged(tmp_path: Path) -> None:
    network(tmp_path)
    (tmp_path / "x.rou.xml").write_text("<routes/>", encoding="utf-8")
    absolute = TrafficSettings(net=str(tmp_path / "x.net.xml"), route="x.rou.xml")
    assert district_files(absolute, tmp_path) == (tmp_path / "x.net.xml", tmp_path / "x.rou.xml")
    packaged = TrafficSettings(net="RESCO/cologne1/cologne1.net.xml", route="x.rou.xml")
    assert district_files(packaged, tmp_path)[0].is_file()
    with pytest.raises(EnvError, match=r"env\.route='y\.rou\.xml' is not a file"):
        district_files(TrafficSettings(net="x.net.xml", route="y.rou.xml"), tmp_path)
