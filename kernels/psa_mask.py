"""Masks of point-wise spatial attention (PSANet): a map of how every pixel is tied to those around it, made absolute.

Each pixel p = (i, j) has kh x kw numbers for the pixels around it. As a matrix over all pixels q of the map,

    tie[b, p, q] = x[b, q - p + half, p] where that tap exists, else 0,    half = ((kh - 1) // 2, (kw - 1) // 2)

    distribute    out[b, p, q] = tie[b, p, q]
    collect       out[b, q, p] = tie[b, p, q]

Numbers only move, so that all paths are equal to the last bit. No index of the size of the matrix is made.

Source: PSANet, ECCV 2018.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .checks import check_choice, check_floats, check_integer
from .dispatch import compiled, decompose, each, pick, slices, tl, triton

MODES = ("collect", "distribute")
# Rows of taps that a thread copies at a time.
TAP_ROWS = 8


def psa_mask(x: Tensor, kernel_size: tuple[int, int], mode: str) -> Tensor:
    """Relative masks as absolute ones; differentiable.

    Args:
        x: masks (B, kh kw, H, W) of any floating-point dtype, taps in row-major order.
        kernel_size: (kh, kw), at least 1 each, of any size beside H and W.
        mode: "collect" or "distribute".

    Returns:
        (B, H W, H, W) in the dtype of x. Along axis 1 are the pixels p of "distribute", and q of "collect".

    Raises:
        ValueError, TypeError: an argument of another shape, dtype or value.
    """
    check_floats(x=x)
    check_choice(mode, "mode", MODES)
    if not isinstance(kernel_size, (tuple, list)) or len(kernel_size) != 2:
        raise ValueError(f"kernel_size must be two integers, got {kernel_size!r:.60}")
    for length in kernel_size:
        check_integer(length, "kernel_size")
    taps = kernel_size[0] * kernel_size[1]
    if x.ndim != 4 or x.shape[1] != taps or 0 in x.shape[2:]:
        raise ValueError(f"x must have shape (B, {taps}, H, W) with H, W of at least 1, got {tuple(x.shape)}")
    return psa_mask_op(x, *kernel_size, mode == "collect")


def _taps(size: Sequence[int], kernel: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
    """(P, P): the tap by which p is tied to q, and whether there is one; tap 0 where there is none."""
    rows, columns = (
        torch.arange(length, device=device) - torch.arange(length, device=device).unsqueeze(1) + (k - 1) // 2
        for length, k in zip(size, kernel)
    )
    row, column = rows[:, None, :, None], columns[None, :, None, :]
    inside = (row >= 0) & (row < kernel[0]) & (column >= 0) & (column < kernel[1])
    tap = (row * kernel[1] + column).where(inside, 0)
    pixels = size[0] * size[1]
    return tap.reshape(pixels, pixels), inside.reshape(pixels, pixels)


def psa_mask_reference(x: Tensor, kh: int, kw: int, collect: bool) -> Tensor:
    tap, inside = _taps(x.shape[2:], (kh, kw), x.device)
    tie = x.flatten(2).mT.gather(2, tap.expand(len(x), -1, -1)).where(inside, 0)
    return (tie.mT if collect else tie).unflatten(2, x.shape[2:]).contiguous()


def psa_mask_backward_reference(grad: Tensor, kh: int, kw: int, collect: bool) -> Tensor:
    tap, inside = _taps(grad.shape[2:], (kh, kw), grad.device)
    tie = grad.flatten(2)
    tie = (tie.mT if collect else tie).where(inside, 0)
    grad_x = tie.new_zeros(*tie.shape[:2], kh * kw).scatter_add_(2, tap.expand(len(grad), -1, -1), tie)
    return grad_x.mT.unflatten(2, grad.shape[2:]).contiguous()


@compiled
def _move(x, tie, kw, half_h, half_w, first, last, back):
    """Copy the rows `first`..`last` - 1 of taps from x (K, H, W) to tie (P, P), or back."""
    _, height, width = x.shape
    for tap_row in range(first, last):
        down = tap_row - half_h
        for i in range(max(0, -down), min(height, height - down)):
            for tap_column in range(kw):
                right = tap_column - half_w
                tap, to = tap_row * kw + tap_column, (i + down) * width + right
                for j in range(max(0, -right), min(width, width - right)):
                    if back:
                        x[tap, i, j] = tie[i * width + j, to + j]
                    else:
                        tie[i * width + j, to + j] = x[tap, i, j]


def _each_tap_row(x: Tensor, absolute: Tensor, kh: int, kw: int, collect: bool, back: bool) -> None:
    ties = absolute.flatten(2).mT if collect else absolute.flatten(2)
    # Numba has no bfloat16, and numbers only move
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
    given, made = x.view(kind).numpy(), ties.view(kind).numpy()
    half = (kh - 1) // 2, (kw - 1) // 2
    blocks = [(b, rows) for b in range(len(x)) for rows in slices(0, kh, TAP_ROWS)]
    each(lambda at: _move(given[at[0]], made[at[0]], kw, *half, at[1].start, at[1].stop, back), blocks)


def _psa_mask_cpu(x: Tensor, kh: int, kw: int, collect: bool) -> Tensor:
    out = x.new_zeros(len(x), x.shape[2] * x.shape[3], *x.shape[2:])
    _each_tap_row(x, out, kh, kw, collect, back=False)
    return out


def _psa_mask_backward_cpu(grad: Tensor, kh: int, kw: int, collect: bool) -> Tensor:
    grad_x = grad.new_zeros(len(grad), kh * kw, *grad.shape[2:])
    _each_tap_row(grad_x, grad, kh, kw, collect, back=True)
    return grad_x


# Triton: numbers of an image are counted in 32 bits, since 64-bit divisions would take most of the time.

TILE = 4096  # ties of a program of the forward
BLOCK = 1024  # numbers of a program of the backward


@triton.jit(do_not_specialize=["height", "width", "kh", "kw"])
def psa_mask_fwd_kernel(
    x, out, tap_stride, pixel_stride, height, width, kh, kw,
    COLLECT: tl.constexpr, PIXELS: tl.constexpr, OTHERS: tl.constexpr,
):  # fmt: skip
    """The ties of some pixels p to some others q in one row of the map.

    They are read along q, whose taps follow each other, and stored as they lie in `out`.
    """
    image, pixels = tl.program_id(1).to(tl.int64), height * width
    parts = tl.cdiv(width, OTHERS)
    p = tl.program_id(0) // (height * parts) * PIXELS + tl.arange(0, PIXELS)
    part = tl.program_id(0) % (height * parts)
    q_row, q_column = part // parts, part % parts * OTHERS + tl.arange(0, OTHERS)
    row = q_row - p // width + (kh - 1) // 2
    column = q_column[None, :] - (p % width)[:, None] + (kw - 1) // 2
    exists = (p < pixels)[:, None] & (q_column < width)[None, :]
    inside = exists & ((row >= 0) & (row < kh))[:, None] & (column >= 0) & (column < kw)
    place = (row * kw * tap_stride + p * pixel_stride)[:, None] + column * tap_stride
    value = tl.load(x + image * kh * kw * pixels + place, mask=inside, other=0)
    q = q_row * width + q_column
    out += image * pixels * pixels
    if COLLECT:
        tl.store(out + q[:, None] * pixels + p[None, :], tl.trans(value), mask=tl.trans(exists))
    else:
        tl.store(out + p[:, None] * pixels + q[None, :], value, mask=exists)


@triton.jit(do_not_specialize=["height", "width", "kh", "kw"])
def psa_mask_bwd_kernel(grad, grad_x, height, width, kh, kw, COLLECT: tl.constexpr, BLOCK: tl.constexpr):
    at, image = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.program_id(1).to(tl.int64)
    pixels = height * width
    exists, pixel, tap = at < kh * kw * pixels, at % pixels, at // pixels
    row, column = pixel // width + tap // kw - (kh - 1) // 2, pixel % width + tap % kw - (kw - 1) // 2
    inside = exists & (row >= 0) & (row < height) & (column >= 0) & (column < width)
    other = row * width + column
    place = other * pixels + pixel if COLLECT else pixel * pixels + other
    value = tl.load(grad + image * pixels * pixels + place, mask=inside, other=0)
    tl.store(grad_x + image * kh * kw * pixels + at, value, mask=exists)


def _psa_mask_triton(x: Tensor, kh: int, kw: int, collect: bool) -> Tensor:
    pixels = x.shape[2:].numel()
    if pixels * max(x.shape[1], pixels) >= 2**31 - TILE:
        return psa_mask_reference(x, kh, kw, collect)
    out = x.new_empty(len(x), pixels, *x.shape[2:])
    if out.numel():
        together = x.is_contiguous(memory_format=torch.channels_last)
        strides = (1, kh * kw) if together else (pixels, 1)  # of taps and pixels
        others = min(64, triton.next_power_of_2(x.shape[3]))
        grid = triton.cdiv(pixels, TILE // others) * x.shape[2] * triton.cdiv(x.shape[3], others), len(x)
        with torch.cuda.device_of(x):
            psa_mask_fwd_kernel[grid](
                x if together else x.contiguous(), out, *strides, *x.shape[2:], kh, kw,
                COLLECT=collect, PIXELS=TILE // others, OTHERS=others,
            )  # fmt: skip
    return out


def _psa_mask_backward_triton(grad: Tensor, kh: int, kw: int, collect: bool) -> Tensor:
    if grad.shape[2:].numel() * max(kh * kw, grad.shape[1]) >= 2**31 - BLOCK:
        return psa_mask_backward_reference(grad, kh, kw, collect)
    grad_x = grad.new_empty(len(grad), kh * kw, *grad.shape[2:])
    if grad_x.numel():
        grid = triton.cdiv(grad_x[0].numel(), BLOCK), len(grad)
        with torch.cuda.device_of(grad):
            psa_mask_bwd_kernel[grid](grad.contiguous(), grad_x, *grad.shape[2:], kh, kw, COLLECT=collect, BLOCK=BLOCK)
    return grad_x


@torch.library.custom_op("attlas::psa_mask", mutates_args=())
def psa_mask_op(x: Tensor, kh: int, kw: int, collect: bool) -> Tensor:
    return pick(x, reference=psa_mask_reference, triton=_psa_mask_triton, cpu=_psa_mask_cpu)(x, kh, kw, collect)


@psa_mask_op.register_fake
def _(x, kh, kw, collect):
    return x.new_empty(x.shape[0], x.shape[2] * x.shape[3], *x.shape[2:])


@torch.library.custom_op("attlas::psa_mask_backward", mutates_args=())
def psa_mask_backward_op(grad: Tensor, kh: int, kw: int, collect: bool) -> Tensor:
    return pick(
        grad, reference=psa_mask_backward_reference, triton=_psa_mask_backward_triton, cpu=_psa_mask_backward_cpu
    )(grad, kh, kw, collect)


@psa_mask_backward_op.register_fake
def _(grad, kh, kw, collect):
    return grad.new_empty(grad.shape[0], kh * kw, *grad.shape[2:])


def _setup_context(ctx, inputs, output):
    ctx.settings = inputs[1:]


def _backward(ctx, grad):
    return psa_mask_backward_op(grad, *ctx.settings), None, None, None


psa_mask_op.register_autograd(_backward, setup_context=_setup_context)
decompose(psa_mask_op, psa_mask_reference)
