import importlib

import pytest
import torch
import torch.nn.functional as F
from agreement import assert_agree, assert_gradients_agree

from attlas.kernels.routed_attention import (
    routed_attention,
    routed_attention_backward_op,
    routed_attention_op,
)

# (B, H, W, heads), regions, topk, dtype: regions of one token, one region for all, more tokens than a tile
CASES = [
    ((2, 2, 6, 1), (1, 3), 2, torch.bfloat16),
    ((1, 4, 4, 2), (2, 2), 3, torch.float64),
    ((1, 3, 1, 2), (3, 1), 2, torch.float32),
    ((1, 5, 6, 1), (1, 2), 2, torch.bfloat16),
    ((1, 9, 15, 1), (1, 1), 1, torch.float32),
]


def tensors(shape, regions, topk, depth=5, channels=7, dtype=torch.float64, device="cpu"):
    q, k = torch.randn(2, *shape, depth, dtype=torch.float64).to(device, dtype)
    v = torch.randn(*shape, channels, dtype=torch.float64).to(device, dtype)
    index = torch.rand(shape[0], *[regions[0] * regions[1]] * 2).topk(topk).indices
    return q, k, v, index.to(device)


def by_definition(q, k, v, index, regions, scale=None):
    """Attention among all tokens, with -∞ wherever a region was not chosen."""
    (height, width), depth = q.shape[1:3], q.shape[-1]
    number = torch.arange(regions[0] * regions[1]).view(regions)
    number = number.repeat_interleave(height // regions[0], 0).repeat_interleave(width // regions[1], 1).flatten()
    number = number.to(q.device)
    # how often a key's region is named by a query's
    times = F.one_hot(index, regions[0] * regions[1]).sum(2)[:, number][:, :, number]
    flat_q, flat_k, flat_v = (x.flatten(1, 2) for x in (q, k, v))
    logits = torch.einsum("bihd,bjhd->bhij", flat_q, flat_k) * (depth**-0.5 if scale is None else scale)
    weight = torch.softmax(logits + times.to(logits).log().unsqueeze(1), -1)
    return torch.einsum("bhij,bjhc->bihc", weight, flat_v).view_as(v)


def leaves(*inputs):
    return [x.requires_grad_() for x in inputs]


@pytest.mark.parametrize(("shape", "regions", "topk", "dtype"), CASES)
def test_equals_masked_attention(shape, regions, topk, dtype, path, device):
    q, k, v, index = tensors(shape, regions, topk, dtype=dtype, device=device)
    work = torch.promote_types(dtype, torch.float32)
    assert_gradients_agree(
        lambda *x: routed_attention(*x, index, regions),
        lambda *x: by_definition(*(y.to(work) for y in x), index, regions).to(dtype),
        leaves(q, k, v),
    )


def test_scale_and_repeated_regions(path, device):
    q, k, v, index = tensors((1, 4, 2, 1), (2, 2), 3, device=device)
    index[:, 1:] = torch.tensor([2, 2, 0], device=device)  # and region 1 may be nobody's choice but region 0's
    index[:, 0] = torch.tensor([3, 2, 0], device=device)
    inputs = leaves(q, k, v)
    function, expected = (lambda *x, f=f: f(*x, index, (2, 2), 0.7) for f in (routed_attention, by_definition))
    assert_gradients_agree(function, expected, inputs)
    dk, dv = torch.autograd.grad(function(*inputs).square().sum(), inputs[1:])
    assert not dk[:, :2, 1:].any()
    assert not dv[:, :2, 1:].any()


def test_all_regions_are_attention(path, device):
    q, k, v, index = tensors((2, 4, 3, 2), (2, 1), 2, device=device)
    full = F.scaled_dot_product_attention(*(x.flatten(1, 2).transpose(1, 2) for x in (q, k, v)))
    assert_agree("out", routed_attention(q, k, v, index, (2, 1)), full.transpose(1, 2).reshape(v.shape))


@pytest.mark.parametrize("regions", [(1, 1), (2, 2)])
def test_strided(regions, path, device):
    """Slices of one projection, heads in front, and an index that is a transpose."""
    both = torch.randn(1, 2, 4, 2, 17, device=device, dtype=torch.float64).permute(0, 2, 3, 1, 4).requires_grad_()
    index = torch.rand(1, 2, regions[0] * regions[1]).mul(regions[0] * regions[1]).long().to(device).mT

    def sliced(function):
        return lambda x: function(x[..., :5], x[..., 5:10], x[..., 10:], index, regions)

    assert_gradients_agree(sliced(routed_attention), sliced(by_definition), [both])


def test_large_logits(path, device):
    """Weights far beyond what exp can hold."""
    q, k, v, index = tensors((1, 4, 4, 1), (2, 2), 2, dtype=torch.float32, device=device)
    inputs = leaves(300 * q, k, v)
    out = routed_attention(*inputs, index, (2, 2))
    expected = by_definition(*(x.double() for x in inputs), index, (2, 2))
    assert_agree("out", out, expected.float(), torch.float16)  # the rounding of large logits shows
    gradients = torch.autograd.grad(out.sum(), inputs)
    assert all(x.isfinite().all() for x in gradients)
    assert_agree("dv", gradients[2], torch.autograd.grad(expected.sum(), v)[0], torch.float16)


@pytest.mark.parametrize("block", [1, 200, 1000])
def test_blocks(block, device, monkeypatch):
    """The CPU's path with one problem and few queries, with a few problems, and with a few heads at a time."""
    module = importlib.import_module("attlas.kernels.routed_attention")
    monkeypatch.setattr(module, "BLOCK", block)
    monkeypatch.setattr(module, "QUERIES", 3)
    q, k, v, index = tensors((2, 4, 6, 3), (2, 3), 2)
    function, expected = (lambda *x, f=f: f(*x, index, (2, 3)) for f in (routed_attention, by_definition))
    assert_gradients_agree(function, expected, leaves(q, k, v))


def test_no_images(path, device):
    q, k, v, index = tensors((0, 4, 4, 2), (2, 2), 2, device=device)
    leaves(q, k, v)
    out = routed_attention(q, k, v, index, (2, 2))
    assert out.shape == v.shape
    out.sum().backward()
    assert k.grad.shape == k.shape


def test_gradcheck(path, device):
    q, k, v, index = tensors((1, 1, 4, 1), (1, 2), 1, depth=2, channels=3, device=device)
    index[:, 1] = index[:, 0]
    assert torch.autograd.gradcheck(lambda *x: routed_attention(*x, index, (1, 2)), leaves(q, k, v), fast_mode=True)


def test_operators(path, device):
    q, k, v, index = tensors((1, 1, 4, 1), (1, 2), 2, device=device)
    arguments = (index, 1, 2, 0.5)
    out, lse = routed_attention_op(q, k, v, *arguments)
    torch.library.opcheck(routed_attention_op, (*leaves(q, k, v), *arguments))
    q, k, v = (x.detach() for x in (q, k, v))
    torch.library.opcheck(routed_attention_backward_op, (out, q, k, v, index, out, lse, 1, 2, 0.5))


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU nobody looks at the values")
@pytest.mark.parametrize("bad", [-1, 4])
def test_index_out_of_range(bad, path):
    """No path reads the regions of another image or head."""
    q, k, v, index = tensors((2, 4, 4, 2), (2, 2), 2)
    index[0, 1, 0] = bad
    with pytest.raises(IndexError, match=r"index must lie in 0\.\.3, got values from"):
        routed_attention(q, k, v, index, (2, 2))


def test_bad_arguments():
    q, k, v, index = tensors((2, 4, 6, 3), (2, 3), 2)
    with pytest.raises(ValueError, match=r"must have shape \(B, H, W, heads, channels\), got \(2, 4, 6, 15\)"):
        routed_attention(q.flatten(3), k, v, index, (2, 3))
    with pytest.raises(ValueError, match="k and v must have one shape but for their last axis"):
        routed_attention(q, k, v[:, :2], index, (2, 3))
    with pytest.raises(ValueError, match="q and k must agree in images, heads and channels"):
        routed_attention(q[..., :3], k, v, index, (2, 3))
    with pytest.raises(ValueError, match=r"q and k must have one shape, got \(2, 2, 6, 3, 5\)"):
        routed_attention(q[:, :2], k, v, index, (2, 3))
    with pytest.raises(ValueError, match="of at least 1"):
        routed_attention(q, k, v[..., :0], index, (2, 3))
    with pytest.raises(TypeError, match=r"one floating-point dtype, got torch\.float64, torch\.float32"):
        routed_attention(q, k.float(), v, index, (2, 3))
    with pytest.raises(ValueError, match=r"Ry a divisor of H = 4 and Rx one of W = 6, got \(3, 3\)"):
        routed_attention(q, k, v, index, (3, 3))
    for regions, message in [
        ((1.0, 1), r"Ry of regions must be an integer, got 1\.0"),
        ((2, True), "Rx of regions must be an integer, got True"),
        ((torch.tensor(2), 3), r"Ry of regions must be an integer, got a tensor of shape \(\)"),
        (2, r"regions must be two integers \(Ry, Rx\), got 2"),
        ((2, 3, 1), r"regions must be two integers \(Ry, Rx\), got \(2, 3, 1\)"),
    ]:
        with pytest.raises(TypeError, match=message):
            routed_attention(q, k, v, index, regions)
    with pytest.raises(ValueError, match=r"Ry of regions must lie in 1\.\.2147483647, got 0"):
        routed_attention(q, k, v, index, (0, 3))
    for scale in (float("nan"), float("inf"), -1.0):
        with pytest.raises(ValueError, match=f"scale must be at least 0 and finite, got {scale}"):
            routed_attention(q, k, v, index, (2, 3), scale)
    with pytest.raises(TypeError, match=r"index must be int64, got torch\.int32"):
        routed_attention(q, k, v, index.int(), (2, 3))
    with pytest.raises(ValueError, match=r"\(B, R, K\) = \(2, 4, at least 1\), got \(2, 6, 2\)"):
        routed_attention(q, k, v, index, (2, 2))
    with pytest.raises(IndexError, match=r"index must lie in 0\.\.5, got values from 0 to 6"):
        routed_attention(q, k, v, torch.full_like(index, 6).index_fill_(2, torch.tensor([0]), 0), (2, 3))
