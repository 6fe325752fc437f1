import importlib

import pytest
import torch
from agreement import assert_agree, assert_gradients_agree

from attlas.kernels import surface_attention
from attlas.kernels.surface_attention import surface_attention_backward_op, surface_attention_op

# of the neighbors (B, S, K): one query, one neighbor, sizes that no tile divides; of the points (B, S)
SHAPES = [(2, 5, 7), (3, 2, 16), (2, 1, 3), (2, 3, 1), (1, 2, 33), (3, 6), (1, 1), (1, 70)]


def tensors(*shape, channels=6, width=4, dtype=torch.float64, device="cpu", seed=0):
    generator = torch.Generator().manual_seed(seed)
    q, k = torch.randn(2, *shape, width, generator=generator, dtype=torch.float64).to(device, dtype)
    return q, k, torch.randn(*shape, channels, generator=generator, dtype=torch.float64).to(device, dtype)


def by_definition(q, k, v, normalize):
    neighbors = q.ndim == 4
    energy = torch.einsum("bsid,bsjd->bsij" if neighbors else "bid,bjd->bij", q, k)
    weight = energy.exp() / energy.exp().sum(-1, keepdim=True)
    axis = 1 if normalize == "points" or not neighbors else 2  # of the points; in the 3-D form they are the queries
    weight = weight / (1e-9 + weight.sum(axis, keepdim=True))
    return torch.einsum("bsij,bsic->bsjc" if neighbors else "bij,bic->bjc", weight, v)


def leaves(inputs):
    return [x.requires_grad_() for x in inputs]


@pytest.mark.parametrize("normalize", ["points", "queries"])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_sums(shape, normalize, path, device):
    inputs = tensors(*shape, device=device)
    expected = by_definition(*inputs, normalize)
    torch.testing.assert_close(surface_attention(*inputs, normalize), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("shape", "normalize"), [((2, 5, 7), "points"), ((2, 5, 7), "queries"), ((2, 21), "queries")])
def test_gradients(shape, normalize, dtype, path, device):
    inputs = leaves(tensors(*shape, channels=18, width=5, dtype=dtype, device=device))
    work = torch.promote_types(dtype, torch.float32)

    def expected(*inputs):
        return by_definition(*(x.to(work) for x in inputs), normalize).to(dtype)

    assert_gradients_agree(lambda *x: surface_attention(*x, normalize), expected, inputs)


def test_gradients_of_single_queries(path, device):
    """Every weight is divided by itself: the gradients of q and k are of the order of the 1e-9."""
    inputs = leaves(tensors(2, 1, 7, device=device))
    assert_gradients_agree(
        lambda *x: surface_attention(*x, "points"), lambda *x: by_definition(*x, "points"), inputs, torch.float32
    )


@pytest.mark.parametrize("normalize", ["points", "queries"])
def test_slices_of_one_tensor(normalize, path, device):
    def sliced(function):
        return lambda both: function(both[..., 6:10], both[..., 10:], both[..., :6], normalize)

    both = torch.randn(2, 2, 7, 14, device=device, requires_grad=True)
    assert_gradients_agree(sliced(surface_attention), sliced(by_definition), [both])
    inputs = [x.transpose(0, 2).requires_grad_() for x in tensors(7, 2, 1, device=device)]
    assert_gradients_agree(lambda *x: surface_attention(*x, normalize), lambda *x: by_definition(*x, normalize), inputs)
    expanded = [x[:, :1].expand(-1, 2, -1, -1) for x in tensors(1, 1, 7, device=device)]
    torch.testing.assert_close(surface_attention(*expanded, normalize), by_definition(*expanded, normalize))


@pytest.mark.parametrize("normalize", ["points", "queries"])
def test_large_energies(normalize, path, device):
    """Weights far beyond what exp can hold, and columns that nothing attends to."""
    q, k, v = tensors(2, 3, 9, dtype=torch.float32, device=device)
    energy = (100 * q) @ k.mT
    result = surface_attention(100 * q, k, v, normalize)
    weight = torch.softmax(energy, -1)
    weight = weight / (1e-9 + weight.sum(1 if normalize == "points" else 2, keepdim=True))
    torch.testing.assert_close(result, weight.mT @ v, rtol=1e-3, atol=1e-4)


def test_duplicates(path, device):
    """Equal neighbors get equal results."""
    q, k, v = (x.repeat(1, 1, 2, 1) for x in tensors(2, 3, 4, device=device))
    for normalize in ("points", "queries"):
        first, second = surface_attention(q, k, v, normalize).chunk(2, dim=2)
        torch.testing.assert_close(first, second)


def test_columns_are_averages(path, device):
    """Normalized over the queries, every output is a weighted mean: constant values stay as they are."""
    q, k, v = tensors(2, 5, 7, device=device)
    torch.testing.assert_close(surface_attention(q, k, torch.ones_like(v), "queries"), torch.ones_like(v))


@pytest.mark.parametrize("shape", [(0, 5, 7), (2, 0, 7), (2, 5, 0), (0, 3), (2, 0)])
def test_nothing_to_attend(shape, path, device):
    for normalize in ("points", "queries"):
        q, k, v = leaves(tensors(*shape, device=device))
        result = surface_attention(q, k, v, normalize)
        assert result.shape == v.shape
        result.sum().backward()
        assert q.grad.shape == q.shape
    assert surface_attention(q, k, v[..., :0]).shape == (*shape, 0)


@pytest.mark.parametrize("normalize", ["points", "queries"])
@pytest.mark.parametrize("block", [20, 300])
def test_blocks(block, normalize, device, monkeypatch):
    """The CPU's path in blocks of less than a query's weights, of a few queries, and of a few clouds."""
    module = importlib.import_module("attlas.kernels.surface_attention")
    monkeypatch.setattr(module, "BLOCK", block)
    monkeypatch.setattr(module, "WHOLE", 0)
    monkeypatch.setattr(module, "SMALL_PRODUCT", 7 * 7 * 5)  # those with v are not small
    for shape in ((3, 11, 7), (5, 2, 5), (2, 23), (2, 1, 7)):
        inputs = leaves(tensors(*shape, device=device))
        tolerance = torch.float32 if shape == (2, 1, 7) else None  # as above
        assert_gradients_agree(
            lambda *x: surface_attention(*x, normalize), lambda *x: by_definition(*x, normalize), inputs, tolerance
        )


def test_many_queries_per_program(triton_path, device, monkeypatch):
    monkeypatch.setattr(importlib.import_module("attlas.kernels.surface_attention"), "PROGRAMS", 4)
    inputs = leaves(tensors(2, 7, 5, device=device))
    assert_gradients_agree(surface_attention, lambda *x: by_definition(*x, "points"), inputs)


def test_more_neighbors_than_a_tile_holds(triton_path, device, monkeypatch):
    monkeypatch.setattr(importlib.import_module("attlas.kernels.surface_attention"), "LARGEST_TILE", 4)
    inputs = leaves(tensors(2, 3, 5, device=device))
    assert_gradients_agree(surface_attention, lambda *x: by_definition(*x, "points"), inputs)


def test_threads_change_nothing(device, monkeypatch):
    module = importlib.import_module("attlas.kernels.surface_attention")
    monkeypatch.setattr(module, "THREAD", 1)
    monkeypatch.setattr(module, "WHOLE", 0)
    monkeypatch.setattr(importlib.import_module("attlas.kernels.dispatch"), "ALONE", 0.0)
    inputs = leaves(tensors(3, 40, 8, dtype=torch.float32, device=device))
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            result = surface_attention(*inputs)
            results.append((result, *torch.autograd.grad(result.square().sum(), inputs)))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(x, y) for x, y in zip(*results))


@pytest.mark.parametrize("normalize", ["points", "queries"])
@pytest.mark.parametrize("shape", [(2, 3, 4), (2, 5), (1, 1, 3)])
def test_gradcheck(shape, normalize):
    inputs = leaves(tensors(*shape))
    assert torch.autograd.gradcheck(lambda *x: surface_attention(*x, normalize), inputs)


@pytest.mark.parametrize("normalize", ["points", "queries", "itself"])
def test_operators(normalize, path, device):
    shape = (2, 1, 4) if normalize == "itself" else (2, 3, 4)
    test_utils = ["test_schema", "test_faketensor", "test_autograd_registration"]
    inputs = leaves(tensors(*shape, dtype=torch.bfloat16, device=device))
    torch.library.opcheck(surface_attention_op, (*inputs, normalize), test_utils=test_utils)
    inputs = [x.detach() for x in inputs]
    arguments = torch.ones_like(inputs[2]), *inputs, *surface_attention_op(*inputs, normalize), normalize
    torch.library.opcheck(surface_attention_backward_op, arguments, test_utils=test_utils)


@pytest.mark.parametrize("normalize", ["points", "queries"])
def test_compiled(normalize, device):
    inputs = leaves(tensors(2, 3, 4, device=device))
    compiled = torch.compile(lambda *x: surface_attention(*x, normalize) * 2, fullgraph=True, backend="aot_eager")
    assert_gradients_agree(compiled, lambda *x: by_definition(*x, normalize) * 2, inputs)
    torch.library.opcheck(surface_attention_op, (*inputs, normalize))


def test_half_precision_is_summed_in_float32(path, device):
    """The error is that of rounding the inputs' products once, not of adding them in bfloat16."""
    inputs = tensors(1, 40, dtype=torch.bfloat16, device=device)
    got = surface_attention(*inputs, "queries")
    assert_agree("result", got, by_definition(*(x.double() for x in inputs), "queries").to(got.dtype))


def test_bad_arguments():
    q, k, v = tensors(2, 5, 7)
    with pytest.raises(ValueError, match=r"normalize must be one of .*, got 'rows'"):
        surface_attention(q, k, v, "rows")
    with pytest.raises(ValueError, match="q and k must have one shape"):
        surface_attention(q, k[:, :4], v)
    with pytest.raises(ValueError, match="q and k must have one shape"):
        surface_attention(q, k, v[:, :, :6])
    with pytest.raises(TypeError, match=r"one floating-point dtype, got torch.float64, torch.float64, torch.float32"):
        surface_attention(q, k, v.float())
    with pytest.raises(TypeError, match=r"one floating-point dtype, got torch.int64"):
        surface_attention(q.long(), k.long(), v.long())
