import pytest
import torch
import torch.nn.functional as F
from agreement import assert_agree, assert_gradients_agree

from attlas.kernels.small_kernel_aggregate import (
    small_kernel_aggregate,
    small_kernel_aggregate_backward_op,
    small_kernel_aggregate_op,
)


def by_unfold(x, weight):
    """By definition: all k² copies of x, and the kernels repeated over channels."""
    (batch, channels, height, width), (kernels, taps) = x.shape, weight.shape[1:3]
    k = int(taps**0.5)
    wide = torch.promote_types(x.dtype, torch.float32)
    copies = F.unfold(x.to(wide), k, padding=k // 2).view(batch, channels, taps, height, width)
    return (copies * weight.to(wide).repeat(1, channels // kernels, 1, 1, 1)).sum(2).to(x.dtype)


def tensors(shape, kernels, k, dtype=torch.float64, device="cpu"):
    batch, _, height, width = shape
    x = torch.randn(shape, dtype=torch.float64)
    weight = torch.randn(batch, kernels, k * k, height, width, dtype=torch.float64)
    return [x.to(device, dtype).requires_grad_(), weight.to(device, dtype).requires_grad_()]


def channels_last(x, weight):
    """The same values as leaves whose channels, and taps of each, lie side by side, as convolutions leave them."""
    x = x.detach().contiguous(memory_format=torch.channels_last)
    weight = weight.detach().flatten(1, 2).contiguous(memory_format=torch.channels_last).view_as(weight)
    return [x.requires_grad_(), weight.requires_grad_()]


def both_formats(x, weight):
    for inputs in ([x, weight], channels_last(x, weight)):
        assert_gradients_agree(small_kernel_aggregate, by_unfold, inputs)


CASES = [
    ((2, 6, 5, 4), 3, 3),
    ((1, 5, 4, 6), 5, 5),
    ((2, 3, 1, 6), 1, 3),
    ((1, 10, 4, 1), 2, 3),
    ((1, 4, 3, 2), 2, 1),
    ((1, 2, 1, 2), 1, 7),
]


@pytest.mark.parametrize(("shape", "kernels", "k"), CASES)
def test_equals_unfold(path, device, shape, kernels, k):
    both_formats(*tensors(shape, kernels, k, device=device))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dtypes(path, device, dtype):
    both_formats(*tensors((1, 6, 3, 5), 2, 3, dtype, device))


def test_tiles_of_pixels_and_channels(triton_path, device):
    both_formats(*tensors((1, 67, 7, 5), 67, 1, device=device))


def test_rows_of_several_blocks(device):
    assert_gradients_agree(small_kernel_aggregate, by_unfold, tensors((2, 4, 70, 3), 2, 3, device=device))


def test_mixed_dtypes(path, device):
    x, weight = tensors((1, 4, 3, 5), 2, 3, torch.float32, device)
    half = weight.detach().bfloat16().requires_grad_()
    out = small_kernel_aggregate(x, half)
    assert_agree("out", out.detach(), by_unfold(x, half).detach())
    assert [g.dtype for g in torch.autograd.grad(out.sum(), [x, half])] == [torch.float32, torch.bfloat16]


def test_memory_format(path, device):
    x, weight = channels_last(*tensors((2, 6, 5, 4), 3, 3, device=device))
    out = small_kernel_aggregate(x, weight)
    assert out.is_contiguous(memory_format=torch.channels_last)
    grad_x, grad_weight = torch.autograd.grad(out.sum(), [x, weight])
    assert (grad_x.stride(), grad_weight.stride()) == (x.stride(), weight.stride())
    assert small_kernel_aggregate(x.contiguous(), weight).is_contiguous()


def test_strided(path, device):
    x, weight = tensors((2, 6, 5, 4), 3, 3, device=device)
    wide = torch.randn(2, 9, 5, 4, dtype=torch.float64, device=device).contiguous(memory_format=torch.channels_last)
    for part in (wide[:, 2:8], x.detach().flip(1).transpose(2, 3).contiguous().transpose(2, 3), x.detach()[:1]):
        kernels = weight[: len(part)].detach().requires_grad_()
        assert_gradients_agree(small_kernel_aggregate, by_unfold, [part.detach().requires_grad_(), kernels])
    out = small_kernel_aggregate(x, weight)  # a gradient that is one number, expanded
    torch.testing.assert_close(
        torch.autograd.grad(out.sum(), [x, weight]), torch.autograd.grad(by_unfold(x, weight).sum(), [x, weight])
    )


def test_taps_outside_the_map_add_nothing(path, device):
    """Whatever the kernels hold there: of 7 x 7 taps, none but the middle column sees a map one pixel wide."""
    x = torch.ones(1, 1, 2, 1, device=device, requires_grad=True)
    weight = torch.full((1, 1, 49, 2, 1), torch.nan, device=device)
    weight.view(7, 7, 2)[2:5, 3] = 1
    weight.requires_grad_()
    out = small_kernel_aggregate(x, weight)
    assert out.flatten().tolist() == [2, 2]
    grad_x, grad_weight = torch.autograd.grad(out.sum(), [x, weight])
    assert grad_x.flatten().tolist() == [2, 2]
    assert grad_weight.count_nonzero() == 4


def test_center_tap_is_identity(path, device):
    x, weight = tensors((1, 6, 4, 5), 2, 3, device=device)
    center = torch.zeros_like(weight)
    center[:, :, 4] = 1
    assert torch.equal(small_kernel_aggregate(x, center), x)


def test_one_kernel_for_all_pixels_is_a_depthwise_convolution(path, device):
    x, _ = tensors((2, 6, 4, 5), 2, 3, device=device)
    kernel = torch.randn(2, 9, dtype=torch.float64, device=device)
    out = small_kernel_aggregate(x, kernel[None, :, :, None, None].expand(2, -1, -1, 4, 5))
    expected = F.conv2d(x, kernel.view(2, 1, 3, 3).repeat(3, 1, 1, 1), padding=1, groups=6)
    assert_agree("out", out.detach(), expected.detach())


@pytest.mark.parametrize(("kernels", "k"), [(3, 3), (1, 5)])
@pytest.mark.parametrize("mode", ["reference", "auto"])
def test_gradcheck(monkeypatch, device, mode, kernels, k):
    monkeypatch.setenv("ATTLAS_KERNELS", mode)
    assert torch.autograd.gradcheck(small_kernel_aggregate, tensors((1, 3, 3, 2), kernels, k, device=device))


def test_operators(path, device):
    plain = tensors((1, 4, 3, 2), 2, 1 if path == "triton" else 3, device=device)  # the interpreter is slow
    for x, weight in (plain, channels_last(*plain)):
        torch.library.opcheck(small_kernel_aggregate_op, (x, weight))
        arguments = (torch.randn_like(x), x.detach(), weight.detach())
        torch.library.opcheck(small_kernel_aggregate_backward_op, arguments)


def test_empty(path, device):
    x, weight = tensors((0, 4, 3, 5), 2, 3, device=device)
    out = small_kernel_aggregate(x, weight)
    assert out.shape == x.shape
    assert [g.shape for g in torch.autograd.grad(out.sum(), [x, weight])] == [x.shape, weight.shape]


def test_bad_arguments():
    x, weight = tensors((2, 4, 3, 5), 2, 3)
    for bad, message in [
        ((x[0], weight), r"x must have shape \(B, C, H, W\), got \(4, 3, 5\)"),
        ((x, weight[:, :, :, 1:]), r"weight must have shape .* with B, H, W = 2, 3, 5 of x, got \(2, 2, 9, 2, 5\)"),
        ((x, weight[:, :, :8]), r"k² taps of an odd k \(1, 9, 25, \.\.\.\) on its axis 2, got 8"),
        ((x, weight[:, :, :4]), r"k² taps of an odd k .* got 4"),
        ((x[:, :3], weight), r"must divide the 3 channels of x, got 2"),
    ]:
        with pytest.raises(ValueError, match=message):
            small_kernel_aggregate(*bad)
    with pytest.raises(TypeError, match=r"weight must be floating point \(float16 to float64\), got torch\.int64"):
        small_kernel_aggregate(x, weight.long())
