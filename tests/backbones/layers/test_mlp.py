"""Channel mixers on maps and on rows."""

import pytest
import torch

from attlas.backbones.layers import LayerNorm2d, LayerScale, Linear2d, Mlp, QuickGelu, SwiGlu


@pytest.mark.parametrize("layer", [Linear2d(6, 8), LayerNorm2d(6), Mlp(6, 2), LayerScale(6, 0.5)])
def test_maps_and_rows(layer):
    """A map and its pixels row by row are the same; a map stays channels-last."""
    x = torch.randn(2, 6, 3, 4).contiguous(memory_format=torch.channels_last)
    y = layer(x)
    torch.testing.assert_close(layer(x.flatten(2).mT), y.flatten(2).mT)
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_swiglu():
    """By definition, on maps and rows; the hidden width is a multiple of 8."""
    mlp, x = SwiGlu(12, 4.0), torch.randn(2, 12, 3, 4)
    assert mlp.fc2.in_features == 32
    rows = x.flatten(2).mT
    gate, value = torch.nn.functional.linear(rows, mlp.fc1.weight, mlp.fc1.bias).split(32, -1)
    expected = torch.nn.functional.linear(gate * torch.sigmoid(gate) * value, mlp.fc2.weight, mlp.fc2.bias)
    torch.testing.assert_close(mlp(rows), expected)
    torch.testing.assert_close(mlp(x).flatten(2).mT, expected)


def test_quick_gelu():
    x = torch.linspace(-6, 6, 50)
    assert (QuickGelu()(x) - torch.nn.functional.gelu(x)).abs().max() < 0.021
    assert torch.equal(QuickGelu()(x), x * torch.sigmoid(1.702 * x))
