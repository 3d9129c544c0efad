"""What the detectors say: lane and edge counts of the current second, read at most once, and the sums every
reader shares.

Source: libsumo's lane and edge values (https://sumo.dlr.de/docs/TraCI/Lane_Value_Retrieval.html). Direct
calls, not subscriptions: measured faster in libsumo; and none for what an empty lane or edge is known to say.
A vehicle *halts* below 0.1 m/s.

Dims: N signals, A approach lanes of all signals, O lanes they release into, U edges upstream of an approach,
E approach edges, I lanes inside signalised junctions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from seqrl_ray.envs.traffic.net import Network
from seqrl_ray.envs.traffic.simulation import Simulation

Float64 = NDArray[np.float64]


class Sensors:
    """Reads of the running simulation; every array is float64 and valid for the current second."""

    def __init__(self, simulation: Simulation, network: Network, sensing_m: float) -> None:
        signals = network.signals
        self.lanes = _unique(lane for s in signals for lane in s.lanes)
        self.out_lanes = _unique(lane for s in signals for lane in s.out_lanes)
        self.edges = _unique(network.lanes[lane].edge for lane in self.lanes)
        feeding = {lane: network.upstream(lane, sensing_m) for lane in self.lanes}
        self.up_edges = _unique(edge for lane in self.lanes for edge in feeding[lane])
        inside = {lane: network.inside_of(lane) for lane in self.lanes}
        self.inside_lanes = _unique(i for lane in self.lanes for i in inside[lane])
        self.inside_limit = np.array([network.inside[i] for i in self.inside_lanes])  # [I]
        self.lane_inside = _incidence([inside[lane] for lane in self.lanes], self.inside_lanes)  # [A, I]
        self.lane_index = {lane: i for i, lane in enumerate(self.lanes)}
        self.length_m = np.array([network.lanes[lane].length_m for lane in self.lanes])  # [A]
        self.out_length_m = np.array([network.lanes[lane].length_m for lane in self.out_lanes])  # [O]
        self.limit = np.array([network.lanes[lane].limit_m_per_s for lane in self.lanes])  # [A]
        self.up_limit = np.array([network.lanes[f"{edge}_0"].limit_m_per_s for edge in self.up_edges])  # [U]
        self.signal_lanes = _incidence([s.lanes for s in signals], self.lanes)  # [N, A]
        self.signal_out = _incidence([s.out_lanes for s in signals], self.out_lanes)  # [N, O]
        self.lane_up = _incidence([feeding[lane] for lane in self.lanes], self.up_edges)  # [A, U]
        self.signal_up = (self.signal_lanes @ self.lane_up > 0).astype(float)  # [N, U]
        self.signal_inside = (self.signal_lanes @ self.lane_inside > 0).astype(float)  # [N, I]
        edge_lanes = _incidence(
            [[i for i in self.lanes if network.lanes[i].edge == e] for e in self.edges], self.lanes
        )
        self.edge_up = (edge_lanes @ self.lane_up > 0).astype(float)  # [E, U]
        call = simulation.call
        number, halting = call("lane", "getLastStepVehicleNumber"), call("lane", "getLastStepHaltingNumber")
        pending = call("edge", "getPendingVehicles")
        self._counted: dict[str, tuple[Callable[[str], Any], tuple[str, ...]]] = {
            "vehicles": (number, self.lanes),
            "out_vehicles": (number, self.out_lanes),
            "up_vehicles": (call("edge", "getLastStepVehicleNumber"), self.up_edges),
            "inside_vehicles": (number, self.inside_lanes),
            "pending": (lambda e: len(pending(e)), self.edges),
            "up_pending": (lambda e: len(pending(e)), self.up_edges),
        }
        """Asked for everywhere."""
        none, out, up = np.zeros(len(self.lanes)), np.zeros(len(self.out_lanes)), np.zeros(len(self.up_edges))
        speed = call("lane", "getLastStepMeanSpeed"), call("edge", "getLastStepMeanSpeed")
        self._of_vehicles: dict[str, tuple[Callable[[str], Any], tuple[str, ...], str, Float64]] = {
            "halting": (halting, self.lanes, "vehicles", none),
            "waiting": (call("lane", "getWaitingTime"), self.lanes, "vehicles", none),
            "speed": (speed[0], self.lanes, "vehicles", self.limit),
            "vehicle_length": (call("lane", "getLastStepLength"), self.lanes, "vehicles", none),
            "out_halting": (halting, self.out_lanes, "out_vehicles", out),
            "up_halting": (call("edge", "getLastStepHaltingNumber"), self.up_edges, "up_vehicles", up),
            "inside_halting": (
                halting,
                self.inside_lanes,
                "inside_vehicles",
                np.zeros(len(self.inside_lanes)),
            ),
            "inside_speed": (speed[0], self.inside_lanes, "inside_vehicles", self.inside_limit),
            "up_speed": (speed[1], self.up_edges, "up_vehicles", self.up_limit),
        }
        """Asked for only where there are vehicles: call, ids, who counts, value where there are none."""
        self._occupied: dict[str, list[int]] = {}
        self._seen: dict[str, Float64] = {}

    def refresh(self) -> None:
        """Forget what was read: time has moved on."""
        self._seen.clear()
        self._occupied.clear()

    def read(self, quantity: str) -> Float64:
        """One quantity over its lanes or edges.

        Args: quantity: vehicles, halting (count), waiting (s, summed over the vehicles' current stops), speed
            (m/s, the limit where empty), vehicle_length (m, mean): [A]; out_vehicles, out_halting: [O];
            up_vehicles, up_halting, up_speed, up_pending: [U]; inside_vehicles, inside_halting,
            inside_speed: [I]; pending (vehicles that could not enter yet):
            [E].
        """
        seen = self._seen.get(quantity)
        if seen is not None:
            return seen
        if quantity in self._counted:
            getter, ids = self._counted[quantity]
            seen = np.fromiter(map(getter, ids), np.float64, len(ids))
        else:
            getter, ids, counts, empty = self._of_vehicles[quantity]
            seen = empty.copy()
            for place in self.occupied(counts):
                seen[place] = getter(ids[place])
        self._seen[quantity] = seen
        return seen

    def occupied(self, counts: str = "vehicles") -> list[int]:
        """Positions of the lanes or edges with vehicles, as `counts` (vehicles, out_vehicles or up_vehicles)
        says.
        """
        places = self._occupied.get(counts)
        if places is None:
            places = self._occupied[counts] = np.flatnonzero(self.read(counts)).tolist()
        return places

    def lane_delay(self) -> Float64:
        """[A] vehicles x (1 - speed/limit): vehicle-seconds lost per second."""
        share: Float64 = np.minimum(self.read("speed") / self.limit, 1.0)
        return self.read("vehicles") * (1.0 - share)

    def up_delay(self) -> Float64:
        """[U] the same on upstream edges."""
        share: Float64 = np.minimum(self.read("up_speed") / self.up_limit, 1.0)
        return self.read("up_vehicles") * (1.0 - share)

    def inside_delay(self) -> Float64:
        """[I] the same inside junctions."""
        share: Float64 = np.minimum(self.read("inside_speed") / self.inside_limit, 1.0)
        return self.read("inside_vehicles") * (1.0 - share)

    def places(self, lanes: Sequence[str]) -> list[int]:
        """Positions of approach lanes within [A]."""
        return [self.lane_index[lane] for lane in lanes]


def _unique(names: Any) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


def _incidence(rows: Sequence[Sequence[str]], columns: Sequence[str]) -> Float64:
    """[len(rows), len(columns)] 1.0 where the row names the column."""
    place = {name: i for i, name in enumerate(columns)}
    matrix = np.zeros((len(rows), len(columns)))
    for row, names in enumerate(rows):
        matrix[row, [place[name] for name in names]] = 1.0
    return matrix
