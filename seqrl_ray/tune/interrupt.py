"""Ctrl-C (or SIGTERM) of a sweep: Tune ends as it does for its own handler, and we know that it was asked to.

Tune saves its trials as they stand, to be gone on with, only when its own handler hears a signal; afterwards
nothing tells such an end from one that came by itself. So its handler of SIGINT is left out
(`TUNE_DISABLE_SIGINT_HANDLER`), and ours passes the wish on by SIGUSR1, which Tune always heeds (Ray 2.60).
"""

from __future__ import annotations

import os
import signal
from types import FrameType, TracebackType
from typing import Any


class Interrupt:
    """Inside the block the first Ctrl-C (or SIGTERM) ends Tune's run in order; a second one ends at once."""

    def __init__(self) -> None:
        self.asked = False
        self._old: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
        try:
            self._old[signal.SIGUSR1] = signal.signal(signal.SIGUSR1, signal.SIG_DFL)  # Tune's comes later
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old[number] = signal.signal(number, self._heard)
        except ValueError:  # not the main thread: whoever owns it handles signals
            pass
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        if self.asked or signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL:  # Tune does not listen yet
            self.asked = True
            raise KeyboardInterrupt
        self.asked = True
        signal.raise_signal(signal.SIGUSR1)
