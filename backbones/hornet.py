"""HorNet: recursive gated convolutions.

"HorNet: Efficient High-Order Spatial Interactions with Recursive Gated Convolutions", NeurIPS 2022, arXiv 2207.14284;
https://github.com/raoyongming/HorNet (MIT), whose weights load.

gⁿConv of order n and width C has branches of widths d_k = C / 2^(n-1-k), k = 0 .. n-1:

    p, q = proj_in(x)                                 # widths d_0 and Σ d_k, which are 2C together
    q_0 .. q_(n-1) = s · DW(q)                        # one depth-wise filter for all branches
    y = p · q_0;   y = PW_k(y) · q_(k+1), k = 0 .. n-2
    out = proj_out(y)

DW is a 7x7 convolution, or the global filter GF: half of the channels through a 3x3 convolution, the other half
multiplied by a learned filter in the frequency domain, interleaved, with layer norms before and behind.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..registry import MIXERS
from .layers import LayerNorm2d, Pointwise, depthwise, from_spectrum, to_spectrum
from .skeletons.options import per_stage
from .skeletons.pyramid import Pyramid
from .zoo import Rules, Variant, register

# --- operator --------------------------------------------------------------------------------------------------------


class GlobalLocalFilter(nn.Module):
    """A depth-wise 3x3 convolution for the first half of the channels, a global filter for the second.

    Args:
        dim: channels, even.
        filter_size: (h, w) of the learned filter over frequencies, for a map of h x 2(w-1) pixels; other maps get it
            resized (bilinear, corners aligned). The transform runs in float32 at least.
    """

    checkpoint_resize = {"complex_weight": lambda weight, shape: resize_filter(weight, (shape[1], shape[2]))}

    def __init__(self, dim: int, filter_size: tuple[int, int]):
        super().__init__()
        if dim % 2:
            raise ValueError(f"GlobalLocalFilter: dim={dim} must be even, half of it is filtered globally")
        self.pre_norm, self.post_norm = LayerNorm2d(dim), LayerNorm2d(dim)
        self.dw = nn.Conv2d(dim // 2, dim // 2, 3, padding=1, groups=dim // 2, bias=False)
        self.complex_weight = nn.Parameter(torch.empty(dim // 2, *filter_size, 2))
        nn.init.trunc_normal_(self.complex_weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        near, far = self.pre_norm(x).chunk(2, dim=1)
        mixed = torch.stack([self.dw(near), self._filter(far).to(x.dtype)], dim=2)
        return self.post_norm(mixed.flatten(1, 2).contiguous(memory_format=torch.channels_last))

    def _filter(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        wide = torch.promote_types(x.dtype, torch.float32)
        # nothing here is cast by autocast
        weight = resize_filter(self.complex_weight.to(wide), (height, width // 2 + 1))
        return from_spectrum(to_spectrum(x.to(wide)) * torch.view_as_complex(weight), width)


def resize_filter(weight: Tensor, size: tuple[int, int]) -> Tensor:
    """A filter (C, h, w, 2) over frequencies, bilinearly resized to (C, *size, 2), corners aligned."""
    if tuple(weight.shape[1:3]) == tuple(size):
        return weight
    parts = F.interpolate(weight.permute(0, 3, 1, 2), size, mode="bilinear", align_corners=True)
    return parts.permute(0, 2, 3, 1).contiguous()


@MIXERS.register_module()
class GnConv(nn.Module):
    """Recursive gated convolution, see above.

    Args:
        dim: channels C of the output.
        order: order n; the output is a polynomial of degree n + 1 in the input.
        filter_size: size of the global filter (`GlobalLocalFilter`), None for a convolution.
        scale: factor s on the gates.
        kernel_size: side of the convolution's kernel, odd.
        in_dim: channels of the input; None for `dim`.
        dim_ratio: width of the recursion over `dim`, a whole number; the width must be divisible by 2^(order-1).
        proj_out: whether `proj_out` comes last; it has to where `dim_ratio` is not 1.

    `forward(x (B, in_dim, H, W)) -> (B, C, H, W)`.
    """

    map_kind = "gate"  # what a map of `attention_maps` belongs to

    def __init__(
        self,
        dim: int,
        order: int = 5,
        filter_size: tuple[int, int] | None = None,
        scale: float = 1 / 3,
        kernel_size: int = 7,
        in_dim: int | None = None,
        dim_ratio: int = 1,
        proj_out: bool = True,
    ):
        super().__init__()
        if dim_ratio < 1 or dim_ratio != int(dim_ratio):
            raise ValueError(f"GnConv: dim_ratio={dim_ratio} must be a whole number, 1 or more")
        width = dim * int(dim_ratio)
        if order < 1 or width % 2 ** (order - 1):
            name = "dim" if dim_ratio == 1 else "dim * dim_ratio"
            raise ValueError(f"GnConv: {name}={width} must be divisible by 2^(order-1) = {2 ** max(0, order - 1)}")
        if dim_ratio != 1 and not proj_out:
            raise ValueError(
                f"GnConv: dim_ratio={dim_ratio} needs proj_out=True, which brings {width} channels to {dim}"
            )
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"GnConv: kernel_size={kernel_size} must be odd, so that a kernel has a center")
        self.dims = [width // 2 ** (order - 1 - k) for k in range(order)]
        self.scale = scale
        self.proj_in = Pointwise(dim if in_dim is None else in_dim, 2 * width)
        total = sum(self.dims)
        self.dwconv = depthwise(total, kernel_size) if filter_size is None else GlobalLocalFilter(total, filter_size)
        self.pws = nn.ModuleList(Pointwise(a, b) for a, b in zip(self.dims, self.dims[1:]))
        self.proj_out = Pointwise(width, dim) if proj_out else nn.Identity()

    def _branches(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """p and q_0 .. q_(n-1)."""
        p, q = self.proj_in(x).split([self.dims[0], sum(self.dims)], dim=1)
        return p, (self.dwconv(q) * self.scale).split(self.dims, dim=1)

    def forward(self, x: Tensor) -> Tensor:
        p, (first, *rest) = self._branches(x)
        y = p * first
        for pointwise, gate in zip(self.pws, rest):
            y = pointwise(y) * gate
        return self.proj_out(y)

    def attention_maps(self, x: Tensor, place: tuple[int, int]) -> Tensor:
        """The gates q_0 .. q_(n-1), mean magnitude over their channels, whatever the place: (B, n, H, W)."""
        return torch.stack([gate.abs().mean(1) for gate in self._branches(x)[1]], dim=1)


# --- network ---------------------------------------------------------------------------------------------------------


class HorNet(Pyramid):
    """HorNet. The orders of its stages grow from 2 to 5.

    Stem and transitions are convolutions without padding: they lose the border rows of sizes that 4, 8, 16, 32 do not
    divide, as the authors' do; maps are floor(floor(H / 4) / 2) ... high.

    Args:
        dims, depths, drop_path_rate, layer_scale, **common: as of `Pyramid`.
        orders: order of gⁿConv; one, or one for each stage.
        filter_sizes: size of the global filter of each stage, None for a 7x7 convolution; None for all of these. The
            authors' networks for ADE20K have (24, 13) and (12, 7) in the last two stages; with other sizes, filters of
            a file are resized.
        scale: factor s of gⁿConv.
    """

    min_size, rounds_up = 32, False

    def __init__(
        self,
        dims=(64, 128, 256, 512),
        depths=(2, 3, 18, 2),
        orders=(2, 3, 4, 5),
        filter_sizes=None,
        scale=1 / 3,
        layer_scale=1e-6,
        **common,
    ):
        orders, sizes = per_stage("orders", orders, len(dims)), per_stage("filter_sizes", filter_sizes, len(dims))
        mixers = [dict(type="GnConv", order=order, filter_size=size, scale=scale) for order, size in zip(orders, sizes)]
        super().__init__(dims, depths, mixers, layer_scale=layer_scale, **common)

    def make_stem(self, in_channels: int, dim: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(in_channels, dim, 4, 4), LayerNorm2d(dim))

    def make_downsample(self, stage: int, in_dim: int, dim: int) -> nn.Module:
        return nn.Sequential(LayerNorm2d(in_dim), nn.Conv2d(in_dim, dim, 2, 2))


_7x7 = dict(depths=(2, 3, 18, 2))
_gf = dict(_7x7, filter_sizes=(None, None, (14, 8), (7, 4)))
_gf384 = dict(_7x7, filter_sizes=(None, None, (24, 13), (12, 7)))


def _dims(width: int) -> dict:
    return dict(dims=(width, 2 * width, 4 * width, 8 * width))


VARIANTS = {
    "hornet_tiny_7x7": Variant(_7x7 | _dims(64), 22_409_512, 4.0, 82.8, drop_path=0.2),
    "hornet_tiny_gf": Variant(_gf | _dims(64), 22_991_848, 3.9, 83.0, drop_path=0.2),
    "hornet_small_7x7": Variant(_7x7 | _dims(96), 49_528_264, 8.8, 83.8, drop_path=0.4),
    "hornet_small_gf": Variant(_gf | _dims(96), 50_401_768, 8.7, 84.0, drop_path=0.4),
    "hornet_base_7x7": Variant(_7x7 | _dims(128), 87_256_680, 15.6, 84.2, drop_path=0.5),
    "hornet_base_gf": Variant(_gf | _dims(128), 88_421_352, 15.5, 84.3, drop_path=0.5),
    "hornet_base_gf_img384": Variant(_gf384 | _dims(128), 92_099_560, size=384, drop_path=0.5),
    "hornet_large_7x7": Variant(_7x7 | _dims(192), 194_542_504, 34.8),
    "hornet_large_gf": Variant(_gf | _dims(192), 196_289_512, 34.7),
    "hornet_large_gf_img384": Variant(_gf384 | _dims(192), 201_806_824, 101.8, size=384),
}

# --- the authors' checkpoints ----------------------------------------------------------------------------------------

RULES: Rules = [
    (r"^downsample_layers\.0\.", r"stem."),
    (r"^downsample_layers\.(\d)\.", r"stages.\1.downsample."),
    (r"^stages\.(\d)\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"\.gnconv\.", r".mixer."),
    (r"\.gamma(\d)$", r".scale\1.gamma"),
    (r"\.pwconv(\d)\.", r".mlp.fc\1."),
    (r"^norm(\d)\.", r"norms.\1."),
    (r"^norm\.", r"head.after."),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
]

register(HorNet, VARIANTS, RULES)
