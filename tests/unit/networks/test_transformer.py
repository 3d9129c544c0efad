"""The transformer against Hugging Face's Decision Transformer and torch's own encoder, and what it must not
see.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DecisionTransformerConfig, DecisionTransformerModel

from seqrl_ray.networks.decision_transformer import DecisionTransformerNet
from seqrl_ray.networks.transformer import Block, CausalTransformer, dropout_from, keep_all
from seqrl_ray.types import ActionSpec, ArraySpec, GroupSpec, Slot

OBS, ACT, STEPS_MAX = 5, 3, 50
CPU = torch.device("cpu")
BOX = GroupSpec(
    "shared",
    (Slot(0, "agent", OBS, 0),),
    ArraySpec((OBS,), "float32"),
    ActionSpec("box", shape=(ACT,), low=(-1.0,) * ACT, high=(1.0,) * ACT),
)


@dataclass(frozen=True)
class Shape:
    units: int = 32
    layers: int = 3
    heads: int = 1
    activation: Any = "relu"
    window_steps: int = 20
    positions: Any = "timestep"
    max_timesteps: int = STEPS_MAX


def hugging_face(heads: int, attention: str) -> DecisionTransformerModel:
    """Theirs with random weights and no dropout; its position row 0 is zeroed, ours has no such table."""
    torch.manual_seed(1)
    config = DecisionTransformerConfig(
        state_dim=OBS,
        act_dim=ACT,
        max_ep_len=STEPS_MAX,
        hidden_size=32,
        n_layer=3,
        n_head=heads,
        activation_function="relu",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        attn_implementation=attention,
    )
    model = DecisionTransformerModel(config)
    for parameter in model.parameters():  # their std of 0.02 would hide differences
        nn.init.normal_(parameter, std=0.2)
    model.encoder.wpe.weight.data.zero_()
    model.encoder.wpe.weight.requires_grad_(False)
    return model


def pairs(ours: DecisionTransformerNet, theirs: Any) -> list[tuple[nn.Parameter, nn.Parameter, bool]]:
    """(ours, theirs, theirs is transposed) of every parameter that predicts actions."""
    found = []
    for a, b in (
        (ours.embed_return, theirs.embed_return),
        (ours.embed_obs[1], theirs.embed_state),
        (ours.embed_action, theirs.embed_action),
        (ours.embed_norm, theirs.embed_ln),
        (ours.body.final, theirs.encoder.ln_f),
        (ours.head, theirs.predict_action[0]),
    ):
        found += [(a.weight, b.weight, False), (a.bias, b.bias, False)]
    found.append((ours.embed_position.weight, theirs.embed_timestep.weight, False))
    for block, layer in zip(ours.body.blocks, theirs.encoder.h, strict=True):
        for a, b, turned in (
            (block.norm1, layer.ln_1, False),
            (block.qkv, layer.attn.c_attn, True),
            (block.out, layer.attn.c_proj, True),
            (block.norm2, layer.ln_2, False),
            (block.up, layer.mlp.c_fc, True),
            (block.down, layer.mlp.c_proj, True),
        ):
            found += [(a.weight, b.weight, turned), (a.bias, b.bias, False)]
    return found


def copied(theirs: Any, heads: int) -> DecisionTransformerNet:
    ours = DecisionTransformerNet(Shape(heads=heads), BOX, ACT)
    done = pairs(ours, theirs)
    assert {id(a) for a, _, _ in done} == {id(p) for p in ours.parameters()}
    for a, b, turned in done:
        a.data.copy_(b.data.T if turned else b.data)
    return ours


def windows(batch: int, steps: int, seed: int = 0) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    return {
        "wanted": torch.randn(batch, steps, generator=random),
        "obs": torch.randn(batch, steps, OBS, generator=random),
        "action": torch.randn(batch, steps, ACT, generator=random),
        "timestep": torch.arange(steps) + torch.randint(STEPS_MAX - steps, (batch, 1), generator=random),
    }


def their_actions(theirs: Any, x: dict[str, Tensor], keep: Tensor | None = None) -> Tensor:
    """Their predictions before the tanh, which is our algorithm's business."""
    raw = []
    handle = theirs.predict_action[0].register_forward_hook(lambda m, i, o: raw.append(o))
    theirs(
        states=x["obs"],
        actions=x["action"],
        rewards=torch.zeros(len(x["obs"]), x["obs"].shape[1], 1),
        returns_to_go=x["wanted"][..., None],
        timesteps=x["timestep"],
        attention_mask=torch.ones(x["wanted"].shape) if keep is None else keep,
    )
    handle.remove()
    return raw[0]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("heads", [1, 4])
def test_outputs_are_hugging_face_s(heads: int, attention: str) -> None:
    theirs = hugging_face(heads, attention)
    ours = copied(theirs, heads)
    for steps in range(1, 21):
        x = windows(3, steps, seed=steps)
        torch.testing.assert_close(ours(**x), their_actions(theirs, x), atol=1e-5, rtol=1e-5)


def test_padding_on_the_left_there_is_no_padding_here() -> None:
    theirs = hugging_face(4, "sdpa")
    ours, x = copied(theirs, 4), windows(2, 20)
    short = {name: value[:, 13:] for name, value in x.items()}
    keep = (torch.arange(20) >= 13).float().expand(2, 20)
    torch.testing.assert_close(ours(**short), their_actions(theirs, x, keep)[:, 13:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("heads", [1, 4])
def test_gradients_and_three_optimiser_steps_are_hugging_face_s(heads: int) -> None:
    theirs = hugging_face(heads, "eager")
    ours, x = copied(theirs, heads), windows(4, 20)
    target = torch.randn(4, 20, ACT)
    options: dict[str, Any] = {"lr": 1e-3, "weight_decay": 1e-2}
    steps = [torch.optim.AdamW(m.parameters(), **options) for m in (ours, theirs)]
    for _ in range(3):
        for out, optimiser in zip((ours(**x), their_actions(theirs, x)), steps, strict=True):
            optimiser.zero_grad()
            nn.functional.mse_loss(torch.tanh(out), target).backward()
        for a, b, turned in pairs(ours, theirs):
            wanted = b.grad.T if turned else b.grad
            torch.testing.assert_close(a.grad, wanted, atol=1e-5, rtol=1e-4)
        for optimiser in steps:
            optimiser.step()
    for a, b, turned in pairs(ours, theirs):
        left, right = a.data, b.data.T if turned else b.data
        if left.shape == (3 * 32,):  # a key's bias changes no attention: Adam steps on its rounding noise
            left, right = (torch.cat([bias[:32], bias[64:]]) for bias in (left, right))
        torch.testing.assert_close(left, right, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(ours(**x), their_actions(theirs, x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("norm", "activation"), [("pre", "relu"), ("post", "gelu"), ("post", "relu")])
def test_a_block_is_torch_s_encoder_layer(norm: Any, activation: Any) -> None:
    ours = Block(16, 4, norm, activation)
    theirs = nn.TransformerEncoderLayer(
        16, 4, 64, dropout=0.0, activation=activation, norm_first=norm == "pre", batch_first=True
    )
    attention = theirs.self_attn
    for a, weight, bias in (
        (ours.qkv, attention.in_proj_weight, attention.in_proj_bias),
        (ours.out, attention.out_proj.weight, attention.out_proj.bias),
        (ours.up, theirs.linear1.weight, theirs.linear1.bias),
        (ours.down, theirs.linear2.weight, theirs.linear2.bias),
        (ours.norm1, theirs.norm1.weight, theirs.norm1.bias),
        (ours.norm2, theirs.norm2.weight, theirs.norm2.bias),
    ):
        a.weight.data.copy_(weight.data)
        a.bias.data.copy_(bias.data)
    x = torch.randn(3, 9, 16)
    later = torch.ones(9, 9, dtype=torch.bool).triu(1)
    torch.testing.assert_close(ours(x), theirs(x, src_mask=later), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_asked_tokens_are_those_of_the_whole(norm: Any) -> None:
    body = CausalTransformer(16, 2, 4, norm=norm)
    x = torch.randn(3, 11, 16)
    whole = body(x)
    same = torch.tensor([0, 4, 10])
    torch.testing.assert_close(body(x, same), whole[:, same])
    own = torch.tensor([[1], [10], [5]])
    torch.testing.assert_close(body(x, own)[:, 0], whole[torch.arange(3), own[:, 0]])


@pytest.mark.parametrize("positions", ["timestep", "window", "none"])
def test_a_step_sees_its_past_and_nothing_else(positions: Any) -> None:
    """Not its own action, no later token, no other row of the batch, however long the padding."""
    net = DecisionTransformerNet(Shape(heads=4, positions=positions), BOX, ACT)
    x = windows(4, 12)
    before = net(**x)
    changed = {name: value.clone() for name, value in x.items()}
    for name in ("wanted", "obs", "action"):
        changed[name][:, 7:] = 9.0
    torch.testing.assert_close(net(**changed)[:, :7], before[:, :7], atol=0, rtol=0)
    own = {**x, "action": x["action"].clone()}
    own["action"][:, 7:] = 9.0
    torch.testing.assert_close(net(**own)[:, 7], before[:, 7], atol=0, rtol=0)
    assert not torch.allclose(net(**own)[:, 8], before[:, 8])
    order = torch.tensor([2, 0, 3, 1])
    turned = net(**{name: value[order] for name, value in x.items()})
    torch.testing.assert_close(turned, before[order], atol=1e-6, rtol=1e-6)
    short = {name: value[:, :5] for name, value in x.items()}
    torch.testing.assert_close(net(**short), before[:, :5], atol=1e-6, rtol=1e-6)
    last = torch.tensor([[11], [3], [0], [6]])
    picked = net(**x, at=last)[:, 0]
    torch.testing.assert_close(picked, before[torch.arange(4), last[:, 0]], atol=1e-6, rtol=1e-6)


def test_dropout_keeps_the_mean_and_is_off_by_default() -> None:
    net, x = DecisionTransformerNet(Shape(layers=1), BOX, ACT), windows(2, 6)
    torch.testing.assert_close(net(**x), net(**x), atol=0, rtol=0)
    torch.testing.assert_close(net(**x, dropout=(0.5, 1)), net(**x, dropout=(0.5, 1)), atol=0, rtol=0)
    assert not torch.allclose(net(**x, dropout=(0.5, 1)), net(**x, dropout=(0.5, 2)))


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_dropout_zeroes_its_share_and_scales_the_rest(share: float) -> None:
    kept = dropout_from((share, 0), CPU)(torch.full((1_000, 1_001), 3.0))
    found = (kept == 0).double().mean(0)  # [1001]
    assert abs(found.mean() - share) < 5 * (share * (1 - share) / 1e6) ** 0.5
    assert abs(found.std() / (share * (1 - share) / 1e3) ** 0.5 - 1) < 0.1  # as independent draws vary
    torch.testing.assert_close(kept.max(), torch.tensor(3.0 / (1 - share)), rtol=2e-4, atol=0)
    assert set(kept.unique().tolist()) == {0.0, kept.max().item()}


def test_dropout_lets_gradients_pass_where_values_do_and_goes_on_with_each_call() -> None:
    x = torch.randn(9, requires_grad=True)
    y = dropout_from((0.5, 3), CPU)(x)
    y.sum().backward()
    torch.testing.assert_close(x.grad, y.detach() / x.detach())
    drop = dropout_from((0.5, 3), CPU)
    assert not torch.equal(drop(torch.ones(64)), drop(torch.ones(64)))
    assert dropout_from(None, CPU)(x) is x


def test_attention_in_plain_products_is_the_fused_one() -> None:
    body, x, at = CausalTransformer(16, 2, 4), torch.randn(3, 11, 16), torch.tensor([[1], [10], [5]])
    told = (torch.arange(11) % 3 != 1) & torch.ones(11, 11, dtype=torch.bool).tril()
    for asked in (None, at):
        for seen in (None, told):
            plain = body(x, asked, lambda weights: weights, seen)  # drops nothing, but could
            torch.testing.assert_close(plain, body(x, asked, keep_all, seen), atol=1e-6, rtol=1e-5)


def test_returns_are_predicted_unseen_and_reach_their_own_action_only() -> None:
    net, x = DecisionTransformerNet(Shape(heads=4), BOX, ACT, return_bins=7), windows(3, 9)
    before = net(**x)
    assert before.shape == (3, 9, ACT + 7)
    other = {**x, "wanted": x["wanted"].clone()}
    other["wanted"][:, 4] += 5.0
    after = net(**other)
    torch.testing.assert_close(after[..., ACT:], before[..., ACT:], atol=0, rtol=0)  # no return says another
    changed = (after[..., :ACT] - before[..., :ACT]).abs().amax((0, 2)) > 1e-6  # [K]
    assert changed.nonzero().flatten().tolist() == [4]
    seen = {**x, "obs": x["obs"].clone()}
    seen["obs"][:, 4] += 1.0
    moved = (net(**seen)[..., ACT:] - before[..., ACT:]).abs().amax((0, 2)) > 1e-6
    assert moved.tolist() == [False] * 4 + [True] * 5
