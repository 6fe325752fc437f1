import importlib

import pytest
import torch
import torch.nn.functional as F
from agreement import assert_agree, assert_gradients_agree

from attlas.kernels.sparse_attention import (
    sparse_attention,
    sparse_attention_backward_op,
    sparse_attention_op,
)

# (B, H), leading queries, other queries, keys, K, D, C, dtype: one key, all keys, sizes that no tile divides
CASES = [
    ((2, 3), 1, 7, 9, 4, 5, 7, torch.float64),
    ((1, 2), 1, 5, 3, 1, 8, 8, torch.float32),
    ((1, 1), 0, 3, 5, 5, 1, 3, torch.float32),
    ((1, 1), 1, 6, 41, 17, 5, 4, torch.bfloat16),
]


def tensors(shape=(2, 2), leading=1, queries=5, keys=6, topk=3, depth=5, channels=4, dtype=torch.float64, device="cpu"):
    q = torch.randn(*shape, leading + queries, depth, dtype=torch.float64).to(device, dtype)
    k = torch.randn(*shape, keys, depth, dtype=torch.float64).to(device, dtype)
    v = torch.randn(*shape, keys, channels, dtype=torch.float64).to(device, dtype)
    index = torch.rand(*shape, queries, keys).topk(topk).indices
    return q, k, v, index.to(device)


def by_definition(q, k, v, index, scale=None):
    """Attention among all tokens, with -∞ wherever a key was not chosen."""
    keys, leading = k.shape[2], q.shape[2] - index.shape[2]
    times = F.one_hot(index.long(), keys).sum(3)  # how often a query names a key
    times = torch.cat([times.new_ones(*q.shape[:2], leading, keys), times], 2)
    logits = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    return torch.softmax(logits + times.to(logits).log(), -1) @ v


def leaves(*inputs):
    return [x.requires_grad_() for x in inputs]


@pytest.mark.parametrize(("shape", "leading", "queries", "keys", "topk", "depth", "channels", "dtype"), CASES)
def test_equals_masked_attention(shape, leading, queries, keys, topk, depth, channels, dtype, path, device):
    q, k, v, index = tensors(shape, leading, queries, keys, topk, depth, channels, dtype, device)
    work = torch.promote_types(dtype, torch.float32)
    assert_gradients_agree(
        lambda *x: sparse_attention(*x, index),
        lambda *x: by_definition(*(y.to(work) for y in x), index).to(dtype),
        leaves(q, k, v),
    )


def test_scale_and_repeated_keys(path, device):
    q, k, v, index = tensors(topk=4, device=device)
    index[:, :, 1:] = torch.tensor([2, 2, 0, 2], device=device)
    index[:, :, 0] = torch.tensor([2, 0, 5, 0], device=device)
    assert_gradients_agree(
        lambda *x: sparse_attention(*x, index.int(), 0.7), lambda *x: by_definition(*x, index, 0.7), leaves(q, k, v)
    )
    q, index = q.detach()[:, :, 1:], index[:, :, 1:2].expand(-1, -1, 5, -1)
    dk, dv = torch.autograd.grad(sparse_attention(q, k, v, index).square().sum(), [k, v])
    assert not dk[:, :, [1, 3, 4, 5]].any()
    assert not dv[:, :, [1, 3, 4, 5]].any()


def test_all_keys_are_attention(path, device):
    q, k, v, index = tensors(topk=6, device=device)
    assert_agree("out", sparse_attention(q, k, v, index), F.scaled_dot_product_attention(q, k, v))


def test_strided(path, device):
    """Slices of one projection, heads behind the tokens, and an index whose axes are swapped."""
    rows = torch.randn(2, 6, 3, 2, 5, device=device, dtype=torch.float64).requires_grad_()
    index = torch.rand(2, 2, 3, 6).mul(6).long().to(device).mT

    def sliced(function):
        return lambda x: function(*x.permute(2, 0, 3, 1, 4).unbind(0), index)

    assert_gradients_agree(sliced(sparse_attention), sliced(by_definition), [rows])


def test_large_logits(path, device):
    """Weights far beyond what exp can hold."""
    q, k, v, index = tensors(dtype=torch.float32, device=device)
    inputs = leaves(300 * q, k, v)
    out = sparse_attention(*inputs, index)
    expected = by_definition(*(x.double() for x in inputs), index)
    assert_agree("out", out, expected.float(), torch.float16)  # the rounding of large logits shows
    gradients = torch.autograd.grad(out.sum(), inputs)
    assert all(x.isfinite().all() for x in gradients)


@pytest.mark.parametrize("block", [1, 8])
def test_blocks(block, monkeypatch):
    """The CPU's path with few queries at a time."""
    monkeypatch.setattr(importlib.import_module("attlas.kernels.sparse_attention"), "BLOCK", block)
    q, k, v, index = tensors()
    assert_gradients_agree(lambda *x: sparse_attention(*x, index), lambda *x: by_definition(*x, index), leaves(q, k, v))


@pytest.mark.parametrize("empty", [dict(shape=(0, 2)), dict(queries=0)])
def test_nothing(empty, path, device):
    q, k, v, index = tensors(**empty, device=device)
    leaves(q, k, v)
    out = sparse_attention(q, k, v, index)
    assert out.shape == (*q.shape[:3], 4)
    out.sum().backward()
    assert k.grad.shape == k.shape
    if not q.numel():
        return
    assert_agree("class token", out, F.scaled_dot_product_attention(q, k, v))


def test_gradcheck(path, device):
    q, k, v, index = tensors((1, 1), 1, 2, 3, 2, 2, 3, device=device)
    assert torch.autograd.gradcheck(lambda *x: sparse_attention(*x, index), leaves(q, k, v), fast_mode=True)


def test_operators(path, device):
    q, k, v, index = tensors((1, 1), 0, 2, 3, 2, device=device)
    out, lse = sparse_attention_op(q, k, v, index, 0.5)
    torch.library.opcheck(sparse_attention_op, (*leaves(q, k, v), index, 0.5))
    q, k, v = (x.detach() for x in (q, k, v))
    torch.library.opcheck(sparse_attention_backward_op, (out, q, k, v, index, out, lse, 0.5))


def test_one_graph():
    torch.compiler.reset()
    q, k, v, index = tensors()
    function = torch.compile(sparse_attention, backend="eager", fullgraph=True)
    assert_agree("out", function(q, k, v, index), sparse_attention(q, k, v, index))


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU nobody looks at the values")
@pytest.mark.parametrize("bad", [-1, 6])
def test_index_out_of_range(bad, path):
    """No path reads the keys of another image or head."""
    q, k, v, index = tensors()
    index[0, 1, 0, 0] = bad
    with pytest.raises(IndexError, match=r"index must lie in 0\.\.5, got values from"):
        sparse_attention(q, k, v, index)


def test_memory_grows_with_the_keys(device):
    """No tensor of the forward and the backward has as many elements as pairs of tokens."""
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            found = function(*args, **(kwargs or {}))
            for x in torch.utils._pytree.tree_leaves(found):
                largest = max(largest, x.numel() if isinstance(x, torch.Tensor) else 0)
            return found

    tokens, topk = 2048, 4
    q, k, v, index = tensors((1, 1), 0, tokens, tokens, 4, 4, 4, torch.float32, device)
    leaves(q, k, v)
    with Watch():
        sparse_attention(q, k, v, index).sum().backward()
    assert 0 < largest <= tokens * max(topk, 4)


def test_bad_arguments():
    q, k, v, index = tensors()
    with pytest.raises(ValueError, match=r"must have shape \(B, H, tokens, channels\), got \(2, 2, 30\)"):
        sparse_attention(q.flatten(2), k, v, index)
    with pytest.raises(ValueError, match="q and k must agree in images, heads and channels"):
        sparse_attention(q[..., :3], k, v, index)
    with pytest.raises(ValueError, match="k and v must have one shape but for their last axis"):
        sparse_attention(q, k, v[:, :, :2], index)
    with pytest.raises(ValueError, match="of at least 1"):
        sparse_attention(q, k, v[..., :0], index)
    with pytest.raises(TypeError, match=r"one floating-point dtype, got torch\.float64, torch\.float32"):
        sparse_attention(q, k.float(), v, index)
    with pytest.raises(TypeError, match=r"index must be int64 or int32, got torch\.int16"):
        sparse_attention(q, k, v, index.short())
    with pytest.raises(ValueError, match=r"\(B, H, S, K\) = \(2, 2, at most 6, 1 to 6\), got \(2, 2, 7, 3\)"):
        sparse_attention(q, k, v, index[:, :, [0] * 7])
    with pytest.raises(ValueError, match=r"index must name 1 to N = 6 keys of a query, got 7"):
        sparse_attention(q, k, v, index[..., [0] * 7])
    with pytest.raises(ValueError, match=r"index must name 1 to N = 6 keys of a query, got 0"):
        sparse_attention(q, k, v, index[..., :0])
    for scale in (float("nan"), float("inf"), -1.0):
        with pytest.raises(ValueError, match=f"scale must be at least 0 and finite, got {scale}"):
            sparse_attention(q, k, v, index, scale)
