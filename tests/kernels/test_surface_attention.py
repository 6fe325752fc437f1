import pytest
import torch

from attlas.kernels import surface_attention


def tensors(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    q, k = torch.randn(2, *shape, 4, generator=generator, dtype=torch.float64)
    return q, k, torch.randn(*shape, 6, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("normalise", ["points", "queries"])
@pytest.mark.parametrize("shape", [(2, 5, 7), (2, 1, 3), (3, 6)])
def test_equals_the_sums(shape, normalise):
    q, k, v = tensors(*shape)
    neighbours = len(shape) == 3
    energy = torch.einsum("bsid,bsjd->bsij" if neighbours else "bid,bjd->bij", q, k)
    weight = energy.exp() / energy.exp().sum(-1, keepdim=True)
    axis = 1 if normalise == "points" or not neighbours else 2  # of the points; in the 3-D form they are the queries
    weight = weight / (1e-9 + weight.sum(axis, keepdim=True))
    expected = torch.einsum("bsij,bsic->bsjc" if neighbours else "bij,bic->bjc", weight, v)
    torch.testing.assert_close(surface_attention(q, k, v, normalise), expected)


def test_columns_are_averages():
    """Normalised over the queries, every output is a weighted mean: constant values stay as they are."""
    q, k, v = tensors(2, 5, 7)
    torch.testing.assert_close(surface_attention(q, k, torch.ones_like(v), "queries"), torch.ones_like(v))


@pytest.mark.parametrize("normalise", ["points", "queries"])
def test_gradients(normalise):
    inputs = [x.requires_grad_() for x in tensors(2, 3, 4)]
    assert torch.autograd.gradcheck(lambda *x: surface_attention(*x, normalise), inputs)


def test_bad_arguments():
    q, k, v = tensors(2, 5, 7)
    with pytest.raises(ValueError, match=r"normalise must be one of .*, got 'rows'"):
        surface_attention(q, k, v, "rows")
    with pytest.raises(ValueError, match="q and k must have one shape"):
        surface_attention(q, k[:, :4], v)
