"""Lightning attention: causal linear attention with a decay, in blocks, so that the time of a token is constant.

    out_i = Σ_{j <= i} exp(-s (i - j)) (q_i · k_j) v_j + exp(-s (i + 1)) q_iᵀ S
    S'    = Σ_j exp(-s (N - 1 - j)) k_j v_jᵀ + exp(-s N) S

with a slope s >= 0 for each head (0: no decay). There is no softmax, no scale and no normalization. The state S (d x e)
is what a sequence leaves behind, whatever its length: given to the next call, it continues the sequence, and a call of
one token is the recurrence S' = exp(-s) S + k vᵀ, out = qᵀ S' (`lightning_attention_step`).

A block of M tokens is a product with M x M weights, (Q Kᵀ) ∘ D, D_ab = exp(-s (a - b)) for a >= b; the blocks before it
come in by the state. So N tokens of a head take 2 N M (d + e) + 4 N d e operations, and memory for M x M weights and
for one state: neither N x N weights nor N states (N x d x e, the cumulative form) exist, forward or backward. Sums are
in float32 or float64, without autocast. Any N, d and e will do; nothing is padded in memory.

The gradients are the same operator. ∂q is that of (∂out, v, k) with the state transposed; ∂k and ∂v are those of
(v, ∂out, q) and (k, q, ∂out) with time reversed, which the state's gradient enters from the end. Slopes get none.

`lightning_attention_both_ways` looks at all tokens, exp(-s |i - j|); this form is ours and of no paper.

Source: "Various Lengths, Constant Speed: Efficient Language Modeling with Lightning Attention", arXiv 2405.17381;
https://github.com/OpenNLPLab/lightning-attention (MIT).
"""

import torch
from torch import Tensor

from .checks import can_look, check_devices, check_integer, check_one_dtype, check_tensors, sum_dtype
from .dispatch import decompose, pick, slices, tl, triton, without_autocast
from .tiles import load_rows, operands, store_rows, tile_of, triton_dtype

# Tokens of a block on a CPU.
BLOCK = 64


def alibi_slopes(heads: int) -> Tensor:
    """The slopes (heads,) of ALiBi, float32 on the CPU: 2^(-8 (h + 1) / heads) for a power of two. Other numbers take
    those of the power below, and then every second of the power above.

    Args:
        heads: number of attention heads.
    """
    check_integer(heads, "heads")
    below = 1 << (heads.bit_length() - 1)
    slopes = [2 ** (-8 * (h + 1) / below) for h in range(below)]
    between = [2 ** (-8 * (h + 1) / (2 * below)) for h in range(0, 2 * below, 2)]
    return torch.tensor((slopes + between)[:heads], dtype=torch.float32, device="cpu")


def lightning_attention(
    q: Tensor, k: Tensor, v: Tensor, slopes: Tensor | None = None, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Causal linear attention, see above.

    Args:
        q, k: queries and keys, (B, heads, N, d).
        v: values, (B, heads, N, e), of the same floating-point dtype.
        slopes: decays s of the heads, (heads,), finite and at least 0; None for none. They get no gradient.
        state: what came before, (B, heads, d, e), in the dtype of sums: float32, or float64 where q is; None if
            nothing.

    Returns:
        out, (B, heads, N, e), in the dtype of v; and the state behind the last token, (B, heads, d, e), in the dtype of
        sums. Both are differentiable, and so is `state`. In float16 a result above 65504 is infinite, as in any cast:
        without decay 64k tokens may sum up to more.

    Raises:
        ValueError, TypeError: an argument of another shape, dtype or device; a slope below 0.
    """
    slopes, state = _checked(q, k, v, slopes, state, "(B, heads, N, channels)")
    return lightning_attention_op(q, k, v, slopes, state, False)


def lightning_attention_step(
    q: Tensor, k: Tensor, v: Tensor, state: Tensor | None = None, slopes: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`lightning_attention` of one token, as the recurrence; plain PyTorch.

    Args:
        q, k: query and key, (B, heads, d).
        v: value, (B, heads, e).
        state, slopes: as of `lightning_attention`.

    Returns:
        out, (B, heads, e), and the new state.

    Raises:
        ValueError, TypeError: as of `lightning_attention`.
    """
    slopes, state = _checked(q, k, v, slopes, state, "(B, heads, channels)")
    with without_autocast(q):
        fade = slopes.neg().exp()[:, None, None]
        state = fade * state + k.to(state.dtype).unsqueeze(-1) * v.to(state.dtype).unsqueeze(-2)
        return (q.to(state.dtype).unsqueeze(-2) @ state).squeeze(-2).to(v.dtype), state


def lightning_attention_both_ways(q: Tensor, k: Tensor, v: Tensor, slopes: Tensor | None = None) -> Tensor:
    """Linear attention to all tokens, out_i = Σ_j exp(-s |i - j|) (q_i · k_j) v_j.

    Without slopes this is q (kᵀ v). With them it is the causal form, and that of the reversed sequence without the
    diagonal.

    Args:
        q, k, v, slopes: as of `lightning_attention`.

    Returns:
        (B, heads, N, e), in the dtype of v.

    Raises:
        ValueError, TypeError: as of `lightning_attention`.
    """
    alone = slopes is None
    slopes, state = _checked(q, k, v, slopes, None, "(B, heads, N, channels)")
    if alone:
        wide = state.dtype
        with without_autocast(q):
            return (q.to(wide) @ (k.to(wide).mT @ v.to(wide))).to(v.dtype)
    before, _ = lightning_attention_op(q, k, v, slopes, state, False)
    # token i meets i + 1 and all behind it, a step apart
    behind, _ = lightning_attention_op(q[:, :, :-1], k[:, :, 1:], v[:, :, 1:], slopes, state, True)
    fade = slopes.neg().exp()[:, None, None]
    return before + torch.nn.functional.pad((fade * behind).to(v.dtype), (0, 0, 0, min(1, v.shape[2])))


def _checked(
    q: Tensor, k: Tensor, v: Tensor, slopes: Tensor | None, state: Tensor | None, shape: str
) -> tuple[Tensor, Tensor]:
    """The slopes and the state in the dtype of sums, after all checks."""
    check_tensors(q=q, k=k, v=v)
    shapes = f"{tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
    if not q.ndim == k.ndim == v.ndim == shape.count(",") + 1:
        raise ValueError(f"q, k and v must have shape {shape}, got {shapes}")
    if q.shape != k.shape:
        raise ValueError(f"q and k must have one shape, got {tuple(q.shape)} and {tuple(k.shape)}")
    if q.shape[:-1] != v.shape[:-1]:
        raise ValueError(f"q, k and v must agree in all but their channels, got {shapes}")
    check_one_dtype(q=q, k=k, v=v)
    batch, heads, wide = *q.shape[:2], sum_dtype(q)
    if slopes is None:
        slopes = q.new_zeros(heads, dtype=wide)
    else:
        _check_slopes(slopes, heads)
        check_devices(q=q, slopes=slopes)
        slopes = slopes.to(wide)
    own = batch, heads, q.shape[-1], v.shape[-1]
    if state is None:
        return slopes, q.new_zeros(own, dtype=wide)
    check_tensors(state=state)
    if tuple(state.shape) != own:
        raise ValueError(f"state must have shape (B, heads, d, e), here {own}, got {tuple(state.shape)}")
    if state.dtype != wide:
        raise TypeError(f"state must be {wide}, the dtype of sums of {q.dtype}, got {state.dtype}")
    check_devices(q=q, state=state)
    return slopes, state


def _check_slopes(slopes: Tensor, heads: int) -> None:
    check_tensors(slopes=slopes)
    if slopes.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"slopes must be float32 or float64 (powers need the digits), got {slopes.dtype}")
    if tuple(slopes.shape) != (heads,):
        raise ValueError(f"slopes must have shape (heads,), here ({heads},), got {tuple(slopes.shape)}")
    if slopes.requires_grad:
        raise ValueError("slopes must not require a gradient: there is none of them")
    if can_look(slopes) and not ((slopes >= 0) & slopes.isfinite()).all():
        raise ValueError(f"slopes must be finite and at least 0, got {slopes.tolist()}")


# --- reference -------------------------------------------------------------------------------------------------------


def _powers(slopes: Tensor, steps: Tensor) -> Tensor:
    """exp(-s n) of all heads, (heads, *steps.shape); 0 for n < 0."""
    steps = steps.to(slopes.dtype)
    powers = (-slopes.view(-1, *[1] * steps.ndim) * steps.clamp(min=0)).exp()
    return torch.where(steps < 0, 0, powers)


def lightning_attention_reference(
    q: Tensor, k: Tensor, v: Tensor, slopes: Tensor, state: Tensor, reverse: bool
) -> tuple[Tensor, Tensor]:
    """The definition, with all N x N weights.

    With `reverse`, the sequence runs from its end, and a state comes undecayed to the first token that it meets:
    out_i = Σ_{j >= i} exp(-s (j - i)) (q_i · k_j) v_j + exp(-s (N - 1 - i)) q_iᵀ S, S' = Σ_j exp(-s (j + 1)) k_j v_jᵀ +
    exp(-s N) S. So it is with gradients.
    """
    wide, tokens = state.dtype, torch.arange(q.shape[2], device=q.device)
    q, k, values = q.to(wide), k.to(wide), v.to(wide)
    distance = tokens[:, None] - tokens
    entry, exit = tokens + 1, tokens.flip(0)
    if reverse:
        distance, entry, exit = distance.T, exit, entry
    # a weight of zero meets no infinity of a token to come
    seen = torch.where(distance < 0, 0, q @ k.mT) * _powers(slopes, distance)
    odd = values * 0  # NaN where a value is infinite or NaN
    lasting = odd.flip(2).cumsum(2).flip(2) if reverse else odd.cumsum(2)
    out = seen @ torch.where(odd == 0, values, 0) + lasting
    out = out + _powers(slopes, entry).unsqueeze(-1) * (q @ state)
    whole = (-slopes * q.shape[2]).exp()[:, None, None]
    after = (_powers(slopes, exit).unsqueeze(-1) * k).mT @ values + whole * state
    return out.to(v.dtype), after


# --- CPU -------------------------------------------------------------------------------------------------------------


class _Decay:
    """The powers that blocks of one length need, for all problems P (all (sequence, head) in this order)."""

    def __init__(self, slopes: Tensor, batch: int, length: int, reverse: bool):
        tokens = torch.arange(length)
        entry, exit = tokens + 1, tokens.flip(0)
        distance = tokens[:, None] - tokens
        if reverse:
            distance, entry, exit = distance.T, exit, entry
        self.between = _powers(slopes, distance)  # (heads, M, M)
        self.seen = distance >= 0
        self.entry, self.exit = (_powers(slopes, steps).repeat(batch, 1).unsqueeze(-1) for steps in (entry, exit))
        self.whole = (-slopes * length).exp().repeat(batch)[:, None, None]


def _block(q: Tensor, k: Tensor, v: Tensor, state: Tensor, decay: _Decay, odd: bool) -> Tensor:
    """The results (P, M, e) of a block; with `odd`, infinities and NaN reach the tokens behind them alone."""
    weights = torch.bmm(q, k.mT)
    by_head = weights.view(-1, *decay.between.shape)
    if odd:
        by_head.masked_fill_(~decay.seen, 0)
    by_head.mul_(decay.between)
    if odd:
        infinite = v * 0
        v = torch.where(infinite == 0, v, 0)
    out = torch.bmm(weights, v).baddbmm_(q * decay.entry, state)
    if odd:
        out.masked_fill_(decay.seen.to(v) @ infinite.isnan().to(v) > 0, torch.nan)
    return out


def _lightning_attention_cpu(
    q: Tensor, k: Tensor, v: Tensor, slopes: Tensor, state: Tensor, reverse: bool
) -> tuple[Tensor, Tensor]:
    (batch, heads, length, _), wide = q.shape, state.dtype
    out, decays = v.new_empty(v.shape), dict[int, _Decay]()
    if not out.numel() and not state.numel():
        return out, state.clone()
    state = state.flatten(0, 1).clone()
    blocks = slices(0, length, BLOCK)
    for block in reversed(blocks) if reverse else blocks:
        q_t, k_t, v_t = (x[:, :, block].to(wide).flatten(0, 1) for x in (q, k, v))
        size = block.stop - block.start
        decay = decays.get(size) or decays.setdefault(size, _Decay(slopes, batch, size, reverse))
        found = _block(q_t, k_t, v_t, state, decay, odd=False)
        if not torch.isfinite(found.sum()):
            found = _block(q_t, k_t, v_t, state, decay, odd=True)
        out[:, :, block] = found.view(batch, heads, size, -1)
        state = torch.baddbmm(state * decay.whole, (k_t * decay.exit).mT, v_t)
    return out, state.view(batch, heads, *state.shape[1:])


# --- Triton ----------------------------------------------------------------------------------------------------------

# Channels of q and k that one launch takes: of more, the results are sums over several, and no tile outgrows the
# shared memory of a small GPU.
CHANNELS = 128


@triton.jit(do_not_specialize=["heads", "length"])
def lightning_attention_fwd_kernel(
    q, k, v, slopes, state, out, last, heads, length, depth, width, first,
    REVERSE: tl.constexpr, ADD: tl.constexpr, PRECISION: tl.constexpr, SUM: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """A head of a sequence and a slice of its values walk over the blocks, with the state in registers. They see the
    channels first.. of q and k; ADD adds to what is in `out`."""
    item = tl.program_id(0).to(tl.int64)
    place, d, e = (
        tl.arange(0, BLOCK_N),
        first + tl.arange(0, BLOCK_D),
        tl.program_id(1) * BLOCK_E + tl.arange(0, BLOCK_E),
    )
    slope = tl.load(slopes + item % heads)
    lag = (place[:, None] - place[None, :]).to(SUM)
    between = tl.where(lag >= 0, tl.exp(-slope * tl.maximum(lag, 0.0)), 0.0)
    shift = 0 if REVERSE else 1
    entry = tl.exp(-slope * (place + shift).to(SUM))
    q += item * length * depth
    k += item * length * depth
    v += item * length * width
    out += item * length * width
    channels, places = item * depth * width, d < tl.minimum(depth, first + BLOCK_D)
    held = load_rows(state + channels, d, e, places, width).to(SUM)
    for start in range(0, length, BLOCK_N):
        count = tl.minimum(length - start, BLOCK_N)
        inside = place < count
        row = (length - 1 - start - place if REVERSE else start + place).to(tl.int64)
        q_t, k_t = load_rows(q, row, d, inside, depth), load_rows(k, row, d, inside, depth)
        v_t = load_rows(v, row, e, inside, width).to(SUM)
        weights = tl.dot(q_t, tl.trans(k_t), input_precision=PRECISION, out_dtype=SUM) * between
        total = tl.dot(weights, v_t, input_precision=PRECISION, out_dtype=SUM)
        # a factor of a row commutes with the product
        before = tl.dot(q_t.to(SUM), held, input_precision=PRECISION, out_dtype=SUM)
        total += entry[:, None] * before
        if ADD:
            total += load_rows(out, row, e, inside, width).to(SUM)
        store_rows(out, total, row, e, inside, width)
        exit = tl.exp(-slope * tl.maximum(count - shift - place, 0).to(SUM))
        leaving = tl.trans(k_t.to(SUM) * exit[:, None])
        held = tl.exp(-slope * count.to(SUM)) * held
        held += tl.dot(leaving, v_t, input_precision=PRECISION, out_dtype=SUM)
    store_rows(last + channels, held, d, e, places, width)


def _lightning_attention_triton(
    q: Tensor, k: Tensor, v: Tensor, slopes: Tensor, state: Tensor, reverse: bool
) -> tuple[Tensor, Tensor]:
    batch, heads, length, depth = q.shape
    width, wide = v.shape[-1], state.dtype
    several = depth > CHANNELS  # their sum is in float32
    out = torch.empty(v.shape, dtype=wide if several else v.dtype, device=v.device)
    last = torch.empty(state.shape, dtype=wide, device=v.device)
    if not (out.numel() and depth):
        return v.new_zeros(v.shape), state * (-slopes * length).exp()[:, None, None]
    tensors = *operands(q, k, v), slopes.contiguous(), state.contiguous(), out, last
    # a half type's numbers are exact in TF32, whose range is that of float32: products of float16 do not overflow
    precision = "tf32x3" if q.dtype in (torch.float32, torch.float64) else "tf32"
    block_d, block_e = tile_of(depth, CHANNELS), tile_of(width, 64)
    # with these and one stage, no variant takes more than 82 KB of shared memory: GPUs of 96 KB have room
    block_n = {torch.float64: 16, torch.float32: 32 if block_d > 64 else 64}.get(q.dtype, 64)
    with torch.cuda.device_of(q):
        for first in range(0, depth, block_d):
            lightning_attention_fwd_kernel[batch * heads, triton.cdiv(width, block_e)](
                *tensors, heads, length, depth, width, first,
                REVERSE=reverse, ADD=first > 0, PRECISION=precision, SUM=triton_dtype(wide),
                BLOCK_N=block_n, BLOCK_D=block_d, BLOCK_E=block_e, num_warps=8 if block_d > 64 else 4, num_stages=1,
            )  # fmt: skip
    return out.to(v.dtype), last


# --- registration ----------------------------------------------------------------------------------------------------


def _pick(q: Tensor):
    return pick(
        q, reference=lightning_attention_reference, triton=_lightning_attention_triton, cpu=_lightning_attention_cpu
    )


@torch.library.custom_op("attlas::lightning_attention", mutates_args=())
def lightning_attention_op(
    q: Tensor, k: Tensor, v: Tensor, slopes: Tensor, state: Tensor, reverse: bool
) -> tuple[Tensor, Tensor]:
    out, after = _pick(q)(q, k, v, slopes, state, reverse)
    return out.contiguous(), after.contiguous()


@lightning_attention_op.register_fake
def _(q, k, v, slopes, state, reverse):
    return v.new_empty(v.shape), state.new_empty(state.shape)


@torch.library.custom_op("attlas::lightning_attention_backward", mutates_args=())
def lightning_attention_backward_op(
    grad: Tensor, grad_after: Tensor, q: Tensor, k: Tensor, v: Tensor, slopes: Tensor, state: Tensor, reverse: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    run = _pick(q)
    grad_q, _ = run(grad, v, k, slopes, state.mT, reverse)
    grad_k, _ = run(v, grad, q, slopes, grad_after.mT, not reverse)
    grad_v, grad_state = run(k, q, grad, slopes, grad_after, not reverse)
    return grad_q.contiguous(), grad_k.contiguous(), grad_v.contiguous(), grad_state.contiguous()


@lightning_attention_backward_op.register_fake
def _(grad, grad_after, q, k, v, slopes, state, reverse):
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), state.new_empty(state.shape)


def _save(ctx, inputs, output):
    *tensors, ctx.reverse = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad, grad_after):
    grads = lightning_attention_backward_op(grad, grad_after, *ctx.saved_tensors, ctx.reverse)
    return *grads[:3], None, grads[3], None


lightning_attention_op.register_autograd(_backward, setup_context=_save)
decompose(lightning_attention_op, lightning_attention_reference)
