"""Rewards of all signals, in raw units; scaling and clipping for the learner is the environment's last step.

Source: `waiting` is sumo-rl's diff-waiting-time, `pressure` its pressure (TrafficSignal.compute_reward,
1.4.5). `delay` and `queue` are ours: minus the vehicle-seconds lost per second, or minus the halting
vehicles, on the approach lanes and, as a recipe chooses, on the edges that feed them; means over evenly
spaced samples of the decision.
Departs from sumo-rl: accumulated waiting is computed once per decision, not once for the reward and again for
the information.

Dims: N signals, A approach lanes, U upstream edges.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from seqrl_ray.envs.traffic.net import Network
from seqrl_ray.envs.traffic.sensors import Sensors
from seqrl_ray.envs.traffic.simulation import Simulation
from seqrl_ray.recipe_traffic import TrafficSettings
from seqrl_ray.types import FloatArray


class Rewards:
    """Samples within a decision, and the reward at its end."""

    def __init__(
        self, settings: TrafficSettings, network: Network, sensors: Sensors, simulation: Simulation
    ) -> None:
        self._settings, self._sensors = settings, sensors
        self._sampled = settings.reward in ("delay", "queue") and settings.reward_function is None
        samples = settings.reward_samples if self._sampled else 0
        self.sample_times_s = tuple(settings.decision_s * (k + 1) // samples for k in range(samples))
        """Seconds into a decision at which `sample` must be called, the last of them at its end."""
        self._sum = np.zeros(len(network.signals))
        self._waiting = AccumulatedWaiting(simulation, sensors.lanes)
        self._last_wait = np.zeros(len(network.signals))

    def start(self) -> None:
        """Begin an episode."""
        self._sum[:] = 0.0
        self._last_wait[:] = 0.0
        self._waiting.start()

    def sample(self) -> None:
        """Take one sample of the current second."""
        s = self._sensors
        delay = self._settings.reward == "delay"
        lost = s.signal_lanes @ (s.lane_delay() if delay else s.read("halting"))  # [N]
        if self._settings.reward_upstream:
            lost += s.signal_up @ (s.up_delay() if delay else s.read("up_halting"))
        if self._settings.reward_inside:
            lost += s.signal_inside @ (s.inside_delay() if delay else s.read("inside_halting"))
        self._sum -= lost

    def collect(self) -> FloatArray:
        """[N] float64 raw reward of the decision that just ended."""
        s = self._sensors
        if self._settings.reward == "pressure":
            return s.signal_out @ s.read("out_vehicles") - s.signal_lanes @ s.read("vehicles")
        if self._settings.reward == "waiting":
            wait = s.signal_lanes @ self._waiting.per_lane(s.occupied()) / 100.0  # [N]
            reward = self._last_wait - wait
            self._last_wait = wait
            return reward
        reward = self._sum / len(self.sample_times_s)
        self._sum = np.zeros_like(self._sum)
        return reward


class AccumulatedWaiting:
    """sumo-rl's accumulated waiting per lane: what its vehicles waited in all, less what they waited on other
    approach lanes.
    """

    def __init__(self, simulation: Simulation, lanes: tuple[str, ...]) -> None:
        self._lanes = lanes
        self._vehicles_of = simulation.call("lane", "getLastStepVehicleIDs")
        self._waited = simulation.call("vehicle", "getAccumulatedWaitingTime")
        self._history: dict[str, dict[str, float]] = {}

    def start(self) -> None:
        """Forget the vehicles of the last episode."""
        self._history = {}

    def per_lane(self, occupied: Sequence[int]) -> FloatArray:
        """[A] seconds, float64; `occupied` are the positions of the lanes with vehicles."""
        vehicles_of, waited, history = self._vehicles_of, self._waited, self._history
        total = np.zeros(len(self._lanes))
        for place in occupied:
            lane, wait = self._lanes[place], 0.0
            for vehicle in vehicles_of(lane):
                own = waited(vehicle)
                before = history.get(vehicle)
                if before is None:
                    history[vehicle] = {lane: own}
                else:
                    for elsewhere, seconds in before.items():
                        if elsewhere != lane:
                            own -= seconds
                    before[lane] = own
                wait += own
            total[place] = wait
        return total
