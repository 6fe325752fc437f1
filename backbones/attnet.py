"""AttNet: attentive convolution, whose depth-wise kernel every image makes for itself.

"Attentive Convolution: Unifying the Expressivity of Self-Attention with Convolutional Efficiency", arXiv 2510.20092;
https://github.com/price112/Attentive-Convolution (MIT), whose weights load.

ATConv with kernels of k x k taps, for each image and channel c:

    z = pool(W₁ x)                                    # k² means over runs of the pixels in row-major order
    K = W₂ gelu(z)                                    # k² -> k² taps, the same W₂ for all channels
    K' = K - σ(a_c) · mean(K)                         # lateral inhibition
    out = W₃ (K' ∗ (W₄ x))                            # one kernel for each image and channel

The pooling is over the flattened map, so a bin is a band of rows: the operator knows up from left. Pooling and W₁ are
linear, so the means are taken first, and W₁ sees k² columns instead of all pixels.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..registry import MIXERS
from .layers import Block, ByChannels, ConvGlu, Head, Pointwise
from .skeletons.options import per_stage
from .skeletons.pyramid import Pyramid
from .zoo import Rules, Variant, register

# --- operator --------------------------------------------------------------------------------------------------------


@MIXERS.register_module()
class ATConv(nn.Module):
    """Attentive convolution, see above; its cost is linear in the pixels.

    Args:
        dim: channels C.
        kernel_size: side k of the kernels, odd.
        bias: whether the linear layers and 1x1 convolutions have a bias.

    `forward(x (B, C, H, W)) -> (B, C, H, W)`.
    """

    no_weight_decay = ("difference_control",)

    map_kind = "kernel"  # what a map of `attention_maps` belongs to

    def __init__(self, dim: int, kernel_size: int = 3, bias: bool = True):
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"ATConv: kernel_size={kernel_size} must be odd, so that a kernel has a center")
        self.kernel_size, taps = kernel_size, kernel_size**2
        self.kernel_proj = nn.Linear(dim, dim, bias)
        self.kernel_gen = nn.Linear(taps, taps, bias)
        self.difference_control = nn.Parameter(torch.zeros(dim))
        self.x_proj = Pointwise(dim, dim, bias=bias)
        self.proj = Pointwise(dim, dim, bias=bias)

    def kernels(self, x: Tensor) -> Tensor:
        """The kernels that images x (B, C, H, W) make: (B, C, k, k)."""
        z = self.kernel_proj(_pool(x.flatten(2).transpose(1, 2), self.kernel_size**2))
        kernel = self.kernel_gen(F.gelu(z).transpose(1, 2))
        inhibition = torch.sigmoid(self.difference_control)[:, None] * kernel.mean(-1, keepdim=True)
        return (kernel - inhibition).unflatten(-1, (self.kernel_size, self.kernel_size))

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(_convolve(self.x_proj(x), self.kernels(x)))

    def attention_maps(self, x: Tensor, place: tuple[int, int]) -> Tensor:
        """The magnitude of the taps around the pixel (row, column) `place`, mean over the channels: (B, 1, H, W)."""
        kernel, half = self.kernels(x).abs().mean(1, keepdim=True), self.kernel_size // 2
        maps = x.new_zeros(len(x), 1, x.shape[2] + 2 * half, x.shape[3] + 2 * half)
        maps[:, :, place[0] : place[0] + self.kernel_size, place[1] : place[1] + self.kernel_size] = kernel
        return maps[:, :, half : half + x.shape[2], half : half + x.shape[3]]


def _pool(rows: Tensor, bins: int) -> Tensor:
    """Means (B, bins, C) of the runs [floor(i N / bins), ceil((i + 1) N / bins)) of rows (B, N, C)."""
    count = rows.shape[1]
    return torch.stack([rows[:, i * count // bins : -(-(i + 1) * count // bins)].mean(1) for i in range(bins)], dim=1)


def _convolve(x: Tensor, kernel: Tensor) -> Tensor:
    """Depth-wise convolution of maps (B, C, H, W), zeros outside, with kernels (B, C, k, k) of their own.

    The images stand side by side as channels of one, which stays channels-last: (1, B C, H, W)."""
    batch, dim, height, width = x.shape
    side_by_side = x.permute(2, 3, 0, 1).reshape(1, height, width, batch * dim).permute(0, 3, 1, 2)
    kernel = kernel.reshape(batch * dim, 1, *kernel.shape[2:])
    out = F.conv2d(side_by_side, kernel, padding=kernel.shape[-1] // 2, groups=batch * dim)
    return out.unflatten(1, (batch, dim)).squeeze(0).contiguous(memory_format=torch.channels_last)


# --- network ---------------------------------------------------------------------------------------------------------


class RMSNorm2d(ByChannels, nn.RMSNorm):
    """Root mean square norm over the channels of every pixel of a map (B, C, H, W)."""

    def __init__(self, dim: int):
        super().__init__(dim, eps=1e-6)


class AttNet(Pyramid):
    """AttNet. In the dense form every map has a layer norm, as the authors publish none.

    Args:
        dims, depths, drop_path_rate, layer_scale, **common: as of `Pyramid`.
        mlp_ratio: as of `Pyramid`; the gated channel mixers have two thirds of that width.
        glu_norms: whether these have a root mean square norm inside; one, or one for each stage.
        kernel_size: side of the kernels of ATConv; one, or one for each stage.
        conv_bias: whether the layers of ATConv have a bias.
    """

    fixed_sizes = {
        ".onnx": dict(
            batch="a convolution whose kernels differ between images has groups for each image, and ONNX fixes groups",
            **dict.fromkeys(
                ("height", "width"),
                "ONNX has no pooling of a free map to the cells of a kernel, and what is converted gives other values",
            ),
        )
    }

    def __init__(
        self,
        dims=(32, 64, 128, 240),
        depths=(2, 2, 4, 2),
        mlp_ratio=(8, 8, 4, 4),
        glu_norms=False,
        kernel_size: int | Sequence[int] = 3,
        conv_bias: bool = True,
        **common,
    ):
        self.glu_norms = per_stage("glu_norms", glu_norms, len(dims))
        self.kernel_size, self.conv_bias = per_stage("kernel_size", kernel_size, len(dims)), conv_bias
        super().__init__(dims, depths, mlp_ratio=mlp_ratio, **common)

    def make_block(self, stage: int, index: int, dim: int, drop_path: float) -> nn.Module:
        mlp = ConvGlu(dim, self.mlp_ratio[stage], norm=RMSNorm2d if self.glu_norms[stage] else None)
        mixer = ATConv(dim, self.kernel_size[stage], self.conv_bias)
        return Block(dim, mixer, mlp, drop_path, self.layer_scale[stage])

    def make_head(self, dim: int, num_classes: int) -> nn.Module:
        return Head(dim, num_classes, after=nn.LayerNorm(dim))


_scaled = dict(layer_scale=1e-6)
_normed = dict(layer_scale=1e-6, glu_norms=True)
_narrow = dict(dims=(40, 80, 160, 320))

VARIANTS = {
    "attnet_xxs": Variant(dict(), 2_853_556),
    "attnet_xs": Variant(dict(_narrow | _scaled, depths=(2, 2, 7, 2)), 5_554_902),
    "attnet_s": Variant(dict(_narrow, depths=(2, 3, 10, 3)), 7_681_316),
    "attnet_t1": Variant(dict(_normed, dims=(48, 96, 224, 384), depths=(2, 3, 12, 3)), 13_714_900, drop_path=0.1),
    "attnet_t2": Variant(
        dict(_normed, dims=(64, 128, 288, 512), depths=(3, 3, 16, 3)), 27_010_782, top1=84.4, drop_path=0.2
    ),
    "attnet_t3": Variant(dict(_normed, dims=(72, 144, 320, 576), depths=(4, 4, 26, 4)), 49_175_682, drop_path=0.4),
    "attnet_t4": Variant(dict(_normed, dims=(96, 192, 384, 768), depths=(5, 5, 28, 5)), 87_320_214, drop_path=0.5),
}

# --- the authors' checkpoints ----------------------------------------------------------------------------------------

RULES: Rules = [
    (r"^downsample_layers\.0\.(\d)\.0\.", r"stem.\1.conv."),
    (r"^downsample_layers\.0\.(\d)\.1\.", r"stem.\1.norm."),
    (r"^downsample_layers\.(\d)\.0\.", r"stages.\1.downsample.conv."),
    (r"^downsample_layers\.(\d)\.1\.", r"stages.\1.downsample.norm."),
    (r"^stages\.(\d)\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"\.token_mixer\.", r".mixer."),
    (r"\.channel_mixer\.norm_layer\.", r".mlp.norm."),
    (r"\.channel_mixer\.", r".mlp."),
    (r"\.layer_scale_(\d)\.", r".scale\1."),
    (r"\.norm_(\d)\.", r".norm\1."),
    (r"^norm\.", r"head.after."),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
]

register(AttNet, VARIANTS, RULES)
