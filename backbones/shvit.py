"""SHViT: single-head attention on a part of the channels, on maps of stride 16 and more.

"SHViT: Single-Head Vision Transformer with Memory Efficient Macro Design", CVPR 2024, arXiv 2401.16456;
https://github.com/ysj9909/SHViT (MIT), whose weights load, as do those of timm's port.

SHSA gives the first P of C channels to one head with narrow queries and keys, and leaves the others as they are:

    x₁, x₂ = x[:P], x[P:]
    q, k, v = BN(W GN(x₁))                            # widths d, d, P; d = 16
    out = BN(W [relu(softmax(q kᵀ / √d) v), relu(x₂)])

Paper and code: the paper names one ratio C / P of 4.67, the code a number for each stage, which is followed here.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..registry import MIXERS
from .layers import (
    ConvMlp,
    ConvNorm,
    DistilledHead,
    Head,
    Residual,
    SqueezeExcite,
    as_rows,
    depthwise_norm,
    make_divisible,
)
from .skeletons.options import per_stage
from .skeletons.pyramid import Pyramid
from .zoo import Rules, Variant, register

# --- operator --------------------------------------------------------------------------------------------------------


@MIXERS.register_module()
class SHSA(nn.Module):
    """Single-head self-attention over all pixels, see above. There is no positional term.

    Args:
        dim: channels C.
        partial_dim: number P of channels that attend; C / 4.67 by default.
        key_dim: width d of queries and keys.

    `forward(x (B, C, H, W)) -> (B, C, H, W)`. The last norm begins at zero, as for a residual branch.
    """

    def __init__(self, dim: int, partial_dim: int | None = None, key_dim: int = 16):
        super().__init__()
        partial_dim = max(1, round(dim / 4.67)) if partial_dim is None else partial_dim
        if not 1 <= partial_dim <= dim:
            raise ValueError(f"SHSA: partial_dim={partial_dim} must be from 1 to dim={dim}")
        if key_dim < 1:
            raise ValueError(f"SHSA: key_dim={key_dim} must be at least 1")
        self.split = [partial_dim, dim - partial_dim]
        self.widths = [key_dim, key_dim, partial_dim]
        self.pre_norm = nn.GroupNorm(1, partial_dim)
        self.qkv = ConvNorm(partial_dim, sum(self.widths))
        self.proj = ConvNorm(dim, dim, weight=0.0)

    def _rows(self, x: Tensor) -> tuple[Tensor, ...]:
        """x₁ (B, P, H, W) -> q, k (B, 1, N, d), v (B, 1, N, P)."""
        qkv = self.qkv(self.pre_norm(x)).flatten(2).transpose(1, 2).unsqueeze(1)
        return as_rows(*qkv.split(self.widths, dim=-1))

    def forward(self, x: Tensor) -> Tensor:
        attending, rest = x.split(self.split, dim=1)
        q, k, v = self._rows(attending)
        rows = F.scaled_dot_product_attention(q, k, v)
        attended = rows.squeeze(1).transpose(1, 2).unflatten(2, x.shape[-2:])
        return self.proj(F.relu(torch.cat([attended, rest], dim=1), inplace=True))

    def attention_maps(self, x: Tensor, place: tuple[int, int]) -> Tensor:
        """How the pixel (row, column) `place` looks at every pixel: (B, 1, H, W), sum of 1."""
        q, k, _ = self._rows(x[:, : self.split[0]])
        row, column = place
        here = q[:, :, row * x.shape[-1] + column, None]
        return (here @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1).squeeze(2).unflatten(-1, x.shape[-2:])


# --- network ---------------------------------------------------------------------------------------------------------


class PatchMerging(nn.Module):
    """Half the size by a depth-wise convolution of stride 2 between 1x1 convolutions, with squeeze and excitation."""

    def __init__(self, in_dim: int, dim: int):
        super().__init__()
        hidden = 4 * in_dim
        self.conv1 = ConvNorm(in_dim, hidden)
        self.conv2 = depthwise_norm(hidden, stride=2)
        self.se = SqueezeExcite(hidden, make_divisible(hidden / 4, limit=0))
        self.conv3 = ConvNorm(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3(self.se(F.relu(self.conv2(F.relu(self.conv1(x), inplace=True)), inplace=True)))


def local_mixing(dim: int) -> nn.Sequential:
    """What stands before and behind `PatchMerging`."""
    return nn.Sequential(Residual(depthwise_norm(dim)), Residual(ConvMlp(dim)))


class SHViTBlock(nn.Module):
    """x + depth-wise 3x3(x); x + mixer(x), if there is one; x + mlp(x)."""

    def __init__(self, dim: int, mixer: nn.Module | None, drop_path: float = 0.0):
        super().__init__()
        self.position = Residual(depthwise_norm(dim, weight=0.0), drop_path)
        self.mixer = nn.Identity() if mixer is None else Residual(mixer, drop_path)
        self.mlp = Residual(ConvMlp(dim), drop_path)

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(self.mixer(self.position(x)))


class SHViT(Pyramid):
    """SHViT: three stages at strides 16, 32, 64; the first mixes by depth-wise convolution alone. The
    dense form gives the maps as they are, without norms.

    Args:
        dims, depths, drop_path_rate, **common: as of `Pyramid`.
        partial_dims: `partial_dim` of SHSA, by stage; None for a stage without.
        key_dim: width of the queries and keys of SHSA.
        distilled: whether the classifier has a second head, for the authors' weights that learnt from a teacher. The
            logits are averaged, also in training: hard distillation is not offered here (see `DistilledHead`).
    """

    unused = ("mlp_ratio", "layer_scale")
    stem_stride = 16
    trunc_normal = (nn.Linear,)  # convolutions keep PyTorch's initial weights: batch norms follow

    def __init__(
        self,
        dims=(128, 224, 320),
        depths=(2, 4, 5),
        partial_dims=(None, 48, 68),
        key_dim: int = 16,
        distilled=False,
        **common,
    ):
        self.partial_dims, self.key_dim = per_stage("partial_dims", partial_dims, len(dims)), key_dim
        self.distilled = distilled
        super().__init__(dims, depths, **common)

    def make_stem(self, in_channels: int, dim: int) -> nn.Module:
        return nn.Sequential(
            ConvNorm(in_channels, dim // 8, 3, stride=2),
            nn.ReLU(inplace=True),
            ConvNorm(dim // 8, dim // 4, 3, stride=2),
            nn.ReLU(inplace=True),
            ConvNorm(dim // 4, dim // 2, 3, stride=2),
            nn.ReLU(inplace=True),
            ConvNorm(dim // 2, dim, 3, stride=2),
        )

    def make_downsample(self, stage: int, in_dim: int, dim: int) -> nn.Module:
        return nn.Sequential(local_mixing(in_dim), PatchMerging(in_dim, dim), local_mixing(dim))

    def make_block(self, stage: int, index: int, dim: int, drop_path: float) -> nn.Module:
        width = self.partial_dims[stage]
        return SHViTBlock(dim, None if width is None else SHSA(dim, width, self.key_dim), drop_path)

    def make_output_norm(self, stage: int, dim: int) -> nn.Module:
        return nn.Identity()

    def make_head(self, dim: int, num_classes: int) -> nn.Module:
        if self.distilled:
            return DistilledHead(dim, num_classes, after=nn.BatchNorm1d)
        return Head(dim, num_classes, after=nn.BatchNorm1d(dim))


VARIANTS = {
    "shvit_s1": Variant(dict(), 6_330_808, 0.241, 72.8),
    "shvit_s2": Variant(dict(dims=(128, 308, 448), partial_dims=(None, 66, 96)), 11_483_072, 0.366, 75.2),
    "shvit_s3": Variant(
        dict(dims=(192, 352, 448), depths=(3, 5, 5), partial_dims=(None, 75, 96)), 14_245_273, 0.601, 77.4
    ),
    "shvit_s4": Variant(
        dict(dims=(224, 336, 448), depths=(4, 7, 6), partial_dims=(None, 72, 96)), 16_588_484, 0.986, 79.4, size=256
    ),
}

# --- the authors' checkpoints, and timm's ----------------------------------------------------------------------------

RULES: Rules = [
    # timm's; what follows is as the authors have it
    (r"^stages\.(\d)\.downsample\.2\.", r"stages.\1.downsample.1."),
    (r"^stages\.(\d)\.downsample\.([01])\.(?=m\.)", r"stages.\1.downsample.0.\2."),
    (r"^stages\.(\d)\.downsample\.([34])\.", lambda m: f"stages.{m[1]}.downsample.2.{int(m[2]) - 3}."),
    # the authors'
    (r"^patch_embed\.", r"stem."),
    (r"^blocks([23])\.([012])\.", lambda m: f"stages.{int(m[1]) - 1}.downsample.{m[2]}."),
    (r"^blocks1\.", r"stages.0.blocks."),
    (r"^blocks([23])\.(\d+)\.", lambda m: f"stages.{int(m[1]) - 1}.blocks.{int(m[2]) - 3}."),
    (r"^head_dist\.", r"head.distilled."),
    (r"^(head.*)\.bn\.", r"\1.after."),
    (r"^(head.*)\.l\.", r"\1.fc."),
    (r"\.conv\.m\.", r".position.branch."),
    (r"\.ffn\.", r".mlp."),
    (r"\.m\.", r".branch."),
    (r"\.pw(\d)\.", r".fc\1."),
    (r"\bproj\.1\.", r"proj."),
    (r"\.c\.", r".conv."),
    (r"\.bn\.", r".norm."),
]

register(SHViT, VARIANTS, RULES)
