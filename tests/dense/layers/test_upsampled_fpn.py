"""The pyramid with finer maps: strides, gradients, and mmdet's FPN without them."""

import pytest
import torch
from mmdet.models.necks import FPN

from attlas.dense.layers import UpsampledFPN


@pytest.mark.parametrize("kernel", [2, 3])
def test_strides(kernel):
    neck = UpsampledFPN((8, 12, 16), 8, 6, upsample=2, kernel=kernel)
    neck.init_weights()
    maps = [torch.randn(2, channels, 12 // 2**i, 20 // 2**i) for i, channels in enumerate((8, 12, 16))]
    found = neck(maps)
    assert [tuple(x.shape[1:]) for x in found] == [
        (8, 48, 80), (8, 24, 40), (8, 12, 20), (8, 6, 10), (8, 3, 5), (8, 2, 3)
    ]  # fmt: skip
    sum(x.sum() for x in found).backward()
    assert all(parameter.grad is not None for parameter in neck.parameters())


def test_one_map_makes_a_pyramid():
    found = UpsampledFPN((8,), 4, 5, upsample=1)([torch.randn(1, 8, 7, 9)])
    assert [tuple(x.shape[2:]) for x in found] == [(14, 18), (7, 9), (4, 5), (2, 3), (1, 2)]


def test_without_finer_maps_it_is_mmdets():
    ours, theirs = UpsampledFPN((8, 12), 4, 3, upsample=0), FPN([8, 12], 4, 3)
    theirs.load_state_dict(ours.state_dict())
    maps = [torch.randn(1, 8, 9, 7), torch.randn(1, 12, 5, 4)]
    for a, b in zip(ours(maps), theirs(maps)):
        assert torch.equal(a, b)


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"num_outs=3 must be at least 2 maps of the backbone and upsample=2"):
        UpsampledFPN((8, 12), 4, 3, upsample=2)
    with pytest.raises(ValueError, match="kernel must be 2 or 3, got 4"):
        UpsampledFPN((8,), 4, 3, kernel=4)
