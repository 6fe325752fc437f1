import importlib

import pytest
import torch
from agreement import assert_agree, assert_gradients_agree
from golden_records import Record

from attlas.kernels.lightning_attention import (
    alibi_slopes,
    lightning_attention,
    lightning_attention_backward_op,
    lightning_attention_both_ways,
    lightning_attention_op,
    lightning_attention_reference,
    lightning_attention_step,
)

SLOPES = {"none": None, "some": [0.3, 0.0], "steep": [5.0, 1000.0]}


def by_recurrence(q, k, v, slopes, state):
    """Token after token, in the dtype of sums."""
    wide = torch.promote_types(q.dtype, torch.float32)
    fade = torch.ones(q.shape[1]) if slopes is None else slopes.neg().exp()
    fade = fade.to(q.device, wide)[:, None, None]
    kept = q.new_zeros(*q.shape[:2], q.shape[-1], v.shape[-1], dtype=wide) if state is None else state
    rows = []
    for i in range(q.shape[2]):
        kept = fade * kept + k[:, :, i, :, None].to(wide) * v[:, :, i, None].to(wide)
        rows.append((q[:, :, i, None].to(wide) @ kept).squeeze(2))
    return torch.stack(rows, 2).to(v.dtype), kept


def tensors(length, depth, width, dtype=torch.float64, device="cpu", heads=2, state=True, batch=1):
    torch.manual_seed(0)
    shapes = [(batch, heads, length, depth)] * 2 + [(batch, heads, length, width)]
    found = [torch.randn(shape, dtype=torch.float64).to(device, dtype).requires_grad_() for shape in shapes]
    if state:
        wide = torch.promote_types(dtype, torch.float32)
        found.append(torch.randn(batch, heads, depth, width, dtype=torch.float64).to(device, wide).requires_grad_())
    return found


def slopes_of(name, device="cpu"):
    return None if SLOPES[name] is None else torch.tensor(SLOPES[name], dtype=torch.float64, device=device)


def called(function, slopes):
    return lambda q, k, v, state=None: function(q, k, v, slopes, state)


@pytest.mark.parametrize(
    ("slopes", "batch", "length", "depth", "width"),
    [("none", 2, 1, 3, 2), ("some", 2, 70, 5, 7), ("steep", 1, 130, 1, 3), ("none", 1, 64, 2, 2)],
)
def test_equals_the_recurrence(path, device, slopes, batch, length, depth, width):
    slopes = slopes_of(slopes, device)
    inputs = tensors(length, depth, width, device=device, batch=batch)
    assert_gradients_agree(called(lightning_attention, slopes), called(by_recurrence, slopes), inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dtypes(path, device, dtype):
    slopes = slopes_of("some", device)
    inputs = tensors(67, 4, 3, dtype, device)
    assert_gradients_agree(called(lightning_attention, slopes), called(by_recurrence, slopes), inputs, dtype)


@pytest.mark.parametrize(("depth", "width"), [(40, 3), (3, 40)])
def test_heads_of_several_tiles(triton_path, device, monkeypatch, depth, width):
    """Channels of several launches, and values of several slices."""
    module = importlib.import_module("attlas.kernels.lightning_attention")
    monkeypatch.setattr(module, "CHANNELS", 16)
    monkeypatch.setattr(module, "tile_of", lambda length, at_most: 16)
    slopes = slopes_of("some", device)
    inputs = tensors(20, depth, width, device=device, batch=1)
    assert_gradients_agree(called(lightning_attention, slopes), called(by_recurrence, slopes), inputs)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("block", [1, 3, 64])
def test_any_block_gives_the_same(monkeypatch, block, reverse):
    monkeypatch.setattr(importlib.import_module("attlas.kernels.lightning_attention"), "BLOCK", block)
    q, k, v, state = tensors(20, 3, 4)
    inputs = q, k, v, slopes_of("some"), state, reverse
    for got, expected in zip(lightning_attention_op(*inputs), lightning_attention_reference(*inputs)):
        assert_agree("block", got.detach(), expected.detach())


def test_a_sequence_in_parts(path, device):
    """The state continues a sequence, and takes the gradient back into the part before."""
    slopes = slopes_of("some", device)

    def in_parts(q, k, v, state):
        rows = []
        for part in (slice(0, 7), slice(7, 7), slice(7, 90)):
            out, state = lightning_attention(q[:, :, part], k[:, :, part], v[:, :, part], slopes, state)
            rows.append(out)
        return torch.cat(rows, 2), state

    assert_gradients_agree(in_parts, called(lightning_attention, slopes), tensors(90, 4, 5, device=device))


@pytest.mark.parametrize("slopes", SLOPES)
def test_steps(device, slopes):
    """The recurrent step, from nothing on, makes the same outputs and state as the whole sequence."""
    slopes = slopes_of(slopes, device)
    q, k, v = tensors(9, 3, 4, device=device, state=False)
    state, rows = None, []
    for i in range(9):
        out, state = lightning_attention_step(q[:, :, i], k[:, :, i], v[:, :, i], state, slopes)
        rows.append(out)
    expected, last = lightning_attention(q, k, v, slopes)
    assert_agree("out", torch.stack(rows, 2).detach(), expected.detach())
    assert_agree("state", state.detach(), last.detach())


@pytest.mark.parametrize(("slopes", "length"), [("some", 1), ("none", 70), ("some", 70), ("steep", 3)])
def test_both_ways(path, device, slopes, length):
    slopes = slopes_of(slopes, device)

    def dense(q, k, v):
        places = torch.arange(length, device=device)
        distance = (places[:, None] - places).abs()
        decay = 1.0 if slopes is None else (-slopes[:, None, None] * distance).exp()
        return ((q @ k.mT) * decay) @ v

    def ours(q, k, v):
        return lightning_attention_both_ways(q, k, v, slopes)

    assert_gradients_agree(ours, dense, tensors(length, 3, 4, device=device, state=False))


def test_causality(path, device):
    """Exactly: what comes later, on a CPU infinities too, changes nothing."""
    path = "triton" if device.type == "cuda" else path
    q, k, v = (x.detach() for x in tensors(150, 4, 4, torch.float32, device, state=False))
    slopes = slopes_of("some", device)
    before, _ = lightning_attention(q, k, v, slopes)
    for at in (70, 149):
        for i, x in enumerate((q, k, v)):
            changed = x.clone()
            changed[:, :, at:] = torch.randn_like(changed[:, :, at:]) if path == "triton" else torch.inf
            out, _ = lightning_attention(*(changed if j == i else y for j, y in enumerate((q, k, v))), slopes)
            assert torch.equal(out[:, :, :at], before[:, :, :at])
            assert not torch.equal(out[:, :, at:], before[:, :, at:])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_at_64k_tokens(device, dtype):
    """The error is that of rounding the result once, however many tokens came before: sums are in float32."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 1, 65536, 4, device=device).to(dtype) for _ in range(3))
    v = v + 0.05  # a sum that grows
    out, state = lightning_attention(q, k, v)
    expected, last = lightning_attention(q.double(), k.double(), v.double())
    assert state.dtype == torch.float32
    assert_agree("out", out[:, :, -4096:].double(), expected[:, :, -4096:], dtype)
    assert_agree("state", state.double(), last, torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_rounds_no_sums(device, dtype):
    torch.manual_seed(0)
    q, k, v = (torch.rand(1, 2, 3000, 8, device=device) for _ in range(3))
    one = [x[:, :, 0] for x in (q, k, v)]
    state = torch.full((1, 2, 8, 8), 1e5, device=device)
    expected = *lightning_attention_step(*one, state), lightning_attention_both_ways(q, k, v)
    with torch.autocast(device if isinstance(device, str) else device.type, dtype):
        got = *lightning_attention_step(*one, state), lightning_attention_both_ways(q, k, v)
    for a, b in zip(got, expected):
        assert torch.equal(a, b)


def test_a_result_beyond_float16_is_infinite():
    q = k = torch.ones(1, 1, 65536, 2, dtype=torch.float16)
    out, state = lightning_attention(q, k, q)
    assert (out[0, 0, 32760 : 32768 - 16, 0] < torch.inf).all()
    assert out[0, 0, -1, 0] == torch.inf
    assert state[0, 0, 0, 0] == 65536


def test_memory_is_of_a_block():
    """Neither N x N weights nor a state for each token: what is allocated besides the result does not grow."""

    def bytes_allocated(length):
        q = torch.zeros(1, 1, length, 16)
        with torch.profiler.profile(profile_memory=True) as profile:
            lightning_attention(q, q, q)
        sizes = [event.self_cpu_memory_usage for event in profile.events()]
        return max(size for size in sizes if size != q.numel() * 4)

    assert bytes_allocated(1000) == bytes_allocated(5000) < 5000 * 16 * 4


def test_slopes():
    assert alibi_slopes(8).tolist() == [2.0**-n for n in range(1, 9)]
    torch.testing.assert_close(alibi_slopes(3), torch.tensor([2.0**-4, 2.0**-8, 2.0**-2]))
    torch.testing.assert_close(alibi_slopes(12)[8:], 2 ** -torch.tensor([0.5, 1.5, 2.5, 3.5]))
    assert alibi_slopes(1).tolist() == [2.0**-8]


@pytest.mark.parametrize("mode", ["reference", "auto"])
def test_gradcheck(monkeypatch, device, mode):
    monkeypatch.setenv("ATTLAS_KERNELS", mode)
    slopes = slopes_of("some", device)
    inputs = tensors(4, 2, 3, device=device, batch=1)
    assert torch.autograd.gradcheck(called(lightning_attention, slopes), inputs)


def test_operators(path, device):
    q, k, v, state = tensors(5, 2, 3, device=device, batch=1)
    slopes = slopes_of("some", device)
    torch.library.opcheck(lightning_attention_op, (q, k, v, slopes, state, False))
    given = [x.detach() for x in (v, state, q, k, v, slopes, state)]
    torch.library.opcheck(lightning_attention_backward_op, (*given, True))


def test_one_graph():
    torch.compiler.reset()
    inputs = tensors(5, 2, 3)
    function = called(lightning_attention, slopes_of("some"))
    compiled = torch.compile(function, backend="eager", fullgraph=True)
    assert_agree("out", compiled(*inputs)[0].detach(), function(*inputs)[0].detach())


@pytest.mark.parametrize("shape", [(0, 2, 3, 4, 5), (1, 0, 3, 4, 5), (1, 2, 0, 4, 5), (1, 2, 3, 0, 5), (1, 2, 3, 4, 0)])
def test_empty(path, device, shape):
    batch, heads, length, depth, width = shape
    inputs = tensors(length, depth, width, device=device, heads=heads, batch=batch)
    slopes = torch.full((heads,), 0.5, device=device)
    out, state = lightning_attention(*inputs[:3], slopes, inputs[3])
    assert out.shape == inputs[2].shape
    assert not out.detach().any()
    torch.testing.assert_close(state, inputs[3] * torch.tensor(-0.5 * length).exp().item())
    assert lightning_attention_both_ways(*inputs[:3], slopes).shape == out.shape
    grads = torch.autograd.grad((out.sum(), state.sum()), inputs)
    assert [grad.shape for grad in grads] == [x.shape for x in inputs]


def test_strides(path, device):
    """Heads of one projection, and gradients that are one number, expanded."""
    torch.manual_seed(0)
    rows = torch.randn(2, 70, 3, 2, 4, dtype=torch.float64, device=device, requires_grad=True)

    def ours(function):
        out, _ = function(*rows.permute(2, 0, 3, 1, 4), slopes_of("some", device), None)
        return out.detach(), *torch.autograd.grad(out.sum(), rows)

    for got, expected in zip(ours(lightning_attention), ours(by_recurrence)):
        assert_agree("strided", got, expected)


def test_bad_arguments():
    q, k, v, state = (x.detach() for x in tensors(5, 3, 4, batch=2))
    slopes = torch.ones(2)
    for bad, message in [
        ((q[0], k, v), r"q, k and v must have shape \(B, heads, N, channels\), got \(2, 5, 3\), \(2, 2, 5, 3\)"),
        ((q[:, :, :4], k, v), r"q and k must have one shape, got \(2, 2, 4, 3\) and \(2, 2, 5, 3\)"),
        ((q, k, v[:, :, 1:]), "q, k and v must agree in all but their channels"),
        ((q, k, v, slopes[:1]), r"slopes must have shape \(heads,\), here \(2,\), got \(1,\)"),
        ((q, k, v, -slopes), r"slopes must be finite and at least 0, got \[-1\.0, -1\.0\]"),
        ((q, k, v, slopes * torch.nan), "slopes must be finite and at least 0"),
        ((q, k, v, slopes.clone().requires_grad_()), "slopes must not require a gradient"),
        ((q, k, v, slopes, state.mT), r"state must have shape \(B, heads, d, e\), here \(2, 2, 3, 4\), got"),
    ]:
        with pytest.raises(ValueError, match=message):
            lightning_attention(*bad)
    for bad, message in [
        ((q.half(), k, v), "q, k and v must be of one floating-point dtype"),
        ((q, k, v, slopes.half()), r"slopes must be float32 or float64 \(powers need the digits\), got torch\.float16"),
        (
            (q.half(), k.half(), v.half(), None, state),
            r"state must be torch\.float32, the dtype of sums of torch\.float1",
        ),
        ((q, k, v, None, 3), "state must be a tensor"),
    ]:
        with pytest.raises(TypeError, match=message):
            lightning_attention(*bad)
    with pytest.raises(ValueError, match=r"q, k and v must have shape \(B, heads, channels\)"):
        lightning_attention_step(q, k, v)
    with pytest.raises(ValueError, match=r"heads must lie in 1\.\."):
        alibi_slopes(0)


@pytest.mark.parametrize("name", ["op-decay", "op-no-decay", "op-blocks"])
def test_equals_the_authors(path, device, name):
    """Their outputs and gradients, on all paths; heads of no power of two and a last block that is not full."""
    record = Record(f"lightning-attention/{name}")
    inputs = {key: x.to(device, torch.float32) for key, x in record.inputs.items()}
    q, k, v = (inputs[key].requires_grad_() for key in "qkv")
    slopes = record.arrays["slopes"].flatten().to(device) if record.config["decay"] else None
    if slopes is not None:
        torch.testing.assert_close(alibi_slopes(len(slopes)).to(device), slopes)
    out, _ = lightning_attention(q, k, v, slopes)
    for number, got in enumerate((out.detach(), *torch.autograd.grad(out, (q, k, v), inputs["do"]))):
        expected = record.output(number).to(device)
        assert (got - expected).abs().max() < 2e-6 * expected.abs().max()
