"""Evaluation: whole episodes on held-out seeds, for a policy and for every rule it is compared with.

One function plays them all, so no controller is judged by another ruler. Copies of the environment step
together; copy e plays its share of the episodes and only those count, so short episodes are not over-counted.

Dims: S slots, A actions, E environment copies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from seqrl_ray.algorithms.contract import Algorithm
from seqrl_ray.envs.check import random_actions
from seqrl_ray.errors import EnvError
from seqrl_ray.loops.build import evaluation_env
from seqrl_ray.loops.rollout import FrameStack, cleared
from seqrl_ray.recipe import Recipe
from seqrl_ray.types import ActInput, Array, GroupSpec, Mode
from seqrl_ray.types_env import EpisodeEnd, VectorEnv, VectorStep

POLICY = "policy"
"""Name of the trained policy among the controllers."""
PRETRAINED = "pretrained"
"""Name of the policy as it was when its offline phase ended and acting began, among the controllers."""
AT_TARGET = f"{POLICY} at "
"""Begins the name of the policy where it is asked for one of `evaluation.targets`."""


class Player(Protocol):
    """Chooses the actions of all groups."""

    def act(self, step: VectorStep) -> Mapping[str, Array]: ...


class PolicyPlayer:
    """The trained policy."""

    def __init__(
        self,
        groups: Mapping[str, GroupSpec],
        algorithms: Mapping[str, Algorithm],
        seed: int,
        mode: Mode = "greedy",
    ) -> None:
        self.algorithms, self.mode = algorithms, mode
        self.rng = np.random.default_rng(seed)
        self.stacks = {p: FrameStack(g) for p, g in groups.items()}
        self.states: dict[str, Any] = {
            p: algorithms[p].initial_state(len(g.slots)) for p, g in groups.items()
        }
        self.prev_action = {
            p: np.zeros((len(g.slots), *g.action.shape), g.action.column.dtype) for p, g in groups.items()
        }
        self.slot_params = {
            p: algorithms[p].slot_params(1.0, np.zeros(len(g.slots), np.int64), 1) for p, g in groups.items()
        }

    def act(self, step: VectorStep) -> dict[str, Array]:
        actions: dict[str, Array] = {}
        for policy_id, group_step in step.groups.items():
            inputs = ActInput(
                obs=self.stacks[policy_id].push(group_step),
                prev_action=cleared(self.prev_action[policy_id], group_step.is_first),
                prev_reward=cleared(group_step.reward, group_step.is_first),
                is_first=group_step.is_first,
                legal=group_step.legal,
                slot_params=self.slot_params[policy_id],
                rng=self.rng,
            )
            action, self.states[policy_id], _ = self.algorithms[policy_id].act(
                inputs, self.states[policy_id], self.mode
            )
            actions[policy_id] = self.prev_action[policy_id] = action
        return actions


class RandomPlayer:
    """Uniform over the legal actions (discrete) or over the box."""

    def __init__(self, groups: Mapping[str, GroupSpec], seed: int) -> None:
        self.groups = groups
        self.rng = np.random.default_rng(seed)

    def act(self, step: VectorStep) -> dict[str, Array]:
        return random_actions(self.groups, step, self.rng)


class RulePlayer:
    """A rule that the environment brings along."""

    def __init__(self, env: Any) -> None:
        self.env = env

    def act(self, step: VectorStep) -> Mapping[str, Array]:
        actions: Mapping[str, Array] = self.env.controller_actions()
        return actions


def play(
    env: VectorEnv, player: Player, episodes: int, on_episode: Callable[[EpisodeEnd], None] | None = None
) -> list[EpisodeEnd]:
    """Play `episodes` episodes and return them in the order of their seeds' deal.

    Raises: EnvError: an episode lasts more than ten million steps (it never ends).
    """
    share = [episodes // env.num_envs + (e < episodes % env.num_envs) for e in range(env.num_envs)]
    done: list[list[EpisodeEnd]] = [[] for _ in range(env.num_envs)]
    step = env.reset()
    steps = 0
    while any(len(d) < s for d, s in zip(done, share, strict=True)):
        step = env.step(player.act(step))
        steps += 1
        for end in step.episodes:
            if len(done[end.env]) < share[end.env]:
                done[end.env].append(end)
                if on_episode is not None:
                    on_episode(end)
        if steps > 10_000_000:
            raise EnvError(
                f"evaluation.episodes={episodes} do not end within {steps:,} steps: nothing can be "
                "judged. Give the environment a time limit."
            )
    return [done[i % env.num_envs][i // env.num_envs] for i in range(episodes)]


def evaluate(
    recipe: Recipe,
    name: str,
    seeds: Sequence[int],
    *,
    algorithms: Mapping[str, Algorithm]
    | Callable[[Mapping[str, GroupSpec]], Mapping[str, Algorithm]]
    | None = None,
    details: bool = False,
    on_episode: Callable[[EpisodeEnd], None] | None = None,
) -> list[EpisodeEnd]:
    """Play one controller on `seeds`.

    Args:
        recipe: says the environment.
        name: `policy`, `random`, or a rule that the environment offers.
        seeds: one episode each.
        algorithms: for `policy`: policy id -> algorithm, or what makes them from the environment's groups.
        details: keep the series of the FIRST episode for the report.
        on_episode: called after each episode.
    Returns: one EpisodeEnd per seed, in the order of `seeds`.
    """
    head = 1 if details else 0
    ends: list[EpisodeEnd] = []
    for part, keep in ((seeds[:head], True), (seeds[head:], False)):
        if not part:
            continue
        rule = name not in (POLICY, "random") or (name == "random" and recipe.env.kind == "traffic")
        env = evaluation_env(recipe, part, controller=name if rule else None, details=keep)
        try:
            player: Player
            if rule:
                player = RulePlayer(env)
            elif name == POLICY:
                assert algorithms is not None, "a policy needs algorithms"
                made = algorithms(env.groups) if callable(algorithms) else algorithms
                player = PolicyPlayer(env.groups, made, seed=part[0])
            else:
                player = RandomPlayer(env.groups, seed=part[0])
            ends.extend(play(env, player, len(part), on_episode))
        finally:
            env.close()
    return ends
