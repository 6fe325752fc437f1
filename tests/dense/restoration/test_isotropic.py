"""Restorers of any mixer: sizes, what they begin as, registers that never reach the image."""

import pytest
import torch
import torch.nn.functional as F

from attlas.dense.restoration import IsotropicRestorer
from attlas.registry import MODELS


def small(filled=True, **options):
    torch.manual_seed(0)
    network = IsotropicRestorer(**dict(dim=8, depth=2, mixers=dict(type="Attention", heads=2)) | options).eval()
    if filled:
        torch.nn.init.normal_(network.conv.weight, std=0.1)
    return network


@pytest.mark.parametrize("scale", [1, 2, 3])
@pytest.mark.parametrize("patch_size", [1, 4])
def test_begins_as_nearest_neighbors(scale, patch_size):
    network = small(filled=False, scale=scale, patch_size=patch_size)
    for size in ((1, 1), (5, 4), (2, 9)):
        x = torch.rand(2, 3, *size)
        assert torch.equal(network(x), F.interpolate(x, scale_factor=scale, mode="nearest"))
    assert (network.scale, network.multiple) == (scale, patch_size)


def test_registers_take_part_and_stay_inside():
    plain, other, x = small(), small(registers=3), torch.rand(1, 3, 6, 7)
    assert other(x).shape == (1, 3, 12, 14)
    other.load_state_dict(plain.state_dict(), strict=False)
    assert (other(x) - plain(x)).abs().max() > 1e-4


@pytest.mark.parametrize("mixer", ["NeighborhoodAttention", "GnConv", "Attention"])
def test_any_mixer_learns(mixer):
    network = MODELS.build(dict(type="IsotropicRestorer", dim=16, depth=1, mixers=mixer, patch_size=2)).train()
    torch.nn.init.normal_(network.conv.weight, std=0.1)
    network(torch.rand(2, 3, 9, 8)).square().mean().backward()
    assert all(p.grad is not None for p in network.parameters())


def test_bad_options():
    with pytest.raises(ValueError, match="IsotropicRestorer: scale=0 must be a whole number from 1"):
        IsotropicRestorer(scale=0)
    with pytest.raises(ValueError, match="Isotropic has no option 'window'"):
        IsotropicRestorer(window=8)
