"""Safety violations, judged from SUMO's own record of what every signal showed, second by second.

Independent of the safety layer: it reads the states that SUMO logged, and none of the layer's state. For the
net's own programmes (`fixed`, `actuated`) only "green ends in yellow" applies: their seconds are theirs to
choose, and public nets return from yellow to green where only a conflicting stream ended.

Rules, per link: green (G, g) ends in yellow, not in red; yellow lasts yellow_s and ends in red; a green lasts
min_green_s; no link of the signal turns green within all_red_s of the end of another's yellow. Per signal: a
state that shows green and no yellow does not stand longer than max_green_s (plus one change time: between two
greens of which one contains the other no link turns yellow).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from seqrl_ray.envs.traffic.net import GREEN
from seqrl_ray.recipe_traffic import TrafficSettings

_ROW = re.compile(r'<tlsState time="([\d.]+)" id="([^"]*)" programID="[^"]*" phase="[^"]*" state="([^"]*)"')


@dataclass(frozen=True)
class Shown:
    """From `time_s` on, `signal` showed `state`."""

    time_s: float
    signal: str
    state: str


@dataclass(frozen=True)
class Violation:
    """One unsafe sequence that was really shown."""

    time_s: float
    signal: str
    link: int
    """Place in the signal's state, -1 for a rule about the whole state."""
    rule: str


@dataclass
class _Seen:
    """What one signal showed so far."""

    state: str
    since_s: float
    green_s: list[float] = field(default_factory=list)
    yellow_s: list[float] = field(default_factory=list)
    cleared_s: float = float("-inf")


def read_states(path: Path) -> list[Shown]:
    """Read SUMO's record of shown states, in time order."""
    text = path.read_text(encoding="utf-8")
    return [Shown(float(time), signal, state) for time, signal, state in _ROW.findall(text)]


def violations(shown: list[Shown], settings: TrafficSettings, *, programme: bool) -> list[Violation]:
    """Check a record of shown states.

    Args:
        shown: in time order; repeated states are allowed.
        settings: the rules' seconds.
        programme: True where SUMO ran the signals' own programmes.
    """
    found: list[Violation] = []
    seen: dict[str, _Seen] = {}
    for row in shown:
        signal = seen.get(row.signal)
        if signal is None:
            size = len(row.state)
            seen[row.signal] = _Seen(row.state, row.time_s, [row.time_s] * size, [row.time_s] * size)
        elif row.state != signal.state:
            found.extend(
                Violation(row.time_s, row.signal, link, rule)
                for link, rule in _change(signal, row, settings, programme)
            )
            signal.state, signal.since_s = row.state, row.time_s
    return found


def _change(seen: _Seen, row: Shown, settings: TrafficSettings, programme: bool) -> Iterator[tuple[int, str]]:
    """Yield (link, rule) of every rule that the change to `row` breaks, and note the change in `seen`."""
    now = row.time_s
    if not programme and _stood_too_long(seen, now, settings):
        yield -1, "max_green"
    changes = _differences(seen.state, row.state)
    if any(before == "yellow" for _, before, _ in changes):
        seen.cleared_s = now
    for link, before, after in changes:
        if before == "green" and after == "red":
            yield link, "no_yellow"
        if not programme:
            for rule in _broken(seen, now, link, before, after, settings):
                yield link, rule
        if after == "green":
            seen.green_s[link] = now
        elif after == "yellow":
            seen.yellow_s[link] = now


def _stood_too_long(seen: _Seen, now: float, settings: TrafficSettings) -> bool:
    if settings.max_green_s is None or "y" in seen.state or not GREEN & set(seen.state):
        return False
    change_s = settings.yellow_s + settings.all_red_s + settings.red_extension_s
    return now - seen.since_s > settings.max_green_s + change_s


def _broken(
    seen: _Seen, now: float, link: int, before: str, after: str, settings: TrafficSettings
) -> Iterator[str]:
    if before == "green" and now - seen.green_s[link] < settings.min_green_s:
        yield "min_green"
    if before == "yellow" and after == "green":
        yield "yellow_to_green"
    if before == "yellow" and now - seen.yellow_s[link] < settings.yellow_s:
        yield "short_yellow"
    if after == "green" and now - seen.cleared_s < settings.all_red_s:
        yield "all_red"


@lru_cache(maxsize=65536)
def _differences(before: str, after: str) -> tuple[tuple[int, str, str], ...]:
    """Links whose colour changed: (link, colour before, colour after)."""
    pairs = ((i, _colour(a), _colour(b)) for i, (a, b) in enumerate(zip(before, after, strict=True)))
    return tuple(change for change in pairs if change[1] != change[2])


def _colour(letter: str) -> str:
    if letter in GREEN:
        return "green"
    return "yellow" if letter in "yY" else "red"
