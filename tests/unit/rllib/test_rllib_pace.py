"""Iterations become shorter as a run's budget ends."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from rllib_world import recipe_of

from seqrl_ray.rllib.config import make_config
from seqrl_ray.rllib.pace import BLIND_S, SHORT_S, Pace
from seqrl_ray.rllib.preflight import groups_of
from seqrl_ray.rllib.session import RllibSession


def run(speed, budget: int, most_s: float = 2.0, step: int = 10) -> tuple[int, list[float]]:
    """Play a run: `speed(seconds so far)` -> steps per second; steps are made `step` at a time."""
    pace, made, now, lasted = Pace(most_s), 0, 0.0, []
    while made < budget:
        until, before, began = now + pace.next_s({"env_steps": budget - made}), made, now
        while True:  # as RLlib does: small steps until the time is over, at least one
            now += step / speed(now)
            made += step
            if now >= until:
                break
        lasted.append(now - began)
        pace.made({"env_steps": made - before, "updates": 0}, now - began)
    return made, lasted


@pytest.mark.parametrize("budget", [10, 500, 5_000, 100_000])
def test_a_run_ends_within_a_small_step_of_its_budget(budget):
    made, lasted = run(lambda now: 1_000.0, budget)
    assert budget <= made <= budget + 10
    assert max(lasted) <= 2.0 + 0.02


@pytest.mark.parametrize(
    "speed",
    [lambda now: 100.0 if now < 3.0 else 1_000.0, lambda now: 5_000.0 if now < 1.0 else 500.0],
    ids=["faster", "slower"],
)
def test_a_changing_speed_costs_little(speed):
    made, _ = run(speed, 20_000)
    assert 20_000 <= made <= 20_000 * 1.02


def test_far_from_the_end_an_iteration_is_a_report_long():
    _, lasted = run(lambda now: 1_000.0, 100_000)
    assert sum(seconds >= 2.0 for seconds in lasted) >= 40


def test_a_run_that_has_made_nothing_is_looked_at_often():
    pace = Pace(60.0)
    assert pace.next_s({"env_steps": 1_000_000}) == 0.0
    for seconds in (0.001, 0.05, 0.1, 0.2, 5.0):
        pace.made({"env_steps": 0}, seconds)
        assert SHORT_S <= pace.next_s({"env_steps": 1_000_000}) <= BLIND_S


def test_the_nearest_of_several_ends_counts():
    pace = Pace(10.0)
    pace.made({"env_steps": 1_000, "updates": 10}, 10.0)
    assert pace.next_s({"env_steps": 1_000_000, "updates": 2}) == pytest.approx(1.0)
    assert pace.next_s({"env_steps": 100, "updates": 1_000}) == pytest.approx(0.5)
    assert pace.next_s({"env_steps": 5, "updates": 1_000}) == 0.0


class Fast:
    """Stands where RLlib's Algorithm is: notes how long each iteration was to last, and makes 40 steps."""

    def __init__(self, config) -> None:
        self.config, self.asked, self.steps = config, [], 0
        self.metrics = SimpleNamespace(peek=lambda *args, **kwargs: self.steps)

    def train(self) -> dict:
        self.asked.append(self.config.min_time_s_per_iteration)
        self.steps += 40
        return {}


@pytest.mark.parametrize("algorithm", ["DQN", "SAC", "IMPALA", "APPO"])
def test_rllib_is_told_before_each_iteration(algorithm):
    name = "classic/pendulum_sac" if algorithm == "SAC" else "classic/cartpole"
    recipe = recipe_of(name, algorithm, "learner.report_every_s=7")
    config = make_config(recipe, groups_of(recipe), runners=1)
    assert config.min_time_s_per_iteration == 7
    config.freeze()
    session = RllibSession.__new__(RllibSession)  # without RLlib's processes
    session.recipe, session.algorithm, session._pace = recipe, Fast(config), Pace(7.0)
    session.room, session.groups = SimpleNamespace(runners=0), {}
    session.counts = dict.fromkeys(("env_steps", "agent_steps", "updates", "episodes", "iterations"), 0)
    session._seen_steps = 0
    for _ in range(3):
        session._iterate(100)
    assert session.counts["env_steps"] == 120
    assert session.algorithm.asked == [0.0, 0.0, 0.0], "a hundred steps are over in no time"
    with pytest.raises(AttributeError, match="frozen"):
        config.lr = 1.0


def test_what_is_left_is_to_the_nearer_end():
    session = RllibSession.__new__(RllibSession)
    session.recipe = recipe_of("classic/cartpole", "DQN", "stop.env_steps=1000", "stop.updates=50")
    session.counts = {"env_steps": 300, "updates": 10}
    assert session._left(0) == {"env_steps": 700, "updates": 40}
    assert session._left(400) == {"env_steps": 100, "updates": 40}
    assert session._left(5000) == {"env_steps": 700, "updates": 40}
