"""Products by oneDNN are those of `F.linear` and `F.conv2d`, in every size, type and layout."""

import pytest
import torch
import torch.nn.functional as F
from networks import close

from attlas.backbones.layers import ConvNorm, Linear, Linear2d, Pointwise, linear
from attlas.backbones.layers.linear import ONEDNN_FROM, by_onednn
from attlas.backbones.layers.norm import fuse_norm


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), requires_grad=True)


SHAPES = [(1, 640, 40), (5, 7, 11, 64), (64, 400), (30_000, 1), (3, 7, 16), (2, 0, 8), (20_481,)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias", [True, False])
def test_linear_and_its_gradients(shape, bias):
    x, weight = random(*shape), random(9, shape[-1], seed=1)
    inputs = [x, weight, *[random(9, seed=2)] * bias]
    upstream = torch.randn(*shape[:-1], 9)
    got, expected = linear(*inputs), F.linear(*inputs)
    assert by_onednn(x, weight) == (x.numel() > ONEDNN_FROM)
    for ours, theirs in zip(
        (got, *torch.autograd.grad(got, inputs, upstream)), (expected, *torch.autograd.grad(expected, inputs, upstream))
    ):
        assert ours.shape == theirs.shape
        if ours.numel():
            close(ours, theirs, 1e-5)


def test_rows_in_any_layout():
    weight = random(24, 48)
    maps = random(2, 48, 20, 30)
    for x in (maps.permute(0, 2, 3, 1), maps.flatten(2).mT, random(48, 900).mT, random(2, 600, 96)[..., ::2]):
        close(linear(x, weight), F.linear(x, weight), 1e-5)
    layer = Linear2d(48, 24)
    close(layer(maps), F.conv2d(maps, layer.weight[..., None, None], layer.bias), 1e-5)
    y = layer(maps.contiguous(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [(2, 17, 23), (1, 3, 2)])
def test_pointwise_is_the_convolution(layout, stride, bias, size):
    x = random(size[0], 32, *size[1:]).contiguous(memory_format=layout)
    for layer in (Pointwise(32, 48, stride, bias=bias), Pointwise(32, 32, stride, groups=32, bias=bias)):
        expected = F.conv2d(x, layer.weight, layer.bias, layer.stride, groups=layer.groups)
        got = layer(x)
        close(got, expected, 1e-5)
        upstream = torch.randn_like(got)
        for ours, theirs in zip(*(torch.autograd.grad(y, (x, *layer.parameters()), upstream) for y in (got, expected))):
            close(ours, theirs, 1e-5)


def test_depthwise_is_exact():
    layer, x = Pointwise(48, 48, groups=48, bias=False), random(2, 48, 9, 11)
    assert torch.equal(layer(x), F.conv2d(x, layer.weight, groups=48))


def test_pointwise_groups():
    with pytest.raises(ValueError, match="groups=2 must be 1, or in_dim=4 and dim=4"):
        Pointwise(4, 4, groups=2)


def test_fused_norm_stays_pointwise():
    x = random(2, 48, 16, 16)
    for groups in (1, 48):
        part = ConvNorm(48, 48, groups=groups)
        part(x)  # moves the running statistics
        fused = fuse_norm(part.eval().conv, part.norm)
        assert type(fused) is Pointwise
        close(fused(x), part(x), 1e-5)


@pytest.mark.filterwarnings("ignore:TF32 acceleration")  # of the switch of oneDNN
def test_where_onednn_is_not_taken():
    """Other types, autocast, a disabled oneDNN and traced graphs have the plain operators."""
    layer, x = Linear(64, 64), random(1, 400, 64)
    assert by_onednn(x, layer.weight)
    assert not by_onednn(x.double(), layer.weight.double())
    assert not by_onednn(x.to(torch.bfloat16), layer.weight.to(torch.bfloat16))
    assert not by_onednn(x.to("meta"), layer.weight.to("meta"))
    with torch.autocast("cpu", torch.bfloat16):
        assert not by_onednn(x, layer.weight)
        assert layer(x).dtype == torch.bfloat16
    with torch.backends.mkldnn.flags(enabled=False):
        assert not by_onednn(x, layer.weight)
        close(layer(x), F.linear(x, layer.weight, layer.bias), 1e-5)
    graph = torch.export.export(torch.nn.Sequential(layer, Linear(64, 3)), (x.detach(),)).graph
    assert [str(node.target) for node in graph.nodes if node.op == "call_function"] == ["aten.linear.default"] * 2


def test_one_thread_takes_onednn():
    """What makes it fast: no product of MKL, and no unfolded image."""
    x, maps = random(1, 400, 64), random(1, 64, 20, 20)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            Linear(64, 64)(x)
            Pointwise(64, 64)(maps)
    finally:
        torch.set_num_threads(threads)
    calls = {event.key: event.count for event in profile.key_averages()}
    assert calls.get("aten::mkldnn_convolution") == 2
    assert not {"aten::addmm", "aten::_slow_conv2d_forward", "aten::slow_conv_dilated2d"} & calls.keys()
