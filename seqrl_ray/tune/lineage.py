"""What the board's log tells: who stands on whom, and the schedule of values that made a member what it is.

A member's weights were made by a chain of members: its own steps since it copied, the donor's steps before
that, and so on. Laid end to end, with the values in force, the chain is a schedule for one run. Its clock is
the experience of the weights: where a donor was ahead of or behind who copied it, the steps of the chain
count, not the counter of who copied.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from seqrl_ray.errors import RunFolderError
from seqrl_ray.tune.space import Values

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Segment:
    """A stretch of one member's life under unchanged values."""

    member: int
    from_steps: int
    to_steps: int
    values: Values


def reports(rows: Rows, member: int) -> list[Mapping[str, Any]]:
    """Return a member's reports, in order."""
    return [row for row in rows if row["event"] == "report" and row["member"] == member]


def chain(rows: Rows, member: int, report: int | None = None) -> list[Segment]:
    """Return the segments that made a member's weights, the oldest first.

    Args:
        rows: of the board's log.
        member: who.
        report: as of which of its reports, before that report's decision; None = its newest.
    Raises: RunFolderError: it has not reported.
    """
    own = [row for row in reports(rows, member) if report is None or row["report"] <= report]
    if not own:
        raise RunFolderError(f"member {member} has made no report: it has no schedule. Let the sweep go on.")
    end = own[-1]
    changes = [row for row in own[:-1] if row["decision"]["action"] != "go on"]
    if not changes:
        return [Segment(member, 0, end["env_steps"], dict(rows[0]["members"][member]))]
    last = changes[-1]
    decision = last["decision"]
    segment = Segment(member, last["env_steps"], end["env_steps"], dict(decision["values"]))
    if decision["donor"] is None:
        return [segment]
    return [*chain(rows, decision["donor"], decision["donor_report"]), segment]


def schedule(segments: Sequence[Segment]) -> list[tuple[int, Values]]:
    """Return (step from which they are in force, values) of a run that goes through the segments."""
    found, at = [], 0
    for segment in segments:
        found.append((at, segment.values))
        at += segment.to_steps - segment.from_steps
    return found


def experience(segments: Sequence[Segment]) -> int:
    """Return the steps that made the weights at the end of the segments."""
    return sum(segment.to_steps - segment.from_steps for segment in segments)
