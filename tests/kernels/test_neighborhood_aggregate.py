import pytest
import torch
from agreement import assert_agree, assert_gradients_agree

from attlas.kernels.neighborhood_aggregate import (
    neighborhood_aggregate,
    neighborhood_aggregate_backward_op,
    neighborhood_aggregate_op,
)


def by_definition(logits, v, k, bias=None):
    """Pixel by pixel: the window is cut out, and the table too."""
    (_, height, width, heads, _), wide = v.shape, torch.promote_types(v.dtype, torch.float32)
    rows = []
    for i in range(height):
        top = min(max(i - k // 2, 0), height - k)
        for j in range(width):
            left = min(max(j - k // 2, 0), width - k)
            own = logits[:, i, j].to(wide)
            if bias is not None:
                table = bias[:, top - i + k - 1 : top - i + 2 * k - 1, left - j + k - 1 : left - j + 2 * k - 1]
                own = own + table.reshape(heads, k * k).to(wide)
            window = v[:, top : top + k, left : left + k].flatten(1, 2).to(wide)
            rows.append(torch.einsum("bgt,btgc->bgc", own.softmax(-1), window))
    return torch.stack(rows, 1).view(v.shape).to(v.dtype)


def tensors(shape, k, dtype=torch.float64, device="cpu", bias=True):
    logits = torch.randn(*shape[:4], k * k, dtype=torch.float64)
    v = torch.randn(shape, dtype=torch.float64)
    table = torch.randn(shape[3], 2 * k - 1, 2 * k - 1, dtype=torch.float64)
    made = [x.to(device, dtype).requires_grad_() for x in (logits, v, table)]
    return [made[0], made[1], k, made[2] if bias else None]


CASES = [
    ((2, 4, 5, 2, 5), 3, True),
    ((1, 9, 8, 1, 3), 3, False),  # more than a block of pixels
    ((1, 3, 5, 1, 16), 3, True),  # H equal to k
    ((1, 6, 5, 1, 3), 5, True),
    ((1, 7, 8, 1, 3), 7, False),  # windows that are clamped on both sides
    ((2, 1, 1, 3, 4), 1, True),
    ((1, 2, 3, 2, 1), 1, False),
    ((1, 4, 3, 1, 70), 3, True),
]


@pytest.mark.parametrize(("shape", "k", "bias"), CASES)
def test_equals_definition(path, device, shape, k, bias):
    arguments = tensors(shape, k, device=device, bias=bias)
    for logits in arguments[::3]:
        if logits is not None:
            logits.requires_grad_(k > 1)  # one tap has the weight 1, whatever its logit
    assert_gradients_agree(neighborhood_aggregate, by_definition, arguments)


@pytest.mark.parametrize("k", [13, 17])
def test_large_kernels(device, k):
    assert_gradients_agree(neighborhood_aggregate, by_definition, tensors((1, 17, 19, 1, 3), k, device=device))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(path, device, dtype):
    assert_gradients_agree(neighborhood_aggregate, by_definition, tensors((1, 5, 4, 1, 10), 3, dtype, device))


def test_mixed_dtypes(path, device):
    logits, v, k, bias = tensors((1, 3, 5, 2, 4), 3, torch.float32, device)
    half = logits.detach().bfloat16().requires_grad_()
    out = neighborhood_aggregate(half, v, k, bias)
    assert_agree("out", out.detach(), by_definition(half, v, k, bias).detach())
    gradients = torch.autograd.grad(out.sum(), [half, v, bias])
    assert [g.dtype for g in gradients] == [torch.bfloat16, torch.float32, torch.float32]


def test_strided(path, device):
    logits, v, k, bias = tensors((1, 3, 3, 1, 3), 3, device=device)
    both = torch.cat([logits, logits.flip(-1)], -1).detach()  # logits of two kernels, made by one layer
    parts = [
        (both[..., 9:], torch.cat([v, v], -1).detach()[..., 2:5]),
        (both[..., ::2], v.detach().permute(0, 1, 2, 4, 3).contiguous().transpose(3, 4)),
    ]
    for part, values in parts:
        inputs = [part.requires_grad_(), values.requires_grad_(), k, bias.detach().mT.requires_grad_()]
        assert_gradients_agree(neighborhood_aggregate, by_definition, inputs)
    out = neighborhood_aggregate(logits, v, k, bias)  # a gradient that is one number, expanded
    expected = torch.autograd.grad(by_definition(logits, v, k, bias).sum(), [logits, v, bias])
    torch.testing.assert_close(torch.autograd.grad(out.sum(), [logits, v, bias]), expected)


def test_large_and_infinite_logits(path, device):
    logits, v, k, bias = tensors((1, 3, 4, 1, 2), 3, torch.float32, device)
    with torch.no_grad():
        logits *= 200
        logits[..., 0] = -torch.inf
    assert_agree("out", *[f(logits, v, k, bias).detach() for f in (neighborhood_aggregate, by_definition)])


def test_lowest_logits(path, device):
    """A mask may be the lowest float of all: for the first taps, or for all of them, which then are equal."""
    logits, v, k, _ = tensors((1, 3, 4, 1, 2), 3, torch.float32, device)
    with torch.no_grad():
        logits[..., :4] = torch.finfo(torch.float32).min
        logits[:, 1] = torch.finfo(torch.float32).min
    assert_gradients_agree(neighborhood_aggregate, by_definition, [logits, v, k])


def test_bias_sums_what_is_not_rounded(path, device):
    """Its gradient has the digits of float32, though that of the logits is rounded to bfloat16."""
    logits, v, k, bias = tensors((2, 5, 4, 1, 4), 3, torch.float32, device)
    halves = [x.detach().bfloat16() for x in (logits, v)]
    got, expected = (
        torch.autograd.grad(f(*inputs, k, bias).sum(), bias)[0]
        for f, inputs in ((neighborhood_aggregate, halves), (by_definition, [x.float() for x in halves]))
    )
    assert_agree("gradient", got, expected)


def test_constant_values_stay(path, device):
    logits, v, k, bias = tensors((1, 6, 5, 2, 3), 5, device=device)
    constant = torch.randn(2, 3, dtype=v.dtype, device=device).expand_as(v)
    assert_agree("out", neighborhood_aggregate(logits, constant, k, bias).detach(), constant)


def test_equal_logits_are_a_mean_over_clamped_windows(path, device):
    _, v, k, _ = tensors((1, 6, 5, 2, 3), 3, device=device)
    out = neighborhood_aggregate(v.new_zeros(1, 6, 5, 2, 9), v, k).detach()
    inner = v.detach().unfold(1, 3, 1).unfold(2, 3, 1).mean((-1, -2))  # windows of the pixels that are not clamped
    rows, columns = torch.tensor([0, 0, 1, 2, 3, 3]), torch.tensor([0, 0, 1, 2, 2])
    assert_agree("out", out, inner[:, rows][:, :, columns])


def test_a_bias_concerns_its_offset(path, device):
    logits, v, k, bias = tensors((1, 4, 5, 1, 3), 3, device=device)
    moved = bias.detach().clone()
    moved[0, 2 + 1, 2 - 2] += 1  # a row below, two columns to the left: seen only from the right border
    one, other = neighborhood_aggregate(logits, v, k, bias), neighborhood_aggregate(logits, v, k, moved)
    differ = (one - other).abs().amax((0, 3, 4)) > 1e-9
    expected = torch.zeros(4, 5, dtype=torch.bool, device=device)
    expected[:3, 4] = True
    assert torch.equal(differ, expected)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("mode", ["reference", "auto"])
def test_gradcheck(monkeypatch, device, mode, bias):
    monkeypatch.setenv("ATTLAS_KERNELS", mode)
    assert torch.autograd.gradcheck(neighborhood_aggregate, tensors((1, 3, 4, 1, 2), 3, device=device, bias=bias))


@pytest.mark.parametrize("bias", [True, False])
def test_operators(path, device, bias):
    k = 1 if path == "triton" else 3  # the interpreter is slow
    logits, v, _, table = tensors((1, 3, 4, 2, 3), k, device=device, bias=bias)
    torch.library.opcheck(neighborhood_aggregate_op, (logits, v, table, k))
    detached = [x if x is None else x.detach() for x in (logits, v, table)]
    torch.library.opcheck(neighborhood_aggregate_backward_op, (torch.randn_like(v), *detached, k))


def test_keeps_no_softmax(path, device):
    """The backward holds the inputs, and nothing else."""
    arguments = tensors((1, 5, 4, 1, 2), 3, device=device)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.data_ptr()) or x, lambda x: x):
        neighborhood_aggregate(*arguments)
    assert sorted(kept) == sorted(x.data_ptr() for x in arguments if isinstance(x, torch.Tensor))


@pytest.mark.parametrize("shape", [(0, 3, 4, 1, 2), (1, 3, 4, 1, 0)])
def test_empty(path, device, shape):
    logits, v, k, bias = tensors(shape, 3, device=device)
    out = neighborhood_aggregate(logits, v, k, bias)
    assert out.shape == v.shape
    assert all(not g.any() for g in torch.autograd.grad(out.sum(), [logits, v, bias]))


def test_bad_arguments():
    logits, v, k, bias = tensors((1, 5, 4, 2, 3), 3)
    for bad, message in [
        ((logits, v, 4), "kernel_size must be an odd positive integer, got 4"),
        ((logits, v, -3), "kernel_size must be an odd positive integer, got -3"),
        ((logits, v[0], k), r"v must have shape \(B, H, W, heads, C\), got \(5, 4, 2, 3\)"),
        ((logits, v, 5), r"logits must have shape .* = \(1, 5, 4, 2, 25\) for kernel_size 5 .* got \(1, 5, 4, 2, 9\)"),
        ((logits[:, :, :2], v[:, :, :2], k), "kernel_size must be at most H and W, 5 and 2, got 3"),
        ((logits, v, k, bias[:, 1:]), r"bias must have shape .* = \(2, 5, 5\), got \(2, 4, 5\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            neighborhood_aggregate(*bad)
    with pytest.raises(TypeError, match=r"bias must be floating point \(float16 to float64\), got torch\.int64"):
        neighborhood_aggregate(logits, v, k, bias.long())
