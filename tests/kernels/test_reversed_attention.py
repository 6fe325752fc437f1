import importlib

import pytest
import torch
from agreement import assert_agree, assert_gradients_agree

from attlas.kernels.reversed_attention import (
    reversed_attention,
    reversed_attention_backward_op,
    reversed_attention_op,
    reversed_attention_reference,
)

# (B, heads), queries, keys, channels of q, channels of v, dtype: one token, more tokens than a tile, wide heads
CASES = [
    ((2, 1), 1, 1, 3, 5, torch.float64),
    ((1, 2), 5, 7, 3, 1, torch.bfloat16),
    ((1, 1), 70, 65, 9, 17, torch.float32),
    ((1, 1), 3, 35, 5, 70, torch.float16),
]


def tensors(shape, queries, keys, depth=5, channels=7, dtype=torch.float64, device="cpu"):
    sizes = (queries, depth), (keys, depth), (queries, channels), (queries,)
    return [torch.randn(*shape, *size, dtype=torch.float64).to(device, dtype).requires_grad_() for size in sizes]


def by_definition(q, k, v, weight=None, scale=None):
    logits = torch.einsum("bhid,bhjd->bhij", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    sent = logits.softmax(-1) if weight is None else logits.softmax(-1) * weight.unsqueeze(-1)
    return torch.einsum("bhij,bhic->bhjc", sent, v)


@pytest.mark.parametrize(("shape", "queries", "keys", "depth", "channels", "dtype"), CASES)
def test_equals_the_definition(shape, queries, keys, depth, channels, dtype, path, device):
    inputs = tensors(shape, queries, keys, depth, channels, dtype, device)
    q, k = inputs[:2]
    if keys == 1:  # all weights are 1, and nothing depends on q and k
        out = reversed_attention(*inputs)
        assert_agree("out", out, by_definition(*inputs))
        assert all(g.abs().max() < 1e-12 for g in torch.autograd.grad(out.square().sum(), [q, k]))
        return
    work = torch.promote_types(dtype, torch.float32)
    assert_gradients_agree(reversed_attention, lambda *x: by_definition(*(y.to(work) for y in x)).to(dtype), inputs)


def test_scale_and_shared_weights(path, device):
    q, k, v, weight = tensors((2, 2), 4, 3, device=device)
    for part in (weight[:1], weight[:, :1], weight[..., :1]):
        part = part.detach().requires_grad_()
        function, expected = (lambda *x, f=f: f(*x, 0.7) for f in (reversed_attention, by_definition))
        assert_gradients_agree(function, expected, [q, k, v, part])
    assert_gradients_agree(reversed_attention, by_definition, [q, k, v])


def test_every_message_arrives_once(path, device):
    """Sums over the receivers are those over the senders; a silent one sends nothing."""
    q, k, v, weight = (x.detach() for x in tensors((2, 2), 9, 6, device=device))
    out = reversed_attention(q, k, v, weight)
    assert_agree("sums", out.sum(2), (v * weight.unsqueeze(-1)).sum(2))
    weight[..., 2:] = 0
    few = reversed_attention(*(x[:, :, :2] if x is not k else x for x in (q, k, v, weight)))
    assert_agree("of two", reversed_attention(q, k, v, weight), few)


def test_is_the_transpose_of_attention(path, device):
    """Σ_j g_j·out_j = Σ_i w_i v_i·attention(g)_i."""
    q, k, v, weight = (x.detach() for x in tensors((1, 2), 5, 8, device=device))
    g = torch.randn_like(k)[..., :1].expand(-1, -1, -1, 7)
    sent = (v * weight.unsqueeze(-1) * torch.nn.functional.scaled_dot_product_attention(q, k, g)).sum()
    assert_agree("adjoint", (g * reversed_attention(q, k, v, weight)).sum(), sent)


def test_worked_example(path, device):
    """That of the paper's reading: A = [[0.7, 0.3], [0.4, 0.6]], weights (0.5, 1), messages 1 and 10."""
    q = torch.tensor([[0.7, 0.3], [0.4, 0.6]], dtype=torch.float64, device=device).log().view(1, 1, 2, 2)
    k = torch.eye(2, dtype=torch.float64, device=device).view(1, 1, 2, 2)
    v = torch.tensor([1.0, 10.0], dtype=torch.float64, device=device).view(1, 1, 2, 1)
    weight = torch.tensor([[[0.5, 1.0]]], dtype=torch.float64, device=device)
    out = reversed_attention(q, k, v, weight, scale=1.0)
    assert_agree("out", out.flatten().cpu(), torch.tensor([4.35, 6.15], dtype=torch.float64))


def test_strided(path, device):
    """Slices of one projection with tokens before heads."""
    both = torch.randn(1, 6, 2, 17, device=device, dtype=torch.float64).transpose(1, 2).requires_grad_()

    def sliced(function):
        return lambda x: function(x[..., :5], x[..., 5:10], x[..., 10:16], x[..., 16])

    assert_gradients_agree(sliced(reversed_attention), sliced(by_definition), [both])


def test_large_logits(path, device):
    """Weights far beyond what exp can hold."""
    q, k, v, weight = tensors((1, 2), 6, 5, dtype=torch.float32, device=device)
    inputs = [(300 * q).detach().requires_grad_(), k, v, weight]
    out = reversed_attention(*inputs)
    expected = by_definition(*(x.double() for x in inputs))
    assert_agree("out", out, expected.float(), torch.float16)  # the rounding of large logits shows
    assert all(x.isfinite().all() for x in torch.autograd.grad(out.sum(), inputs))


@pytest.mark.parametrize("block", [1, 40, 100])
def test_blocks(block, device, monkeypatch):
    """The CPU's path with few queries at a time, with all of one problem, and with two problems."""
    module = importlib.import_module("attlas.kernels.reversed_attention")
    monkeypatch.setattr(module, "BLOCK", block)
    monkeypatch.setattr(module, "QUERIES", 3)
    assert_gradients_agree(reversed_attention, by_definition, tensors((2, 2), 7, 5, device=device))


@pytest.mark.parametrize("turns", [1, 5])
def test_threads(turns):
    """Fewer problems than threads, and more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        inputs = tensors((turns, 1), 400, 400)
        assert_gradients_agree(reversed_attention, by_definition, inputs)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.skipif(torch.cuda.is_available(), reason="of the CPU's path")
def test_memory_is_linear_in_the_tokens():
    """No tensor of the CPU's path, forward or backward, is near N x N: 4 M numbers here."""
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            found = function(*args, **(kwargs or {}))
            for x in found if isinstance(found, (tuple, list)) else [found]:
                if isinstance(x, torch.Tensor):
                    largest = max(largest, x.untyped_storage().nbytes() // x.element_size())
            return found

    q, k, v, weight = tensors((1, 1), 2048, 2048, 8, 8, torch.float32)
    with Watch():
        reversed_attention(q, k, v, weight).sum().backward()
    assert 2048 * 8 <= largest <= 1 << 17


def test_no_images(path, device):
    q, k, v, weight = tensors((0, 2), 3, 4, device=device)
    out = reversed_attention(q, k, v, weight)
    assert out.shape == (0, 2, 4, 7)
    out.sum().backward()
    assert k.grad.shape == k.shape


def test_gradcheck(path, device):
    inputs = tensors((1, 1), 3, 2, depth=2, channels=3, device=device)
    assert torch.autograd.gradcheck(reversed_attention, inputs, fast_mode=True)


def test_operators(path, device):
    q, k, v, _ = tensors((1, 2), 3, 4, device=device)
    torch.library.opcheck(reversed_attention_op, (q, k, v, 0.5))
    grad = torch.randn(1, 2, 4, 7, dtype=torch.float64, device=device)
    torch.library.opcheck(reversed_attention_backward_op, (grad, *(x.detach() for x in (q, k, v)), 0.5))


def test_one_graph():
    torch.compiler.reset()
    q, k, v, weight = tensors((1, 2), 3, 4)
    compiled = torch.compile(reversed_attention, backend="eager", fullgraph=True)
    expected = reversed_attention_reference(q, k, v * weight.unsqueeze(-1), 5**-0.5)
    assert_agree("out", compiled(q, k, v, weight).detach(), expected.detach())


def test_bad_arguments():
    q, k, v, weight = tensors((2, 3), 4, 5)
    for bad, message in [
        ((q[0], k, v), r"must have shape \(B, heads, tokens, channels\), got \(3, 4, 5\)"),
        ((q[..., :3], k, v), "q and k must agree in images, heads and channels"),
        ((q, k[:, :1], v), "q and k must agree in images, heads and channels"),
        ((q, k, v[:, :, :2]), "q and v must have one shape but for their last axis"),
        ((q, k[:, :, :0], v), "of at least 1"),
        ((q, k, v, weight[0]), r"weight must have shape \(B, heads, N\) = \(2, 3, 4\), or 1 for some.*got \(3, 4\)"),
        ((q, k, v, weight[..., :2]), r"got \(2, 3, 2\)"),
        ((q, k, v, None, -1.0), r"scale must be at least 0 and finite, got -1\.0"),
        ((q, k, v, None, float("inf")), "scale must be at least 0 and finite, got inf"),
    ]:
        with pytest.raises(ValueError, match=message):
            reversed_attention(*bad)
    with pytest.raises(TypeError, match=r"q, k and v must be of one floating-point dtype, got .*float32"):
        reversed_attention(q, k, v.float())
    with pytest.raises(TypeError, match=r"q, k, v and weight must be of one floating-point dtype, got .*int64"):
        reversed_attention(q, k, v, weight.long())
    with pytest.raises(TypeError, match="weight must be a tensor, got 2"):
        reversed_attention(q, k, v, 2)
