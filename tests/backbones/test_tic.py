"""What characterizes MSA-Conv: it follows translations, zeros beyond the border stay in the softmax, nothing is
unfolded; the shift and the averages change which pixels meet."""

import math

import pytest
import torch
import torch.nn.functional as F
from levels import norms_reach
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from attlas import backbones
from attlas.backbones.inspection.costs import PeakMemory
from attlas.backbones.tic import MSAConv, MSAConv2d, TiC
from attlas.registry import MODELS

SMALL = dict(dims=(16, 24, 32, 48), depths=(2, 2, 1, 2), heads=(4, 2, 4, 6), kernel_size=3)


def normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def build(*args, **options):
    torch.manual_seed(0)
    return MSAConv(*args, **{"shift": 0, **options}).double().eval()


def unfolded(x, mixer):
    """(B, C, H, W) -> (B, heads, d, taps, H, W), zero beyond the border."""
    taps, step = mixer.kernel_size, mixer.dilation
    reach = [step * (size // 2) for size, step in zip(taps, step)]
    y = F.unfold(x, taps, step, reach)
    return y.unflatten(2, x.shape[2:]).unflatten(1, (mixer.heads, -1, taps[0] * taps[1]))


def by_definition(mixer, x, move=lambda part, way: part):
    """The attention, with unfolded keys and values; `move` moves keys and values of one head."""
    q, k, v = mixer.qkv(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).chunk(3, 1)
    k, v = (
        torch.cat([move(part, 4 * head // mixer.heads) for head, part in enumerate(x.chunk(mixer.heads, 1))], 1)
        for x in (k, v)
    )
    k, v, q = unfolded(k, mixer), unfolded(v, mixer), q.unflatten(1, (mixer.heads, -1))
    logits = torch.einsum("bhdyx,bhduyx->bhuyx", q, k) * q.shape[2] ** -0.5
    if mixer.border == "mask":
        logits = logits.masked_fill(unfolded(torch.ones_like(x), mixer)[:, :, 0] == 0, -torch.inf)
    y = torch.einsum("bhuyx,bhduyx->bhdyx", logits.softmax(2), v).flatten(1, 2)
    return mixer.proj(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("border", ["zero", "mask"])
@pytest.mark.parametrize(
    ("kernel_size", "dilation", "size"),
    [(3, 1, (6, 7)), ((1, 3), 1, (5, 4)), ((5, 3), (2, 1), (9, 8)), (7, 3, (4, 2)), (3, 2, (1, 1))],
)
def test_by_definition(border, kernel_size, dilation, size):
    """With all gradients; also on maps smaller than the window."""
    mixer, x = build(12, 3, kernel_size, dilation, border=border), normal(2, 12, *size).requires_grad_()
    y, expected = mixer(x), by_definition(mixer, x)
    torch.testing.assert_close(y, expected)
    leaves, cotangent = [x, *mixer.parameters()], normal(*y.shape)
    for got, wanted in zip(torch.autograd.grad(y, leaves, cotangent), torch.autograd.grad(expected, leaves, cotangent)):
        torch.testing.assert_close(got, wanted)


def test_zeros_beyond_the_border_take_their_share():
    """A map of ones, q = k = v = x: by hand."""
    conv = MSAConv2d(1, 1, 3).double().eval()
    attention = conv.attention
    nn.init.ones_(attention.qkv.weight)
    nn.init.zeros_(attention.qkv.bias)
    y, e = attention(torch.ones(1, 1, 3, 3, dtype=torch.float64))[0, 0], math.e
    corner, edge = 4 * e / (4 * e + 5), 6 * e / (6 * e + 3)
    assert (round(corner, 6), round(edge, 6)) == (0.685002, 0.844638)
    expected = torch.tensor([[corner, edge, corner], [edge, 1, edge], [corner, edge, corner]], dtype=torch.float64)
    torch.testing.assert_close(y, expected)
    attention.border = "mask"
    torch.testing.assert_close(attention(torch.ones(1, 1, 3, 3, dtype=torch.float64)), torch.ones_like(y)[None, None])


@pytest.mark.parametrize("dilation", [1, 2])
def test_follows_translations_in_the_interior(dilation):
    mixer, x = build(8, 2, 3, dilation), normal(1, 8, 16, 17)
    moved, expected = mixer(x.roll((3, 2), (2, 3))), mixer(x).roll((3, 2), (2, 3))
    edge = 3 + dilation
    torch.testing.assert_close(moved[..., edge:-edge, edge:-edge], expected[..., edge:-edge, edge:-edge])
    assert not torch.allclose(moved, expected)


# --- the shift -------------------------------------------------------------------------------------------------------

WAYS = ((1, 0), (-1, 0), (0, 1), (0, -1))


@pytest.mark.parametrize("heads", [1, 2, 4, 6])
def test_keys_come_from_four_sides(heads):
    """Each group of heads has keys and values that moved one way, and come in again at the other end."""
    mixer, x = build(12, heads, 3, shift=4), normal(2, 12, 7, 6)
    expected = by_definition(mixer, x, lambda part, way: part.roll([4 * step for step in WAYS[way]], (2, 3)))
    torch.testing.assert_close(mixer(x), expected)


def test_without_a_shift():
    x = normal(1, 8, 6, 7)
    assert torch.equal(build(8, 4, 3, shifted="map")(x), build(8, 4, 3)(x))
    assert build(8, 4, (3, 5), (2, 1), shift=None).shift == (2, 2)


def test_a_shift_reaches_beyond_the_window():
    """A pixel four above is outside of the window, and inside of that which moved."""
    x = normal(1, 16, 13, 11)
    changed = x.clone()
    changed[:, :, 2, 5] += 1
    for shift, reached in ((0, False), (3, True)):
        mixer = build(16, 4, 3, shift=shift)
        assert (mixer(x) != mixer(changed))[0, :, 6, 5].any() == reached
    # what leaves at the top comes in at the bottom
    changed = x.clone()
    changed[:, :, 12, 5] += 1
    assert (mixer(x) != mixer(changed))[0, :, 2, 5].all()


def test_a_map_that_moves_changes_borders_alone():
    x, plain, moving = normal(1, 8, 12, 13), build(8, 4, 3), build(8, 4, 3, shift=2, shifted="map")
    assert torch.allclose(plain(x)[..., 3:-3, 3:-3], moving(x)[..., 3:-3, 3:-3], rtol=1e-12)
    near = (plain(x) - moving(x)).abs().amax(1)[0] > 1e-9
    assert near[0].all()
    assert near[:, 0].all()
    assert not near[3:-3, 3:-3].any()


# --- the averages ----------------------------------------------------------------------------------------------------


def averaged(x):
    """Cells of 2x2 pixels, those at an odd end with the pixels that they have."""
    return F.avg_pool2d(x, 2, ceil_mode=True)


@pytest.mark.parametrize("size", [(6, 8), (7, 5), (1, 2)])
def test_keys_of_cells(size):
    """A query attends to the cells around its own, as on the map of the cells, where its own had this query."""
    mixer, x = build(8, 2, 3, pooled="keys"), normal(2, 8, *size)
    cells = averaged(x)
    plain = build(8, 2, 3)
    plain.load_state_dict(mixer.state_dict())
    y = mixer(x)
    for row in range(size[0]):
        for column in range(size[1]):
            # the query alone, with the keys of the cells: a map that has it at its cell
            q, k, v = plain.qkv(cells.permute(0, 2, 3, 1)).unflatten(-1, (3, 2, 4)).unbind(3)
            q = q.clone()
            q[:, row // 2, column // 2] = plain.qkv(x[:, :, row, column])[:, :8].unflatten(-1, (2, 4))
            expected = plain.proj(plain._attend(q, k, v).flatten(3))[:, row // 2, column // 2]
            torch.testing.assert_close(y[:, :, row, column], expected)


@pytest.mark.parametrize("size", [(6, 8), (7, 5), (1, 2)])
@pytest.mark.parametrize("shifted", ["keys", "map"])
def test_a_map_of_cells(size, shifted):
    mixer, x = build(8, 4, 3, pooled="map", shift=1, shifted=shifted), normal(2, 8, *size)
    plain = build(8, 4, 3, shift=1, shifted=shifted)
    plain.load_state_dict(mixer.state_dict())
    expected = F.interpolate(plain(averaged(x)), scale_factor=2, mode="nearest")[..., : size[0], : size[1]]
    torch.testing.assert_close(mixer(x), expected)


def test_averages_double_the_reach():
    """With a window of 3: the cell of the query, and one to either side."""
    x = normal(1, 8, 12, 12)
    for pooled, expected in ((None, [5, 6, 7]), ("keys", [4, 5, 6, 7, 8, 9]), ("map", [4, 5, 6, 7, 8, 9])):
        seen = build(8, 2, 3, pooled=pooled).attention_maps(x, (6, 6))[0, 0] > 0
        assert seen.any(1).nonzero().flatten().tolist() == seen.any(0).nonzero().flatten().tolist() == expected


@pytest.mark.parametrize("pooled", [None, "keys", "map"])
@pytest.mark.parametrize("shifted", ["keys", "map"])
@pytest.mark.parametrize("size", [(9, 8), (7, 5), (1, 1)])
def test_attention_maps(pooled, shifted, size):
    """The output is that of the values of pixels, weighted by them."""
    for border in ("zero", "mask"):
        mixer = build(12, 4, (3, 5), (2, 1), shift=None, shifted=shifted, pooled=pooled, border=border)
        x = normal(2, 12, *size)
        y, values = mixer(x), mixer.qkv(x.permute(0, 2, 3, 1))[..., 24:].unflatten(-1, (4, 3))
        for place in ((0, 0), (size[0] - 1, size[1] // 2)):
            maps = mixer.attention_maps(x, place)
            expected = mixer.proj(torch.einsum("bhyx,byxhd->bhd", maps, values).flatten(1))
            torch.testing.assert_close(y[..., place[0], place[1]], expected)
            if border == "mask":
                torch.testing.assert_close(maps.sum((2, 3)), torch.ones(2, 4, dtype=torch.float64))


# --- dropout, cost ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pooled", [None, "keys", "map"])
@pytest.mark.parametrize("border", ["zero", "mask"])
def test_dropout(pooled, border):
    """In training alone, of the weights: their mean over many draws is that of inference."""
    mixer = build(8, 2, 3, shift=None, pooled=pooled, border=border, dropout=0.3, project=False)
    x = normal(1, 8, 5, 6)
    expected = mixer(x)
    assert torch.equal(expected, mixer(x))
    mixer.train()
    torch.manual_seed(0)
    draws = mixer(x.expand(2000, -1, -1, -1))
    assert not torch.equal(draws[0], draws[1])
    error = (draws.mean(0) - expected).abs() / (draws.std(0) / 2000**0.5 + 1e-12)
    assert error.max() < 5
    mixer.dropout = 1e-15
    torch.testing.assert_close(mixer(x), expected)
    half = mixer.bfloat16()(x.bfloat16())
    assert half.dtype == torch.bfloat16
    assert (half - expected).abs().max() < 0.05 * expected.abs().max()


def test_cost_is_linear_and_nothing_is_unfolded():
    """Of the memory that training keeps, nothing grows with the window; time does, in proportion to the pixels."""

    def kept(side, kernel_size):
        mixer, x = build(16, 2, kernel_size).float(), torch.randn(1, 16, side, side)
        with PeakMemory([x, *mixer.parameters()]) as memory:
            y = mixer(x)
            held = memory.live
        del y
        return held, memory.peak

    small, large = kept(16, 3), kept(32, 3)
    for few, many in zip(small, large):
        assert 3.9 < many / few < 4.1
    assert kept(16, 7)[0] <= 1.01 * small[0]
    assert kept(16, 7)[1] <= 1.1 * small[1] + 4096
    assert small[1] < 9 * 16 * 16 * 16 * 4 * 2  # unfolded keys and values
    with torch.device("meta"):
        mixer = MSAConv(16, 2, pooled="keys")
        costs = []
        for side in (16, 32):
            with FlopCounterMode(display=False) as counter:
                mixer(torch.empty(1, 16, side, side))
            costs.append(counter.get_total_flops())
    # projections: q and the last of all pixels, k and v of a quarter
    assert costs == [2 * side**2 * 16**2 * 5 // 2 for side in (16, 32)]


# --- the released operator -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kernel_size", "stride", "padding", "groups", "bias"),
    [(3, 1, 1, 1, False), ((5, 3), (2, 1), (2, 1), 1, True), (3, 2, 1, 6, True), (1, 1, 0, 6, False)],
)
def test_in_the_place_of_a_convolution(kernel_size, stride, padding, groups, bias):
    """Its size is that of the convolution; the depth-wise form has a 1x1 convolution behind it."""
    torch.manual_seed(0)
    conv = MSAConv2d(6, 10, kernel_size, stride, padding=padding, groups=groups, bias=bias).double().eval()
    x = normal(2, 6, 9, 7)
    y = conv(x)
    assert y.shape == nn.Conv2d(6, 10, kernel_size, stride, padding).double()(x).shape
    o = by_definition(conv.attention, x) + x
    z = F.conv2d(o, conv.conv.weight, conv.conv.bias, stride, padding, groups=groups)
    if groups > 1:
        assert conv.conv.bias is None
        z = F.conv2d(z, conv.pointwise.weight, conv.pointwise.bias)
        assert (conv.pointwise.bias is not None) == bias
    torch.testing.assert_close(y, z.relu())


def test_parameters_of_the_operator():
    """3 C (C + 1) + κ_1 κ_2 C O, and O with a bias."""
    counts = [sum(p.numel() for p in conv.parameters()) for conv in (MSAConv2d(64, 64, 3), MSAConv2d(8, 12, 3))]
    assert counts == [49_344, 1_080]
    assert sum(p.numel() for p in MSAConv2d(8, 12, (3, 5), bias=True).parameters()) == 3 * 8 * 9 + 15 * 8 * 12 + 12


def test_a_convolution_of_other_libraries():
    """By name in mmcv's convolutions, and so in its networks."""
    mmcv_cnn = pytest.importorskip("mmcv.cnn")
    layer = mmcv_cnn.ConvModule(
        16, 24, 3, stride=2, padding=1, conv_cfg=dict(type="attlas.MSAConv2d", heads=2), norm_cfg=dict(type="BN")
    )
    assert isinstance(layer.conv, MSAConv2d)
    assert layer(torch.randn(2, 16, 9, 12)).shape == (2, 24, 5, 6)
    assert isinstance(MODELS.build(dict(type="MSAConv2d", in_channels=4, out_channels=4, kernel_size=3)), MSAConv2d)


def test_the_padding_fits_the_kernel():
    """One pixel as released, and none on an axis of one tap: networks of other libraries say none there."""
    paddings = [MSAConv2d(4, 4, size).padding for size in (3, 5, 1, (1, 3))]
    assert paddings == [(1, 1), (1, 1), (0, 0), (0, 1)]
    assert MSAConv2d(4, 4, 1, padding=1).padding == (1, 1)
    resnet = pytest.importorskip("mmdet.models.backbones").ResNet
    network = resnet(18, base_channels=8, conv_cfg=dict(type="attlas.MSAConv2d"))
    assert isinstance(network.layer2[0].downsample[0], MSAConv2d)
    assert [y.shape[-1] for y in network(torch.randn(1, 3, 64, 64))] == [16, 8, 4, 2]


# --- network ---------------------------------------------------------------------------------------------------------


def test_blocks_take_turns():
    """Every second one reads averages; dilations repeat; transitions have the heads of the stage before."""
    network = TiC(**SMALL, dilations=((1, 2), (1,), (3,), (1,)), dropout=0.2, border="mask", depthwise=True)
    mixers = [[block.mixer for block in stage.blocks] for stage in network.stages]
    assert [[m.pooled for m in stage] for stage in mixers] == [[None, "keys"], [None, "keys"], [None], [None, "keys"]]
    assert [[m.dilation[0] for m in stage] for stage in mixers] == [[1, 2], [1, 1], [3], [1, 1]]
    assert [m.shift for m in mixers[0]] == [(1, 1), (2, 2)]
    for before, stage in zip(network.stages, network.stages[1:]):
        norm, conv = stage.downsample
        assert conv.attention.heads == before.blocks[0].mixer.heads
        assert (conv.attention.dropout, conv.attention.border, conv.attention.shift) == (0.2, "mask", (0, 0))
        assert conv.conv.groups == conv.conv.in_channels == norm.normalized_shape[0]


def test_the_dense_form():
    """Norms are of the outputs alone, strides round up."""
    network = TiC(**SMALL).double().eval()
    x = normal(1, 3, 75, 62)
    assert norms_reach(network, x) == {0: [0], 1: [1], 2: [2], 3: [3]}
    assert [tuple(y.shape[-2:]) for y in network(x)] == [(19, 16), (10, 8), (5, 4), (3, 2)]


def test_the_classifier():
    """The norm comes before the mean."""
    network = TiC(**SMALL, num_classes=5).double().eval()
    features = network.forward_features(normal(2, 3, 64, 64))
    rows = F.layer_norm(features.flatten(2).mT, (48,), network.head.before.weight, network.head.before.bias, 1e-6)
    torch.testing.assert_close(network.forward_head(features), network.head.fc(rows.mean(1)))


def test_no_weight_knows_a_size():
    """The same weights at all sizes of the image: none has the shape of a map, and none is a position's."""
    with torch.device("meta"):
        network = backbones.create("tic_tiny")
    kinds = {type(module) for module in network.modules() if list(module.parameters(recurse=False))}
    assert all(issubclass(kind, (nn.Linear, nn.Conv2d, nn.LayerNorm, nn.BatchNorm2d)) for kind in kinds)
    assert "img_size" not in TiC.options()


def test_bad_options():
    for options, message in (
        (dict(kernel_size=4), "kernel_size must be odd, got 4"),
        (dict(kernel_size=(3, 3, 3)), r"kernel_size must be an integer of at least 1, or two of them, got \(3, 3, 3\)"),
        (dict(kernel_size=3.0), "kernel_size must be an integer of at least 1, or two of them, got 3.0"),
        (dict(dilation=0), "dilation must be an integer of at least 1, or two of them, got 0"),
        (dict(shift=-1), "shift must be an integer of at least 0, or None, got -1"),
        (dict(shift=1.5), "shift must be an integer"),
        (dict(shifted="queries"), r"shifted must be one of \('keys', 'map'\), got 'queries'"),
        (dict(pooled="both"), r"pooled must be one of \('keys', 'map', None\), got 'both'"),
        (dict(border="clamp"), r"border must be one of \('zero', 'mask'\), got 'clamp'"),
        (dict(dropout=1.0), r"dropout must be in \[0, 1\), got 1.0"),
        (dict(heads=5), "MSAConv: dim=12 is not divisible by heads=5"),
    ):
        with pytest.raises(ValueError, match=message):
            MSAConv(12, **options)
    with pytest.raises(ValueError, match="MSAConv2d: groups must be 1 or in_channels = 6, got 2"):
        MSAConv2d(6, 6, 3, groups=2)
    dilations = "dilations must be integers of at least 1, one or more for each stage, got "
    for options, message in (
        (dict(heads=(3, 6)), r"heads must have one entry for each of the 4 stages, got \(3, 6\)"),
        (dict(depths=(1, 1, 1, 1), pooled="both"), r"TiC: pooled must be one of \('keys', 'map', None\), got 'both'"),
        (dict(dilations=0), rf"TiC: {dilations}\(0, 0, 0, 0\)"),
        (dict(dilations=((), 1, 1, 1)), rf"TiC: {dilations}\(\(\), 1, 1, 1\)"),
        (dict(dilations=1.5), dilations),
    ):
        with pytest.raises(ValueError, match=message):
            TiC(**options)


def test_one_dilation_for_all_blocks_of_a_stage():
    assert TiC(**SMALL, dilations=2).dilations == [(2,)] * 4
    assert TiC(**SMALL, dilations=(1, (1, 2), 2, [3])).dilations == [(1,), (1, 2), (2,), (3,)]
