"""The traffic environment's door: all signals of a district as one `VectorEnv` of one copy.

One step is one decision of every signal, at the same simulated second. An episode is the recipe's window; its
end is a truncation. Autoreset is same-step: the observation returned with an end is already the next
episode's first. Built from: `net` (what is there), `simulation` (SUMO), `sensors` (what is read),
`observation`, `rewards`, `safety` (what is shown), `audit` (what was shown), `metrics` (scores),
`controllers` (rules in the box). Longer than a file should be, because one step is one story.

Dims: N signals, S signals of one policy group, D features, A actions, T decisions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from seqrl_ray.envs.grouping import AgentInfo, agents_of, assign, blank_rows
from seqrl_ray.envs.traffic.audit import read_states, violations
from seqrl_ray.envs.traffic.controllers import CONTROLLERS, PROGRAMMES, RuleController, actuated_programme
from seqrl_ray.envs.traffic.files import district_files
from seqrl_ray.envs.traffic.lint import lint
from seqrl_ray.envs.traffic.metrics import Recorder, read_trips, shown_phases
from seqrl_ray.envs.traffic.net import read_network
from seqrl_ray.envs.traffic.observation import Observer
from seqrl_ray.envs.traffic.rewards import Rewards
from seqrl_ray.envs.traffic.safety import Command, SafetyLayer
from seqrl_ray.envs.traffic.sensors import Sensors
from seqrl_ray.envs.traffic.simulation import Simulation, episode_of
from seqrl_ray.envs.traffic.step_arrays import StepArrays
from seqrl_ray.envs.traffic.sumo_rl_plugin import DistrictView, ObservationPlugin, load
from seqrl_ray.errors import EnvError, did_you_mean
from seqrl_ray.recipe_env import PolicySettings
from seqrl_ray.recipe_traffic import TrafficSettings
from seqrl_ray.types import ActionSpec, Array, ArraySpec, BoolArray, FloatArray, GroupSpec, IntArray
from seqrl_ray.types_env import EpisodeEnd, OpenEpisode, SeedStream, Step, VectorStep


class TrafficEnv:
    """A SUMO district; one per process. Close it to free the process for another."""

    num_envs = 1

    def __init__(
        self,
        settings: TrafficSettings,
        policies: Mapping[str, PolicySettings],
        *,
        seeds: SeedStream,
        evaluation: bool = False,
        details: bool = False,
        controller: str | None = None,
        folder: Path | None = None,
    ) -> None:
        """Read the net and take the process's place for SUMO; the first simulation starts at `reset`.

        Args:
            settings: the recipe's `[env]`.
            policies: policy id -> which signals it drives (agents are named by signal id).
            seeds: seed of each episode.
            evaluation: no training-time teleport and no training demand scale.
            details: fill `EpisodeEnd.details`.
            controller: one of `CONTROLLERS`; then `controller_actions` gives its action, or SUMO runs it.
            folder: where the recipe's relative files start.
        Raises: EnvError, RecipeError: with the reason.
        """
        if controller is not None and controller not in CONTROLLERS:
            raise EnvError(
                f"controller={controller!r} is not in the box: nothing would "
                f"act.{did_you_mean(controller, CONTROLLERS)} "
                f"Known: {', '.join(CONTROLLERS)}."
            )
        self._settings, self._seeds = settings, seeds
        self._evaluation, self._details, self._controller = evaluation, details, controller
        net, route = district_files(settings, folder)
        self.network = network = read_network(net)
        self.lints = lint(network, settings)
        """What is odd about the net, in words."""
        names = [signal.id for signal in network.signals]
        self._programme = controller in PROGRAMMES
        programme = actuated_programme(network, settings) if controller == "actuated" else None
        self._trips = evaluation or details or settings.training_trip_metrics
        self._simulation = Simulation(
            net, route, names, emissions=settings.emissions, program=programme, trips=self._trips
        )
        try:
            self._build(policies, names)
        except BaseException:
            self.close()  # the process's place must not stay taken by an environment nobody holds
            raise

    def _build(self, policies: Mapping[str, PolicySettings], names: list[str]) -> None:
        settings, network = self._settings, self.network
        self._vehicles = self._simulation.call("lane", "getLastStepVehicleNumber")
        self._sensors = Sensors(self._simulation, network, settings.sensing_m)
        self._safety = SafetyLayer(network.signals, settings)
        self._rewards = Rewards(settings, network, self._sensors, self._simulation)
        self._rule = RuleController(
            self._controller or "random", network, self._sensors, self._safety, settings
        )
        self._recorder = Recorder(network.signals, emissions=settings.emissions, details=self._details)
        self._view = DistrictView(network, self._simulation, self._sensors, self._safety, settings)
        self._reward_plugin = (
            None if settings.reward_function is None else load("reward_function", settings.reward_function)
        )
        self._index = -1
        self._start(seed=0)  # SUMO accepts the district, and the sensors can be read to size the observation
        self._plugin: ObservationPlugin | None = None
        if settings.observation_function is not None:
            self._plugin = ObservationPlugin(settings.observation_function, self._view)
            sizes = self._plugin.sizes
        else:
            self._observer = Observer(network, self._sensors, self._safety, settings)
            sizes = [len(places) for places in self._observer.places]
        low = -np.inf if self._plugin else 0.0
        agents = [
            AgentInfo(
                name,
                ArraySpec((size,), "float32", low),
                ActionSpec("discrete", n=len(signal.greens)),
                masked=True,
            )
            for name, size, signal in zip(names, sizes, network.signals, strict=True)
        ]
        self._groups = assign(agents, policies, self.num_envs)
        place = {name: n for n, name in enumerate(names)}
        self._members = {
            policy: np.array([place[agent] for agent in agents_of(group)])
            for policy, group in self._groups.items()
        }
        self._blank = {policy: blank_rows(group) for policy, group in self._groups.items()}
        self._constants = {policy: StepArrays(group) for policy, group in self._groups.items()}
        self._widest = {
            policy: max(slot.obs_size for slot in group.slots) for policy, group in self._groups.items()
        }
        if self._plugin is None:
            self._places = {
                policy: self._observer.group_places(self._members[policy].tolist(), self._widest[policy])
                for policy in self._groups
            }
        self._simulation.end()

    @property
    def groups(self) -> Mapping[str, GroupSpec]:
        """Policy id -> its signals' padded spaces; actions are indices of green phases."""
        return self._groups

    def reset(self) -> VectorStep:
        """Begin the next episode of the seed stream; an unfinished one is dropped."""
        self._begin(self._index + 1)
        return VectorStep({policy: self._first_step(policy, self._observe()) for policy in self._groups})

    def step(self, actions: Mapping[str, Array]) -> VectorStep:
        """Show what the safety layer allows of `actions`, and simulate to the next decision.

        Args:
            actions: policy id -> [S] int green indices; an illegal one is refused and counted, never shown.
        Raises: EnvError: the actions have the wrong shape, or SUMO stopped.
        """
        wish = self._joint(actions)
        self._history.append(wish)
        self._run([] if self._programme else self._safety.decide(wish))
        raw = self._raw_reward()
        self._record(raw)
        reward = raw / self._settings.reward_scale
        if self._settings.reward_clip is not None:
            reward = np.clip(reward, -self._settings.reward_clip, self._settings.reward_clip)
        scaled = reward.astype(np.float32)
        observations = self._observe()
        if self._simulation.now_s < self._settings.end_s:
            groups = {p: self._next_step(p, observations, scaled) for p in self._groups}
            return VectorStep(groups, env_steps=1)
        episode = self._finish()
        self._begin(self._index + 1)
        fresh = self._observe()
        groups = {p: self._last_step(p, observations, fresh, scaled) for p in self._groups}
        return VectorStep(groups, (episode,), env_steps=1)

    def controller_actions(self) -> dict[str, IntArray]:
        """Return what the built-in controller would do now: policy id -> [S] int64 (zeros where SUMO runs the
        signals).

        Raises: EnvError: the environment was made without a controller.
        """
        if self._controller is None:
            raise EnvError(
                "controller=None was given: no rule to ask. Make the environment with controller=<name>."
            )
        chosen = np.zeros(len(self.network.signals), np.int64) if self._programme else self._rule.choose()
        return {policy: chosen[members] for policy, members in self._members.items()}

    def vehicle_count(self) -> int:
        """Vehicles in the net now."""
        return int(self._simulation.api.vehicle.getIDCount())

    def open_episodes(self) -> tuple[OpenEpisode, ...]:
        """The running episode as seed and joint actions: SUMO rebuilds it exactly from these."""
        joint = np.array(self._history, np.int64).reshape(-1, len(self.network.signals))  # [T, N]
        actions = {policy: joint[:, members] for policy, members in self._members.items()}
        return (OpenEpisode(0, self._seed, self._index, actions),)

    def restore(self, episodes: tuple[OpenEpisode, ...]) -> VectorStep:
        """Rebuild the running episode by replaying it.

        Raises: EnvError: there is not exactly one, or it is longer than the window.
        """
        if len(episodes) != 1:
            raise EnvError(
                f"{len(episodes)} open episodes were given to a traffic environment, which has 1: cannot "
                "resume."
            )
        episode = episodes[0]
        self._begin(episode.index, episode.seed)
        steps = len(next(iter(episode.actions.values())))
        window = (self._settings.end_s - self._settings.begin_s) // self._settings.decision_s
        if steps >= window:
            raise EnvError(
                f"an open episode of {steps} decisions does not fit a window of {window}: the recipe "
                "changed. Cut it."
            )
        groups = {policy: self._first_step(policy, self._observe()) for policy in self._groups}
        step = VectorStep(groups)
        for t in range(steps):
            step = self.step({policy: chosen[t] for policy, chosen in episode.actions.items()})
        return step

    def close(self) -> None:
        """End SUMO and free the process for another traffic environment. May be called twice."""
        self._simulation.close()

    # ------------------------------------------------------------------------------------ one episode

    def _begin(self, index: int, seed: int | None = None) -> None:
        self._index = index
        self._start(seed)
        self._rewards.start()
        self._rule.start(self._seed)
        self._recorder.start()
        self._view.start()
        if self._reward_plugin is not None:
            for signal in self._view.traffic_signals.values():
                signal.last_measure = 0.0

    def _start(self, seed: int | None = None) -> None:
        s = self._settings
        self._seed = self._seeds(0, max(self._index, 0)) if seed is None else seed
        self._history: list[IntArray] = []
        self._simulation.start(episode_of(s, self._seed, evaluation=self._evaluation))
        commands = self._safety.start(s.begin_s)
        if not self._programme:
            self._simulation.show(commands)
        self._sensors.refresh()

    def _run(self, commands: list[Command]) -> None:
        """Simulate one decision, showing each command in its second."""
        s, start_s = self._settings, self._simulation.now_s
        length_s = s.decision_s
        samples = self._rewards.sample_times_s
        at: dict[int, list[Command]] = {}
        for command in commands:
            at.setdefault(command.after_s, []).append(command)
        self._simulation.show(at.pop(0, ()))
        stops = {*at, *samples, length_s}
        while stops:
            offset = min(stops)
            stops.remove(offset)
            self._simulation.run_to(start_s + offset)
            due = at.get(offset, [])
            self._simulation.show(self._held(due, offset, at, stops) if s.red_extension_s else due)
            if offset in samples:
                self._sensors.refresh()
                self._rewards.sample()
        if length_s not in samples:
            self._sensors.refresh()
        self._safety.advance(self._simulation.now_s)

    def _held(
        self, due: list[Command], offset: int, at: dict[int, list[Command]], stops: set[int]
    ) -> list[Command]:
        """Return what to show now; a green that waits for vehicles inside is due again a second later."""
        shown = []
        for command in due:
            waits = any(map(self._vehicles, command.clears))
            if waits and self._safety.held(command, offset):
                at.setdefault(offset + 1, []).append(command)
                stops.add(offset + 1)
                command = replace(command, state=command.meanwhile)
            shown.append(command)
        return shown

    def _raw_reward(self) -> FloatArray:
        if self._reward_plugin is None:
            return self._rewards.collect()
        return np.array([float(self._reward_plugin(ts)) for ts in self._view.traffic_signals.values()])

    def _record(self, raw: FloatArray) -> None:
        halting = self._sensors.read("halting")
        self._recorder.decision(raw, halting)
        if self._controller is not None and not self._programme:
            self._rule.watch(self._settings.decision_s)
        if self._details:
            self._recorder.series(
                time_s=self._simulation.now_s,
                queue=self._sensors.signal_lanes @ halting,
                delay_rate=self._sensors.signal_lanes @ self._sensors.lane_delay(),
                phase=shown_phases(self.network.signals, self._simulation),
                reward=raw,
            )

    def _finish(self) -> EpisodeEnd:
        simulation, settings = self._simulation, self._settings
        inside, elsewhere = self._recorder.jams(simulation)
        teleports = float(simulation.statistic("teleports.total"))
        simulation.end()
        trips = read_trips(simulation.trips_file) if self._trips else None
        shown = read_states(simulation.states_file)
        unsafe = violations(shown, settings, programme=self._programme)
        totals = {
            "teleports": teleports,
            "gridlocked": float(inside or elsewhere),
            "jam_controlled": float(inside),
            "jam_elsewhere": float(elsewhere),
            "safety_violations": float(len(unsafe)),
            "safety_refusals": float(self._safety.refusals),
        }
        metrics = self._recorder.metrics(trips, totals)
        details = {} if trips is None else self._recorder.details(trips, shown)
        return EpisodeEnd(0, self._seed, len(self._history), metrics, details)

    # ----------------------------------------------------------------------------- signals <-> groups

    def _joint(self, actions: Mapping[str, Array]) -> IntArray:
        wish = np.empty(len(self.network.signals), np.int64)
        for policy, members in self._members.items():
            given = np.asarray(actions[policy])
            if given.shape != members.shape or given.dtype.kind not in "iu":
                raise EnvError(
                    f"actions[{policy!r}] is {given.dtype}{list(given.shape)}, not int[{len(members)}]: "
                    "signals would be left "
                    "without a decision. Give one green index per slot."
                )
            wish[members] = given
        return wish

    def _observe(self) -> dict[str, Array]:
        if self._plugin is not None:
            rows = {policy: blank.copy() for policy, blank in self._blank.items()}
            vectors = self._plugin()
            for policy, members in self._members.items():
                for row, n in enumerate(members):
                    rows[policy][row, : len(vectors[n])] = vectors[n]
            return rows
        pool = self._observer.pool()
        rows = {}
        for policy, places in self._places.items():
            own, blank = pool[places], self._blank[policy]  # [S, widest], [S, D]
            if own.shape != blank.shape:  # an agent's one-hot stands behind its own features
                own, read = blank.copy(), own
                own[:, : read.shape[1]] = read
            rows[policy] = own
        return rows

    def _first_step(self, policy: str, observations: Mapping[str, Array]) -> Step:
        k = self._constants[policy]
        return self._step(policy, observations[policy], k.zeros, truncated=k.no, valid=k.no, is_first=k.yes)

    def _next_step(self, policy: str, observations: Mapping[str, Array], reward: FloatArray) -> Step:
        k, members = self._constants[policy], self._members[policy]
        return self._step(
            policy, observations[policy], reward[members], truncated=k.no, valid=k.yes, is_first=k.no
        )

    def _last_step(
        self, policy: str, final: Mapping[str, Array], fresh: Mapping[str, Array], reward: FloatArray
    ) -> Step:
        k, members = self._constants[policy], self._members[policy]
        step = self._step(
            policy, fresh[policy], reward[members], truncated=k.yes, valid=k.yes, is_first=k.yes
        )
        return replace(step, final_slots=np.arange(len(members)), final_obs=final[policy])

    def _step(self, policy: str, obs: Array, reward: FloatArray, **flags: BoolArray) -> Step:
        k = self._constants[policy]
        return Step(
            obs=obs,
            reward=reward,
            terminated=k.no,
            active=k.yes,
            episode_id=k.episode(self._index),
            final_slots=k.nobody,
            final_obs=k.nothing,
            legal=self._legal(policy),
            **flags,
        )

    def _legal(self, policy: str) -> BoolArray:
        """[S, A] what the signals of a policy may be asked now."""
        legal, members = self._safety.legal, self._members[policy]
        if legal.shape == (len(members), self._groups[policy].action.n):
            return legal  # all signals, in their order
        return legal[members, : self._groups[policy].action.n]
