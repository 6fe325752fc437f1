"""MobileNetV2: a host for plug-ins.

"MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018, arXiv 1801.04381. The blocks are those of
torchvision, whose weights load.

Plug-ins stand behind the activation of the depth-wise convolution, before the 1x1 convolution that reduces the
channels, in blocks that widen them; so Coordinate Attention was published (arXiv 2103.02907:
`plugins="CoordinateAttention"`). Or at the end of the branch, behind its last norm.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import accumulate

from torch import Tensor, nn

from ..registry import MIXERS
from .layers import ConvNorm, DropPath, Head, depthwise_norm
from .skeletons.options import per_stage
from .skeletons.pyramid import Pyramid
from .zoo import Rules, Variant, register

PLACES = ("end", "inner")
DEPTHS = (1, 2, 3, 4, 3, 3, 1)


class InvertedResidual(nn.Module):
    """x + end(reduce(inner(act(depthwise(act(expand(x))))))), act = ReLU6; without x where the shape changes.

    Args:
        in_dim, dim: channels of the input and of the output.
        expansion: channels inside over those of the input; 1 for no `expand`.
        stride: stride of the depth-wise 3x3 convolution.
        drop_path: rate of stochastic depth.

    Attributes:
        inner, end: where plug-ins have their place.
    """

    def __init__(self, in_dim: int, dim: int, expansion: float, stride: int, drop_path: float = 0.0):
        super().__init__()
        self.hidden = int(in_dim * expansion)
        self.expand = ConvNorm(in_dim, self.hidden) if expansion != 1 else None
        self.depthwise = depthwise_norm(self.hidden, 3, stride)
        self.reduce = ConvNorm(self.hidden, dim)
        self.inner: nn.Module = nn.Identity()
        self.end: nn.Module = nn.Identity()
        self.activation = nn.ReLU6(inplace=True)  # of norms, whose backward reads their input alone
        self.drop_path = DropPath(drop_path)
        self.adds = stride == 1 and in_dim == dim

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else self.activation(self.expand(x))
        y = self.end(self.reduce(self.inner(self.activation(self.depthwise(y)))))
        return x + self.drop_path(y) if self.adds else y


class MobileNetV2(Pyramid):
    """MobileNetV2. In the dense form it gives the maps as they are, without norms; of its seven levels, detectors
    usually read (1, 2, 4, 6), at strides 4 to 32.

    Args:
        dims, depths, strides, drop_path_rate, plugins, **common: as of `Pyramid`.
        expansions: channels inside a block over those of its input; one, or one for each stage.
        stem_dim: channels of the stem.
        features: width of the vector before the last layer, which a 1x1 convolution makes.
        dropout: rate of dropout of that vector.
        plugin_place: "inner", behind the depth-wise convolution of blocks with an expansion, or "end" of the branch of
            all blocks.
    """

    unused = ("mlp_ratio", "layer_scale")
    stem_stride = 2

    def __init__(
        self,
        dims=(16, 24, 32, 64, 96, 160, 320),
        depths=DEPTHS,
        strides=(2, 4, 8, 16, 16, 32, 32),
        expansions: float | Sequence[float] = (1, 6, 6, 6, 6, 6, 6),
        stem_dim: int = 32,
        features: int = 1280,
        dropout: float = 0.2,
        plugin_place: str = "inner",
        **common,
    ):
        if plugin_place not in PLACES:
            raise ValueError(f"MobileNetV2: plugin_place={plugin_place!r} must be one of {PLACES}")
        self.expansions = per_stage("expansions", expansions, len(dims))
        self.stem_dim, self.features, self.dropout, self.plugin_place = stem_dim, features, dropout, plugin_place
        super().__init__(dims, depths, strides=strides, **common)

    def make_stem(self, in_channels: int, dim: int) -> nn.Module:
        return nn.Sequential(ConvNorm(in_channels, self.stem_dim, 3, stride=self.strides[0]), nn.ReLU6(inplace=True))

    def make_downsample(self, stage: int, in_dim: int, dim: int) -> nn.Module:
        return nn.Identity()  # which the first block does

    def make_block(self, stage: int, index: int, dim: int, drop_path: float) -> nn.Module:
        before = self.dims[stage - 1] if stage else self.stem_dim
        in_dim, stride = (dim, 1) if index else (before, self.ratios[stage] if stage else 1)
        return InvertedResidual(in_dim, dim, self.expansions[stage], stride, drop_path)

    def plug(self, block: nn.Module, plugin: Mapping, dim: int) -> None:
        if self.plugin_place == "end":
            super().plug(block, plugin, dim)
        elif block.expand is not None:
            block.inner = MIXERS.build({**plugin, "dim": block.hidden})

    def make_output_norm(self, stage: int, dim: int) -> nn.Module:
        return nn.Identity()

    def make_head(self, dim: int, num_classes: int) -> nn.Module:
        before = nn.Sequential(ConvNorm(dim, self.features), nn.ReLU6(inplace=True))
        return Head(self.features, num_classes, before=before, after=nn.Dropout(self.dropout))

    def initialize(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        else:
            super().initialize(module)


VARIANTS = {
    "mobilenet_v2": Variant(dict(), 3_504_872, 0.30, 71.88, interpolation="bilinear"),
    "mobilenet_v2_ca": Variant(dict(plugins="CoordinateAttention"), 3_950_648, 0.31, 74.3, interpolation="bilinear"),
}

# --- checkpoints -----------------------------------------------------------------------------------------------------

PARTS = {  # of a block: torchvision's numbers, in blocks without and with an expansion
    False: {"0.0": "depthwise.conv", "0.1": "depthwise.norm", "1": "reduce.conv", "2": "reduce.norm"},
    True: {
        "0.0": "expand.conv",
        "0.1": "expand.norm",
        "1.0": "depthwise.conv",
        "1.1": "depthwise.norm",
        "2": "reduce.conv",
        "3": "reduce.norm",
    },
}
PARTS_CA = {  # and those of houqb/CoordAttention
    False: {"0": "depthwise.conv", "1": "depthwise.norm", "3": "reduce.conv", "4": "reduce.norm"},
    True: {
        "0": "expand.conv",
        "1": "expand.norm",
        "3": "depthwise.conv",
        "4": "depthwise.norm",
        "6": "inner",
        "7": "reduce.conv",
        "8": "reduce.norm",
    },
}


def _block(parts: Mapping[bool, Mapping[str, str]], match: re.Match) -> str:
    """The name of a part of block number 1 to 17, of which only the first has no expansion."""
    number, ends = int(match[1]) - 1, list(accumulate(DEPTHS))
    stage = sum(number >= end for end in ends)
    part = parts[number > 0].get(match[2])
    if stage == len(DEPTHS) or part is None:
        return match[0]
    return f"stages.{stage}.blocks.{number - (ends[stage] - DEPTHS[stage])}.{part}."


_ENDS: Rules = [
    (r"^(?:features\.18|conv)\.0\.", r"head.before.0.conv."),
    (r"^(?:features\.18|conv)\.1\.", r"head.before.0.norm."),
    (r"^features\.0\.0\.", r"stem.0.conv."),
    (r"^features\.0\.1\.", r"stem.0.norm."),
    (r"^classifier\.(?:1\.)?(weight|bias)$", r"head.fc.\1"),
]
RULES: Rules = [
    *_ENDS,
    (r"^features\.(\d+)\.conv\.(\d(?:\.[01])?)\.", lambda match: _block(PARTS, match)),
]
# For `attlas.checkpoint.load(network, "mbv2_ca.pth", RULES_CA)`: the numbers in its blocks mean other parts.
RULES_CA: Rules = [
    *_ENDS,
    (r"^features\.(\d+)\.conv\.(\d)\.", lambda match: _block(PARTS_CA, match)),
    (r"\.inner\.conv1\.", r".inner.reduce.conv."),
    (r"\.inner\.bn1\.", r".inner.reduce.norm."),
    (r"\.inner\.conv(?:2|_h)\.", r".inner.rows."),
    (r"\.inner\.conv(?:3|_w)\.", r".inner.columns."),
]

register(MobileNetV2, VARIANTS, RULES)
