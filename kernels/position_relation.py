"""Position relation: a bias of attention logits for every pair of boxes, from their relative place and size.

    dx = log(|x₁ - x₂| / (w₁ + ε) + 1)      dy = log(|y₁ - y₂| / (h₁ + ε) + 1)
    dw = log((w₁ + ε) / (w₂ + ε))           dh = log((h₁ + ε) / (h₂ + ε)),                 ε = 1e-5

for a source box 1 and a target box 2 (cx, cy, w, h). Each of the four terms becomes D numbers, sin and cos in turn of
term · 100 / 10000^(2k / D), k = 0 ... D / 2 - 1; a linear layer makes one number a head of these 4 D, and

    bias[b, h, i, j] = max(0, Σ_c weight[h, c] · sines[b, i, j, c] + bias[h])

or -∞ where the mask forbids the pair. Only weight and bias get gradients: boxes are taken as constants. The 4 D numbers
of a pair would take 4 D / heads times (eight times, in the paper) the memory of the result; they exist in blocks only,
and the backward computes them again. In float32 a term is exact to some 1e-7, and its fastest sine to 1e-5.

Source: Relation-DETR, "Exploring Explicit Position Relation Prior for Object Detection", arXiv 2407.11699.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import check_one_dtype, check_tensors, sum_dtype
from .dispatch import decompose, each, pick, tl, triton
from .tiles import dot, operands, store_rows, tile_of, triton_dtype

EPS, SCALE, TEMPERATURE = 1e-5, 100.0, 10000.0
# Pairs whose sines the CPU holds at a time: half a megabyte in float32 with the 64 numbers of the paper.
PAIRS = 2048


def position_relation(
    source_boxes: Tensor, target_boxes: Tensor, weight: Tensor, bias: Tensor, mask: Tensor | None = None
) -> Tensor:
    """The bias of every source box towards every target box; differentiable in weight and bias alone.

    Args:
        source_boxes: boxes (B, N1, 4) as (cx, cy, w, h), normalized by the size of the image, of any floating-point
            dtype; half types are computed in float32. Their sizes divide the offsets.
        target_boxes: boxes (B, N2, 4), in the dtype of source_boxes.
        weight: weight of the linear layer (heads, 4 D), D even, of any floating-point dtype.
        bias: bias of the linear layer (heads,), in the dtype of weight.
        mask: pairs (N1, N2) that may not attend, bool; their bias is -∞.

    Returns:
        (B, heads, N1, N2), at least 0 but at forbidden pairs, in the dtype of weight.

    Raises:
        ValueError, TypeError: an argument of another shape or dtype.
    """
    check_tensors(source_boxes=source_boxes, target_boxes=target_boxes, weight=weight, bias=bias)
    for name, boxes in (("source_boxes", source_boxes), ("target_boxes", target_boxes)):
        if boxes.ndim != 3 or boxes.shape[2] != 4 or boxes.shape[0] != source_boxes.shape[0]:
            raise ValueError(f"{name} must have shape (B, N, 4) with one B for both, got {tuple(boxes.shape)}")
    if weight.ndim != 2 or 0 in weight.shape or weight.shape[1] % 8:
        raise ValueError(f"weight must have shape (heads, 4 D) with an even D, got {tuple(weight.shape)}")
    if bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must have shape ({len(weight)},), one number a head, got {tuple(bias.shape)}")
    check_one_dtype(source_boxes=source_boxes, target_boxes=target_boxes)
    check_one_dtype(weight=weight, bias=bias)
    if weight.device != source_boxes.device:
        raise ValueError(f"weight must be on the device of source_boxes, {source_boxes.device}, got {weight.device}")
    if mask is not None:
        check_tensors(mask=mask)
        shape = source_boxes.shape[1], target_boxes.shape[1]
        if mask.dtype != torch.bool or mask.shape != shape or mask.device != weight.device:
            raise ValueError(
                f"mask must be a bool tensor of shape {shape}, a number for each pair, on {weight.device}; got "
                f"{mask.dtype} {tuple(mask.shape)} on {mask.device}"
            )
    return position_relation_op(source_boxes, target_boxes, weight, bias, mask)


def relation_terms(source_boxes: Tensor, target_boxes: Tensor) -> Tensor:
    """The four terms (..., N1, N2, 4) of boxes (..., N1, 4) and (..., N2, 4), in the order dx, dy, dw, dh."""
    source, target = source_boxes.unsqueeze(-2), target_boxes.unsqueeze(-3)
    size = source[..., 2:] + EPS
    offset = ((source[..., :2] - target[..., :2]).abs() / size + 1).log()
    return torch.cat([offset, (size / (target[..., 2:] + EPS)).log()], -1)


def _wide(source_BN4: Tensor, weight_HC: Tensor) -> torch.dtype:
    """The dtype of sums."""
    return torch.promote_types(sum_dtype(source_BN4), weight_HC.dtype)


def _speeds(channels: int, like: Tensor, dtype: torch.dtype) -> Tensor:
    """What a term is multiplied by before its sines: (D / 2,)."""
    count = channels // 8
    return (SCALE / TEMPERATURE ** (torch.arange(count, dtype=torch.float64, device=like.device) / count)).to(dtype)


def _sines(source_BN4: Tensor, target_BM4: Tensor, channels: int, wide: torch.dtype) -> Tensor:
    """(B, N, M, C)."""
    terms = relation_terms(source_BN4.detach().to(wide), target_BM4.detach().to(wide))
    angles = terms.unsqueeze(-1) * _speeds(channels, terms, wide)
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(3)


def position_relation_reference(
    source_BN4: Tensor, target_BM4: Tensor, weight_HC: Tensor, bias_H: Tensor, mask_NM: Tensor | None
) -> Tensor:
    wide = _wide(source_BN4, weight_HC)
    sines_BNMC = _sines(source_BN4, target_BM4, weight_HC.shape[1], wide)
    out_BHNM = F.linear(sines_BNMC, weight_HC.to(wide), bias_H.to(wide)).relu().permute(0, 3, 1, 2)
    if mask_NM is not None:
        out_BHNM = out_BHNM.masked_fill(mask_NM, -torch.inf)
    return out_BHNM.to(weight_HC.dtype).contiguous()


def position_relation_backward_reference(
    grad_BHNM: Tensor,
    source_BN4: Tensor,
    target_BM4: Tensor,
    weight_HC: Tensor,
    bias_H: Tensor,
    mask_NM: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Gradients of weight and bias."""
    wide = _wide(source_BN4, weight_HC)
    sines_BNMC = _sines(source_BN4, target_BM4, weight_HC.shape[1], wide)
    passed_BHNM = F.linear(sines_BNMC, weight_HC.to(wide), bias_H.to(wide)).permute(0, 3, 1, 2) > 0
    if mask_NM is not None:
        passed_BHNM = passed_BHNM & ~mask_NM
    grad_XH = grad_BHNM.to(wide).where(passed_BHNM, 0).permute(0, 2, 3, 1).flatten(0, 2)
    grad_weight, grad_bias = grad_XH.t() @ sines_BNMC.flatten(0, 2), grad_XH.sum(0)
    return grad_weight.to(weight_HC.dtype), grad_bias.to(weight_HC.dtype)


# The CPU's path. Sines of PyTorch are vectorized, those of compiled loops are not; and the rest is products of
# matrices. So this is PyTorch, over blocks of sources whose sines fit the cache: all sin (4 D / 2 rows, a column a
# pair), then all cos.


def _split(weight_HC: Tensor) -> Tensor:
    """The columns of the weight in the order of a block's rows: those for sin, then those for cos."""
    return weight_HC.unflatten(1, (-1, 2)).transpose(1, 2).flatten(1)


def _joined(weight_HC: Tensor) -> Tensor:
    """The inverse of `_split`."""
    return weight_HC.unflatten(1, (2, -1)).transpose(1, 2).flatten(1)


def _block_sines(source_R4: Tensor, target_M4: Tensor, speeds_K: Tensor) -> Tensor:
    """(C, R M)."""
    terms = relation_terms(source_R4, target_M4).flatten(0, 1).t()
    angles = (terms.unsqueeze(1) * speeds_K.unsqueeze(1)).flatten(0, 1)
    sines = angles.new_empty(2, *angles.shape)
    torch.sin(angles, out=sines[0])
    torch.cos(angles, out=sines[1])
    return sines.flatten(0, 1)


def _each_block(function, sources: int, targets: int, batch: int) -> list:
    """[function(image, slice of sources)] for blocks of `PAIRS` pairs."""
    step = max(1, PAIRS // max(1, targets))
    blocks = [(b, slice(i, min(i + step, sources))) for b in range(batch) for i in range(0, sources, step)]
    return each(lambda block: function(*block), blocks)


def _position_relation_cpu(
    source_BN4: Tensor, target_BM4: Tensor, weight_HC: Tensor, bias_H: Tensor, mask_NM: Tensor | None
) -> Tensor:
    (batch, sources, _), targets, wide = source_BN4.shape, target_BM4.shape[1], _wide(source_BN4, weight_HC)
    out_BHNM = weight_HC.new_empty(batch, len(weight_HC), sources, targets)
    source, target, speeds = source_BN4.to(wide), target_BM4.to(wide), _speeds(weight_HC.shape[1], weight_HC, wide)
    weight, bias = _split(weight_HC.to(wide)), bias_H.to(wide).unsqueeze(1)

    def block(b: int, rows: slice) -> None:
        sines = _block_sines(source[b, rows], target[b], speeds)
        out = torch.addmm(bias, weight, sines).relu_().unflatten(1, (-1, targets))
        out_BHNM[b, :, rows] = out if mask_NM is None else out.masked_fill_(mask_NM[rows], -torch.inf)

    if targets:
        _each_block(block, sources, targets, batch)
    return out_BHNM


def _position_relation_backward_cpu(
    grad_BHNM: Tensor,
    source_BN4: Tensor,
    target_BM4: Tensor,
    weight_HC: Tensor,
    bias_H: Tensor,
    mask_NM: Tensor | None,
) -> tuple[Tensor, Tensor]:
    (batch, sources, _), targets, wide = source_BN4.shape, target_BM4.shape[1], _wide(source_BN4, weight_HC)
    source, target, speeds = source_BN4.to(wide), target_BM4.to(wide), _speeds(weight_HC.shape[1], weight_HC, wide)
    weight, bias = _split(weight_HC.to(wide)), bias_H.to(wide).unsqueeze(1)

    def block(b: int, rows: slice) -> tuple[Tensor, Tensor]:
        sines = _block_sines(source[b, rows], target[b], speeds)
        passed = torch.addmm(bias, weight, sines) > 0
        if mask_NM is not None:
            passed &= ~mask_NM[rows].flatten()
        grad = grad_BHNM[b, :, rows].to(wide).flatten(1).where(passed, 0)
        return grad @ sines.t(), grad.sum(1)

    parts = _each_block(block, sources, targets, batch) if targets else []
    grad_weight, grad_bias = torch.zeros_like(weight), torch.zeros_like(bias[:, 0])
    for part_weight, part_bias in parts:
        grad_weight += part_weight
        grad_bias += part_bias
    return _joined(grad_weight).to(weight_HC.dtype), grad_bias.to(weight_HC.dtype)


# Triton: blocks of pairs of one image; sin and cos are two tiles (pairs, 4 D / 2), multiplied by the weights of each.


@triton.jit
def _block(number, sources, targets, BLOCK: tl.constexpr):
    """Image, pairs of block `number`, and which of them exist."""
    count = sources * targets
    blocks = tl.cdiv(count, BLOCK)
    pair = number % blocks * BLOCK + tl.arange(0, BLOCK)
    return (number // blocks).to(tl.int64), pair, pair < count


@triton.jit
def _angles(
    source, target, speeds, image, pair, inside, sources, targets,
    WAVES: tl.constexpr, BLOCK_C: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """(pairs, channels) angles; channels beyond 4 WAVES have some angle, and meet weights of zero."""
    source += (image * sources + pair // targets) * 4
    target += (image * targets + pair % targets) * 4
    x, x2 = tl.load(source, mask=inside, other=1).to(WIDE), tl.load(target, mask=inside, other=1).to(WIDE)
    y, y2 = tl.load(source + 1, mask=inside, other=1).to(WIDE), tl.load(target + 1, mask=inside, other=1).to(WIDE)
    w, w2 = tl.load(source + 2, mask=inside, other=1).to(WIDE), tl.load(target + 2, mask=inside, other=1).to(WIDE)
    h, h2 = tl.load(source + 3, mask=inside, other=1).to(WIDE), tl.load(target + 3, mask=inside, other=1).to(WIDE)
    w, h = w + 1e-5, h + 1e-5
    dx, dy = tl.log(tl.abs(x - x2) / w + 1)[:, None], tl.log(tl.abs(y - y2) / h + 1)[:, None]
    dw, dh = tl.log(w / (w2 + 1e-5))[:, None], tl.log(h / (h2 + 1e-5))[:, None]
    channel = tl.arange(0, BLOCK_C)
    term = (channel // WAVES)[None, :]
    value = tl.where(term == 0, dx, tl.where(term == 1, dy, tl.where(term == 2, dw, dh)))
    return value * tl.load(speeds + channel % WAVES)[None, :]


@triton.jit
def _tile_of_weight(weight, heads, WAVES: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_H: tl.constexpr):
    """A part (4 WAVES, heads) of the weight as a tile, zero outside."""
    channel, head = tl.arange(0, BLOCK_C)[:, None], tl.arange(0, BLOCK_H)[None, :]
    return tl.load(weight + channel * heads + head, mask=(channel < 4 * WAVES) & (head < heads), other=0)


@triton.jit
def _logits(
    angles, weight, bias, heads,
    WAVES: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_H: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """(pairs, heads), before the ReLU."""
    sin_weight = _tile_of_weight(weight, heads, WAVES, BLOCK_C, BLOCK_H)
    cos_weight = _tile_of_weight(weight + 4 * WAVES * heads, heads, WAVES, BLOCK_C, BLOCK_H)
    head = tl.arange(0, BLOCK_H)
    out = dot(tl.sin(angles), sin_weight, WIDE) + dot(tl.cos(angles), cos_weight, WIDE)
    return out + tl.load(bias + head, mask=head < heads, other=0)[None, :]


@triton.jit(do_not_specialize=["sources", "targets"])  # they change from batch to batch
def position_relation_fwd_kernel(
    source, target, weight, bias, mask, speeds, out, sources, targets, heads,
    WAVES: tl.constexpr, HAS_MASK: tl.constexpr, WIDE: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    image, pair, inside = _block(tl.program_id(0), sources, targets, BLOCK)
    angles = _angles(source, target, speeds, image, pair, inside, sources, targets, WAVES, BLOCK_C, WIDE)
    value = tl.maximum(_logits(angles, weight, bias, heads, WAVES, BLOCK_C, BLOCK_H, WIDE), 0)
    if HAS_MASK:
        forbidden = tl.load(mask + pair, mask=inside, other=0)
        value = tl.where(forbidden[:, None] != 0, float("-inf"), value)
    head = tl.arange(0, BLOCK_H)
    out += (image * heads + head[None, :]) * sources * targets + pair[:, None]
    tl.store(out, value.to(out.dtype.element_ty), mask=inside[:, None] & (head < heads)[None, :])


@triton.jit(do_not_specialize=["sources", "targets", "blocks"])
def position_relation_bwd_kernel(
    grad, source, target, weight, bias, mask, speeds, grad_weight, grad_bias, sources, targets, heads, blocks,
    WAVES: tl.constexpr, HAS_MASK: tl.constexpr, WIDE: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """Every program sums over the blocks of its share, and stores a part of the gradients of its own."""
    program, head = tl.program_id(0), tl.arange(0, BLOCK_H)
    of_sin, of_cos = tl.zeros((BLOCK_C, BLOCK_H), dtype=WIDE), tl.zeros((BLOCK_C, BLOCK_H), dtype=WIDE)
    of_bias = tl.zeros((BLOCK_H,), dtype=WIDE)
    for number in range(program, blocks, tl.num_programs(0)):
        image, pair, inside = _block(number, sources, targets, BLOCK)
        angles = _angles(source, target, speeds, image, pair, inside, sources, targets, WAVES, BLOCK_C, WIDE)
        passed = _logits(angles, weight, bias, heads, WAVES, BLOCK_C, BLOCK_H, WIDE) > 0
        passed = passed & inside[:, None] & (head < heads)[None, :]
        if HAS_MASK:
            passed = passed & (tl.load(mask + pair, mask=inside, other=1) == 0)[:, None]
        place = (image * heads + head[None, :]) * sources * targets + pair[:, None]
        value = tl.load(grad + place, mask=passed, other=0).to(WIDE)
        of_sin += dot(tl.trans(tl.sin(angles)), value, WIDE)
        of_cos += dot(tl.trans(tl.cos(angles)), value, WIDE)
        of_bias += tl.sum(value, 0)
    channel = tl.arange(0, BLOCK_C)
    grad_weight += program.to(tl.int64) * 8 * WAVES * heads
    store_rows(grad_weight, of_sin, channel, head, channel < 4 * WAVES, heads)
    store_rows(grad_weight + 4 * WAVES * heads, of_cos, channel, head, channel < 4 * WAVES, heads)
    tl.store(grad_bias + program * heads + head, of_bias, mask=head < heads)


# Pairs of a tile, and programs of the backward, each with gradients of its own: some for each multiprocessor.
BLOCK, PROGRAMS = 64, 512


def _arguments(source_BN4: Tensor, target_BM4: Tensor, weight_HC: Tensor, bias_H: Tensor, mask_NM: Tensor | None):
    """What both kernels get alike: tensors, and options by name."""
    wide, (heads, channels) = _wide(source_BN4, weight_HC), weight_HC.shape
    weight = _split(weight_HC.to(wide)).t()
    speeds = _speeds(channels, weight_HC, wide)
    tensors = operands(source_BN4, target_BM4, weight, bias_H.to(wide))
    mask = speeds if mask_NM is None else mask_NM.to(torch.uint8).contiguous()
    options = dict(WAVES=channels // 8, HAS_MASK=mask_NM is not None, WIDE=triton_dtype(wide), BLOCK=BLOCK)
    return (*tensors, mask, speeds), options | dict(BLOCK_C=tile_of(channels // 2), BLOCK_H=tile_of(heads))


def _position_relation_triton(
    source_BN4: Tensor, target_BM4: Tensor, weight_HC: Tensor, bias_H: Tensor, mask_NM: Tensor | None
) -> Tensor:
    (batch, sources, _), targets, heads = source_BN4.shape, target_BM4.shape[1], len(weight_HC)
    out_BHNM = weight_HC.new_empty(batch, heads, sources, targets)
    if out_BHNM.numel():
        tensors, options = _arguments(source_BN4, target_BM4, weight_HC, bias_H, mask_NM)
        grid = (batch * triton.cdiv(sources * targets, BLOCK),)
        with torch.cuda.device_of(out_BHNM):
            position_relation_fwd_kernel[grid](*tensors, out_BHNM, sources, targets, heads, **options)
    return out_BHNM


def _position_relation_backward_triton(
    grad_BHNM: Tensor,
    source_BN4: Tensor,
    target_BM4: Tensor,
    weight_HC: Tensor,
    bias_H: Tensor,
    mask_NM: Tensor | None,
) -> tuple[Tensor, Tensor]:
    (batch, sources, _), targets, (heads, channels) = source_BN4.shape, target_BM4.shape[1], weight_HC.shape
    wide, blocks = _wide(source_BN4, weight_HC), batch * triton.cdiv(sources * targets, BLOCK)
    if wide == torch.float64:  # Triton 3.6 does not compile it with a mask, nor with weights of a half type
        arguments = source_BN4, target_BM4, weight_HC, bias_H, mask_NM
        return position_relation_backward_reference(grad_BHNM, *arguments)
    programs = min(blocks, PROGRAMS)
    parts_weight = weight_HC.new_empty(programs, channels, heads, dtype=wide)
    parts_bias = weight_HC.new_empty(programs, heads, dtype=wide)
    if blocks:
        tensors, options = _arguments(source_BN4, target_BM4, weight_HC, bias_H, mask_NM)
        sizes = sources, targets, heads, blocks
        with torch.cuda.device_of(grad_BHNM):
            position_relation_bwd_kernel[(programs,)](  # Triton 3.6 does not compile its loop in several stages
                grad_BHNM.contiguous(), *tensors, parts_weight, parts_bias, *sizes, **options, num_stages=1
            )
    grad_weight = _joined(parts_weight.sum(0).t())
    return grad_weight.to(weight_HC.dtype), parts_bias.sum(0).to(weight_HC.dtype)


@torch.library.custom_op("attlas::position_relation", mutates_args=())
def position_relation_op(
    source_boxes: Tensor, target_boxes: Tensor, weight: Tensor, bias: Tensor, mask: Tensor | None
) -> Tensor:
    return pick(
        weight,
        reference=position_relation_reference,
        triton=_position_relation_triton,
        cpu=_position_relation_cpu,
    )(source_boxes, target_boxes, weight, bias, mask)


@position_relation_op.register_fake
def _(source_boxes, target_boxes, weight, bias, mask):
    return weight.new_empty(source_boxes.shape[0], len(weight), source_boxes.shape[1], target_boxes.shape[1])


@torch.library.custom_op("attlas::position_relation_backward", mutates_args=())
def position_relation_backward_op(
    grad: Tensor, source_boxes: Tensor, target_boxes: Tensor, weight: Tensor, bias: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    return pick(
        weight,
        reference=position_relation_backward_reference,
        triton=_position_relation_backward_triton,
        cpu=_position_relation_backward_cpu,
    )(grad, source_boxes, target_boxes, weight, bias, mask)


@position_relation_backward_op.register_fake
def _(grad, source_boxes, target_boxes, weight, bias, mask):
    return weight.new_empty(weight.shape), bias.new_empty(bias.shape)


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad):
    grad_weight, grad_bias = position_relation_backward_op(grad, *ctx.saved_tensors)
    return None, None, grad_weight, grad_bias, None


position_relation_op.register_autograd(_backward, setup_context=_save)
decompose(position_relation_op, position_relation_reference)
