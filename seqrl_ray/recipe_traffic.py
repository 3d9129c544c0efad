"""The `[env]` table of a traffic recipe: one SUMO district, all its signals, one decision at a time.

Source: timing of the packaged maps is RESCO's (Ault & Sharon 2021, https://github.com/jault/RESCO,
`map_config.py`): 10 s decisions with 3 s yellow, and 5 s / 2 s on arterial4x4; keys that share a meaning with
sumo-rl carry its rules.
Departs from RESCO: it has no minimum green, here the minimum green is one that its timing always meets.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from pydantic import model_validator

from seqrl_ray.settings import Settings, key


class MapTiming(NamedTuple):
    """RESCO's window and timing of one packaged map, all in simulated seconds."""

    begin_s: int
    end_s: int
    decision_s: int
    yellow_s: int
    min_green_s: int


MAPS: dict[str, MapTiming] = {
    "cologne1": MapTiming(25200, 28800, 10, 3, 5),
    "cologne3": MapTiming(25200, 28800, 10, 3, 5),
    "cologne8": MapTiming(25200, 28800, 10, 3, 5),
    "ingolstadt1": MapTiming(57600, 61200, 10, 3, 5),
    "ingolstadt7": MapTiming(57600, 61200, 10, 3, 5),
    "ingolstadt21": MapTiming(57600, 61200, 10, 3, 5),
    "grid4x4": MapTiming(0, 3600, 10, 3, 5),
    "arterial4x4": MapTiming(0, 3600, 5, 2, 3),
}

ObservationPart = Literal[
    "sumo_rl",
    "phase",
    "time_in_phase",
    "halting",
    "moving",
    "waiting",
    "speed",
    "upstream",
    "downstream",
    "backlog",
    "neighbours",
    "inside",
]
DEFAULT_OBSERVATION = ("halting", "moving", "waiting", "speed", "upstream", "phase", "time_in_phase")


class TrafficSettings(Settings):
    """All traffic signals of a SUMO net, driven together. Times are whole simulated seconds; SUMO steps by 1
    s.
    """

    kind: Literal["traffic"] = "traffic"
    map: str | None = key(None, f"a packaged RESCO map, instead of net and route: {', '.join(MAPS)}")
    net: str | None = key(
        None, "SUMO net file: absolute, relative to the recipe, or inside the sumo-rl wheel's nets folder"
    )
    route: str | None = key(None, "SUMO route file, looked up like net")

    begin_s: int = key(0, "start of the episode's window", unit="s", ge=0)
    end_s: int = key(3600, "end of the window, a truncation", unit="s", gt=0)
    decision_s: int = key(10, "time between two decisions of all signals", unit="s", ge=2, le=120)
    yellow_s: int = key(3, "yellow of every link that loses its green", unit="s", ge=1, le=10)
    all_red_s: int = key(0, "clearance between the yellow and the next green", unit="s", ge=0, le=10)
    red_extension_s: int = key(
        0,
        "a green waits at most this much longer while vehicles of the movements that lost theirs still "
        "stand inside the junction; 0 never",
        unit="s",
        ge=0,
        le=30,
    )
    min_green_s: int = key(5, "a green phase is not left earlier", unit="s", ge=0, le=120)
    max_green_s: int | None = key(
        None, "a green phase is left at the latest decision that keeps to this", unit="s", ge=1
    )
    transitions: Literal["any", "cyclic"] = key(
        "any", "which green may follow which: any, or only the programme's next"
    )

    training_teleport_s: int = key(
        -1,
        "SUMO removes a vehicle stuck this long to its next free edge, in training only; -1 never",
        unit="s",
        ge=-1,
    )
    ignore_junction_blocker_s: int = key(
        -1,
        "vehicles stuck on a junction this long stop blocking others (SUMO's own remedy); -1 never",
        unit="s",
        ge=-1,
    )
    demand_scale: float = key(1.0, "demand is multiplied by this", unit="x", gt=0.0, le=10.0)
    training_demand_scale: tuple[float, float] | None = key(
        None, "in training each episode draws its demand scale uniformly from this range instead", unit="x"
    )
    training_trip_metrics: bool = key(
        True,
        "score trips (delay_s, travel_time_s, ...) in training too; without, training episodes are about a "
        "tenth cheaper "
        "and report return, queue, teleports and safety only",
    )
    emissions: bool = key(False, "also report co2_kg and fuel_kg (about a fifth more simulation time)")

    sensing_m: float = key(
        200.0,
        "how far back from the stop line the edges that feed a lane are followed across unsignalised "
        "junctions; the approach lane itself is always read whole",
        unit="m",
        ge=0.0,
        le=2000.0,
    )
    observation: tuple[ObservationPart, ...] = key(
        DEFAULT_OBSERVATION, "parts of a signal's observation, in this order", min_length=1
    )
    observation_function: str | None = key(
        None, "module:Class, a sumo-rl ObservationFunction used instead of the parts", pattern=r"^[\w.]+:\w+$"
    )

    reward: Literal["delay", "queue", "waiting", "pressure"] = key(
        "delay",
        "delay: -vehicles x (1 - speed/limit); queue: -halting vehicles; waiting: sumo-rl's change of "
        "accumulated waiting / 100; pressure: vehicles leaving - approaching",
    )
    reward_upstream: bool = key(True, "delay and queue also count the edges within sensing_m")
    reward_inside: bool = key(False, "delay and queue also count vehicles held up inside the junctions")
    reward_samples: int = key(
        3, "delay and queue are means of this many samples, evenly spaced in a decision", ge=1, le=60
    )
    reward_scale: float = key(10.0, "the learner's reward is divided by this; scores never are", gt=0.0)
    reward_clip: float | None = key(4.0, "the learner's scaled reward is clipped to +- this", gt=0.0)
    reward_function: str | None = key(
        None, "module:callable of a sumo-rl traffic signal, used instead of reward", pattern=r"^[\w.]+:\w+$"
    )

    max_red_s: int = key(
        120,
        "starvation guard of max_pressure, occupancy and greedy: a lane, or what feeds it within sensing_m, "
        "where a vehicle stood without green for this long is served next",
        unit="s",
        ge=1,
    )

    @model_validator(mode="before")
    @classmethod
    def _timing_of_the_map(cls, given: Any) -> Any:
        if not isinstance(given, dict) or given.get("map") is None:
            return given
        if given["map"] not in MAPS:
            raise ValueError(
                f"map={given['map']!r} is not packaged: there is no net to load. "
                f"Use one of {', '.join(MAPS)}, or give net and route."
            )
        return {**MAPS[given["map"]]._asdict(), **given}

    @model_validator(mode="after")
    def _consistent(self) -> TrafficSettings:
        if (self.map is None) == (self.net is None) or (self.net is None) != (self.route is None):
            raise ValueError(
                f"map={self.map!r}, net={self.net!r}, route={self.route!r} do not name one district: "
                "nothing can be simulated. Give either map, or net and route."
            )
        window = self.end_s - self.begin_s
        if window <= 0 or window % self.decision_s:
            raise ValueError(
                f"end_s={self.end_s} must be begin_s={self.begin_s} plus a multiple of "
                f"decision_s={self.decision_s}: the last decision would be cut short. Change end_s."
            )
        change_s = self.yellow_s + self.all_red_s + self.red_extension_s
        if self.decision_s <= change_s:
            raise ValueError(
                f"decision_s={self.decision_s} must exceed yellow_s + all_red_s + red_extension_s = "
                f"{change_s}: a phase would be left before it showed green. Raise decision_s."
            )
        least_max_s = (
            self.min_green_s + change_s + self.decision_s
        )  # an episode's first green waits one change longer
        if self.max_green_s is not None and self.max_green_s < least_max_s:
            raise ValueError(
                f"max_green_s={self.max_green_s} is below min_green_s + yellow_s + all_red_s + "
                f"red_extension_s + decision_s = {least_max_s}: no decision may fall between the two limits. "
                "Raise max_green_s."
            )
        if self.reward_samples > self.decision_s:
            raise ValueError(
                f"reward_samples={self.reward_samples} exceeds decision_s={self.decision_s}: "
                "SUMO has one state per second. Lower reward_samples."
            )
        scales = self.training_demand_scale
        if scales is not None and not 0 < scales[0] <= scales[1]:
            raise ValueError(
                f"training_demand_scale={list(scales)} is not a range of positive numbers: "
                "no demand can be drawn. Give [low, high]."
            )
        return self
