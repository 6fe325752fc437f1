"""Channel mixers on maps and on rows."""

import pytest
import torch

from attlas.backbones.layers import LayerNorm2d, LayerScale, Linear2d, Mlp


@pytest.mark.parametrize("layer", [Linear2d(6, 8), LayerNorm2d(6), Mlp(6, 2), LayerScale(6, 0.5)])
def test_maps_and_rows(layer):
    """A map and its pixels row by row are the same; a map stays channels-last."""
    x = torch.randn(2, 6, 3, 4).contiguous(memory_format=torch.channels_last)
    y = layer(x)
    torch.testing.assert_close(layer(x.flatten(2).mT), y.flatten(2).mT)
    assert y.is_contiguous(memory_format=torch.channels_last)
