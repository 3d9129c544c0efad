"""The layer between any policy and the signals: yellow, all-red, minimum and maximum green, legal
transitions.

Source: sumo-rl's rule for the transition state (a link green now and red or `s` next shows yellow, every
other link keeps its state) and for the first green of an episode (it counts as begun after one yellow, so a
switch is first legal when min_green has passed after that). Red extension: NTCIP 1202, "red clearance
extension", with the lanes inside the junction as its detectors. Ours: all-red, maximum green, cyclic
transitions, the mask, and the count of refusals. A *refusal* is a wish the layer did not carry out; a
*violation* is an unsafe sequence that SUMO really showed, and is judged from SUMO's own record in `audit.py`,
not here.

Dims: N signals, A actions (most greens of any signal), P greens of one signal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from seqrl_ray.envs.traffic.net import GREEN, Signal
from seqrl_ray.recipe_traffic import TrafficSettings
from seqrl_ray.types import BoolArray, IntArray


@dataclass(frozen=True)
class Command:
    """Show `state` at `signal`, `after_s` seconds into the decision."""

    after_s: int
    signal: str
    state: str
    clears: tuple[str, ...] = ()
    """Lanes inside the junction that should be empty first: without a red extension, none."""
    meanwhile: str = ""
    """What the signal shows while it waits for that."""


def yellow_state(now: str, then: str) -> str:
    """State between two greens: yellow where a green link will be red (or may only turn right), the old state
    elsewhere.
    """
    return "".join("y" if a in GREEN and b in "rs" else a for a, b in zip(now, then, strict=True))


class SafetyLayer:
    """Turns wished phases into timed signal states that keep the rules of a recipe."""

    def __init__(self, signals: Sequence[Signal], settings: TrafficSettings) -> None:
        self._signals = tuple(signals)
        self._settings = settings
        self._change_s = settings.yellow_s + settings.all_red_s
        self._counts = np.array([len(s.greens) for s in signals])
        self._rows = np.arange(len(signals))
        self._own = np.arange(self._counts.max()) < self._counts[:, None]  # [N, A]
        self._own.flags.writeable = False
        self._place = {signal.id: n for n, signal in enumerate(signals)}
        self._known: dict[tuple[int, int, int], tuple[Command, ...]] = {}
        self.refusals = 0
        """Wishes not carried out since `start`."""
        self.phase = np.zeros(len(signals), np.int64)
        """[N] green shown, or about to be shown after the running yellow."""
        self.changed_s = np.zeros(len(signals), np.int64)
        """[N] when the last change began (its yellow), simulated seconds."""
        self._green_since_s = np.zeros(len(signals), np.int64)
        self._free_s = np.zeros(len(signals), np.int64)
        """[N] when the minimum green is over."""
        self._now_s = 0
        self._legal = self._own
        self._young: list[int] = []  # signals whose minimum green may not be over

    def start(self, now_s: int) -> list[Command]:
        """Begin an episode: every signal shows its first green."""
        self.refusals = 0
        self.phase[:] = 0
        self.changed_s[:] = now_s
        self._green_since_s[:] = now_s
        self._free_s[:] = now_s + self._change_s + self._settings.min_green_s
        self._young = list(range(len(self._signals)))
        self.advance(now_s)
        return [Command(0, s.id, s.greens[0]) for s in self._signals]

    def advance(self, now_s: int) -> None:
        """Set the clock to the next decision and work out what is legal then."""
        self._now_s = now_s
        s = self._settings
        self._young = [n for n in self._young if now_s < self._free_s[n]]
        if s.transitions == "any" and s.max_green_s is None:
            self._legal = self._but_young()  # the usual case
            return
        free = self.free
        if s.transitions == "any":
            reach = self._own
        else:
            reach = np.zeros_like(self._own)
            reach[self._rows, (self.phase + 1) % self._counts] = True
        legal = reach & free[:, None]  # [N, A]
        hold = np.ones(len(legal), bool)
        if s.max_green_s is not None:
            hold = ~(free & (now_s - self._green_since_s + s.decision_s > s.max_green_s))
        legal[self._rows, self.phase] = hold
        legal.flags.writeable = False
        self._legal = legal

    def _but_young(self) -> BoolArray:
        """[N, A] every green, or the present one alone where the minimum green is not over."""
        if not self._young:
            return self._own
        legal = self._own.copy()
        for n in self._young:
            legal[n] = False
            legal[n, self.phase[n]] = True
        legal.flags.writeable = False
        return legal

    @property
    def time_in_phase_s(self) -> IntArray:
        """[N] seconds since the last change began, its yellow included."""
        return self._now_s - self.changed_s

    @property
    def free(self) -> BoolArray:
        """[N] the minimum green is over."""
        free: BoolArray = self._now_s >= self._free_s
        return free

    @property
    def legal(self) -> BoolArray:
        """[N, A] what each signal may be asked now, read-only; at least one action is always legal."""
        return self._legal

    def decide(self, wish: IntArray) -> list[Command]:
        """Carry out what is legal of the wishes at the current clock.

        Args: wish: [N] int64, a green index per signal. An illegal one is counted as refused: the signal then
            keeps its green, or moves to the programme's next where its maximum green is over.
        Returns: the states to show, for the whole decision.
        """
        commands: list[Command] = []
        for n, (now, then, allowed) in enumerate(
            zip(self.phase.tolist(), wish.tolist(), self._legal.tolist(), strict=True)
        ):
            if not 0 <= then < len(allowed) or not allowed[then]:
                self.refusals += 1
                then = now if allowed[now] else (now + 1) % int(self._counts[n])
            if then != now:
                commands.extend(self._changes(n, now, then))
                self.phase[n] = then
                self._young.append(n)
                self.changed_s[n] = self._now_s
                self._green_since_s[n] = self._now_s + self._change_s
                self._free_s[n] = self._green_since_s[n] + self._settings.min_green_s
        return commands

    def held(self, command: Command, at_s: int) -> bool:
        """Whether a green that is due may wait one more second, and count that second if so.

        Args:
            command: one with lanes to clear, and a vehicle on one of them.
            at_s: seconds into the decision.
        """
        if at_s >= self._change_s + self._settings.red_extension_s:
            return False
        n = self._place[command.signal]
        self._green_since_s[n] += 1
        self._free_s[n] += 1
        return True

    def _changes(self, n: int, now: int, then: int) -> tuple[Command, ...]:
        """States of signal `n` on the way between two greens; computed once."""
        known = self._known.get((n, now, then))
        if known is None:
            signal, s = self._signals[n], self._settings
            yellow = yellow_state(signal.greens[now], signal.greens[then])
            cleared = yellow.replace("y", "r")
            clearance = (Command(s.yellow_s, signal.id, cleared),) if s.all_red_s else ()
            green = Command(self._change_s, signal.id, signal.greens[then])
            if s.red_extension_s:
                ends = (m.inside for m in signal.movements if yellow[m.link] == "y" and m.inside)
                green = replace(green, clears=tuple(dict.fromkeys(ends)), meanwhile=cleared)
            known = self._known[n, now, then] = (Command(0, signal.id, yellow), *clearance, green)
        return known
