"""Rules in the box, compared with a policy by the same evaluator on the same seeds.

`fixed` is the net's own programme, `actuated` the same programme with SUMO's gap-based actuation: SUMO runs
both, actions are ignored. The others choose a green at every decision, through the same safety layer as a
policy:
max_pressure (Varaiya 2013): sum over the phase's movements of halting vehicles before minus after;
occupancy: all vehicles on the lanes the phase serves; greedy: halting vehicles on those lanes;
random: uniform over legal greens.
The first three have a starvation guard: a lane without green for `max_red_s` while a vehicle stood on it, or
on an edge that feeds it within sensing range (lanes of a metre exist), is served next, longest first.
Ties keep the current green, else take the first in programme order.

Actuated: a generated `<tlLogic type="actuated">` per signal under a programme id of its own, which SUMO runs
because it was loaded last; phases and yellows are the net's, greens vary between min and max.
Nothing of the net's programme is edited in place, because a phase list replaced under kept switching
conditions makes SUMO stop ("Invalid empty condition").

Dims: N signals, A actions, P greens of one signal.
"""

from __future__ import annotations

from collections.abc import Iterator
from xml.sax.saxutils import quoteattr

import numpy as np

from seqrl_ray.envs.traffic.net import Network, Signal
from seqrl_ray.envs.traffic.safety import SafetyLayer
from seqrl_ray.envs.traffic.sensors import Sensors
from seqrl_ray.recipe_traffic import TrafficSettings
from seqrl_ray.types import BoolArray, FloatArray, IntArray

PROGRAMMES = ("fixed", "actuated")
"""Controllers that SUMO runs itself."""
CONTROLLERS = (*PROGRAMMES, "max_pressure", "occupancy", "greedy", "random")
ACTUATED_MAX_GREEN_S = 50.0
"""Longest actuated green where neither the recipe nor the net says one."""


class RuleController:
    """One rule for all signals."""

    def __init__(
        self, name: str, network: Network, sensors: Sensors, safety: SafetyLayer, settings: TrafficSettings
    ) -> None:
        self._name, self._sensors, self._safety, self._settings = name, sensors, safety, settings
        self._rng = np.random.default_rng(0)
        self._phases = tuple(_phases(network.signals))
        out_place = {lane: i for i, lane in enumerate(sensors.out_lanes)}
        shape = (len(self._phases), len(sensors.lanes))
        self._serves = np.zeros(shape)  # [P of all signals, A] lanes a phase serves
        self._movements_in = np.zeros(shape)  # the same, counted once per movement
        self._movements_out = np.zeros((shape[0], len(sensors.out_lanes)))
        for row, (signal, phase) in enumerate(self._phases):
            for movement in signal.movements_of(phase):
                place = sensors.lane_index[movement.from_lane]
                self._serves[row, place] = 1.0
                self._movements_in[row, place] += 1.0
                if movement.to_lane in out_place:
                    self._movements_out[row, out_place[movement.to_lane]] += 1.0
        counts = np.array([len(s.greens) for s in network.signals])
        self._first = np.cumsum(counts) - counts  # [N] row of each signal's first phase
        self._counts = counts
        self._red_s = np.zeros(len(sensors.lanes))

    def start(self, seed: int) -> None:
        """Begin an episode; `seed` is the episode's."""
        self._rng = np.random.default_rng(seed)
        self._red_s[:] = 0.0

    def watch(self, seconds: int) -> None:
        """Count how long each lane has waited without green while a vehicle stood before it; once per
        decision.
        """
        green = self._serves[self._first + self._safety.phase].sum(axis=0) > 0  # [A]
        read = self._sensors.read
        waiting = read("halting") + self._sensors.lane_up @ read("up_halting") > 0
        self._red_s = np.where(green | ~waiting, 0.0, self._red_s + seconds)

    def choose(self) -> IntArray:
        """[N] int64, a legal green per signal."""
        legal = self._safety.legal
        if self._name == "random":
            return np.array([self._rng.choice(np.flatnonzero(row)) for row in legal])
        scores = self._scores()  # [P of all signals]
        starved = np.where(self._red_s >= self._settings.max_red_s, self._red_s, 0.0)  # [A]
        longest = (self._serves * starved).max(axis=1)
        chosen = np.empty(len(legal), np.int64)
        for n, (first, count) in enumerate(zip(self._first, self._counts, strict=True)):
            own = slice(first, first + count)
            guard = np.where(legal[n, :count], longest[own], 0.0)
            score = guard if guard.max() > 0 else scores[own]
            chosen[n] = _best(score, legal[n, :count], int(self._safety.phase[n]))
        return chosen

    def _scores(self) -> FloatArray:
        read = self._sensors.read
        if self._name == "max_pressure":
            return self._movements_in @ read("halting") - self._movements_out @ read("out_halting")
        return self._serves @ read("vehicles" if self._name == "occupancy" else "halting")


def actuated_programme(network: Network, settings: TrafficSettings) -> str:
    """XML of an actuated copy of every controlled signal's own programme."""
    longest = settings.max_green_s or ACTUATED_MAX_GREEN_S
    return "".join(_actuated(signal, settings.min_green_s, float(longest)) for signal in network.signals)


def _actuated(signal: Signal, shortest_s: float, longest_s: float) -> str:
    greens = set(signal.greens)
    rows = []
    for duration_s, state in signal.program:
        span = f' minDur="{shortest_s}" maxDur="{max(longest_s, shortest_s)}"' if state in greens else ""
        rows.append(f'<phase duration="{duration_s}" state="{state}"{span}/>')
    head = f'<tlLogic id={quoteattr(signal.id)} type="actuated" programID="seqrl-actuated" offset="0">'
    return f"{head}{''.join(rows)}</tlLogic>"


def _phases(signals: tuple[Signal, ...]) -> Iterator[tuple[Signal, int]]:
    for signal in signals:
        for phase in range(len(signal.greens)):
            yield signal, phase


def _best(score: FloatArray, legal: BoolArray, current: int) -> int:
    masked = np.where(legal, score, -np.inf)
    return current if masked[current] == masked.max() else int(masked.argmax())
