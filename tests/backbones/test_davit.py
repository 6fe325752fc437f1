"""What characterises DaViT: channel attention does not see the order of pixels."""

import pytest
import torch
import torch.nn.functional as F
from golden_records import Record
from levels import norms_reach
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from attlas import backbones
from attlas.backbones.davit import ChannelGroupAttention, DaViT, Downsample, Stem
from attlas.backbones.layers import DualBlock, fuse
from attlas.registry import MIXERS


def normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("channel_attn_v2", [False, True])
def test_channel_attention_commutes_with_permutations(channel_attn_v2):
    mixer, x = ChannelGroupAttention(12, 3, channel_attn_v2).double(), normal(2, 12, 5, 7)
    order = torch.randperm(35, generator=torch.Generator().manual_seed(1))
    permuted = x.flatten(2)[..., order].unflatten(2, (5, 7))
    torch.testing.assert_close(mixer(permuted).flatten(2), mixer(x).flatten(2)[..., order])


@pytest.mark.parametrize("channel_attn_v2", [False, True])
def test_channel_attention_by_definition(channel_attn_v2):
    """Channel by channel, in loops."""
    mixer, rows = ChannelGroupAttention(6, 2, channel_attn_v2).double(), normal(10, 6)
    q, k, v = mixer.qkv(rows).split(6, dim=1)
    y = torch.empty_like(rows)
    for group in (slice(0, 3), slice(3, 6)):
        if channel_attn_v2:
            seen, by, averaged, scale = k[:, group], q[:, group], v[:, group], 10**-0.5
        else:
            seen, by, averaged, scale = v[:, group], k[:, group], q[:, group], 3**-0.5
        for channel in range(3):
            weights = torch.stack([by[:, channel] @ seen[:, other] * scale for other in range(3)]).softmax(0)
            y[:, group.start + channel] = averaged @ weights
    torch.testing.assert_close(mixer(rows.mT[None].unflatten(2, (2, 5))).flatten(2)[0].mT, mixer.proj(y))
    attention, _ = mixer._map(rows[None])
    torch.testing.assert_close(attention.sum(-1), torch.ones(1, 2, 3, dtype=torch.float64))


@pytest.mark.parametrize("mixer", ["SpatialWindowAttention", "ChannelGroupAttention"])
def test_cost_is_linear_in_pixels(mixer):
    with torch.device("meta"):
        mixer = MIXERS.build(dict(type=mixer, dim=64))
    costs = []
    for side in (14, 28, 56):
        with FlopCounterMode(display=False) as counter:
            mixer(torch.empty(1, 64, side, side, device="meta"))
        costs.append(counter.get_total_flops())
    assert costs[0] > 0
    assert costs == [costs[0], 4 * costs[0], 16 * costs[0]]


def test_overlapping_patches_need_no_filling():
    """The authors fill every map up to a multiple of the stride; with 7x7 and 3x3 kernels that changes nothing."""
    stem, downsample = Stem(3, 8).double(), Downsample(8, 8, overlapped=True).double()
    for size in range(1, 10):
        x = normal(1, 3, size, size + 1)
        filled = F.pad(x, (0, -(size + 1) % 4, 0, -size % 4))
        torch.testing.assert_close(stem(x), stem(filled))
        x = normal(1, 8, size, size + 1)
        filled = F.pad(downsample.norm(x), (0, (size + 1) % 2, 0, size % 2))
        torch.testing.assert_close(downsample(x), downsample.conv(filled))
    assert DaViT((32, 64), (1, 1), overlapped_patch=True)(torch.zeros(1, 3, 37, 29))[1].shape == (1, 64, 5, 4)


@pytest.mark.parametrize("overlapped_patch", [False, True])
def test_the_dense_form(overlapped_patch):
    """Norms are of the outputs alone; odd sizes are filled up with zeros, behind the norm of a transition."""
    network = DaViT((32, 32, 64), (1, 1, 1), window=4, overlapped_patch=overlapped_patch).double().eval()
    x = normal(1, 3, 75, 50)
    assert norms_reach(network, x) == {0: [0], 1: [1], 2: [2]}
    maps = network(x)
    assert [tuple(y.shape[-2:]) for y in maps] == [(19, 13), (10, 7), (5, 4)]
    assert {norm.eps for norm in network.norms.values()} == {1e-5}
    downsample, given = network.stages[1].downsample, normal(1, 32, 19, 13)
    filled = F.pad(downsample.norm(given), (0, 1, 0, 1))
    torch.testing.assert_close(downsample(given), downsample.conv(filled))


@pytest.mark.parametrize("named_blocks", [False, True])
def test_official_names_and_those_of_timm(named_blocks):
    record = Record("davit/dense-backbone")
    official = {name: value for name, value in record.state_dict().items() if not name.startswith("norm")}
    official |= {"norms.weight": normal(96), "norms.bias": normal(96)}
    official |= {"head.weight": normal(10, 96), "head.bias": normal(10)}
    pairs = {
        "patch_embeds.0.": "stem.",
        **{f"patch_embeds.{s}.": f"stages.{s}.downsample." for s in (1, 2, 3)},
        **{f"main_blocks.{s}.": f"stages.{s}.blocks." for s in range(4)},
        "norms.": "head.norm.",
        "head.": "head.fc.",
    }
    timm = {}
    for name, value in official.items():
        begin = next(begin for begin in pairs if name.startswith(begin))
        new = pairs[begin] + name.removeprefix(begin).replace("cpe.0.", "cpe1.").replace("cpe.1.", "cpe2.")
        if begin.startswith("patch"):
            new = new.replace(".proj.", ".conv.")
        if named_blocks and "blocks" in new:
            stages, stage, blocks, pair, kind, rest = new.split(".", 5)
            new = ".".join([stages, stage, blocks, pair, ("spatial_block", "channel_block")[int(kind)], rest])
        timm[new] = value
    logits = []
    for state in (official, timm):
        network = DaViT((32, 48, 64, 96), (1, 1, 2, 1), heads=(1, 2, 2, 3), window=4, num_classes=10).eval()
        account = backbones.load(network, state)
        assert account.complete, str(account)
        logits.append(network(torch.ones(1, 3, 32, 32)))
    assert torch.equal(*logits)


def test_initial_weights():
    """0.02 is for linear layers: depth-wise convolutions would begin as almost nothing."""
    torch.manual_seed(0)
    block = DaViT((32, 64), (1, 1)).stages[1].blocks[0]
    assert block.position1.branch.weight.std() > 0.1
    assert 0.018 < block.mlp.fc1.weight.std() < 0.022


def test_an_activation_behind_the_positions():
    """cpe_act: x + GELU(convolution(x)), twice in a block, with the same names; nothing is merged when fused."""
    plain, acting = (DualBlock(8, nn.Identity(), nn.Identity(), cpe_act=act).double() for act in (False, True))
    acting.load_state_dict(plain.state_dict())
    x = normal(1, 8, 5, 6)

    def by_definition(act):
        y = x + act(plain.position1.branch(x))
        y = y + plain.norm1(y)
        y = y + act(plain.position2.branch(y))
        return y + plain.norm2(y)

    for block, act in ((plain, nn.Identity()), (acting, nn.GELU())):
        torch.testing.assert_close(block(x), by_definition(act))
    expected = acting(x)
    torch.testing.assert_close(fuse(acting)(x), expected)


def test_heads_for_every_stage():
    with pytest.raises(ValueError, match=r"heads must have one entry for each of the 4 stages, got \(3, 6\)"):
        DaViT(heads=(3, 6))
