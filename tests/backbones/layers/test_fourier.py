"""Transforms of maps by their definition, and the matrices that exports hold in their place."""

import math

import onnxruntime
import pytest
import torch
from torch import nn

from attlas.backbones.layers import from_spectrum, to_spectrum
from attlas.backbones.layers.fourier import of_real_rows
from attlas.kernels.dispatch import decompositions

SIZES = [(1, 1), (1, 5), (2, 2), (4, 1), (7, 6), (6, 7), (9, 12)]


def normal(*shape, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


class Filter(nn.Module):
    """Forth and back, through a product that is no real map's."""

    def forward(self, x):
        spectrum = to_spectrum(x)
        return from_spectrum(spectrum * torch.view_as_complex(torch.view_as_real(spectrum) + 0.3), x.shape[-1])


@pytest.mark.parametrize("size", SIZES)
def test_by_definition(size):
    height, width = size
    x = normal(2, 3, *size)
    rows, columns = (
        torch.exp(-2j * math.pi / n * torch.outer(*[torch.arange(n, dtype=torch.float64)] * 2)) / n**0.5 for n in size
    )
    expected = (rows @ x.to(torch.complex128) @ columns)[..., : width // 2 + 1]
    torch.testing.assert_close(to_spectrum(x), expected)
    torch.testing.assert_close(from_spectrum(expected, width), x)
    assert to_spectrum(x).shape == (2, 3, height, width // 2 + 1)


@pytest.mark.parametrize("size", SIZES)
def test_what_no_real_map_has_is_left_out(size):
    """Of any spectrum, the real part of the map counts: the full inverse of it and of the conjugates left out."""
    height, width = size
    spectrum = normal(1, 2, height, width // 2 + 1, dtype=torch.complex128)
    full = torch.zeros(1, 2, *size, dtype=torch.complex128)
    once = torch.arange(width // 2 + 1) * 2 % width == 0
    full[..., : width // 2 + 1] = spectrum * (2 - once.double())
    expected = torch.fft.ifft2(full, norm="ortho").real
    torch.testing.assert_close(from_spectrum(spectrum, width), expected)
    rows = torch.fft.ifft(spectrum, dim=-2, norm="ortho")
    kept = of_real_rows(rows, width)  # as on a GPU
    torch.testing.assert_close(torch.fft.irfft(kept, n=width, norm="ortho"), expected)
    assert torch.equal(kept.real, rows.real)
    assert torch.equal(kept.imag == 0, once.expand_as(kept))


def free_sizes(module, x):
    auto = torch.export.Dim.AUTO
    return torch.export.export(module, (x,), dynamic_shapes=({0: auto, 2: auto, 3: auto},))


def transforms(program):
    return {str(node.target) for node in program.graph.nodes if "fft" in str(node.target)}


def test_matrices_are_exact():
    """To all digits, at sizes that the export left free; it takes width 1, where a row has one frequency, for a special
    case."""
    program = free_sizes(Filter(), normal(2, 3, 9, 12))
    assert transforms(program)
    program = program.run_decompositions(decompositions())
    assert not transforms(program)
    for size in (*[size for size in SIZES if size[1] > 1], (64, 300), (301, 40)):
        x = normal(3, 3, *size)
        torch.testing.assert_close(program.module()(x), Filter()(x), atol=1e-13, rtol=0)


def test_transforms_of_other_options_stay():
    class Other(nn.Module):
        def forward(self, x):
            y = torch.fft.irfft(torch.fft.ifft(torch.fft.rfft2(x), dim=-2), n=x.shape[-1])
            return y + torch.fft.irfft(torch.fft.rfft(x, norm="ortho"), norm="forward")

    x = normal(1, 2, 4, 6)
    program = torch.export.export(Other(), (x,)).run_decompositions(decompositions())
    assert len(transforms(program)) == 4
    torch.testing.assert_close(program.module()(x), Other()(x))


def test_onnx_at_free_sizes(tmp_path):
    program = free_sizes(Filter(), normal(2, 3, 9, 12, dtype=torch.float32)).run_decompositions(decompositions())
    torch.onnx.export(program, f=tmp_path / "x.onnx", dynamo=True, verbose=False, optimize=False)
    session = onnxruntime.InferenceSession(tmp_path / "x.onnx", providers=["CPUExecutionProvider"])
    for size in SIZES[1:]:
        x = normal(1, 3, *size, dtype=torch.float32)
        (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(got), Filter()(x), atol=1e-5, rtol=1e-5)
