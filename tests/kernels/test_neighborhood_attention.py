import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from agreement import assert_agree, assert_gradients_agree

from attlas.kernels.neighborhood_attention import (
    axis_queries,
    axis_windows,
    neighborhood_attention,
    neighborhood_attention_backward_op,
    neighborhood_attention_op,
)


def axis_keys(i, length, kernel, dilation, stride, causal, cut=False):
    """The keys of query i of an axis, by the rule as NATTEN's kernels write it, or without those beyond the ends."""
    group, j = i % dilation, i // dilation
    n = math.ceil((length - group) / dilation)
    if causal:
        leader = min(j // stride * stride + stride - 1, n - 1)
        start, end = max(leader - kernel + 1, 0), j + 1
    else:
        leader = min(j // stride * stride + stride // 2, n - 1)
        left, right = kernel // 2, kernel // 2 + kernel % 2 - 1
        if cut:
            return [group + dilation * t for t in range(leader - left, leader + right + 1) if 0 <= t < n]
        start = max(leader - left, 0) + (leader + right >= n) * (n - right - leader - 1)
        end = start + kernel
    return [group + dilation * t for t in range(start, end)]


def settings_per_axis(axes, kernel_size, dilation=1, stride=1, is_causal=False, border="move"):
    settings = (kernel_size, dilation, stride, is_causal, border == "cut")
    return list(zip(*(x if isinstance(x, tuple) else (x,) * axes for x in settings)))


def window_mask(lengths, **settings):
    """(N, N): which keys each query sees."""
    mask = torch.ones(1, 1, dtype=torch.bool)
    for length, axis in zip(lengths, settings_per_axis(len(lengths), **settings)):
        axis_mask = torch.zeros(length, length, dtype=torch.bool)
        for i in range(length):
            axis_mask[i, axis_keys(i, length, *axis)] = True
        mask = torch.kron(mask, axis_mask)
    return mask


def dense_bias(bias, lengths, **settings):
    """(H, N, N): the bias of every pair, any number where a query does not see a key."""
    index = torch.zeros(1, 1, dtype=torch.long)
    for length, (kernel, dilation, *_) in zip(lengths, settings_per_axis(len(lengths), **settings)):
        i = torch.arange(length) // dilation
        relative = (i - i.unsqueeze(1) + kernel - 1).clamp(0, 2 * kernel - 2)
        index = (index[:, None, :, None] * (2 * kernel - 1) + relative[None, :, None, :]).flatten(2).flatten(0, 1)
    return bias.flatten(1)[:, index.to(bias.device)]


def by_definition(q, k, v, bias=None, scale=None, extra=None, **settings):
    """Attention among all tokens, and the extra ones, with a mask: (out, lse)."""
    lengths, wide = q.shape[1:-2], torch.promote_types(q.dtype, torch.float32)
    flat_q, flat_k, flat_v = (x.flatten(1, -3).transpose(1, 2).to(wide) for x in (q, k, v))
    logits = flat_q @ flat_k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    if bias is not None:
        logits = logits + dense_bias(bias.to(wide), lengths, **settings)
    logits = logits.masked_fill(~window_mask(lengths, **settings).to(q.device), -torch.inf)
    if extra is not None:
        extra_k, extra_v = (x.transpose(1, 2).to(wide) for x in extra)
        more = flat_q @ extra_k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
        logits, flat_v = torch.cat([logits, more], -1), torch.cat([flat_v, extra_v], -2)
    out = (logits.softmax(-1) @ flat_v).transpose(1, 2).reshape(v.shape)
    return out.to(v.dtype), logits.logsumexp(-1).transpose(1, 2).reshape(v.shape[:-1])


def tensors(lengths, dtype=torch.float64, device="cpu", batch=1, heads=2, width=3, channels=5):
    shapes = [(batch, *lengths, heads, x) for x in (width, width, channels)]
    return [torch.randn(shape, dtype=torch.float64).to(device, dtype).requires_grad_() for shape in shapes]


def bias_for(lengths, settings, dtype=torch.float64, device="cpu", heads=2):
    shape = [2 * kernel - 1 for kernel, *_ in settings_per_axis(len(lengths), **settings)]
    return torch.randn(heads, *shape, dtype=torch.float64).to(device, dtype).requires_grad_()


# lengths that no dilation and no stride divides; even kernels; windows that are as wide as the axis
CASES = [
    ((7,), dict(kernel_size=3), False),
    ((11,), dict(kernel_size=4, dilation=2, stride=3), True),
    ((13,), dict(kernel_size=4, dilation=2, stride=3, is_causal=True), False),
    ((17,), dict(kernel_size=5, stride=5), False),
    ((5, 7), dict(kernel_size=(2, 3), dilation=(2, 1), is_causal=(False, True)), False),
    ((5, 6), dict(kernel_size=(3, 2), dilation=(1, 3)), True),
    ((3, 4), dict(kernel_size=(3, 4)), False),
    ((3, 2, 4), dict(kernel_size=2, dilation=(1, 1, 2), is_causal=(True, False, False)), False),
    ((2, 3, 2), dict(kernel_size=2, stride=(2, 1, 1)), False),
    ((2, 2, 2), dict(kernel_size=2), True),
    ((6,), dict(kernel_size=1, dilation=2), True),
    ((7,), dict(kernel_size=4, dilation=3, border="cut"), True),
    ((4, 5), dict(kernel_size=(3, 5), dilation=(2, 1), border="cut"), True),
    ((5, 4), dict(kernel_size=(3, 2), stride=(3, 1), is_causal=(False, True), border="cut"), False),
    ((2, 3, 2), dict(kernel_size=(5, 1, 3), dilation=(1, 4, 1), border="cut"), False),
]


@pytest.mark.parametrize(("lengths", "settings", "has_bias"), CASES)
def test_equals_masked_attention(path, device, lengths, settings, has_bias):
    """Outputs, logarithms and all gradients, also those that come through the logarithms."""
    batch, heads = [(2, 2), (1, 2), (1, 1)][len(lengths) - 1]  # no more than Triton's interpreter has patience for
    inputs = tensors(lengths, device=device, batch=batch, heads=heads)
    inputs += [bias_for(lengths, settings, device=device, heads=heads)] if has_bias else []
    assert_gradients_agree(
        lambda q, k, v, bias=None: neighborhood_attention(q, k, v, bias=bias, return_lse=True, **settings),
        lambda *x: by_definition(*x, **settings),
        inputs,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtypes(path, device, dtype):
    lengths, settings = (5, 6), dict(kernel_size=(2, 3), dilation=(1, 2))
    inputs = [
        *tensors(lengths, dtype, device, width=8, channels=8),
        bias_for(lengths, settings, torch.float32, device),
    ]
    function = lambda q, k, v, bias: neighborhood_attention(  # noqa: E731
        q, k, v, bias=bias, scale=0.7, return_lse=True, **settings
    )
    out, lse = function(*inputs)
    assert out.dtype == dtype
    assert lse.dtype == torch.float32
    assert_gradients_agree(function, lambda *x: by_definition(*x, scale=0.7, **settings), inputs, dtype)


@pytest.mark.parametrize("settings", [dict(kernel_size=2), dict(kernel_size=(3, 4))])
def test_extra_tokens(path, device, settings):
    """Also where the window is the whole image."""
    inputs = [*tensors((3, 4), device=device), *(x[:, 0] for x in tensors((1, 2), device=device)[1:])]
    assert_gradients_agree(
        lambda q, k, v, *extra: neighborhood_attention(
            q, k, v, extra_keys=extra[0], extra_values=extra[1], return_lse=True, **settings
        ),
        lambda q, k, v, *extra: by_definition(q, k, v, extra=extra, **settings),
        inputs,
    )


def test_whole_image_is_plain_attention(path, device):
    q, k, v = tensors((3, 4), device=device)
    got = neighborhood_attention(q, k, v, (3, 4), scale=0.3)
    heads_first = [x.flatten(1, 2).transpose(1, 2) for x in (q, k, v)]
    expected = F.scaled_dot_product_attention(*heads_first, scale=0.3).transpose(1, 2).reshape(v.shape)
    assert_agree("out", got.detach(), expected.detach())
    assert_agree("out beside lse", neighborhood_attention(q, k, v, (3, 4), scale=0.3, return_lse=True)[0], expected)
    assert got.is_contiguous()


def test_blocks(path, device):
    """A stride of the kernel's size is attention in blocks."""
    q, k, v = (x.detach() for x in tensors((6, 4), device=device))
    blocks = [x.unflatten(2, (2, 2)).unflatten(1, (2, 3)).permute(0, 1, 3, 5, 2, 4, 6).flatten(4, 5) for x in (q, k, v)]
    expected = F.scaled_dot_product_attention(*blocks).unflatten(4, (3, 2)).permute(0, 1, 4, 2, 5, 3, 6)
    assert_agree("out", neighborhood_attention(q, k, v, (3, 2), stride=(3, 2)), expected.reshape(v.shape))


def test_every_query_sees_its_window(path, device):
    """One-hot values show the keys: κ² of the query's own dilation groups, which share none with other groups."""
    lengths, kernel, dilation = (5, 7), (2, 3), (2, 2)
    q, k, _ = tensors(lengths, device=device, batch=1, heads=1)
    v = torch.eye(35, dtype=torch.float64, device=device).view(1, *lengths, 1, 35)
    seen = neighborhood_attention(q, k, v, kernel, dilation=dilation).view(35, 35) > 0
    assert (seen.sum(1) == 6).all()
    x, y = torch.arange(35) // 7 % 2, torch.arange(35) % 7 % 2
    group = (2 * x + y).to(device)
    assert not (seen & (group != group.unsqueeze(1))).any()


def test_follows_translation(path, device):
    """Away from the borders the attention moves with the image."""
    image = [torch.randn(1, 6, 6, 1, 4, dtype=torch.float64, device=device) for _ in range(3)]
    bias = torch.randn(1, 5, 5, dtype=torch.float64, device=device)
    here, there = (
        neighborhood_attention(*(x[:, i : i + 5, i : i + 5] for x in image), 3, bias=bias)[:, 1:-1, 1:-1]
        for i in (0, 1)
    )
    assert_agree("out", here[:, 1:, 1:], there[:, :-1, :-1])


def test_memory_does_not_grow_with_the_kernel(path, device):
    def saved(kernel_size):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: (sizes.append(x.numel()), x)[1], lambda x: x):
            neighborhood_attention(*tensors((6,), device=device), kernel_size)
        return sum(sizes)

    assert saved(2) == saved(5) > 0


def test_cut_windows_are_those_of_a_convolution(path, device):
    """Of zeros all weights are alike: the number of pixels in the window divides their sum, at any size of a map."""
    for lengths in ((4, 6), (1, 2)):
        v = torch.randn(1, 3, *lengths, dtype=torch.float64, device=device)
        q = torch.zeros(1, *lengths, 1, 2, dtype=torch.float64, device=device)
        got, lse = neighborhood_attention(
            q, q, v.permute(0, 2, 3, 1).unsqueeze(3), (3, 5), dilation=(1, 2), border="cut", return_lse=True
        )
        ones = torch.ones(3, 1, 3, 5, dtype=torch.float64, device=device)
        sums, counts = (F.conv2d(x, ones, padding=(1, 4), dilation=(1, 2), groups=3) for x in (v, torch.ones_like(v)))
        assert_agree("out", got.squeeze(3).permute(0, 3, 1, 2), sums / counts)
        assert_agree("lse", lse.squeeze(3), counts[:, 0].log())


@pytest.mark.parametrize(("causal", "cut"), [(False, False), (True, False), (False, True)])
def test_inverse_windows(causal, cut):
    """The queries of a key are those whose window holds it."""
    for length, dilation in itertools.product((5, 12, 17), (1, 2, 4)):
        for kernel in range(1, length + 2 if cut else length // dilation + 1):
            for stride in {1, min(2, kernel), kernel - 1, kernel} - {0}:
                axis = (length, kernel, dilation, stride, causal, cut)
                keys = [axis_keys(i, *axis) for i in range(length)]
                first, count, relative = (x.tolist() for x in axis_windows(*axis))
                assert [list(range(a, a + n * dilation, dilation)) for a, n in zip(first, count)] == keys
                for key, (start, number, place) in enumerate(axis_queries(*axis)):
                    queries = [int(start) + i * dilation for i in range(number)]
                    assert queries == [i for i in range(length) if key in keys[i]]
                    for i, query in enumerate(queries):
                        assert place - i == relative[query] + keys[query].index(key)


def test_strided(path, device):
    q, k, v = (x.detach() for x in tensors((5, 4), device=device))
    qkv = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    assert not qkv[0].is_contiguous()
    assert_agree("out", neighborhood_attention(*qkv, 3), by_definition(q, k, v, kernel_size=3)[0])


def test_permuted(path, device):
    """Gradients of tensors whose axes have another order in memory, the bias among them."""
    settings = dict(kernel_size=(2, 3))
    inputs = [*tensors((3, 3), device=device), bias_for((3, 3), settings, device=device)]
    assert_gradients_agree(
        lambda q, k, v, bias: neighborhood_attention(q, k, v, bias=bias, **settings),
        lambda *x: by_definition(*x, **settings)[0],
        [permuted(x).requires_grad_() for x in inputs],
    )


def test_sliced_from_one_tensor(path, device):
    """As a network has them: q, k and v of one projection."""
    qkv = torch.randn(1, 3, 4, 3, 2, 4, dtype=torch.float64, device=device, requires_grad=True)
    assert_gradients_agree(
        lambda x: neighborhood_attention(*x.unbind(3), 3),
        lambda x: by_definition(*x.unbind(3), kernel_size=3)[0],
        [qkv],
    )


@pytest.mark.parametrize("masked", [(slice(2), slice(None)), (1, 1), (2, 2)])  # the first keys; one; the query itself
def test_infinite_bias(path, device, masked):
    """A bias of -inf hides keys, also the first ones of a window."""
    lengths, settings = (4, 4), dict(kernel_size=3)
    q, k, v = tensors(lengths, device=device, heads=1)
    bias = torch.zeros(1, 5, 5, dtype=torch.float64, device=device)
    bias[0][masked] = -torch.inf
    # the windows are clamped: where they hold no other key the result is not defined, and must be so on all paths
    expected, _ = by_definition(q, k, v, bias, **settings)
    defined = expected.detach().isfinite().all(-1, keepdim=True)
    assert defined.any()
    assert_gradients_agree(
        lambda q, k, v: neighborhood_attention(q, k, v, 3, bias=bias)[defined.expand_as(v)],
        lambda q, k, v: by_definition(q, k, v, bias, **settings)[0][defined.expand_as(v)],
        [q, k, v],
    )


@pytest.mark.parametrize("kernel_size", [3, 4])
def test_autocast_keeps_dtypes(path, device, kernel_size):
    """Also where the window is the whole map, which PyTorch's operator serves."""
    inputs = [x.detach() for x in tensors((4, 4), torch.float32, device)]
    with torch.autocast(device.type, torch.bfloat16):
        out = neighborhood_attention(*inputs, kernel_size)
    assert_agree("out", out, neighborhood_attention(*inputs, kernel_size))


def test_whole_image_on_meta():
    q = torch.empty(1, 4, 4, 2, 3, device="meta")
    assert neighborhood_attention(q, q, q, 4).shape == q.shape


def test_gradcheck(path, device):
    bias = bias_for((4,), dict(kernel_size=2), heads=1, device=device)
    inputs = [*tensors((4,), heads=1, width=2, channels=1, device=device), bias]
    function = lambda q, k, v, bias: neighborhood_attention(q, k, v, 2, bias=bias, return_lse=True)  # noqa: E731
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)


def permuted(x):
    """The same numbers, with the axes in reverse order in memory."""
    reverse = tuple(range(x.ndim))[::-1]
    return x.detach().permute(reverse).contiguous().permute(reverse)


@pytest.mark.parametrize(("has_bias", "permute"), [(False, False), (True, False), (True, True)])
def test_operators(path, device, has_bias, permute):
    """Outputs are contiguous, as the fake operators promise, also for inputs that are not."""
    q, k, v = tensors((5, 1, 1), batch=2 if permute else 1, heads=1, device=device)
    bias = torch.randn(1, 3, 1, 1, dtype=torch.float64, device=device, requires_grad=True) if has_bias else None
    if permute:
        q, k, v = (permuted(x).requires_grad_() for x in (q, k, v))
        assert not q.is_contiguous()
    settings = ([2, 1, 1], [2, 1, 1], [2, 1, 1], [False, False, False], False, 0.5)
    torch.library.opcheck(neighborhood_attention_op, (q, k, v, bias, *settings))
    inputs = [x if x is None else x.detach() for x in (q, k, v, bias)]
    out, lse = neighborhood_attention_op(*inputs, *settings)
    arguments = (torch.randn_like(out), *inputs, lse, torch.randn_like(lse), *settings)
    torch.library.opcheck(neighborhood_attention_backward_op, arguments)


def test_no_images(path, device):
    q, k, v = tensors((4,), batch=0, device=device)
    out = neighborhood_attention(q, k, v, 3)
    out.sum().backward()
    assert out.shape == v.shape
    assert q.grad.shape == q.shape


def test_bad_arguments():
    q, k, v = tensors((5, 6))
    bias = torch.zeros(2, 5, 5, dtype=torch.float64)

    def refused(error, match, *args, **options):
        with pytest.raises(error, match=match):
            neighborhood_attention(*args, **options)

    refused(ValueError, "q and k must have one shape", q, k[:, 1:], v, 3)
    refused(ValueError, "with 1 to 3 spatial axes", q[:, 0, 0], k[:, 0, 0], v[:, 0, 0], 3)
    refused(ValueError, r"D of at least 1, got \(1, 5, 6, 2, 0\)", q[..., :0], k[..., :0], v, 3)
    refused(TypeError, "q, k and v must be of one floating-point dtype", q, k.float(), v, 3)
    refused(ValueError, r"kernel_size must be one int, or one for each of 2 spatial axes, got \(3,\)", q, k, v, (3,))
    refused(ValueError, "dilation must be one int", q, k, v, 3, dilation=1.0)
    refused(ValueError, "is_causal must be one bool", q, k, v, 3, is_causal=1)
    refused(ValueError, "kernel_size must be at least 1, got 0 on spatial axis 1", q, k, v, (3, 0))
    refused(ValueError, r"border must be one of \('move', 'cut'\), got 'zero'", q, k, v, 3, border="zero")
    refused(ValueError, "dilation must be at least 1, got 0 on spatial axis 0", q, k, v, 3, dilation=(0, 1))
    long = r"got 3 \* 2 = 6 on spatial axis 0 of length 5: pad the input, cut the windows, or use at most dilation 1"
    refused(ValueError, long, q, k, v, 3, dilation=2)
    refused(ValueError, "on spatial axis 1 of length 6: .* at most kernel_size 6", q, k, v, (5, 7))
    refused(ValueError, r"stride must lie in 1\.\.kernel_size = 3, got 4 on spatial axis 1", q, k, v, 3, stride=(1, 4))
    refused(ValueError, "bias must be None with a causal axis", q, k, v, 3, bias=bias, is_causal=(True, False))
    refused(ValueError, r"= \(2, 5, 9\), got \(2, 5, 5\)", q, k, v, (3, 5), bias=bias)
    refused(TypeError, "bias must be floating point", q, k, v, 3, bias=bias.long())
    refused(ValueError, "scale must be at least 0 and finite, got inf", q, k, v, 3, scale=math.inf)
    refused(ValueError, "scale must be at least 0 and finite, got nan", q, k, v, 3, scale=math.nan)
    refused(TypeError, r"scale must be a number, got a tensor of shape \(\)", q, k, v, 3, scale=torch.tensor(1.0))
    refused(TypeError, "q must be a tensor, got None", None, k, v, 3)
    refused(ValueError, "given together", q, k, v, 3, extra_keys=k[:, 0, :2])
    extra = dict(extra_keys=k[:, 0], extra_values=v[:, 0, :2])
    refused(ValueError, r"extra_values must have shape \(1, M, 2, 5\)", q, k, v, 3, **extra)
    extra = dict(extra_keys=k[:, 0].float(), extra_values=v[:, 0])
    refused(TypeError, "extra_keys must be torch.float64", q, k, v, 3, **extra)
