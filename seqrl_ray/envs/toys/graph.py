"""Shortest paths on a fixed random graph: what a policy learnt from random walks can put together.

Source: Chen et al. 2021 (Decision Transformer, https://arxiv.org/abs/2106.01345), section 1 and appendix A.3;
the sizes are those of trlX's `randomwalks` example (21 nodes, an edge with probability 0.1, walks of at most
10 steps). The code is ours. Departs from both: some start nodes may be held out, and draws of the graph are
repeated until the task can be solved and learnt (see `draw_graph`).

Dims: N nodes = A actions.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import gymnasium
import numpy as np
from gymnasium import spaces

from seqrl_ray.errors import EnvError
from seqrl_ray.types import Array

GOAL = 0
NEAR = 1.1
"""How much longer than the shortest a path may be and still count as `within_1_1`."""
DRAWS = 10_000

Starts = Literal["train", "held_out", "all"]
Info = dict[str, Any]


def distances(edges: Array) -> Array:
    """Return each node's fewest steps to GOAL, -1 where there is no way, by breadth-first search backwards.

    Args:
        edges: [N, N] bool, True at [from, to].
    Returns: [N] int64.
    """
    steps = np.full(len(edges), -1, np.int64)  # [N]
    frontier = np.arange(len(edges)) == GOAL  # [N]
    distance = 0
    while frontier.any():
        steps[frontier] = distance
        frontier = edges[:, frontier].any(1) & (steps < 0)
        distance += 1
    return steps


def draw_graph(nodes: int, p_edge: float, held_out_starts: int, graph_seed: int) -> tuple[Array, Array]:
    """Draw a graph and the start nodes to hold out.

    GOAL has no edge out. Drawn again until every node can reach GOAL and every held-out start has an edge
    from a start that is not held out: else no walk of the training starts would show what leads on from it.

    Returns: edges [N, N] bool, True at [from, to]; held-out starts, sorted.
    Raises: EnvError: no such graph in `DRAWS` draws.
    """
    rng = np.random.default_rng(graph_seed)
    for _ in range(DRAWS):
        edges = rng.random((nodes, nodes)) < p_edge  # [N, N]
        np.fill_diagonal(edges, False)
        edges[GOAL] = False
        shuffled = 1 + rng.permutation(nodes - 1)
        held_out, train = np.sort(shuffled[:held_out_starts]), shuffled[held_out_starts:]
        if (distances(edges) >= 0).all() and edges[np.ix_(train, held_out)].any(0).all():
            return edges, held_out
    raise EnvError(
        f"p_edge={p_edge} gave no graph of nodes={nodes} in {DRAWS:,} draws in which every node reaches the "
        f"goal and an edge leads to each of held_out_starts={held_out_starts}: there is nothing to solve. "
        "Raise p_edge."
    )


class ShortestPathGraph(gymnasium.Env[int, int]):
    """Walk to node 0 along the edges of a fixed graph; naming a node that no edge leads to is a stay.

    Observation: the node (Discrete; every door of ours stores it as a one-hot). Actions: the node to go to.
    A step costs 1, the one that arrives costs nothing and terminates: d steps return 1 - d. The time limit is
    the recipe's. With `masked` only edges are legal, so a random policy walks at random on the graph, as the
    published data do; the rules are the same.

    Metrics: `reached_goal`; `path_ratio`, steps over the shortest path's, where an episode cut by time counts
    one step more than it had (1 is best, lower is better); `within_1_1`, 1 if the goal was reached on a path
    of at most 1.1 x the shortest.
    """

    episode_metrics: ClassVar[tuple[str, ...]] = ("reached_goal", "path_ratio", "within_1_1")

    def __init__(
        self,
        nodes: int = 21,
        p_edge: float = 0.1,
        graph_seed: int = 20,
        starts: Starts = "all",
        held_out_starts: int = 5,
        masked: bool = False,
    ) -> None:
        """Draw the graph.

        Args:
            nodes: N, the goal among them.
            p_edge: probability of each edge.
            graph_seed: says which graph and which held-out starts.
            starts: which nodes episodes start from; the split is fixed by `graph_seed`.
            held_out_starts: how many start nodes are held out of "train".
            masked: give `action_mask`: only edges are legal (at the goal, to stay).
        Raises: EnvError: no such split, or no such graph.
        """
        if not 1 <= held_out_starts < nodes - 1:
            raise EnvError(
                f"held_out_starts={held_out_starts} is not within 1 .. {nodes - 2} for nodes={nodes}: one "
                "part of the start nodes would be empty. Choose a number between."
            )
        self.edges, held_out = draw_graph(nodes, p_edge, held_out_starts, graph_seed)
        self.edges.flags.writeable = False
        everywhere = np.arange(1, nodes)
        split = {"train": np.setdiff1d(everywhere, held_out), "held_out": held_out, "all": everywhere}
        if starts not in split:
            raise EnvError(
                f"starts={starts!r} is not one of {', '.join(split)}: where episodes start is not known. "
                "Name one of them."
            )
        self.start_nodes: tuple[int, ...] = tuple(split[starts].tolist())
        self.masked = masked
        self.observation_space = spaces.Discrete(nodes)
        self.action_space = spaces.Discrete(nodes)
        self._distances = distances(self.edges)
        self._node = self._start = GOAL
        self._steps = 0

    def shortest_path_steps(self, node: int) -> int:
        """Return the fewest steps from `node` to the goal."""
        return int(self._distances[node])

    def optimum(self) -> float:
        """Return the expected return of shortest paths from `start_nodes` (within any sufficient limit)."""
        return 1.0 - float(np.mean([self.shortest_path_steps(node) for node in self.start_nodes]))

    def reset(self, *, seed: int | None = None, options: Info | None = None) -> tuple[int, Info]:
        super().reset(seed=seed)
        self._start = self._node = self.start_nodes[int(self.np_random.integers(len(self.start_nodes)))]
        self._steps = 0
        return self._node, self._info()

    def step(self, action: int) -> tuple[int, float, bool, bool, Info]:
        self._steps += 1
        if self.edges[self._node, action]:
            self._node = int(action)
        reached = self._node == GOAL
        return self._node, float(reached) - 1.0, reached, False, self._info()

    def _info(self) -> Info:
        reached = self._node == GOAL
        ratio = (self._steps + (not reached)) / self.shortest_path_steps(self._start)
        near = reached and ratio <= NEAR
        numbers = (float(reached), float(ratio), float(near))
        info: Info = {"episode_metrics": dict(zip(self.episode_metrics, numbers, strict=True))}
        if self.masked:
            info["action_mask"] = np.arange(len(self.edges)) == GOAL if reached else self.edges[self._node]
        return info
