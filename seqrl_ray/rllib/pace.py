"""How long an iteration of RLlib's may last.

DQN, SAC, IMPALA and APPO learn in many small steps, and RLlib makes one iteration of as many as fit into some
seconds. A run's budget is counted between two iterations: as its end comes near they become shorter, down to
one small step, so that a run ends within about one of these of what it may make.
"""

from __future__ import annotations

from collections.abc import Mapping

SHORT_S = 0.05
"""The shortest time worth asking for; nearer to the end it is one small step."""

BLIND_S = 0.2
"""The longest iteration of a run that has made nothing yet: nobody knows how fast it will be."""

GROWTH = 2.0
"""An iteration lasts at most so many times as long as the one before: the first are of any speed."""


class Pace:
    """Measures a run's speed and says how long its next iteration may last."""

    def __init__(self, most_s: float) -> None:
        """Know no speed yet; `most_s`: the longest iteration."""
        self._most_s, self._last_s = most_s, 0.0
        self._speed: dict[str, float] = {}
        self._waited_s: dict[str, float] = {}

    def next_s(self, left: Mapping[str, int]) -> float:
        """Return how long the next iteration may last; 0 = one small step.

        Args:
            left: what is counted -> how much of it the run may still make.
        """
        if not self._last_s:
            return 0.0
        ends = [left[name] / speed for name, speed in self._speed.items() if name in left]
        grown = min(self._most_s, max(SHORT_S, GROWTH * self._last_s))
        seconds = min(grown, min(ends) / GROWTH if ends else BLIND_S)
        return seconds if seconds >= SHORT_S else 0.0

    def made(self, counts: Mapping[str, int], seconds: float) -> None:
        """Take note of an iteration: what it made, and how long it lasted."""
        self._last_s = seconds
        for name, count in counts.items():
            waited = self._waited_s.get(name, 0.0) + seconds
            if count > 0:  # answers that come rarely are of all the time since the last one
                self._speed[name] = count / max(waited, 1e-6)
            self._waited_s[name] = 0.0 if count > 0 else waited
