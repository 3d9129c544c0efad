"""The bad-input contract: one clear line on stderr, exit code 2, no traceback, nothing on disk touched.

Nearly every case runs the real command line in this process: what is refused is refused before Ray starts, so
most cases give no --local on purpose. A few run as processes of their own.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from seqrl_ray import api
from seqrl_ray.cli import main
from seqrl_ray.recipe import shipped
from seqrl_ray.recipe_traffic import MAPS

RECIPE = """\
name = "mine"
[env]
kind = "gym"
id = "CartPole-v1"
[algorithm]
name = "double_dqn"
[evaluation]
episodes = 1
[stop]
env_steps = 400
"""
USERS_MODULE = """\
def number():
    return 3

constant = 1
"""
SHIPPED = ", ".join(shipped())
LEARNER_KEYS = (
    "batch_size, checkpoint_every_s, compile, count, device, keep_checkpoints, label_selector, "
    "max_policy_lag_updates, num_gpus, prefetch, publish_every_s, report_every_s, threads, updates_per_call"
)
TOP_KEYS = (
    "actors, algorithm, data, description, env, evaluation, folder, learner, name, phase, policies, "
    "prometheus, replay, seed, stop"
)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder with a recipe, a broken one and a module of the user's, as the working directory."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "mine.toml").write_text(RECIPE)
    (folder / "syntax.toml").write_text('name = "x"\n[env\n')
    (folder / "latin1.toml").write_bytes('name = "Köln"\n'.encode("latin-1"))
    (folder / "users_module.py").write_text(USERS_MODULE)
    (folder / "notes").mkdir()
    (folder / "notes" / "todo.txt").write_text("mine\n")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return folder


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real run with a checkpoint."""
    recipe = tmp_path_factory.mktemp("finished") / "mine.toml"
    recipe.write_text(RECIPE)
    small = ["algorithm.hidden=[16]", "replay.min_items=64", "replay.capacity_steps=1000"]
    return api.train(recipe, small, run_dir=recipe.parent / "run", local=True, quiet=True).folder


@pytest.fixture
def run(here: Path, finished_run: Path) -> Path:
    """A copy of the finished run, to be damaged."""
    return Path(shutil.copytree(finished_run, here / "run"))


def tree(folder: Path) -> dict[str, str]:
    """Every file below `folder` with its digest, every folder with an empty one."""
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else ""
        for p in sorted(folder.rglob("*"))
    }


def refusal(capfd: pytest.CaptureFixture[str], here: Path, *args: str) -> str:
    """Run `seqrl ARGS`, check everything the contract says, and return the message."""
    before = tree(here)
    capfd.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(list(args))
    out, err = capfd.readouterr()
    assert stopped.value.code == 2, err
    assert tree(here) == before, "something was created or changed"
    assert out == ""
    assert err.startswith("seqrl: ") and err.endswith("\n") and err.count("\n") == 1, err
    return err.removeprefix("seqrl: ").rstrip("\n")


TRAIN_CASES: dict[str, tuple[list[str], str]] = {
    "no recipe": (
        [],
        "no recipe is given: there is nothing to train. Name a .toml file or a shipped recipe, "
        "e.g. seqrl train traffic/cologne8.",
    ),
    "shipped recipe, misspelt": (
        ["classic/cartpol"],
        'classic/cartpol is neither a file nor a shipped recipe. Did you mean "classic/cartpole"? '
        f"Shipped: {SHIPPED}.",
    ),
    "missing file": (
        ["missing.toml"],
        f"missing.toml is neither a file nor a shipped recipe. Shipped: {SHIPPED}.",
    ),
    "a folder": (["notes"], "notes is a folder, not a recipe. Name a .toml file in it."),
    "TOML syntax": (
        ["syntax.toml"],
        "{here}/syntax.toml: not valid TOML: Expected ']' at the end of a table declaration (at line 2, "
        "column 5). "
        "Correct the file.",
    ),
    "not UTF-8": (
        ["latin1.toml"],
        "{here}/latin1.toml: cannot be read: 'utf-8' codec can't decode byte 0xf6 in position 9: invalid "
        "start byte.",
    ),
    "unknown key": (
        ["mine.toml", "lerner.batch_size=3"],
        f'lerner is not a setting. Did you mean "learner"? Known here: {TOP_KEYS}.',
    ),
    "learners whose parts would differ": (
        ["mine.toml", "learner.count=3"],
        "learner.batch_size=64 is not a multiple of learner.count=3: the learners' parts of a batch would "
        "differ. Change one of them.",
    ),
    "several learners, compiled": (
        ["mine.toml", "learner.count=2", "learner.compile=on"],
        "learner.compile='on' with learner.count=2: every update adds gradients up over the learners, and a "
        "graph of several updates has no place for that. Set it to 'auto' or 'off', or learner.count=1.",
    ),
    "several learners, colocated": (
        ["mine.toml", "learner.count=2", "replay.wiring=colocated"],
        "learner.count=2 with replay.wiring='colocated', [data] or alternating: the shard is one learner's "
        "own there, others could not draw from it. Set learner.count=1, or use the service wiring and an "
        "online phase.",
    ),
    "a policy server, one process": (
        ["mine.toml", "actors.inference=central", "--local"],
        "actors.inference='central' in the local loop: one process has no policy server. Set it to 'local', "
        "or run without --local.",
    ),
    "a policy server, lock-step": (
        ["mine.toml", "actors.inference=central", "actors.in_flight=1"],
        "actors.inference='central' with actors.in_flight=1: a lock-step run is a function of its seed, and "
        "which requests meet in a batch is not. Raise actors.in_flight, or set it to 'local'.",
    ),
    "several learners, one process": (
        ["mine.toml", "learner.count=2", "--local"],
        "learner.count=2 in the local loop: one process has one learner. Set learner.count=1, or run without "
        "--local.",
    ),
    "several learners, nothing to learn": (
        ["mine.toml", "algorithm.name=random", "learner.count=2"],
        "learner.count=2 does not fit Random (policies.shared): it takes no gradient steps that could be "
        "shared. Set learner.count=1.",
    ),
    "unknown nested key": (
        ["mine.toml", "learner.batchsize=3"],
        f'learner.batchsize is not a setting. Did you mean "batch_size"? Known here: {LEARNER_KEYS}.',
    ),
    "wrong type": (
        ["mine.toml", "learner.batch_size=many"],
        "learner.batch_size='many' is refused: input should be a valid integer, unable to parse string as "
        "an integer. "
        "Change learner.batch_size.",
    ),
    "bound": (
        ["mine.toml", "learner.batch_size=0"],
        "learner.batch_size=0 is refused: input should be greater than or equal to 1. Change "
        "learner.batch_size.",
    ),
    "not an override": (
        ["mine.toml", "learner.batch_size"],
        "'learner.batch_size' is not an override: write dotted.key=value, e.g. learner.batch_size=128.",
    ),
    "override through a value": (
        ["mine.toml", "name.x=3"],
        "'name.x=3' reaches into name, which is a value and not a table. Correct the key.",
    ),
    "unknown kind": (
        ["mine.toml", "env.kind=gymm"],
        "env.kind='gymm' is not a kind of environment. Did you mean \"gym\"? "
        "Known: atari, gym, mujoco, pettingzoo, traffic.",
    ),
    "unknown Gymnasium id": (
        ["mine.toml", "env.id=CartPol-v1"],
        "env.id='CartPol-v1' is not a registered Gymnasium environment: nothing can be made. "
        'Did you mean "CartPole-v1"? For your own, write module:callable.',
    ),
    "unknown module": (
        ["mine.toml", "env.id=no_such_module:Env"],
        "env.id='no_such_module:Env': module 'no_such_module' does not import: No module named "
        "'no_such_module'. "
        "Install it, correct the name, or put no_such_module.py beside the recipe.",
    ),
    "unknown callable": (
        ["mine.toml", "env.id=users_module:numbr"],
        "env.id='users_module:numbr': 'users_module' has no 'numbr': there is nothing to call. "
        'Did you mean "number"? Correct the name after the colon.',
    ),
    "not a callable": (
        ["mine.toml", "env.id=users_module:constant"],
        "env.id='users_module:constant' names a int, not a callable: no environment can be made from it. "
        "Name a class, or a function that returns an environment.",
    ),
    "not an environment": (
        ["mine.toml", "env.id=users_module:number"],
        "env.id='users_module:number' returned a int, not a gymnasium.Env: it cannot be stepped here. "
        'Return a gymnasium.Env, or set env.kind="pettingzoo" for a ParallelEnv.',
    ),
    "unknown game": (
        ["atari/pong", "env.game=pongg"],
        "env.game='pongg' is not a ROM of ale-py 0.12.1: there is nothing to load. "
        'Did you mean "pong"? Names are in snake case, e.g. ms_pacman.',
    ),
    "unknown map": (
        ["traffic/cologne8", "env.map=cologne9"],
        "env: map='cologne9' is not packaged: there is no net to load. "
        f"Use one of {', '.join(MAPS)}, or give net and route.",
    ),
    "an agent without a policy": (
        ["mine.toml", 'policies.shared.agents=["car*"]'],
        "policies: no pattern of car* matches agent 'agent': nothing would drive it. "
        'Add it to the `agents` of a policy, or add a last policy with agents = ["*"].',
    ),
    "a policy without an agent": (
        ["mine.toml", 'policies.a.agents=["*"]', 'policies.b.agents=["car*"]'],
        "policies.b.agents='car*' matches no agent that an earlier policy left over: the policy would "
        "never act. "
        "Agents here: agent.",
    ),
    "unknown algorithm": (
        ["mine.toml", "algorithm.name=dobule_dqn"],
        "algorithm.name='dobule_dqn' is not an algorithm. Did you mean \"double_dqn\"? "
        "Known: behavior_cloning, decision_transformer, double_dqn, dqn, elastic_dt, online_dt, random, sac, "
        "toy_recurrent, toy_window.",
    ),
    "algorithm and actions do not fit": (
        ["mine.toml", "env.id=Pendulum-v1"],
        "policies.shared: the environment's actions are continuous, of shape (1,): action values need a "
        "discrete set. "
        "Choose another algorithm.name, or an environment with discrete actions.",
    ),
    "actions and algorithm do not fit": (
        ["mine.toml", "algorithm.name=sac"],
        "policies.shared: the environment's actions are discrete: sac needs a box of real numbers. "
        "Choose another algorithm.name.",
    ),
    "unknown controller": (
        ["traffic/cologne1", 'evaluation.controllers=["max_presure"]'],
        "evaluation.controllers='max_presure' is not a controller of this environment. Did you mean "
        '"max_pressure"? '
        "Offered: fixed, actuated, max_pressure, occupancy, greedy, random.",
    ),
    "unknown headline": (
        ["mine.toml", "evaluation.headline=retrun"],
        "evaluation.headline='retrun' is not a metric of this environment: there is nothing to judge by. "
        'Did you mean "return"? Metrics here: return.',
    ),
    "several actors in one process": (
        ["mine.toml", "--local", "actors.count=2"],
        "actors.count=2 in the local loop: one process has one actor. "
        "Set actors.count=1 (and raise actors.envs_per_actor), or run without --local.",
    ),
    "a range of actors in one process": (
        ["mine.toml", "--local", "actors.count=[1,2]"],
        "actors.count=2 in the local loop: one process has one actor. "
        "Set actors.count=1 (and raise actors.envs_per_actor), or run without --local.",
    ),
    "a range of actors that is none": (
        ["mine.toml", "actors.count=[3,2]"],
        "actors.count=[3, 2] is neither a number nor [least, most] with 1 <= least <= most: nobody knows how "
        "many actors there shall be. Write e.g. actors.count=[1, 8].",
    ),
    "local and an address": (
        ["mine.toml", "--local", "--address", "10.0.0.1:6379"],
        "--local and --address=10.0.0.1:6379 contradict each other: give one of them.",
    ),
    "not an address": (
        ["mine.toml", "--address", "head-node"],
        "--address=head-node is not an address: no cluster can be joined. Write host:port, ray://host:port "
        "or auto.",
    ),
    "nobody at the address": (
        ["mine.toml", "--address", "127.0.0.1:1"],
        "--address=127.0.0.1:1: no Ray cluster answers there ([Errno 111] Connection refused). "
        "Check the address, or leave it out to run here.",
    ),
    "a folder that is used": (
        ["mine.toml", "--run-dir", "notes"],
        "--run-dir=notes exists and is not an empty folder: a new run would overwrite it. "
        "Name another folder, or give --resume notes to go on with it.",
    ),
    "resume nothing": (
        ["--resume", "nowhere"],
        "nowhere is not a folder: there is no run there. Name a folder under runs/.",
    ),
    "resume what is no run": (
        ["--resume", "notes"],
        "notes is not a run folder: it has no recipe.toml and no metrics.jsonl. Name a run's own folder.",
    ),
    "resume with another recipe": (
        ["mine.toml", "--resume", "notes"],
        "--resume=notes with the recipe 'mine.toml': a run keeps its own recipe. Leave 'mine.toml' out.",
    ),
    "resume into another folder": (
        ["--resume", "notes", "--run-dir", "other"],
        "--resume=notes with --run-dir=other: a resumed run stays in its folder. Leave --run-dir out.",
    ),
    "unknown option": (["mine.toml", "--bogus"], "No such option: --bogus. Try: seqrl --help"),
}


@pytest.mark.parametrize("case", TRAIN_CASES)
def test_train_refuses(case, here, capfd):
    args, message = TRAIN_CASES[case]
    assert refusal(capfd, here, "train", *args) == message.replace("{here}", str(here))


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["mine.toml", "algorithm.hiden=[3]"], ["algorithm.hiden is not a setting", '"hidden"']),
        (
            ["mine.toml", "policies.shared.algorithm.hiden=[3]"],
            ["policies.shared.algorithm.hiden", '"hidden"'],
        ),
        (
            ["mine.toml", "env.kwargs.lenght=3"],
            ["env.kwargs={'lenght': 3} cannot be made", "correct the keyword"],
        ),
        (
            ["mine.toml", "replay.band_items=1"],
            ["band_items=1 is smaller", "deadlock", "Set replay.band_items to"],
        ),
        (["mine.toml", "replay.min_items=10"], ["replay.min_items=10 is below learner.batch_size=64"]),
        (
            ["mine.toml", 'env={ kind = "traffic", net = "a.net.xml", route = "a.rou.xml" }'],
            [
                "env.net='a.net.xml' is not a file at {here}/a.net.xml",
                "or one relative to the recipe's folder.",
            ],
        ),
        (
            ["traffic/cologne1", "env.net=a.net.xml"],
            ["do not name one district", "Give either map, or net and route."],
        ),
    ],
)
def test_train_names_the_key_and_the_cure(args, parts, here, capfd):
    message = refusal(capfd, here, "train", *args)
    for part in parts:
        assert part.replace("{here}", str(here)) in message


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["trian"], "No such command 'trian'. Did you mean 'train'? Try: seqrl --help"),
        (["check"], "Missing argument 'recipe'. Try: seqrl --help"),
        (
            ["check", "mine.toml", "--steps", "1"],
            "--steps=1 is below 2: the contract cannot be checked. Give more.",
        ),
        (
            ["evaluate", "nowhere"],
            "nowhere is not a folder: there is no run there. Name a folder under runs/.",
        ),
        (
            ["evaluate", "notes"],
            "notes is not a run folder: it has no recipe.toml and no metrics.jsonl. Name a run's own folder.",
        ),
    ],
)
def test_other_commands_refuse(args, message, here, capfd):
    assert refusal(capfd, here, *args) == message


@pytest.mark.parametrize("command", ["check", "train"])
def test_check_and_train_refuse_the_same_recipe_in_the_same_words(command, here, capfd):
    message = refusal(capfd, here, command, "mine.toml", "env.id=users_module:number")
    assert message == TRAIN_CASES["not an environment"][1]


# --------------------------------------------------------------------------------------- checkpoints of a run


def newest(run: Path) -> Path:
    return max((run / "checkpoints").iterdir())


def test_resume_refuses_a_run_without_a_checkpoint(run, here, capfd):
    newest(run).joinpath("manifest.json").unlink()  # what a kill while writing leaves
    assert refusal(capfd, here, "train", "--resume", "run") == (
        "run/checkpoints holds no complete checkpoint: there is nothing to go on from. Start a new run."
    )
    assert refusal(capfd, here, "evaluate", "run") == (
        "run/checkpoints holds no complete checkpoint: there is nothing to go on from. Start a new run."
    )


@pytest.mark.parametrize("command", [("train", "--resume"), ("train", "--local", "--resume"), ("evaluate",)])
def test_a_truncated_file_is_named(command, run, here, capfd):
    path = newest(run) / "trainer.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    assert refusal(capfd, here, *command, "run") == (
        f"{path.relative_to(here)} is not what was written: the checkpoint is damaged. Use another "
        "checkpoint."
    )


def test_a_missing_file_is_named(run, here, capfd):
    path = newest(run) / "driver.json"
    path.unlink()
    assert refusal(capfd, here, "train", "--resume", "run") == (
        f"{path.relative_to(here)} is missing: the checkpoint is damaged. Use another checkpoint."
    )


def test_a_manifest_that_is_no_json_is_named(run, here, capfd):
    path = newest(run) / "manifest.json"
    path.write_text(path.read_text()[:30])
    message = refusal(capfd, here, "train", "--resume", "run")
    assert message.startswith(f"{path.relative_to(here)} cannot be read: ")
    assert message.endswith("Use another checkpoint.")


def test_a_checkpoint_of_another_format_is_refused(run, here, capfd):
    path = newest(run) / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 99}))
    assert refusal(capfd, here, "train", "--resume", "run") == (
        f"{path.parent.relative_to(here)} has checkpoint format 99, this version reads 1. "
        "Use the version that wrote it."
    )


@pytest.mark.parametrize("local", [["--local"], []], ids=["local", "ray"])
def test_a_checkpoint_of_another_network_is_refused(local, run, here, capfd):
    message = refusal(capfd, here, "train", "--resume", "run", "algorithm.hidden=[24]", *local)
    assert "they belong to another network. Load them into the recipe they were made with." in message


def test_a_checkpoint_of_other_policies_is_refused(run, here, capfd):
    message = refusal(capfd, here, "train", "--resume", "run", "policies={ other = { agents = ['*'] } }")
    assert message == (
        "checkpoint has policies ['shared'], the recipe has ['other']: their weights cannot be matched. "
        "Use the recipe the run was started with."
    )


def test_resume_refuses_a_misspelt_key(run, here, capfd):
    assert refusal(capfd, here, "train", "--resume", "run", "stop.env_step=9") == (
        'stop.env_step is not a setting. Did you mean "env_steps"? Known here: env_steps, updates, wall_s.'
    )


# ------------------------------------------------------------------------------------ as a process of its own


def seqrl(here: Path, *args: str) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(api.__file__).parents[1])}
    return subprocess.run(
        [sys.executable, "-B", "-m", "seqrl_ray.cli", *args],
        cwd=here,
        env=environ,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("case", ["unknown nested key", "unknown Gymnasium id", "nobody at the address"])
def test_the_process_says_one_line_and_exits_with_2(case, here):
    args, message = TRAIN_CASES[case]
    before = tree(here)
    done = seqrl(here, "train", *args)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"seqrl: {message}\n")
    assert tree(here) == before
