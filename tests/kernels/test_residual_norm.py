import pytest
import torch
import torch.nn.functional as F
from agreement import assert_agree, assert_gradients_agree

from attlas.kernels import residual_norm
from attlas.kernels.residual_norm import residual_norm_backward_op, residual_norm_op


def by_torch(x, t, weight, bias, eps):
    rows = t.flatten(0, -2).to(weight.dtype)
    return x + F.relu(F.batch_norm(rows, None, None, weight, bias, training=True, eps=eps)).view(t.shape).to(x.dtype)


def tensors(*shape, dtype=torch.float64, device="cpu"):
    x, t = torch.randn(2, *shape, dtype=torch.float64)
    t = t + 5 * torch.randn(shape[-1], dtype=torch.float64)  # channels whose mean outweighs their spread
    weight, bias = torch.randn(2, shape[-1], dtype=torch.float64)  # also negative
    affine = dtype if dtype == torch.float64 else torch.float32
    return [x.to(device, dtype), t.to(device, dtype), weight.to(device, affine), bias.to(device, affine)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 5), (2, 3, 7), (2, 9, 11, 70), (4099, 3)])
def test_equals_torch(path, device, shape, dtype):
    inputs = [x.requires_grad_() for x in tensors(*shape, dtype=dtype, device=device)]
    if shape == (1, 5):  # one row has no spread: the gradient of t is zero
        inputs[1].requires_grad_(False)
        with pytest.raises(ValueError, match="more than 1 value"):
            by_torch(*inputs, 1e-5)
        y = residual_norm(*inputs, 1e-5)[0]
        assert_agree("y", y.detach(), (inputs[0] + inputs[3].relu()).detach())
        return
    y, mean, variance = residual_norm(*inputs, 1e-5)
    assert not mean.requires_grad
    rows = inputs[1].detach().flatten(0, -2)
    assert_agree("mean", mean, rows.mean(0))
    torch.testing.assert_close(variance, rows.var(0, correction=0), rtol=1e-5, atol=0)
    # rounding of a large mean shows in what the normalization leaves
    loose = 2e-5 if dtype == torch.float32 else 1e-12
    expected = by_torch(*inputs, 1e-5)
    gradient = torch.randn_like(expected)
    got = [y, *torch.autograd.grad(y, inputs, gradient)]
    for i, (a, b) in enumerate(zip(got, [expected, *torch.autograd.grad(expected, inputs, gradient)])):
        error = (a - b).double().norm() / b.double().norm()
        assert error < loose, f"{i}: {error}"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(path, device, dtype):
    inputs = [x.requires_grad_() for x in tensors(3, 50, 6, dtype=dtype, device=device)]
    function = lambda *x: residual_norm(*x, 1e-5)[0]  # noqa: E731
    assert_gradients_agree(function, lambda *x: by_torch(*x, 1e-5), inputs, dtype)


def test_nan_shows(path, device):
    x, t, weight, bias = tensors(6, 3, device=device)
    t[2, 1] = torch.nan
    assert residual_norm(x, t, weight, bias, 1e-5)[0].isnan().any(0).tolist() == [False, True, False]


def test_strided(path, device):
    x, t, weight, bias = tensors(6, 4, 8, device=device)
    got = residual_norm(x.transpose(0, 1), t.transpose(0, 1), weight, bias, 1e-5)[0]
    assert_agree("y", got, by_torch(x, t, weight, bias, 1e-5).transpose(0, 1))


def test_gradcheck(path, device):
    inputs = [x.requires_grad_() for x in tensors(4, 5, 3, device=device)]
    assert torch.autograd.gradcheck(lambda *x: residual_norm(*x, 1e-5)[0], inputs)


def test_operators(path, device):
    x, t, weight, bias = [x.requires_grad_() for x in tensors(4, 5, 3, device=device)]
    torch.library.opcheck(residual_norm_op, (x, t, weight, bias, 1e-5))
    y, mean, variance = residual_norm(x, t, weight, bias, 1e-5)
    arguments = (y.detach(), t.detach(), weight.detach(), bias.detach(), mean, variance, 1e-5)
    torch.library.opcheck(residual_norm_backward_op, arguments)


def test_bad_arguments():
    x, t, weight, bias = tensors(4, 5, 3)
    with pytest.raises(ValueError, match="and agree in shape and dtype"):
        residual_norm(x, t.float(), weight, bias, 1e-5)
    with pytest.raises(ValueError, match=r"weight and bias must have shape \(3,\)"):
        residual_norm(x, t, weight[:2], bias, 1e-5)
    with pytest.raises(TypeError, match=r"weight and bias must be torch\.float64 for t of"):
        residual_norm(x, t, weight.float(), bias.float(), 1e-5)
    for eps in (float("nan"), -1e-5, float("inf")):
        with pytest.raises(ValueError, match=f"eps must be at least 0 and finite, got {eps}"):
            residual_norm(x, t, weight, bias, eps)
    with pytest.raises(TypeError, match="eps must be a number, got '1'"):
        residual_norm(x, t, weight, bias, "1")
    with pytest.raises(TypeError, match=r"x and t must be floating point .*, got torch\.int64"):
        residual_norm(x.long(), t.long(), weight, bias, 1e-5)
    with pytest.raises(ValueError, match="t must have rows"):
        residual_norm(x[:0], t[:0], weight, bias, 1e-5)
