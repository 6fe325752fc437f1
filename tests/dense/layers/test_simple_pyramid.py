"""ViTDet's neck: each map by itself, of a plain transformer whose tokens never reach it."""

import pytest
import torch

from attlas import backbones
from attlas.dense.layers import SimplePyramid


def test_each_map_by_itself():
    neck = SimplePyramid((8, 12), 6, 3)
    maps = [torch.randn(2, 8, 7, 9), torch.randn(2, 12, 4, 5)]
    found = neck(maps)
    assert [tuple(x.shape) for x in found] == [(2, 6, 7, 9), (2, 6, 4, 5), (2, 6, 2, 3)]
    assert torch.equal(found[2], found[1][..., ::2, ::2])
    torch.testing.assert_close(found[0].mean(1), torch.zeros(2, 7, 9), atol=1e-5, rtol=0)
    other = neck([maps[0], maps[1] + 1])
    assert torch.equal(other[0], found[0])
    assert not torch.allclose(other[1], found[1])
    sum(x.square().sum() for x in found).backward()
    assert all(parameter.grad is not None for parameter in neck.parameters())


def test_published_size():
    """With ViT-B's rescaling, the pyramid of ViTDet's authors: (768, 384, 192, 768 channels) to 256."""
    with torch.device("meta"):
        network = backbones.Isotropic(768, 2, out_indices=(1,) * 4, scales=(4, 2, 1, 0.5))
        neck = SimplePyramid(network.out_channels, 256, 5)
    assert network.out_channels == (192, 384, 768, 768)
    rescaled = sum(p.numel() for p in network.rescale.parameters())
    deconvolutions = (768 * 384 * 4 + 384) + 2 * 384 + (384 * 192 * 4 + 192) + (768 * 384 * 4 + 384)
    assert rescaled == deconvolutions
    convolutions = sum(channels * 256 + 2 * 256 + 256 * 256 * 9 + 2 * 256 for channels in network.out_channels)
    assert sum(p.numel() for p in neck.parameters()) == convolutions


@pytest.mark.parametrize("registers", [0, 3])
def test_registers_never_reach_it(registers):
    """Whatever their number, the maps have the sizes of the image."""
    network = backbones.Isotropic(
        16, 2, registers=registers, img_size=64, out_indices=(1, 1, 1, 1), scales=(4, 2, 1, 0.5)
    )
    maps = SimplePyramid(network.out_channels, 8, 5)(network(torch.randn(1, 3, 80, 112)))
    assert [tuple(x.shape[2:]) for x in maps] == [(20, 28), (10, 14), (5, 7), (3, 4), (2, 2)]


def test_bad_arguments():
    with pytest.raises(ValueError, match="num_outs=1 must be at least 2, the maps of the backbone"):
        SimplePyramid((8, 12), 6, 1)
