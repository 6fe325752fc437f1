"""Attention in windows without any notion of position; that with a relative position bias is tested with HAT."""

import pytest
import torch

from attlas.backbones.layers import SpatialWindowAttention


def normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_bad_windows():
    for window in (0, -7):
        with pytest.raises(ValueError, match=f"SpatialWindowAttention: window={window} must be at least 1"):
            SpatialWindowAttention(8, 2, window=window)


def test_windows_do_not_see_each_other():
    mixer, x = SpatialWindowAttention(8, 2, window=3).double(), normal(2, 8, 7, 8)
    changed = x.clone()
    changed[:, :, 3:6, 3:6] = normal(2, 8, 3, 3)
    same = (mixer(x) == mixer(changed)).all(1)
    assert not same[:, 3:6, 3:6].any()
    same[:, 3:6, 3:6] = True
    assert same.all()


def test_attention_maps():
    """The weights of one pixel, against its output recomputed from them."""
    mixer, x = SpatialWindowAttention(8, 2, window=3).double(), normal(2, 8, 6, 9)
    maps = mixer.attention_maps(x, (4, 8))
    torch.testing.assert_close(maps.sum((2, 3)), torch.ones(2, 2, dtype=torch.float64))
    assert maps[:, :, 3:, 6:].count_nonzero() == maps.count_nonzero() == 2 * 2 * 9
    values = mixer.qkv(x.permute(0, 2, 3, 1))[..., 16:].unflatten(-1, (2, 4))
    y = mixer.proj(torch.einsum("bhyx,byxhd->bhd", maps, values).flatten(1))
    torch.testing.assert_close(y, mixer(x)[:, :, 4, 8])
    at_border = mixer.attention_maps(x[:, :, :5], (4, 8))  # a third of the window is filling
    assert ((at_border.sum((2, 3)) > 0) & (at_border.sum((2, 3)) < 1)).all()
