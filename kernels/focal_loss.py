"""Focal losses: cross-entropies that count what is already right for less.

    sigmoid_focal_loss   -α (1 - p)^γ log p       of the row's class, p = sigmoid(logit),
                         -(1 - α) p^γ log(1 - p)  of all other classes
    softmax_focal_loss   -α (1 - p)^γ log p       of the row's class, p = its softmax

All is computed from the logits, so that no logarithm of a rounded probability occurs. A loss is multiplied by the
weight of its row's class, if there are weights; no gradient flows to these.

With z = -logit for the row's class and z = logit for the others, every term of the first is a multiple of
sigmoid(z)^γ softplus(z): both are the loss of believing z, which is wrong.

Suffixes of names: N rows (anchors, points), C classes.

Source: Lin et al., "Focal Loss for Dense Object Detection", arXiv 1708.02002; for the conventions,
`mmcv/ops/focal_loss.py`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import check_floats, check_number, check_range, check_tensors, sum_dtype
from .dispatch import decompose, each, pick, slices, tl, triton
from .tiles import triton_dtype

# Numbers that a thread takes at a time: they stay in its cache from one of PyTorch's operators to the next.
BLOCK = 1 << 15


def sigmoid_focal_loss(
    logits: Tensor, target: Tensor, weight: Tensor | None = None, gamma: float = 2.0, alpha: float = 0.25
) -> Tensor:
    """The focal loss of every class of every row, each a decision of its own; differentiable in the logits, once.

    Args:
        logits: (N, C), of any floating-point dtype; half types are computed in float32.
        target: class of each row (N,), int64, in 0..C; C is the background, which is none of the classes.
        weight: factors of the classes (C,), of any floating-point dtype, 1 by default and for the background.
        gamma: exponent of what is already right, at least 0.
        alpha: factor of a row's class; that of the others is 1 - alpha. At least 0.

    Returns:
        (N, C), in the dtype of the logits.

    Raises:
        ValueError, TypeError: an argument of another shape, dtype or value.
        IndexError: a target out of range (on a CPU).
    """
    _check(logits, target, weight, gamma, alpha)
    return sigmoid_focal_loss_op(logits, target, weight, float(gamma), float(alpha))


def softmax_focal_loss(
    logits: Tensor, target: Tensor, weight: Tensor | None = None, gamma: float = 2.0, alpha: float = 0.25
) -> Tensor:
    """The focal loss of every row, one decision among the classes; differentiable in the logits, once.

    Args:
        logits: (N, C), of any floating-point dtype; half types are computed in float32.
        target: class of each row (N,), int64, in -1..C-1; the loss of a row of class -1 is 0.
        weight: factors of the classes (C,), of any floating-point dtype, 1 by default.
        gamma: exponent of what is already right, at least 0.
        alpha: factor of all losses, at least 0.

    Returns:
        (N,), in the dtype of the logits.

    Raises:
        ValueError, TypeError: an argument of another shape, dtype or value.
        IndexError: a target out of range (on a CPU).
    """
    _check(logits, target, weight, gamma, alpha)
    return softmax_focal_loss_op(logits, target, weight, float(gamma), float(alpha))[0]


def _check(logits: Tensor, target: Tensor, weight: Tensor | None, gamma: float, alpha: float) -> None:
    check_floats(logits=logits)
    check_tensors(target=target)
    if logits.ndim != 2 or logits.shape[1] == 0:
        raise ValueError(f"logits must have shape (N, C) with C of at least 1, got {tuple(logits.shape)}")
    if target.dtype != torch.int64 or target.shape != logits.shape[:1]:
        raise ValueError(
            f"target must be int64 of shape ({len(logits)},), one per row, got {target.dtype} {tuple(target.shape)}"
        )
    if target.device != logits.device:
        raise ValueError(f"target must be on the device of logits, {logits.device}, got {target.device}")
    if weight is not None:
        check_floats(logits=logits, weight=weight)
        if weight.shape != logits.shape[1:]:
            raise ValueError(f"weight must have shape ({logits.shape[1]},), one per class, got {tuple(weight.shape)}")
    check_number(gamma, "gamma")
    check_number(alpha, "alpha")


def _of_rows(weight: Tensor | None, target_N: Tensor, like: Tensor) -> Tensor:
    """The factor of each row, in the dtype of sums; 1 for targets that are no class."""
    if weight is None:
        return torch.ones_like(target_N, dtype=sum_dtype(like))
    inside = (target_N >= 0) & (target_N < len(weight))
    return weight.to(sum_dtype(like))[target_N.where(inside, 0)].where(inside, 1)


# --- the definitions -------------------------------------------------------------------------------------------------


def _loss(z: Tensor, gamma: float) -> Tensor:
    return z.sigmoid() ** gamma * -F.logsigmoid(-z)


def _slope(z: Tensor, gamma: float) -> Tensor:
    """The derivative of `_loss`."""
    p = z.sigmoid()
    return p**gamma * (p - gamma * (1 - p) * F.logsigmoid(-z))


def _of_class(x_NC: Tensor, target_N: Tensor) -> Tensor:
    return target_N.unsqueeze(1) == torch.arange(x_NC.shape[1], device=x_NC.device)


def sigmoid_focal_loss_reference(
    logits: Tensor, target: Tensor, weight: Tensor | None, gamma: float, alpha: float
) -> Tensor:
    x_NC = logits.to(sum_dtype(logits))
    loss = torch.where(_of_class(x_NC, target), alpha * _loss(-x_NC, gamma), (1 - alpha) * _loss(x_NC, gamma))
    return (loss * _of_rows(weight, target, logits).unsqueeze(1)).to(logits.dtype)


def sigmoid_focal_loss_backward_reference(
    grad: Tensor | None, logits: Tensor, target: Tensor, weight: Tensor | None, gamma: float, alpha: float
) -> Tensor:
    x_NC = logits.to(sum_dtype(logits))
    slope = torch.where(_of_class(x_NC, target), -alpha * _slope(-x_NC, gamma), (1 - alpha) * _slope(x_NC, gamma))
    slope = slope * _of_rows(weight, target, logits).unsqueeze(1)
    return (slope if grad is None else slope * grad).to(logits.dtype)


def softmax_focal_loss_reference(
    logits: Tensor, target: Tensor, weight: Tensor | None, gamma: float, alpha: float
) -> tuple[Tensor, Tensor]:
    """The loss (N,), and for the backward log Σ exp(logits), (N,), in the dtype of sums."""
    x_NC = logits.to(sum_dtype(logits))
    total = x_NC.logsumexp(1)
    log_p = x_NC.gather(1, target.clamp(min=0).unsqueeze(1)).squeeze(1) - total
    loss = -alpha * (-log_p.expm1()).clamp(min=0) ** gamma * log_p * _of_rows(weight, target, logits)
    return loss.where(target >= 0, 0).to(logits.dtype), total


def softmax_focal_loss_backward_reference(
    grad: Tensor, logits: Tensor, total: Tensor, target: Tensor, weight: Tensor | None, gamma: float, alpha: float
) -> Tensor:
    x_NC, place = logits.to(sum_dtype(logits)), target.clamp(min=0).unsqueeze(1)
    p_NC = (x_NC - total.unsqueeze(1)).exp()
    log_p = x_NC.gather(1, place).squeeze(1) - total
    q = (-log_p.expm1()).clamp(min=0)
    ratio = (log_p / q.where(q > 0, 1)).where(q > 0, -1)  # log p / (1 - p), which tends to -1
    slope = -alpha * q**gamma * (1 - gamma * log_p.exp() * ratio) * _of_rows(weight, target, logits)
    slope = (slope * grad).where(target >= 0, 0).unsqueeze(1)
    gradient = (-slope * p_NC).scatter_add_(1, place, slope)
    return gradient.where(target.unsqueeze(1) >= 0, 0).to(logits.dtype)


# --- the CPU's path: PyTorch's operators, block by block -------------------------------------------------------------


def _sigmoid_cpu(function, sign: int, grad, logits: Tensor, target: Tensor, weight, gamma: float, alpha: float):
    """The loss or its gradient: for all numbers as if their class were another, then once more for the row's class."""
    (rows, classes), out = logits.shape, torch.empty_like(logits, memory_format=torch.contiguous_format)

    def block(part: slice) -> None:
        x = logits[part].to(sum_dtype(logits))
        value = function(x, gamma).mul_(1 - alpha)
        n = (target[part] < classes).nonzero().squeeze(1)
        c = target[part][n]
        value[n, c] = sign * alpha * function(-x[n, c], gamma)
        if weight is not None:
            value *= _of_rows(weight, target[part], logits).unsqueeze(1)
        out[part] = value if grad is None else value.mul_(grad[part])

    each(block, slices(0, rows, max(1, BLOCK // classes)))
    return out


def _sigmoid_focal_loss_cpu(logits: Tensor, target: Tensor, weight: Tensor | None, gamma: float, alpha: float):
    return _sigmoid_cpu(_loss, 1, None, logits, target, weight, gamma, alpha)


def _sigmoid_focal_loss_backward_cpu(grad: Tensor | None, logits: Tensor, target: Tensor, weight, gamma, alpha):
    return _sigmoid_cpu(_slope, -1, grad, logits, target, weight, gamma, alpha)


# --- Triton ----------------------------------------------------------------------------------------------------------


@triton.jit
def _softplus(z):
    small = tl.exp(-tl.abs(z))
    more = 1 + small
    # log(1 + small), exact for the smallest, too
    return tl.maximum(z, 0.0) + tl.where(more == 1, small, tl.log(more) * small / tl.where(more == 1, 1.0, more - 1))


@triton.jit(do_not_specialize=["numel", "rows"])
def sigmoid_focal_loss_kernel(
    logits, target, factors, exponent, grad, out, numel, rows, classes,
    BACKWARD: tl.constexpr, WIDE: tl.constexpr, HAS_GRAD: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """The loss, or its gradient if BACKWARD. Two factors of each row: that of its class, that of the others."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < numel
    row = at // classes
    of_class = tl.load(target + row, inside, -1) == at % classes
    x = tl.load(logits + at, inside, 0.0).to(WIDE)
    z = tl.where(of_class, -x, x)
    logarithm = _softplus(-z)  # -log p
    gamma = tl.load(exponent)
    p, believed = tl.exp(-logarithm), tl.exp(-gamma * logarithm)
    value = _softplus(z)
    if BACKWARD:
        value = p + gamma * (1 - p) * value
        value = tl.where(of_class, -value, value)
        if HAS_GRAD:
            value *= tl.load(grad + at, inside, 0.0).to(WIDE)
    value = value * believed * tl.load(factors + tl.where(of_class, row, rows + row), inside, 0.0)
    tl.store(out + at, value, inside)


def _sigmoid_triton(grad, logits: Tensor, target: Tensor, weight, gamma: float, alpha: float, backward: bool) -> Tensor:
    out = torch.empty_like(logits, memory_format=torch.contiguous_format)
    if out.numel():
        logits, of_rows = logits.contiguous(), _of_rows(weight, target, logits)
        # in memory, as float64 arguments would lose digits
        numbers = torch.stack([alpha * of_rows, (1 - alpha) * of_rows]), of_rows.new_full((1,), gamma)
        last = logits if grad is None else grad.contiguous()
        options = dict(BACKWARD=backward, WIDE=triton_dtype(of_rows.dtype), HAS_GRAD=grad is not None, BLOCK=1024)
        with torch.cuda.device_of(out):
            sigmoid_focal_loss_kernel[(triton.cdiv(out.numel(), 1024),)](
                logits, target.contiguous(), *numbers, last, out, out.numel(), *out.shape, **options
            )
    return out


def _sigmoid_focal_loss_triton(logits: Tensor, target: Tensor, weight: Tensor | None, gamma: float, alpha: float):
    return _sigmoid_triton(None, logits, target, weight, gamma, alpha, False)


def _sigmoid_focal_loss_backward_triton(grad: Tensor | None, logits: Tensor, target: Tensor, weight, gamma, alpha):
    return _sigmoid_triton(grad, logits, target, weight, gamma, alpha, True)


@triton.jit
def softmax_focal_loss_fwd_kernel(
    logits, target, factors, exponent, loss, total, classes,
    WIDE: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """A row: the sum of exponentials in one pass over it, then the loss."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * classes
    c = tl.arange(0, BLOCK_C)
    most, rest = tl.full([BLOCK_C], float("-inf"), WIDE), tl.zeros([BLOCK_C], WIDE)
    for first in range(0, classes, BLOCK_C):
        x = tl.load(logits + first + c, first + c < classes, float("-inf")).to(WIDE)
        higher = tl.maximum(most, x)
        base = tl.where(higher == float("-inf"), 0.0, higher)
        rest = rest * tl.exp(most - base) + tl.exp(x - base)
        most = higher
    peak = tl.max(most, 0)
    log_sum = peak + tl.log(tl.sum(rest * tl.exp(most - peak), 0))
    t = tl.load(target + row)
    log_p = tl.load(logits + tl.maximum(t, 0)).to(WIDE) - log_sum
    q = tl.maximum(1 - tl.exp(log_p), 0.0)
    gamma = tl.load(exponent)
    believed = tl.exp(gamma * tl.log(tl.maximum(q, 1e-37)))
    value = -believed * log_p * tl.load(factors + row)
    tl.store(loss + row, tl.where(t >= 0, value, 0.0))
    tl.store(total + row, log_sum)


@triton.jit
def softmax_focal_loss_bwd_kernel(
    logits, target, factors, exponent, total, grad, out, classes,
    WIDE: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    log_sum, t = tl.load(total + row), tl.load(target + row)
    log_p = tl.load(logits + row * classes + tl.maximum(t, 0)).to(WIDE) - log_sum
    p = tl.exp(log_p)
    q = tl.maximum(1 - p, 0.0)
    ratio = tl.where(q > 0, log_p / tl.where(q > 0, q, 1.0), -1.0)
    gamma = tl.load(exponent)
    believed = tl.exp(gamma * tl.log(tl.maximum(q, 1e-37)))
    slope = -believed * (1 - gamma * p * ratio) * tl.load(factors + row) * tl.load(grad + row).to(WIDE)
    slope = tl.where(t >= 0, slope, 0.0)
    for first in range(0, classes, BLOCK_C):
        c = first + tl.arange(0, BLOCK_C)
        x = tl.load(logits + row * classes + c, c < classes, float("-inf")).to(WIDE)
        tl.store(out + row * classes + c, slope * (tl.where(c == t, 1.0, 0.0) - tl.exp(x - log_sum)), c < classes)


def _softmax_launch(kernel, logits: Tensor, target: Tensor, weight, gamma: float, alpha: float, *tensors) -> None:
    rows, classes = logits.shape
    if rows:
        factors = alpha * _of_rows(weight, target, logits)
        inputs = logits.contiguous(), target.contiguous(), factors, factors.new_full((1,), gamma)
        options = dict(WIDE=triton_dtype(factors.dtype), BLOCK_C=min(1024, triton.next_power_of_2(classes)))
        with torch.cuda.device_of(logits):
            kernel[(rows,)](*inputs, *tensors, classes, **options)


def _softmax_focal_loss_triton(logits: Tensor, target: Tensor, weight: Tensor | None, gamma: float, alpha: float):
    loss, total = logits.new_empty(len(logits)), logits.new_empty(len(logits), dtype=sum_dtype(logits))
    _softmax_launch(softmax_focal_loss_fwd_kernel, logits, target, weight, gamma, alpha, loss, total)
    return loss, total


def _softmax_focal_loss_backward_triton(grad: Tensor, logits: Tensor, total, target: Tensor, weight, gamma, alpha):
    out = torch.empty_like(logits, memory_format=torch.contiguous_format)
    tensors = total, grad.contiguous(), out
    _softmax_launch(softmax_focal_loss_bwd_kernel, logits, target, weight, gamma, alpha, *tensors)
    return out


# --- the operators ---------------------------------------------------------------------------------------------------


@torch.library.custom_op("attlas::sigmoid_focal_loss", mutates_args=())
def sigmoid_focal_loss_op(logits: Tensor, target: Tensor, weight: Tensor | None, gamma: float, alpha: float) -> Tensor:
    check_range(target, logits.shape[1] + 1, "target")
    run = pick(
        logits,
        reference=sigmoid_focal_loss_reference,
        triton=_sigmoid_focal_loss_triton,
        cpu=_sigmoid_focal_loss_cpu,
    )
    return run(logits, target, weight, gamma, alpha).contiguous()


@torch.library.custom_op("attlas::sigmoid_focal_loss_backward", mutates_args=())
def sigmoid_focal_loss_backward_op(
    grad: Tensor | None, logits: Tensor, target: Tensor, weight: Tensor | None, gamma: float, alpha: float
) -> Tensor:
    """The gradient of the logits; `grad` is 1 everywhere if None."""
    check_range(target, logits.shape[1] + 1, "target")
    run = pick(
        logits,
        reference=sigmoid_focal_loss_backward_reference,
        triton=_sigmoid_focal_loss_backward_triton,
        cpu=_sigmoid_focal_loss_backward_cpu,
    )
    return run(grad, logits, target, weight, gamma, alpha).contiguous()


@torch.library.custom_op("attlas::softmax_focal_loss", mutates_args=())
def softmax_focal_loss_op(
    logits: Tensor, target: Tensor, weight: Tensor | None, gamma: float, alpha: float
) -> tuple[Tensor, Tensor]:
    check_range(target + 1, logits.shape[1] + 1, "target + 1")
    run = pick(logits, reference=softmax_focal_loss_reference, triton=_softmax_focal_loss_triton)
    return run(logits, target, weight, gamma, alpha)


@torch.library.custom_op("attlas::softmax_focal_loss_backward", mutates_args=())
def softmax_focal_loss_backward_op(
    grad: Tensor, logits: Tensor, total: Tensor, target: Tensor, weight: Tensor | None, gamma: float, alpha: float
) -> Tensor:
    run = pick(logits, reference=softmax_focal_loss_backward_reference, triton=_softmax_focal_loss_backward_triton)
    return run(grad, logits, total, target, weight, gamma, alpha).contiguous()


@sigmoid_focal_loss_op.register_fake
def _(logits, target, weight, gamma, alpha):
    return logits.new_empty(logits.shape)


@sigmoid_focal_loss_backward_op.register_fake
def _(grad, logits, target, weight, gamma, alpha):
    return logits.new_empty(logits.shape)


@softmax_focal_loss_op.register_fake
def _(logits, target, weight, gamma, alpha):
    return logits.new_empty(len(logits)), logits.new_empty(len(logits), dtype=sum_dtype(logits))


@softmax_focal_loss_backward_op.register_fake
def _(grad, logits, total, target, weight, gamma, alpha):
    return logits.new_empty(logits.shape)


def _save_sigmoid(ctx, inputs, output):
    logits, target, weight, ctx.gamma, ctx.alpha = inputs
    ctx.save_for_backward(logits, target, weight)


def _sigmoid_backward(ctx, grad):
    return sigmoid_focal_loss_backward_op(grad, *ctx.saved_tensors, ctx.gamma, ctx.alpha), None, None, None, None


def _save_softmax(ctx, inputs, output):
    logits, target, weight, ctx.gamma, ctx.alpha = inputs
    ctx.save_for_backward(logits, output[1], target, weight)
    ctx.mark_non_differentiable(output[1])


def _softmax_backward(ctx, grad, _):
    return softmax_focal_loss_backward_op(grad, *ctx.saved_tensors, ctx.gamma, ctx.alpha), None, None, None, None


sigmoid_focal_loss_op.register_autograd(_sigmoid_backward, setup_context=_save_sigmoid)
softmax_focal_loss_op.register_autograd(_softmax_backward, setup_context=_save_softmax)
decompose(sigmoid_focal_loss_op, sigmoid_focal_loss_reference)
