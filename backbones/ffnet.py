"""FFNet: attention made of a feed-forward network's operators, convolutions alone.

"MetaMixer Is All You Need", arXiv 2406.02021; https://github.com/ysj9909/FFNet (Apache-2.0), whose weights load.

MetaMixer is the form that self-attention and its replacement share: a query meets keys, an activation makes
coefficients of the similarities, and these aggregate values. FFNified attention (`layers/ffnified.py`; the same paper's
super-resolution has it too) takes depth-wise kernels for keys and values, and GELU for the softmax:

    y = value(GELU(key(query(x))))                    # depth-wise, depth-wise, 1x1
    x = x + mixer(x);   x = x + fc2(GELU(fc1(depth-wise(x))))

without norms before the branches. Large kernels are trained as sums of several, which `fuse` merges.

`mixers` takes any mixer in the place of FFNified attention. It reads its map behind a layer norm, which is ours: the
authors describe such hybrids without code, and a mixer whose first layer has no norm needs one.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..data import one_of
from ..registry import MIXERS
from .layers import (
    ConvNorm,
    DepthwiseMlp,
    DropPath,
    FFNifiedAttention,
    Head,
    LayerNorm2d,
    LayerScale,
    Pointwise,
    RepDepthwise,
    SqueezeExcite,
    make_divisible,
)
from .skeletons.options import per_stage
from .skeletons.pyramid import Pyramid
from .zoo import Rules, Variant, register

# --- network ---------------------------------------------------------------------------------------------------------


class NormedPointwise(nn.Module):
    """x + conv(norm(x)), a 1x1 convolution; `fused` gives the one that equals it in inference."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(dim), Pointwise(dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(self.norm(x))

    @torch.no_grad()
    def fused(self) -> nn.Module:
        norm, weight = self.norm, self.conv.weight
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        self.conv.bias = nn.Parameter(weight.flatten(1) @ (norm.bias - norm.running_mean * scale))
        weight.mul_(scale.view(-1, 1, 1))
        weight.add_(torch.eye(len(scale), dtype=weight.dtype, device=weight.device)[..., None, None])
        return self.conv


class FFNetBlock(nn.Module):
    """x + mixer(x), squeeze and excitation where it is asked for, then x + mlp(x).

    Args:
        dim: channels C.
        mixer, mlp: modules (B, C, H, W) -> (B, C, H, W). A mixer that is not FFNified attention reads a layer norm of
            x.
        drop_path: rate of stochastic depth of both branches.
        layer_scale: initial value of the learned factor of both branches; None for none.
        squeeze: whether squeeze and excitation follows the first sum.
    """

    def __init__(
        self,
        dim: int,
        mixer: nn.Module,
        mlp: nn.Module,
        drop_path: float = 0.0,
        layer_scale: float | None = None,
        squeeze: bool = False,
    ):
        super().__init__()
        self.norm = nn.Identity() if isinstance(mixer, FFNifiedAttention) else LayerNorm2d(dim)
        self.mixer, self.mlp = mixer, mlp
        self.se = SqueezeExcite(dim, make_divisible(dim / 4, limit=0)) if squeeze else nn.Identity()
        self.scale1, self.scale2 = (
            nn.Identity() if layer_scale is None else LayerScale(dim, layer_scale) for _ in range(2)
        )
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = self.se(x + self.drop_path(self.scale1(self.mixer(self.norm(x)))))
        return x + self.drop_path(self.scale2(self.mlp(x)))


def ffnified(*sizes: int, strips: bool = False) -> list[dict]:
    """The option `mixers`: FFNified attention with kernels of a size for each stage."""
    return [dict(type="FFNifiedAttention", kernel_sizes=(size, size), strips=strips) for size in sizes]


HEAD_NORMS: dict[str, type[nn.Module]] = dict(batch=nn.BatchNorm2d, layer=LayerNorm2d)
OF_CLASSIFIERS, OF_SEGMENTOR = ffnified(3, 3, 7, 7), ffnified(3, 3, 9, 9, strips=True)


class FFNet(Pyramid):
    """FFNet. Maps of strides 4, 8, 16, 32, rounded up. The authors' dense form begins with factors `layer_scale` of 1
    where it has any; published weights bring their own.

    Args:
        dims: as of `Pyramid`, each a multiple of the one before.
        depths, mixers, mlp_ratio, drop_path_rate, layer_scale, **common: as of `Pyramid`. The mixers are FFNified
            attention by default, with kernels of 3, 3, 7 and 7 taps along an axis.
        mlp_kernel_sizes: taps along an axis of the depth-wise convolution of the channel mixer, odd; one, or one for
            each stage.
        stem_dim: channels between the two convolutions of the stem.
        squeeze: whether every second block, from the first one of a stage on, has squeeze and excitation; one, or one
            for each stage.
        head_norm: what a classifier's last map goes through before its mean: "batch" norm, as in all published
            weights, or "layer" norm over the channels.
    """

    def __init__(
        self,
        dims=(80, 160, 320, 640),
        depths=(2, 2, 8, 2),
        mixers=OF_CLASSIFIERS,
        mlp_kernel_sizes=7,
        stem_dim: int = 64,
        squeeze=False,
        mlp_ratio=3.0,
        head_norm: str = "batch",
        **common,
    ):
        self.head_norm = one_of("FFNet: head_norm", head_norm, tuple(HEAD_NORMS))
        self.mlp_kernel_sizes = per_stage("mlp_kernel_sizes", mlp_kernel_sizes, len(dims))
        self.squeeze = per_stage("squeeze", squeeze, len(dims))
        self.stem_dim = stem_dim
        super().__init__(dims, depths, mixers, mlp_ratio=mlp_ratio, **common)

    def make_stem(self, in_channels: int, dim: int) -> nn.Module:
        return nn.Sequential(
            ConvNorm(in_channels, self.stem_dim, 3, stride=2), nn.GELU(), ConvNorm(self.stem_dim, dim, 3, stride=2)
        )

    def make_downsample(self, stage: int, in_dim: int, dim: int) -> nn.Module:
        return nn.Sequential(RepDepthwise(in_dim, dim, stride=2), NormedPointwise(dim))

    def make_block(self, stage: int, index: int, dim: int, drop_path: float) -> nn.Module:
        mixer = MIXERS.build({**self.mixers[stage], "dim": dim})
        mlp = DepthwiseMlp(dim, self.mlp_ratio[stage], self.mlp_kernel_sizes[stage])
        squeeze = self.squeeze[stage] and index % 2 == 0
        return FFNetBlock(dim, mixer, mlp, drop_path, self.layer_scale[stage], squeeze)

    def make_head(self, dim: int, num_classes: int) -> nn.Module:
        return Head(dim, num_classes, before=HEAD_NORMS[self.head_norm](dim))


class FFNetSeg(FFNet):
    """The backbone of FFNet-seg: a deeper stem, dense transitions, and kernels that are trained with strips of one row
    and of one column. The dense form gives the maps as they are; the authors' head (`FFNetSegHead`) reads those of
    strides 8, 16 and 32.

    Args:
        dims, depths, mixers, mlp_kernel_sizes, stem_dim, squeeze, mlp_ratio, layer_scale, **common: as of `FFNet`; dims
            need not be multiples.
        features: widths of the two layers of the head before the last one.
    """

    unused = ("head_norm",)

    def __init__(
        self,
        dims=(96, 192, 384, 768),
        depths=(3, 4, 18, 5),
        mixers=OF_SEGMENTOR,
        mlp_kernel_sizes=3,
        stem_dim: int = 64,
        squeeze=False,
        mlp_ratio=4.0,
        layer_scale=1e-5,
        features: tuple[int, int] = (1024, 1280),
        **common,
    ):
        if not isinstance(features, Sequence) or len(features) != 2 or min(features) < 1:
            raise ValueError(f"FFNetSeg: features={features!r} must be two positive integers")
        self.features = features
        super().__init__(
            dims, depths, mixers, mlp_kernel_sizes, stem_dim, squeeze, mlp_ratio, layer_scale=layer_scale, **common
        )

    def make_stem(self, in_channels: int, dim: int) -> nn.Module:
        return nn.Sequential(
            ConvNorm(in_channels, self.stem_dim, 3, stride=2),
            nn.GELU(),
            ConvNorm(self.stem_dim, self.stem_dim, 3),
            nn.GELU(),
            ConvNorm(self.stem_dim, dim, 3),
            ConvNorm(dim, dim, 3, stride=2),
        )

    def make_downsample(self, stage: int, in_dim: int, dim: int) -> nn.Module:
        return nn.Sequential(ConvNorm(in_dim, 2 * dim, 3, stride=2), nn.GELU(), ConvNorm(2 * dim, dim))

    def make_output_norm(self, stage: int, dim: int) -> nn.Module:
        return nn.Identity()

    def make_head(self, dim: int, num_classes: int) -> nn.Module:
        first, second = self.features
        before = nn.Sequential(ConvNorm(dim, first), nn.Hardswish())
        after = nn.Sequential(nn.Linear(first, second), nn.LayerNorm(second, eps=1e-6), nn.Hardswish())
        return Head(second, num_classes, before, after)


_2 = dict(dims=(88, 176, 352, 704), depths=(3, 3, 15, 3))
_3 = dict(dims=(96, 192, 384, 768), depths=(4, 4, 22, 5), layer_scale=1e-6)
_4 = dict(dims=(128, 256, 512, 1024), depths=(4, 4, 27, 3), layer_scale=1e-6)

VARIANTS = {
    "ffnet_1": Variant(dict(mlp_kernel_sizes=3), 13_775_656, 2.9, 81.3, size=256, drop_path=0.1, crop=0.9),
    "ffnet_2": Variant(_2, 27_208_408, 6.0, 82.9, size=256, drop_path=0.15, crop=0.9),
    "ffnet_3": Variant(_3, 48_817_896, 10.1, 83.9, size=256, drop_path=0.35, crop=0.95),
    "ffnet_3_img384": Variant(_3, 48_817_896, 22.8, 84.5, size=384, drop_path=0.4, crop=0.95),
    "ffnet_4": Variant(_4, 79_868_968, size=256, drop_path=0.4, crop=0.95),
    "ffnet_4_img384": Variant(_4, 79_868_968, 43.1, 85.3, size=384, drop_path=0.5, crop=0.95),
}
# Nothing is published of the classifier: its size is that of the others, the drop path that of their Cityscapes config.
SEG_VARIANTS = {"ffnet_seg": Variant(dict(), 67_210_088, size=256, drop_path=0.35)}

# --- the authors' checkpoints ----------------------------------------------------------------------------------------

_INNER: Rules = [
    (r"^patch_embed\.", r"stem."),
    (r"^stages\.(\d)\.0\.proj\.1\.conv\.", r"stages.\1.downsample.1."),
    (r"^stages\.(\d)\.0\.proj\.", r"stages.\1.downsample."),
    (r"^stages\.0\.(\d+)\.", r"stages.0.blocks.\1."),
    (r"^stages\.([1-9])\.(\d+)\.", lambda m: f"stages.{m[1]}.blocks.{int(m[2]) - 1}."),
    (r"\.token_mixer\.0\.layer_scale$", r".scale1.gamma"),
    (r"\.channel_mixer\.layer_scale$", r".scale2.gamma"),
    (r"\.token_mixer\.0\.main\.fc\.", r".mixer.query."),
    (r"\.token_mixer\.0\.main\.conv1\.", r".mixer.key."),
    (r"\.token_mixer\.0\.main\.conv2\.", r".mixer.value."),
    (r"\.token_mixer\.1\.", r".se."),
    (r"\.channel_mixer\.main\.", r".mlp."),
]
_PARTS: Rules = [(r"\.c\.", r".conv."), (r"\.bn\.", r".norm.")]

RULES: Rules = [
    *_INNER,
    (r"\.(key|value|mlp\.conv|downsample\.0)\.conv\.(c|bn)\.", r".\1.branches.0.\2."),
    (r"\.(key|value|mlp\.conv|downsample\.0)\.conv1\.(c|bn)\.", r".\1.branches.1.\2."),
    *_PARTS,
    (r"^norm(\d)\.", r"norms.\1."),
    (r"^norm\.", r"head.before."),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
]

SEG_RULES: Rules = [
    *_INNER,
    (r"\.(key|value)\.conv1\.", r".\1.branches.0."),
    (r"\.(key|value)\.strip_conv([12])\.", r".\1.branches.\2."),
    (r"\.(key|value)\.conv2\.", r".\1.branches.3."),
    *_PARTS,
    (r"^head1\.0\.", r"head.before.0."),
    (r"^head2\.3\.", r"head.fc."),
    (r"^head2\.([01])\.", r"head.after.\1."),
]

register(FFNet, VARIANTS, RULES)
register(FFNetSeg, SEG_VARIANTS, SEG_RULES)
