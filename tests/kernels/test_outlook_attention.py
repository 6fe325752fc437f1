import importlib

import pytest
import torch
import torch.nn.functional as F
from agreement import assert_agree, assert_gradients_agree

from attlas.kernels.outlook_attention import (
    outlook_attention,
    outlook_attention_backward_op,
    outlook_attention_op,
    outlook_attention_reference,
)


def by_unfold(stride, scale=0.5):
    """By definition: all windows of the values, a product, and the sums at their pixels."""

    def function(values, logits):
        (batch, height, width, heads, channels), places = values.shape, logits.shape[-1]
        k = int(places**0.5)
        wide = torch.promote_types(torch.promote_types(values.dtype, torch.float32), logits.dtype)
        grid = dict(kernel_size=k, padding=k // 2, stride=stride)
        columns = F.unfold(values.to(wide).permute(0, 3, 4, 1, 2).flatten(1, 2), **grid)
        columns = columns.view(batch, heads, channels, places, -1).permute(0, 4, 1, 3, 2)
        mixed = (logits.to(wide).flatten(1, 2) * scale).softmax(-1) @ columns
        total = F.fold(mixed.permute(0, 2, 4, 3, 1).flatten(1, 3), (height, width), **grid)
        return total.view(batch, heads, channels, height, width).permute(0, 3, 4, 1, 2).to(values.dtype)

    return function


def ours(stride, scale=0.5):
    return lambda values, logits: outlook_attention(values, logits, stride, scale)


def tensors(shape, k, stride, dtype=torch.float64, device="cpu"):
    batch, height, width, heads, _ = shape
    torch.manual_seed(0)
    values = torch.randn(shape, dtype=torch.float64)
    logits = 3 * torch.randn(batch, -(-height // stride), -(-width // stride), heads, k * k, k * k, dtype=torch.float64)
    return [values.to(device, dtype).requires_grad_(), logits.to(device, dtype).requires_grad_()]


CASES = [
    ((2, 5, 4, 2, 3), 3, 2),
    ((1, 4, 3, 1, 2), 3, 1),
    ((1, 3, 7, 1, 1), 5, 3),
    ((1, 1, 2, 2, 5), 3, 2),
]


@pytest.mark.parametrize(("shape", "k", "stride"), CASES)
def test_equals_unfold(path, device, shape, k, stride):
    assert_gradients_agree(ours(stride), by_unfold(stride), tensors(shape, k, stride, device=device))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dtypes(path, device, dtype):
    assert_gradients_agree(ours(2), by_unfold(2), tensors((1, 3, 5, 2, 3), 3, 2, dtype, device))


def test_blocks_of_pixels(triton_path, device, monkeypatch):
    """More pixels than a tile, and channels that no tile divides."""
    monkeypatch.setattr(importlib.import_module("attlas.kernels.outlook_attention"), "ELEMENTS", 32)
    assert_gradients_agree(ours(2), by_unfold(2), tensors((2, 5, 3, 1, 5), 3, 2, device=device))


@pytest.mark.parametrize("stride", [1, 2])
def test_rows_of_several_blocks(device, stride):
    assert_gradients_agree(ours(stride), by_unfold(stride), tensors((2, 21, 3, 1, 4), 3, stride, device=device))


def test_mixed_dtypes_and_strides(path, device):
    values, logits = tensors((2, 4, 3, 2, 3), 3, 2, torch.float32, device)
    values = values.detach().permute(0, 3, 4, 1, 2).contiguous().permute(0, 3, 4, 1, 2).requires_grad_()
    half = logits.detach().bfloat16().requires_grad_()
    out = outlook_attention(values, half, 2, 0.5)
    assert_agree("out", out.detach(), by_unfold(2)(values, half).detach())
    grads = torch.autograd.grad(out.sum(), [values, half])  # a gradient that is one number, expanded
    expected = torch.autograd.grad(by_unfold(2)(values, half).sum(), [values, half])
    assert [g.dtype for g in grads] == [torch.float32, torch.bfloat16]
    for got, right in zip(grads, expected):
        assert_agree("gradient", got, right)


def test_equal_weights_are_box_sums(path, device):
    """With logits of zero and step 1, two sums over boxes of 3 x 3, the inner one divided by 9."""
    values, logits = tensors((1, 4, 5, 2, 3), 3, 1, device=device)
    maps = values.detach().permute(0, 3, 4, 1, 2).flatten(1, 2)
    mean = F.avg_pool2d(maps, 3, 1, padding=1)
    expected = 9 * F.avg_pool2d(mean, 3, 1, padding=1)
    got = outlook_attention(values, torch.zeros_like(logits)).permute(0, 3, 4, 1, 2).flatten(1, 2)
    assert_agree("sums", got.detach(), expected)


def test_windows_of_one_pixel(path, device):
    values, logits = tensors((1, 2, 3, 1, 4), 1, 1, device=device)
    out = outlook_attention(values, logits)
    assert_agree("out", out.detach(), values.detach())
    grad_values, grad_logits = torch.autograd.grad(out.sum(), [values, logits])
    assert (grad_values == 1).all()
    assert not grad_logits.any()


def test_large_logits(path, device):
    """Neither overflows; a row chooses one source."""
    values, logits = tensors((1, 3, 3, 1, 2), 3, 1, torch.float32, device)
    out = outlook_attention(values, logits.detach() * 1e30, 1, 0.5)
    assert_agree("out", out.detach(), by_unfold(1)(values, logits.detach() * 1e30).detach())


@pytest.mark.parametrize("mode", ["reference", "auto"])
@pytest.mark.parametrize(("k", "stride"), [(3, 2), (3, 1)])
def test_gradcheck(monkeypatch, device, mode, k, stride):
    monkeypatch.setenv("ATTLAS_KERNELS", mode)
    assert torch.autograd.gradcheck(ours(stride), tensors((1, 3, 2, 1, 2), k, stride, device=device))


def test_operators(path, device):
    values, logits = tensors((1, 2, 3, 1, 2), 1 if path == "triton" else 3, 1, device=device)
    torch.library.opcheck(outlook_attention_op, (values, logits, 1, 0.5))
    arguments = torch.randn_like(values), values.detach(), logits.detach(), 1, 0.5
    torch.library.opcheck(outlook_attention_backward_op, arguments)


def test_one_graph():
    torch.compiler.reset()
    values, logits = tensors((1, 3, 4, 2, 2), 3, 2)
    compiled = torch.compile(ours(2), backend="eager", fullgraph=True)
    assert_agree("out", compiled(values, logits).detach(), outlook_attention_reference(values, logits, 2, 0.5).detach())


@pytest.mark.parametrize("shape", [(0, 3, 4, 2, 2), (1, 0, 4, 2, 2), (1, 3, 4, 0, 2), (1, 3, 4, 2, 0)])
def test_empty(path, device, shape):
    values, logits = tensors(shape, 3, 2, device=device)
    out = outlook_attention(values, logits, 2)
    assert out.shape == values.shape
    grads = torch.autograd.grad(out.sum(), [values, logits])
    assert [g.shape for g in grads] == [values.shape, logits.shape]
    assert not any(g.any() for g in grads)


def test_bad_arguments():
    values, logits = tensors((2, 5, 4, 2, 3), 3, 2)
    for bad, message in [
        ((values[0], logits, 2), r"values must have shape \(B, H, W, heads, C\), got \(5, 4, 2, 3\)"),
        ((values, logits), r"here \(2, 5, 4, 2\) and k², k², got \(2, 3, 2, 2, 9, 9\)"),
        ((values, logits[..., :8], 2), r"k² x k² places of an odd k \(1, 9, 25, \.\.\.\), got 9 x 8"),
        ((values, logits[..., :4, :4], 2), r"got 4 x 4"),
        ((values, logits[:, :2, :2], 3), r"stride must be at most 2 for windows of 3 x 3"),
        ((values, logits, 0), r"stride must lie in 1\.\."),
        ((values, logits, 2, -1.0), r"scale must be at least 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            outlook_attention(*bad)
    with pytest.raises(TypeError, match=r"logits must be floating point \(float16 to float64\), got torch\.int64"):
        outlook_attention(values, logits.long(), 2)
