"""Our offline datasets as RLlib's offline algorithms read them: BC, MARWIL, CQL, IQL.

RLlib 2.60 reads Parquet through Ray Data, row by row in the order of the files, and needs a package that it
does not install for whole episodes. Here the memory-mapped columns of a dataset folder are drawn from
directly, in the learner's process: uniformly over decisions (MARWIL: whole episodes, which its advantages
need), through RLlib's own learner connectors, with the networks as they are now. Continuous actions are
handed over as RLlib's networks put them out, in [-1, 1], because acting maps them back (`normalize_actions`).

RLlib moves target networks and schedules once per call of its learner, however many minibatches the call
has, and gives CQL's learner no count of decisions at all. Here every minibatch is a call (`one_by_one`), as
with RLlib's `dataset_num_iters_per_learner=1`, and the count is the learner's own: a resume goes on with it.

Dims: B decisions of a batch, N decisions of the data, F frames.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import numpy as np
from ray.air.constants import TRAINING_ITERATION
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.offline.offline_data import OfflineData
from ray.rllib.utils import flatten_dict
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME
from ray.rllib.utils.spaces.space_utils import normalize_action

from seqrl_ray.loops.build import SHARDS, stream_seed
from seqrl_ray.loops.offline import Offline, open_data
from seqrl_ray.recipe import Recipe
from seqrl_ray.rllib.callbacks import ALL_MODULES
from seqrl_ray.rllib.spaces import action_space, observation_space, observe
from seqrl_ray.types import Array, GroupSpec, IntArray

OFFLINE = ("BC", "CQL", "IQL", "MARWIL")
"""Algorithms of RLlib's that learn from data alone."""

BY_EPISODE = ("MARWIL",)
"""Those that need the decisions of an episode together."""

UPDATES_PER_ITERATION = 100


def open_for(recipe: Recipe, groups: Mapping[str, GroupSpec]) -> Offline:
    """Open the data of a recipe.

    Raises: RecipeError: it is missing, or of other spaces than the environment. DataError: it is damaged.
    """
    unbounded = recipe.replay.model_copy(update={"capacity_steps": 2**62})  # no shard has to hold it
    found = open_data(recipe.model_copy(update={"replay": unbounded}), dict(groups))
    assert found is not None, "check_recipe asks for [data]"
    return found


class DatasetBatches(OfflineData):
    """Stands where RLlib has its OfflineData, and for the iterator over it."""

    def __init__(self, config: Any) -> None:
        """Open the dataset.

        Args:
            config: RLlib's, with `input_config` = recipe, groups, session and the algorithm's plain name.
        """
        given = config.input_config
        recipe: Recipe = given["recipe"]
        self._config, self._whole = config, given["name"] in BY_EPISODE
        ((_, self._group),) = given["groups"].items()
        offline = open_for(recipe, given["groups"])
        self._columns = offline.dataset.columns
        first = offline.dataset.episode_start[offline.episodes]
        steps = offline.dataset.episode_rows[offline.episodes] - 1
        self._start = np.repeat(first, steps)  # [N] first row of each decision's episode
        within = np.arange(steps.sum()) - np.repeat(np.cumsum(steps) - steps, steps)
        self._row = self._start + within  # [N]
        self._episodes = [(int(a), int(n)) for a, n in zip(first, steps, strict=True)]
        self._rng = np.random.default_rng(stream_seed(recipe, SHARDS, 0, given["session"]))
        self._connector: Any = None
        # What RLlib's Algorithm sets and reads here:
        self.iter_batches_kwargs: dict[str, Any] = {}
        self.learner_handles: Any = []
        self.module_spec = self.spaces = self.locality_hints = None

    def sample(self, num_samples: int, *args: Any, **kwargs: Any) -> list[DatasetBatches]:
        """Return the iterators of the learners: there is one learner."""
        return [self]

    def iter_torch_batches(
        self, *, batch_size: int, device: Any = None, **kwargs: Any
    ) -> Iterator[dict[str, Any]]:
        """Yield minibatches without end: flat name -> tensor, as RLlib's learner takes them from Ray Data."""
        if self._connector is None:
            self._connector = self._config.build_learner_connector(
                input_observation_space=observation_space(self._group),
                input_action_space=action_space(self._group),
                device=device,
            )
        while True:
            episodes = self._episodes_of(batch_size) if self._whole else self._steps_of(batch_size)
            yield self._through_connector(episodes)

    def _through_connector(self, episodes: list[SingleAgentEpisode]) -> dict[str, Any]:
        (learner,) = self.learner_handles
        batch = self._connector(
            rl_module=learner.module, batch={}, episodes=episodes, shared_data={}, metrics=None
        )
        batch[DEFAULT_MODULE_ID].pop("infos", None)
        flat: dict[str, Any] = flatten_dict(batch)
        return flat

    def _steps_of(self, count: int) -> list[SingleAgentEpisode]:
        """Draw decisions, each as an episode of one step."""
        drawn = self._rng.integers(len(self._row), size=count)  # [B]
        rows, start = self._row[drawn], self._start[drawn]
        seen, after = self._observed(rows, start), self._observed(rows + 1, start)
        return [self._episode(rows[i : i + 1], np.stack([seen[i], after[i]])) for i in range(count)]

    def _episodes_of(self, count: int) -> list[SingleAgentEpisode]:
        """Draw whole episodes until they have `count` decisions."""
        found, have = [], 0
        while have < count:
            start, steps = self._episodes[int(self._rng.integers(len(self._episodes)))]
            rows = np.arange(start, start + steps + 1)
            found.append(self._episode(rows[:-1], self._observed(rows, np.full(len(rows), start))))
            have += steps
        return found

    def _episode(self, rows: IntArray, observations: Array) -> SingleAgentEpisode:
        """Return consecutive decisions as RLlib keeps them; observations: one more than decisions."""
        column = self._columns
        last = int(rows[-1])
        return SingleAgentEpisode(
            observations=list(observations),
            actions=list(self._actions(np.asarray(column["action"][rows]))),
            rewards=[float(r) for r in column["reward"][rows]],
            infos=[{} for _ in range(len(rows) + 1)],
            terminated=bool(column["terminated"][last]),
            truncated=bool(column["truncated"][last]),
            len_lookback_buffer=0,
        )

    def _observed(self, rows: IntArray, start: IntArray) -> Array:
        """Return what the policy sees at some rows, [B, ...]; frames before an episode's first are 0."""
        group = self._group
        if group.frame_stack == 1:
            obs = np.asarray(self._columns["obs"][rows])
        else:
            back = np.arange(group.frame_stack - 1, -1, -1)  # [F]
            places = rows[:, None] - back  # [B, F]
            obs = np.asarray(self._columns["obs"][np.maximum(places, start[:, None])])
            obs[places < start[:, None]] = 0
        legal = None
        if group.masked:
            every = np.ones((len(rows), group.action.n), np.bool_)
            legal = np.asarray(self._columns["legal"][rows]) if "legal" in self._columns else every
        return observe(group, obs, legal)

    def _actions(self, actions: Array) -> Array:
        if self._group.action.kind == "box" and self._config.normalize_actions:
            space = action_space(self._group)
            return np.asarray(normalize_action(actions, space), np.float32)  # type: ignore[no-untyped-call]
        return actions


@cache
def one_by_one(learner: type) -> type:
    """Return a learner class whose `update` is several of RLlib's (as `set_data` says), a minibatch each.

    What it has learned from is in `seen`: decisions and updates, lifetime counts.
    """

    def build(self: Any) -> None:
        learner.build(self)  # type: ignore[attr-defined]
        self.seen = {"decisions": 0, "updates": 0}

    def update(self: Any, *args: Any, **kwargs: Any) -> Any:
        given, result = self.config.input_config, None
        updates = max(1, min(given["updates"], given["total"] - self.seen["updates"]))
        if hasattr(self.config, "bc_iters"):
            # CQL's learner counts its updates in a sum that each report empties: it never came to bc_iters.
            self.metrics.log_value((ALL_MODULES, TRAINING_ITERATION), self.seen["updates"], reduce="sum")
        for number in range(1, updates + 1):
            self.seen["decisions"] += self.config.train_batch_size_per_learner
            self.seen["updates"] += 1
            own = {
                "timesteps": {NUM_ENV_STEPS_SAMPLED_LIFETIME: self.seen["decisions"]},
                "num_iters": 1,
                "_no_metrics_reduce": number < updates,
            }
            result = learner.update(self, *args, **{**kwargs, **own})  # type: ignore[attr-defined]
        return result

    return type(learner.__name__, (learner,), {"build": build, "update": update})


def set_data(
    config: Any, recipe: Recipe, groups: Mapping[str, GroupSpec], name: str, *, session: int
) -> None:
    """Tell RLlib's configuration where the data comes from.

    Args:
        config: RLlib's.
        recipe: the run.
        groups: policy id -> what it sees and does.
        name: of the algorithm, without the prefix.
        session: how often the run was taken up before.
    """
    updates = config.dataset_num_iters_per_learner or min(UPDATES_PER_ITERATION, recipe.offline_updates)
    total = recipe.stop.updates or recipe.offline_updates
    given = {"recipe": recipe, "groups": dict(groups), "name": name, "session": session}
    given |= {"updates": updates, "total": total}
    config.offline_data(
        input_=["a dataset folder of seqrl-ray"],  # only says that there is data: the class opens it
        input_config=given,
        offline_data_class=DatasetBatches,
        # Says "an iterator" to RLlib, which takes another way for 1; how many updates, `one_by_one` knows.
        dataset_num_iters_per_learner=2,
    )
    config._is_online = False  # CQL forgets to say so: it would make an environment of its own
