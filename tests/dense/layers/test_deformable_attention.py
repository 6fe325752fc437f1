import mmcv.ops
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from attlas.dense.layers.deformable_attention import MultiScaleDeformableAttention, use_kernel


def pair(**options):
    """mmcv's module and ours, with the same random weights."""
    theirs = mmcv.ops.MultiScaleDeformableAttention(16, num_heads=4, num_levels=2, num_points=3, dropout=0.0, **options)
    for p in theirs.parameters():
        nn.init.normal_(p, std=0.5)
    network = nn.Sequential(nn.Sequential(theirs))
    use_kernel(network)
    ours = network[0][0]
    assert type(ours) is MultiScaleDeformableAttention
    return theirs, ours


@pytest.mark.parametrize("options", [{}, {"batch_first": True}, {"batch_first": True, "value_proj_ratio": 0.5}])
@pytest.mark.parametrize("box", [False, True])
def test_equals_mmcv(options, box):
    theirs, ours = pair(**options)
    sizes = torch.tensor([[4, 3], [2, 2]])
    query, value = torch.randn(2, 5, 16), torch.randn(2, 16, 16)
    if not options:
        query, value = query.transpose(0, 1), value.transpose(0, 1)
    arguments = dict(
        value=value,
        query_pos=torch.randn_like(query),
        key_padding_mask=torch.rand(2, 16) < 0.2,
        reference_points=torch.rand(2, 5, 2, 4 if box else 2),
        spatial_shapes=sizes,
        level_start_index=torch.tensor([0, 12]),
    )
    results = []
    for module in (theirs, ours):
        leaf = query.clone().requires_grad_()
        out = module(leaf, **arguments)
        results.append([out, *torch.autograd.grad(out.square().sum(), [leaf, *module.parameters()])])
    for got, expected in zip(results[1], results[0]):
        assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_of_itself_and_in_half_precision():
    theirs, ours = pair(batch_first=True)
    sizes = torch.tensor([[2, 2], [1, 1]])
    query, points = torch.randn(2, 5, 16), torch.rand(2, 5, 2, 2)
    expected = theirs(query, reference_points=points, spatial_shapes=sizes, level_start_index=torch.tensor([0, 4]))
    assert_close(ours(query, reference_points=points, spatial_shapes=sizes), expected, rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = ours(query, reference_points=points, spatial_shapes=sizes)
    assert_close(half.float(), expected, rtol=0.1, atol=0.1)
