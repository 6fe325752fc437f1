"""What characterises S2AFormer: logits of rank d, few keys, and squares that may be larger than the map."""

import pytest
import torch
import torch.nn.functional as F
from golden_records import Record
from levels import norms_reach
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from attlas import backbones
from attlas.backbones import s2aformer
from attlas.backbones.inspection.costs import PeakMemory
from attlas.backbones.layers import LayerNorm2d
from attlas.backbones.s2aformer import LocalInteraction, S2AFormer, StripSelfAttention

SMALL = dict(dims=(16, 24, 32, 48), depths=(2, 1, 2, 1), heads=(1, 2, 4, 6))


def normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def mixer(dim=12, heads=3, sr_ratio=2, key_dim=1, sr_norm=True):
    """With weights that make its softmax uneven."""
    torch.manual_seed(0)
    built = StripSelfAttention(dim, heads, sr_ratio, key_dim, sr_norm).double().requires_grad_(False)
    for linear in (built.q, built.k):
        linear.weight *= 5
    return built


def rows(x):
    """(B, C, H, W) -> (B, N, C)."""
    return x.flatten(2).mT


def seen(built, x):
    """The maps of all places, (B, heads, N, H, W)."""
    height, width = x.shape[-2:]
    return torch.stack([built.attention_maps(x, (i // width, i % width)) for i in range(height * width)], dim=2)


@pytest.mark.parametrize("sr_norm", [True, False])
@pytest.mark.parametrize("key_dim", [1, 3])
@pytest.mark.parametrize(("sr_ratio", "squares"), [(1, (7, 5)), (2, (4, 3)), (3, (3, 2)), (7, (1, 1))])
def test_by_definition(sr_ratio, squares, key_dim, sr_norm):
    """All pairs, square by square; a head is a group of channels that lie side by side."""
    built, x = mixer(12, 3, sr_ratio, key_dim, sr_norm), normal(2, 12, 7, 5)
    reduced = x
    if sr_ratio > 1:
        filled = F.pad(x, (0, squares[1] * sr_ratio - 5, 0, squares[0] * sr_ratio - 7))
        cells = [
            [
                (filled[:, :, i : i + sr_ratio, j : j + sr_ratio] * built.reduce.weight[:, 0]).sum((2, 3))
                for j in range(0, filled.shape[3], sr_ratio)
            ]
            for i in range(0, filled.shape[2], sr_ratio)
        ]
        reduced = torch.stack([torch.stack(row, -1) for row in cells], -2) + built.reduce.bias.view(-1, 1, 1)
        if sr_norm:
            norm = built.norm
            reduced = F.layer_norm(reduced.movedim(1, 3), (12,), norm.weight, norm.bias, 1e-6).movedim(3, 1)
    assert reduced.shape[2:] == squares
    q, k, v = built.q(rows(x)), built.k(rows(reduced)), built.v(rows(reduced))
    expected, weights = [], []
    for head in range(3):
        of_key, of_value = (slice(head * n, head * n + n) for n in (key_dim, 4))
        weights.append((q[..., of_key] @ k[..., of_key].mT / key_dim**0.5).softmax(-1))
        expected.append(weights[-1] @ v[..., of_value])
    expected = built.proj(torch.cat(expected, -1)).mT.unflatten(2, (7, 5))
    torch.testing.assert_close(built(x), expected)

    maps = seen(built, x)
    torch.testing.assert_close(maps.sum((3, 4)), torch.ones(2, 3, 35, dtype=torch.float64))
    missing = squares[1] * sr_ratio - 5, squares[0] * sr_ratio - 7
    by_square = (
        F.pad(maps, (0, missing[0], 0, missing[1])).unflatten(4, (squares[1], -1)).unflatten(3, (squares[0], -1))
    )
    torch.testing.assert_close(by_square.sum((4, 6)).flatten(3), torch.stack(weights, 1))
    inside = by_square > 0
    largest = by_square.amax((4, 6), keepdim=True).expand_as(by_square)
    torch.testing.assert_close(by_square[inside], largest[inside])  # even within a square


@pytest.mark.parametrize("key_dim", [1, 2, 3])
def test_the_rank_of_the_logits(key_dim):
    """A row's weights give its logits but for a constant."""
    logits = seen(mixer(12, 2, 1, key_dim), normal(1, 12, 4, 5)).flatten(3).log()
    differences = logits - logits[..., :1]
    assert torch.equal(torch.linalg.matrix_rank(differences, rtol=1e-9), torch.full((1, 2), key_dim))


def test_which_operator_sees_places():
    """Without a reduction the operator commutes with permutations of the pixels, with one it does not."""
    x, order = normal(2, 12, 6, 4), torch.randperm(24, generator=torch.Generator().manual_seed(1))
    permuted = x.flatten(2)[..., order].unflatten(2, (6, 4))
    for sr_ratio in (1, 2):
        built = mixer(sr_ratio=sr_ratio)
        difference = built(permuted).flatten(2) - built(x).flatten(2)[..., order]
        assert (difference.abs().max() < 1e-12) == (sr_ratio == 1)


@pytest.mark.parametrize("size", [(3, 5), (1, 1), (8, 2)])
def test_squares_that_are_larger_than_the_map(size):
    """The map is filled up with zeros to one square; there is one key, which every pixel sees."""
    built, x = mixer(sr_ratio=8), normal(2, 12, *size)
    height, width = size
    weight = built.reduce.weight[:, 0, :height, :width]
    reduced = built.norm((x * weight).sum((2, 3), keepdim=True) + built.reduce.bias.view(-1, 1, 1))
    expected = built.proj(built.v(rows(reduced))).mT.unsqueeze(-1)
    torch.testing.assert_close(built(x), expected.expand_as(x))
    maps = built.attention_maps(x, (0, 0))
    torch.testing.assert_close(maps, torch.full_like(maps, 1 / (height * width)))


@pytest.mark.parametrize("key_dim", [1, 4, 6])
def test_both_ways_of_attention_agree(key_dim, monkeypatch):
    """With queries and keys narrower than the values, as wide, and wider."""
    results = []
    for limit in (2**22, 0):
        monkeypatch.setattr(s2aformer, "WRITTEN_UP_TO", limit)
        built, x = mixer(key_dim=key_dim).requires_grad_(), normal(2, 12, 7, 5).requires_grad_()
        y = built(x)
        gradients = torch.autograd.grad((y * normal(*y.shape).sin()).sum(), [x, *built.parameters()])
        results.append([y, *gradients])
    for written, fused in zip(*results):
        torch.testing.assert_close(written, fused, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("side", [32, 64])
@pytest.mark.parametrize("sr_ratio", [4, 8])
def test_cost(side, sr_ratio):
    """Of the products N M (h d + C), which grow with N² / r²."""
    dim, heads, key_dim, pixels, keys = 32, 4, 2, side**2, (side // sr_ratio) ** 2
    built = mixer(dim, heads, sr_ratio, key_dim).float()
    with FlopCounterMode(display=False) as counter:
        built(torch.randn(1, dim, side, side))
    projections = (pixels + keys) * dim * (heads * key_dim + dim)
    reduction = keys * dim * sr_ratio**2
    attention = pixels * keys * (heads * key_dim + dim)
    assert counter.get_total_flops() == 2 * (projections + reduction + attention)


def test_memory_of_large_maps():
    """The weights, 64 MiB here, are never all in memory."""
    built, x = mixer(32, 1, 4).float().requires_grad_(), torch.randn(1, 32, 128, 128)
    with PeakMemory([x, *built.parameters()]) as memory:
        built(x).sum().backward()
    assert memory.peak < 20 * 2**20


@pytest.mark.parametrize(
    ("dim", "heads", "sr_ratio", "key_dim", "count"),
    [(32, 4, 4, 1, 2984), (32, 2, 1, 1, 2244), (24, 3, 1, 2, 1500), (24, 3, 2, 2, 1668)],
)
def test_parameters_of_the_operator(dim, heads, sr_ratio, key_dim, count):
    built = StripSelfAttention(dim, heads, sr_ratio, key_dim)
    assert sum(p.numel() for p in built.parameters()) == count
    bare = StripSelfAttention(dim, heads, sr_ratio, key_dim, sr_norm=False)
    assert sum(p.numel() for p in bare.parameters()) == count - 2 * dim * (sr_ratio > 1)


def test_local_interaction_by_definition():
    torch.manual_seed(0)
    built, x = LocalInteraction(6, 5).double(), normal(2, 6, 7, 4)
    hidden = F.gelu(torch.einsum("bchw,dc->bdhw", x, built.pw1.weight[..., 0, 0]) + built.pw1.bias.view(-1, 1, 1))
    hidden = F.conv2d(hidden, built.dw.weight, built.dw.bias, padding=2, groups=6)
    torch.testing.assert_close(built(x), F.conv2d(hidden, built.pw2.weight, built.pw2.bias))


def test_a_block_by_its_parts():
    network = S2AFormer(**SMALL).double().eval()
    block, x = network.stages[1].blocks[0], normal(2, 24, 6, 5)
    y = x + F.conv2d(x, block.position1.branch.weight, block.position1.branch.bias, padding=1, groups=24)
    y = y + block.mixer(block.norm1(y))
    norm, local = block.local.branch
    y = y + local(norm(y))
    torch.testing.assert_close(block(x), y + block.mlp(block.norm2(y)))
    assert {norm.eps for norm in block.modules() if isinstance(norm, nn.LayerNorm)} == {1e-6}


def test_the_dense_form():
    """Norms are of the outputs alone; strides round up."""
    network = S2AFormer(**SMALL).double().eval()
    x = normal(1, 3, 75, 62)
    assert norms_reach(network, x) == {0: [0], 1: [1], 2: [2], 3: [3]}
    assert [tuple(y.shape[-2:]) for y in network(x)] == [(19, 16), (10, 8), (5, 4), (3, 2)]
    assert {type(norm) for norm in network.norms.values()} == {LayerNorm2d}
    assert {norm.eps for norm in network.norms.values()} == {1e-6}


def test_the_classifier():
    """The norm comes before the mean. Its names are those that a file of the records' names would have."""
    network = S2AFormer((16, 32, 48, 64), (1, 1, 2, 1), (1, 2, 3, 4), num_classes=5)
    state = {n: value for n, value in Record("s2aformer/dense-backbone").state_dict().items() if "norms." not in n}
    state |= {"norm.weight": torch.rand(64), "norm.bias": torch.rand(64)}
    state |= {"head.weight": torch.rand(5, 64), "head.bias": torch.rand(5)}
    account = backbones.load(network, state)
    assert account.complete, str(account)
    assert not account.ignored
    network = network.double().eval()
    features = network.forward_features(normal(2, 3, 64, 64))
    normed = F.layer_norm(rows(features), (64,), state["norm.weight"].double(), state["norm.bias"].double(), 1e-6)
    expected = normed.mean(1) @ state["head.weight"].double().T + state["head.bias"].double()
    torch.testing.assert_close(network.forward_head(features), expected)


def test_what_is_inferred_is_an_option():
    network = S2AFormer(**SMALL, sr_ratios=2, key_dim=(1, 2, 3, 4), sr_norm=False, local="LSConv", mlp_ratio=2)
    blocks = [stage.blocks[0] for stage in network.stages]
    assert [block.mixer.q.out_features for block in blocks] == [1, 4, 12, 24]
    assert [block.mixer.sr_ratio for block in blocks] == [2] * 4
    assert {type(block.mixer.norm) for block in blocks} == {nn.Identity}
    assert {type(block.local.branch[1]).__name__ for block in blocks} == {"LSConv"}
    assert [block.mlp.fc1.out_features for block in blocks] == [32, 48, 64, 96]
    of_32 = S2AFormer(**SMALL | dict(dims=(32, 64, 96, 128), heads=None))
    assert [stage.blocks[0].mixer.heads for stage in of_32.stages] == [1, 2, 3, 4]


def test_parameters_of_the_dense_form():
    for name, count in dict(s2aformer_tiny=3_353_340, s2aformer_small=8_387_676).items():
        with torch.device("meta"):
            network = backbones.create(name, out_indices=(0, 1, 2, 3))
        assert sum(p.numel() for p in network.parameters()) == count


def test_initial_weights():
    torch.manual_seed(0)
    block = S2AFormer((64, 128), (1, 1), (2, 4), (4, 2)).stages[1].blocks[0]
    for layer in (block.mixer.v, block.mixer.proj, block.local.branch[1].pw1, block.mlp.fc1):
        assert 0.018 < layer.weight.std() < 0.022
        assert not layer.bias.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(heads=(1, 2)), r"heads must have one entry for each of the 4 stages, got \(1, 2\)"),
        (dict(heads=5), r"StripSelfAttention: dim=32 is not divisible by heads=5; heads may be one of \[1, 2, 4, "),
        (dict(sr_ratios=(8, 4, 2)), r"sr_ratios must have one entry for each of the 4 stages, got \(8, 4, 2\)"),
        (dict(sr_ratios=(8, 4, 2, 0)), "StripSelfAttention: sr_ratio=0 must be a whole number of at least 1"),
        (dict(sr_ratios=2.5), r"StripSelfAttention: sr_ratio=2\.5 must be a whole number of at least 1"),
        (dict(key_dim=0), "StripSelfAttention: key_dim=0 must be a whole number of at least 1"),
        (dict(local=dict(kernel_size=5)), r"local=\{'kernel_size': 5\} must be a name of MIXERS, or dict\(type=name"),
        (dict(local=None), "local=None must be a name of MIXERS"),
        (dict(local=dict(type="LocalInteraction", kernel_size=4)), "LocalInteraction: kernel_size=4 must be odd"),
    ],
)
def test_odd_options(options, message):
    with pytest.raises(ValueError, match=message), torch.device("meta"):
        S2AFormer(**options)
