"""DHVT: a plain vision transformer for small data sets, with convolutions in patches and MLP, and with head tokens.

"Bridging the Gap Between Vision Transformers and Convolutional Neural Networks on Small Datasets", NeurIPS 2022, arXiv
2210.05958; https://github.com/ArieSeirack/DHVT (Apache-2.0), whose checkpoints load; none was published.

Head-interacted attention has one more token for each of its h heads. Of the rows x (1 + N, C) of class token and
pixels, the group of d = C / h channels of head i makes

    t_i = GELU(LN_d(W mean(x)[i d : (i + 1) d] + b)) + e_i          W (C, d) and b are shared; LN reads h groups of d

with a learned e_i. Plain attention mixes the 1 + N + h rows; the mean of the head tokens' results is added to that of
the class token, and they are gone: an image has as many tokens as before.

Dynamic aggregation feed-forward convolves the pixels, and gives the class token the factors

    cls <- cls * (W₂ GELU(W₁ mean over the pixels of the result))

which nothing bounds. There is no table of positions: the zeros around the convolutions tell where a pixel is.

Where paper and code differ, the code counts: the norm of the head tokens is not in the paper, and the patches have GELU
between their convolutions (behind the one of 2x2 patches), not after each.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..registry import MIXERS
from .layers import Block, ConvNorm, LayerNorm2d, Linear, Residual, heads_of
from .skeletons.isotropic import Isotropic
from .zoo import Rules, Variant, register

# --- operator --------------------------------------------------------------------------------------------------------


@MIXERS.register_module()
class HeadInteractedAttention(nn.Module):
    """Multi-head self-attention over all pixels and one token for each head, see above.

    Args:
        dim: channels C.
        heads: number of attention heads, and of head tokens; about C / 32 by default.
        qkv_bias: whether the projection to queries, keys and values has a bias.

    `forward(x (B, C, H, W)) -> (B, C, H, W)`; with `tokens (B, T, C)`, which take part, a pair of both. Each of these
    gets the mean of the head tokens' results, as the one class token of the paper does; without them, as in a
    `Pyramid`, the head tokens are read by the pixels alone.
    """

    takes_tokens = True

    def __init__(self, dim: int, heads: int | None = None, qkv_bias: bool = True):
        super().__init__()
        self.heads = heads_of("HeadInteractedAttention", dim, heads)
        self.token_proj = nn.Linear(dim // self.heads, dim)
        self.token_norm = nn.LayerNorm(dim // self.heads)
        self.token_embedding = nn.Parameter(torch.empty(1, self.heads, dim))  # decays, as the authors' does
        nn.init.trunc_normal_(self.token_embedding, std=0.02)
        self.qkv = Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = Linear(dim, dim)

    def head_tokens(self, *parts: Tensor) -> Tensor:
        """The head tokens of rows, which come in parts (B, N, C): (B, heads, C). Their sum is in float32 at least."""
        wide = torch.promote_types(parts[0].dtype, torch.float32)
        total = torch.stack([part.sum(1, dtype=wide) for part in parts]).sum(0)
        mean = (total / sum(part.shape[1] for part in parts)).to(parts[0].dtype)
        tokens = self.token_proj(mean.unflatten(-1, (self.heads, -1))).unflatten(-1, (self.heads, -1))
        return F.gelu(self.token_norm(tokens)).flatten(2) + self.token_embedding

    def _split(self, x: Tensor, tokens: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v (B, heads, T + N + heads, d) of tokens, pixels and head tokens."""
        rows = x.flatten(2).transpose(1, 2)
        parts = [rows] if tokens is None else [tokens, rows]
        qkv = self.qkv(torch.cat([*parts, self.head_tokens(*parts)], dim=1)).unflatten(-1, (3, self.heads, -1))
        return qkv.permute(2, 0, 3, 1, 4).unbind(0)

    def forward(self, x: Tensor, tokens: Tensor | None = None):
        size = x.shape[-2:]
        q, k, v = self._split(x, tokens)
        if tokens is None:
            q = q[:, :, : -self.heads]  # nobody would read what the head tokens see
        rows = self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        if tokens is None:
            return rows.transpose(1, 2).unflatten(2, size)
        count = tokens.shape[1]
        mixed, pixels, heads = rows.split([count, rows.shape[1] - count - self.heads, self.heads], dim=1)
        return pixels.transpose(1, 2).unflatten(2, size), mixed + heads.mean(1, keepdim=True)

    def attention_maps(self, x: Tensor, place: tuple[int, int], tokens: Tensor | None = None) -> Tensor:
        """How the pixel (row, column) `place` looks at every pixel, by head: (B, heads, H, W). The sum is 1 less what
        goes to the tokens and to the head tokens."""
        count = 0 if tokens is None else tokens.shape[1]
        q, k, _ = self._split(x, tokens)
        here = q[:, :, count + place[0] * x.shape[-1] + place[1], None]
        weights = (here @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1)
        return weights[..., count : -self.heads].unflatten(-1, x.shape[-2:]).squeeze(2)


# --- network ---------------------------------------------------------------------------------------------------------


class Affine(nn.Module):
    """alpha * x + beta, learned for each channel of a map (B, C, H, W)."""

    def __init__(self, dim: int):
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(1, dim, 1, 1))
        self.beta = nn.Parameter(torch.zeros(1, dim, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.beta, self.alpha, x)


class Stem(nn.Module):
    """Patches by 3x3 convolutions of stride 2, each with batch norm, between two `Affine` (the paper's SOPE). Every
    convolution rounds the size up.

    Args:
        in_channels, dim: channels of the image and of the map.
        patch_size: side of a patch, 2^k for k convolutions, the last of which gives `dim` channels, each other half as
            many as the next one, rounded down.
    """

    def __init__(self, in_channels: int, dim: int, patch_size: int):
        super().__init__()
        steps = patch_size.bit_length() - 1
        if patch_size < 2 or patch_size != 1 << steps or patch_size > 2 * dim:
            raise ValueError(f"patch_size={patch_size} must be 2, 4, 8 or another power of two up to 2 * dim={2 * dim}")
        widths = [in_channels, *(dim >> (steps - 1 - i) for i in range(steps))]
        convs: list[nn.Module] = []
        for i in range(steps):
            convs += [ConvNorm(widths[i], widths[i + 1], 3, stride=2), nn.GELU()]
        self.before = Affine(in_channels)
        self.convs = nn.Sequential(*(convs if steps == 1 else convs[:-1]))
        self.after = Affine(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.convs(self.before(x)))


class DynamicAggregation(nn.Module):
    """The feed-forward (the paper's DAFF): on pixels 1x1 convolution and GELU, y + GELU(depth-wise 3x3(y)), 1x1
    convolution, each with batch norm; on tokens factors that the result makes, see above.

    Args:
        dim: channels C.
        ratio: hidden width over C.
        weighs: whether tokens will be given; without them there are no layers for the factors.

    `forward(x (B, C, H, W)) -> (B, C, H, W)`; with `tokens (B, T, C)`, a pair of both.
    """

    def __init__(self, dim: int, ratio: float = 4.0, weighs: bool = True):
        super().__init__()
        hidden = int(dim * ratio)
        self.conv1 = ConvNorm(dim, hidden, bias=True)
        self.activation = nn.GELU()
        self.local = Residual(ConvNorm(hidden, hidden, 3, groups=hidden, bias=True), activation=nn.GELU())
        self.conv2 = ConvNorm(hidden, dim, bias=True)
        if weighs:
            self.compress = nn.Linear(dim, max(1, dim // 4))
            self.excite = nn.Linear(max(1, dim // 4), dim)

    def forward(self, x: Tensor, tokens: Tensor | None = None):
        x = self.conv2(self.local(self.activation(self.conv1(x))))
        if tokens is None:
            return x
        factors = self.excite(F.gelu(self.compress(x.mean((2, 3)))))
        return x, tokens * factors[:, None]


class DHVTBlock(Block):
    """The pre-norm block whose MLP takes the tokens, too; the last one of the dense form, where nobody reads them, has
    an MLP that does not."""

    def forward(self, x: Tensor, tokens: Tensor | None = None):
        if tokens is None:
            return super().forward(x)
        of_x, of_tokens = self.drop_path(*self.mixer(self.norm1(self.before(x)), self.norm1(tokens)))
        x, tokens = x + of_x, tokens + of_tokens
        if not hasattr(self.mlp, "excite"):
            return x + self.drop_path(self.mlp(self.norm2(x))), tokens
        of_x, of_tokens = self.drop_path(*self.mlp(self.norm2(x), self.norm2(tokens)))
        return x + of_x, tokens + of_tokens


class DHVT(Isotropic):
    """DHVT. The images of the classifier may have any size, as there is no table of positions.

    The authors have 2, 4 and 16 for `patch_size`, and no dense form: that of `Isotropic`, with the class token beside
    the pixels, is ours. Its last block has no layers for the factors of the class token, which nobody would read.

    Args:
        dim, depth, patch_size, mlp_ratio, drop_path_rate, **common: as of `Isotropic`.
        heads: number of attention heads, and of head tokens.
        qkv_bias: whether queries, keys and values have a bias.
    """

    unused = ("img_size", "position", "registers", "layer_scale", "mlp")
    trunc_normal = (nn.Linear,)  # convolutions keep PyTorch's initial weights

    def __init__(self, dim: int = 192, depth: int = 12, heads: int = 4, qkv_bias: bool = True, **common):
        mixer = dict(type="HeadInteractedAttention", heads=heads, qkv_bias=qkv_bias)
        super().__init__(dim, depth, mixer, position=False, **common)

    def make_stem(self, in_channels: int, dim: int) -> nn.Module:
        return Stem(in_channels, dim, self.patch_size)

    def make_block(self, index: int, dim: int, drop_path: float) -> nn.Module:
        weighs = self.num_classes is not None or index < self.out_indices[-1]
        mixer = MIXERS.build({**self.mixers[index], "dim": dim})
        mlp = DynamicAggregation(dim, self.mlp_ratio[index], weighs)
        return DHVTBlock(dim, mixer, mlp, drop_path, norm=lambda dim: LayerNorm2d(dim, eps=self.eps))

    @property
    def checkpoint_optional(self) -> Sequence[str]:
        left_out = (
            [] if self.num_classes is not None else [rf"^blocks\.{self.out_indices[-1]}\.mlp\.(compress|excite)\."]
        )
        return [*super().checkpoint_optional, *left_out]


_tiny, _small = dict(dim=192, heads=4), dict(dim=384, heads=8)
_six = dict(dim=384, heads=6)
_cifar: dict[str, Any] = dict(size=32, drop_path=0.1, classes=100, crop=1.0)
_domain: dict[str, Any] = dict(drop_path=0.1, classes=345)

# Published top-1, best of several runs: on CIFAR-100 80.93, 82.91 (patches of 4), 83.54, 85.68 (of 2); on ClipArt,
# Painting and Sketch of DomainNet 71.73, 63.34, 66.60 (tiny) and 73.89, 66.08, 68.72 (small). Those of ImageNet are the
# repository's; the paper has 76.5 for the tiny one.
VARIANTS = {
    "dhvt_tiny_cifar_patch4": Variant(_tiny | dict(patch_size=4), 6_008_650, **_cifar),
    "dhvt_small_cifar_patch4": Variant(_small | dict(patch_size=4), 23_425_450, **_cifar),
    "dhvt_tiny_cifar_patch2": Variant(_tiny | dict(patch_size=2), 5_845_162, **_cifar),
    "dhvt_small_cifar_patch2": Variant(_small | dict(patch_size=2), 22_766_698, **_cifar),
    "dhvt_tiny_domain_patch16": Variant(_tiny, 6_105_975, **_domain),
    "dhvt_small_domain_patch16": Variant(_six, 23_788_431, **_domain),
    "dhvt_tiny_imagenet_patch16": Variant(_tiny | dict(heads=3), 6_267_334, 1.4, 77.6, drop_path=0.1),
    "dhvt_small_imagenet_patch16": Variant(_six, 24_040_606, 5.1, 82.3, drop_path=0.1),
}

# --- the authors' checkpoints ----------------------------------------------------------------------------------------

# of an operator or a feed-forward alone
PART_RULES: Rules = [
    (r"(^|\.)pos_embed$", r"\1token_embedding"),
    (r"(^|\.)ht_(proj|norm)\.", r"\1token_\2."),
    (r"(^|\.)conv1\.", r"\1conv1.conv."),
    (r"(^|\.)bn1\.", r"\1conv1.norm."),
    (r"(^|\.)conv2\.", r"\1local.branch.conv."),
    (r"(^|\.)bn2\.", r"\1local.branch.norm."),
    (r"(^|\.)conv3\.", r"\1conv2.conv."),
    (r"(^|\.)bn3\.", r"\1conv2.norm."),
    (r"(^|\.)excitation\.", r"\1excite."),
]

RULES: Rules = [
    (r"^patch_embed\.pre_affine\.", r"stem.before."),
    (r"^patch_embed\.post_affine\.", r"stem.after."),
    (r"^patch_embed\.proj\.(\d)\.0\.", r"stem.convs.\1.conv."),
    (r"^patch_embed\.proj\.(\d)\.1\.", r"stem.convs.\1.norm."),
    (r"^cls_token$", r"cls_token.weight"),
    (r"\.attn\.", r".mixer."),
    *PART_RULES,
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
]

register(DHVT, VARIANTS, RULES)
