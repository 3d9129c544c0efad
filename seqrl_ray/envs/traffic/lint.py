"""What is odd about a net's signals, in words: a user sees it before training, nothing is edited.

Source: the faults found in public nets (all-red phases, removed greens, missing yellows, programmes that show
two crossing streams full green). Foes are read from the junction's right-of-way table (`<request foes=...>`);
merging streams are foes too, and only pairs that a phase both shows `G` (right of way) are reported.
"""

from __future__ import annotations

from collections.abc import Iterator

from seqrl_ray.envs.traffic.net import GREEN, Network, Signal
from seqrl_ray.envs.traffic.safety import yellow_state
from seqrl_ray.recipe_traffic import TrafficSettings


def lint(network: Network, settings: TrafficSettings) -> tuple[str, ...]:
    """Return one sentence per finding, worst kinds first within a signal."""
    found: list[str] = []
    for signal in network.signals:
        found.extend(f"signal {signal.id}: {text}" for text in _signal(signal, network, settings))
    for signal in network.uncontrolled:
        found.append(
            f"signal {signal.id}: {len(signal.greens)} green phase(s) to choose among, so it is no agent "
            "and keeps its own programme."
        )
    return tuple(found)


def _signal(signal: Signal, network: Network, settings: TrafficSettings) -> Iterator[str]:
    links = sorted({m.link for m in signal.movements})
    never = [link for link in links if not any(state[link] in "Ggs" for state in signal.greens)]
    if never:
        lanes = sorted({m.from_lane for m in signal.movements if m.link in never})
        yield (
            f"links {_listed(never)} are green in no phase a policy can choose: traffic from "
            f"{', '.join(lanes)} is never released by them."
        )
    if signal.removed:
        yield (
            f"{len(signal.removed)} phase(s) are commented out of its programme ({signal.removed[0]}): "
            "plans and results differ from those of the complete net."
        )
    bare = _without_yellow(signal)
    if bare:
        yield f"links {_listed(bare)} turn from green to red without yellow in its own programme."
    for phase, state in enumerate(signal.greens):
        pairs = _conflicts(signal, network, state)
        if pairs:
            yield f"green {phase} gives the right of way to crossing links {_listed(pairs)}: unsafe."
        if not signal.movements_of(phase):
            yield f"green {phase} releases no lane."
    repeats = len(signal.greens) - len(set(signal.greens))
    if repeats:
        yield f"{repeats} of its greens repeat another: changing between them only costs the change."
    pairs_without = sum(
        "y" not in yellow_state(a, b) for a in set(signal.greens) for b in set(signal.greens) if a != b
    )
    if pairs_without:
        yield (
            f"{pairs_without} of its changes need no yellow (one green contains the other); "
            "they still take the yellow's time."
        )
    short = sorted({s for s, state in signal.program if "y" in state and s < settings.yellow_s})
    if short:
        yield f"its own programme has a yellow of {short[0]:g} s, below yellow_s={settings.yellow_s}."
    if network.programs[signal.id] > 1:
        yield f"{network.programs[signal.id]} programmes in the net: the greens are the first one's."


def _without_yellow(signal: Signal) -> list[int]:
    states = [state for _, state in signal.program]
    pairs = zip(states, [*states[1:], states[0]], strict=True)
    return sorted({i for a, b in pairs for i in range(len(a)) if a[i] in GREEN and b[i] == "r"})


def _conflicts(signal: Signal, network: Network, state: str) -> list[str]:
    pairs: list[str] = []
    for name in signal.junctions:
        table = network.junction_links(name)
        foes = network.junctions[name].foes
        if len(table) != len(foes):
            continue  # a table with pedestrian crossings: their rows have no connection between edges
        shown = [(i, int(c["linkIndex"])) for i, c in enumerate(table) if c.get("tl") == signal.id]
        for i, a in shown:
            for j, b in shown:
                if i < j and state[a] == state[b] == "G" and foes[i][-1 - j] == "1":
                    pairs.append(f"{a}/{b}")
    return pairs


def _listed(items: list[str] | list[int]) -> str:
    shown = ", ".join(map(str, items[:8]))
    return shown if len(items) <= 8 else f"{shown}, ... ({len(items)} in all)"
