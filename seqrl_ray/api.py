"""What the command line does, as Python functions of the same shape: `from seqrl_ray import train, evaluate`.

Nothing heavy is imported before a function needs it. Longer than a file should be: every command's function
stands here.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from seqrl_ray.algorithms import settings_class
from seqrl_ray.algorithms.rllib_settings import is_rllib
from seqrl_ray.errors import CheckpointError, RecipeError
from seqrl_ray.recipe import Recipe, apply_override, load, run_folder_name
from seqrl_ray.settings import parse

if TYPE_CHECKING:
    from seqrl_ray.loops.drive import Session
    from seqrl_ray.loops.listener import Listener
    from seqrl_ray.loops.preflight import Plan
    from seqrl_ray.loops.remote import Remote
    from seqrl_ray.serving.launch import Served
    from seqrl_ray.types_env import Weights


@dataclass(frozen=True)
class Result:
    """A finished (or interrupted) run."""

    folder: Path
    summary: dict[str, Any]


def read_recipe(recipe: str | Path, overrides: Iterable[str] = ()) -> Recipe:
    """Load a recipe by path or shipped name and apply `dotted.key=value` overrides.

    Raises: RecipeError: one clear line.
    """
    return load(recipe, overrides, algorithm_settings=settings_class)


def train(
    recipe: str | Path,
    overrides: Sequence[str] = (),
    *,
    run_dir: str | Path | None = None,
    local: bool = False,
    address: str | None = None,
    quiet: bool = False,
) -> Result:
    """Train a recipe from the start.

    Args:
        recipe: path or shipped name.
        overrides: `dotted.key=value`, applied on top.
        run_dir: folder of the run; None: `runs/<name>-<time>` here. A remote place (`s3://bucket/runs/first`)
            is kept as a copy of `runs/first` here.
        local: the whole system in this process, without Ray.
        address: Ray cluster to join; None: a Ray of our own on this machine.
        quiet: no progress line.
    Returns: the run folder and its summary.
    Raises: SeqrlError: bad input (nothing has been touched), or an error that stopped the run.
    """
    from seqrl_ray.loops.mirror import begin
    from seqrl_ray.loops.remote import is_url, refuse_path

    _one_of(local, address)
    refuse_path(run_dir, "--run-dir")
    resolved = read_recipe(recipe, overrides)
    folder, remote = Path(run_dir or run_folder_name(resolved, time.strftime("%Y%m%d-%H%M%S"))), None
    if run_dir is not None and is_url(run_dir):
        remote, folder = begin(str(run_dir))
    return _run(resolved, folder, checkpoint=None, local=local, address=address, quiet=quiet, remote=remote)


def resume(
    run: str | Path,
    overrides: Sequence[str] = (),
    *,
    local: bool = False,
    address: str | None = None,
    quiet: bool = False,
) -> Result:
    """Go on with a run from its newest checkpoint, in its folder.

    Args:
        run: the run folder, or a remote place: then in `runs/<its name>` here, which is brought.
        overrides: `dotted.key=value` on top of the run's own recipe, e.g. a longer `stop.env_steps`.
        local: as in `train`.
        address: as in `train`.
        quiet: as in `train`.
    Raises: SeqrlError: no run there, no complete checkpoint, or one that does not fit the recipe.
    """
    from seqrl_ray.loops import checkpoints, mirror
    from seqrl_ray.loops.run_folder import open_run

    _one_of(local, address)
    folder, remote = mirror.go_on(run)
    folder = open_run(folder)
    resolved = read_recipe(folder / "recipe.toml", overrides)
    newest = checkpoints.latest(folder / "checkpoints")
    resolved = checkpoints.keep_wiring(newest, resolved, local=local)
    return _run(resolved, folder, checkpoint=newest, local=local, address=address, quiet=quiet, remote=remote)


def scale(run: str | Path, least: int, most: int | None = None) -> None:
    """Ask a living run (or its next resume) for another number of actors.

    Args:
        run: the run folder.
        least: actors there shall be at least.
        most: actors there shall be at most; None: `least`.
    Raises: SeqrlError: no run there, or it was not made for so many.
    """
    from seqrl_ray.loops.run_folder import open_run
    from seqrl_ray.runtime.crew import ask

    folder = open_run(Path(run))
    recipe = read_recipe(folder / "recipe.toml")
    if is_rllib(recipe.algorithm["name"]):
        raise RecipeError(
            f"{folder} is a run of {recipe.algorithm['name']}: RLlib's env runners are as many from "
            "beginning to end. Resume it with another actors.count."
        )
    ask(folder, recipe, least, least if most is None else most)


def evaluate(
    run: str | Path, *, episodes: int | None = None, seed: int | None = None, workers: int | None = None
) -> dict[str, Any]:
    """Judge a run's last checkpoint and its controllers again; the run folder is not changed.

    Args:
        run: the run folder, or a remote place.
        episodes: seeds; None: the recipe's.
        seed: first seed; None: the recipe's.
        workers: processes; None: one per core for SUMO, this process for the rest.
    Returns: {"evaluation", "baselines", "paired", "targets"} as in `summary.json`, plus "env_steps" of the
        checkpoint.
    """
    from seqrl_ray.loops.mirror import fetched

    with fetched(run) as folder:
        return _evaluate(folder, episodes, seed, workers)


def _evaluate(path: Path, episodes: int | None, seed: int | None, workers: int | None) -> dict[str, Any]:
    from seqrl_ray.loops import checkpoints
    from seqrl_ray.loops.judge import before_acting, chunk_size, final_jobs, play_jobs, playable
    from seqrl_ray.loops.run_folder import open_run, summaries

    folder = open_run(path)
    recipe = read_recipe(folder / "recipe.toml")
    if workers is None:
        workers = (os.cpu_count() or 1) if recipe.env.kind == "traffic" else 0
    count = episodes or recipe.evaluation.episodes
    jobs = final_jobs(recipe, episodes=count, seed=seed, chunk=chunk_size(recipe, count, workers))
    steps, weights = checkpoint_weights(folder, recipe)
    newest = checkpoints.latest(folder / "checkpoints")
    weights |= before_acting(checkpoints.pretrained_weights(newest))
    ends = play_jobs(recipe, playable(jobs, weights), weights, workers=workers)
    rows = {
        name: [{"seed": e.seed, "steps": e.steps, **e.metrics} for e in part] for name, part in ends.items()
    }
    return {"env_steps": steps, **summaries(rows)}


def collect(
    recipe: str | Path,
    folder: str | Path,
    overrides: Sequence[str] = (),
    *,
    steps: int | None = None,
    run: str | Path | None = None,
    controller: str | None = None,
    noise: float = 0.0,
    greedy: bool = False,
    local: bool = False,
    address: str | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Collect whole episodes into a new dataset folder.

    Args:
        recipe: path or shipped name; where `run` is given, only its [env], [actors] and [stop] count.
        folder: the dataset's; must not exist.
        overrides: `dotted.key=value`, applied on top.
        steps: decisions to collect at least; None: the recipe's stop.env_steps.
        run: act with this run's last checkpoint.
        controller: act as this built-in rule does.
        noise: chance of a uniformly drawn action instead, in [0, 1].
        greedy: the run's policy takes its best action; otherwise it explores as at the end of its training.
        local: as in `train`.
        address: as in `train`.
        quiet: no progress line.
    Returns: {"folder", "steps", "episodes", "wall_s"}.
    Raises: SeqrlError: bad input (nothing has been touched), or an error that stopped the actors.
    """
    from seqrl_ray.collecting import collect_into

    _one_of(local, address)
    return collect_into(
        read_recipe(recipe, overrides),
        Path(folder),
        steps=steps,
        run=None if run is None else Path(run),
        controller=controller,
        noise=noise,
        mode="greedy" if greedy else "explore",
        local=local,
        address=address,
        quiet=quiet,
    )


def replay_data(run: str | Path, folder: str | Path) -> dict[str, Any]:
    """Write the whole episodes of a run's replay, as its last checkpoint has it, into a new dataset folder.

    Args:
        run: the run folder.
        folder: the dataset's; must not exist.
    Returns: {"folder", "steps", "episodes", "left_out_steps"}; the last are of episodes not stored whole.
    Raises: SeqrlError: no run there, no complete checkpoint, several policies, or no whole episode.
    """
    from seqrl_ray.collecting import replay_into

    return replay_into(Path(run), Path(folder))


def tune(
    sweep: str | Path,
    overrides: Sequence[str] = (),
    *,
    run_dir: str | Path | None = None,
    address: str | None = None,
    quiet: bool = False,
) -> Result:
    """Run a sweep from the start.

    Args:
        sweep: path or shipped name of the sweep file.
        overrides: `dotted.key=value`, applied on top; `recipe.dotted.key=value` changes the base recipe.
        run_dir: folder of the sweep; None: `runs/<name>-<time>` here. A remote place as in `train`.
        address: Ray cluster to join; None: a Ray of our own on this machine.
        quiet: no progress lines.
    Returns: the sweep's folder and its summary.
    Raises: SeqrlError: bad input (nothing has been touched), or every trial failed.
    """
    from seqrl_ray.loops.remote import refuse_path
    from seqrl_ray.sweeping import new_sweep

    refuse_path(run_dir, "--run-dir")
    return Result(*new_sweep(sweep, overrides, run_dir=run_dir, address=address, quiet=quiet))


def resume_tune(
    folder: str | Path, overrides: Sequence[str] = (), *, address: str | None = None, quiet: bool = False
) -> Result:
    """Go on with a sweep in its folder; only `budget.wall_s` and keys of `[trial]` may be changed.

    Args:
        folder: the sweep's, or a remote place: then in `runs/<its name>` here, which is brought.
        overrides: `dotted.key=value`, applied on top.
        address: as in `tune`.
        quiet: as in `tune`.
    Raises: SeqrlError: no sweep there, or bad input.
    """
    from seqrl_ray.sweeping import resumed_sweep

    return Result(*resumed_sweep(folder, overrides, address=address, quiet=quiet))


def replay_schedule(
    folder: str | Path,
    overrides: Sequence[str] = (),
    *,
    run_dir: str | Path | None = None,
    address: str | None = None,
    quiet: bool = False,
) -> Result:
    """Train one run with the schedule of values that a sweep's winner had.

    Args:
        folder: the sweep's, or a remote place.
        overrides: `dotted.key=value` on top of the sweep's base recipe, e.g. `seed=7`.
        run_dir: as in `train`.
        address: as in `train`.
        quiet: as in `train`.
    Raises: SeqrlError: no winner there, or bad input.
    """
    from seqrl_ray.loops.remote import refuse_path
    from seqrl_ray.sweeping import replayed

    refuse_path(run_dir, "--run-dir")
    return Result(*replayed(folder, overrides, run_dir=run_dir, address=address, quiet=quiet))


@contextlib.contextmanager
def serving(
    run: str | Path,
    overrides: Sequence[str] = (),
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    replicas: int = 1,
    checkpoint: str | None = None,
    address: str | None = None,
) -> Iterator[Served]:
    """Have a run's policy served over HTTP inside the block; `served.wait()` waits for Ctrl-C.

    Args:
        run: the run folder, of a finished or a living run.
        overrides: `key=value` of any other key of `serving.settings.ServingSettings`.
        host: where to listen; beyond this machine only with a token in SEQRL_SERVE_TOKEN.
        port: likewise.
        replicas: processes that answer.
        checkpoint: name of the one to keep to; None: the newest, and newer ones as they come.
        address: Ray cluster to run on; None: a Ray of our own on this machine.
    Raises: SeqrlError: it cannot be served; nothing is left.
    """
    from seqrl_ray.serving import launch
    from seqrl_ray.serving.settings import ServingSettings

    keys: dict[str, Any] = {"run": str(run), "replicas": replicas, "checkpoint": checkpoint}
    for override in overrides:
        apply_override(keys, override)
    if "ask_token" in keys:
        raise RecipeError(
            f"ask_token={keys['ask_token']} is for a Ray Serve config: here whoever sets SEQRL_SERVE_TOKEN "
            "wants it asked for, and without one only this machine is answered. Leave it out."
        )
    with launch.serving(parse(ServingSettings, keys, ""), host, port, address) as served:
        yield served


def watch(
    run: str | Path, *, seed: int | None = None, delay_ms: int = 100, binary: str = "sumo-gui"
) -> list[int]:
    """Show one evaluation episode of a traffic run's last checkpoint in sumo-gui.

    Args:
        run: the run folder.
        seed: of the episode; None: the recipe's first held-out seed.
        delay_ms: pause per simulated second.
        binary: `sumo-gui`, or `sumo` for no window.
    Returns: vehicles in the net after each decision.
    """
    from seqrl_ray.loops.run_folder import open_run
    from seqrl_ray.loops.watch import show

    folder = open_run(Path(run))
    recipe = read_recipe(folder / "recipe.toml")
    _, weights = checkpoint_weights(folder, recipe)
    first = recipe.evaluation.seed if seed is None else seed
    return show(recipe, weights, first, binary=binary, delay_ms=delay_ms)


def checkpoint_weights(folder: Path, recipe: Recipe) -> tuple[int, dict[str, Weights]]:
    """Return (env steps, policy id -> weights) of the newest checkpoint of a run.

    Raises: CheckpointError: there is none, or it does not fit the recipe.
    """
    from seqrl_ray.loops import checkpoints

    newest = checkpoints.latest(folder / "checkpoints")
    checkpoints.verify(newest)
    weights = checkpoints.acting_weights(newest)
    if set(weights) != set(recipe.policies):
        raise CheckpointError(
            f"{newest} has policies {sorted(weights)}, the recipe {sorted(recipe.policies)}: they cannot be "
            "matched. Use the recipe the run was started with."
        )
    return checkpoints.steps_of(newest), weights


def _one_of(local: bool, address: str | None) -> None:
    if local and address is not None:
        raise RecipeError(f"--local and --address={address} contradict each other: give one of them.")


def _run(
    recipe: Recipe,
    path: Path,
    *,
    checkpoint: Path | None,
    local: bool,
    address: str | None,
    quiet: bool,
    remote: Remote | None = None,
) -> Result:
    from seqrl_ray.loops import checkpoints
    from seqrl_ray.loops.drive import drive
    from seqrl_ray.loops.judge import final_jobs
    from seqrl_ray.loops.mirror import Mirror
    from seqrl_ray.loops.progress import ProgressLine, Silence
    from seqrl_ray.loops.run_folder import RunFolder, check_new
    from seqrl_ray.report import html

    began = time.monotonic()
    if local and is_rllib(recipe.algorithm["name"]):
        raise RecipeError(
            f"--local with algorithm.name={recipe.algorithm['name']!r}: RLlib runs on Ray. Leave --local out."
        )
    if checkpoint is None:
        check_new(path)
        recipe = with_data(recipe, local=local, address=address, quiet=quiet)
    plan = prepare(recipe, checkpoint)
    driver: Mapping[str, Any] = {} if checkpoint is None else checkpoints.load(checkpoint, "driver")
    clock_s = float(driver.get("clock_s", 0.0))
    screen = Silence() if quiet else ProgressLine(recipe)
    with contextlib.ExitStack() as stack:
        session, listener = _session(
            stack, recipe, path / "checkpoints", checkpoint, clock_s, local, address, screen.note
        )
        stack.callback(session.close)
        started_s = clock_s + time.monotonic() - began  # starting processes is part of the run's wall time
        folder = RunFolder(
            path,
            recipe,
            resumed=checkpoint is not None,
            clock_s=started_s,
            data_returns=plan.data_returns,
            listener=listener,
        )
        stack.callback(folder.close)
        mirror = None
        if remote is not None:
            mirror = Mirror(remote, path, recipe.learner.keep_checkpoints, screen.note)
            stack.enter_context(mirror)
            folder.after_report = mirror.nudge
        summary = drive(
            session,
            folder,
            screen,
            jobs_of=lambda chunk: final_jobs(recipe, chunk=chunk),
            clock=driver.get("times"),
        )
    html(path)
    if mirror is not None:
        mirror.finish()
    return Result(path, summary)


def prepare(recipe: Recipe, checkpoint: Path | None = None) -> Plan:
    """Find whatever can be found wrong with a run before anything of it exists, and say what it would be.

    Args:
        recipe: the run.
        checkpoint: what the run is to go on from.
    Raises: SeqrlError: the run could not begin, or not go on from there.
    """
    if is_rllib(recipe.algorithm["name"]):
        from seqrl_ray.rllib import preflight as rllib_preflight

        return rllib_preflight.preflight(recipe, checkpoint)
    from seqrl_ray.loops.preflight import preflight

    return preflight(recipe, checkpoint)


def with_data(recipe: Recipe, *, local: bool, address: str | None, quiet: bool) -> Recipe:
    """Return the recipe with its dataset's absolute path; collects the dataset first where it is missing and
    the recipe says how.
    """
    from seqrl_ray.loops.offline import FOLDER, locate

    if recipe.data is None:
        return recipe
    folder = locate(recipe)
    if folder is None and recipe.data.collect is not None:
        folder = (Path(FOLDER) / recipe.data.source).absolute()
        steps = recipe.data.collect_steps
        if not quiet:
            print(f"no dataset {recipe.data.source}: collecting it with {recipe.data.collect} to {folder}")
        collect(
            recipe.data.collect,
            folder,
            steps=steps,
            controller=recipe.data.collect_controller,
            noise=recipe.data.collect_noise,
            local=local,
            address=address,
            quiet=quiet,
        )
    elif folder is not None and not quiet:
        print(f"offline data: {folder}")
    data = recipe.data.model_copy(update={"source": str(folder or recipe.data.source)})
    return recipe.model_copy(update={"data": data})


def _session(
    stack: contextlib.ExitStack,
    recipe: Recipe,
    root: Path,
    checkpoint: Path | None,
    clock_s: float,
    local: bool,
    address: str | None,
    say: Callable[[str], None],
) -> tuple[Session, Listener | None]:
    """Open the local session, or connect to Ray and open one there, with what exports its metrics."""
    if local:
        from seqrl_ray.loops.local import LocalSession

        if recipe.prometheus == "on":
            raise RecipeError('prometheus="on" with --local: metrics go through Ray. Leave one of them out.')
        return LocalSession(recipe, resume=checkpoint), None
    from seqrl_ray.runtime.launch import connected
    from seqrl_ray.runtime.metrics import open_exporter, refuse_silence

    refuse_silence(recipe, address)
    stack.enter_context(connected(address))
    opened: Callable[..., Session]
    if is_rllib(recipe.algorithm["name"]):
        from seqrl_ray.rllib.launch import open_session as opened
    else:
        from seqrl_ray.runtime.launch import open_session

        opened = partial(open_session, say=say)
    own, resume = address in (None, "local"), checkpoint.absolute() if checkpoint else None
    session = opened(recipe, root=root.absolute(), local=own, clock_s=clock_s, resume=resume)
    return session, open_exporter(recipe, address, say)
