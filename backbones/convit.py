"""ConViT: vision transformers with soft convolutional inductive biases.

"ConViT: Improving Vision Transformers with Soft Convolutional Inductive Biases", ICML 2021, arXiv 2103.10697;
https://github.com/facebookresearch/convit (LICENSE says Apache-2.0, headers of its files CC-by-NC), whose weights load.

Gated positional self-attention (GPSA) mixes, head by head, an attention to content with one to places that does not
depend on the input. For a pixel i and the pixels j at (dx, dy) from it, with a learned vector w and gate λ of the head:

    A_ij = (1 - σ(λ)) softmax_j(q_i · k_j / √d) + σ(λ) softmax_j(w · (dx, dy, dx² + dy²) + b)

The second logit is a sum of a function of dx and one of dy, so its softmax is the product of one over the columns and
one over the rows: a table of H x H + W x W replaces the N x N x 3 of the reference, for maps of any shape. The code
divides A by its sum over j once more, which is 1.

The code has w (a linear layer of the three features) where the paper has a center and a strength of locality for each
head; they are the same family.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..registry import MIXERS
from .layers import Linear, heads_of
from .skeletons.isotropic import Isotropic
from .zoo import Rules, Variant, register

# --- operator --------------------------------------------------------------------------------------------------------


@MIXERS.register_module()
class GPSA(nn.Module):
    """Gated positional self-attention, see above.

    Each head begins by looking at one neighbor: m² heads (m = ⌊√heads⌋) at the pixels of an m x m window, and the
    values pass unchanged, as in a convolution. For even m the centers lie between pixels, and a head looks at four
    pixels alike. The authors' use_local_init=False, a start without this, is left out: nothing published uses it.

    Args:
        dim: channels C.
        heads: number of attention heads; about C / 32 by default.
        qkv_bias: whether queries, keys and values have a bias.
        locality_strength: sharpness of a head's look at its neighbor in the beginning.

    `forward(x (B, C, H, W)) -> (B, C, H, W)`.
    """

    def __init__(self, dim: int, heads: int | None = None, qkv_bias: bool = False, locality_strength: float = 1.0):
        super().__init__()
        self.heads = heads_of("GPSA", dim, heads)
        self.locality_strength = locality_strength
        self.qk = Linear(dim, 2 * dim, bias=qkv_bias)
        self.v = Linear(dim, dim, bias=qkv_bias)
        self.pos_proj = nn.Linear(3, self.heads)  # w and b; the softmax cancels b
        self.gating_param = nn.Parameter(torch.empty(self.heads))
        self.proj = Linear(dim, dim)
        self.reset_weights()

    @torch.no_grad()
    def reset_weights(self) -> None:
        """-strength · |(dx, dy) - center|², but for a constant, is the positional logit of each of the m² heads."""
        nn.init.eye_(self.v.weight)
        nn.init.ones_(self.gating_param)
        nn.init.trunc_normal_(self.pos_proj.weight, std=0.02)
        nn.init.zeros_(self.pos_proj.bias)
        side = math.isqrt(self.heads)
        centers = [n - (side - 1) / 2 for n in range(side)]  # of even m they lie between pixels, and four pixels tie
        window = [(2 * dx, 2 * dy, -1.0) for dx in centers for dy in centers]
        self.pos_proj.weight[: side**2] = torch.tensor(window).to(self.pos_proj.weight)
        self.pos_proj.weight *= self.locality_strength

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v (B, heads, N, d) of a map."""
        rows = x.flatten(2).transpose(1, 2)
        q, k = self.qk(rows).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, self.v(rows).unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def positions(self, size: int, axis: int) -> Tensor:
        """How the places of one axis look at each other: (heads, size, size), sums of 1, at least in float32.

        Args:
            size: number of places, W or H.
            axis: 0 for the width, 1 for the height.
        """
        weight, bias = self.pos_proj.weight, self.pos_proj.bias
        wide = torch.promote_types(weight.dtype, torch.float32)  # squares of distances need the digits
        place = torch.arange(size, device=weight.device, dtype=wide)
        delta = place - place[:, None]
        linear, square = weight.to(wide)[:, (axis, 2), None, None].unbind(1)
        return (linear * delta + square * delta.square() + bias.to(wide)[:, None, None]).softmax(-1)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        q, k, v = self._split(x)
        content = F.scaled_dot_product_attention(q, k, v)
        down, along = (self.positions(n, axis).to(v.dtype) for n, axis in ((height, 1), (width, 0)))
        place = torch.einsum("hij,bhjwd->bhiwd", down, v.unflatten(2, (height, width)))
        place = torch.einsum("hij,bhwjd->bhwid", along, place).flatten(2, 3)
        gate = torch.sigmoid(self.gating_param)[:, None, None].to(v.dtype)
        rows = self.proj(torch.lerp(content, place, gate).transpose(1, 2).flatten(2))
        return rows.transpose(1, 2).unflatten(2, (height, width))

    def attention_maps(self, x: Tensor, place: tuple[int, int]) -> Tensor:
        """How the pixel (row, column) `place` looks at every pixel, by head: (B, heads, H, W), sums of 1."""
        (height, width), (row, column) = x.shape[-2:], place
        q, k, _ = self._split(x)
        logits = q[:, :, row * width + column, None] @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        content = logits.softmax(-1).unflatten(-1, (height, width)).squeeze(2)
        down, along = self.positions(height, 1)[:, row], self.positions(width, 0)[:, column]
        position = (down[:, :, None] * along[:, None]).to(content.dtype)
        return torch.lerp(content, position, torch.sigmoid(self.gating_param)[:, None, None].to(content.dtype))


# --- network ---------------------------------------------------------------------------------------------------------


class ConViT(Isotropic):
    """ConViT: blocks of GPSA on the pixels, then blocks of plain attention, which the class token joins.

    In the dense form, which the authors do not have, there is no class token, and the plain attentions see the pixels
    alone.

    Args:
        dim, drop_path_rate, **common: as of `Isotropic`.
        depths: number of blocks of GPSA, and of blocks of plain attention (at least one).
        heads: number of heads of all attentions.
        locality_strength: as of `GPSA`.
        qkv_bias: whether the queries, keys and values of all attentions have a bias.
    """

    def __init__(
        self,
        dim: int = 192,
        depths: Sequence[int] = (10, 2),
        heads: int = 4,
        locality_strength: float = 1.0,
        qkv_bias: bool = False,
        **common,
    ):
        if len(depths) != 2 or min(depths) < 0 or depths[1] < 1:
            raise ValueError(f"depths must be (blocks of GPSA, at least one block of attention), got {tuple(depths)}")
        local, plain = depths
        both = dict(heads=heads, qkv_bias=qkv_bias)
        mixers = [dict(type="GPSA", locality_strength=locality_strength, **both)] * local
        mixers += [dict(type="Attention", **both)] * plain
        joins = local if common.get("num_classes") is not None else None
        super().__init__(dim, local + plain, mixers, class_token=joins, **common)


def _width(dim: int, heads: int) -> dict:
    return dict(dim=dim, heads=heads)


# 48 channels a head, 64 in the plus models, whose weights were not published. The accuracies of the others were
# verified with the published weights; those of the plus models are the paper's.
VARIANTS = {
    "convit_tiny": Variant(_width(192, 4), 5_710_512, 1.0, 73.1, drop_path=0.1),
    "convit_tiny_plus": Variant(_width(256, 4), 9_972_912, 2.0, 76.7, drop_path=0.1),
    "convit_small": Variant(_width(432, 9), 27_777_322, 5.4, 81.4, drop_path=0.1),
    "convit_small_plus": Variant(_width(576, 9), 48_979_882, 10.0, 82.2, drop_path=0.1),
    "convit_base": Variant(_width(768, 16), 86_540_040, 17.0, 82.3, drop_path=0.1),
    "convit_base_plus": Variant(_width(1024, 16), 153_134_856, 30.0, 82.5, drop_path=0.1),
}

# --- the authors' checkpoints ----------------------------------------------------------------------------------------

RULES: Rules = [
    (r"^patch_embed\.proj\.", r"stem."),
    (r"^pos_embed$", r"position.weight"),
    (r"^cls_token$", r"cls_token.weight"),
    (r"\.attn\.", r".mixer."),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
]

register(ConViT, VARIANTS, RULES)
