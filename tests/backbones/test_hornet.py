"""What characterises HorNet: gates whose product is a polynomial of known degree, and a filter over frequencies."""

import re

import pytest
import torch
from levels import norms_reach
from torch import nn

from attlas import backbones
from attlas.backbones.hornet import GlobalLocalFilter, GnConv, HorNet, resize_filter

SMALL = dict(dims=(16, 32, 64, 128), depths=(1, 1, 1, 1), filter_sizes=(None, None, (14, 8), (7, 4)))


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("order", [2, 3, 4, 5])
def test_degree(order):
    """Without biases the output is homogeneous of degree n + 1."""
    torch.manual_seed(0)
    mixer = GnConv(32, order).double()
    for name, p in mixer.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(p)
    x = normal(2, 32, 6, 5)
    torch.testing.assert_close(mixer(-1.5 * x), (-1.5) ** (order + 1) * mixer(x))


def test_a_filter_of_ones_changes_nothing():
    """The second half of the channels passes to the odd outputs, the first one through the 3x3 convolution to the even
    ones."""
    layer = GlobalLocalFilter(8, (6, 4)).double()
    layer.pre_norm, layer.post_norm = nn.Identity(), nn.Identity()
    nn.init.ones_(layer.complex_weight[..., 0].detach())
    nn.init.zeros_(layer.complex_weight[..., 1].detach())
    for size in ((6, 6), (7, 9), (1, 1)):
        x = normal(2, 8, *size)
        y = layer(x)
        torch.testing.assert_close(y[:, 1::2], x[:, 4:])
        torch.testing.assert_close(y[:, ::2], layer.dw(x[:, :4]))


@pytest.mark.parametrize("size", [(6, 6), (5, 8)])
def test_the_filter_has_no_borders(size):
    """A circular shift of the map shifts what is filtered globally, and not what the 3x3 convolution makes."""
    torch.manual_seed(0)
    layer, x = GlobalLocalFilter(8, (6, 4)).double(), normal(1, 8, *size)
    shifted, moved = layer._filter(x[:, 4:].roll((2, 3), (2, 3))), layer._filter(x[:, 4:]).roll((2, 3), (2, 3))
    torch.testing.assert_close(shifted, moved)
    near = layer.dw(x[:, :4].roll((2, 3), (2, 3)))
    assert not torch.allclose(near, layer.dw(x[:, :4]).roll((2, 3), (2, 3)))


@pytest.mark.parametrize("size", [(3, 3), (9, 5), (1, 1), (6, 4)])
def test_a_constant_filter_stays_constant(size):
    value = normal(5, 1, 1, 2)
    torch.testing.assert_close(resize_filter(value.expand(5, 6, 4, 2), size), value.expand(5, *size, 2))


def test_resizing_keeps_the_corners():
    weight = normal(3, 6, 4, 2)
    resized = resize_filter(weight, (9, 5))
    for i, j in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        torch.testing.assert_close(resized[:, i, j], weight[:, i, j])


def test_borders_that_the_strides_do_not_divide_are_lost():
    network = HorNet(**SMALL).eval()
    x = torch.randn(1, 3, 100, 75)
    maps = network(x)
    assert [tuple(y.shape[2:]) for y in maps] == [(25, 18), (12, 9), (6, 4), (3, 2)]
    assert torch.equal(network(x[..., :72])[0], maps[0])
    assert norms_reach(network, x) == {0: [0], 1: [1], 2: [2], 3: [3]}
    assert {norm.eps for norm in network.norms.values()} == {1e-6}
    assert [tuple(y.shape[2:]) for y in network(torch.zeros(1, 3, 64, 64))] == [(16, 16), (8, 8), (4, 4), (2, 2)]


def authors_name(name):
    """The authors' name of one of our tensors."""
    for ours, theirs in (
        (r"^stem\.", "downsample_layers.0."),
        (r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1."),
        (r"^stages\.(\d)\.blocks\.", r"stages.\1."),
        (r"\.mixer\.", ".gnconv."),
        (r"\.scale(\d)\.gamma$", r".gamma\1"),
        (r"\.mlp\.fc(\d)\.", r".pwconv\1."),
        (r"^head\.after\.", "norm."),
        (r"^head\.fc\.", "head."),
        (r"^norms\.", "norm"),
    ):
        name = re.sub(ours, theirs, name)
    return name


@pytest.mark.parametrize("num_classes", [5, None])
def test_names_of_the_authors(num_classes):
    options = dict(SMALL, num_classes=num_classes, layer_scale=1.0)
    network, again = HorNet(**options).eval(), HorNet(**options).eval()
    state = {authors_name(name): value for name, value in network.state_dict().items()}
    expected = {
        "downsample_layers.0.0.weight",
        "downsample_layers.3.1.bias",
        "stages.0.0.gamma1",
        "stages.3.0.gnconv.pws.3.weight",
        "stages.2.0.gnconv.dwconv.complex_weight",
        "stages.2.0.gnconv.dwconv.pre_norm.weight",
        "stages.1.0.pwconv2.bias",
    }
    expected |= {"norm.weight", "head.bias"} if num_classes else {"norm0.weight", "norm3.bias"}
    assert expected <= state.keys()
    account = backbones.load(again, {"model": state})
    assert account.complete, str(account)
    x = torch.randn(1, 3, 64, 64)
    for one, other in zip(again(x), network(x)):
        assert torch.equal(one, other)


def test_filters_of_other_sizes_are_resized():
    state = HorNet(**SMALL).state_dict()
    larger = HorNet(**{**SMALL, "filter_sizes": (None, None, (24, 13), (12, 7))})
    account = backbones.load(larger, state)
    assert account.complete, str(account)
    name = "stages.3.blocks.0.mixer.dwconv.complex_weight"
    assert set(account.resized) == {name, name.replace("3", "2", 1)}
    torch.testing.assert_close(larger.state_dict()[name], resize_filter(state[name], (12, 7)))


def test_bad_options():
    with pytest.raises(ValueError, match=r"dim=36 must be divisible by 2\^\(order-1\) = 16"):
        GnConv(36)
    with pytest.raises(ValueError, match="dim=7 must be even"):
        GlobalLocalFilter(7, (6, 4))
    with pytest.raises(ValueError, match="GnConv: kernel_size=6 must be odd"):
        GnConv(32, kernel_size=6)
    with pytest.raises(ValueError, match=r"orders must have one entry for each of the 4 stages, got \(2, 3, 4\)"):
        HorNet(orders=(2, 3, 4))
    with pytest.raises(ValueError, match="orders must have one entry for each of the 3 stages"):
        HorNet(dims=(16, 32, 64), depths=(1, 1, 1))
    with pytest.raises(ValueError, match="filter_sizes must have one entry for each of the 4 stages"):
        HorNet(filter_sizes=(None, None))
