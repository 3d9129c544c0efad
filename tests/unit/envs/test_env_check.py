"""Every rule of the contract, broken by hand, and the words it is reported in."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from seqrl_ray.envs.check import check_env, random_actions
from seqrl_ray.envs.make import make_env
from seqrl_ray.envs.seeds import EpisodeSeeds
from seqrl_ray.recipe_env import GymSettings, PettingZooSettings, PolicySettings
from seqrl_ray.types import ActionSpec, ArraySpec, GroupSpec, Slot
from seqrl_ray.types_env import EpisodeEnd, Step, VectorStep

HERE = Path(__file__).parent
P = {"p": PolicySettings()}


class Tampered:
    """A sound environment (a Countdown or a DoorGrid) whose steps are changed before anyone sees them."""

    def __init__(self, env, change_step=None, change_all=None, groups=None):
        self.env, self.change_step, self.change_all, self.tampered_groups = (
            env,
            change_step,
            change_all,
            groups,
        )
        self.num_envs = env.num_envs
        self.open_episodes, self.restore, self.close = lambda: None, env.restore, env.close

    @property
    def groups(self):
        return self.tampered_groups or self.env.groups

    def reset(self):
        return self.env.reset()

    def step(self, actions):
        now = self.env.step(actions)
        if self.change_step:
            now = replace(now, groups={"p": replace(now.groups["p"], **self.change_step(now.groups["p"]))})
        return replace(now, **self.change_all(now)) if self.change_all else now


def countdown(seeds):
    table = GymSettings(id="env_cases:Countdown", kwargs={"limit": 3})
    return make_env(table, P, num_envs=2, seeds=seeds, folder=HERE)


def door(seeds):
    table = PettingZooSettings(id="seqrl_ray.envs.toys:DoorGrid", kwargs={"departing": True})
    return make_env(table, P, num_envs=2, seeds=seeds)


def errors(make, **kwargs):
    return [f for f in check_env(make, steps=30, **kwargs) if f.level == "error"]


def flip(array, where):
    out = array.copy()
    out[where] = ~out[where] if out.dtype == bool else out[where] + 1
    return out


def with_padding(step):
    obs = step.obs.copy()
    obs[1, 4] = 0.5  # the climber has 4 features of its group's 5
    return {"obs": obs}


def no_legal(step):
    legal = step.legal.copy()
    legal[int(np.flatnonzero(step.active)[0])] = False
    return {"legal": legal}


ENDED = "the streams of slots [0, 1] ended: each end needs its final observation"
BROKEN_STEPS = {
    "float64 reward": (
        lambda s: {"reward": s.reward.astype(float)},
        "`reward` is float64 (2,), not float32 (2,)",
    ),
    "flat obs": (lambda s: {"obs": s.obs[:, 0]}, "`obs` is float32 (2,), not float32 (2, 2)"),
    "unasked mask": (lambda s: {"legal": np.ones((2, 4), bool)}, "the group says masked=False"),
    "nan obs": (lambda s: {"obs": np.full_like(s.obs, np.nan)}, "`obs` holds NaN or infinity"),
    "nan reward": (lambda s: {"reward": np.full_like(s.reward, np.nan)}, "`reward` holds NaN or infinity"),
    "reset as transition": (lambda s: {"valid": ~s.is_first}, "a reset step is never one"),
    "both flags": (lambda s: {"truncated": s.terminated.copy()}, "both terminated and truncated"),
    "lost final": (lambda s: {"final_slots": s.final_slots[:0], "final_obs": s.final_obs[:0]}, ENDED),
    "lost end": (
        lambda s: {
            "terminated": np.zeros(2, bool),
            "final_slots": s.final_slots[:0],
            "final_obs": s.final_obs[:0],
        },
        "`is_first` though its stream did not end: an end was not reported",
    ),
    "lost first": (
        lambda s: {"is_first": np.zeros(2, bool)},
        "`is_first` is False: two streams would be one",
    ),
    "no id": (lambda s: {"episode_id": s.episode_id - 1}, "an active slot has no `episode_id`"),
    "frozen id": (lambda s: {"episode_id": np.zeros(2, np.int64)}, "a new stream did not raise `episode_id`"),
    "drifting id": (
        lambda s: {"episode_id": s.episode_id + int(s.obs[0, 1])},
        "`episode_id` changed within a stream",
    ),
    "vanished": (lambda s: {"active": flip(s.active, s.obs[:, 1] == 1)}, "its stream has no end"),
    "reused buffer": (lambda s: {"obs": reuse(s.obs)}, "must stay untouched during one more step"),
}
BUFFER = np.zeros((2, 2), np.float32)


def reuse(obs):
    BUFFER[:] = obs
    return BUFFER


@pytest.mark.parametrize("case", BROKEN_STEPS)
def test_a_broken_step_is_found_in_words(case):
    change, words = BROKEN_STEPS[case]
    found = errors(lambda seeds: Tampered(countdown(seeds), change))
    assert any(words in f.message for f in found), found
    assert all("policy 'p'" in f.message for f in found if words in f.message)


BROKEN_MULTI_AGENT_STEPS = {
    "dirty padding": (with_padding, "climber has values in the padding past its 4 features"),
    "nothing legal": (no_legal, "an active slot has no legal action"),
    "padding legal": (lambda s: {"legal": np.ones_like(s.legal)}, "`legal` allows an action that is padding"),
    "no mask": (lambda s: {"legal": None}, "`legal` is missing, but the group says masked=True"),
    "out of range": (lambda s: {"obs": s.obs + 9}, "outside the declared [-1, 1]"),
}


@pytest.mark.parametrize("case", BROKEN_MULTI_AGENT_STEPS)
def test_a_broken_multi_agent_step_is_found_in_words(case):
    change, words = BROKEN_MULTI_AGENT_STEPS[case]
    found = errors(lambda seeds: Tampered(door(seeds), change))
    assert any(words in f.message for f in found), found


def end(**changes):
    return lambda now: {"episodes": tuple(replace(e, **changes) for e in now.episodes)}


BROKEN_EPISODES = {
    "wrong copy": (end(env=7), "an episode of copy 7 ended: no such copy"),
    "no return": (end(metrics={"score": 1.0}), "without a finite metric `return`"),
    "wrong steps": (end(steps=99), "says steps=99, counted were 3"),
    "early end": (
        lambda now: {"episodes": (EpisodeEnd(0, 0, 1, {"return": 0.0}),)},
        "it would run on into the next episode",
    ),
    "env steps": (lambda now: {"env_steps": 5}, "env_steps=5, but 2 copies stepped"),
    "groups": (lambda now: {"groups": {"q": now.groups["p"]}}, "groups ['q'], not ['p']"),
}


@pytest.mark.parametrize("case", BROKEN_EPISODES)
def test_a_broken_account_of_episodes_is_found_in_words(case):
    change, words = BROKEN_EPISODES[case]
    found = errors(lambda seeds: Tampered(countdown(seeds), change_all=change))
    assert any(words in f.message for f in found), found


@pytest.mark.parametrize(
    ("slot", "words"),
    [
        (Slot(0, "agent", 2, 9), "num_actions=9, not within 1 .. 4"),
        (Slot(0, "agent", 3, 4), "obs_size=3, more than the group's 2"),
        (Slot(1, "agent", 2, 4), "slots per copy are [0, 2]"),
    ],
)
def test_a_broken_description_is_found_before_the_first_step(slot, words):
    def make(seeds):
        env = countdown(seeds)
        group = env.groups["p"]
        return Tampered(env, groups={"p": replace(group, slots=(slot, group.slots[1]))})

    assert any(words in f.message for f in errors(make))


def test_sound_environments_have_no_errors_and_say_what_was_not_seen():
    assert check_env(countdown, steps=30) == []
    assert check_env(door, steps=40) == []
    (note,) = check_env(countdown, steps=2)
    assert (note.level, note.rule) == ("note", "episodes") and "no episode ended in 2 steps" in note.message


def test_ignored_seeds_are_found():
    def forgetful(seeds):
        return make_env(GymSettings(id="env_cases:Forgetful"), P, num_envs=2, seeds=seeds, folder=HERE)

    (error,) = errors(forgetful)
    assert "the same seeds and actions gave another run from step 0 on" in error.message


def test_sameness_under_other_seeds_is_a_note():
    def endless(seeds):
        return make_env(GymSettings(id="seqrl_ray.envs.toys:Endless"), P, num_envs=2, seeds=seeds)

    (note,) = check_env(endless, steps=30)
    assert note.level == "note" and "other seeds gave the same run" in note.message


def test_a_restore_that_goes_another_way_is_found():
    class RestoresWrong(Tampered):
        """Restores the right observations, and forgets that the episodes are under way."""

        def __init__(self, env):
            super().__init__(env)
            self.open_episodes = env.open_episodes
            self.restore = self._restore

        def _restore(self, episodes):
            now = self.env.restore(episodes)
            for copy in self.env._envs:
                copy.unwrapped.limit += 1
            return now

    (error,) = errors(lambda seeds: RestoresWrong(countdown(seeds)))
    assert error.rule == "restore" and "a resumed run is not the run it resumes" in error.message


def test_random_actions_are_legal_and_within_bounds():
    rng = np.random.default_rng(0)
    env = door(EpisodeSeeds(0))
    now = env.reset()
    for _ in range(50):
        actions = random_actions(env.groups, now, rng)
        assert now.groups["p"].legal[np.arange(4), actions["p"]].all()
        now = env.step(actions)
    action = ActionSpec("box", shape=(2,), low=(-1.0, -np.inf), high=(3.0, np.inf))
    group = GroupSpec(
        "p", tuple(Slot(e, "agent", 1, 0) for e in range(500)), ArraySpec((1,), "float32"), action
    )
    off = np.zeros(500, bool)
    none = np.zeros(0, np.int64)
    step = Step(np.zeros((500, 1)), off, off, off, off, ~off, off, none, none, np.zeros((0, 1)))
    drawn = random_actions({"p": group}, VectorStep({"p": step}), rng)["p"]
    assert drawn.shape == (500, 2) and drawn.dtype == np.float32
    assert -1 <= drawn[:, 0].min() < -0.8 and 2.8 < drawn[:, 0].max() <= 3
    assert drawn[:, 1].min() < -1.5 and drawn[:, 1].max() > 1.5
