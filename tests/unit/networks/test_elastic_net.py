"""What the elastic network's tokens hear of one another, and its search against a slow loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from seqrl_ray.networks.elastic_dt import ElasticNet
from seqrl_ray.networks.transformer import CausalTransformer, keep_all
from seqrl_ray.types import ActionSpec, ArraySpec, GroupSpec, Slot

OBS, ACT, BINS = 5, 3, 12
VECTOR = ArraySpec((OBS,), "float32")
BOX = GroupSpec(
    "shared",
    (Slot(0, "agent", OBS, 0),),
    VECTOR,
    ActionSpec("box", shape=(ACT,), low=(-1.0,) * ACT, high=(1.0,) * ACT),
)
DISCRETE = GroupSpec("shared", (Slot(0, "agent", OBS, ACT),), VECTOR, ActionSpec("discrete", n=ACT))
IMAGE = GroupSpec(
    "shared", (Slot(0, "agent", 64, ACT),), ArraySpec((8, 8), "uint8"), ActionSpec("discrete", n=ACT)
)
GROUPS = {"box": BOX, "discrete": DISCRETE, "image": IMAGE}


@dataclass(frozen=True)
class Shape:
    units: int = 32
    layers: int = 3
    heads: int = 4
    max_timesteps: int = 40
    return_bins: int = BINS


def network(group: GroupSpec, seed: int = 0) -> ElasticNet:
    torch.manual_seed(seed)
    return ElasticNet(Shape(), group)


def windows(group: GroupSpec, batch: int, steps: int, seed: int = 0) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    image = group.obs.dtype == "uint8"
    shape = (batch, steps, *group.obs.shape)
    return {
        "wanted": torch.rand(batch, steps, generator=random),
        "obs": torch.randint(0, 256, shape, generator=random, dtype=torch.uint8)
        if image
        else torch.randn(shape, generator=random),
        "action": torch.randn(batch, steps, ACT, generator=random)
        if group is BOX
        else torch.randint(ACT, (batch, steps), generator=random),
        "timestep": torch.arange(steps) + torch.randint(9, (batch, 1), generator=random),
    }


def bin_away(wanted: Tensor) -> Tensor:
    """Returns in other bins."""
    return (wanted + 0.5) % 1.0


def same(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


# ------------------------------------------------------------------------------------------- hidden tokens


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_hidden_tokens_are_heard_by_nobody_and_hear_the_others(norm: Any) -> None:
    torch.manual_seed(0)
    body, x = CausalTransformer(16, 2, 4, norm=norm), torch.randn(3, 9, 16)
    seen = torch.tensor([1, 1, 0, 1, 1, 0, 0, 1, 1], dtype=torch.bool)
    hears = seen & torch.ones(9, 9, dtype=torch.bool).tril()
    whole = body(x, None, keep_all, hears)
    same(whole[:, seen], body(x[:, seen]))  # as if the hidden ones were not there
    for hidden in (~seen).nonzero().flatten().tolist():
        changed = x.clone()
        changed[:, hidden] = x[:, hidden].flip(-1)
        differs = (body(changed, None, keep_all, hears) - whole).abs().amax((0, 2)) > 1e-6
        assert differs.nonzero().flatten().tolist() == [hidden]  # its own, through the residual stream
        earlier = x.clone()
        earlier[:, 0] = x[:, 0].flip(-1)
        assert not torch.allclose(body(earlier, None, keep_all, hears)[:, hidden], whole[:, hidden])
    same(body(x, None, keep_all, torch.ones(9, 9, dtype=torch.bool).tril()), body(x))


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_asked_tokens_hear_what_they_hear_in_the_whole(norm: Any) -> None:
    torch.manual_seed(0)
    body, x = CausalTransformer(16, 2, 4, norm=norm), torch.randn(3, 9, 16)
    hears = (torch.rand(3, 9, 9) < 0.4) | torch.eye(9, dtype=torch.bool)
    rows = torch.arange(3)[:, None]
    for mask in (hears, hears[0]):
        whole = body(x, None, keep_all, mask)
        every, own = torch.tensor([0, 2, 5, 8]), torch.tensor([[2, 3], [8, 6], [0, 5]])
        same(body(x, every, keep_all, mask), whole[:, every])
        same(body(x, own, keep_all, mask), whole[rows, own])
    order = torch.tensor([3, 8, 0, 2, 1, 7, 5, 4, 6])  # the mask alone says what comes before what
    turned = body(x[:, order], None, keep_all, hears[:, order][:, :, order])
    same(turned, body(x, None, keep_all, hears)[:, order])


@pytest.mark.parametrize("kind", GROUPS)
def test_a_later_return_reaches_its_own_action_only(kind: str) -> None:
    net, x = network(GROUPS[kind]), windows(GROUPS[kind], 3, 7)
    before = net(**x)
    for step in range(1, 7):
        wanted = x["wanted"].clone()
        wanted[:, step] = bin_away(wanted[:, step])
        after = net(**{**x, "wanted": wanted})
        same(after.return_logits, before.return_logits)
        same(after.best_return, before.best_return)
        moved = (after.action - before.action).abs().amax(2) > 1e-4  # [B, K]
        assert moved[:, step].all() and moved.sum() == 3
    wanted = x["wanted"].clone()
    wanted[:, 0] = bin_away(wanted[:, 0])
    after = net(**{**x, "wanted": wanted})
    same(after.return_logits[:, 0], before.return_logits[:, 0])  # the observation before it does not know
    assert ((after.return_logits - before.return_logits).abs().amax(2) > 1e-6)[:, 1:].all()
    assert ((after.action - before.action).abs().amax(2) > 1e-6).all()


@pytest.mark.parametrize("kind", GROUPS)
def test_a_step_sees_its_past_and_not_its_own_action(kind: str) -> None:
    net, x = network(GROUPS[kind]), windows(GROUPS[kind], 4, 8)
    before = net(**x)
    later = windows(GROUPS[kind], 4, 8, seed=1)
    changed = {name: torch.cat([value[:, :5], later[name][:, 5:]], 1) for name, value in x.items()}
    own = {**changed, "action": torch.cat([x["action"][:, :4], later["action"][:, 4:]], 1)}
    for after in (net(**changed), net(**own)):
        same(after.return_logits[:, :5], before.return_logits[:, :5])
        same(after.best_return[:, :5], before.best_return[:, :5])
        same(after.action[:, :5], before.action[:, :5])
    short = net(**{name: value[:, :5] for name, value in x.items()})
    same(short.action, before.action[:, :5])
    order = torch.tensor([2, 0, 3, 1])
    same(net(**{name: value[order] for name, value in x.items()}).action, before.action[order])


def test_the_next_observation_is_told_from_the_action() -> None:
    """From the one taken if it is discrete; from the one predicted if not."""
    for group, reads_own in ((DISCRETE, True), (BOX, False)):
        net, x = network(group), windows(group, 3, 4)
        before, action = net(**x).surprise, x["action"].clone()
        action[:, 2] = (action[:, 2] + 1) % ACT
        moved = (net(**{**x, "action": action}).surprise - before).abs() > 1e-6  # [B, K - 1]
        assert before.shape == (3, 3) and (moved[:, 2] == reads_own).all() and not moved[:, :2].any()
    net, x = network(IMAGE), windows(IMAGE, 2, 4)
    assert net(**x).surprise is None


# ----------------------------------------------------------------------------------------------------- bins


@pytest.mark.parametrize("bins", [2, 60, 1000])
def test_a_bin_s_middle_lies_in_it_and_ends_of_the_range_in_the_outer_ones(bins: int) -> None:
    net = ElasticNet(Shape(return_bins=bins), BOX)
    every = torch.arange(bins)
    x = windows(BOX, 1, bins)
    x["timestep"].zero_()
    assert torch.equal(net(**{**x, "wanted": net.middle(every)[None]}).bins[0], every)
    ends = torch.tensor([[-7.0, 0.0, 1.0, 7.0]])
    assert net(**{**windows(BOX, 1, 4), "wanted": ends}).bins.tolist() == [[0, 0, bins - 1, bins - 1]]
    again = net.middle((torch.rand(500) * bins).long())
    assert torch.equal(net.middle((again * bins).long()), again)


# --------------------------------------------------------------------------------------------------- search


@pytest.mark.parametrize("histories", [1, 2, 3, 6, 9])
@pytest.mark.parametrize("kind", GROUPS)
def test_what_a_history_promises_is_what_the_shorter_window_does(kind: str, histories: int) -> None:
    net, x = network(GROUPS[kind]), windows(GROUPS[kind], 4, 9)
    at = torch.tensor([[8], [4], [0], [7]])
    forget = torch.minimum(torch.arange(histories), at)
    best_return, logits = net.promises(**x, at=at, forget=forget)
    assert best_return.shape == (4, histories) and logits.shape == (4, histories, BINS)
    for row, one in torch.cartesian_prod(torch.arange(4), torch.arange(histories)).reshape(-1, 2).tolist():
        first, last = int(forget[row, one]), int(at[row])
        cut = net(**{name: value[row : row + 1, first : last + 1] for name, value in x.items()})
        same(logits[row, one], cut.return_logits[0, -1])
        same(best_return[row, one], cut.best_return[0, -1])


def slow_search(
    net: ElasticNet, x: dict[str, Tensor], row: int, last: int, stride: int, bias: float, noise: Tensor | None
) -> tuple[int, int, Tensor]:
    """One slot, one history at a time, two passes each, as the source does: (steps kept, bin, action)."""
    found: list[tuple[float, int, int, Tensor]] = []
    for first in sorted({*range(0, last + 1, stride), last}):
        cut = {name: value[row : row + 1, first : last + 1].clone() for name, value in x.items()}
        logits = net(**cut).return_logits[0, -1] + bias * torch.linspace(0, 1, BINS)
        if noise is not None:
            kept = logits >= torch.quantile(logits, 0.15)
            logits = torch.where(kept, logits + noise[row], torch.tensor(-torch.inf))
        place = int(logits.argmax())
        cut["wanted"][0, -1] = (place + 0.5) / BINS
        second = net(**cut)
        found.append((float(second.best_return[0, -1]), last + 1 - first, place, second.action[0, -1]))
    _, length, place, action = max(found, key=lambda one: one[0])
    return length, place, action


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("drawn", [False, True])
@pytest.mark.parametrize("kind", GROUPS)
def test_the_search_is_that_of_one_history_at_a_time(kind: str, drawn: bool, stride: int) -> None:
    group, slots, steps = GROUPS[kind], 8, 11
    net, x = network(group), windows(group, slots, steps, seed=3)
    at = torch.tensor([10, 0, 5, 1, 9, 10, 2, 7])[:, None]
    noise = -torch.rand(slots, BINS).log().neg().log() if drawn else None
    with torch.inference_mode():
        fast = net.search(**x, at=at, stride_steps=stride, expert_bias=1.0, keep_share=0.15, noise=noise)
        slow = [slow_search(net, x, row, int(at[row]), stride, 1.0, noise) for row in range(slots)]
        same(fast[:, 0], torch.stack([action for _, _, action in slow]))
        order = torch.randperm(slots, generator=torch.Generator().manual_seed(0))
        turned = {name: value[order] for name, value in x.items()}
        moved = net.search(
            **turned, at=at[order], stride_steps=stride, expert_bias=1.0, keep_share=0.15,
            noise=None if noise is None else noise[order],
        )  # fmt: skip
        same(moved, fast[order])
    assert len({length for length, _, _ in slow}) > 2  # several histories win somewhere


def test_the_history_of_one_step_is_always_tried() -> None:
    """Made to promise more, it wins, whatever the stride and the length before."""
    net, x = network(BOX), windows(BOX, 6, 12)
    x["timestep"] = torch.arange(12).expand(6, 12)
    seen: list[Tensor] = []
    promises, forward = net.promises, net.forward

    def judge(*args: Tensor) -> Any:
        best_return, logits = promises(*args)
        seen.append(args[-1])
        return args[-1].to(best_return), logits  # the shorter the better

    def act(*args: Any) -> Any:
        seen.append(args[3])  # timesteps
        return forward(*args)

    net.promises, net.forward = judge, act  # type: ignore[assignment]
    at = torch.tensor([11, 10, 5, 4, 1, 0])[:, None]
    for stride in (1, 2, 5, 40):
        seen.clear()
        net.search(**x, at=at, stride_steps=stride, expert_bias=1.0, keep_share=0.15, noise=None)
        forget, timestep = seen
        assert (forget <= at).all() and (forget[:, 0] == 0).all() and torch.equal(forget[:, -1:], at)
        assert torch.equal(timestep, at)  # the second pass sees the newest step alone


def test_the_expert_s_bias_leans_to_high_returns_and_noise_keeps_to_likely_ones() -> None:
    net, x = network(DISCRETE), windows(DISCRETE, 400, 1)
    logits = torch.linspace(3.0, 0.0, BINS)  # likelier the lower
    asked: list[Tensor] = []
    promises, forward = net.promises, net.forward

    def judge(*args: Tensor) -> Any:
        best_return, own = promises(*args)
        return best_return, logits.expand_as(own)

    def act(*args: Any) -> Any:
        heard = forward(*args)
        asked.append(heard.bins[:, 0])
        return heard

    net.promises, net.forward = judge, act  # type: ignore[assignment]
    at = torch.zeros(400, 1, dtype=torch.long)

    def chosen(bias: float, keep: float, noise: Tensor | None) -> Tensor:
        net.search(**x, at=at, stride_steps=2, expert_bias=bias, keep_share=keep, noise=noise)
        return asked[-1]

    assert (chosen(2.9, 0.15, None) == 0).all() and (chosen(3.1, 0.15, None) == BINS - 1).all()
    noise = -torch.rand(400, BINS, generator=torch.Generator().manual_seed(1)).log().neg().log()
    drawn = chosen(3.0, 0.0, noise).bincount(minlength=BINS) / 400  # all alike
    assert (drawn - 1 / BINS).abs().max() < 0.05
    upper = chosen(0.0, 0.75, noise)
    assert set(upper.tolist()) == {0, 1, 2}
    probability = functional.softmax(logits[:3], 0)
    assert (upper.bincount() / 400 - probability).abs().max() < 0.08
