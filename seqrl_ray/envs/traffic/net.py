"""Static facts of a SUMO net: signals, their links and green phases, approach lanes, and what feeds them.

Source: the net file (https://sumo.dlr.de/docs/Networks/SUMO_Road_Networks.html), read once and without SUMO.
Which phases a policy chooses among follows sumo-rl's rule: the programme's phases without yellow that are not
all red, in programme order. Departs from it: phases that show off (`o`, `O`) or red-yellow (`u`) are no
greens, lanes of pedestrian crossings are not approaches, and a signal with fewer than two greens keeps its
own programme instead of becoming an agent.

Dims: N signals, L links of one signal, P green phases of one signal.
"""

from __future__ import annotations

import gzip
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from seqrl_ray.errors import EnvError

GREEN = frozenset("Gg")


@dataclass(frozen=True)
class Lane:
    """One lane outside junctions."""

    id: str
    edge: str
    length_m: float
    limit_m_per_s: float


@dataclass(frozen=True)
class Movement:
    """One connection across a signal, shown by the signal's state at place `link`."""

    link: int
    from_lane: str
    to_lane: str
    inside: str = ""
    """Lane inside the junction that it starts on, up to where its vehicles wait for a gap."""


@dataclass(frozen=True)
class Signal:
    """One traffic light: its programme, and the greens a policy chooses among."""

    id: str
    junctions: tuple[str, ...]
    """Junctions it controls (a joined signal has several)."""
    program: tuple[tuple[float, str], ...]
    """(seconds, state) of every phase of the net's own plan."""
    greens: tuple[str, ...]
    """[P] states of length L."""
    movements: tuple[Movement, ...]
    """By link index, then as the net lists them."""
    lanes: tuple[str, ...]
    """Approach lanes, by the first link they feed (sumo-rl's order)."""
    out_lanes: tuple[str, ...]
    """Lanes it releases into: of each link's first connection, as in sumo-rl."""
    removed: tuple[str, ...] = ()
    """Phases that somebody commented out of the programme."""

    def movements_of(self, phase: int) -> tuple[Movement, ...]:
        """Movements that green phase `phase` shows G or g, without repeats of a lane pair."""
        state = self.greens[phase]
        green = (m for m in self.movements if state[m.link] in GREEN)
        return tuple({(m.from_lane, m.to_lane): m for m in green}.values())

    def lanes_of(self, phase: int) -> tuple[str, ...]:
        """Approach lanes with at least one green movement in `phase`."""
        return tuple(dict.fromkeys(m.from_lane for m in self.movements_of(phase)))


@dataclass(frozen=True)
class Junction:
    """What a junction's right-of-way table says, for the lint."""

    lanes: tuple[str, ...]
    """Incoming lanes in the table's order."""
    foes: tuple[str, ...]
    """Row i, bit j from the right: movement i crosses or merges with movement j."""


@dataclass(frozen=True)
class Network:
    """A net as the traffic environment needs it."""

    signals: tuple[Signal, ...]
    """[N] the controllable ones, in SUMO's order (by id)."""
    uncontrolled: tuple[Signal, ...]
    """Signals that keep their programme: fewer than two greens, or a railway's."""
    lanes: Mapping[str, Lane]
    inside: Mapping[str, float]
    """Speed limit in m/s of every lane inside a junction."""
    junctions: Mapping[str, Junction]
    programs: Mapping[str, int]
    """Signal id -> number of programmes the net holds (the first is used)."""
    connections: tuple[Mapping[str, str], ...] = field(repr=False)
    """Every connection between two ordinary edges, as the net lists it."""

    def upstream(self, lane: str, range_m: float) -> tuple[str, ...]:
        """Edges that feed `lane` within `range_m` of its stop line, across unsignalised junctions only,
        nearest first.
        """
        start = self.lanes[lane]
        into_lane, into_edge = self._feeders
        found: dict[str, float] = {}
        frontier = [(start.length_m, edge) for edge in into_lane[lane]]
        while frontier:
            frontier.sort()
            distance_m, edge = frontier.pop(0)
            if distance_m >= range_m or edge in found or edge == start.edge:
                continue
            found[edge] = distance_m
            beyond_m = distance_m + self.lanes[f"{edge}_0"].length_m
            frontier.extend((beyond_m, further) for further in into_edge[edge])
        return tuple(found)

    def inside_of(self, lane: str) -> tuple[str, ...]:
        """Lanes inside the junction that vehicles from approach `lane` enter it by, up to where they wait for
        a gap.
        """
        return tuple(dict.fromkeys(c["via"] for c in self._leaving[lane] if c.get("via") in self.inside))

    def junction_links(self, junction: str) -> tuple[Mapping[str, str], ...]:
        """Connections across a junction in the order of its right-of-way table."""
        lanes = [lane for lane in self.junctions[junction].lanes if not lane.startswith(":")]
        return tuple(c for lane in lanes for c in self._leaving[lane])

    @cached_property
    def _leaving(self) -> dict[str, list[Mapping[str, str]]]:
        leaving: dict[str, list[Mapping[str, str]]] = defaultdict(list)
        for c in self.connections:
            leaving[f"{c['from']}_{c['fromLane']}"].append(c)
        return leaving

    @cached_property
    def _feeders(self) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        into_lane: dict[str, list[str]] = defaultdict(list)
        into_edge: dict[str, list[str]] = defaultdict(list)
        for c in self.connections:
            if "tl" not in c:
                into_lane[f"{c['to']}_{c['toLane']}"].append(c["from"])
                into_edge[c["to"]].append(c["from"])
        return into_lane, into_edge


def read_network(path: Path) -> Network:
    """Read a `.net.xml` or `.net.xml.gz` file.

    Raises: EnvError: the file is no SUMO net, or no signal of it can be controlled.
    """
    lanes: dict[str, Lane] = {}
    inside: dict[str, float] = {}
    junctions: dict[str, Junction] = {}
    junction_of: dict[str, str] = {}
    programs: dict[str, list[ElementTree.Element]] = defaultdict(list)
    connections: list[dict[str, str]] = []
    for element in _elements(path):
        if element.tag == "edge" and element.get("function") != "internal":
            for lane in element.iter("lane"):
                lanes[lane.attrib["id"]] = Lane(
                    lane.attrib["id"],
                    element.attrib["id"],
                    float(lane.attrib["length"]),
                    float(lane.attrib["speed"]),
                )
                junction_of[element.attrib["id"]] = element.get("to", "")
        elif element.tag == "edge":
            inside.update({lane.attrib["id"]: float(lane.attrib["speed"]) for lane in element.iter("lane")})
        elif element.tag == "junction":
            junctions[element.attrib["id"]] = Junction(
                tuple(element.get("incLanes", "").split()),
                tuple(r.attrib["foes"] for r in element.iter("request")),
            )
        elif element.tag == "tlLogic":
            programs[element.attrib["id"]].append(element)
        elif element.tag == "connection" and not element.attrib["from"].startswith(":"):
            connections.append(dict(element.attrib))
    signals = [_signal(name, programs[name][0], connections, junction_of) for name in sorted(programs)]
    controlled = tuple(
        s for s in signals if len(s.greens) >= 2 and programs[s.id][0].get("type") in _ROAD_TYPES
    )
    if not controlled:
        raise EnvError(
            f"env.net={str(path)!r} has no signal with two green phases: there is nothing to decide. "
            "Choose a net with signals, "
            "or let netconvert guess them (--tls.guess)."
        )
    others = tuple(s for s in signals if s not in controlled)
    counts = {name: len(elements) for name, elements in programs.items()}
    return Network(controlled, others, lanes, inside, junctions, counts, tuple(connections))


_ROAD_TYPES = frozenset({"static", "actuated", "delay_based", "NEMA", None})


def _elements(path: Path) -> list[ElementTree.Element]:
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        keeps_comments = ElementTree.XMLParser(target=ElementTree.TreeBuilder(insert_comments=True))
        root = ElementTree.fromstring(data, keeps_comments)
    except (ElementTree.ParseError, OSError) as error:
        raise EnvError(
            f"env.net={str(path)!r} cannot be read ({error}): no district. Give a SUMO .net.xml file."
        ) from error
    if root.tag != "net":
        raise EnvError(
            f"env.net={str(path)!r} holds <{root.tag}>, not <net>: it is no SUMO net. Give the .net.xml "
            "file netconvert wrote."
        )
    return list(root)


def _signal(
    name: str, logic: ElementTree.Element, connections: list[dict[str, str]], junction_of: Mapping[str, str]
) -> Signal:
    own = sorted((c for c in connections if c.get("tl") == name), key=lambda c: int(c["linkIndex"]))
    movements = tuple(
        Movement(
            int(c["linkIndex"]),
            f"{c['from']}_{c['fromLane']}",
            f"{c['to']}_{c['toLane']}",
            c.get("via", ""),
        )
        for c in own
    )
    program = tuple((float(p.attrib["duration"]), p.attrib["state"]) for p in logic.iter("phase"))
    greens = tuple(state for _, state in program if GREEN & set(state) and not set("yuoO") & set(state))
    first = {m.link: m for m in reversed(movements)}  # the first connection of each link
    return Signal(
        id=name,
        junctions=tuple(dict.fromkeys(junction_of[c["from"]] for c in own)),
        program=program,
        greens=greens,
        movements=movements,
        lanes=tuple(dict.fromkeys(m.from_lane for m in movements)),
        out_lanes=tuple(dict.fromkeys(first[link].to_lane for link in sorted(first))),
        removed=tuple(note for note in _comments(logic) if "<phase" in note),
    )


def _comments(element: ElementTree.Element) -> list[str]:
    return [(child.text or "").strip() for child in element if callable(child.tag)]  # only a comment's tag is
