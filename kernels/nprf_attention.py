"""Kernelized attention with relative positions (NPRF): linear attention that keeps a bias for every distance.

For a head with queries q, keys k and values v of N places, random directions w_r and biases b_t of the distance
t = place of the key - place of the query,

    φ(x) = [exp(w_1 · x/|x|), ..., exp(w_m · x/|x|)]                  E[φ(q) · φ(k)] ~ exp(q/|q| · k/|k|)
    out_i = Σ_j exp(b_{j-i}) (φ(q_i) · φ(k_j)) v_j / Σ_j exp(b_{j-i}) (φ(q_i) · φ(k_j))

It tends to softmax(q̂ · k̂ + b) v of the unit vectors as m grows. There is no 1/√d and no temperature. Causal: no key
behind its query. On a grid of R x C places, row by row, t is a pair; the matrix is then block Toeplitz. Class tokens
beside the grid have biases of their own. A constant factor of φ cancels, and so does a constant in b: the largest
exponents are subtracted.

Nothing of N x N is held, by either form, forward or backward; a batch with its heads goes through in parts:

- "fft": y_r = Σ_j exp(b_{j-i}) φ_r(k_j) v_j is a correlation over places for every feature r and channel, a product of
  spectra of at least 2N - 1 places (2R - 1 x 2C - 1). O(m Dv N log N) time, and O(N (m + Dv)) memory, since the
  m Dv channels go through a few at a time.
- "dense": products of some rows of the N x N weights at a time, O(N² (m + Dv)) time: faster for short N.
- "auto" takes the FFT unless it would take half more time than the dense form, by a rule measured on one core.

The FFT's rounding is relative to the largest exp(b), and to the largest sum. So the causal form transforms in float64,
on every device. On a CPU biases that span a factor of more than 1e6 are computed in float64, whatever the form, and so
are those of a graph that is compiled or exported, whose values nobody can look at. Elsewhere keep biases moderate, or
pass float64. All sums are in float32 at least.

Source: "Stable, Fast and Accurate: Kernelized Attention with Relative Positional Encoding", arXiv 2106.12566. The
form on grids, class tokens and the choice between both forms are ours.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import (
    can_look,
    check_choice,
    check_devices,
    check_flags,
    check_floats,
    check_one_dtype,
    sum_dtype,
)
from .dispatch import decompose, each, pick, slices, without_autocast

FORMS = ("auto", "fft", "dense")
# Numbers that a buffer holds: those of a CPU stay in the cache of a core.
BUFFER, BUFFER_GPU = 1 << 18, 1 << 26
FEWEST = 12  # channels of a transform, however long: beyond the cache, calls of few take longer
# Nanoseconds on one core: of a point of a channel's two transforms, for each halving; of a pair of places, and of a
# channel of its two products.
FFT_POINT, PAIR, PAIR_CHANNEL = 0.16, 0.5, 0.0175
DOUBLE = 2.0  # times as long: a transform in float64, beside products in float32
SPAN = math.log(1e6)  # of biases that float32 can tell from zero beside the largest, after a transform


def nprf_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    features: Tensor,
    bias: Tensor,
    token_bias: Tensor | None = None,
    causal: bool = False,
    form: str = "auto",
) -> Tensor:
    """Kernelized attention with relative positions, see above; differentiable.

    Args:
        q: queries (B, heads, T + N, D): T class tokens (often none), then the N places.
        k: keys, of the same shape.
        v: values (B, heads, T + N, Dv). q, k and v have one dtype.
        features: random directions w (m, D), or (heads, m, D) for each head its own. They get a gradient, too.
        bias: biases (heads, 2N - 1) of the distances -(N - 1) ... N - 1, or (heads, 2R - 1, 2C - 1) of a grid of
            R x C = N places. -inf forbids a distance.
        token_bias: biases (heads, 3) of the pairs that class tokens are in: place looks at token, token looks at place,
            token looks at token. None where there is no token.
        causal: whether a query sees only itself and what is before it, in the order of rows. Not with class tokens.
        form: "auto", "fft" or "dense".

    Returns:
        (B, heads, T + N, Dv), in the dtype of v.

    Raises:
        ValueError, TypeError: an argument of another shape, dtype or value.
    """
    check_one_dtype(q=q, k=k, v=v)
    check_floats(features=features, bias=bias)
    check_devices(q=q, features=features, bias=bias)
    check_flags(causal=causal)
    check_choice(form, "form", FORMS)
    shapes = f"{tuple(q.shape)}, {tuple(k.shape)} and {tuple(v.shape)}"
    if q.ndim != 4 or q.shape != k.shape or v.ndim != 4 or v.shape[:3] != q.shape[:3] or 0 in q.shape[1:]:
        raise ValueError(f"q, k and v must have shapes (B, heads, N, D), the same, and (B, heads, N, Dv), got {shapes}")
    heads, dim = q.shape[1], q.shape[3]
    if features.ndim not in (2, 3) or features.shape[-1] != dim or 0 in features.shape:
        raise ValueError(f"features must have shape (m, {dim}) or ({heads}, m, {dim}), got {tuple(features.shape)}")
    if features.ndim == 3 and len(features) != heads:
        raise ValueError(f"features must have shape (m, {dim}) or ({heads}, m, {dim}), got {tuple(features.shape)}")
    if bias.ndim not in (2, 3) or len(bias) != heads or any(n % 2 == 0 for n in bias.shape[1:]):
        raise ValueError(
            f"bias must have shape ({heads}, 2N - 1) or ({heads}, 2R - 1, 2C - 1), got {tuple(bias.shape)}"
        )
    places = math.prod(_sides(bias))
    tokens = q.shape[2] - places
    if tokens < 0:
        raise ValueError(f"bias must be of at most the {q.shape[2]} places of q, got {tuple(bias.shape)} of {places}")
    if token_bias is not None:
        check_floats(token_bias=token_bias)
        check_devices(q=q, token_bias=token_bias)
    if (token_bias is None) != (tokens == 0) or (token_bias is not None and token_bias.shape != (heads, 3)):
        wanted = f"of shape ({heads}, 3) for {tokens} class tokens beside {places} places" if tokens else "None"
        got = None if token_bias is None else tuple(token_bias.shape)
        raise ValueError(f"token_bias must be {wanted}, got {got}")
    if causal and tokens:
        raise ValueError(f"causal must be False where there are class tokens, got {causal} and {tokens} of them")
    bias = bias if bias.ndim == 3 else bias.unsqueeze(1)
    if causal:
        bias = bias.masked_fill(behind(bias), -torch.inf)
    wide = torch.promote_types(sum_dtype(q), torch.promote_types(features.dtype, bias.dtype))
    if wide == torch.float32 and q.device.type == "cpu" and not (can_look(bias) and _span(bias, token_bias) <= SPAN):
        wide = torch.float64
    if not torch.compiler.is_compiling():
        slower = DOUBLE if causal and wide == torch.float32 else 1.0
        form = "fft" if _by_fft(form, features.shape[-2], v.shape[3] + 1, bias, slower) else "dense"
    if causal and form != "dense":
        # The rounding of a transform is that of the places with most to see, and the first ones see little
        wide = torch.float64
    with without_autocast(q):
        return _attend(q, k, v.to(wide), features.to(wide), bias.to(wide), token_bias, form).to(v.dtype)


def log_features(x: Tensor, features: Tensor) -> Tensor:
    """The logarithms of the features φ of rows x (..., N, D): (..., N, m), in the dtype of `features` (m, D). A row of
    zeros stays one."""
    x = x.to(features.dtype)
    largest = x.detach().abs().amax(-1, keepdim=True)
    # Of length 1 at least, and at most √D: no row is too small or too large to be squared
    x = x / largest.where(largest != 0, 1)
    return F.normalize(x, dim=-1, eps=1.0) @ features.mT


def _sides(c: Tensor) -> list[int]:
    """Of the grid whose distances c (heads, ...) holds."""
    return [(n + 1) // 2 for n in c.shape[1:]]


def _span(bias: Tensor, token_bias: Tensor | None) -> float:
    """The largest bias less the smallest; those of forbidden distances do not count."""
    biases = torch.cat([x.detach().flatten() for x in (bias, token_bias) if x is not None])
    finite = biases[biases.isfinite()]
    return (finite.max() - finite.min()).item() if len(finite) else 0.0


def _attend(q, k, v, features, grid, token_bias, form) -> Tensor:
    q_BHNM, k_BHNM = log_features(q, features), log_features(k, features)
    q_BHNM = (q_BHNM - q_BHNM.detach().amax(-1, keepdim=True)).exp()
    k_BHNM = (k_BHNM - k_BHNM.detach().amax((-2, -1), keepdim=True)).exp()
    values = F.pad(v, (0, 1), value=1.0)  # the last channel becomes the sum of the weights
    all_biases = grid.flatten(1)
    if token_bias is not None:
        token_bias = token_bias.to(grid.dtype)
        all_biases = torch.cat([all_biases, token_bias], dim=1)
    most = all_biases.detach().amax(1)
    most = most + (most - most)  # NaN where it is infinite, and then no weight of the head is a number
    weights = (grid - most[:, None, None]).exp()
    if token_bias is None:
        sums = nprf_attention_op(q_BHNM, k_BHNM, values, weights, form)
    else:
        tokens = q.shape[2] - math.prod(_sides(grid))
        (q_tokens, q_places), (k_tokens, k_places), (v_tokens, v_places) = (
            (x[:, :, :tokens], x[:, :, tokens:]) for x in (q_BHNM, k_BHNM, values)
        )
        of_token, of_place, of_tokens = (token_bias - most[:, None]).exp()[:, :, None, None].unbind(1)
        summary = k_tokens.mT @ v_tokens
        by_places = nprf_attention_op(q_places, k_places, v_places, weights, form) + q_places @ (summary * of_token)
        by_tokens = q_tokens @ (k_places.mT @ v_places * of_place + summary * of_tokens)
        sums = torch.cat([by_tokens, by_places], dim=2)
    # A transform may leave less than its rounding, or a negative sum
    numbers = torch.finfo(sums.dtype)
    return sums[..., :-1] / sums[..., -1:].clamp_min(numbers.tiny if form == "dense" else numbers.eps)


def behind(bias: Tensor) -> Tensor:
    """(2R - 1, 2C - 1): whether a distance is to what is behind the query in the order of rows."""
    rows, columns = (torch.arange(n, device=bias.device) - n // 2 for n in bias.shape[1:])
    return (rows[:, None] > 0) | ((rows[:, None] == 0) & (columns > 0))


# --- the operator: out_i = Σ_j c_{j-i} (q_i · k_j) v_j ---------------------------------------------------------------
#
# q and k are features (B, heads, N, M), v values (B, heads, N, E), c weights (heads, 2R - 1, 2C - 1). Its gradients are
# sums of the same kind, with their roles exchanged: of q with (grad, v, k), of k and v with the mirrored c.


def _toeplitz(c: Tensor) -> Tensor:
    """c_{j-i} as matrices (heads, N, N)."""
    height, width = _sides(c)
    row, column = (
        torch.arange(n, device=c.device) - torch.arange(n, device=c.device).unsqueeze(1) + n - 1
        for n in (height, width)
    )
    index = row[:, None, :, None] * c.shape[2] + column[None, :, None, :]
    places = height * width
    return c.flatten(1)[:, index.reshape(places, places)]


def nprf_attention_reference(q: Tensor, k: Tensor, v: Tensor, c: Tensor, form: str) -> Tensor:
    """The definition, with N x N weights."""
    return (_toeplitz(c) * (q @ k.mT)) @ v


def nprf_attention_backward_reference(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, c: Tensor, form: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    matrix, products, grads = _toeplitz(c), q @ k.mT, grad @ v.mT
    grad_products, weights = matrix * grads, matrix * products
    places = torch.arange(c[0].numel(), device=c.device).view(1, *c.shape[1:])
    index = _toeplitz(places).flatten().expand(len(c), -1)
    pairs = (products * grads).sum(0).flatten(1)
    grad_c = torch.zeros_like(c).flatten(1).scatter_add_(1, index, pairs).view_as(c)
    # A transform spreads what is not finite over all distances of a head; no less is promised of any form
    grad_c = grad_c + (pairs.sum(1) * 0)[:, None, None]
    return grad_products @ k, grad_products.mT @ q, weights.mT @ grad, grad_c


def _by_fft(form: str, features: int, channels: int, c: Tensor, slower: float = 1.0) -> bool:
    """`slower`: how much longer a point of the transforms takes than usual, beside the products."""
    if form != "auto":
        return form == "fft"
    points = math.prod(_lengths(c))
    fft = slower * FFT_POINT * features * channels * points * math.log2(points + 1)
    # At most half slower: then time grows like N log N from few thousand places on, with any number of features
    places = math.prod(_sides(c))
    return fft < 1.5 * places**2 * (PAIR + PAIR_CHANNEL * (features + channels))


# Dense: the places of the queries run backward, so that the weights of a block are a view of c.


def _blocks(c: Tensor) -> Iterator[tuple[slice, slice]]:
    """Rows and columns of the grid in parts whose weights fit a buffer."""
    height, width = _sides(c)
    places = height * width
    columns = max(1, min(width, BUFFER // places))
    rows = max(1, BUFFER // (places * width)) if columns == width else 1
    for some in slices(0, height, rows):
        for others in slices(0, width, columns):
            yield some, others


def _views(c: Tensor) -> Tensor:
    """c (heads, 2R - 1, 2C - 1) as the weights (heads, R, C, R, C) of backward queries and forward keys, a view."""
    height, width = _sides(c)
    return c.unfold(1, height, 1).unfold(2, width, 1)


def _backward_places(x: Tensor, c: Tensor) -> Tensor:
    """Rows (N, M) on the grid, the last place first: (R, C, M)."""
    return x.flip(0).unflatten(0, _sides(c))


def _dense(q: Tensor, k: Tensor, v: Tensor, c: Tensor) -> Tensor:
    out = torch.empty_like(v, memory_format=torch.contiguous_format)
    views, heads = _views(c), len(c)

    def attend(item: int) -> None:
        b, h = divmod(item, heads)
        queries, keys, values = _backward_places(q[b, h], c), k[b, h], v[b, h]
        results = torch.empty_like(_backward_places(values, c))
        for rows, columns in _blocks(c):
            some = queries[rows, columns]
            weights = some.flatten(0, 1) @ keys.mT
            weights.view(*some.shape[:2], *views.shape[3:]).mul_(views[h, rows, columns])
            results[rows, columns] = (weights @ values).view(*some.shape[:2], -1)
        out[b, h] = results.flatten(0, 1).flip(0)

    each(attend, range(len(q) * heads))
    return out


def _dense_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, c: Tensor) -> tuple[Tensor, ...]:
    grad_q, grad_k, grad_v = (torch.zeros_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    views, heads = _views(c), len(c)

    def differentiate(item: int) -> Tensor:
        b, h = divmod(item, heads)
        keys, values, grad_c = k[b, h], v[b, h], torch.zeros_like(c[h])
        queries, upstream = _backward_places(q[b, h], c), _backward_places(grad[b, h], c)
        results = torch.empty_like(queries)
        for rows, columns in _blocks(c):
            some, theirs, view = queries[rows, columns], upstream[rows, columns].flatten(0, 1), views[h, rows, columns]
            products, grads = some.flatten(0, 1) @ keys.mT, theirs @ values.mT
            grad_c[
                rows.start : rows.start + view.shape[0] + view.shape[2] - 1,
                columns.start : columns.start + view.shape[1] + view.shape[3] - 1,
            ] += _diagonals((products * grads).view(view.shape))
            products.view(view.shape).mul_(view)
            grads.view(view.shape).mul_(view)
            results[rows, columns] = (grads @ keys).view(some.shape)
            grad_k[b, h].addmm_(grads.mT, some.flatten(0, 1))
            grad_v[b, h].addmm_(products.mT, theirs)
        grad_q[b, h] = results.flatten(0, 1).flip(0)
        return grad_c

    found = each(differentiate, range(len(q) * heads))
    grad_c = torch.stack(found).unflatten(0, (-1, heads)).sum(0) if found else torch.zeros_like(c)
    return grad_q, grad_k, grad_v, grad_c


def _diagonals(x: Tensor) -> Tensor:
    """Σ x[a, b, i, j] over a + i = r, b + j = s: (A, B, R, C) -> (A + R - 1, B + C - 1)."""
    a, b, height, width = x.shape
    tall, wide = a + height - 1, b + width - 1
    sheared = x.new_zeros(a, b, tall, wide)
    sheared.as_strided(x.shape, (b * tall * wide + wide, tall * wide + 1, wide, 1)).copy_(x)
    return sheared.sum((0, 1))


# FFT: one feature and some channels at a time.


def _fast_length(least: int) -> int:
    """The next length that is even (or 1) and a product of 2, 3 and 5."""
    if least == 1:
        return 1
    candidates = (
        2 ** max(1, math.ceil(math.log2(least / odd))) * odd
        for odd in (3**i * 5**j for i in range(4) for j in range(3))
    )
    return min(length for length in candidates if length >= least)


def _lengths(c: Tensor) -> tuple[int, int]:
    """Of the transforms along rows and columns: no distance comes round to another."""
    return _fast_length(c.shape[1]), _fast_length(c.shape[2])


class _Transforms:
    """Correlations over the places of a grid with weights c (heads, 2R - 1, 2C - 1)."""

    def __init__(self, c: Tensor, channels: int):
        self.grid = _sides(c)
        self.lengths, self.heads = _lengths(c), len(c)
        self.axes = (-1,) if self.lengths[0] == 1 else (-2, -1)
        high, wide = (length - n for length, n in zip(self.lengths, c.shape[1:]))
        ring = F.pad(c.flip((1, 2)), (0, wide, 0, high)).roll([1 - n for n in self.grid], (1, 2))
        self.spectrum = self.forth(ring).unsqueeze(1)
        fitting = (BUFFER_GPU if c.is_cuda else BUFFER) // math.prod(self.lengths)
        parts = -(-channels // max(FEWEST, fitting))
        self.channels, self.items = -(-channels // parts), max(1, fitting // channels)

    def forth(self, x: Tensor) -> Tensor:
        return torch.fft.rfftn(x, dim=self.axes)

    def back(self, spectrum: Tensor) -> Tensor:
        return torch.fft.irfftn(spectrum, self.lengths[-len(self.axes) :], dim=self.axes)

    def buffer(self, like: Tensor, items: int, channels: int) -> Tensor:
        return like.new_zeros(items, channels, *self.lengths)

    def places(self, x: Tensor) -> Tensor:
        """Of a buffer, a view."""
        return x[..., : self.grid[0], : self.grid[1]]

    def maps(self, x: Tensor) -> Tensor:
        """Rows (items, N, M) as maps (items, M, R, C)."""
        return x.mT.contiguous().unflatten(2, self.grid)

    def weights(self, item: slice) -> Tensor:
        """The spectra of c for some of the B x heads."""
        heads = torch.arange(item.start, item.stop, device=self.spectrum.device) % self.heads
        return self.spectrum[heads]

    def distances(self, ring: Tensor) -> Tensor:
        """(..., 2R - 1, 2C - 1) of a correlation, whose distances are those of a ring."""
        ring = ring.roll([n - 1 for n in self.grid], (-2, -1))
        return ring[..., : 2 * self.grid[0] - 1, : 2 * self.grid[1] - 1]


def _fft(q: Tensor, k: Tensor, v: Tensor, c: Tensor) -> Tensor:
    out = torch.empty_like(v, memory_format=torch.contiguous_format)
    transforms, results = _Transforms(c, v.shape[3]), out.flatten(0, 1)
    q_rows, k_rows, v_rows = (x.flatten(0, 1) for x in (q, k, v))

    def attend(item: slice) -> None:
        queries, keys, values = (transforms.maps(x[item]) for x in (q_rows, k_rows, v_rows))
        weights, sums = transforms.weights(item), torch.zeros_like(values)
        for some in slices(0, values.shape[1], transforms.channels):
            part, theirs = values[:, some], sums[:, some]
            padded = transforms.buffer(part, *part.shape[:2])
            inside = transforms.places(padded)
            for r in range(keys.shape[1]):
                torch.mul(part, keys[:, r : r + 1], out=inside)
                mixed = transforms.back(transforms.forth(padded).mul_(weights))
                theirs.addcmul_(transforms.places(mixed), queries[:, r : r + 1])
        results[item] = sums.flatten(2).mT

    each(attend, slices(0, len(results), transforms.items))
    return out


def _fft_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, c: Tensor) -> tuple[Tensor, ...]:
    grads = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v)]
    transforms = _Transforms(c, 2 * v.shape[3])
    grad_rows, q_rows, k_rows, v_rows = (x.flatten(0, 1) for x in (grad, q, k, v))

    def differentiate(item: slice) -> Tensor:
        upstream, queries, keys, values = (transforms.maps(x[item]) for x in (grad_rows, q_rows, k_rows, v_rows))
        weights, sums = transforms.weights(item), [torch.zeros_like(x) for x in (queries, keys, values)]
        sum_q, sum_k, sum_v = sums
        mirrored = weights.conj_physical()  # inside an operator of a compiled graph, a lazy one is not seen
        spectrum = torch.zeros_like(weights)
        for some in slices(0, values.shape[1], transforms.channels):
            part, theirs = values[:, some], upstream[:, some]
            padded_keys, padded_queries = (transforms.buffer(part, *part.shape[:2]) for _ in range(2))
            for r in range(keys.shape[1]):
                key, query = keys[:, r : r + 1], queries[:, r : r + 1]
                torch.mul(part, key, out=transforms.places(padded_keys))
                torch.mul(theirs, query, out=transforms.places(padded_queries))
                of_keys, of_queries = transforms.forth(padded_keys), transforms.forth(padded_queries)
                spectrum += (of_keys * of_queries.conj_physical()).sum(1, keepdim=True)
                mixed = transforms.places(transforms.back(of_keys.mul_(weights)))
                sum_q[:, r] += (mixed * theirs).sum(1)
                mixed = transforms.places(transforms.back(of_queries.mul_(mirrored)))
                sum_k[:, r] += (mixed * part).sum(1)
                sum_v[:, some].addcmul_(mixed, key)
        for result, found in zip(grads, sums):
            result.flatten(0, 1)[item] = found.flatten(2).mT
        return transforms.distances(transforms.back(spectrum)).squeeze(1)

    found = each(differentiate, slices(0, len(q_rows), transforms.items))
    grad_c = torch.cat(found).unflatten(0, (-1, len(c))).sum(0) if found else torch.zeros_like(c)
    return (*grads, grad_c)


def _nprf_attention_by_form(q: Tensor, k: Tensor, v: Tensor, c: Tensor, form: str) -> Tensor:
    forward = _fft if _by_fft(form, q.shape[3], v.shape[3], c) else _dense
    return forward(q, k, v, c)


def _nprf_attention_backward_by_form(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, c: Tensor, form: str
) -> tuple[Tensor, ...]:
    backward = _fft_backward if _by_fft(form, q.shape[3], v.shape[3], c) else _dense_backward
    return backward(grad, q, k, v, c)


@torch.library.custom_op("attlas::nprf_attention", mutates_args=())
def nprf_attention_op(q: Tensor, k: Tensor, v: Tensor, c: Tensor, form: str) -> Tensor:
    by_form = _nprf_attention_by_form
    return pick(q, reference=nprf_attention_reference, triton=by_form, cpu=by_form)(q, k, v, c, form)


@nprf_attention_op.register_fake
def _(q, k, v, c, form):
    return torch.empty_like(v, memory_format=torch.contiguous_format)


@torch.library.custom_op("attlas::nprf_attention_backward", mutates_args=())
def nprf_attention_backward_op(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, c: Tensor, form: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    by_form = _nprf_attention_backward_by_form
    return pick(q, reference=nprf_attention_backward_reference, triton=by_form, cpu=by_form)(grad, q, k, v, c, form)


@nprf_attention_backward_op.register_fake
def _(grad, q, k, v, c, form):
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v, c))


def _setup_context(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:4])
    ctx.form = inputs[4]


def _backward(ctx, grad):
    return *nprf_attention_backward_op(grad, *ctx.saved_tensors, ctx.form), None


nprf_attention_op.register_autograd(_backward, setup_context=_setup_context)
decompose(nprf_attention_op, nprf_attention_reference)
