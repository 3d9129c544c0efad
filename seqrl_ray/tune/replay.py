"""One run with the schedule of values that made a sweep's winner: `seqrl tune --replay`.

What a population found may be the schedule or may be luck: one run that goes through the same values from its
own beginning, with its own seed, tells them apart.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from seqrl_ray.errors import RecipeError, RunFolderError
from seqrl_ray.loops.drive import Advance, Failure, drive
from seqrl_ray.loops.judge import Job, final_jobs
from seqrl_ray.loops.living import LivingSession
from seqrl_ray.loops.local import LocalSession
from seqrl_ray.loops.mirror import Mirror
from seqrl_ray.loops.preflight import preflight
from seqrl_ray.loops.progress import ProgressLine, Silence
from seqrl_ray.loops.remote import Remote
from seqrl_ray.loops.run_folder import LagCounter, RunFolder
from seqrl_ray.recipe import Recipe
from seqrl_ray.runtime.colocated import ColocatedSession
from seqrl_ray.runtime.launch import connected, place
from seqrl_ray.runtime.metrics import open_exporter, refuse_silence
from seqrl_ray.runtime.reserve import check_shared
from seqrl_ray.tune.board import LOG, read_log
from seqrl_ray.tune.lineage import chain, schedule
from seqrl_ray.tune.plan import make_plan, with_values
from seqrl_ray.tune.population import Population
from seqrl_ray.tune.settings import IN_PLACE, load_sweep
from seqrl_ray.tune.space import Values
from seqrl_ray.types_env import EpisodeEnd

SCHEDULE = "schedule.json"


class ScheduledSession:
    """A session whose values change at given steps; see `seqrl_ray.loops.drive.Session`."""

    def __init__(self, inner: LivingSession, changes: Sequence[tuple[int, Values]]) -> None:
        """Take over a session that has made no step.

        Args:
            inner: the session; its recipe holds the values of step 0.
            changes: (step from which they are in force, values), ascending, from step 0.
        """
        self._inner = inner
        self._changes = [change for change in changes if change[0] > 0]
        self._at = 0
        self.made: list[tuple[int, Values]] = [(0, dict(changes[0][1]))]
        """(step at which they came into force, values)."""

    @property
    def recipe(self) -> Recipe:
        """The recipe as it stands."""
        return self._inner.recipe

    @property
    def lag(self) -> LagCounter:
        """Policy lag of the fragments inserted, in updates."""
        return self._inner.lag

    def advance(self, seconds: float) -> Advance:
        """Train for about this long, at most to the next change."""
        while self._changes and self._changes[0][0] <= self._at:
            _, values = self._changes.pop(0)
            self._inner.set_values(values)
            self.made.append((self._at, values))
        advance = self._inner.advance_to(self._changes[0][0] if self._changes else 0, seconds)
        if any(failure.what == "learner" for failure in advance.failures):
            self._inner.set_values(self.made[-1][1])  # its checkpoint is from before them
        self._at = int(advance.row["env_steps"])
        advance.row.update({f"hparam/{name}": value for name, value in self.made[-1][1].items()})
        return advance

    def save(self, root: Path, trees: Mapping[str, Any], *, wait: bool) -> None:
        """See `Session.save`."""
        self._inner.save(root, trees, wait=wait)

    def judge_interim(self, seeds: Sequence[int]) -> None:
        """See `Session.judge_interim`."""
        self._inner.judge_interim(seeds)

    def judge_final(
        self, jobs_of: Callable[[int], list[Job]], on_job: Callable[[Job, int], None]
    ) -> dict[str, list[EpisodeEnd]]:
        """See `Session.judge_final`."""
        return self._inner.judge_final(jobs_of, on_job)

    def take_failures(self, *, final: bool = False) -> list[Failure]:
        """See `Session.take_failures`."""
        return self._inner.take_failures(final=final)

    def close(self) -> None:
        """End the session."""
        self._inner.close()


def winning_schedule(root: Path, name: str | None = None) -> list[tuple[int, Values]]:
    """Return the schedule of the winner of the sweep in `root`, from its board's log.

    Args:
        root: the sweep's folder, or a copy of its log.
        name: of the sweep, for people; None: the folder.
    Raises: RunFolderError: the sweep has no board, or no winner yet.
    """
    name = name or str(root)
    sweep, _ = load_sweep(root / "sweep.toml")
    if sweep.scheduler.kind != IN_PLACE:
        raise RunFolderError(
            f"{name} was searched with scheduler.kind={sweep.scheduler.kind!r}: only pbt writes a lineage to "
            "be replayed. Train the winner's own recipe.toml instead."
        )
    plan = make_plan(sweep.model_copy(update={"recipe": str((root / "recipe.toml").absolute())}), root)
    rows = read_log(root / LOG)
    winner = Population.from_rows(plan.space, plan.rules, rows).winner() if rows else None
    if winner is None:
        raise RunFolderError(
            f"{name}: no member has a finite score of its own, so there is no schedule to replay. Let the "
            f"sweep go on: seqrl tune --resume {name}."
        )
    return schedule(chain(rows, winner))


def replay_sweep(
    root: Path,
    recipe: Recipe,
    path: Path,
    *,
    address: str | None,
    quiet: bool,
    sweep: str,
    remote: Remote | None = None,
) -> tuple[Path, dict[str, Any]]:
    """Train `recipe` with the winning schedule of the sweep in `root`, into the run folder `path`.

    `sweep` is what people call it; a copy of the run is kept in `remote`.

    Raises: SeqrlError: there is no schedule, or the run cannot begin.
    """
    began = time.monotonic()
    changes = winning_schedule(root, sweep)
    recipe = with_values(recipe, changes[0][1])
    preflight(recipe)
    with contextlib.ExitStack() as stack:
        inner: LivingSession
        if recipe.actors.count == 1 and address is None:
            if recipe.prometheus == "on":
                raise RecipeError(
                    'prometheus="on" and this run is one process: metrics go through Ray. Leave it out, or '
                    "set actors.count=2."
                )
            inner = LocalSession(recipe)
        else:
            refuse_silence(recipe, address)
            stack.enter_context(connected(address))
            checkpoints_of = path.absolute() / "checkpoints"
            placement = place(recipe, local=address in (None, "local"))
            check_shared(checkpoints_of, placement.elsewhere)
            inner = ColocatedSession(recipe, placement, root=checkpoints_of)
        session = ScheduledSession(inner, changes)
        stack.callback(session.close)
        listener = None if isinstance(inner, LocalSession) else open_exporter(recipe, address)
        folder = RunFolder(path, recipe, resumed=False, clock_s=time.monotonic() - began, listener=listener)
        stack.callback(folder.close)
        (path / SCHEDULE).write_text(json.dumps({"sweep": sweep, "schedule": changes}), encoding="utf-8")
        screen = Silence() if quiet else ProgressLine(recipe)
        mirror = None
        if remote is not None:
            mirror = Mirror(remote, path, recipe.learner.keep_checkpoints, screen.note)
            stack.enter_context(mirror)
            folder.after_report = mirror.nudge
        summary = drive(session, folder, screen, jobs_of=lambda chunk: final_jobs(recipe, chunk=chunk))
        (path / SCHEDULE).write_text(
            json.dumps({"sweep": sweep, "schedule": changes, "made": session.made}), encoding="utf-8"
        )
        if mirror is not None:
            mirror.finish()
    return path, summary
