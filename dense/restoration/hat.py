"""HAT: windows that attend, channels that attend beside them, and overlapping windows at the end of every group.

"Activating More Pixels in Image Super-Resolution Transformer", CVPR 2023, arXiv 2205.04437, and "HAT: Hybrid Attention
Transformer for Image Restoration", arXiv 2309.05239; https://github.com/XPixelGroup/HAT (Apache-2.0), whose weights
load. With F0 = conv(image - mean), and all maps at the size of the image:

    block (HAB)     y = x + drop_path(mixer(n)) + 0.01 channel_attention(n), n = norm(x);  y + drop_path(mlp(norm(y)))
    group (RHAG)    x + conv(overlap(blocks(x))), where overlap is a pre-norm block with overlapping cross-attention
    body            F = F0 + conv(norm(groups(norm(F0))))
    larger images   conv(shuffles(leaky_relu(conv(F)))) + mean
    the same size   image + conv(F)

The released code returns its input for tasks of the same size (denoising, JPEG artifacts), without a look at the body.
Here the body counts, in the form that SwinIR has for these tasks.
"""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ...backbones.layers import Blocks, DropPath, HybridAttention, LayerNorm2d, Mlp
from ...checkpoint import Rules
from ...registry import MIXERS, MODELS
from .network import RestorationNetwork, check_whole, pad_to, ratio_of, shape_of

MEAN = (0.4488, 0.4371, 0.4040)  # of DIV2K, in red, green and blue
STRIP = 1 << 14  # pixels of a map of which an MLP is computed at a time, in inference


def _norm(dim: int) -> LayerNorm2d:
    return LayerNorm2d(dim, eps=1e-5)


class HAB(nn.Module):
    """A block. Only what attends to pixels, and the MLP, are dropped by stochastic depth.

    Args:
        dim: channels.
        mixer: module (B, C, H, W) -> (B, C, H, W) with its own stochastic depth.
        mlp_ratio: hidden width of the MLP over the channels.
        drop_path: rate of stochastic depth of the MLP.
    """

    def __init__(self, dim: int, mixer: nn.Module, mlp_ratio: float, drop_path: float):
        super().__init__()
        self.norm1, self.mixer = _norm(dim), mixer
        self.norm2, self.mlp = _norm(dim), Mlp(dim, mlp_ratio)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mixer(self.norm1(x))
        if self.training or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return x + self.drop_path(self.mlp(self.norm2(x)))
        # strip by strip and in place: of a large map the hidden layer is the most memory of all
        for strip in x.split(max(1, STRIP // x.shape[3]), 2):
            strip += self.mlp(self.norm2(strip))
        return x


class Group(nn.Module):
    """Blocks, a block with overlapping windows (or None) and a 3x3 convolution, on a residual branch."""

    def __init__(self, dim: int, blocks: Sequence[nn.Module], overlap: nn.Module | None):
        super().__init__()
        self.blocks = Blocks(blocks)
        self.overlap = nn.Identity() if overlap is None else overlap
        self.conv = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(self.blocks.run(self.overlap, self.blocks(x)))


@MODELS.register_module()
class HAT(RestorationNetwork):
    """HAT, for images of any size.

    Args:
        scale: factor of height and width: a power of two or 3 for super-resolution; 1 for denoising and the like.
        in_channels: channels of the image and of the result.
        dim: channels of the body.
        depths: number of blocks of each group.
        heads: number of attention heads; one, or one for each group.
        window: side of the windows. Images are filled up to whole windows inside.
        overlap: growth of the windows that overlap, over `window`.
        compress, squeeze, channel_scale: as of `attlas.backbones.layers.HybridAttention`.
        mlp_ratio: hidden width of the MLPs over the channels.
        qkv_bias: whether the projections to queries, keys and values have a bias.
        drop_path_rate: rate of stochastic depth of the last block; those before it have less, the first none.
        mixer: name of MIXERS, or dict(type=name, **options): what attends to pixels in the blocks, beside the channel
            attention. None for HAT's own windows, shifted by half of their side in every second block.
        overlap_mixer: the same for the end of every group; None for HAT's overlapping windows, "none" for nothing.
        grad_checkpointing: whether training keeps only the input of every block for the backward pass, and computes the
            rest again.

    `forward(x (B, in_channels, H, W), in [0, 1]) -> (B, in_channels, scale · H, scale · W)`, which is not clamped.
    Attributes: `scale`, `multiple` (of which sides are inside).

    Raises:
        ValueError: options or an image that do not fit.
    """

    def __init__(
        self,
        scale: int = 4,
        in_channels: int = 3,
        dim: int = 180,
        depths: Sequence[int] = (6, 6, 6, 6, 6, 6),
        heads: int | Sequence[int] = 6,
        window: int = 16,
        overlap: float = 0.5,
        compress: int = 3,
        squeeze: int = 30,
        channel_scale: float = 0.01,
        mlp_ratio: float = 2.0,
        qkv_bias: bool = True,
        drop_path_rate: float = 0.1,
        mixer: str | Mapping | None = None,
        overlap_mixer: str | Mapping | None = None,
        grad_checkpointing: bool = False,
    ):
        super().__init__()
        check_whole("HAT", scale=scale, in_channels=in_channels, dim=dim, window=window)
        for name, given in (("mixer", mixer), ("overlap_mixer", overlap_mixer)):
            if isinstance(given, Mapping) and "type" not in given:
                raise ValueError(f"HAT: {name}={dict(given)!r} has no type, such as dict(type='RALA', heads=4)")
        if scale not in (1, 3) and not (scale > 1 and scale & (scale - 1) == 0):
            raise ValueError(f"HAT: scale={scale} must be 1, 3 or a power of two")
        if not depths or min(depths) < 1:
            raise ValueError(f"HAT: depths={depths} must be one number of blocks, 1 or more, for each group")
        heads = [heads] * len(depths) if isinstance(heads, int) else [*heads]
        if len(heads) != len(depths):
            raise ValueError(f"HAT: heads={heads} must be one number, or one for each of the {len(depths)} groups")
        self.scale, self.multiple, self.in_channels = scale, window, in_channels
        self.mean: Tensor
        mean = torch.tensor(MEAN if in_channels == 3 else (0.0,) * in_channels)
        self.register_buffer("mean", mean.view(1, -1, 1, 1), persistent=False)
        self.conv_first = nn.Conv2d(in_channels, dim, 3, padding=1)
        self.norm_first = _norm(dim)
        rates = iter(torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist())
        groups = []
        for depth, count in zip(depths, heads):
            blocks = []
            for index in range(depth):
                rate, shift = next(rates), window // 2 if index % 2 else 0
                own = dict(type="WindowAttention", heads=count, window=window, shift=shift, qkv_bias=qkv_bias)
                hybrid = HybridAttention(dim, mixer or own, compress, squeeze, channel_scale, rate)
                blocks.append(HAB(dim, hybrid, mlp_ratio, rate))
            own = dict(type="OverlappingAttention", heads=count, window=window, overlap=overlap, qkv_bias=qkv_bias)
            options = overlap_mixer or own
            options = dict(type=options) if isinstance(options, str) else options
            end = None
            if options["type"] != "none":
                end = HAB(dim, MIXERS.build({**options, "dim": dim}), mlp_ratio, 0.0)
            groups.append(Group(dim, blocks, end))
        self.layers = nn.Sequential(*groups)
        self.norm = _norm(dim)
        self.conv_after_body = nn.Conv2d(dim, dim, 3, padding=1)
        if scale == 1:
            self.conv_last = nn.Conv2d(dim, in_channels, 3, padding=1)
        else:
            self.conv_before_upsample = nn.Sequential(
                nn.Conv2d(dim, 64, 3, padding=1), nn.LeakyReLU(0.01, inplace=True)
            )
            steps: list[nn.Module] = []
            for factor in [3] if scale == 3 else [2] * (scale.bit_length() - 1):
                steps += [nn.Conv2d(64, 64 * factor**2, 3, padding=1), nn.PixelShuffle(factor)]
            self.upsample = nn.Sequential(*steps)
            self.conv_last = nn.Conv2d(64, in_channels, 3, padding=1)
        self.reset_weights(plain=mixer is None and overlap_mixer is None)
        for group in groups:
            group.blocks.checkpointing = grad_checkpointing

    def reset_weights(self, plain: bool) -> None:
        """Initial weights of linear layers; other mixers keep their own."""
        for module in self.modules() if plain else [m for n, m in self.named_modules() if ".mlp" in n]:
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward_features(self, x: Tensor) -> Tensor:
        """The groups and the norms around them, without the convolution behind: maps (B, C, H, W) of whole windows."""
        return self.norm(self.layers(self.norm_first(x)))

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 4 or x.shape[1] != self.in_channels or 0 in x.shape:
            raise ValueError(
                f"HAT: x must have shape (B, {self.in_channels}, H, W), none of them 0, got {tuple(x.shape)}"
            )
        if not x.is_floating_point():
            raise TypeError(f"HAT: x must be floating point, in [0, 1], got {x.dtype}")
        height, width = x.shape[2:]
        image, mean = pad_to(x, self.multiple), self.mean.to(x.dtype)
        first = self.conv_first((image - mean).contiguous(memory_format=torch.channels_last))
        y = self.conv_after_body(self.forward_features(first)) + first
        if self.scale == 1:
            y = image + self.conv_last(y)
        else:
            y = self.conv_last(self.upsample(self.conv_before_upsample(y))) + mean
        return y[..., : self.scale * height, : self.scale * width]

    @staticmethod
    def options_of(state: Mapping[str, Tensor]) -> dict:
        """The options of the network that a state dict of the authors or of ours belongs to, read off its names and
        shapes: all that shapes can tell; `channel_scale` and `drop_path_rate` keep their defaults.

        Raises:
            ValueError: the state dict is not one of HAT with its own attention; says what is missing.
        """
        found: dict[str, Tensor] = {}
        for name, value in state.items():
            for pattern, replacement in RULES:
                name = re.sub(pattern, replacement or "", name)
            found[name] = value

        def shape(name: str) -> tuple[int, ...]:
            return shape_of(found, name, "HAT with its own attention")

        attention = any(name.endswith("mixer.mixer.table") for name in found)
        if attention and not any(".mixer.channels." in name or ".overlap." in name for name in found):
            raise ValueError(
                "This is a state dict of SwinIR or its like, not of HAT: it has windows, without channel attention "
                "beside them and overlapping windows behind them."
            )
        depths: list[int] = []
        while f"layers.{len(depths)}.conv.weight" in found:
            start = f"layers.{len(depths)}.blocks."
            depths.append(len({name[len(start) :].split(".")[0] for name in found if name.startswith(start)}))
        dim, in_channels = shape("conv_first.weight")[:2]
        block, overlap = "layers.0.blocks.0.", "layers.0.overlap.mixer.table"
        pairs, count = shape(block + "mixer.mixer.table")
        window = (round(pairs**0.5) + 1) // 2
        reach = round(shape(overlap)[0] ** 0.5) + 1 - window
        scale = 1
        for name, value in found.items():
            if re.fullmatch(r"upsample\.\d+\.weight", name):
                scale *= round((len(value) / 64) ** 0.5)
        heads = tuple(shape(f"layers.{group}.blocks.0.mixer.mixer.table")[1] for group in range(len(depths)))
        return dict(
            scale=scale,
            in_channels=in_channels,
            dim=dim,
            depths=tuple(depths),
            heads=count if len({*heads}) == 1 else heads,
            window=window,
            overlap=(reach - window) / window,
            compress=dim // shape(block + "mixer.channels.conv1.weight")[0],
            squeeze=dim // shape(block + "mixer.channels.gate.fc1.weight")[0],
            mlp_ratio=ratio_of(shape(block + "mlp.fc1.weight")[0], dim),
            qkv_bias=block + "mixer.mixer.qkv.bias" in found,
        )


def _variants() -> dict[str, tuple[dict, int]]:
    """Options and number of parameters of the published networks by name, such as "hat_s_x4"."""
    sizes: dict[str, tuple[dict, tuple[int, int, int]]] = {
        "hat_s": (dict(dim=144, compress=24, squeeze=24), (9_473_471, 9_658_111, 9_621_183)),
        "hat": (dict(), (20_624_795, 20_809_435, 20_772_507)),
        "hat_l": (dict(depths=(6,) * 12), (40_698_863, 40_883_503, 40_846_575)),
    }
    return {
        f"{name}_x{scale}": (dict(scale=scale, **options), count)
        for name, (options, counts) in sizes.items()
        for scale, count in zip((2, 3, 4), counts)
    }


VARIANTS = _variants()

# --- the authors' checkpoints ----------------------------------------------------------------------------------------

# of a block alone
BLOCK_RULES: Rules = [
    (r"(^|\.)relative_position_index(_SA|_OCA)?$", None),
    (r"(^|\.)relative_position_bias_table$", r"\1table"),
    (r"(^|\.)conv_block\.cab\.0\.", r"\1mixer.channels.conv1."),
    (r"(^|\.)conv_block\.cab\.2\.", r"\1mixer.channels.conv2."),
    (r"(^|\.)conv_block\.cab\.3\.attention\.1\.", r"\1mixer.channels.gate.fc1."),
    (r"(^|\.)conv_block\.cab\.3\.attention\.3\.", r"\1mixer.channels.gate.fc2."),
    (r"(^|\.)attn\.", r"\1mixer.mixer."),
]

# of a block with overlapping windows alone
OVERLAP_RULES: Rules = [
    (r"^relative_position_bias_table$", r"mixer.table"),
    (r"^(qkv|proj)\.", r"mixer.\1."),
]

RULES: Rules = [
    (r"\.residual_group\.overlap_attn\.(relative_position_bias_table|qkv|proj)", r".overlap.mixer.\1"),
    (r"\.residual_group\.overlap_attn\.", r".overlap."),
    (r"\.residual_group\.blocks\.", r".blocks."),
    (r"^patch_embed\.norm\.", r"norm_first."),
    *BLOCK_RULES,
]

HAT.checkpoint_rules = RULES
