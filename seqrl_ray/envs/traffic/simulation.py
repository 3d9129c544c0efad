"""One SUMO simulation through libsumo: start, step, show states, end, and the record SUMO kept.

Source: https://sumo.dlr.de/docs/Libsumo.html. libsumo is one simulation per *process*: a second `Simulation`
in a process is refused here, because SUMO would silently end the first. SUMO is deterministic: the same seed
and states give the same traffic. SUMO writes two records per episode into a private temporary folder: one row
per trip (`tripinfo`), and one row per change of a signal's shown state (`SaveTLSSwitchStates`), which is what
the safety audit reads.
"""

from __future__ import annotations

import gc
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np

from seqrl_ray.envs.traffic.files import ensure_sumo_home
from seqrl_ray.envs.traffic.safety import Command
from seqrl_ray.errors import EnvError
from seqrl_ray.recipe_traffic import TrafficSettings

_owner: weakref.ref[Simulation] | None = None


@dataclass(frozen=True)
class Episode:
    """What distinguishes one run of a district from another, besides the states that are shown."""

    seed: int
    begin_s: int
    teleport_s: int = -1
    ignore_blocker_s: int = -1
    scale: float = 1.0

    def options(self) -> list[str]:
        """SUMO's command line for it."""
        options = {
            "--seed": self.seed,
            "--begin": self.begin_s,
            "--time-to-teleport": self.teleport_s,
            "--ignore-junction-blocker": self.ignore_blocker_s,
            "--scale": self.scale,
        }
        return [str(part) for pair in options.items() for part in pair]


def episode_of(settings: TrafficSettings, seed: int, *, evaluation: bool) -> Episode:
    """Return the episode that a seed names; in training with the recipe's aids."""
    scale = settings.demand_scale
    if settings.training_demand_scale is not None and not evaluation:
        scale = float(np.random.default_rng(seed).uniform(*settings.training_demand_scale))
    teleport_s = -1 if evaluation else settings.training_teleport_s
    return Episode(seed, settings.begin_s, teleport_s, settings.ignore_junction_blocker_s, scale)


def district_options(net: Path, route: Path) -> list[str]:
    """SUMO's command line for a district, as every run of it has it."""
    files = ["--net-file", str(net), "--route-files", str(route)]
    limits = ["--waiting-time-memory", "1000", "--max-depart-delay", "-1"]
    return [*files, "--no-warnings", "--xml-validation", "never", *limits]


def sumo_version() -> str:
    """Return what SUMO calls itself, e.g. "SUMO 1.28.0"; it is loaded into this process.

    Raises: ImportError: libsumo is not installed, or does not load here.
    """
    import libsumo

    return str(libsumo.getVersion()[1])


class Simulation:
    """The process's one SUMO."""

    def __init__(
        self,
        net: Path,
        route: Path,
        signals: Iterable[str],
        *,
        emissions: bool,
        program: str | None = None,
        trips: bool = True,
    ) -> None:
        """Take the process's place for SUMO; nothing runs before `start`.

        Args:
            net: SUMO net file.
            route: SUMO route file.
            signals: ids whose shown states are recorded.
            emissions: record CO2 and fuel per trip.
            trips: record one row per trip.
            program: further `<tlLogic>` elements to load, or None.
        Raises: EnvError: this process already has a live simulation.
        """
        global _owner
        if _owner is not None and _owner() is not None:
            gc.collect()  # a forgotten one may only wait for the collector
        if _owner is not None and _owner() is not None:
            raise EnvError(
                "a second traffic environment in one process is refused: libsumo is one simulation per "
                "process, and the first would end silently. Close the first, or start the second in its own."
            )
        import libsumo  # a simulator enters the process only when one is wanted

        ensure_sumo_home()
        _owner = weakref.ref(self)
        self.api: Any = libsumo
        self._folder = Path(tempfile.mkdtemp(prefix="seqrl-traffic-"))
        self._cleanup = weakref.finalize(self, _leave, libsumo, self._folder)
        self._running = False
        self.now_s = 0
        self.trips_file = self._folder / "trips.xml"
        self.states_file = self._folder / "states.xml"
        additional = self._folder / "additional.xml"
        events = "".join(
            f'<timedEvent type="SaveTLSSwitchStates" source={quoteattr(s)} '
            f"dest={quoteattr(str(self.states_file))}/>"
            for s in signals
        )
        additional.write_text(f"<additional>{program or ''}{events}</additional>", encoding="utf-8")
        self._errors = self._folder / "errors.txt"
        self._command = ["sumo", *district_options(net, route), "--additional-files", str(additional)]
        self._command += ["--error-log", str(self._errors), "--no-step-log", "--duration-log.disable"]
        if trips:
            self._command += ["--tripinfo-output", str(self.trips_file)]
            self._command += ["--tripinfo-output.write-unfinished", "--tripinfo-output.write-undeparted"]
        if emissions:
            self._command += ["--device.emissions.probability", "1"]

    def start(self, episode: Episode) -> None:
        """Begin an episode; ends the one before, if any.

        Raises: EnvError: with SUMO's own words, if it cannot load the district.
        """
        self.end()
        self._call(self.api.start, self._command + episode.options())
        self._running = True
        self.now_s = episode.begin_s

    def call(self, domain: str, name: str) -> Callable[..., Any]:
        """Return libsumo's function, past its Python wrapper, which costs as much as the read behind it."""
        wrapped: Callable[..., Any] = getattr(getattr(self.api, domain), name)
        return getattr(getattr(self.api, "_libsumo", None), f"{domain}_{name}", wrapped)

    def show(self, commands: Iterable[Command]) -> None:
        """Show signal states from now on."""
        show = self.api.trafficlight.setRedYellowGreenState
        for command in commands:
            show(command.signal, command.state)

    def run_to(self, time_s: int) -> None:
        """Simulate to `time_s`, in SUMO's 1 s steps but in one call."""
        self._call(self.api.simulationStep, float(time_s))
        self.now_s = time_s

    def statistic(self, name: str) -> int:
        """One of SUMO's running totals, e.g. `teleports.total` or `vehicles.loaded`."""
        return int(self.api.simulation.getParameter("", f"stats.{name}"))

    def end(self) -> None:
        """End the running episode, if any: SUMO completes its records."""
        if self._running:
            self._running = False
            self.api.close()

    def close(self) -> None:
        """End the episode, delete the records and give up the process's place for SUMO. May be called
        twice.
        """
        global _owner
        self.end()
        self._cleanup()
        if _owner is not None and _owner() is self:
            _owner = None

    def _call(self, function: Any, argument: Any) -> None:
        try:
            function(argument)
        except self.api.TraCIException as error:
            self._running = False
            said = " ".join(self._errors.read_text(encoding="utf-8").split()) if self._errors.exists() else ""
            raise EnvError(f"SUMO stopped: {error} {said}".rstrip()) from error


def _leave(api: Any, folder: Path) -> None:
    if api.simulation.isLoaded():
        api.close()
    shutil.rmtree(folder)
