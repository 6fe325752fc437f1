import importlib
import math

import pytest
import torch
import torch.nn.functional as F
from agreement import assert_agree, assert_gradients_agree
from torch.utils._python_dispatch import TorchDispatchMode

from attlas.kernels.nprf_attention import log_features, nprf_attention, nprf_attention_backward_op, nprf_attention_op

MODULE = importlib.import_module("attlas.kernels.nprf_attention")


def distances(grid, heads, bias):
    """bias of (place of the key - place of the query), written out: (heads, N, N)."""
    places = torch.cartesian_prod(*(torch.arange(n) for n in grid)).view(-1, len(grid))
    index = places[None] - places[:, None] + torch.tensor(grid) - 1
    return torch.stack([bias[h][tuple(index.unbind(-1))] for h in range(heads)])


def by_definition(grid, causal=False):
    """With all weights, the class tokens' among them."""

    def function(q, k, v, features, bias, token_bias=None):
        wide = torch.promote_types(q.dtype, torch.float32)
        heads, places = q.shape[1], math.prod(grid)
        tokens = q.shape[2] - places
        q_hat, k_hat = (x.to(wide) / x.to(wide).norm(dim=-1, keepdim=True) for x in (q, k))
        phi = [(x @ features.to(wide).mT - 0.5).exp() / features.shape[-2] ** 0.5 for x in (q_hat, k_hat)]
        all_biases = distances(grid, heads, bias.to(wide))
        if causal:
            all_biases = all_biases + torch.full((places, places), -torch.inf).triu(1)
        if tokens:
            of_token, of_place, of_tokens = token_bias.to(wide)[:, :, None, None].unbind(1)
            above = torch.cat([of_tokens.expand(-1, tokens, tokens), of_place.expand(-1, tokens, places)], 2)
            below = torch.cat([of_token.expand(-1, places, tokens), all_biases], 2)
            all_biases = torch.cat([above, below], 1)
        weights = all_biases.exp() * (phi[0] @ phi[1].mT)
        return (weights / weights.sum(-1, keepdim=True) @ v.to(wide)).to(v.dtype)

    return function


def ours(causal=False, form="auto"):
    return lambda *tensors: nprf_attention(*tensors, causal=causal, form=form)


def tensors(grid, tokens=0, m=5, dim=4, channels=3, dtype=torch.float64, per_head=False, heads=2):
    torch.manual_seed(0)
    shape = 2, heads, tokens + math.prod(grid)
    made = [torch.randn(*shape, n, dtype=torch.float64) for n in (dim, dim, channels)]
    made.append(torch.randn(*([heads] if per_head else []), m, dim, dtype=torch.float64))
    made.append(torch.randn(heads, *(2 * n - 1 for n in grid), dtype=torch.float64))
    if tokens:
        made.append(torch.randn(heads, 3, dtype=torch.float64))
    return [x.to(dtype).requires_grad_() for x in made]


CASES = [
    ((11,), 0, False),
    ((11,), 0, True),
    ((3, 5), 0, False),
    ((4, 2), 0, True),
    ((3, 4), 2, False),
]


@pytest.mark.parametrize("form", ["auto", "fft", "dense"])
@pytest.mark.parametrize(("grid", "tokens", "causal"), CASES)
def test_equals_the_definition(path, grid, tokens, causal, form):
    given = tensors(grid, tokens, per_head=tokens > 0)
    assert_gradients_agree(ours(causal, form), by_definition(grid, causal), given)


@pytest.mark.parametrize("buffer", [1, 300, 1 << 18])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("grid", [(67,), (9, 7)])
def test_forms_agree_to_the_last_digits(grid, causal, buffer, monkeypatch):
    """In parts of any size."""
    monkeypatch.setattr(MODULE, "BUFFER", buffer)
    monkeypatch.setattr(MODULE, "FEWEST", 1)
    given = tensors(grid, m=9, channels=6)
    results = []
    for form in ("fft", "dense"):
        out = nprf_attention(*given, causal=causal, form=form)
        results.append([out.detach(), *torch.autograd.grad(out.square().sum(), given)])
    for by_fft, dense in zip(*results):
        torch.testing.assert_close(by_fft, dense, atol=1e-12 * max(1.0, dense.abs().max().item()), rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("form", ["fft", "dense"])
def test_dtypes(form, dtype):
    assert_gradients_agree(ours(form=form), by_definition((3, 5)), tensors((3, 5), dtype=dtype))


def test_half_types_are_summed_in_float32():
    """4,096 equal weights: bfloat16 would count to 256."""
    q, k, _ = torch.randn(3, 1, 1, 4096, 8).bfloat16()
    features, bias = torch.randn(16, 8), torch.zeros(1, 8191)
    out = nprf_attention(q, k, torch.ones(1, 1, 4096, 2).bfloat16(), features, bias, form="fft")
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, torch.ones_like(out))
    with torch.autocast("cpu", torch.bfloat16):
        exact = nprf_attention(q.float(), k.float(), q.float(), features, bias)
    torch.testing.assert_close(exact, nprf_attention(q.float(), k.float(), q.float(), features, bias))


@pytest.mark.parametrize("form", ["fft", "dense"])
@pytest.mark.parametrize("causal", [False, True])
def test_weights_are_shares(causal, form):
    q, k, v, features, bias = tensors((4, 5))
    out = nprf_attention(q, k, torch.ones_like(v), features, bias, causal=causal, form=form)
    torch.testing.assert_close(out, torch.ones_like(out))
    weights = torch.autograd.functional.jacobian(
        lambda v: nprf_attention(q, k, v, features, bias, causal=causal, form=form)[0, 0, :, 0], v
    )[:, 0, 0, :, 0]
    seen = torch.ones(20, 20).tril() if causal else torch.ones(20, 20)
    assert (weights[seen.bool()] > 1e-9).all()  # every place that may be seen is
    assert not causal or weights[~seen.bool()].abs().max() < 1e-15


@pytest.mark.parametrize("form", ["auto", "fft", "dense"])
@pytest.mark.parametrize("own", [-5.0, -12.0])
def test_causal_in_float32_is_exact_for_the_first_places(form, own):
    """They see little, and a transform's rounding is that of those that see most."""
    q, k, v, features, bias = (x.detach() for x in tensors((1500,), m=8, dim=32, channels=2))
    bias.zero_()[:, 1499] = own
    expected = nprf_attention(q, k, v, features, bias, causal=True, form="dense")
    got = nprf_attention(*(x.float() for x in (q, k, v, features, bias)), causal=True, form=form)
    torch.testing.assert_close(got.double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("form", ["fft", "dense"])
def test_causal_biases_of_what_is_behind_never_matter(form):
    q, k, v, features, bias = tensors((3, 4), dtype=torch.float32)
    expected = nprf_attention(q, k, v, features, bias, causal=True, form=form)
    for value in (60.0, torch.inf, torch.nan):
        other = bias.detach().clone()
        other[:, 3:] = other[:, 2, 4:] = value
        other.requires_grad_()
        out = nprf_attention(q, k, v, features, other, causal=True, form=form)
        torch.testing.assert_close(out, expected, atol=1e-6, rtol=0)
        (grad,) = torch.autograd.grad(out.square().sum(), other)
        assert not grad[:, 3:].any()
        assert grad.isfinite().all()


def test_compiled_biases_of_any_span():
    """Nobody looks at values there: sums are in float64."""
    torch.compiler.reset()
    q, k, v, features, bias = (x.detach() for x in tensors((40,)))
    bias[:, :39], bias[:, 40:] = 25.0, 0.0
    compiled = torch.compile(ours(form="fft"), backend="eager", fullgraph=True)
    expected = nprf_attention(q, k, v, features, bias, form="dense")
    got = compiled(*(x.float() for x in (q, k, v, features, bias)))
    torch.testing.assert_close(got.double(), expected, atol=1e-4, rtol=0)


def test_biases_of_tokens_count_in_the_span():
    q, k, v, features, bias, token_bias = (x.detach() for x in tensors((3, 4), 1))
    token_bias[:] = torch.tensor([-25.0, 0.0, 25.0])
    expected = nprf_attention(q, k, v, features, bias, token_bias, form="dense")
    got = nprf_attention(*(x.float() for x in (q, k, v, features, bias, token_bias)), form="fft")
    torch.testing.assert_close(got.double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("grid", [(13,), (4, 3)])
def test_causal(grid):
    """Nothing behind a query changes it."""
    q, k, v, features, bias = tensors(grid)
    for form in ("fft", "dense"):
        expected = nprf_attention(q, k, v, features, bias, causal=True, form=form)
        changed = [x.detach().clone() for x in (q, k, v)]
        for x in changed:
            x[:, :, 8:] = 3 * torch.randn_like(x[:, :, 8:])
        got = nprf_attention(*changed, features, bias, causal=True, form=form)
        torch.testing.assert_close(got[:, :, :8], expected[:, :, :8], atol=1e-13, rtol=1e-13)
        assert (got[:, :, 8:] - expected[:, :, 8:]).abs().max() > 0.1


@pytest.mark.parametrize("form", ["fft", "dense"])
def test_what_cancels(form):
    """Lengths of queries and keys, from where no square of them exists to where it is infinite; a constant in all
    biases."""
    q, k, v, features, bias, token_bias = (x.detach() for x in tensors((3, 4), 2))
    expected = nprf_attention(q, k, v, features, bias, token_bias, form=form)
    for scale in (1e-300, 7.0, 1e300):
        torch.testing.assert_close(nprf_attention(q * scale, k / scale, v, features, bias, token_bias), expected)
    for constant in (-500.0, 0.3, 900.0):
        got = nprf_attention(q, k, v, features, bias + constant, token_bias + constant, form=form)
        torch.testing.assert_close(got, expected)
    zero = torch.zeros_like(q).requires_grad_()
    (grad,) = torch.autograd.grad(nprf_attention(zero, k, v, features, bias, token_bias, form=form).sum(), zero)
    assert grad.isfinite().all()


def test_tends_to_the_softmax_of_unit_vectors():
    """The error falls like one over the root of m, with biases as without."""
    torch.manual_seed(1)
    q, k, v = torch.randn(3, 1, 2, 60, 8, dtype=torch.float64)
    for bias in (torch.zeros(2, 119, dtype=torch.float64), torch.randn(2, 119, dtype=torch.float64)):
        logits = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).mT + distances((60,), 2, bias)
        expected, errors = logits.softmax(-1) @ v, []
        for m in (100, 10_000):
            features = torch.randn(8, m, 8, dtype=torch.float64)
            found = [nprf_attention(q, k, v, w, bias) for w in features]
            errors.append(torch.stack([(x - expected).square().mean() for x in found]).mean().sqrt())
        assert errors[1] < 0.02
        assert 6 < errors[0] / errors[1] < 16


def test_the_gradient_of_the_bias_at_every_distance():
    given = tensors((3, 4), channels=5)
    for form in ("fft", "dense"):
        out = nprf_attention(*given, form=form)
        (grad,) = torch.autograd.grad((out * torch.randn_like(out)).sum(), given[-1])
        assert (grad != 0).all()
        torch.testing.assert_close(grad.sum((1, 2)), torch.zeros(2, dtype=torch.float64))  # a constant cancels


@pytest.mark.parametrize("form", ["fft", "dense"])
def test_biases_that_forbid_distances(form):
    """-inf, as in a window of three."""
    q, k, v, features, bias = (x.detach() for x in tensors((9,)))
    bias = bias.where((torch.arange(17) - 8).abs() <= 1, -torch.inf)
    expected = by_definition((9,))(q, k, v, features, bias)
    torch.testing.assert_close(nprf_attention(q, k, v, features, bias, form=form), expected)


def test_sharp_biases_keep_their_digits():
    """A factor of 1e13 between the weights is beyond what transforms in float32 can tell from rounding."""
    q, k, v, features, _ = (x.detach() for x in tensors((50,)))
    bias = (-torch.linspace(-30, 30, 99, dtype=torch.float64).abs()).expand(2, -1)
    exact = by_definition((50,))(q, k, v, features, bias)
    for form in ("fft", "dense"):
        got = nprf_attention(*(x.float() for x in (q, k, v, features, bias)), form=form)
        torch.testing.assert_close(got.double(), exact, atol=1e-4, rtol=1e-4)


class Largest(TorchDispatchMode):
    """The numbers of the largest tensor that an operator of PyTorch makes."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(x, torch.Tensor) and x.is_contiguous():  # not the view that has the shape of all weights
                self.numbers = max(self.numbers, x.numel())
        return out


@pytest.mark.parametrize("form", ["fft", "dense"])
def test_nothing_of_all_pairs(form, monkeypatch):
    monkeypatch.setattr(MODULE, "BUFFER", 1 << 14)
    places = 900
    q, k = torch.rand(2, 1, 2, places, 4)
    v, c = torch.rand(1, 2, places, 3), torch.rand(2, 1, 2 * places - 1)
    with Largest() as largest:
        MODULE._nprf_attention_by_form(q, k, v, c, form)
        MODULE._nprf_attention_backward_by_form(torch.rand_like(v), q, k, v, c, form)
    assert 2 * places * 4 <= largest.numbers < places**2 / 10


def test_auto_takes_the_faster_form():
    def c(*grid):
        return torch.empty(1, *(2 * n - 1 for n in grid), device="meta")

    assert not MODULE._by_fft("auto", 32, 33, c(1, 196))
    assert not MODULE._by_fft("auto", 32, 33, c(14, 14))
    for m in (32, 64, 128):
        assert MODULE._by_fft("auto", m, 65, c(1, 8192))
        assert MODULE._by_fft("auto", m, 65, c(128, 128))
    assert MODULE._by_fft("auto", 32, 33, c(1, 4096))
    assert [MODULE._fast_length(n) for n in (1, 2, 3, 7, 11, 13, 27, 4095, 8191)] == [
        1, 2, 4, 8, 12, 16, 30, 4096, 8192,
    ]  # fmt: skip


@pytest.mark.parametrize("form", ["fft", "dense"])
@pytest.mark.parametrize(("grid", "tokens", "causal"), [((4,), 0, True), ((2, 3), 1, False)])
def test_gradcheck(grid, tokens, causal, form):
    given = tensors(grid, tokens, m=2, dim=3, channels=2, heads=1)
    assert torch.autograd.gradcheck(ours(causal, form), given)


def test_operators(path):
    q, k, v = (torch.randn(2, 2, 6, n, dtype=torch.float64, requires_grad=True) for n in (3, 3, 2))
    c = torch.rand(2, 3, 5, dtype=torch.float64, requires_grad=True)
    for form in ("fft", "dense"):
        torch.library.opcheck(nprf_attention_op, (q, k, v, c, form))
        arguments = [x.detach() for x in (torch.randn_like(v), q, k, v, c)]
        torch.library.opcheck(nprf_attention_backward_op, (*arguments, form))


def test_one_graph():
    torch.compiler.reset()
    given = tensors((3, 4), 1)
    compiled = torch.compile(ours(), backend="eager", fullgraph=True)
    assert_agree("out", compiled(*given).detach(), by_definition((3, 4))(*given).detach())


def test_strides():
    q, k, v, features, bias = (x.detach() for x in tensors((3, 4)))
    given = [x.permute(2, 0, 3, 1).contiguous().permute(1, 3, 0, 2) for x in (q, k, v)]
    expected = nprf_attention(q, k, v, features, bias)
    for form in ("fft", "dense"):
        torch.testing.assert_close(nprf_attention(*given, features, bias, form=form), expected)
        one = bias[:, :1, :1].expand_as(bias).clone()
        same = nprf_attention(q, k, v, features, one[:, :1, :1].expand_as(bias), form=form)
        torch.testing.assert_close(same, nprf_attention(q, k, v, features, one))


def test_one_place(path):
    given = tensors((1,))
    for form in ("fft", "dense"):
        torch.testing.assert_close(nprf_attention(*given, form=form), given[2])


def test_no_images():
    given = [x[:0] if i < 3 else x for i, x in enumerate(tensors((3, 4)))]
    for form in ("fft", "dense"):
        out = nprf_attention(*given, form=form)
        assert out.shape == (0, 2, 12, 3)
        grads = torch.autograd.grad(out.sum(), given[3:])
        assert not any(grad.any() for grad in grads)


def test_log_features_are_of_unit_vectors():
    x, w = torch.randn(2, 3, 5, 4, dtype=torch.float64), torch.randn(7, 4, dtype=torch.float64)
    torch.testing.assert_close(log_features(x, w), F.normalize(x, dim=-1) @ w.mT)
    assert not log_features(torch.zeros_like(x), w).any()
    assert log_features(x.half(), w).dtype == torch.float64


def test_bad_arguments():
    q, k, v, features, bias, token_bias = (x.detach() for x in tensors((3, 4), 2))
    for options, message in [
        (dict(q=q[0]), r"q, k and v must have shapes \(B, heads, N, D\), the same, and .*, got \(2, 14, 4\), "),
        (dict(v=v[:, :, 1:]), r"q, k and v must have shapes"),
        (dict(features=features[:, 1:]), r"features must have shape \(m, 4\) or \(2, m, 4\), got \(5, 3\)"),
        (dict(features=features.expand(3, -1, -1)), r"features must have shape .* got \(3, 5, 4\)"),
        (dict(bias=bias[:, 1:]), r"bias must have shape \(2, 2N - 1\) or \(2, 2R - 1, 2C - 1\), got \(2, 4, 7\)"),
        (dict(bias=torch.zeros(2, 29)), r"bias must be of at most the 14 places of q, got \(2, 29\) of 15"),
        (dict(token_bias=None), r"token_bias must be of shape \(2, 3\) for 2 class tokens beside 12 places, got None"),
        (dict(token_bias=token_bias[:, 1:]), r"token_bias must be of shape .* got \(2, 2\)"),
        (dict(bias=torch.zeros(2, 27).double()), r"token_bias must be None, got \(2, 3\)"),
        (dict(causal=True), r"causal must be False where there are class tokens, got True and 2 of them"),
        (dict(form="slow"), r"form must be one of \('auto', 'fft', 'dense'\), got 'slow'"),
    ]:
        given = dict(q=q, k=k, v=v, features=features, bias=bias, token_bias=token_bias)
        with pytest.raises(ValueError, match=message):
            nprf_attention(**(given | options))
    with pytest.raises(TypeError, match=r"q, k and v must be of one floating-point dtype"):
        nprf_attention(q, k.float(), v, features, bias, token_bias)
    with pytest.raises(TypeError, match=r"causal"):
        nprf_attention(q, k, v, features, bias, token_bias, causal=1)
