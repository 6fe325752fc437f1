"""What characterises attentive convolution: kernels that an image makes for itself, inhibition, linear cost."""

import pytest
import torch
import torch.nn.functional as F
from levels import norms_reach
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from attlas import backbones
from attlas.backbones.attnet import ATConv, AttNet


def maps(*size):
    return torch.randn(*size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def mixer():
    torch.manual_seed(0)
    mixer = ATConv(6).double()
    nn.init.normal_(mixer.difference_control)
    return mixer


def by_definition(mixer, x):
    """All pixels projected, then pooled; the convolution pixel by pixel."""
    k = mixer.kernel_size
    batch, dim, height, width = x.shape
    z = F.conv2d(x, mixer.kernel_proj.weight[..., None, None], mixer.kernel_proj.bias).flatten(2)
    kernel = mixer.kernel_gen(F.gelu(F.adaptive_avg_pool1d(z, k * k)))
    kernel = kernel - mixer.difference_control.sigmoid()[:, None] * kernel.mean(2, keepdim=True)
    patches = F.unfold(mixer.x_proj(x), k, padding=k // 2).view(batch, dim, k * k, height * width)
    return mixer.proj((patches * kernel[..., None]).sum(2).view(batch, dim, height, width))


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("size", [(7, 5), (3, 3), (1, 4), (2, 1), (1, 1)])
def test_by_definition(kernel_size, size):
    """Also where bins of pixels overlap, and where they are more than the pixels."""
    torch.manual_seed(0)
    mixer, x = ATConv(6, kernel_size).double(), maps(2, 6, *size)
    torch.testing.assert_close(mixer(x), by_definition(mixer, x))


@pytest.mark.parametrize(
    ("size", "sides"),
    [((64, 64), [(16, 16), (8, 8), (4, 4), (2, 2)]), ((100, 76), [(25, 19), (13, 10), (7, 5), (4, 3)])],
)
def test_sizes(size, sides):
    with torch.device("meta"):
        outputs = backbones.create("attnet_xxs", out_indices=(0, 1, 2, 3)).eval()(torch.zeros(1, 3, *size))
    assert [tuple(y.shape[2:]) for y in outputs] == sides


def test_the_dense_form():
    """Our norms are of the outputs alone: behind them stand the maps of the authors' classifier."""
    dense, classifier = (
        AttNet((8, 16), (1, 1), mlp_ratio=(4, 4), glu_norms=(True, False), layer_scale=1.0, **options).double().eval()
        for options in (dict(), dict(num_classes=3))
    )
    backbones.load(classifier, dense.state_dict())
    x = maps(1, 3, 27, 50)
    assert norms_reach(dense, x) == {0: [0], 1: [1]}
    got, expected = (network.forward_intermediates(x)[1] for network in (dense, classifier))
    assert all(torch.equal(one, other) for one, other in zip(got, expected))


def test_kernels_by_stage():
    network = AttNet((16, 16, 32, 32), (1, 1, 1, 1), kernel_size=(5, 5, 3, 3))
    assert [stage.blocks[0].mixer.kernel_size for stage in network.stages] == [5, 5, 3, 3]


def test_images_do_not_see_each_other(mixer):
    x = maps(3, 6, 7, 5)
    torch.testing.assert_close(mixer(x), torch.cat([mixer(image) for image in x.split(1)]))


def test_inhibition(mixer):
    """At one end every kernel sums to zero, so that a constant map gives the bias of `proj` inside; at the other it is
    as generated."""
    x = maps(2, 6, 7, 5)
    nn.init.constant_(mixer.difference_control, 1e3)
    torch.testing.assert_close(mixer.kernels(x).sum((2, 3)), torch.zeros(2, 6, dtype=x.dtype))
    nn.init.zeros_(mixer.x_proj.weight)  # a constant value map
    y = mixer(x)
    torch.testing.assert_close(y[:, :, 1:-1, 1:-1], mixer.proj.bias.view(-1, 1, 1).expand(2, 6, 5, 3))
    assert (y[:, :, 0] - mixer.proj.bias[:, None]).abs().max() > 1e-3
    nn.init.constant_(mixer.difference_control, -1e3)
    bands = [x.flatten(2)[..., i * 35 // 9 : -(-(i + 1) * 35 // 9)] for i in range(9)]  # of the 35 pixels
    means = torch.stack([band.mean(-1) for band in bands], dim=-1)
    z = F.gelu((mixer.kernel_proj.weight @ means) + mixer.kernel_proj.bias[:, None])
    torch.testing.assert_close(mixer.kernels(x).flatten(2), mixer.kernel_gen(z))


def test_without_generated_kernels_all_are_the_bias(mixer):
    nn.init.zeros_(mixer.kernel_gen.weight)
    nn.init.zeros_(mixer.difference_control)
    bias = mixer.kernel_gen.bias
    expected = (bias - bias.mean() / 2).view(1, 1, 3, 3).expand(2, 6, 3, 3)
    torch.testing.assert_close(mixer.kernels(maps(2, 6, 7, 5)), expected)


def test_cost_is_linear():
    counts = []
    for rows in (8, 16, 24):
        with FlopCounterMode(display=False) as counter:
            ATConv(16)(torch.zeros(1, 16, rows, 8))
        counts.append(counter.get_total_flops())
    assert counts[2] - counts[1] == counts[1] - counts[0] > 0


def test_decay_spares_the_inhibition():
    network = backbones.create("attnet_xxs")
    assert len(network.no_weight_decay()) == sum(network.depths)
    assert all(name.endswith("mixer.difference_control") for name in network.no_weight_decay())


def test_even_kernels():
    with pytest.raises(ValueError, match="kernel_size=4 must be odd"):
        ATConv(8, kernel_size=4)
