"""A signal's observation, assembled from named parts; all signals in one gather.

Source: `sumo_rl` is sumo-rl's default observation (phase one-hot, min-green bit, density and queue per lane);
the other parts are ours, with scales that keep ordinary values within about [0, 3]. Every part writes one
block of a flat *pool* of scaled numbers; a signal's observation is a fixed list of places in that pool, so
the parts are computed once for the district and padding is one more place that holds 0.

Dims: N signals, A approach lanes, O released-into lanes, U upstream edges, E approach edges, P greens, F
numbers in the pool.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from seqrl_ray.envs.traffic.net import Network
from seqrl_ray.envs.traffic.safety import SafetyLayer
from seqrl_ray.envs.traffic.sensors import Float64, Sensors
from seqrl_ray.recipe_traffic import TrafficSettings
from seqrl_ray.types import FloatArray, IntArray

MIN_GAP_M = 2.5
"""SUMO's default gap between standing vehicles, as sumo-rl's lane capacity assumes."""
QUEUED_CAR_M = 7.5
COUNT_SCALE = 10.0
INSIDE_SCALE = 3.0
WAITING_SCALE_S = 200.0
PHASE_SCALE_S = 60.0


class Observer:
    """Computes the pool, and says where in it each signal's observation stands."""

    def __init__(
        self, network: Network, sensors: Sensors, safety: SafetyLayer, settings: TrafficSettings
    ) -> None:
        self._sensors, self._safety, self._settings = sensors, safety, settings
        signals = network.signals
        counts = np.array([len(s.greens) for s in signals])
        self._phase_start = np.cumsum(counts) - counts  # [N] first place of each signal's one-hot
        self._phase_size = int(counts.sum())
        lanes = [np.array(sensors.places(s.lanes)) for s in signals]
        rows = np.arange(len(signals))
        out_place = {lane: i for i, lane in enumerate(sensors.out_lanes)}
        edge_place = {edge: i for i, edge in enumerate(sensors.edges)}
        outs = [np.array([out_place[lane] for lane in s.out_lanes], np.int64) for s in signals]
        edges = [
            np.array(list(dict.fromkeys(edge_place[network.lanes[i].edge] for i in s.lanes))) for s in signals
        ]
        phases = [self._phase_start[n] + np.arange(counts[n]) for n in rows]
        adjacent = _adjacent(network)
        a, n_signals = len(sensors.lanes), len(signals)
        # part -> (block of the pool, each signal's places within the block)
        table: dict[str, tuple[Callable[[], Float64], Sequence[IntArray]]] = {
            "halting": (self._halting, lanes),
            "moving": (self._moving, lanes),
            "waiting": (self._waiting, lanes),
            "speed": (self._speed, lanes),
            "upstream": (self._upstream, [np.concatenate([i, i + a]) for i in lanes]),
            "downstream": (self._downstream, outs),
            "backlog": (self._backlog, edges),
            "neighbours": (self._neighbours, [np.concatenate([i, i + n_signals]) for i in adjacent]),
            "inside": (self._inside, lanes),
            "phase": (self._phase, phases),
            "time_in_phase": (self._time_in_phase, [rows[n : n + 1] for n in rows]),
            "sumo_rl": (self._sumo_rl, self._sumo_rl_places(phases, lanes, a)),
        }
        self._blocks = [table[part][0] for part in settings.observation]
        sizes = [len(block()) for block in self._blocks] if signals else []
        starts = np.cumsum([0, *sizes])
        self.places: list[IntArray] = [
            np.concatenate([table[part][1][n] + starts[k] for k, part in enumerate(settings.observation)])
            for n in range(n_signals)
        ]
        """[N] arrays: where each signal's own features stand in the pool."""
        self._slices = [slice(a, b) for a, b in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)]
        self.padding = int(starts[-1])
        """The place of the pool that holds 0."""
        self._pool = np.zeros(self.padding + 1, np.float32)

    def pool(self) -> FloatArray:
        """[F] float32, the current second's scaled numbers until the next call; the last one is 0."""
        for place, block in zip(self._slices, self._blocks, strict=True):
            self._pool[place] = block()
        return self._pool

    def group_places(self, members: Sequence[int], width: int) -> IntArray:
        """[S, width] places of some signals' observations, padded on the right."""
        places = np.full((len(members), width), self.padding)
        for row, n in enumerate(members):
            places[row, : len(self.places[n])] = self.places[n]
        return places

    def _halting(self) -> Float64:
        return self._sensors.read("halting") / COUNT_SCALE

    def _moving(self) -> Float64:
        return (self._sensors.read("vehicles") - self._sensors.read("halting")) / COUNT_SCALE

    def _waiting(self) -> Float64:
        waited = self._sensors.read("waiting") / WAITING_SCALE_S
        return waited.clip(0.0, 3.0)

    def _speed(self) -> Float64:
        share: Float64 = (self._sensors.read("speed") / self._sensors.limit).clip(0.0, 1.0)
        return share

    def _upstream(self) -> Float64:
        halting, vehicles = self._sensors.read("up_halting"), self._sensors.read("up_vehicles")
        feeds = self._sensors.lane_up  # [A, U]
        return np.concatenate([feeds @ halting, feeds @ (vehicles - halting)]) / COUNT_SCALE  # [2A]

    def _downstream(self) -> Float64:
        filled: Float64 = self._sensors.read("out_vehicles") * QUEUED_CAR_M / self._sensors.out_length_m
        return filled.clip(0.0, 1.0)

    def _backlog(self) -> Float64:
        own, further = self._sensors.read("pending"), self._sensors.read("up_pending")
        return (own + self._sensors.edge_up @ further) / COUNT_SCALE  # [E]

    def _neighbours(self) -> Float64:
        halting, vehicles = self._sensors.read("halting"), self._sensors.read("vehicles")
        at = self._sensors.signal_lanes  # [N, A]
        return np.concatenate([at @ halting, at @ (vehicles - halting)]) / COUNT_SCALE  # [2N]

    def _inside(self) -> Float64:
        return self._sensors.lane_inside @ self._sensors.read("inside_halting") / INSIDE_SCALE  # [A]

    def _phase(self) -> Float64:
        one_hot = np.zeros(self._phase_size)
        one_hot[self._phase_start + self._safety.phase] = 1.0
        return one_hot

    def _time_in_phase(self) -> Float64:
        return np.minimum(self._safety.time_in_phase_s / PHASE_SCALE_S, 5.0)

    def _sumo_rl(self) -> Float64:
        read, free = self._sensors.read, self._safety.free
        capacity = self._sensors.length_m / (MIN_GAP_M + read("vehicle_length"))  # [A]
        density = np.minimum(read("vehicles") / capacity, 1.0)
        queue = np.minimum(read("halting") / capacity, 1.0)
        return np.concatenate([self._phase(), free, density, queue])

    def _sumo_rl_places(self, phases: list[IntArray], lanes: list[IntArray], a: int) -> list[IntArray]:
        bit, density = self._phase_size, self._phase_size + len(phases)
        return [
            np.concatenate([phases[n], [bit + n], density + lanes[n], density + a + lanes[n]])
            for n in range(len(phases))
        ]


def _adjacent(network: Network) -> list[IntArray]:
    """Per signal, the signals whose released traffic reaches one of its approaches, or that its own reaches,
    by index.
    """
    signals = network.signals
    approach = {network.lanes[lane].edge: n for n, s in enumerate(signals) for lane in s.lanes}
    outlet: dict[str, set[int]] = {}
    for n, s in enumerate(signals):
        for lane in s.out_lanes:
            outlet.setdefault(network.lanes[lane].edge, set()).add(n)
    links: list[set[int]] = [set() for _ in signals]
    for n, s in enumerate(signals):
        reach = {network.lanes[lane].edge for lane in s.lanes}
        reach.update(edge for lane in s.lanes for edge in network.upstream(lane, float("inf")))
        for edge in reach:
            for other in outlet.get(edge, set()) - {n}:
                if approach.get(edge, n) == n:
                    links[n].add(other)
                    links[other].add(n)
    return [np.array(sorted(found), np.int64) for found in links]
