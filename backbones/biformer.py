"""BiFormer: attention in two levels; regions choose regions, then tokens attend to the tokens of the chosen ones.

"BiFormer: Vision Transformer with Bi-Level Routing Attention", CVPR 2023, arXiv 2303.08810;
https://github.com/rayleizhu/BiFormer (MIT), whose weights load.

Bi-level routing attention of a map with C channels, cut into p x p regions, with h heads:

    q, k, v = linear(x)
    I = the K columns with the largest (mean of q over region r) · (mean of k over region s), for every row r
    out = linear(softmax(q k[I]ᵀ / √C) v[I] + DW5x5(v))             # I is one for all heads; DW5x5 is called LePE

Where paper and code differ, the code counts, for the weights' sake: logits are divided by the root of the whole width
C, not of a head's; the last stage attends to all pixels, with another projection and the LePE of its input.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels.dispatch import without_autocast
from ..kernels.routed_attention import routed_attention
from ..registry import MIXERS
from .layers import Attention, Block, ConvNorm, Head, Linear, Mlp, Pointwise, depthwise, fill, heads_of
from .skeletons.options import per_stage
from .skeletons.pyramid import Pyramid
from .zoo import Rules, Variant, register

# --- operators -------------------------------------------------------------------------------------------------------

FORMS = ("legacy", "nchw")


def _lepe(mixer: str, dim: int, kernel_size: int) -> nn.Conv2d:
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"{mixer}: lepe_kernel={kernel_size} must be odd, so that a kernel has a center")
    return depthwise(dim, kernel_size)


@MIXERS.register_module()
class BiLevelRouting(nn.Module):
    """Bi-level routing attention, see above.

    The authors have two forms of it, which differ where p does not divide the map. "legacy", of all published weights:
    the input is filled up with zeros to p x p regions; the filling becomes tokens like others, with the biases of the
    projection. "nchw": a region has (H // p, W // p) pixels, at least one, so that there may be more
    than p regions in a row, or fewer; q, k, v are filled up, so that filling has logits and values of 0 (and a share of
    the softmax), and means are of real pixels.

    Args:
        dim: channels C.
        heads: number of attention heads h; about C / 32 by default.
        regions: number of regions p along a side of the map.
        topk: number of regions K that a region chooses; where the map has fewer, all are chosen.
        scale: factor on the logits; (width of all queries)^-0.5 by default.
        form: "legacy" or "nchw".
        key_dim: width of the queries and keys of all heads; C by default.
        lepe_kernel: side of the depth-wise kernel of LePE, odd.

    `forward(x (B, C, H, W)) -> (B, C, H, W)`. The choice passes no gradient on.
    """

    def __init__(
        self,
        dim: int,
        heads: int | None = None,
        regions: int = 7,
        topk: int = 4,
        scale: float | None = None,
        form: str = "legacy",
        key_dim: int | None = None,
        lepe_kernel: int = 5,
    ):
        super().__init__()
        if form not in FORMS:
            raise ValueError(f"BiLevelRouting: form={form!r} must be one of {FORMS}")
        if regions < 1 or topk < 1:
            raise ValueError(f"BiLevelRouting: regions={regions} and topk={topk} must be at least 1")
        self.heads = heads_of("BiLevelRouting", dim, heads)
        key_dim = dim if key_dim is None else key_dim
        if key_dim < 1 or key_dim % self.heads:
            raise ValueError(f"BiLevelRouting: key_dim={key_dim} is not divisible by heads={self.heads}")
        self.regions, self.topk, self.form = regions, topk, form
        self.scale = key_dim**-0.5 if scale is None else scale
        self.widths = [key_dim, key_dim, dim]
        self.qkv = Linear(dim, sum(self.widths))
        self.lepe = _lepe("BiLevelRouting", dim, lepe_kernel)
        self.proj = Linear(dim, dim)

    def _region(self, size: int) -> int:
        """The side of a region along an axis."""
        return max(1, size // self.regions) if self.form == "nchw" else -(-size // self.regions)

    def _route(self, x: Tensor) -> tuple[Tensor, Tensor, tuple[int, int]]:
        """q, k and v in one, (B, H', W', all channels), where H' and W' are whole regions; the choice I (B, R, K), best
        first; the number of regions along H' and W'."""
        if self.form == "legacy":
            x = fill(x, self.regions)
        sides = [self._region(size) for size in x.shape[-2:]]
        qkv = self.qkv(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        q_and_k = qkv.detach()[:, : 2 * self.widths[0]]
        means = F.avg_pool2d(q_and_k, sides, ceil_mode=True, count_include_pad=False)
        q, k = means.flatten(2).to(torch.promote_types(x.dtype, torch.float32)).chunk(2, dim=1)
        with without_autocast(x):  # the choice should not hang on a rounding
            index = (q.mT @ k).topk(min(self.topk, q.shape[-1]), dim=-1).indices
        return fill(qkv, sides).permute(0, 2, 3, 1), index, (means.shape[2], means.shape[3])

    def _split(self, qkv: Tensor) -> tuple[Tensor, ...]:
        """q, k, v (B, H', W', heads, width of a head)."""
        return tuple(part.unflatten(-1, (self.heads, -1)) for part in qkv.split(self.widths, dim=-1))

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        qkv, index, grid = self._route(x)
        q, k, v = self._split(qkv)
        y = routed_attention(q, k, v, index, grid, self.scale).flatten(3)
        lepe = self.lepe(v.flatten(3).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.proj((y + lepe)[:, :height, :width]).permute(0, 3, 1, 2)

    def attention_maps(self, x: Tensor, place: tuple[int, int]) -> Tensor:
        """How the pixel (row, column) `place` looks at the pixels, by head: (B, heads, H, W). Zero in regions that its
        own has not chosen; the sum is 1 less what goes to filling."""
        qkv, index, grid = self._route(x)
        q, k, _ = self._split(qkv)
        row, column = (i // self._region(size) for i, size in zip(place, x.shape[-2:]))
        chosen = torch.zeros(len(x), grid[0] * grid[1], dtype=torch.bool, device=x.device)
        chosen = chosen.scatter(1, index[:, row * grid[1] + column], True).unflatten(1, grid)
        for axis, size in enumerate(x.shape[-2:], 1):
            chosen = chosen.repeat_interleave(self._region(size), axis)
        logits = torch.einsum("bhd,byxhd->bhyx", q[:, place[0], place[1]], k) * self.scale
        weights = logits.masked_fill(~chosen.unsqueeze(1), -torch.inf).flatten(2).softmax(-1)
        return weights.unflatten(2, logits.shape[2:])[..., : x.shape[2], : x.shape[3]]


@MIXERS.register_module()
class AttentionLePE(Attention):
    """Attention to all pixels, without biases of q, k, v, plus LePE: the last stage of BiFormer.

    Args:
        dim: channels C.
        heads: number of attention heads; the authors' networks always have 8.
        lepe_of: source of the depth-wise convolution, the "input" or the "value" (the authors' nchw network).
        lepe_kernel: side of its kernel, odd.

    `forward(x (B, C, H, W)) -> (B, C, H, W)`.
    """

    takes_tokens = False

    def __init__(self, dim: int, heads: int | None = 8, lepe_of: str = "input", lepe_kernel: int = 5):
        heads_of("AttentionLePE", dim, heads)
        super().__init__(dim, heads, qkv_bias=False)
        if lepe_of not in ("input", "value"):
            raise ValueError(f"AttentionLePE: lepe_of={lepe_of!r} must be 'input' or 'value'")
        self.lepe_of = lepe_of
        self.lepe = _lepe("AttentionLePE", dim, lepe_kernel)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        q, k, v = self._split(x.flatten(2).transpose(1, 2))
        rows = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        if self.lepe_of == "value":
            x = v.transpose(-1, -2).flatten(1, 2).unflatten(2, x.shape[-2:])
        rows = self.proj(rows + self.lepe(x).flatten(2).transpose(1, 2))
        return rows.transpose(1, 2).unflatten(2, x.shape[-2:])


# --- network ---------------------------------------------------------------------------------------------------------


class BiFormer(Pyramid):
    """BiFormer. It takes images of any size, for which `regions` should fit: 7 for 224 pixels, 8 for 512, 16 for COCO.

    Args:
        dims, depths, mlp_ratio, drop_path_rate, layer_scale, **common: as of `Pyramid`.
        topks: number of regions that each region chooses, by stage; -2 for `AttentionLePE` instead, -1 for the same
            without LePE (in the form "nchw" with LePE of the values), 0 for no attention: a 1x1 convolution, a
            depth-wise 5x5 one, and another 1x1.
        regions: number of regions p along a side of the map; one, or one for each stage.
        head_dim: width of the queries of a head of `BiLevelRouting`.
        form: form of `BiLevelRouting`.
        key_dims: width of the queries and keys of `BiLevelRouting`, by stage; by default that of the stage.
        scale, lepe_kernel: as of `BiLevelRouting` (the kernel also of `AttentionLePE`).
    """

    trunc_normal = (nn.Linear,)  # convolutions keep PyTorch's initial weights

    fixed_sizes = dict.fromkeys(
        (".pt2", ".onnx"),
        dict.fromkeys(("height", "width"), "the number of regions is given, so their side changes with the size"),
    )

    def __init__(
        self,
        dims=(64, 128, 256, 512),
        depths=(2, 2, 8, 2),
        *,
        topks=(1, 4, 16, -2),
        regions: int | Sequence[int] = 7,
        head_dim: int = 32,
        form: str = "legacy",
        key_dims: Sequence[int] | None = None,
        scale: float | None = None,
        lepe_kernel: int = 5,
        mlp_ratio=3.0,
        **common,
    ):
        self.topks, self.regions = per_stage("topks", topks, len(dims)), per_stage("regions", regions, len(dims))
        if min(self.topks) < -2:
            raise ValueError(f"topks={self.topks} must be at least -2")
        self.key_dims = per_stage("key_dims", dims if key_dims is None else key_dims, len(dims))
        self.head_dim, self.form, self.scale, self.lepe_kernel = head_dim, form, scale, lepe_kernel
        super().__init__(dims, depths, mlp_ratio=mlp_ratio, **common)

    def make_stem(self, in_channels: int, dim: int) -> nn.Module:
        return nn.Sequential(
            ConvNorm(in_channels, dim // 2, 3, stride=2, bias=True),
            nn.GELU(),
            ConvNorm(dim // 2, dim, 3, stride=2, bias=True),
        )

    def make_downsample(self, stage: int, in_dim: int, dim: int) -> nn.Module:
        return ConvNorm(in_dim, dim, 3, stride=2, bias=True)

    def make_block(self, stage: int, index: int, dim: int, drop_path: float) -> nn.Module:
        return Block(
            dim,
            self._mixer(stage, dim),
            Mlp(dim, self.mlp_ratio[stage]),
            drop_path,
            self.layer_scale[stage],
            position=self.make_position(dim),
        )

    def make_position(self, dim: int) -> nn.Module | None:
        """What tells positions before the attention of a block."""
        return depthwise(dim, 3)

    def _mixer(self, stage: int, dim: int) -> nn.Module:
        topk, key_dim, kernel = self.topks[stage], self.key_dims[stage], self.lepe_kernel
        if topk > 0:
            heads = max(1, key_dim // self.head_dim)
            regions = self.regions[stage]
            return BiLevelRouting(dim, heads, regions, topk, self.scale, self.form, key_dim, kernel)
        if topk == 0:
            return nn.Sequential(Pointwise(dim, dim), depthwise(dim, 5), Pointwise(dim, dim))
        if topk == -1 and self.form == "legacy":
            return Attention(dim, 8, qkv_bias=False)
        return AttentionLePE(dim, lepe_of="value" if topk == -1 else "input", lepe_kernel=kernel)

    def make_head(self, dim: int, num_classes: int) -> nn.Module:
        return Head(dim, num_classes, before=nn.BatchNorm2d(dim))


class BiFormerSTL(BiFormer):
    """BiFormer in the layout of Swin-T: patches of 4x4 and 2x2 pixels, no convolution before the attention. Arguments
    as of `BiFormer`.

    Stem and transitions have batch norms, the blocks layer norms, in both forms. Where 4, 8, 16, 32 do not divide a
    size, they lose its last rows, as the authors' do; maps are floor(floor(H / 4) / 2) ... high.
    """

    min_size, rounds_up = 32, False

    def __init__(self, dims=(96, 192, 384, 768), depths=(2, 2, 6, 2), mlp_ratio=4.0, **common):
        super().__init__(dims, depths, mlp_ratio=mlp_ratio, **common)

    def make_stem(self, in_channels: int, dim: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(in_channels, dim, 4, 4), nn.BatchNorm2d(dim))

    def make_downsample(self, stage: int, in_dim: int, dim: int) -> nn.Module:
        return nn.Sequential(nn.BatchNorm2d(in_dim), nn.Conv2d(in_dim, dim, 2, 2))

    def make_position(self, dim: int) -> None:
        return None


def _dims(width: int) -> dict:
    return dict(dims=(width, 2 * width, 4 * width, 8 * width))


_deep = dict(depths=(4, 4, 18, 4))

# drop path: published for S alone, and taken for all
VARIANTS = {
    "biformer_tiny": Variant(_dims(64), 13_142_760, 2.2, 81.4, drop_path=0.15),
    "biformer_small": Variant(_dims(64) | _deep, 25_536_232, 4.5, 83.8, drop_path=0.15),
    "biformer_base": Variant(_dims(96) | _deep, 56_804_968, 9.8, 84.3, drop_path=0.15),
}
STL_VARIANTS = {
    "biformer_stl": Variant(dict(), 28_372_552, 4.6, 82.7, drop_path=0.15),
    "biformer_stl_nchw": Variant(dict(form="nchw", topks=(1, 4, 16, -1)), 28_372_552, 4.6, 82.7, drop_path=0.15),
}

# --- the authors' checkpoints ----------------------------------------------------------------------------------------

_OF_THE_STEM = {"0": "0.conv", "1": "0.norm", "3": "2.conv", "4": "2.norm"}

RULES: Rules = [
    (r"^downsample_layers\.0\.([0134])\.", lambda m: f"stem.{_OF_THE_STEM[m[1]]}."),
    (r"^downsample_layers\.(\d)\.0\.", r"stages.\1.downsample.conv."),
    (r"^downsample_layers\.(\d)\.1\.", r"stages.\1.downsample.norm."),
    (r"^stages\.(\d)\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"\.pos_embed\.", r".position."),
    (r"(^|\.)(qkv\.qkv|qkv_linear)\.", r"\1qkv."),
    (r"(^|\.)(wo|output_linear)\.", r"\1proj."),
    (r"\.attn\.([123])\.", lambda m: f".mixer.{int(m[1]) - 1}."),  # of topk 0, behind a change of layout
    (r"\.attn\.", r".mixer."),
    (r"\.mlp\.0\.", r".mlp.fc1."),
    (r"\.mlp\.[23]\.", r".mlp.fc2."),
    (r"^norm\.", r"head.before."),
    (r"^head\.(weight|bias)$", r"head.fc.\1"),
    (r"^extra_norms\.(\d)\.", r"norms.\1."),
]

# no file of these was at hand: names as the code makes them
STL_RULES: Rules = [
    (r"^downsample_layers\.0\.([01])\.", r"stem.\1."),
    (r"^downsample_layers\.(\d)\.([01])\.", r"stages.\1.downsample.\2."),
    *RULES,
]

register(BiFormer, VARIANTS, RULES)
register(BiFormerSTL, STL_VARIANTS, STL_RULES)
