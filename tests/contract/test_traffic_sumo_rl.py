"""Same seed and actions as sumo-rl 1.4.5: same vehicle counts at every decision, observations and rewards
equal to 1e-5."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from seqrl_ray.envs.traffic.env import TrafficEnv
from seqrl_ray.envs.traffic.files import district_files
from seqrl_ray.recipe_env import PolicySettings
from seqrl_ray.recipe_traffic import MAPS, TrafficSettings

DECISIONS = 180
REWARDS = {"waiting": "diff-waiting-time", "pressure": "pressure", "queue": "queue"}


def settings_of(name: str, reward: str) -> TrafficSettings:
    begin_s = MAPS[name].begin_s
    return TrafficSettings(
        map=name,
        begin_s=begin_s,
        end_s=begin_s + 5 * (DECISIONS + 1),
        decision_s=5,
        yellow_s=2,
        min_green_s=5,
        observation=("sumo_rl",),
        reward=reward,
        reward_samples=1,
        reward_upstream=False,
        reward_scale=1.0,
        reward_clip=None,
    )


def sumo_rl_episode(
    settings: TrafficSettings, seed: int, actions: np.ndarray, folder: Path
) -> dict[str, np.ndarray]:
    net, route = district_files(settings, None)
    names = ("begin_s", "end_s", "decision_s", "yellow_s", "min_green_s")
    request = {name: getattr(settings, name) for name in names}
    request |= {"net": str(net), "route": str(route), "seed": seed, "actions": actions.tolist()}
    request["reward_fn"] = REWARDS[settings.reward]
    (folder / "request.json").write_text(json.dumps(request), encoding="utf-8")
    script = Path(__file__).with_name("sumo_rl_episode.py")
    command = [sys.executable, str(script), str(folder / "request.json"), str(folder / "result.npz")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    with np.load(folder / "result.npz") as result:
        return dict(result)


@pytest.mark.parametrize(
    ("name", "reward"),
    [
        ("cologne3", "waiting"),
        ("cologne8", "waiting"),
        ("grid4x4", "waiting"),
        ("ingolstadt7", "pressure"),
        ("cologne3", "queue"),
    ],
)
def test_equal_to_sumo_rl(name: str, reward: str, tmp_path: Path) -> None:
    settings, seed = settings_of(name, reward), 42
    env = TrafficEnv(settings, {"all": PolicySettings()}, seeds=lambda env, episode: seed)
    try:
        counts = np.array([slot.num_actions for slot in env.groups["all"].slots])
        rng = np.random.default_rng(7)
        actions = rng.integers(0, counts, (DECISIONS, len(counts)))
        actions[rng.random(DECISIONS) < 0.3] = 0  # stretches of one phase, so that queues build up
        theirs = sumo_rl_episode(settings, seed, actions, tmp_path)
        sizes = [slot.obs_size for slot in env.groups["all"].slots]
        assert [slot.agent for slot in env.groups["all"].slots] == theirs["signals"].tolist()
        step = env.reset()
        for t in range(DECISIONS + 1):
            rows = step.groups["all"].obs
            for n, size in enumerate(sizes):
                np.testing.assert_allclose(
                    rows[n, :size], theirs[f"obs_{n}"][t], atol=1e-5, err_msg=f"decision {t} signal {n}"
                )
                assert not rows[n, size:].any()
            if t == DECISIONS:
                break
            step = env.step({"all": actions[t]})
            assert env.vehicle_count() == theirs["vehicles"][t], f"decision {t}"
            np.testing.assert_allclose(
                step.groups["all"].reward, theirs["rewards"][t], atol=1e-5, err_msg=f"decision {t}"
            )
        assert theirs["vehicles"].max() > 20  # the comparison saw traffic
    finally:
        env.close()
