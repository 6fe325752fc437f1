"""NAFNet: a U-Net whose blocks have products in place of activations.

"Simple Baselines for Image Restoration", ECCV 2022, arXiv 2204.04676; https://github.com/megvii-research/NAFNet (MIT),
whose weights load. Written from the paper. With the gate G(a, b) = a b of the two halves of the channels, a block is

    u = G(depth-wise 3x3(W norm(x)));   y = x + β W (u * W mean(u))      # the mean over all pixels: channel attention
    z = y + γ W G(W norm(y))                                             # β and γ for each channel, 0 at first

A level has half the sides of the one above and twice the channels; what the decoder gets from the encoder is added. The
output is added to the image.

Paper and code: the published figures of GoPro and REDS are of networks that take the means over windows of 384 pixels,
one and a half times the side of a training patch, when they are tested on whole images (TLC, arXiv 2112.04491): here
`window=384`. Those of SIDD are of means over the image, which is of 256 pixels there.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...backbones.layers import Blocks, LayerNorm2d, Pointwise
from ...checkpoint import Rules
from ...registry import MODELS
from .network import RestorationNetwork, build_conv, check_whole, shape_of, weighted_conv


def gate(x: Tensor) -> Tensor:
    """(B, 2C, H, W) -> (B, C, H, W): the product of the two halves."""
    one, other = x.chunk(2, dim=1)
    return one * other


def local_mean(x: Tensor, window: int) -> Tensor:
    """Means of a map over square windows around every pixel, moved inwards at borders.

    Args:
        x: (B, C, H, W).
        window: side; one above H or W is H or W.

    Returns:
        (B, C, H, W), or (B, C, 1, 1) where one window has the whole map.
    """
    height, width = x.shape[2:]
    if window >= height and window >= width:
        return x.mean((2, 3), keepdim=True)
    for axis, length in ((2, height), (3, width)):
        side = min(window, length)
        sums = F.pad(x.cumsum(axis), (0, 0, 1, 0) if axis == 2 else (1, 0))  # of all that stands before a pixel
        places = length - side + 1
        x = (sums.narrow(axis, side, places) - sums.narrow(axis, 0, places)) / side
    rows, columns = height - x.shape[2], width - x.shape[3]
    margins = (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)
    return F.pad(x, margins, mode="replicate")


class NAFBlock(nn.Module):
    """See above.

    Args:
        dim: channels C.
        window: side of the windows whose means are taken in inference; None is the map.
        dropout: rate of dropout of both branches.
        conv_cfg: config of the 3x3 convolution, as of mmcv.

    `forward(x (B, C, H, W)) -> (B, C, H, W)`.
    """

    def __init__(
        self,
        dim: int,
        window: int | None = None,
        dropout: float = 0.0,
        conv_cfg: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        self.window = window
        self.norm1, self.norm2 = LayerNorm2d(dim), LayerNorm2d(dim)
        self.conv1 = Pointwise(dim, 2 * dim)
        self.conv2 = build_conv(conv_cfg, 2 * dim, 2 * dim, 3, padding=1, groups=2 * dim)
        self.sca = nn.Conv2d(dim, dim, 1)
        self.conv3 = Pointwise(dim, dim)
        self.conv4 = Pointwise(dim, 2 * dim)
        self.conv5 = Pointwise(dim, dim)
        self.dropout = nn.Dropout(dropout)
        self.beta, self.gamma = (nn.Parameter(torch.zeros(1, dim, 1, 1)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        u = gate(self.conv2(self.conv1(self.norm1(x))))
        mean = u.mean((2, 3), keepdim=True) if self.window is None or self.training else local_mean(u, self.window)
        u = self.conv3(u * self.sca(mean))
        y = x + self.dropout(u) * self.beta
        return y + self.dropout(self.conv5(gate(self.conv4(self.norm2(y))))) * self.gamma


@MODELS.register_module()
class NAFNet(RestorationNetwork):
    """See above.

    Args:
        in_channels: channels of the image.
        width: channels of the first level.
        encoders: number of blocks of each level on the way down.
        middle: number of blocks of the level below.
        decoders: number of blocks of each level on the way up, the lowest first; as many levels.
        window: side in pixels of the windows whose means are taken in inference, 384 as published for whole images;
            None is the image, the only one that exports with free sizes.
        dropout: rate of dropout in training.
        conv_cfg: config of the 3x3 convolutions, as of mmcv, such as dict(type="WeightedConv2d", den=[0.7]).

    Sides are filled up with zeros on the right and below to multiples of 2 to the number of levels, as published.

    Raises:
        ValueError: an option that is none of these.
    """

    checkpoint_rules: Rules = [(r"\.sca\.1\.", ".sca."), (r"^middle_blks\.", "middle.")]

    def __init__(
        self,
        in_channels: int = 3,
        width: int = 32,
        encoders: Sequence[int] = (2, 2, 4, 8),
        middle: int = 12,
        decoders: Sequence[int] = (2, 2, 2, 2),
        window: int | None = None,
        dropout: float = 0.0,
        conv_cfg: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        check_whole("NAFNet", in_channels=in_channels, width=width)
        counts = {f"encoders[{i}]": n for i, n in enumerate(encoders)} | {"middle": middle}
        check_whole("NAFNet", 0, **counts, **{f"decoders[{i}]": n for i, n in enumerate(decoders)})
        if len(encoders) != len(decoders):
            raise ValueError(f"NAFNet: encoders={encoders!r} and decoders={decoders!r} must have as many levels")
        if window is not None:
            check_whole("NAFNet", 2 ** len(encoders), window=window)

        def blocks(level: int, count: int) -> Blocks:
            side = None if window is None else window >> level
            return Blocks(NAFBlock(width << level, side, dropout, conv_cfg) for _ in range(count))

        dims = [width << level for level in range(len(encoders) + 1)]
        self.multiple, self.in_channels = 2 ** len(encoders), in_channels
        if window is not None:
            why = f"means are of windows (window={window}) or of the image, whichever is smaller"
            self.fixed_sizes = {suffix: dict(height=why, width=why) for suffix in (".onnx", ".pt2")}
        self.intro = build_conv(conv_cfg, in_channels, width, 3, padding=1)
        self.encoders = nn.ModuleList(blocks(level, count) for level, count in enumerate(encoders))
        self.downs = nn.ModuleList(nn.Conv2d(dim, 2 * dim, 2, stride=2) for dim in dims[:-1])
        self.middle = blocks(len(encoders), middle)
        self.ups = nn.ModuleList(
            nn.Sequential(Pointwise(dim, 2 * dim, bias=False), nn.PixelShuffle(2)) for dim in dims[:0:-1]
        )
        self.decoders = nn.ModuleList(
            blocks(level, count) for level, count in zip(reversed(range(len(encoders))), decoders)
        )
        self.ending = build_conv(conv_cfg, width, in_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[2:]
        image = F.pad(x, (0, -width % self.multiple, 0, -height % self.multiple))
        y, kept = self.intro(image), []
        for encoder, down in zip(self.encoders, self.downs):
            y = encoder(y)
            kept.append(y)
            y = down(y)
        y = self.middle(y)
        for up, decoder in zip(self.ups, self.decoders):
            y = decoder(up(y) + kept.pop())
        return (self.ending(y) + image)[..., :height, :width]

    @staticmethod
    def options_of(state: Mapping[str, Tensor]) -> dict[str, Any]:
        width, in_channels = shape_of(state, "intro.weight", "NAFNet")[:2]
        shape_of(state, "ending.weight", "NAFNet")

        def count(start: str) -> int:
            return len({name.removeprefix(start).split(".")[0] for name in state if name.startswith(start)})

        levels = count("downs.")
        return dict(
            in_channels=in_channels,
            width=width,
            encoders=tuple(count(f"encoders.{level}.") for level in range(levels)),
            middle=count("middle.") + count("middle_blks."),  # ours or theirs
            decoders=tuple(count(f"decoders.{level}.") for level in range(levels)),
            **weighted_conv(state, "intro"),
        )


_DENOISING = dict(encoders=(2, 2, 4, 8), middle=12, decoders=(2, 2, 2, 2))
_DEBLURRING = dict(encoders=(1, 1, 1, 28), middle=1, decoders=(1, 1, 1, 1), window=384)

# Options and numbers of parameters, which are counted.
VARIANTS: dict[str, tuple[dict[str, Any], int]] = {
    "nafnet_sidd_width32": (dict(width=32, **_DENOISING), 29_159_715),
    "nafnet_sidd_width64": (dict(width=64, **_DENOISING), 115_982_915),
    "nafnet_gopro_width32": (dict(width=32, **_DEBLURRING), 17_111_907),
    "nafnet_gopro_width64": (dict(width=64, **_DEBLURRING), 67_888_835),
    "nafnet_reds_width64": (dict(width=64, **_DEBLURRING), 67_888_835),
}
