"""The traffic environment on short windows of packaged maps: contract, determinism, plug-ins, errors."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from seqrl_ray.envs.traffic.controllers import CONTROLLERS
from seqrl_ray.envs.traffic.env import TrafficEnv
from seqrl_ray.envs.traffic.files import district_files
from seqrl_ray.envs.traffic.replay import replay
from seqrl_ray.envs.traffic.safety import Command
from seqrl_ray.errors import EnvError, RecipeError
from seqrl_ray.recipe_env import PolicySettings
from seqrl_ray.recipe_traffic import MAPS, TrafficSettings
from seqrl_ray.types_env import VectorStep

Maker = Callable[..., TrafficEnv]


def window(name: str, decisions: int, **keys: Any) -> TrafficSettings:
    timing = MAPS[name]
    decision_s = keys.get("decision_s", timing.decision_s)
    return TrafficSettings.model_validate(
        {"map": name, "end_s": timing.begin_s + decisions * decision_s, **keys}
    )


@pytest.fixture
def make() -> Iterator[Maker]:
    made: list[TrafficEnv] = []

    def build(settings: TrafficSettings, policies: Any = None, seed: int = 5, **options: Any) -> TrafficEnv:
        policies = policies or {"shared": PolicySettings(agent_one_hot=True)}
        made.append(TrafficEnv(settings, policies, seeds=lambda env, episode: seed + episode, **options))
        return made[-1]

    yield build
    for env in made:
        env.close()


def legal_actions(step: VectorStep, rng: np.random.Generator) -> dict[str, np.ndarray]:
    return {p: np.array([rng.choice(np.flatnonzero(row)) for row in g.legal]) for p, g in step.groups.items()}


def same(a: VectorStep, b: VectorStep) -> None:
    for policy, group in a.groups.items():
        for name in ("obs", "reward", "truncated", "valid", "is_first", "episode_id", "legal", "final_obs"):
            np.testing.assert_array_equal(getattr(group, name), getattr(b.groups[policy], name), err_msg=name)
    assert a.episodes == b.episodes


def test_shapes_masks_and_the_end_of_an_episode(make: Maker) -> None:
    env = make(window("cologne8", 6))
    group = env.groups["shared"]
    assert len(group.slots) == 8 and group.action.n == 4 and group.masked
    assert [slot.num_actions for slot in group.slots] == [4, 2, 3, 4, 3, 2, 3, 4]
    first = env.reset()
    step, rng = first, np.random.default_rng(0)
    for t in range(6):
        s = step.groups["shared"]
        assert s.obs.shape == (8, *group.obs.shape) and s.obs.dtype == np.float32
        assert (s.obs >= 0).all() and np.isfinite(s.obs).all()
        np.testing.assert_array_equal(
            s.obs[:, -8:], np.eye(8)
        )  # the agent's one-hot stands after the padding
        assert s.is_first.all() == (t == 0) and s.valid.all() == (t > 0) and s.active.all()
        assert not s.legal[1, 2:].any() and s.legal.any(axis=1).all()
        step = env.step(legal_actions(step, rng))
        assert step.env_steps == 1 and step.groups["shared"].reward.dtype == np.float32
    s = step.groups["shared"]
    assert s.truncated.all() and not s.terminated.any() and s.valid.all() and s.is_first.all()
    assert s.final_slots.tolist() == list(range(8)) and s.final_obs.shape == (8, *group.obs.shape)
    assert (s.episode_id == 1).all() and not np.array_equal(s.final_obs, s.obs)
    (end,) = step.episodes
    assert (end.env, end.seed, end.steps, end.details) == (0, 5, 6, {})
    assert (
        end.metrics["safety_violations"] == end.metrics["safety_refusals"] == end.metrics["gridlocked"] == 0
    )
    assert (
        0 < end.metrics["delay_s"] < 60 and end.metrics["demand_vehicles"] > 10 and end.metrics["return"] < 0
    )
    assert env.open_episodes()[0].seed == 6  # the next seed of the stream is running


def test_a_seed_and_the_actions_make_the_episode(make: Maker) -> None:
    env = make(window("cologne3", 30))
    rng = np.random.default_rng(1)
    step, steps, actions = env.reset(), [], []
    for _ in range(30):
        actions.append(legal_actions(step, rng))
        step = env.step(actions[-1])
        steps.append(step)
    env.close()
    again = make(window("cologne3", 30))
    again.reset()
    for expected, chosen in zip(steps, actions, strict=True):
        same(again.step(chosen), expected)
    other_seed = [again.step(chosen) for chosen in actions]
    assert any(
        not np.array_equal(a.groups["shared"].obs, b.groups["shared"].obs)
        for a, b in zip(steps, other_seed, strict=True)
    )


def test_an_open_episode_is_rebuilt(make: Maker) -> None:
    env = make(window("cologne3", 12))
    rng = np.random.default_rng(2)
    step = env.reset()
    for _ in range(17):  # into the second episode
        step = env.step(legal_actions(step, rng))
    (open_episode,) = env.open_episodes()
    assert open_episode.index == 1 and open_episode.actions["shared"].shape == (5, 3)
    env.close()
    resumed = make(window("cologne3", 12))
    same(resumed.restore((open_episode,)), step)
    chosen = legal_actions(step, rng)
    assert np.array_equal(resumed.step(chosen).groups["shared"].valid, [True] * 3)
    with pytest.raises(EnvError, match="0 open episodes"):
        resumed.restore(())
    with pytest.raises(EnvError, match="does not fit a window of 12"):
        long = np.zeros((12, 3), np.int64)
        resumed.restore((type(open_episode)(0, 1, 0, {"shared": long}),))


def test_reward_is_scaled_and_clipped_for_the_learner_only(make: Maker) -> None:
    raw = run_fixed_actions(make(window("cologne3", 20, reward_scale=1.0, reward_clip=None)))
    small = run_fixed_actions(make(window("cologne3", 20, reward_scale=10.0, reward_clip=0.5)))
    np.testing.assert_allclose(small[0], np.clip(raw[0] / 10.0, -0.5, 0.5), rtol=1e-6)
    assert (small[0] == -0.5).any() and (small[0] > -0.5).any()
    assert small[1] == raw[1] == pytest.approx(raw[0].sum(axis=0).mean(), rel=1e-5)


def run_fixed_actions(env: TrafficEnv) -> tuple[np.ndarray, float]:
    env.reset()
    steps = [env.step({"shared": np.zeros(3, np.int64)}) for _ in range(20)]
    env.close()
    return np.array([s.groups["shared"].reward for s in steps]), steps[-1].episodes[0].metrics["return"]


@pytest.mark.parametrize("name", ["cologne3", "ingolstadt7"])
def test_what_sumo_is_not_asked_for_is_what_it_would_say(make: Maker, name: str) -> None:
    env = make(window(name, 40, sensing_m=200.0))
    step = env.reset()
    rng = np.random.default_rng(0)
    lane, edge, sensors = env._simulation.api.lane, env._simulation.api.edge, env._sensors
    asked = {
        "vehicles": (lane.getLastStepVehicleNumber, sensors.lanes),
        "halting": (lane.getLastStepHaltingNumber, sensors.lanes),
        "waiting": (lane.getWaitingTime, sensors.lanes),
        "speed": (lane.getLastStepMeanSpeed, sensors.lanes),
        "vehicle_length": (lane.getLastStepLength, sensors.lanes),
        "out_vehicles": (lane.getLastStepVehicleNumber, sensors.out_lanes),
        "out_halting": (lane.getLastStepHaltingNumber, sensors.out_lanes),
        "up_vehicles": (edge.getLastStepVehicleNumber, sensors.up_edges),
        "up_halting": (edge.getLastStepHaltingNumber, sensors.up_edges),
        "up_speed": (edge.getLastStepMeanSpeed, sensors.up_edges),
        "inside_vehicles": (lane.getLastStepVehicleNumber, sensors.inside_lanes),
        "inside_halting": (lane.getLastStepHaltingNumber, sensors.inside_lanes),
        "inside_speed": (lane.getLastStepMeanSpeed, sensors.inside_lanes),
        "pending": (lambda e: len(edge.getPendingVehicles(e)), sensors.edges),
        "up_pending": (lambda e: len(edge.getPendingVehicles(e)), sensors.up_edges),
    }
    seen = dict.fromkeys(asked, 0.0)
    for _ in range(30):
        for quantity, (getter, ids) in asked.items():
            values = sensors.read(quantity)
            seen[quantity] = max(seen[quantity], values.max(initial=0.0))
            np.testing.assert_allclose(values, [getter(i) for i in ids], rtol=1e-12, err_msg=quantity)
        step = env.step(legal_actions(step, rng))
    assert all(
        seen[quantity] > 0.0
        for quantity in ("vehicles", "halting", "waiting", "up_vehicles", "inside_vehicles")
    )


def test_delay_reward_counts_lost_vehicle_seconds(make: Maker) -> None:
    keys = {
        "reward": "delay",
        "reward_samples": 2,
        "reward_upstream": False,
        "reward_scale": 1.0,
        "reward_clip": None,
    }
    env = make(window("cologne1", 12, **keys))
    env.reset()
    lane = env._simulation.api.lane
    lanes = env.network.signals[0].lanes
    for t in range(11):
        expected = 0.0
        run_to = env._simulation.run_to

        def watched(time_s: int, run_to: Callable[[int], None] = run_to, t: int = t) -> None:
            nonlocal expected
            run_to(time_s)
            if (time_s - 25200 - 10 * t) in (5, 10):
                for name in lanes:
                    share = min(lane.getLastStepMeanSpeed(name) / lane.getMaxSpeed(name), 1.0)
                    expected -= lane.getLastStepVehicleNumber(name) * (1.0 - share) / 2

        env._simulation.run_to = watched  # type: ignore[method-assign]
        step = env.step({"shared": np.array([t // 4 % 4])})
        env._simulation.run_to = run_to  # type: ignore[method-assign]
        assert step.groups["shared"].reward[0] == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_observation_parts_stand_in_the_recipe_s_order(make: Maker) -> None:
    parts = ("phase", "time_in_phase", "halting", "downstream", "backlog", "neighbours", "upstream")
    env = make(window("cologne8", 8, observation=parts), {"all": PolicySettings()})
    step = env.reset()
    for _ in range(5):
        step = env.step({"all": np.zeros(8, np.int64)})
    signal, row = env.network.signals[0], step.groups["all"].obs[0]
    api = env._simulation.api
    phases, lanes, outs = len(signal.greens), len(signal.lanes), len(signal.out_lanes)
    assert row[:phases].tolist() == [1.0, 0, 0, 0]
    assert row[phases] == pytest.approx(50 / 60)
    halting = [api.lane.getLastStepHaltingNumber(lane) / 10 for lane in signal.lanes]
    np.testing.assert_allclose(row[phases + 1 : phases + 1 + lanes], halting, rtol=1e-6)
    filled = [
        min(api.lane.getLastStepVehicleNumber(i) * 7.5 / env.network.lanes[i].length_m, 1.0)
        for i in signal.out_lanes
    ]
    np.testing.assert_allclose(row[phases + 1 + lanes :][:outs], filled, rtol=1e-6)
    upstream = row[: env.groups["all"].slots[0].obs_size][-2 * lanes :]
    expected = [
        sum(api.edge.getLastStepHaltingNumber(e) for e in env.network.upstream(lane, 200.0)) / 10
        for lane in signal.lanes
    ]
    np.testing.assert_allclose(upstream[:lanes], expected, rtol=1e-6)


def test_vehicles_held_up_inside_a_junction_are_seen_and_count_against_the_reward(make: Maker) -> None:
    """Cologne1's first green lets left-turners wait for a gap on the junction."""
    keys = {"reward_samples": 1, "reward_upstream": False, "reward_scale": 1.0, "reward_clip": None}
    env = make(
        window("cologne1", 100, observation=("inside",), reward_inside=True, **keys),
        {"all": PolicySettings()},
    )
    env.reset()
    lane, network = env._simulation.api.lane, env.network
    (signal,) = network.signals
    entered = {i: network.inside_of(i) for i in signal.lanes}
    seen = 0.0
    for t in range(98):
        step = env.step({"all": np.array([t // 4 % 2 * 2])}).groups["all"]
        waiting = [sum(lane.getLastStepHaltingNumber(i) for i in entered[a]) / 3.0 for a in signal.lanes]
        np.testing.assert_allclose(step.obs[0], waiting, rtol=1e-6)
        seen = max(seen, *waiting)
        expected = -sum(
            lane.getLastStepVehicleNumber(i)
            * (1.0 - min(lane.getLastStepMeanSpeed(i) / lane.getMaxSpeed(i), 1.0))
            for i in {*signal.lanes, *(i for lanes in entered.values() for i in lanes)}
        )
        assert step.reward[0] == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert seen > 0.0


def test_policies_may_share_out_the_signals(make: Maker) -> None:
    names = ("360082", "360086")
    env = make(
        window("cologne3", 4),
        {"two": PolicySettings(agents=names), "rest": PolicySettings(agents=("*",))},
    )
    assert [slot.agent for slot in env.groups["two"].slots] == list(names)
    assert [slot.num_actions for slot in env.groups["rest"].slots] == [4]
    step = env.reset()
    step = env.step({"two": np.array([1, 2]), "rest": np.array([3])})
    assert env.open_episodes()[0].actions["two"].tolist() == [[1, 2]]
    assert step.groups["two"].legal.shape == (2, 4) and step.groups["rest"].legal.shape == (1, 4)


def test_an_agent_nobody_drives_is_refused_and_frees_the_process(make: Maker) -> None:
    with pytest.raises(RecipeError, match="matches agent"):
        make(window("cologne3", 4), {"some": PolicySettings(agents=("360082",))})
    make(window("cologne3", 4)).reset()  # the failed one left nothing behind


def test_a_second_environment_in_the_process_is_refused(make: Maker) -> None:
    first = make(window("cologne1", 4))
    first.reset()
    with pytest.raises(EnvError, match="one simulation per process"):
        make(window("cologne1", 4))
    first.step({"shared": np.array([0])})  # the first is unharmed
    first.close()
    first.close()
    make(window("cologne1", 4)).reset()


def test_a_forgotten_environment_frees_the_process() -> None:
    def forget() -> None:
        TrafficEnv(window("cologne1", 4), {"a": PolicySettings()}, seeds=lambda env, episode: 0).reset()

    forget()
    env = TrafficEnv(window("cologne1", 4), {"a": PolicySettings()}, seeds=lambda env, episode: 0)
    env.reset()
    env.step({"a": np.array([0])})
    env.close()


def test_wrong_actions_are_named(make: Maker) -> None:
    env = make(window("cologne3", 4))
    env.reset()
    with pytest.raises(EnvError, match=r"is float64\[3\], not int\[3\]"):
        env.step({"shared": np.zeros(3)})
    with pytest.raises(EnvError, match=r"is int64\[2\], not int\[3\]"):
        env.step({"shared": np.zeros(2, np.int64)})


def test_sumo_s_own_words_reach_the_user(make: Maker, tmp_path: Path) -> None:
    net, _ = district_files(window("cologne1", 4), None)
    (tmp_path / "bad.rou.xml").write_text(
        '<routes><trip id="a" from="nowhere" to="else" depart="0"/></routes>', encoding="utf-8"
    )
    settings = TrafficSettings(net=str(net), route="bad.rou.xml", end_s=60)
    with pytest.raises(EnvError, match="edge 'nowhere' within the route for trip 'a' is not known"):
        make(settings, folder=tmp_path)
    make(window("cologne1", 4)).reset()


def test_illegal_wishes_are_counted_and_never_shown(make: Maker) -> None:
    env = make(window("cologne3", 12, min_green_s=15, max_green_s=40, all_red_s=1))
    step, rng, illegal = env.reset(), np.random.default_rng(3), 0
    for _ in range(12):
        wish = rng.integers(0, 4, 3)
        illegal += int((~step.groups["shared"].legal[np.arange(3), wish]).sum())
        step = env.step({"shared": wish})
    metrics = step.episodes[0].metrics
    assert metrics["safety_refusals"] == illegal > 0
    assert metrics["safety_violations"] == 0


def test_greens_wait_for_vehicles_inside_the_junction(make: Maker) -> None:
    """Every late green had a vehicle to wait for, no prompt one had, as SUMO says itself."""
    env = make(window("cologne1", 60, red_extension_s=6))
    env.reset()
    signal, rng, waits = env.network.signals[0], np.random.default_rng(0), []
    simulation, shown = env._simulation, env._simulation.show

    def watch(commands: Iterable[Command]) -> None:
        for c in list(commands):
            if c.clears:
                standing = sum(simulation.api.lane.getLastStepVehicleNumber(lane) for lane in c.clears)
                waits.append((c.state == c.meanwhile, standing > 0))
            shown([c])

    simulation.show = watch
    for _ in range(60):
        step = env.step({"shared": rng.integers(0, len(signal.greens), 1)})
    assert step.episodes[0].metrics["safety_violations"] == 0
    assert (True, True) in waits and (False, False) in waits
    assert (True, False) not in waits


def test_training_aids_are_off_in_evaluation(make: Maker) -> None:
    settings = window("cologne8", 30, training_teleport_s=60, training_demand_scale=(2.0, 3.0))
    counts = {}
    for evaluation in (False, True):
        env = make(settings, evaluation=evaluation)
        env.reset()
        for _ in range(30):
            step = env.step({"shared": np.zeros(8, np.int64)})
        counts[evaluation] = step.episodes[0].metrics
        env.close()
    assert counts[False]["teleports"] > 0 == counts[True]["teleports"]
    assert counts[False]["demand_vehicles"] > 1.6 * counts[True]["demand_vehicles"]


@pytest.mark.parametrize("controller", CONTROLLERS)
def test_every_controller_runs_the_window_safely(make: Maker, controller: str) -> None:
    env = make(window("cologne3", 24), controller=controller, evaluation=True, details=True)
    env.reset()
    for _ in range(24):
        step = env.step(env.controller_actions())
    metrics, details = step.episodes[0].metrics, step.episodes[0].details
    assert metrics["safety_violations"] == metrics["safety_refusals"] == 0
    assert metrics["throughput_vehicles"] > 0
    assert details["queue"].shape == details["delay_rate"].shape == details["phase"].shape == (24, 3)
    assert details["time_s"].tolist() == list(range(25210, 25450, 10))
    assert details["trip_delay_s"].shape == (metrics["demand_vehicles"],)
    assert details["trip_delay_s"].mean() == pytest.approx(metrics["delay_s"])
    assert details["signal_names"].tolist() == [s.id for s in env.network.signals]
    assert len(set(map(tuple, details["phase"].tolist()))) > 2  # the signals really changed
    assert set(details["change_signal"]) == {0, 1, 2}


def test_fixed_follows_the_net_s_own_plan(make: Maker) -> None:
    env = make(window("cologne8", 12), controller="fixed", details=True)
    env.reset()
    for _ in range(12):
        step = env.step(env.controller_actions())
    details = step.episodes[0].details
    own = details["change_signal"] == 0
    plan = env.network.signals[0].program  # offset 0
    ends = np.cumsum([0.0, *(seconds for seconds, _ in plan)])
    shown = dict(zip(details["change_time_s"][own], details["change_state"][own], strict=True))
    expected = {25200 + t: state for t, (_, state) in zip(ends, plan, strict=False) if t < 120}
    assert {t: s for t, s in shown.items() if t < 25200 + min(ends[-1], 120)} == {
        t: s for t, s in expected.items() if t < 25200 + min(ends[-1], 120)
    }


def test_controller_actions_need_a_controller(make: Maker) -> None:
    with pytest.raises(EnvError, match='Did you mean "greedy"'):
        make(window("cologne1", 4), controller="greedi")
    env = make(window("cologne1", 4))
    env.reset()
    with pytest.raises(EnvError, match="no rule to ask"):
        env.controller_actions()


def test_emissions_on_request(make: Maker) -> None:
    env = make(window("cologne1", 12, emissions=True))
    env.reset()
    for _ in range(12):
        step = env.step({"shared": np.array([0])})
    metrics = step.episodes[0].metrics
    assert 0.5 < metrics["co2_kg"] < 500
    assert (
        2.0 < metrics["co2_kg"] / metrics["fuel_kg"] < 4.0
    )  # burning 1 kg of petrol or diesel makes about 3.1 kg


PLUGIN = """
import numpy as np
from gymnasium import spaces
from sumo_rl.environment.observations import DefaultObservationFunction, ObservationFunction

class Queues(ObservationFunction):
    def __call__(self):
        ts = self.ts
        extra = [ts.green_phase, ts.time_since_last_phase_change]
        return np.array(ts.get_lanes_queue() + extra, dtype=np.float32)

    def observation_space(self):
        return spaces.Box(0.0, 100.0, (len(self.ts.lanes) + 2,))

def pressure(ts):
    assert ts.env.sim_step >= 25200 and ts.get_average_speed() <= 2.0
    assert len(ts.get_out_lanes_density()) == len(ts.out_lanes) and not ts.is_yellow
    assert isinstance(ts.get_pressure(), int)
    return -sum(ts.get_accumulated_waiting_time_per_lane()) / 100 - ts.get_total_queued()
"""


def test_sumo_rl_functions_plug_in(make: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_sumo_rl_functions.py").write_text(PLUGIN, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    plain = {
        "reward_scale": 1.0,
        "reward_clip": None,
        "reward": "queue",
        "reward_samples": 1,
        "reward_upstream": False,
    }
    both = {
        "observation_function": "my_sumo_rl_functions:DefaultObservationFunction",
        "reward_function": "my_sumo_rl_functions:pressure",
    }
    policies = {"all": PolicySettings()}
    env = make(window("cologne3", 16, **plain, **both), policies)
    theirs = [env.reset()] + [env.step({"all": np.array([t // 5 % 3] * 3)}) for t in range(15)]
    env.close()
    env = make(window("cologne3", 16, **plain, observation=("sumo_rl",)), policies)
    ours = [env.reset()] + [env.step({"all": np.array([t // 5 % 3] * 3)}) for t in range(15)]
    for a, b in zip(theirs, ours, strict=True):
        np.testing.assert_allclose(a.groups["all"].obs, b.groups["all"].obs, atol=1e-6)
        assert (a.groups["all"].reward <= b.groups["all"].reward + 1e-5).all()  # theirs also counts waiting
    assert ours[-1].groups["all"].obs.any() and theirs[-1].groups["all"].reward.any()
    env.close()
    env = make(window("cologne3", 4, observation_function="my_sumo_rl_functions:Queues"), policies)
    step = env.reset()
    assert [slot.obs_size for slot in env.groups["all"].slots] == [
        len(s.lanes) + 2 for s in env.network.signals
    ]
    assert step.groups["all"].obs.shape == (3, max(len(s.lanes) + 2 for s in env.network.signals))


@pytest.mark.parametrize("name", ["no_such_module_here:f", "math:no_such_name", "math:pi"])
def test_a_plug_in_that_cannot_be_used_says_so(make: Maker, name: str) -> None:
    with pytest.raises(EnvError, match=r"env\.reward_function="):
        make(window("cologne1", 4, reward_function=name))
    make(window("cologne1", 4)).reset()


def test_a_replay_through_traci_shows_the_same_traffic(make: Maker) -> None:
    policies = {"one": PolicySettings(agents=("360086",)), "rest": PolicySettings()}
    env = make(window("cologne3", 12), policies, evaluation=True)
    step, rng, counts = env.reset(), np.random.default_rng(4), []
    for _ in range(11):
        step = env.step(legal_actions(step, rng))
        counts.append(env.vehicle_count())
    (episode,) = env.open_episodes()
    assert replay(window("cologne3", 12), policies, episode, binary="sumo") == counts
    assert max(counts) > 20
    env.step(legal_actions(step, rng))  # the environment lives on beside it
    with pytest.raises(EnvError, match="is no program of SUMO"):
        replay(window("cologne3", 12), policies, episode, binary="sumo-gu")


def test_training_may_skip_trip_scores(make: Maker) -> None:
    settings = window("cologne3", 6, training_trip_metrics=False)
    scores = {}
    for evaluation in (False, True):
        env = make(settings, evaluation=evaluation)
        env.reset()
        for _ in range(6):
            step = env.step({"shared": np.zeros(3, np.int64)})
        scores[evaluation] = step.episodes[0].metrics
        env.close()
    assert "delay_s" not in scores[False] and "delay_s" in scores[True]
    assert scores[False].items() <= scores[True].items()
