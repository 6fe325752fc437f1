"""Filling up to whole windows and patches."""

import pytest
import torch

from attlas.backbones.layers import Patches, fill


@pytest.mark.parametrize(
    ("options", "size"),
    [(dict(multiple=4), (8, 4)), (dict(multiple=(3, 2)), (6, 4)), (dict(least=7), (7, 7)), ({}, (5, 4))],
)
def test_fill(options, size):
    x = torch.randn(1, 2, 5, 4)
    y = fill(x, **options)
    assert y.shape[2:] == size
    assert torch.equal(y[..., :5, :4], x)
    assert y.count_nonzero() == x.count_nonzero()


def test_patches_fill():
    patches, x = Patches(3, 8, 4), torch.randn(1, 3, 9, 8)
    assert patches(x).shape == (1, 8, 3, 2)
    torch.testing.assert_close(patches(x)[:, :, :2], patches(x[:, :, :8]))
