"""The population board's rules, without Ray: who copies whom, with which values, from a log that can be read
again.

Source: population based training, Jaderberg et al. (2017), arXiv:1711.09846, truncation selection. Departs
from Ray Tune's in what its users complain of: a score that is not finite is the worst there is and is
replaced at its next report, whatever the interval; values are held to their bounds; nobody is paused; the
state is the log's, so that a board read again goes on with the same ages, scores, lineage and random numbers.

A member reports (number of the report, steps, score) and is told what to do: go on, copy, or begin anew. Who
copies takes over what the donor had learned at the donor's newest report, so score and weights are of one
moment. Until its own next report, who copied keeps its old place in the ranking (or else the next in line
would be the worst, and copy too) and is nobody's donor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from seqrl_ray.tune.space import Space, Values

Action = Literal["go on", "copy", "anew"]


@dataclass(frozen=True)
class Rules:
    """What `[scheduler]` says about a population."""

    quantile: float = 0.25
    resample: float = 0.25
    factor: float = 1.2
    interval_reports: int = 1
    burn_in_reports: int = 0
    lower_is_better: bool = False


@dataclass(frozen=True)
class Decision:
    """What a member that has reported is to do."""

    action: Action
    values: Values
    """Of its hyper-parameters from now on."""
    donor: int | None = None
    donor_report: int | None = None


@dataclass
class Member:
    """One member as the board knows it."""

    values: Values
    report: int = 0
    """Number of its newest report, from 1; 0 = it has not reported."""
    env_steps: int = 0
    score: float | None = None
    own: bool = False
    """Whether `score` is of the weights it has, not of those it had before it copied."""
    changed_at: int = 0
    """Report at which it copied or began anew last."""
    finished: bool = False
    decision: Decision | None = field(default=None, repr=False)


class Population:
    """All members; see the module docstring."""

    def __init__(self, space: Space, rules: Rules, size: int, seed: int) -> None:
        """Draw every member's first values."""
        self.space, self.rules = space, rules
        self._rng = np.random.Generator(np.random.PCG64(seed))
        self.members = [Member(space.draw(self._rng)) for _ in range(size)]

    def begin_row(self) -> dict[str, Any]:
        """Return the first row of the log."""
        return {
            "event": "begin",
            "members": [m.values for m in self.members],
            "rng": self._rng.bit_generator.state,
        }

    # ------------------------------------------------------------------------------------------- deciding

    def report(
        self, member: int, report: int, env_steps: int, score: float, *, last: bool
    ) -> tuple[Decision, dict[str, Any]]:
        """Hear a member's score and decide.

        Args:
            member: who.
            report: number of the report, from 1; one heard before gets the same answer again.
            env_steps: steps the member has made.
            score: in the metric's unit; may be NaN or infinite.
            last: the member's budget is spent: nothing would come of a copy.
        Returns: the decision and its row for the log ({} for a report heard before).
        Raises: ValueError: a report is missing between the newest one and this.
        """
        one = self.members[member]
        if report <= one.report:
            assert one.decision is not None
            return one.decision, {}
        if report != one.report + 1:
            raise ValueError(f"member {member} reports {report} after {one.report}: one is missing.")
        one.report, one.env_steps, one.score, one.own, one.finished = report, env_steps, score, True, last
        before = dict(one.values)
        decision = Decision("go on", before) if last else self._decide(member)
        self._apply(member, decision)
        return decision, {
            "event": "report",
            "member": member,
            "report": report,
            "env_steps": env_steps,
            "score": score if math.isfinite(score) else None,
            "score_text": None if math.isfinite(score) else str(score),
            "last": last,
            "before": before,
            "decision": asdict(decision),
            "rng": self._rng.bit_generator.state,
        }

    def fitness(self, member: int) -> float:
        """Return a member's score, higher is better; NaN and both infinities are the worst, -inf."""
        score = self.members[member].score
        if score is None or not math.isfinite(score):
            return -math.inf
        return -score if self.rules.lower_is_better else score

    def ranked(self) -> list[int]:
        """Return the members that have a score, the worst first; of equals the lowest number first."""
        known = [i for i, m in enumerate(self.members) if m.score is not None]
        return sorted(known, key=lambda i: (self.fitness(i), i))

    def winner(self) -> int | None:
        """Return the member with the best score of its own; None while none has a finite one."""
        mine = [i for i in self.ranked() if self.members[i].own and math.isfinite(self.fitness(i))]
        return max(mine, key=lambda i: (self.fitness(i), -i)) if mine else None

    def pinned(self, member: int) -> set[int]:
        """Return the reports of `member` that others copied and have not reported since: their checkpoints
        are still needed if the machine dies now.
        """
        return {
            m.decision.donor_report
            for m in self.members
            if m.decision is not None and m.decision.donor == member and m.decision.donor_report is not None
        }

    def _decide(self, member: int) -> Decision:
        one = self.members[member]
        ranked = self.ranked()
        diverged = not math.isfinite(self.fitness(member))
        if not diverged:
            due = one.report > self.rules.burn_in_reports
            due = due and one.report - one.changed_at >= self.rules.interval_reports
            if not due or len(ranked) < len(self.members):
                return Decision("go on", dict(one.values))
        count = max(1, int(len(self.members) * self.rules.quantile))
        donors = [
            i
            for i in ranked[-count:]
            if self.members[i].own and self.fitness(i) > self.fitness(member) and i != member
        ]
        if diverged and not donors:  # the best may just have copied: anyone that is sound will do
            donors = [i for i in ranked if self.members[i].own and self.fitness(i) > -math.inf]
        if diverged and not donors:
            return Decision("anew", self.space.draw(self._rng))
        if not donors or (not diverged and member not in ranked[:count]):
            return Decision("go on", dict(one.values))
        donor = donors[int(self._rng.integers(len(donors)))]
        values = self.space.explore(
            self.members[donor].values, self._rng, resample=self.rules.resample, factor=self.rules.factor
        )
        return Decision("copy", values, donor, self.members[donor].report)

    def _apply(self, member: int, decision: Decision) -> None:
        one = self.members[member]
        one.decision, one.values = decision, dict(decision.values)
        if decision.action == "go on":
            return
        one.changed_at, one.own = one.report, False

    # ---------------------------------------------------------------------------------------- going on

    @classmethod
    def from_rows(cls, space: Space, rules: Rules, rows: Sequence[Mapping[str, Any]]) -> Population:
        """Rebuild a population from its log: what was decided is taken as it stands, not decided again."""
        first = rows[0]
        population = cls(space, rules, len(first["members"]), 0)
        population.members = [Member(dict(values)) for values in first["members"]]
        state = first["rng"]
        for row in rows[1:]:
            if row["event"] != "report":
                continue
            one = population.members[row["member"]]
            one.report, one.env_steps, one.finished, one.own = (
                row["report"],
                row["env_steps"],
                row["last"],
                True,
            )
            one.score = score_of(row)
            population._apply(row["member"], Decision(**row["decision"]))
            state = row["rng"]
        population._rng.bit_generator.state = state
        return population


def score_of(row: Mapping[str, Any]) -> float:
    """Return the score of a log's report; JSON has no NaN, so one that is not finite stands beside it as
    text.
    """
    return float(row["score_text"]) if row["score"] is None else float(row["score"])
