"""The four forms against a statement of their rules, place by place, and what all have in common."""

from functools import partial

import pytest
import torch
from agreement import assert_gradients_agree
from torch.utils._python_dispatch import TorchDispatchMode

from attlas.kernels import combiner_fixed, combiner_logsparse, combiner_mixture, combiner_rowmajor, combiner_rows
from attlas.kernels.dispatch import decompositions

REDUCE = {"max": lambda x: x.amax(0), "sum": lambda x: x.sum(0), "mean": lambda x: x.mean(0)}


def by_rules(keys_of):
    """q, k, v -> attention by `keys_of(q, k, v, i)`: what the place i sees, a list of (key, value)."""

    def function(q, k, v, *others):
        scaled, out = q * q.shape[-1] ** -0.5, []
        for b in range(len(q)):
            for h in range(q.shape[1]):
                given = scaled[b, h], k[b, h], v[b, h], *(x[b, h] for x in others)
                for i in range(q.shape[2]):
                    keys, values = map(torch.stack, zip(*keys_of(*given, i)))
                    out.append((keys @ given[0][i]).softmax(0) @ values)
        return torch.stack(out).view(v.shape)

    return function


def span(q, k, v, places, pooling="max"):
    """Key and value of some places."""
    theta, kappa = (REDUCE[pooling](x[places]) for x in (q, k))
    return kappa, (k[places] @ theta).softmax(0) @ v[places]


def fixed(w, causal, pooling="max"):
    def keys_of(q, k, v, *rest):
        *pooled, i = rest
        length, row = len(q), i // w
        rows = [list(range(a, min(a + w, length))) for a in range(0, length, w)]
        seen = [(k[j], v[j]) for j in rows[row] if not causal or j <= i]
        pool_q, pool_k = pooled or (q, k)
        for number, places in enumerate(rows):
            if not causal or number < row:
                theta, kappa = (REDUCE[pooling](x[places]) for x in (pool_q, pool_k))
                seen.append((kappa, (k[places] @ theta).softmax(0) @ v[places]))
        return seen

    return by_rules(keys_of)


def logsparse():
    def keys_of(q, k, v, i):
        seen = [(k[i], v[i])]
        for level in range(i.bit_length()):
            if i >> level & 1:
                start = ((i >> level) - 1) << level
                seen.append(span(q, k, v, list(range(start, start + (1 << level)))))
        return seen

    return by_rules(keys_of)


def rowmajor(w, causal, mix_keys=False):
    def keys_of(q, k, v, i):
        length, row, column = len(q), i // w, i % w
        seen = [(k[j], v[j]) for j in range(row * w, min(row * w + w, length)) if not causal or j <= i]
        for other in range(row if causal else -(-length // w)):
            places = list(range(other * w, min(other * w + w, length)))
            j = min(other * w + column, length - 1)
            shares = (k[places] @ q[j]).softmax(0)
            seen.append((shares @ k[places] if mix_keys else k[j], shares @ v[places]))
        return seen

    return by_rules(keys_of)


def mixture(w, causal, pooling, empty="masked"):
    def keys_of(q, k, v, i):
        length, row, column = len(q), i // w, i % w
        rows, place = -(-length // w), lambda r, c: r * w + c

        def line(pairs):
            return [place(r, c) for r, c in pairs if place(r, c) < length]

        seen = []

        def see(pairs, whole):
            if places := line(pairs):
                seen.append(span(q, k, v, places, pooling))
            elif empty == "mean":
                seen.append((torch.zeros_like(k[0]), v[line(whole)].mean(0)))

        for j in line((row, c) for c in range(w)):
            if not causal or j <= i:
                seen.append((k[j], v[j]))
        for j in line((r, column) for r in range(row if causal else rows)):
            seen.append((k[j], v[j]))
        for c in range(w):
            whole = [(r, c) for r in range(rows)]
            if not causal or c != column:
                see(whole[:row], whole)
            if not causal:
                see(whole[row + 1 :], whole)
        for r in range(row if causal else rows):
            whole = [(r, c) for c in range(w)]
            see(whole[:column], whole)
            see(whole[column + 1 :], whole)
        return seen

    return by_rules(keys_of)


def tensors(length, dtype=torch.float64, dim=3, channels=2, more=0):
    torch.manual_seed(length)
    sizes = [dim, dim, channels] + [dim] * more
    return [torch.randn(1, 2, length, n, dtype=torch.float64).to(dtype).requires_grad_() for n in sizes]


SIZES = [(12, 4), (13, 4), (9, 5), (6, 6), (5, 1), (5, 9), (1, 1)]  # lengths and segments


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("length", "w"), SIZES)
class TestGrids:
    @pytest.mark.parametrize("pooling", REDUCE)
    def test_fixed(self, length, w, causal, pooling):
        ours = partial(combiner_fixed, segment=w, causal=causal, pooling=pooling)
        compare(ours, fixed(w, causal, pooling), tensors(length))

    def test_rowmajor(self, length, w, causal):
        compare(partial(combiner_rowmajor, segment=w, causal=causal), rowmajor(w, causal), tensors(length))

        def mixed(q, k, v):
            return combiner_rowmajor(q, k, v, w, causal, row_keys=combiner_rows(q, k, k, w))

        compare(mixed, rowmajor(w, causal, mix_keys=True), tensors(length))

    @pytest.mark.parametrize("pooling", REDUCE)
    def test_mixture(self, length, w, causal, pooling):
        ours = partial(combiner_mixture, segment=w, causal=causal, pooling=pooling)
        compare(ours, mixture(min(w, length), causal, pooling), tensors(length))
        if not causal:
            ours = partial(combiner_mixture, segment=w, pooling=pooling, empty="mean")
            compare(ours, mixture(min(w, length), causal, pooling, "mean"), tensors(length))


def compare(ours, rules, given):
    """Outputs and gradients, where these are not zeros."""
    if given[0].shape[2] == 1:
        torch.testing.assert_close(ours(*given), rules(*given))
    else:
        assert_gradients_agree(ours, rules, given)


@pytest.mark.parametrize("length", [1, 2, 3, 7, 8, 9, 16, 17, 21])
def test_logsparse(length):
    """Of 2^m + 1 places, too, of which the release's last one sees itself alone."""
    compare(combiner_logsparse, logsparse(), tensors(length))


def test_what_is_pooled_may_be_learned():
    q, k, v, pool_q, pool_k = tensors(10, more=2)
    got = combiner_fixed(q, k, v, 4, pool_q=pool_q, pool_k=pool_k)
    torch.testing.assert_close(got, fixed(4, False)(q, k, v, pool_q, pool_k))
    relu = combiner_fixed(q, k, v, 4, pool_q=q.relu() * 3**-0.5)
    torch.testing.assert_close(relu, combiner_fixed(q, k, v, 4, pool_q=q.relu() * 3**-0.5, pool_k=k))


FORMS = {
    "fixed": partial(combiner_fixed, segment=5),
    "fixed, causal": partial(combiner_fixed, segment=5, causal=True),
    "logsparse, causal": combiner_logsparse,
    "rowmajor": partial(combiner_rowmajor, segment=5),
    "rowmajor, causal": partial(combiner_rowmajor, segment=5, causal=True),
    "mixture": partial(combiner_mixture, segment=5),
    "mixture, mean": partial(combiner_mixture, segment=5, empty="mean"),
    "mixture, causal": partial(combiner_mixture, segment=5, causal=True),
}


@pytest.mark.parametrize("length", [20, 18])
@pytest.mark.parametrize("name", FORMS)
def test_every_place_is_reached_and_weights_are_shares(name, length):
    q, k, v = tensors(length, channels=1)
    form = FORMS[name]
    torch.testing.assert_close(form(q, k, torch.ones_like(v)), torch.ones_like(v))
    weights = torch.autograd.functional.jacobian(lambda v: form(q, k, v)[0, 0, :, 0], v)[:, 0, 0, :, 0]
    seen = torch.ones(length, length, dtype=torch.bool)
    if "causal" in name:
        seen = seen.tril()
    assert (weights[seen] > 0).all()
    assert not weights[~seen].any()
    torch.testing.assert_close(weights.sum(1), torch.ones(length, dtype=torch.float64))


@pytest.mark.parametrize("length", [20, 18])
@pytest.mark.parametrize("name", [name for name in FORMS if "causal" in name])
def test_causal(name, length):
    """To the last bit: no number of a later place takes part."""
    given = [x.detach() for x in tensors(length)]
    expected, later = FORMS[name](*given), [x.clone() for x in given]
    for x in later:
        x[:, :, 11:] = torch.randn_like(x[:, :, 11:])
    got = FORMS[name](*later)
    torch.testing.assert_close(got[:, :, :11], expected[:, :, :11], atol=1e-14, rtol=0)
    assert (got[:, :, 11:] - expected[:, :, 11:]).abs().amax((0, 1, 3)).min() > 1e-6


def test_one_segment_is_plain_attention():
    q, k, v = tensors(12)
    plain = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    for form in (combiner_fixed, combiner_rowmajor):
        torch.testing.assert_close(form(q, k, v, segment=12, causal=True), plain)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dtypes(name, dtype):
    """Half types are float32 inside: what comes out is the rounded result of the rounded inputs."""
    given = [x.detach() for x in tensors(18, dtype)]
    got, exact = FORMS[name](*given), FORMS[name](*(x.double() for x in given))
    assert got.dtype == dtype
    torch.testing.assert_close(got, exact.to(dtype), atol=1e-5, rtol=torch.finfo(dtype).eps)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(FORMS[name](*given), got)


class Largest(TorchDispatchMode):
    """The numbers of the largest tensor that an operator of PyTorch makes."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(x, torch.Tensor):
                self.numbers = max(self.numbers, x.untyped_storage().nbytes() // x.element_size())
        return out


@pytest.mark.parametrize("name", FORMS)
def test_nothing_of_all_pairs(name):
    length, w = 2500, 50
    q, k, v = (x.requires_grad_() for x in torch.randn(3, 1, 1, length, 4))
    form = FORMS[name] if "logsparse" in name else partial(FORMS[name], segment=w)
    with Largest() as largest:
        form(q, k, v).sum().backward()
    assert largest.numbers <= 6 * length * w < length**2 / 8


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("length", [2400, 2395])
def test_many_short_rows_have_no_summaries_of_their_own(length, causal):
    """Of n rows that would be n² keys."""
    w, dim = 8, 16
    given = [x.requires_grad_() for x in torch.randn(3, 1, 1, length, dim, dtype=torch.float64)]
    with Largest() as largest:
        combiner_fixed(*given, w, causal).sum().backward()
    rows = 300
    assert largest.numbers <= rows * w * rows < rows * (w + rows) * dim / 2
    few = [x.detach()[:, :, :75].requires_grad_() for x in given]
    compare(partial(combiner_fixed, segment=w, causal=causal), fixed(w, causal, "max"), few)


def test_gradcheck():
    for form in FORMS.values():
        given = [x.detach()[:, :1].clone().requires_grad_() for x in tensors(6)]
        assert torch.autograd.gradcheck(form, given)


def test_strides():
    given = [x.detach() for x in tensors(18)]
    turned = [x.permute(2, 0, 3, 1).contiguous().permute(1, 3, 0, 2) for x in given]
    for form in FORMS.values():
        torch.testing.assert_close(form(*turned), form(*given))


def test_one_graph():
    torch.compiler.reset()
    given = tensors(13)
    compiled = torch.compile(FORMS["mixture"], backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*given), FORMS["mixture"](*given))


@pytest.mark.parametrize("length", [1, 2, 5, 8])
def test_running_maxima_without_the_operator(length):
    """What exports to ONNX have."""
    x = torch.randn(2, length, 3, length)
    for axis in (1, 3, -1):
        values, _ = decompositions()[torch.ops.aten.cummax.default](x, axis)
        assert torch.equal(values, x.cummax(axis).values)


def test_bad_arguments():
    q, k, v = (x.detach() for x in tensors(10))
    for call, message in [
        (lambda: combiner_fixed(q[0], k, v, 5), r"q, k and v must have shapes \(B, heads, L, D\), the same, and"),
        (lambda: combiner_logsparse(q, k[:, :, 1:], v), r"got \(1, 2, 10, 3\), \(1, 2, 9, 3\) and \(1, 2, 10, 2\)"),
        (
            lambda: combiner_fixed(q, k, v, 4, pad=False),
            "segment must divide the 10 places of q unless pad is set, got 4",
        ),
        (lambda: combiner_fixed(q, k, v, 0), r"segment must lie in 1\.\."),
        (
            lambda: combiner_fixed(q, k, v, 5, pooling="min"),
            r"pooling must be one of \('max', 'sum', 'mean'\), got 'min'",
        ),
        (lambda: combiner_fixed(q, k, v, 5, pool_q=v), r"pool_q must have shape \(1, 2, 10, 3\), got \(1, 2, 10, 2\)"),
        (lambda: combiner_rowmajor(q, k, v, 5, row_values=q), r"row_values must have shape \(1, 2, 10, 2\), got"),
        (lambda: combiner_mixture(q, k, v, 5, empty="zero"), r"empty must be one of \('masked', 'mean'\), got 'zero'"),
        (lambda: combiner_mixture(q, k, v, 5, causal=True, empty="mean"), "empty must be 'masked' where causal is set"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match="q, k and v must be of one floating-point dtype"):
        combiner_rows(q, k.float(), v, 5)
    with pytest.raises(TypeError, match="causal"):
        combiner_mixture(q, k, v, 5, causal=1)
