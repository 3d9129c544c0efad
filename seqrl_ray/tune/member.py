"""One member of a population: train, score, save, report, do what the board says; again.

The order is what makes a kill at any moment harmless. The checkpoint is written before the report; the board
writes the report and its decision to the log before it answers; the decision is carried out last. A member
that begins again is told its newest report in the log: it goes on from that report's checkpoint and carries
the decision out again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from seqrl_ray.loops.living import Replay
from seqrl_ray.tune.board import DEFAULT, Answer, Joined
from seqrl_ray.tune.population import Decision
from seqrl_ray.tune.run import Stretch


class Run(Protocol):
    """What a member trains; `seqrl_ray.tune.run.TrialRun` is the real one."""

    env_steps: int

    def train(self, env_steps: int, mend: Callable[[], None]) -> Stretch: ...
    def judge(self, seeds: Sequence[int]) -> list[float]: ...
    def save(self) -> str: ...
    def learned(self) -> Any: ...
    def adopt(self, learned: Any, donor: Path | None, replay: Replay) -> None: ...
    def set_values(self, values: Mapping[str, Any]) -> None: ...
    def prune(self, keep: Collection[str]) -> None: ...
    def note(self, event: str, **fields: Any) -> None: ...
    def end(self, status: str) -> None: ...
    def close(self) -> None: ...


class BoardDoor(Protocol):
    """How a member reaches the board, wherever it stands."""

    def join(self, member: int) -> Joined: ...
    def report(
        self, member: int, report: int, env_steps: int, score: float, **details: Any
    ) -> Answer: ...


@dataclass(frozen=True)
class Terms:
    """What all members of a sweep have in common."""

    report_env_steps: int
    env_steps: int
    """Budget of each member."""
    seeds: tuple[int, ...]
    replay: Replay


class Member:
    """One living run of a population; see the module docstring."""

    def __init__(
        self,
        number: int,
        terms: Terms,
        board: BoardDoor,
        make: Callable[[Joined], Run],
        *,
        score: Callable[[Sequence[float]], float],
        checkpoint_of: Callable[[int, str], Path],
    ) -> None:
        """Join the board and begin, or take up, the run.

        Args:
            number: of the member; DEFAULT for the trial beside the population.
            terms: of the sweep.
            board: where scores go.
            make: makes the run, from what the board says of it.
            score: episodes -> score.
            checkpoint_of: (member, name) -> folder of a checkpoint.
        """
        self.number, self.terms, self.board = number, terms, board
        self._score, self._checkpoint_of = score, checkpoint_of
        joined = board.join(number)
        self.reports = joined.report
        self.run = make(joined)
        self.values = joined.values
        self._decision, self._donor_checkpoint = joined.decision, joined.donor_checkpoint
        self._carry_out_again()

    @property
    def done(self) -> bool:
        """The budget is spent and reported."""
        return self.reports > 0 and self.run.env_steps >= self.terms.env_steps

    def advance(self) -> dict[str, Any]:
        """Go on until the next report is made and answered, and return its row."""
        number = self.reports + 1
        goal = min(number * self.terms.report_env_steps, self.terms.env_steps)
        stretch = self.run.train(max(goal, 1), self._carry_out_again)
        last = stretch.env_steps >= self.terms.env_steps
        episodes = [] if stretch.diverged else self.run.judge(self.terms.seeds)
        score = math.nan if stretch.diverged else self._score(episodes)
        checkpoint = self.run.save()
        learned = None if self.number == DEFAULT or stretch.diverged else self.run.learned()
        answer = self.board.report(
            self.number,
            number,
            stretch.env_steps,
            score,
            last=last,
            checkpoint=checkpoint,
            learned=learned,
            episodes=episodes,
        )
        self.reports = number
        before, self.values = self.values, answer.decision.values
        self._decision, self._donor_checkpoint = answer.decision, answer.donor_checkpoint
        if answer.decision.action != "go on":
            self._carry_out(answer.decision, answer.learned)
            self.run.note(
                answer.decision.action,
                donor=answer.decision.donor,
                donor_report=answer.decision.donor_report,
                before=before,
                values=self.values,
            )
        self.run.prune(answer.keep)
        if last:
            self.run.end("completed")
        return {
            "score": score,
            "env_steps": stretch.env_steps,
            "report": number,
            "action": answer.decision.action,
            "done": last,
            **{f"hparam/{name}": value for name, value in self.values.items()},
        }

    def _carry_out_again(self) -> None:
        """Do what the newest report's answer said: the run stands where it stood before the answer."""
        if self._decision is None:
            return
        if self._decision.action != "go on":
            self._carry_out(self._decision, None)
        else:
            self.run.set_values(self.values)

    def _carry_out(self, decision: Decision, learned: Any) -> None:
        donor = None
        if decision.donor is not None:
            assert self._donor_checkpoint is not None
            donor = self._checkpoint_of(decision.donor, self._donor_checkpoint)
        self.run.adopt(learned, donor, self.terms.replay)
        self.run.set_values(decision.values)

    def close(self) -> None:
        """End the run."""
        self.run.close()
