import importlib

import pytest
import torch
import torch.nn.functional as F
from agreement import assert_agree, assert_gradients_agree

from attlas.kernels.halo_attention import (
    halo_attention,
    halo_attention_backward_op,
    halo_attention_op,
    window_attention,
)

# (B, H, W, heads), block, halo, stride, dtype: halos smaller and larger than the block, none; a block beyond a tile
CASES = [
    ((2, 4, 2, 1), 2, 1, 1, torch.bfloat16),
    ((1, 2, 6, 1), 2, 3, 2, torch.bfloat16),
    ((1, 4, 4, 1), 4, 0, 1, torch.float64),
    ((1, 3, 6, 1), 3, 1, 1, torch.float64),
    ((1, 1, 2, 2), 1, 1, 1, torch.float32),
    ((1, 9, 9, 1), 9, 4, 1, torch.float32),
]


def tensors(shape, block, halo, stride=1, depth=5, channels=7, dtype=torch.float64, device="cpu"):
    batch, height, width, heads = shape
    q = torch.randn(batch, height // stride, width // stride, heads, depth, dtype=torch.float64)
    k, v = torch.randn(*shape, depth, dtype=torch.float64), torch.randn(*shape, channels, dtype=torch.float64)
    tables = torch.randn(2, 2 * (block + 2 * halo) - 1, depth, dtype=torch.float64) / 2
    return [x.to(device, dtype) for x in (q, k, v, *tables)]


def by_definition(q, k, v, height_rel, width_rel, block, halo, scale=None, scale_position=False):
    """Query by query, with the window cut out of the padded map."""
    (batch, rows, columns, heads, depth), height = q.shape, k.shape[1]
    side, window, scale = block * rows // height, block + 2 * halo, depth**-0.5 if scale is None else scale
    k, v = (F.pad(x, (0, 0, 0, 0, halo, halo, halo, halo)) for x in (k, v))
    out = []
    for i in range(rows):
        for j in range(columns):
            top, left = i // side * block, j // side * block
            keys, values = (x[:, top : top + window, left : left + window] for x in (k, v))
            place = height_rel[window - 1 - i % side :][:window, None] + width_rel[window - 1 - j % side :][:window]
            place = (place * (scale if scale_position else 1)).unsqueeze(2)  # (win, win, 1, D)
            logits = (q[:, i, j, None, None] * (keys * scale + place)).sum(-1)
            weight = logits.flatten(1, 2).softmax(1).view_as(logits)
            out.append((weight.unsqueeze(-1) * values).sum((1, 2)))
    return torch.stack(out, 1).view(batch, rows, columns, heads, -1)


def leaves(inputs):
    return [x.requires_grad_() for x in inputs]


@pytest.mark.parametrize(("shape", "block", "halo", "stride", "dtype"), CASES)
def test_equals_the_sums(shape, block, halo, stride, dtype, path, device):
    inputs = leaves(tensors(shape, block, halo, stride, dtype=dtype, device=device))
    work = torch.promote_types(dtype, torch.float32)
    assert_gradients_agree(
        lambda *x: halo_attention(*x, block, halo),
        lambda *x: by_definition(*(y.to(work) for y in x), block, halo).to(dtype),
        inputs,
    )


@pytest.mark.parametrize("scale_position", [False, True])
def test_scales(scale_position, path, device):
    inputs = leaves(tensors((1, 2, 4, 1), 2, 1, device=device))
    function, expected = (lambda *x, f=f: f(*x, 2, 1, 0.3, scale_position) for f in (halo_attention, by_definition))
    assert_gradients_agree(function, expected, inputs)


def test_without_halo_it_is_attention_in_blocks(path, device):
    q, k, v, height_rel, width_rel = tensors((1, 4, 4, 2), 4, 0, device=device)
    out = halo_attention(q, k, v, 0 * height_rel, 0 * width_rel, 4, 0)
    full = F.scaled_dot_product_attention(*(x.flatten(1, 2).transpose(1, 2) for x in (q, k, v)))
    assert_agree("out", out, full.transpose(1, 2).reshape(v.shape))


def test_reach(path, device):
    """A pixel is seen by the blocks within `halo` pixels of it, and by no other."""
    inputs = tensors((1, 2, 8, 1), 2, 1, device=device)
    before = halo_attention(*inputs, 2, 1)
    inputs[1][:, 0, 3] += 1  # the second column of the second block: the third block's halo
    changed = (halo_attention(*inputs, 2, 1) != before).any(-1).any(1).squeeze()
    assert changed.tolist() == [False, False, True, True, True, True, False, False]


def test_strided(path, device):
    """Slices of one projection with the heads in front, and tables with a stride."""
    both = torch.randn(1, 2, 2, 4, 17, device=device, dtype=torch.float64).permute(0, 2, 3, 1, 4).requires_grad_()
    tables = torch.randn(2, 5, 7, device=device, dtype=torch.float64).mT.requires_grad_()

    def sliced(function):
        return lambda x, t: function(x[..., :5], x[..., 5:10], x[..., 10:], *t, 2, 1)

    assert_gradients_agree(sliced(halo_attention), sliced(by_definition), [both, tables])


def test_large_logits(path, device):
    """Weights far beyond what exp can hold."""
    q, *others = tensors((1, 2, 4, 1), 2, 1, dtype=torch.float32, device=device)
    inputs = leaves([100 * q, *others])
    out = halo_attention(*inputs, 2, 1)
    expected = by_definition(*(x.double() for x in inputs), 2, 1)
    assert_agree("out", out, expected.float(), torch.float16)  # the rounding of large logits shows
    gradients = torch.autograd.grad(out.sum(), inputs)
    assert all(x.isfinite().all() for x in gradients)


@pytest.mark.parametrize("block", [1, 150, 600, 2000])
def test_blocks(block, monkeypatch):
    """The CPU's path with one block at a time, two of a row, some rows of blocks, and some heads."""
    module = importlib.import_module("attlas.kernels.halo_attention")
    monkeypatch.setattr(module, "BLOCK", block)
    monkeypatch.setattr(module, "QUERIES", 1)
    inputs = leaves(tensors((2, 6, 6, 2), 2, 1))
    function, expected = (lambda *x, f=f: f(*x, 2, 1) for f in (halo_attention, by_definition))
    assert_gradients_agree(function, expected, inputs)


def test_autocast_keeps_dtypes(path, device):
    """The terms of place, too, are made in the dtype that q, k and v have."""
    inputs = tensors((1, 2, 4, 1), 2, 1, dtype=torch.float32, device=device)
    with torch.autocast(device.type, torch.bfloat16):
        out = halo_attention(*inputs, 2, 1)
    assert_agree("out", out, halo_attention(*inputs, 2, 1))


def test_no_images(path, device):
    inputs = leaves(tensors((0, 4, 4, 2), 2, 1, device=device))
    out = halo_attention(*inputs, 2, 1)
    assert out.shape == inputs[2].shape
    out.sum().backward()
    assert inputs[1].grad.shape == inputs[1].shape
    assert not inputs[3].grad.any()


def test_gradcheck(path, device):
    inputs = leaves(tensors((1, 2, 2, 1), 2, 1, 2, depth=2, channels=3, device=device))
    assert torch.autograd.gradcheck(lambda *x: halo_attention(*x, 2, 1), inputs, fast_mode=True)


def test_operators(path, device):
    q, k, v, *_ = tensors((1, 2, 2, 1), 2, 1, device=device)
    position = torch.randn(*q.shape[:-1], 8, dtype=q.dtype, device=device)
    bias = torch.randn(1, 4, 16, dtype=q.dtype, device=device)
    for terms in ((position, bias[..., :0]), (position[..., :0], bias)):
        arguments = (2, 1, 0, 0.5)
        out, lse = halo_attention_op(q, k, v, *terms, *arguments)
        torch.library.opcheck(halo_attention_backward_op, (out, q, k, v, *terms, out, lse, *arguments))
        torch.library.opcheck(halo_attention_op, (*leaves([x.detach() for x in (q, k, v, *terms)]), *arguments))


# --- with a bias for every pair --------------------------------------------------------------------------------------

# (B, H, W, heads), block, halo, shift, dtype; one window that is its own neighbor, windows of one pixel
WINDOWS = [
    ((2, 4, 6, 2), 2, 1, 0, torch.float64),
    ((2, 4, 6, 2), 2, 0, 1, torch.float64),
    ((1, 3, 3, 3), 3, 0, 2, torch.float32),
    ((1, 2, 3, 2), 1, 2, 0, torch.float32),
    ((2, 6, 3, 1), 3, 0, 1, torch.bfloat16),
    ((1, 10, 5, 1), 5, 2, 0, torch.float32),
]


def window_tensors(shape, block, halo, dtype=torch.float64, device="cpu"):
    q, k, v, *_ = tensors(shape, block, halo, dtype=dtype, device=device)
    return q, k, v, torch.randn(shape[3], block**2, (block + 2 * halo) ** 2, dtype=torch.float64).to(device, dtype)


def windows_by_definition(q, k, v, bias, block, halo, shift):
    """Query by query. A pixel beyond H - shift or W - shift comes from the other end of the map."""
    (batch, height, width, heads, depth), side = q.shape, block + 2 * halo
    k, v = (F.pad(x, (0, 0, 0, 0, halo, halo, halo, halo)) for x in (k, v))
    out = []
    for i in range(height):
        for j in range(width):
            top, left = i // block * block, j // block * block
            keys, values = (x[:, top : top + side, left : left + side] for x in (k, v))
            logits = (q[:, i, j, None, None] * keys).sum(-1) * depth**-0.5  # (B, win, win, heads)
            logits = logits + bias[:, i % block * block + j % block].unflatten(-1, (side, side)).permute(1, 2, 0)
            for u in range(side if shift else 0):
                for w in range(side):
                    ends = (
                        (i >= height - shift, top + u >= height - shift),
                        (j >= width - shift, left + w >= width - shift),
                    )
                    logits[:, u, w] -= 100 * sum(one != other for one, other in ends)
            weight = logits.flatten(1, 2).softmax(1).view_as(logits)
            out.append((weight.unsqueeze(-1) * values).sum((1, 2)))
    return torch.stack(out, 1).view(batch, height, width, heads, -1)


@pytest.mark.parametrize(("shape", "block", "halo", "shift", "dtype"), WINDOWS)
def test_windows_equal_the_sums(shape, block, halo, shift, dtype, path, device):
    inputs = leaves(window_tensors(shape, block, halo, dtype, device))
    work = torch.promote_types(dtype, torch.float32)
    assert_gradients_agree(
        lambda *x: window_attention(*x, block, halo, shift),
        lambda *x: windows_by_definition(*(y.to(work) for y in x), block, halo, shift).to(dtype),
        inputs,
    )


@pytest.mark.parametrize("block", [1, 150, 600, 2000])
@pytest.mark.parametrize(("halo", "shift"), [(1, 0), (0, 1)])
def test_blocks_of_windows(block, halo, shift, monkeypatch):
    module = importlib.import_module("attlas.kernels.halo_attention")
    monkeypatch.setattr(module, "BLOCK", block)
    monkeypatch.setattr(module, "QUERIES", 1)
    inputs = leaves(window_tensors((2, 6, 6, 2), 2, halo))
    function, expected = (lambda *x, f=f: f(*x, 2, halo, shift) for f in (window_attention, windows_by_definition))
    assert_gradients_agree(function, expected, inputs)


@pytest.mark.parametrize("heads", [1, 2])
def test_some_heads_at_a_time(heads, monkeypatch):
    """As of large maps on few threads: the same numbers."""
    module = importlib.import_module("attlas.kernels.halo_attention")
    q, k, v, bias = window_tensors((2, 6, 6, 3), 2, 1)
    tables = torch.randn(2, 7, q.shape[-1], dtype=q.dtype)
    expected = window_attention(q, k, v, bias, 2, 1), halo_attention(q, k, v, *tables, 2, 1)
    counted, some_heads = [], module._some_heads
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(module, "COPY", heads * q[..., 0, :].numel())
    monkeypatch.setattr(module, "_some_heads", lambda q, *x: counted.append(q.shape[3]) or some_heads(q, *x))
    got = window_attention(q, k, v, bias, 2, 1), halo_attention(q, k, v, *tables, 2, 1)
    assert counted == 2 * ([1, 1, 1] if heads == 1 else [2, 1])
    assert all(torch.equal(*pair) for pair in zip(got, expected))


def test_windows_of_no_image(path, device):
    inputs = leaves(window_tensors((0, 4, 4, 2), 2, 0, device=device))
    window_attention(*inputs, 2, 0, 1).sum().backward()
    assert not inputs[3].grad.any()


def test_windows_with_a_stride(path, device):
    """A coarser map of queries: those of the full map at these pixels."""
    q, k, v, bias = window_tensors((1, 4, 8, 1), 4, 1, device=device)
    rows = bias.unflatten(1, (4, 4))[:, ::2, ::2].flatten(1, 2)
    full = window_attention(q, k, v, bias, 4, 1)[:, ::2, ::2]
    assert_agree("out", window_attention(q[:, ::2, ::2], k, v, rows, 4, 1), full)


def test_bad_arguments_of_windows():
    q, k, v, bias = window_tensors((2, 4, 6, 3), 2, 1)
    with pytest.raises(ValueError, match=r"bias must have shape \(heads, Q, win²\) = \(3, 4, 16\), got \(2, 4, 16\)"):
        window_attention(q, k, v, bias[1:], 2, 1)
    with pytest.raises(ValueError, match="shift = 1 must be 0 with halo_size = 1 and stride 1"):
        window_attention(q, k, v, bias, 2, 1, 1)
    with pytest.raises(ValueError, match=r"shift must lie in 0\.\.1, got 2"):
        window_attention(q, k, v, bias[..., :4], 2, 0, 2)
    with pytest.raises(ValueError, match="multiples of block_size = 4, got 4 and 6"):
        window_attention(q, k, v, bias, 4)
    with pytest.raises(TypeError, match=r"bias must be floating point .*, got torch\.int64"):
        window_attention(q, k, v, bias.long(), 2, 1)


def test_bad_arguments():
    q, k, v, height_rel, width_rel = tensors((2, 4, 6, 3), 2, 1)
    tables = height_rel, width_rel
    with pytest.raises(ValueError, match=r"must have shape \(B, H, W, heads, channels\), got \(2, 4, 6, 15\)"):
        halo_attention(q.flatten(3), k, v, *tables, 2, 1)
    with pytest.raises(TypeError, match=r"one floating-point dtype, got torch\.float64, torch\.float32"):
        halo_attention(q, k.float(), v, *tables, 2, 1)
    with pytest.raises(ValueError, match=r"halo_size must lie in 0\.\.2147483647, got -1"):
        halo_attention(q, k, v, *tables, 2, -1)
    with pytest.raises(TypeError, match="block_size must be an integer, got '2'"):
        halo_attention(q, k, v, *tables, "2", 1)
    with pytest.raises(TypeError, match=r"halo_size must be an integer, got 1\.0"):
        halo_attention(q, k, v, *tables, 2, 1.0)
    with pytest.raises(TypeError, match="block_size must be an integer, got True"):
        halo_attention(q, k, v, *tables, True, 1)
    with pytest.raises(ValueError, match="scale must be at least 0 and finite, got nan"):
        halo_attention(q, k, v, *tables, 2, 1, float("nan"))
    with pytest.raises(ValueError, match="scale must be at least 0 and finite, got -1"):
        halo_attention(q, k, v, *tables, 2, 1, -1)
    with pytest.raises(TypeError, match="scale_position must be True or False, got 1"):
        halo_attention(q, k, v, *tables, 2, 1, scale_position=1)
    with pytest.raises(TypeError, match=r"height_rel must be floating point .*, got torch\.int64"):
        halo_attention(q, k, v, height_rel.long(), width_rel, 2, 1)
    with pytest.raises(ValueError, match="multiples of block_size = 4, got 4 and 6"):
        halo_attention(q, k, v, *tables, 4, 0)
    with pytest.raises(ValueError, match="a stride that divides block_size = 2, got 4 and 3"):
        halo_attention(q[:, :, ::2], k, v, *tables, 2, 1)
    with pytest.raises(ValueError, match="a stride that divides block_size = 1, got 2 and 3"):
        halo_attention(q[:, ::2, ::2], k, v, *tables, 1, 1)
    with pytest.raises(ValueError, match=r"width_rel must have shape \(2 win - 1, D\) = \(7, 5\) .* = 4, got \(6, 5\)"):
        halo_attention(q, k, v, height_rel, width_rel[1:], 2, 1)
