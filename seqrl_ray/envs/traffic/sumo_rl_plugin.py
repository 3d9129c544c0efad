"""A user's sumo-rl ObservationFunction or reward function, run on our simulation.

Source: the public attributes and methods of sumo-rl 1.4.5's TrafficSignal, which such functions are written
against. `SignalView` offers them; nothing of sumo-rl is imported here, though the user's module will import
it.

Dims: N signals, D features.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from seqrl_ray.envs.traffic.files import ensure_sumo_home
from seqrl_ray.envs.traffic.net import Network, Signal
from seqrl_ray.envs.traffic.observation import MIN_GAP_M
from seqrl_ray.envs.traffic.safety import SafetyLayer
from seqrl_ray.envs.traffic.sensors import Sensors
from seqrl_ray.envs.traffic.simulation import Simulation
from seqrl_ray.errors import EnvError
from seqrl_ray.recipe_traffic import TrafficSettings
from seqrl_ray.types import FloatArray


class DistrictView:
    """What a function finds as `ts.env`: the clock, the signals, and sumo-rl's per-vehicle memory."""

    fixed_ts = False

    def __init__(
        self,
        network: Network,
        simulation: Simulation,
        sensors: Sensors,
        safety: SafetyLayer,
        settings: TrafficSettings,
    ) -> None:
        self.simulation, self.sensors, self.safety, self.settings = simulation, sensors, safety, settings
        self.ts_ids = [signal.id for signal in network.signals]
        self.vehicles: dict[str, dict[str, float]] = {}
        self.traffic_signals = {s.id: SignalView(n, s, network, self) for n, s in enumerate(network.signals)}

    @property
    def sim_step(self) -> float:
        """Simulated seconds."""
        return float(self.simulation.now_s)

    def start(self) -> None:
        """Begin an episode."""
        self.vehicles.clear()


class SignalView:
    """One signal as sumo-rl's functions expect it (`ts`). Lists are in sumo-rl's lane order."""

    MIN_GAP = MIN_GAP_M

    def __init__(self, place: int, signal: Signal, network: Network, env: DistrictView) -> None:
        self._place = place
        self.id, self.env, self.sumo = signal.id, env, env.simulation.api
        self.lanes, self.out_lanes = list(signal.lanes), list(signal.out_lanes)
        self.lanes_length = {lane: network.lanes[lane].length_m for lane in [*self.lanes, *self.out_lanes]}
        self.num_green_phases = len(signal.greens)
        settings = env.settings
        self.delta_time, self.yellow_time = settings.decision_s, settings.yellow_s
        self.min_green, self.max_green = settings.min_green_s, settings.max_green_s
        self.last_measure = 0.0
        self._in = np.array(env.sensors.places(self.lanes))
        self._out = np.array([env.sensors.out_lanes.index(lane) for lane in self.out_lanes], np.int64)

    @property
    def green_phase(self) -> int:
        """Index of the green shown or about to be shown."""
        return int(self.env.safety.phase[self._place])

    @property
    def time_since_last_phase_change(self) -> int:
        """Seconds since the last change began."""
        return int(self.env.safety.time_in_phase_s[self._place])

    @property
    def is_yellow(self) -> bool:
        """Whether the change is still running."""
        return 0 < self.time_since_last_phase_change < self.yellow_time

    def get_lanes_density(self) -> list[float]:
        """Vehicles over capacity per approach lane, in [0, 1]."""
        return self._share("vehicles")

    def get_lanes_queue(self) -> list[float]:
        """Halting vehicles over capacity per approach lane, in [0, 1]."""
        return self._share("halting")

    def get_out_lanes_density(self) -> list[float]:
        """Vehicles over capacity per lane released into, in [0, 1]."""
        count, length = self.sumo.lane.getLastStepVehicleNumber, self.sumo.lane.getLastStepLength
        return [min(1.0, count(i) / (self.lanes_length[i] / (MIN_GAP_M + length(i)))) for i in self.out_lanes]

    def get_total_queued(self) -> int:
        """Halting vehicles on the approach lanes."""
        return int(self.env.sensors.read("halting")[self._in].sum())

    def get_pressure(self) -> int:
        """Vehicles leaving less vehicles approaching."""
        read = self.env.sensors.read
        return int(read("out_vehicles")[self._out].sum() - read("vehicles")[self._in].sum())

    def get_average_speed(self) -> float:
        """Mean of speed over allowed speed of the approaching vehicles, 1.0 if there are none."""
        vehicle = self.sumo.vehicle
        shares = [vehicle.getSpeed(v) / vehicle.getAllowedSpeed(v) for v in self._get_veh_list()]
        return float(np.mean(shares)) if shares else 1.0

    def get_accumulated_waiting_time_per_lane(self) -> list[float]:
        """Seconds its vehicles waited on each approach lane."""
        result = []
        for lane in self.lanes:
            total = 0.0
            for vehicle in self.sumo.lane.getLastStepVehicleIDs(lane):
                seen = self.env.vehicles.setdefault(vehicle, {})
                elsewhere = sum(seconds for other, seconds in seen.items() if other != lane)
                seen[lane] = self.sumo.vehicle.getAccumulatedWaitingTime(vehicle) - elsewhere
                total += seen[lane]
            result.append(total)
        return result

    def _get_veh_list(self) -> list[str]:
        return [vehicle for lane in self.lanes for vehicle in self.sumo.lane.getLastStepVehicleIDs(lane)]

    def _share(self, quantity: str) -> list[float]:
        sensors = self.env.sensors
        capacity = sensors.length_m[self._in] / (MIN_GAP_M + sensors.read("vehicle_length")[self._in])
        return list(np.minimum(sensors.read(quantity)[self._in] / capacity, 1.0))


class ObservationPlugin:
    """A sumo-rl ObservationFunction per signal."""

    def __init__(self, name: str, view: DistrictView) -> None:
        make = load("observation_function", name)
        self._functions = [make(ts) for ts in view.traffic_signals.values()]
        self.sizes = [int(np.prod(function.observation_space().shape)) for function in self._functions]
        """[N] features of each signal."""

    def __call__(self) -> list[FloatArray]:
        """[N] vectors, float32."""
        return [np.asarray(function(), np.float32).reshape(-1) for function in self._functions]


def load(key: str, name: str) -> Callable[..., Any]:
    """Import `module:callable`.

    Raises: EnvError: it cannot be imported or is no callable.
    """
    ensure_sumo_home()  # importing sumo-rl, as such a module does, demands it
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise EnvError(
            f"env.{key}={name!r} cannot be imported ({error}): no function. Check the spelling and "
            "PYTHONPATH."
        ) from error
    if not callable(found):
        raise EnvError(
            f"env.{key}={name!r} is a {type(found).__name__}, not callable: no function. Name a class or a "
            "function."
        )
    return found  # type: ignore[no-any-return]
