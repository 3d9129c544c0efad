"""Show a recorded episode in sumo-gui: the seed and the actions, through TraCI.

Source: https://sumo.dlr.de/docs/TraCI.html. TraCI is a SUMO of its own in another process, so a replay may
run beside a `TrafficEnv`; it is several times slower than libsumo and serves people's eyes only. The traffic
is the episode's, because libsumo and TraCI simulate alike; only counts are read, by one subscription.

Dims: T decisions, S signals of one policy group.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from seqrl_ray.envs.grouping import AgentInfo, agents_of, assign
from seqrl_ray.envs.traffic.files import district_files, ensure_sumo_home, sumo_binary
from seqrl_ray.envs.traffic.net import read_network
from seqrl_ray.envs.traffic.safety import Command, SafetyLayer
from seqrl_ray.envs.traffic.simulation import district_options, episode_of
from seqrl_ray.errors import EnvError
from seqrl_ray.recipe_env import PolicySettings
from seqrl_ray.recipe_traffic import TrafficSettings
from seqrl_ray.types import ActionSpec, ArraySpec
from seqrl_ray.types_env import OpenEpisode


def replay(
    settings: TrafficSettings,
    policies: Mapping[str, PolicySettings],
    episode: OpenEpisode,
    *,
    folder: Path | None = None,
    evaluation: bool = True,
    binary: str = "sumo-gui",
    delay_ms: int = 100,
) -> list[int]:
    """Run an episode in a window.

    Args:
        settings: the recipe's `[env]`, as the episode had it.
        policies: as the episode had them.
        episode: seed and joint actions, [T, S] per policy.
        folder: where the recipe's relative files start.
        evaluation: False if the episode had the training aids.
        binary: `sumo-gui`, or `sumo` for no window.
        delay_ms: pause per simulated second in the window, milliseconds.
    Returns: vehicles in the net after each decision, T numbers.
    Raises: EnvError: SUMO could not start, or the window was closed.
    """
    net, route = district_files(settings, folder)
    network = read_network(net)
    names = [signal.id for signal in network.signals]
    agents = [AgentInfo(name, ArraySpec((1,), "float32"), ActionSpec("discrete", n=1)) for name in names]
    joint = np.zeros((len(next(iter(episode.actions.values()))), len(names)), np.int64)  # [T, N]
    for policy, group in assign(agents, policies, 1).items():
        joint[:, [names.index(agent) for agent in agents_of(group)]] = episode.actions[policy]
    ensure_sumo_home()
    import traci  # only a replay needs it
    import traci.constants as constants

    window = (
        ["--start", "--quit-on-end", "--delay", str(delay_ms)] if binary == "sumo-gui" else ["--no-step-log"]
    )
    options = [
        *district_options(net, route),
        *episode_of(settings, episode.seed, evaluation=evaluation).options(),
    ]
    layer = SafetyLayer(network.signals, settings)
    label = f"seqrl-replay-{id(layer)}"
    try:
        traci.start([str(sumo_binary(binary)), *options, *window], label=label)
        sumo = traci.getConnection(label)
        sumo.vehicle.subscribe("", [constants.ID_COUNT])
        counts = []
        now_s = settings.begin_s
        _show(sumo, layer.start(now_s), 0)
        for row in joint:
            commands = layer.decide(row)
            _show(sumo, commands, 0)
            for offset in sorted({c.after_s for c in commands if c.after_s} | {settings.decision_s}):
                sumo.simulationStep(float(now_s + offset))
                _show(sumo, commands, offset)
            now_s += settings.decision_s
            layer.advance(now_s)
            counts.append(int(sumo.vehicle.getSubscriptionResults("")[constants.ID_COUNT]))
        sumo.close()
    except (traci.FatalTraCIError, traci.TraCIException) as error:
        raise EnvError(f"SUMO ended the replay: {error}. If you closed the window, run it again.") from error
    return counts


def _show(sumo: object, commands: list[Command], offset: int) -> None:
    for command in commands:
        if command.after_s == offset:
            sumo.trafficlight.setRedYellowGreenState(command.signal, command.state)  # type: ignore[attr-defined]
