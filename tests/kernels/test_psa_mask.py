import itertools

import pytest
import torch
from agreement import assert_agree, assert_gradients_agree
from golden_records import Record

from attlas.kernels import psa_mask
from attlas.kernels.psa_mask import psa_mask_backward_op, psa_mask_op, psa_mask_reference

MODES = ("collect", "distribute")


def by_loops(x, kernel, mode):
    """By definition: one number after the other."""
    batch, _, height, width = x.shape
    out = x.new_zeros(batch, height, width, height, width)
    for i, j, row, column in itertools.product(range(height), range(width), range(height), range(width)):
        tap = row - i + (kernel[0] - 1) // 2, column - j + (kernel[1] - 1) // 2
        if 0 <= tap[0] < kernel[0] and 0 <= tap[1] < kernel[1]:
            at = (row, column, i, j) if mode == "collect" else (i, j, row, column)
            out[(slice(None), *at)] = x[:, tap[0] * kernel[1] + tap[1], i, j]
    return out.flatten(1, 2)


CASES = [((2, 4, 3), (3, 5)), ((1, 3, 5), (9, 2)), ((2, 2, 2), (1, 1)), ((1, 5, 1), (4, 3))]


def make(shape, kernel, dtype=torch.float64, device="cpu"):
    batch, *size = shape
    x = torch.randn(batch, kernel[0] * kernel[1], *size, dtype=torch.float64)
    return x.to(device, dtype).requires_grad_()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("shape", "kernel"), CASES)
def test_equals_the_definition(path, device, shape, kernel, mode):
    x = make(shape, kernel, device=device)
    assert torch.equal(psa_mask(x, kernel, mode), by_loops(x, kernel, mode))
    assert_gradients_agree(lambda x: psa_mask(x, kernel, mode), lambda x: by_loops(x, kernel, mode), [x])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dtypes(path, device, dtype, mode):
    x = make((1, 4, 3), (3, 3), dtype, device)
    assert_gradients_agree(lambda x: psa_mask(x, (3, 3), mode), lambda x: by_loops(x, (3, 3), mode), [x])


def test_the_two_are_each_others_transpose(path, device):
    x = make((2, 4, 3), (5, 3), device=device)
    collect, distribute = (psa_mask(x, (5, 3), mode).flatten(2) for mode in MODES)
    assert torch.equal(collect, distribute.mT)


def test_a_kernel_over_the_whole_map_keeps_every_tie(path, device):
    """2 H - 1 by 2 W - 1 taps, as PSANet has: of each row of ties, none is zero; their sum is that of the taps seen."""
    x = torch.ones(1, 7 * 5, 4, 3, device=device)
    for mode in MODES:
        assert torch.equal(psa_mask(x, (7, 5), mode), torch.ones(1, 12, 4, 3, device=device))


def test_operators(path, device):
    x = make((1, 3, 2), (3, 2), device=device)
    for collect in (True, False):
        torch.library.opcheck(psa_mask_op, (x, 3, 2, collect))
        torch.library.opcheck(psa_mask_backward_op, (torch.randn(1, 6, 3, 2, device=device), 3, 2, collect))


def test_strided(path, device):
    x = make((2, 4, 3), (3, 3), device=device)
    large = make((2, 9, 8), (5, 4), device=device).detach()  # of more pixels than a tile of the GPU
    large = large.contiguous(memory_format=torch.channels_last)
    for mode in MODES:
        assert torch.equal(psa_mask(large, (5, 4), mode), by_loops(large, (5, 4), mode))
    for odd in (x.detach().contiguous(memory_format=torch.channels_last), torch.cat([x, x], 1).detach()[:, 9:]):
        for mode in MODES:
            leaf = odd.requires_grad_()
            assert torch.equal(psa_mask(leaf, (3, 3), mode), by_loops(leaf, (3, 3), mode))
            (grad,) = torch.autograd.grad(psa_mask(leaf, (3, 3), mode).sum(), leaf)  # of one number, expanded
            assert_agree("gradient", grad, torch.autograd.grad(by_loops(leaf, (3, 3), mode).sum(), leaf)[0])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(3, 70), (9, 65)])  # parts of a row, and blocks of pixels, of the GPU's forward
def test_maps_of_several_tiles(path, device, size, mode):
    x = torch.randn(1, 15, *size, device=device)
    expected = psa_mask_reference(x, 3, 5, mode == "collect")
    for layout in (torch.contiguous_format, torch.channels_last):
        assert torch.equal(psa_mask(x.contiguous(memory_format=layout), (3, 5), mode), expected)


def test_empty(path, device):
    x = make((0, 4, 3), (3, 3), device=device)
    out = psa_mask(x, (3, 3), "collect")
    assert out.shape == (0, 12, 4, 3)
    assert torch.autograd.grad(out.sum(), x)[0].shape == x.shape


@pytest.mark.parametrize("mode", MODES)
def test_equals_the_compiled_extension(path, device, mode):
    record = Record(f"mmcv/psamask_{mode}")
    x, grad = (record.input(f"psamask_{mode}.{name}", torch.float32).to(device) for name in ("x", "grad"))
    out = psa_mask(x.requires_grad_(), record.config["kernel_size"], mode)
    assert torch.equal(out.cpu(), record.output(0))
    assert torch.equal(torch.autograd.grad(out, x, grad)[0].cpu(), record.output(1))


def test_bad_arguments():
    x = make((1, 4, 3), (3, 3))
    for bad, message in [
        ((x[0], (3, 3), "collect"), r"x must have shape \(B, 9, H, W\) with H, W of at least 1, got \(9, 4, 3\)"),
        ((x, (3, 5), "collect"), r"x must have shape \(B, 15, H, W\) .* got \(1, 9, 4, 3\)"),
        ((x, (3, 3), "Collect"), r"mode must be one of \('collect', 'distribute'\), got 'Collect'"),
        ((x, 3, "collect"), r"kernel_size must be two integers, got 3"),
        ((x, (3, 0), "collect"), r"kernel_size must lie in 1\.\.2147483647, got 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            psa_mask(*bad)
    with pytest.raises(TypeError, match=r"x must be floating point .* got torch\.int64"):
        psa_mask(x.long(), (3, 3), "collect")
