"""Scores of one episode, from SUMO's trip records and from what stood where at every decision.

Source: delay as RESCO computes it (`utils/readXML.py`): the mean over all vehicles due by the end of time
lost plus departure delay, unfinished trips with what they have so far, and (end - planned departure) for
vehicles that never got in. Travel time, waiting and stops exclude vehicles that never got in, as RESCO's do:
delay is the headline because gridlock can improve them. A gridlocked episode has a vehicle that stands for
more than 240 s at its end: inside a signalised junction (`jam_controlled`) or only elsewhere
(`jam_elsewhere`).

Dims: T decisions, N signals, V vehicles, C changes of a shown state.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from seqrl_ray.envs.traffic.audit import Shown
from seqrl_ray.envs.traffic.net import Signal
from seqrl_ray.envs.traffic.simulation import Simulation
from seqrl_ray.errors import EnvError
from seqrl_ray.types import FloatArray, IntArray

GRIDLOCK_S = 240.0

METRICS = (
    "return",
    "queue_vehicles",
    "queue_longest_vehicles",
    "teleports",
    "gridlocked",
    "jam_controlled",
    "jam_elsewhere",
    "safety_violations",
    "safety_refusals",
    "delay_s",
    "delay_p95_s",
    "travel_time_s",
    "waiting_s",
    "stops",
    "throughput_vehicles",
    "demand_vehicles",
    "backlog_vehicles",
)
"""Every episode of an evaluation has these, in this order."""

EMISSION_METRICS = ("co2_kg", "fuel_kg")
"""These too where `env.emissions` asks for them."""


_TRIP = re.compile(r"<tripinfo (.*?)/?>")
_FIELD = re.compile(r'(\w+)="([^"]*)"')
_EMISSION = re.compile(r"<emissions (.*?)/>")


@dataclass(frozen=True)
class Trips:
    """All vehicles due by the end of the window; float64 arrays over V."""

    inserted: FloatArray
    """1.0 if the vehicle entered the net."""
    arrived: FloatArray
    delay_s: FloatArray
    travel_s: FloatArray
    waiting_s: FloatArray
    stops: FloatArray
    co2_kg: float
    fuel_kg: float


def read_trips(path: Path) -> Trips:
    """Read SUMO's tripinfo record.

    Args:
        path: written with unfinished and undeparted vehicles, at the end of the window.
    Raises: EnvError: SUMO left no complete record.
    """
    text = path.read_text(encoding="utf-8")
    if "</tripinfos>" not in text:
        raise EnvError(
            f"SUMO's trip record of {len(text)} characters is incomplete: no scores. Check the free disk "
            "space."
        )
    rows = []
    for attributes in _TRIP.findall(text):
        trip = dict(_FIELD.findall(attributes))
        inserted = float(trip["depart"]) >= 0.0
        waited_s = float(trip["departDelay"])
        if not inserted and waited_s <= 0.0:
            continue  # read ahead by SUMO, planned after the end
        rows.append(
            (
                inserted,
                float(trip["arrival"]) >= 0.0,
                float(trip["timeLoss"]) + waited_s,
                float(trip["duration"]),
                float(trip["waitingTime"]),
                float(trip["waitingCount"]),
            )
        )
    columns = np.array(rows, np.float64).reshape(-1, 6).T  # [6, V]
    emissions = [dict(_FIELD.findall(attributes)) for attributes in _EMISSION.findall(text)]
    entered, arrived, delay_s, travel_s, waiting_s, stops = columns
    return Trips(
        entered,
        arrived,
        delay_s,
        travel_s,
        waiting_s,
        stops,
        co2_kg=sum(float(e["CO2_abs"]) for e in emissions) / 1e6,
        fuel_kg=sum(float(e["fuel_abs"]) for e in emissions) / 1e6,
    )


class Recorder:
    """Collects one episode; `finish` makes its metrics."""

    def __init__(self, signals: Sequence[Signal], *, emissions: bool, details: bool) -> None:
        self._signals, self._emissions, self._details = signals, emissions, details
        self._inside = tuple(f":{junction}_" for signal in signals for junction in signal.junctions)
        self.start()

    def start(self) -> None:
        """Begin an episode."""
        self._rewards: list[FloatArray] = []
        self._halting: list[FloatArray] = []
        self._series: dict[str, list[Any]] = {
            "time_s": [],
            "queue": [],
            "delay_rate": [],
            "phase": [],
            "reward": [],
        }

    def decision(self, reward: FloatArray, halting: FloatArray) -> None:
        """Add one decision: raw reward [N] and halting vehicles per approach lane [A]; both are kept."""
        self._rewards.append(reward)
        self._halting.append(halting)

    def series(self, **values: Any) -> None:
        """Add one decision's row of every series a report draws."""
        for name, value in values.items():
            self._series[name].append(value)

    def jams(self, simulation: Simulation) -> tuple[bool, bool]:
        """Return whether a vehicle stands too long (inside a signalised junction, only elsewhere); before the
        simulation ends.
        """
        vehicle = simulation.api.vehicle
        stuck = [v for v in vehicle.getIDList() if vehicle.getWaitingTime(v) > GRIDLOCK_S]
        inside = any(vehicle.getLaneID(v).startswith(self._inside) for v in stuck)
        return inside, bool(stuck) and not inside

    def metrics(self, trips: Trips | None, totals: dict[str, float]) -> dict[str, float]:
        """Return the episode's metrics.

        Args:
            trips: of the whole episode; None where they were not recorded.
            totals: metrics that others counted: teleports, safety_violations, safety_refusals, jams.
        """
        halting = np.array(self._halting) if self._halting else np.zeros((1, 1))  # [T, A]
        metrics = {
            "return": float(np.sum(self._rewards, axis=0).mean()),
            "queue_vehicles": _mean(halting.sum(axis=1)),
            "queue_longest_vehicles": float(halting.max()),
            **totals,
        }
        if trips is None:
            return metrics
        inserted = trips.inserted > 0
        metrics |= {
            "delay_s": _mean(trips.delay_s),
            "delay_p95_s": float(np.percentile(trips.delay_s, 95)) if trips.delay_s.size else 0.0,
            "travel_time_s": _mean(trips.travel_s[inserted]),
            "waiting_s": _mean(trips.waiting_s[inserted]),
            "stops": _mean(trips.stops[inserted]),
            "throughput_vehicles": float(trips.arrived.sum()),
            "demand_vehicles": float(trips.inserted.size),
            "backlog_vehicles": float(trips.inserted.size - inserted.sum()),
        }
        if self._emissions:
            metrics |= {"co2_kg": trips.co2_kg, "fuel_kg": trips.fuel_kg}
        return metrics

    def details(self, trips: Trips, shown: list[Shown]) -> dict[str, Any]:
        """Return what a report draws: per-trip delays, series over decisions, and every change of a shown
        state.

        Keys: signal_names [N], phase_states (per signal, its greens), time_s [T], queue [T, N] vehicles,
        delay_rate [T, N] vehicles lost per second, phase [T, N] green index shown (-1: none of them), reward
        [T, N] raw, trip_delay_s [V], change_time_s [C], change_signal [C] index, change_state [C].
        """
        if not self._details:
            return {}
        place = {signal.id: n for n, signal in enumerate(self._signals)}
        return {
            "signal_names": np.array([signal.id for signal in self._signals]),
            "phase_states": tuple(signal.greens for signal in self._signals),
            **{name: np.array(values) for name, values in self._series.items()},
            "trip_delay_s": trips.delay_s,
            "change_time_s": np.array([row.time_s for row in shown]),
            "change_signal": np.array([place[row.signal] for row in shown], np.int64),
            "change_state": np.array([row.state for row in shown]),
        }


def shown_phases(signals: Sequence[Signal], simulation: Simulation) -> IntArray:
    """[N] index of the green that each signal shows now, -1 where it shows none of its greens."""
    state_of = simulation.api.trafficlight.getRedYellowGreenState
    states = [(signal, state_of(signal.id)) for signal in signals]
    return np.array([s.greens.index(state) if state in s.greens else -1 for s, state in states], np.int64)


def _mean(values: FloatArray) -> float:
    return float(values.mean()) if values.size else 0.0
