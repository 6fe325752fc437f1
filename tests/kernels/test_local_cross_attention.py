"""Attention of a coarse grid to regions of a fine one: sums, gradients, regions, reach, memory."""

import math

import pytest
import torch
import torch.nn.functional as F
from agreement import assert_agree, assert_gradients_agree
from torch.profiler import ProfilerActivity, profile

from attlas.kernels import local_cross_attention
from attlas.kernels.local_cross_attention import local_cross_attention_backward_op, local_cross_attention_op

# (B, h, w, heads), (H, W), halo, dtype: whole and shared blocks, one cell a token, one token, more tokens than cells
CASES = [
    ((2, 3, 4, 2), (6, 8), 0, torch.float64),
    ((1, 3, 3, 2), (8, 7), 0, torch.float64),
    ((1, 3, 2, 1), (8, 5), 1, torch.float64),
    ((1, 2, 3, 1), (2, 5), 0, torch.float32),
    ((1, 1, 1, 2), (5, 9), 0, torch.float32),
    ((1, 5, 7, 1), (3, 2), 0, torch.float64),
    ((1, 4, 3, 1), (3, 2), 2, torch.float64),
    ((1, 2, 2, 3), (4, 6), 1, torch.bfloat16),
    ((1, 1, 2, 1), (17, 31), 40, torch.float16),
]


def tensors(shape, cells, dtype=torch.float64, device="cpu", depth=5, channels=7):
    batch, rows, columns, heads = shape
    q = torch.randn(batch, rows, columns, heads, depth, dtype=torch.float64)
    k, v = (torch.randn(batch, *cells, heads, size, dtype=torch.float64) for size in (depth, channels))
    return [x.to(device, dtype).requires_grad_() for x in (q, k, v)]


def region(token, tokens, cells, halo):
    return slice(max(0, math.floor(token * cells / tokens) - halo), math.ceil((token + 1) * cells / tokens) + halo)


def by_definition(q, k, v, halo=0, scale=None):
    """Token by token."""
    scale, out = q.shape[-1] ** -0.5 if scale is None else scale, []
    for i in range(q.shape[1]):
        for j in range(q.shape[2]):
            rows, columns = region(i, q.shape[1], k.shape[1], halo), region(j, q.shape[2], k.shape[2], halo)
            keys, values = (x[:, rows, columns].flatten(1, 2) for x in (k, v))
            weight = torch.softmax((q[:, i, j, None] * keys).sum(-1) * scale, 1)
            out.append((weight.unsqueeze(-1) * values).sum(1))
    return torch.stack(out, 1).unflatten(1, q.shape[1:3])


@pytest.mark.parametrize(("shape", "cells", "halo", "dtype"), CASES)
def test_equals_the_sums(shape, cells, halo, dtype, path, device):
    work = torch.promote_types(dtype, torch.float32)
    assert_gradients_agree(
        lambda *x: local_cross_attention(*x, halo),
        lambda *x: by_definition(*(y.to(work) for y in x), halo).to(dtype),
        tensors(shape, cells, dtype, device),
    )


def test_scale(path, device):
    inputs = tensors((1, 2, 2, 1), (3, 4), device=device)
    assert_gradients_agree(
        lambda *x: local_cross_attention(*x, scale=0.3), lambda *x: by_definition(*x, scale=0.3), inputs
    )
    even = local_cross_attention(*inputs, scale=0)
    assert_agree("out", even[0, 0, 0].detach(), inputs[2][0, :2, :2].mean((0, 1)).detach())


def test_one_token_is_attention_to_the_whole_map(path, device):
    q, k, v = tensors((2, 1, 1, 3), (4, 7), torch.float32, device)
    full = F.scaled_dot_product_attention(*(x.flatten(1, 2).transpose(1, 2) for x in (q, k, v)))
    torch.testing.assert_close(local_cross_attention(q, k, v).flatten(1, 2), full.transpose(1, 2), rtol=1e-5, atol=1e-5)


def test_one_cell_for_a_token_is_its_value(path, device):
    q, k, v = tensors((2, 4, 3, 2), (4, 3), torch.float32, device)
    assert_agree("out", local_cross_attention(q, k, v).detach(), v.detach())


@pytest.mark.parametrize(
    ("cells", "halo", "cell", "readers"),
    [
        ((6, 8), 0, (3, 5), {(1, 2)}),
        ((6, 8), 1, (3, 5), {(1, 2), (1, 3), (2, 2), (2, 3)}),
        ((8, 7), 0, (2, 4), {(0, 2), (1, 2)}),
        ((8, 7), 0, (0, 3), {(0, 1), (0, 2)}),
    ],
)
def test_a_cell_is_read_by_the_tokens_whose_regions_hold_it(cells, halo, cell, readers, path, device):
    q, k, v = (x.detach() for x in tensors((1, 3, 4, 2), cells, device=device))
    before = local_cross_attention(q, k, v, halo)
    k[:, cell[0], cell[1]] += 1
    v[:, cell[0], cell[1]] -= 1
    changed = (local_cross_attention(q, k, v, halo) != before).flatten(3).any(-1)[0]
    assert {tuple(x) for x in changed.nonzero().tolist()} == readers


def test_the_order_of_cells_in_a_region_is_no_matter(path, device):
    q, k, v = tensors((1, 2, 3, 2), (4, 9), device=device)
    order = torch.randperm(6, device=device)

    def shuffled(x):  # (B, H, W, ...) -> blocks of 2 x 3 cells, and back
        x = x.unflatten(2, (3, 3)).unflatten(1, (2, 2)).transpose(2, 3).flatten(3, 4)[:, :, :, order]
        return x.unflatten(3, (2, 3)).transpose(2, 3).flatten(3, 4).flatten(1, 2)

    assert_agree(
        "out", local_cross_attention(q, shuffled(k), shuffled(v)).detach(), local_cross_attention(q, k, v).detach()
    )


def test_a_halo_over_the_whole_map_makes_regions_alike(path, device):
    q, k, v = tensors((1, 2, 3, 2), (4, 5), device=device)
    full = F.scaled_dot_product_attention(*(x.flatten(1, 2).transpose(1, 2) for x in (q, k, v)))
    out = local_cross_attention(q, k, v, 2**24)
    assert_agree("out", out.flatten(1, 2).detach(), full.transpose(1, 2).detach())


def test_two_images_are_two_single_ones(path, device):
    q, k, v = tensors((2, 3, 3, 2), (8, 7), device=device)
    singles = [local_cross_attention(*(x[i : i + 1] for x in (q, k, v)), 1) for i in range(2)]
    torch.testing.assert_close(local_cross_attention(q, k, v, 1), torch.cat(singles), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode", ["reference", "auto"])
def test_no_matrix_of_all_pairs(mode, monkeypatch):
    """96 x 96 cells and 24 x 24 tokens: no tensor is larger than the keys. All pairs would be 36 times as many."""
    monkeypatch.setenv("ATTLAS_KERNELS", mode)
    inputs = tensors((1, 24, 24, 1), (96, 96), torch.float32, depth=16, channels=16)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        torch.autograd.grad(local_cross_attention(*inputs).sum(), inputs)
    largest = max(event.self_cpu_memory_usage for event in seen.events())
    assert inputs[0].nbytes <= largest <= inputs[1].nbytes


def test_strided(path, device):
    """Keys and values of one projection with the heads in front, queries of every other row."""
    both = torch.randn(1, 2, 4, 6, 12, device=device, dtype=torch.float64).permute(0, 2, 3, 1, 4).requires_grad_()
    queries = torch.randn(1, 4, 3, 2, 5, device=device, dtype=torch.float64)[:, ::2].requires_grad_()

    def sliced(function):
        return lambda q, x: function(q, x[..., :5], x[..., 5:])

    assert_gradients_agree(sliced(local_cross_attention), sliced(by_definition), [queries, both])


def test_large_logits(path, device):
    q, k, v = tensors((1, 2, 2, 1), (4, 4), torch.float32, device)
    inputs = [(100 * q).detach().requires_grad_(), k, v]
    out = local_cross_attention(*inputs)
    assert_agree("out", out, by_definition(*(x.double() for x in inputs)).float(), torch.float16)
    assert all(x.isfinite().all() for x in torch.autograd.grad(out.sum(), inputs))


def test_no_images(path, device):
    inputs = tensors((0, 2, 2, 2), (4, 5), device=device)
    out = local_cross_attention(*inputs)
    assert out.shape == (0, 2, 2, 2, 7)
    out.sum().backward()
    assert inputs[1].grad.shape == inputs[1].shape


def test_gradcheck(path, device):
    inputs = tensors((1, 2, 2, 1), (3, 3), device=device, depth=2, channels=3)
    assert torch.autograd.gradcheck(lambda *x: local_cross_attention(*x, 1), inputs, fast_mode=True)


def test_operators(path, device):
    inputs = tensors((1, 2, 2, 1), (3, 4), device=device)
    out, lse = (x.detach() for x in local_cross_attention_op(*inputs, 1, 0.5))
    torch.library.opcheck(local_cross_attention_op, (*inputs, 1, 0.5))
    saved = [x.detach() for x in inputs]
    torch.library.opcheck(local_cross_attention_backward_op, (out, *saved, out, lse, 1, 0.5))


def test_one_graph():
    inputs = tensors((1, 2, 2, 1), (3, 4))
    compiled = torch.compile(local_cross_attention, fullgraph=True, backend="aot_eager")
    assert_gradients_agree(compiled, local_cross_attention, inputs)


def test_autocast_keeps_dtypes(path, device):
    q, k, v = (x.detach() for x in tensors((1, 2, 2, 1), (3, 4), torch.float32, device))
    with torch.autocast(device.type, torch.bfloat16):
        out = local_cross_attention(q, k, v)
    assert_agree("out", out, local_cross_attention(q, k, v))


def test_bad_arguments():
    q, k, v = tensors((2, 3, 4, 2), (6, 8))
    with pytest.raises(ValueError, match=r"must have shape \(B, H, W, heads, channels\), got \(2, 3, 4, 10\)"):
        local_cross_attention(q.flatten(3), k, v)
    with pytest.raises(ValueError, match="k and v must have one shape but for their last axis"):
        local_cross_attention(q, k, v[:, 1:])
    with pytest.raises(ValueError, match="q and k must agree in images, heads and channels"):
        local_cross_attention(q[:1], k, v)
    with pytest.raises(ValueError, match="heights, widths, heads and channels of at least 1"):
        local_cross_attention(q[:, :0], k, v)
    with pytest.raises(TypeError, match=r"one floating-point dtype, got torch\.float64, torch\.float32"):
        local_cross_attention(q, k.float(), v)
    with pytest.raises(ValueError, match=r"halo must lie in 0\.\.16777216, got -1"):
        local_cross_attention(q, k, v, -1)
    with pytest.raises(TypeError, match=r"halo must be an integer, got 1\.0"):
        local_cross_attention(q, k, v, 1.0)
    with pytest.raises(ValueError, match="scale must be at least 0 and finite, got nan"):
        local_cross_attention(q, k, v, scale=float("nan"))
