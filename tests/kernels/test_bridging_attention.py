import sys

import pytest
import torch
import torch.nn.functional as F
from agreement import assert_agree, assert_gradients_agree

from attlas.kernels.bridging_attention import (
    bridging_attention,
    bridging_attention_backward_op,
    bridging_attention_op,
    location_bias,
)

MODULE = sys.modules[bridging_attention.__module__]  # the package has the function under this name


def by_grid_sample(q, k, v, table, query_positions, key_positions, step, scale=None):
    """By definition: all differences, `grid_sample` with the border as padding, and attention with that bias."""
    size = torch.tensor([table.shape[2], table.shape[1]]).to(table)
    difference = (key_positions[:, None] - query_positions[:, :, None]) * step
    grid = difference * 2 / size
    maps = table.to(grid.dtype).expand(len(q), -1, -1, -1)
    bias = F.grid_sample(maps, grid, padding_mode="border", align_corners=False).clamp(min=1e-6).log()
    wide = torch.promote_types(torch.promote_types(q.dtype, torch.float32), table.dtype)
    q, k, v, bias = (x.to(wide) for x in (q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), bias))
    return F.scaled_dot_product_attention(q, k, v, bias, scale=scale).transpose(1, 2)


def tensors(batch, count, keys, heads, depth=5, channels=7, table=(9, 12), dtype=torch.float64, device="cpu"):
    """Some of the differences lie beyond the table, and some values of it below the least."""
    q = torch.randn(batch, count, heads, depth, dtype=torch.float64).to(device, dtype)
    k = torch.randn(batch, keys, heads, depth, dtype=torch.float64).to(device, dtype)
    v = torch.randn(batch, keys, heads, channels, dtype=torch.float64).to(device, dtype)
    place = torch.promote_types(dtype, torch.float32)
    values = torch.randn(heads, *table, dtype=torch.float64).add(0.7).to(device, place)
    positions = [(torch.rand(batch, n, 2, dtype=torch.float64) * 30).to(device, place) for n in (count, keys)]
    return [x.requires_grad_() for x in (q, k, v, values, *positions)]


# batch, queries, keys, heads; the first step leaves all differences inside, the last most beyond
CASES = [((2, 5, 3, 2), 0.1), ((1, 1, 2, 3), 0.2), ((1, 70, 20, 1), 0.3), ((1, 3, 70, 2), 2.0)]


@pytest.mark.parametrize(("shape", "step"), CASES)
def test_equals_grid_sample(path, device, shape, step):
    inputs = tensors(*shape, device=device)
    assert_gradients_agree(lambda *x: bridging_attention(*x, step), lambda *x: by_grid_sample(*x, step), inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dtypes(path, device, dtype):
    """The table and the positions stay in float32. Gradients of a few values near the least would be huge, and off."""
    inputs = tensors(1, 18, 20, 2, dtype=dtype, device=device)
    inputs[3] = inputs[3].detach().abs().add(0.3).requires_grad_()
    assert inputs[3].dtype == torch.float32
    assert_gradients_agree(
        lambda *x: bridging_attention(*x, 0.1),
        lambda *x: by_grid_sample(*(y.double() for y in x), 0.1).to(dtype),
        inputs,
        dtype,
    )


def test_tables_of_more_digits(path, device):
    inputs = tensors(1, 4, 3, 2, device=device)
    for i in range(3):
        inputs[i] = inputs[i].detach().float().requires_grad_()
    out = bridging_attention(*inputs, 0.1)
    assert_agree("out", out.detach(), by_grid_sample(*inputs, 0.1).detach().float())


def test_several_blocks_and_shares(monkeypatch, device):
    monkeypatch.setattr(MODULE, "BLOCK", 1)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        inputs = tensors(3, 37, 5, 2, device=device)
        assert_gradients_agree(lambda *x: bridging_attention(*x, 0.1), lambda *x: by_grid_sample(*x, 0.1), inputs)
    finally:
        torch.set_num_threads(threads)


def test_programs_of_several_blocks(monkeypatch, triton_path, device):
    monkeypatch.setattr(MODULE, "PROGRAMS", 1)
    inputs = tensors(1, 130, 3, 1, device=device)
    assert_gradients_agree(lambda *x: bridging_attention(*x, 0.1), lambda *x: by_grid_sample(*x, 0.1), inputs)


def test_scale_of_zero_leaves_the_bias_alone(path, device):
    q, k, v, table, queries, keys = tensors(1, 4, 3, 2, device=device)
    out = bridging_attention(q, k, v, table, queries, keys, 0.1, scale=0)
    weight = location_bias(table, queries, keys, 0.1).exp()
    expected = (weight / weight.sum(-1, keepdim=True)) @ v.transpose(1, 2)
    assert_agree("out", out.detach(), expected.transpose(1, 2).detach())


def test_shifted_positions_change_nothing(path, device):
    q, k, v, table, queries, keys = tensors(1, 4, 3, 2, device=device)
    queries, keys = queries.detach().round(), keys.detach().round()
    out = bridging_attention(q, k, v, table, queries, keys, 0.25)
    assert torch.equal(out, bridging_attention(q, k, v, table, queries + 64, keys + 64, 0.25))
    assert not torch.allclose(out, bridging_attention(q, k, v, table, queries, keys + 4, 0.25))


def test_order_of_keys_changes_nothing(path, device):
    q, k, v, table, queries, keys = tensors(1, 4, 5, 2, device=device)
    order = torch.tensor([3, 1, 4, 0, 2], device=device)
    out = bridging_attention(q, k[:, order], v[:, order], table, queries, keys[:, order], 0.1)
    assert_agree("out", out.detach(), bridging_attention(q, k, v, table, queries, keys, 0.1).detach())


def test_borders_and_cells(path, device):
    """On a cell its value counts, beyond the border that of the border, below the least the least, with no gradient."""
    table = torch.arange(1.0, 10, device=device).view(1, 3, 3)
    table[0, 0, 0] = -1
    table.requires_grad_()
    middle = torch.tensor([[[10.0, 20.0]]], device=device)
    keys = torch.tensor([[[10.0, 20], [12, 20], [10, 22], [100, 20], [-90, -90], [11, 20]]], device=device)
    keys.requires_grad_()
    row = torch.zeros(1, 1, 1, 1, device=device)
    v = torch.eye(6, device=device).view(1, 6, 1, 6)
    weight = bridging_attention(row, row.expand(-1, 6, -1, -1), v, table, middle, keys, 0.5).flatten()
    values = torch.tensor([5, 6, 8, 6, 1e-6, 5.5], device=device)
    torch.testing.assert_close(weight, values / values.sum())
    grad_table, grad_keys = torch.autograd.grad(weight[0], [table, keys])
    assert grad_table[0, 0, 0] == 0
    assert grad_keys[0, :, 0].ne(0).tolist() == [True, False, True, False, False, True]


def test_differences_that_are_not_finite(device):
    """A trace does not look at positions: the loops must read inside the table all the same."""
    q, k, v, table, queries, keys = (x.detach() for x in tensors(1, 4, 3, 2, device=device))
    keys[0, 0] = torch.tensor([torch.nan, torch.inf])
    bridging_attention_op(q, k, v, table, queries, keys, 0.1, 1.0)


def test_strided(path, device):
    inputs = tensors(2, 5, 3, 2, depth=4, channels=4, device=device)
    packed = torch.randn(2, 3, 2, 2, 4, dtype=torch.float64, device=device)
    key_positions = inputs[5].detach().mT.contiguous().mT
    inputs = [
        inputs[0].detach().transpose(1, 2).contiguous().transpose(1, 2),
        packed[:, :, 0],
        packed[:, :, 1],
        inputs[3].detach().permute(1, 2, 0).contiguous().permute(2, 0, 1),
        inputs[4].detach()[:1].expand(2, -1, -1),
        key_positions,
    ]
    inputs = [x.requires_grad_() for x in inputs]
    assert_gradients_agree(lambda *x: bridging_attention(*x, 0.1), lambda *x: by_grid_sample(*x, 0.1), inputs)
    out = bridging_attention(*inputs, 0.1)  # a gradient that is one number, expanded
    expected = torch.autograd.grad(by_grid_sample(*inputs, 0.1).sum(), inputs)
    torch.testing.assert_close(torch.autograd.grad(out.sum(), inputs), expected)


@pytest.mark.parametrize("mode", ["reference", "auto"])
def test_gradcheck(monkeypatch, device, mode):
    monkeypatch.setenv("ATTLAS_KERNELS", mode)
    inputs = tensors(1, 3, 2, 2, 2, 2, device=device)
    assert torch.autograd.gradcheck(lambda *x: bridging_attention(*x, 0.1, 0.7), inputs)


def test_operators(path, device):
    inputs = [x.detach().requires_grad_() for x in tensors(1, 4, 3, 2, device=device)]
    torch.library.opcheck(bridging_attention_op, (*inputs, 0.1, 1.0))
    inputs = [x.detach() for x in inputs]
    out, lse = bridging_attention_op(*inputs, 0.1, 1.0)
    torch.library.opcheck(bridging_attention_backward_op, (torch.randn_like(out), *inputs, out, lse, 0.1, 1.0))


def test_compiles_to_one_graph(device):
    inputs = tensors(1, 4, 3, 2, device=device)
    compiled = torch.compile(lambda *x: bridging_attention(*x, 0.1), fullgraph=True, backend="aot_eager")
    assert_gradients_agree(compiled, lambda *x: bridging_attention(*x, 0.1), inputs)


def test_autocast_keeps_the_lookup_in_float32(device):
    inputs = tensors(1, 18, 20, 2, dtype=torch.bfloat16, device=device)
    with torch.autocast(device.type, torch.bfloat16):
        out = bridging_attention(*inputs, 0.1)
    assert torch.equal(out, bridging_attention(*inputs, 0.1))


def test_bad_arguments():
    q, k, v, table, queries, keys = (x.detach() for x in tensors(2, 4, 3, 2))
    for bad, message in [
        ((q[0], k, v, table, queries, keys, 1), r"q, k and v must have shape \(B, N or K, heads, channels\)"),
        ((q, k[:1], v, table, queries, keys, 1), r"q and k must agree in images, heads and channels"),
        ((q, k, v[:, 1:], table, queries, keys, 1), r"k and v must have one shape but for their last axis"),
        ((q[:, :0], k, v, table, queries, keys, 1), r"q, k and v must have no axis of length 0, got \(2, 0, 2, 5\)"),
        ((q, k, v, table[0], queries, keys, 1), r"table must have shape \(heads, Y, X\) with Y and X of 2 at least"),
        ((q, k, v, table[:, :1], queries, keys, 1), r"of 2 at least, got \(2, 1, 12\)"),
        ((q, k, v, table[:1], queries, keys, 1), r"table must have the 2 heads of q on its axis 0, got 1"),
        ((q, k, v, table, queries[:, :3], keys, 1), r"query_positions must have shape .* \(2, 4\), got \(2, 3, 2\)"),
        ((q, k, v, table, queries, keys[:1], 1), r"key_positions must have shape .* \(2, 3\), got \(1, 3, 2\)"),
        ((q, k, v, table, queries, keys * torch.nan, 1), r"key_positions must be finite"),
        ((q, k, v, table, queries, keys, 0), r"step must be positive and finite, got 0"),
        ((q, k, v, table, queries, keys, 1, -1), r"scale must be at least 0 and finite, got -1"),
    ]:
        with pytest.raises(ValueError, match=message):
            bridging_attention(*bad)
    for bad, message in [
        ((q.float(), k, v, table, queries, keys, 1), r"q, k and v must be of one floating-point dtype"),
        ((q, k, v, table.half(), queries, keys, 1), r"table must be float32 or float64 .* got torch\.float16"),
        ((q, k, v, table, queries.float(), keys, 1), r"query_positions must be in the dtype of table, torch\.float64"),
        ((q, k, v, table, queries, keys, "1"), r"step must be a number"),
    ]:
        with pytest.raises(TypeError, match=message):
            bridging_attention(*bad)
