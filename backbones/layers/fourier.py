"""Maps and their spectra: Fourier transforms over height and width, at any size and alike on every device.

Exports to ONNX hold them as products with matrices of cosines and sines, which every runtime has: what PyTorch writes
there with ONNX's own transform cannot go back to a map of free width. Of H x W pixels each then costs H + W products,
O(N^1.5) in all, where the transforms are O(N log N).
"""

import math

import torch
from torch import Tensor

from ...kernels.dispatch import decompose


def to_spectrum(x: Tensor) -> Tensor:
    """The spectra of real maps (B, C, H, W), float32 or float64: complex (B, C, H, W // 2 + 1), orthonormal. Those
    frequencies are left out that are conjugates of others."""
    return torch.fft.rfft2(x.contiguous(), norm="ortho")


def from_spectrum(spectrum: Tensor, width: int) -> Tensor:
    """The inverse of `to_spectrum`: (B, C, H, width // 2 + 1) -> (B, C, H, width).

    A spectrum that no real map has, such as a product with a mask of any kind, gives the real part of its map.
    """
    rows = torch.fft.ifft(spectrum, dim=-2, norm="ortho")
    if rows.is_cuda:
        rows = of_real_rows(rows, width)
    return torch.fft.irfft(rows, n=width, norm="ortho")


def of_real_rows(rows: Tensor, width: int) -> Tensor:
    """Spectra of rows (..., width // 2 + 1) without the imaginary parts that no real row has: of the first frequency,
    and of an even width the last. Libraries for CPUs skip these; cuFFT promises nothing where they are not zero."""
    ends = torch.arange(rows.shape[-1], device=rows.device) * 2 % width == 0
    return torch.complex(rows.real, rows.imag.masked_fill(ends, 0))


# --- as products with matrices ---------------------------------------------------------------------------------------


def _ramp(size: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """0, 1, ... size - 1, and `size` itself, (1,): the exporter to ONNX takes no free number for a remainder."""
    ramp = torch.arange(size, device=like.device)
    return ramp, ramp[-1:] + 1


def _waves(size: int, count: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of 2π j k / size, over the root of size: (size, count), for places j and frequencies k."""
    places, whole = _ramp(size, like)
    turns = places[:, None] * _ramp(count, like)[0] % whole  # more than one turn would cost digits
    angles = turns.to(like.dtype) * (2 * math.pi / whole.to(like.dtype))
    scale = whole.to(like.dtype).rsqrt()
    return angles.cos() * scale, angles.sin() * scale


def _columns(real: Tensor, imaginary: Tensor, sign: int) -> Tensor:
    """The transform of columns of complex numbers (..., H, K), forth (sign = -1) or back (1)."""
    size = real.shape[-2]
    cosine, sine = _waves(size, size, real)
    sine = sine * sign
    return torch.complex(cosine @ real - sine @ imaginary, cosine @ imaginary + sine @ real)


def _rfft2(x: Tensor, s=None, dim=(-2, -1), norm=None):
    if (s, tuple(dim), norm) != (None, (-2, -1), "ortho"):
        return NotImplemented
    width = x.shape[-1]
    cosine, sine = _waves(width, width // 2 + 1, x)
    return _columns(x @ cosine, -(x @ sine), -1)


def _ifft(x: Tensor, n=None, dim=-1, norm=None):
    if (n, dim, norm) != (None, -2, "ortho"):
        return NotImplemented
    return _columns(x.real, x.imag, 1)


def _irfft(x: Tensor, n=None, dim=-1, norm=None):
    if n is None or (dim, norm) != (-1, "ortho"):
        return NotImplemented
    real, imaginary = x.real, x.imag
    cosine, sine = _waves(n, x.shape[-1], real)
    # all frequencies but the first, and of an even width the last, stand for two
    twice = 2 - (_ramp(x.shape[-1], real)[0] * 2 % _ramp(n, real)[1] == 0).to(real.dtype)
    return (real * twice) @ cosine.mT - (imaginary * twice) @ sine.mT


decompose(torch.ops.aten.fft_rfft2.default, _rfft2)
decompose(torch.ops.aten.fft_ifft.default, _ifft)
decompose(torch.ops.aten.fft_irfft.default, _irfft)
