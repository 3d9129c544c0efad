"""Named errors. Each message says what was given, which rule it breaks, the consequence, and what to change.

The command line prints a `SeqrlError` as one line and exits with its `exit_code`; anything else is a defect
and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SeqrlError(Exception):
    """Base of every error a user can cause or must act on."""

    exit_code = 2


class RecipeError(SeqrlError):
    """A recipe, an override or a settings value breaks a rule."""


class EnvError(SeqrlError):
    """An environment cannot be made, or breaks the contract."""


class RunFolderError(SeqrlError):
    """A folder is not a run, or a run folder lacks what was asked of it."""


class CheckpointError(SeqrlError):
    """A checkpoint is missing, damaged, or of another shape than the recipe asks for."""


class ReplayError(SeqrlError):
    """The experience service was asked for something its rules refuse."""


class DataError(SeqrlError):
    """An offline dataset is missing, damaged, or does not fit what is asked of it."""


class DivergedError(SeqrlError):
    """Learning gave a value that is not finite; going on would spread it to every weight and priority."""

    exit_code = 1


class WorkerError(SeqrlError):
    """A worker process failed in a way the run must not survive (the same application error twice)."""

    exit_code = 1


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Return ' Did you mean "x"?' for the closest known name, or '' if none is close."""
    close = difflib.get_close_matches(given, list(known), n=1, cutoff=0.55)
    return f' Did you mean "{close[0]}"?' if close else ""
