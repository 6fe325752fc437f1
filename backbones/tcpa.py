"""TCPA: prompts for a frozen vision transformer, of which every token picks its own; with VPT and VFPT, its bases.

"Token Coordinated Prompt Attention is Needed for Visual Prompting", ICML 2025, arXiv 2505.02406;
https://github.com/zhoujiahuan1991/ICML2025-TCPA (no license), whose names load. "Visual Prompt Tuning", ECCV 2022,
arXiv 2203.12119; "Visual Fourier Prompt Tuning", NeurIPS 2024, arXiv 2411.01327.

A prompt is a learned token. P prompts stand beside the class token and the patches in the attention of a block; the
transformer stays as it is, and only prompts, keys and the head learn. `base="deep"` has new prompts in every block,
which live for its attention alone; with `base="shallow"` those of the first block go through all of them. `fourier`
puts the real part of the Fourier transform over channels and prompts in their place.

Prompts are in two pools. Those of the one are for the class token, those of the other for patches (and registers). By
`coordination="matched"` a token x sees those groups of prompts of its pool whose keys have the largest cosine with it,
and with "roles" all of its pool. With A the softmax over all columns, those that a token does not see among them,

    out_i = Σ_j A_ij m_ij v_j,   m_ij = 0 for a prompt that is not seen, else 1,

so that rows sum to less than one: the paper says that prompts "interact exclusively" with their tokens, and the
authors' code has what stands here. `mask="logits"` leaves what is not seen out of the softmax, too.

Neither A nor m is ever made. A fused attention over all columns has zeros for the values of prompts, and what is seen
of these is added. On a CPU it tells the logarithm of the sums, L_i, and A_ip = exp(q_i · k_p / √d - L_i), of (N, P)
numbers. Elsewhere R_i, the part of row i that goes to prompts, is one more channel of values, which are one at prompts
and zero at tokens; then A_ip = R_i softmax_p(q_i · k_p / √d).

Which groups are picked has no gradient. Keys learn from the mean of 1 - cosine of what was picked, over tokens and
picks, summed over pools and blocks; `feedback` adds `distance_weight` times that to the loss.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .layers import Attention, Block, LayerNorm2d, linear
from .skeletons import vit_names
from .skeletons.backbone import Notes
from .skeletons.isotropic import MLPS, Isotropic
from .skeletons.options import check_whole
from .zoo import Rules, Variant, register

BASES = ("deep", "shallow")
COORDINATIONS = ("matched", "roles", "none")
MASKS = ("weights", "logits")

# --- operator --------------------------------------------------------------------------------------------------------


def coordinated_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    prompt_k: Tensor,
    prompt_v: Tensor,
    allowed: Tensor | None = None,
    mask: str = "weights",
) -> Tensor:
    """Attention to tokens, and to those prompts that a query may see: see above.

    PyTorch's fused attention and products with the prompts do all of it, forward and backward.

    Args:
        q: queries (B, heads, Q, d).
        k, v: keys and values of tokens (B, heads, N, d).
        prompt_k, prompt_v: those of prompts (B, heads, P, d).
        allowed: bool (B, Q, P), which prompts a query sees; None for all.
        mask: "weights", where other prompts count in the softmax, or "logits", where they do not.

    Returns:
        (B, heads, Q, d).

    Raises:
        ValueError: another mask, or another shape of `allowed`.
    """
    if mask not in MASKS:
        raise ValueError(f"mask={mask!r} must be one of {', '.join(map(repr, MASKS))}")
    count = prompt_k.shape[2]
    if allowed is not None and allowed.shape != (q.shape[0], q.shape[2], count):
        raise ValueError(
            f"allowed must have shape (B, Q, P) = {(q.shape[0], q.shape[2], count)}, got {tuple(allowed.shape)}"
        )
    keys = torch.cat([prompt_k, k], dim=2)
    if allowed is None or count == 0:
        return F.scaled_dot_product_attention(q, keys, torch.cat([prompt_v, v], dim=2))
    if mask == "weights" and _tells_sums(q, k, v, prompt_k, prompt_v):
        return _Coordinated.apply(q, k, v, prompt_k, prompt_v, allowed)
    dim, scale = q.shape[-1], q.shape[-1] ** -0.5
    more = 8 - dim % 8  # one channel is for R; fused attentions of GPUs like eights
    ones = F.pad(torch.zeros_like(prompt_v), (0, more), value=1.0)
    values = torch.cat([ones, F.pad(v, (0, more))], dim=2)
    wide = F.scaled_dot_product_attention(F.pad(q, (0, more)), F.pad(keys, (0, more)), values, scale=scale)
    out, share = wide[..., :dim], wide[..., dim : dim + 1]
    of_prompts = (q @ (prompt_k * scale).mT).softmax(-1).to(share.dtype) * share
    seen = of_prompts * allowed.unsqueeze(1)
    out = out + seen @ prompt_v.to(seen.dtype)
    if mask == "logits":
        out = out / (1 - share + seen.sum(-1, keepdim=True))
    return out


def _tells_sums(*inputs: Tensor) -> bool:
    """Whether PyTorch's fused attention of CPUs takes these, outside of traced graphs."""
    return (
        not torch.compiler.is_compiling()
        and all(x.device.type == "cpu" and x.dtype == inputs[0].dtype and x.stride(-1) == 1 for x in inputs)
        and all(x.numel() for x in inputs)
    )


class _Coordinated(torch.autograd.Function):
    """`coordinated_attention` with "weights" by the sums that the fused attention of CPUs tells.

    Its backward is that of a plain attention: with G the gradient of the output, that of the logits is
    A_ij (m_ij G_i · v_j - G_i · out_i). The fused one takes `out` whole, beside values that are zero at prompts, so
    what it leaves out is the first term at the prompts that are seen.
    """

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, prompt_k: Tensor, prompt_v: Tensor, allowed: Tensor) -> Tensor:
        keys, values = torch.cat([prompt_k, k], dim=2), torch.cat([torch.zeros_like(prompt_v), v], dim=2)
        attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out, sums = attend(q, keys, values, scale=q.shape[-1] ** -0.5)
        seen = _seen(q, prompt_k, sums, allowed)
        out = out + seen.to(out.dtype) @ prompt_v
        ctx.save_for_backward(q, keys, values, prompt_v, allowed, out, sums)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        q, keys, values, prompt_v, allowed, out, sums = ctx.saved_tensors
        scale, count = q.shape[-1] ** -0.5, prompt_v.shape[2]
        grad = grad if grad.stride(-1) == 1 else grad.contiguous()
        back = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        of_q, of_keys, of_values = back(grad, q, keys, values, out, sums, 0.0, False, scale=scale)
        prompt_k = keys[:, :, :count]
        seen = _seen(q, prompt_k, sums, allowed)
        of_logits = (seen * (grad @ prompt_v.mT) * scale).to(grad.dtype)
        of_prompt_k = of_keys[:, :, :count] + of_logits.mT @ q
        of_prompt_v = seen.to(grad.dtype).mT @ grad
        return (
            of_q + of_logits @ prompt_k,
            of_keys[:, :, count:],
            of_values[:, :, count:],
            of_prompt_k,
            of_prompt_v,
            None,
        )


def _seen(q: Tensor, prompt_k: Tensor, sums: Tensor, allowed: Tensor) -> Tensor:
    """A at the prompts that are seen, and zero at others, (B, heads, Q, P), in the dtype of the sums' logarithms."""
    logits = (q @ prompt_k.mT).to(sums.dtype)
    return logits.mul_(q.shape[-1] ** -0.5).sub_(sums.unsqueeze(-1)).exp_().mul_(allowed.unsqueeze(1))


class CoordinatedAttention(Attention):
    """`coordinated_attention` of pixels and tokens, with the linear layers of a plain attention.

    Args:
        dim, heads, qkv_bias: as of `Attention`.
        mask: as of `coordinated_attention`.

    `forward(x (B, C, H, W), tokens (B, T, C), prompts, allowed, scale, shift, keep) -> (x, tokens, prompts)`: `prompts`
    (1 or B, P, C); `allowed` bool (B, T + H · W, P), or None; `scale` and `shift` (1, P, C) of the values of prompts,
    or None. With `keep` prompts look at everything and have outputs of their own, else the third output is None.
    """

    def __init__(self, dim: int, heads: int | None = None, qkv_bias: bool = True, mask: str = "weights"):
        super().__init__(dim, heads, qkv_bias)
        if mask not in MASKS:
            raise ValueError(f"mask={mask!r} must be one of {', '.join(map(repr, MASKS))}")
        self.mask = mask

    def _prompts(
        self, prompts: Tensor, batch: int, scale: Tensor | None, shift: Tensor | None, queries: bool
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        """q or None, k and v (batch, heads, P, d)."""
        dim, weight, bias = prompts.shape[-1], self.qkv.weight, self.qkv.bias
        first = 0 if queries else dim
        rows = linear(prompts, weight[first:], None if bias is None else bias[first:])
        *q, k, v = rows.unflatten(-1, (-1, dim)).unbind(-2)
        if scale is not None and shift is not None:
            v = v * scale + shift
        parts = [part.expand(batch, -1, -1).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (*q, k, v)]
        return (parts[0] if queries else None), parts[-2], parts[-1]

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        tokens: Tensor,
        prompts: Tensor,
        allowed: Tensor | None = None,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
        keep: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        count, size = tokens.shape[1], x.shape[-2:]
        q, k, v = self._split(torch.cat([tokens, x.flatten(2).transpose(1, 2)], dim=1))
        of_prompts, prompt_k, prompt_v = self._prompts(prompts, x.shape[0], scale, shift, keep)
        rows = self._joined(coordinated_attention(q, k, v, prompt_k, prompt_v, allowed, self.mask))
        kept = None if of_prompts is None else self._joined(coordinated_attention(of_prompts, k, v, prompt_k, prompt_v))
        return rows[:, count:].transpose(1, 2).unflatten(2, size), rows[:, :count], kept

    def _joined(self, heads: Tensor) -> Tensor:
        return self.proj(heads.transpose(1, 2).flatten(2))

    def attention_maps(  # type: ignore[override]
        self,
        x: Tensor,
        place: tuple[int, int],
        tokens: Tensor,
        prompts: Tensor,
        allowed: Tensor | None = None,
        *others: Any,
    ) -> Tensor:
        """As of `Attention`; the sum is 1 less what goes to the tokens and to the prompts."""
        q, k, _ = self._split(torch.cat([tokens, x.flatten(2).transpose(1, 2)], dim=1))
        _, prompt_k, _ = self._prompts(prompts, x.shape[0], None, None, False)
        row, count = tokens.shape[1] + place[0] * x.shape[-1] + place[1], prompt_k.shape[2]
        logits = q[:, :, row, None] @ torch.cat([prompt_k, k], dim=2).mT * q.shape[-1] ** -0.5
        if self.mask == "logits" and allowed is not None:
            unseen = F.pad(~allowed[:, None, row, None], (0, k.shape[2]))
            logits = logits.masked_fill(unseen, -torch.inf)
        return logits.softmax(-1)[..., count + tokens.shape[1] :].unflatten(-1, x.shape[-2:]).squeeze(2)


class PromptBlock(Block):
    """The pre-norm block with prompts beside map and tokens. Args: as of `Block`, the mixer a `CoordinatedAttention`.

    `forward(x, tokens, prompts, allowed, scale, shift, keep) -> (x, tokens, prompts)`, as of the mixer.
    """

    places = ()

    def forward(self, x: Tensor, tokens: Tensor, prompts: Tensor, *others: Any):  # type: ignore[override]
        mixed = self.mixer(self.norm1(x), self.norm1(tokens), self.norm1(prompts), *others)
        parts = [x, tokens, prompts] if mixed[2] is not None else [x, tokens]
        parts = self._sum(parts, mixed, self.scale1)
        x, tokens, *kept = self._sum(parts, [self.mlp(self.norm2(part)) for part in parts], self.scale2)
        return x, tokens, kept[0] if kept else None

    def _sum(self, parts: Sequence[Tensor], branches: Sequence[Tensor], scale: nn.Module) -> list[Tensor]:
        """Each part plus its branch; branches without a part are left out."""
        dropped = self.drop_path(*(scale(branch) for _, branch in zip(parts, branches)))
        return [part + branch for part, branch in zip(parts, dropped)]


# --- prompts ---------------------------------------------------------------------------------------------------------


class Pool(nn.Module):
    """Groups of prompts for every block, each group with a key.

    Args:
        depth: number of blocks L of which each has prompts of its own; their keys are as many as `key_depth`.
        size: number of groups S.
        length: number of prompts of a group.
        dim: channels C.
        key_depth: number of blocks that match; None for `depth`.
        keys: whether there are keys.
    """

    def __init__(self, depth: int, size: int, length: int, dim: int, key_depth: int | None = None, keys: bool = True):
        super().__init__()
        self.length = length
        self.keys = nn.Parameter(torch.empty(key_depth or depth, size, dim)) if keys else None
        self.prompts = nn.Parameter(torch.empty(depth, size, length, dim))
        self.reset_weights()

    def reset_weights(self) -> None:
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -1, 1)

    def nearest(self, block: int, rows: Tensor, topk: int, random: bool = False) -> tuple[Tensor, Tensor]:
        """The cosines (B, N, S) of tokens `rows` (B, N, C) and the keys of a block, and the groups (B, N, topk) that
        each token picks: those of the largest cosines, the largest first, or random ones without repetition."""
        assert self.keys is not None
        cosines = F.normalize(rows, dim=-1) @ F.normalize(self.keys[block], dim=-1).mT
        scores = torch.rand_like(cosines) if random else cosines.detach()
        return cosines, scores.topk(topk, dim=-1).indices

    def match(self, block: int, rows: Tensor, topk: int, random: bool = False) -> tuple[Tensor, Tensor]:
        """Which prompts each token sees, bool (B, N, S · length), and the mean of 1 - cosine of tokens and the keys
        that they picked. Args: as of `nearest`."""
        cosines, index = self.nearest(block, rows, topk, random)
        picked = torch.zeros_like(cosines, dtype=torch.bool).scatter(-1, index, True)
        distance = 1 - cosines.gather(-1, index).mean()
        return picked.repeat_interleave(self.length, dim=-1), distance


class Pools(nn.Module):
    """The prompts of the class token and those of all other tokens, class prompts first.

    Args:
        depth: number of blocks L.
        dim: channels C.
        sizes: number of groups of each pool; 0 for none.
        lengths: number of prompts of a group of each.
        topk: number of groups that a token picks of its pool.
        coordination: "matched", "roles" or "none", see above.
        shallow: whether the first block alone has prompts.
    """

    def __init__(
        self,
        depth: int,
        dim: int,
        sizes: Sequence[int] = (18, 18),
        lengths: Sequence[int] = (1, 1),
        topk: Sequence[int] = (10, 10),
        coordination: str = "matched",
        shallow: bool = False,
    ):
        super().__init__()
        self.topk, self.coordination = tuple(topk), coordination
        self.counts = tuple(size * length for size, length in zip(sizes, lengths))
        made = [
            Pool(1 if shallow else depth, size, length, dim, depth, coordination == "matched") if size else None
            for size, length in zip(sizes, lengths)
        ]
        self.of_class, self.of_image = made

    def prompts(self, block: int = 0) -> Tensor:
        """All prompts of a block, (1, P, C)."""
        parts = [pool.prompts[block].flatten(0, 1) for pool in (self.of_class, self.of_image) if pool is not None]
        return torch.cat(parts).unsqueeze(0)

    def forward(
        self, block: int, first: Tensor, others: Tensor, random: bool = False
    ) -> tuple[Tensor | None, Tensor | None]:
        """Which prompts the tokens of a block see.

        Args:
            block: number of the block.
            first: class token (B, 1, C).
            others: patches and registers (B, N, C).
            random: as of `Pool.match`.

        Returns:
            bool (B, 1 + N, P), or None for all; and the distance, of both pools, or None where nothing is matched.
        """
        if self.coordination == "none":
            return None, None
        if self.coordination == "roles":
            rows, prompts = (
                torch.arange(n, device=first.device) for n in (1 + others.shape[1], self.counts[0] + self.counts[1])
            )
            allowed = (rows[:, None] == 0) == (prompts < self.counts[0])
            return allowed.expand(first.shape[0], -1, -1), None
        seen, distances = [], []
        for pool, rows, topk, before, behind in (
            (self.of_class, first, self.topk[0], 0, self.counts[1]),
            (self.of_image, others, self.topk[1], self.counts[0], 0),
        ):
            if pool is None:
                seen.append(rows.new_zeros(*rows.shape[:2], before + behind, dtype=torch.bool))
                continue
            picked, distance = pool.match(block, rows, topk, random)
            seen.append(F.pad(picked, (before, behind)))
            distances.append(distance)
        return torch.cat(seen, dim=1), torch.stack(distances).sum()


class ImagePrompt(nn.Sequential):
    """What the option `image_prompt` adds to an image: two convolutions of 11 x 11 with a PReLU between.

    Args:
        channels: channels of the image.
    """

    def __init__(self, channels: int = 3):
        wide = 3 * channels
        super().__init__(nn.Conv2d(channels, wide, 11, padding=5), nn.PReLU(), nn.Conv2d(wide, channels, 11, padding=5))


# --- network ---------------------------------------------------------------------------------------------------------


class TCPA(Isotropic):
    """A vision transformer with prompts, see above: a classifier, or a backbone that gives maps.

    A file of the plain transformer loads (all names of `ViT`): prompts stay as they are, and the account says that they
    are missing. Maps hold pixels alone. In the dense form nothing adds a distance to the loss, so keys stay as they
    are.

    Args:
        dim, depth, class_position, **common: as of `Isotropic`. Registers pick prompts as patches do.
        heads: number of attention heads.
        base: "deep" for prompts of each block, or "shallow" for those of the first.
        fourier: whether prompts are Fourier transformed.
        coordination: "matched", where each token picks prompts; "roles", where it sees all that are for its kind;
            "none", where all see all: VPT, and with `fourier` VFPT.
        class_pool, image_pool: number of groups in the pools. 0 for none; with both the plain transformer is left.
        class_length, image_length: number of prompts of a group.
        class_topk, image_topk: number of groups that a token picks.
        mask: what becomes of prompts that a token does not see: "weights" or "logits", see above.
        dropout: rate of dropout of prompts in training.
        value_affine: whether the values of prompts are scaled and shifted, by learned numbers that all blocks share
            (ADVP).
        image_prompt: whether the image is changed by two learned convolutions (IPrompt).
        distance_weight: weight of the distance in the loss.
        frozen: whether everything but prompts, keys and head stays as it is, in inference mode.

    Attributes:
        random_picks: whether training picks random groups, as in the first epochs (see `PromptHook`).
    """

    unused = ("plugins",)
    dense_names = (*Isotropic.dense_names, r"^pools\.", r"^value_(scale|shift)$", r"^image_prompt\.")
    beside_backbone = (r"Pool\.", r"ADVP_[wb]$", r"Prompter\.")
    random_picks = False

    def __init__(
        self,
        dim: int = 768,
        depth: int = 12,
        heads: int = 12,
        base: str = "deep",
        fourier: bool = True,
        coordination: str = "matched",
        class_pool: int = 18,
        image_pool: int = 18,
        class_length: int = 1,
        image_length: int = 1,
        class_topk: int = 10,
        image_topk: int = 10,
        mask: str = "weights",
        dropout: float = 0.1,
        value_affine: bool = False,
        image_prompt: bool = False,
        distance_weight: float = 0.01,
        frozen: bool = True,
        class_position: bool = True,
        **common,
    ):
        for name, value, words in (
            ("base", base, BASES),
            ("coordination", coordination, COORDINATIONS),
            ("mask", mask, MASKS),
        ):
            if value not in words:
                raise ValueError(f"{name}={value!r} must be one of {', '.join(map(repr, words))}")
        check_whole("class_pool", [class_pool], 0)
        check_whole("image_pool", [image_pool], 0)
        for kind, size, length, topk in (
            ("class", class_pool, class_length, class_topk),
            ("image", image_pool, image_length, image_topk),
        ):
            check_whole(f"{kind}_length", [length])
            check_whole(f"{kind}_topk", [topk])
            if coordination == "matched" and 0 < size < topk:
                raise ValueError(f"{kind}_topk={topk} must be at most {kind}_pool={size}, the groups that there are")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout} must be at least 0 and below 1")
        if not 0 <= distance_weight < float("inf"):
            raise ValueError(f"distance_weight={distance_weight} must be a number of at least 0")
        self.base, self.fourier, self.coordination, self.mask = base, fourier, coordination, mask
        self.heads, self.distance_weight, self.frozen = heads, distance_weight, False
        self.distance: Tensor | None = None  # of the last batch in training
        super().__init__(dim, depth, "Attention", class_token=0, class_position=class_position, **common)
        sizes, lengths = (class_pool, image_pool), (class_length, image_length)
        count = class_pool * class_length + image_pool * image_length
        self.pools = None
        if count:
            self.pools = Pools(depth, dim, sizes, lengths, (class_topk, image_topk), coordination, base == "shallow")
        self.dropout = nn.Dropout(dropout)
        self.value_scale = self.value_shift = None
        if value_affine:
            if not count:
                raise ValueError("value_affine=True changes prompts, and class_pool=0 and image_pool=0 leave none")
            self.value_scale, self.value_shift = (nn.Parameter(torch.empty(1, count, dim)) for _ in range(2))
            with torch.no_grad():
                for parameter, mean in ((self.value_scale, 1.0), (self.value_shift, 0.0)):
                    nn.init.kaiming_normal_(parameter)
                    parameter.mul_(0.1).add_(mean)
        self.image_prompt = ImagePrompt(self.in_channels).apply(self.initialize) if image_prompt else None
        if self.head is None:
            for pool in self._pools():
                if pool.keys is not None:
                    pool.keys.requires_grad_(False)
        self.frozen = frozen
        self.train(self.training)

    def make_block(self, index: int, dim: int, drop_path: float) -> nn.Module:
        mlp, norm = MLPS[self.mlp](dim, self.mlp_ratio[index]), partial(LayerNorm2d, eps=self.eps)
        mixer = CoordinatedAttention(dim, self.heads, mask=self.mask)
        return PromptBlock(dim, mixer, mlp, drop_path, self.layer_scale[index], norm=norm)

    def _pools(self) -> list[Pool]:
        pools = () if self.pools is None else (self.pools.of_class, self.pools.of_image)
        return [pool for pool in pools if pool is not None]

    # --- the loop ----------------------------------------------------------------------------------------------------

    def embed(self, image: Tensor) -> Tensor:
        return super().embed(image if self.image_prompt is None else image + self.image_prompt(image))

    def _prompts(self, block: int, like: Tensor) -> Tensor:
        """The prompts that join at a block, (1 or B, P, C): in training each image drops its own."""
        if self.pools is None:
            return like.new_zeros(1, 0, self.dim)
        prompts = self.pools.prompts(block)
        if self.training and self.dropout.p:
            prompts = self.dropout(prompts.expand(like.shape[0], -1, -1))
        if self.fourier:
            wide = torch.promote_types(prompts.dtype, torch.float32)  # half ones have no transforms everywhere
            prompts = torch.fft.fft2(prompts.to(wide)).real.to(prompts.dtype)
        return prompts

    def run(self, block: nn.Module, x: Tensor, tokens: Tensor | None, notes: Notes) -> tuple[Tensor, Tensor | None]:
        """As of `Isotropic`; notes "allowed", which prompts the tokens of this block see, bool (B, T + N, P) or None
        for all, and "distances", one for each block so far where they are matched."""
        assert tokens is not None
        index = notes["block"] = notes.get("block", -1) + 1
        notes["allowed"], shallow = None, self.base == "shallow"
        prompts = notes["prompts"] if shallow and index else self._prompts(index, x)
        if self.pools is not None:
            others = torch.cat([tokens[:, 1:], x.flatten(2).transpose(1, 2)], dim=1)
            random = self.training and self.random_picks
            notes["allowed"], distance = self.pools(index, tokens[:, :1], others, random)
            if distance is not None:
                notes.setdefault("distances", []).append(distance)
        inputs: Any = (x, tokens, prompts, notes["allowed"], self.value_scale, self.value_shift, shallow)
        x, tokens, notes["prompts"] = self.blocks.run(block, *inputs)
        return x, tokens

    def head_input(self, x: Tensor, notes: Notes) -> Tensor:
        if self.training and "distances" in notes:
            self.distance = torch.stack(notes["distances"]).sum()
        return super().head_input(x, notes)

    # --- training ----------------------------------------------------------------------------------------------------

    def feedback(self, logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """As of `Backbone`: "loss", `distance_weight` times the distance of the last batch, and that as "distance"."""
        if self.distance is None:
            return {}
        distance, self.distance = self.distance, None
        return dict(loss=self.distance_weight * distance, distance=distance.detach())

    def _frozen(self) -> list[nn.Module]:
        if not self.frozen:
            return super()._frozen()
        learned = (self.position, self.pre_norm, self.cls_token, self.register_tokens, self.norm, self.projection)
        parts = [part for part in learned if part is not None]
        return [*super()._frozen(), self.stem, *parts, *self.blocks]  # one by one: the list itself checkpoints

    def counts(self) -> dict[str, int]:
        """Numbers of parameters: "prompts", which learn, keys among them; "head", which learns, the rescaled maps of
        the dense form among it; and "frozen". With `frozen=False`, "backbone" learns, too."""
        found = dict(prompts=0, head=0, backbone=0, frozen=0)
        for name, parameter in self.named_parameters():
            prompt = name.startswith(("pools.", "value_", "image_prompt."))
            learned = "prompts" if prompt else "head" if name.startswith(("head.", "rescale.")) else "backbone"
            found[learned if parameter.requires_grad else "frozen"] += parameter.numel()
        return found

    def extra_repr(self) -> str:
        words = [f"{name}={getattr(self, name)}" for name in ("base", "fourier", "coordination", "mask")]
        if self.pools is not None:
            words += [f"topk={self.pools.topk}"]
        words += [f"distance_weight={self.distance_weight}", f"frozen={self.frozen}"]
        return ", ".join([*words, *(f"{count:,} of {part}" for part, count in self.counts().items() if count)])

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        found = super().group_matcher(coarse)
        stem = r"^(image_prompt|stem|position|pre_norm|cls_token|register_tokens)"
        return {**found, "stem": stem, "blocks": [*found["blocks"], (r"^(pools|value_)", (99999,))]}


# Trained from the weights of timm's vit_base_patch16_224.augreg_in21k, which are normalized with 1/2. The authors'
# results are in a figure alone, and of VPT's form with TCPA the code is missing in the release. Parameters are counted
# with 1000 classes.
_FACTS: dict[str, Any] = dict(mean=(127.5, 127.5, 127.5), std=(127.5, 127.5, 127.5))
_PARSER = dict(class_pool=20, image_pool=20, class_length=4, image_length=4, class_topk=3, image_topk=3)
VARIANTS = {
    "tcpa_vfpt_base": Variant({}, 87_231_208, **_FACTS),
    "tcpa_vpt_base": Variant(dict(fourier=False), 87_231_208, **_FACTS),
    "tcpa_vfpt_base_pool20": Variant(_PARSER, 88_410_856, **_FACTS),
}

# --- the authors' checkpoints ----------------------------------------------------------------------------------------

RULES: Rules = [
    (r"^backbone\.", r""),
    (r"^Pool\.", r"pools."),
    (r"(^|\.)Pool_cls\.", r"\1of_class."),
    (r"(^|\.)Pool_image\.", r"\1of_image."),
    (r"^ADVP_w$", r"value_scale"),
    (r"^ADVP_b$", r"value_shift"),
    (r"^Prompter\.Prompter\.", r"image_prompt."),
    *vit_names.RULES,
]

register(TCPA, VARIANTS, RULES)
