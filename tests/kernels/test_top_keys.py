import importlib

import pytest
import torch

from attlas.kernels.top_keys import top_keys, top_keys_op


def by_definition(coefficients, basis, count, kept=None):
    """The keys in rising order, of float64 scores; of equal ones the first."""
    weights = coefficients.double()
    if kept is not None:
        least = weights.sort(-1, descending=True).values[..., kept - 1 : kept]
        weights = weights * (weights >= least)
    scores = weights @ basis.double().unsqueeze(1)
    return torch.sort(scores, dim=-1, descending=True, stable=True).indices[..., :count].sort(-1).values


def tensors(batch=2, heads=2, queries=5, rows=6, keys=37, groups=1, device="cpu"):
    return (torch.randn(*size, device=device) for size in ((batch, heads, queries, rows), (groups, rows, keys)))


@pytest.mark.parametrize(("keys", "count", "kept"), [(37, 9, 3), (37, 37, None), (1, 1, 1), (16, 1, 6), (130, 128, 2)])
@pytest.mark.parametrize("groups", [1, 2])
def test_are_those_of_the_highest_scores(keys, count, kept, groups, device):
    coefficients, basis = tensors(keys=keys, groups=groups, device=device)
    index = top_keys(coefficients, basis, count, kept)
    assert index.dtype == torch.int32
    assert torch.equal(index.long().sort(-1).values, by_definition(coefficients, basis, count, kept))


@pytest.mark.parametrize("mode", ["auto", "reference"])
@pytest.mark.parametrize("value", [0.0, 1.0, float("nan")])
def test_equal_scores(value, mode, monkeypatch):
    """A score stands many times, above and below the last key, or everywhere: K keys of the highest all the same."""
    monkeypatch.setenv("ATTLAS_KERNELS", mode)
    basis = torch.tensor([[3.0, 1, 1, 0, 1, -2, 1, 0, 3, 1] * 5]).unsqueeze(0)
    for count in range(1, 51):
        (keys,) = top_keys(torch.full((1, 1, 1, 1), value), basis, count).flatten(0, 2).long()
        assert len(keys.unique()) == count
        if value == 1:
            score = basis[0, 0]
            assert (
                score[keys].sort(descending=True).values.tolist() == score.sort(descending=True).values[:count].tolist()
            )
            if mode == "auto":
                assert (
                    keys.sort().values.tolist()
                    == by_definition(torch.ones(1, 1, 1, 1), basis, count).flatten().tolist()
                )


def test_random_scores_of_every_kind():
    """Scores that lie evenly, in clusters, far apart, and rounded, so that many are equal."""
    for seed in range(200):
        torch.manual_seed(seed)
        keys = int(torch.randint(1, 80, ()))
        scores = torch.randn(keys).pow(3) * 10.0 ** (seed % 5 - 2)
        scores = scores.round() if seed % 2 else scores
        count = int(torch.randint(1, keys + 1, ()))
        ones, basis = torch.ones(1, 1, 1, 1), scores.view(1, 1, -1)
        index = top_keys(ones, basis, count).long().sort(-1).values
        assert torch.equal(index, by_definition(ones, basis, count)), seed


def test_in_blocks(monkeypatch):
    """The path of other devices with one query at a time."""
    coefficients, basis = tensors()
    expected = top_keys(coefficients, basis, 5, 2)
    monkeypatch.setenv("ATTLAS_KERNELS", "reference")
    monkeypatch.setattr(importlib.import_module("attlas.kernels.top_keys"), "BLOCK", 1)
    assert torch.equal(top_keys(coefficients, basis, 5, 2).sort(-1).values, expected.sort(-1).values)


def test_half_types_empty_and_strided():
    coefficients, basis = tensors()
    index = top_keys(coefficients.bfloat16(), basis.half(), 5)
    assert torch.equal(index.long().sort(-1).values, by_definition(coefficients.bfloat16(), basis.half(), 5))
    turned = top_keys(coefficients.mT.contiguous().mT, basis.mT.contiguous().mT, 5)
    assert torch.equal(turned, top_keys(coefficients, basis, 5))
    assert top_keys(coefficients[:0], basis, 5).shape == (0, 2, 5, 5)
    assert top_keys(coefficients[:, :, :0], basis, 5).shape == (2, 2, 0, 5)


def test_operator():
    torch.library.opcheck(top_keys_op, (*tensors(), 3, 2))


def test_bad_arguments():
    coefficients, basis = tensors()
    for arguments, error, message in (
        ((coefficients[0], basis, 3), ValueError, r"coefficients must have shape \(B, H, S, R\), got \(2, 5, 6\)"),
        ((coefficients, basis[:, 1:], 3), ValueError, r"basis must have shape \(1 or 2, 6, N\), got \(1, 5, 37\)"),
        ((coefficients, basis.expand(3, -1, -1), 3), ValueError, "basis must have shape"),
        ((coefficients, basis.long(), 3), TypeError, "basis must be floating point"),
        ((coefficients, basis, 38), ValueError, r"count must lie in 1\.\.37, got 38"),
        ((coefficients, basis, 0), ValueError, r"count must lie in 1\.\.37, got 0"),
        ((coefficients, basis, 3, 7), ValueError, r"kept must lie in 1\.\.6, got 7"),
        ((coefficients, basis, 3.0), TypeError, r"count must be an integer, got 3\.0"),
    ):
        with pytest.raises(error, match=message):
            top_keys(*arguments)
