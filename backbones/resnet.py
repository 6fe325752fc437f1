"""ResNet: a host for plug-ins.

"Deep Residual Learning for Image Recognition", CVPR 2016, arXiv 1512.03385. The blocks are those of torchvision, whose
weights load: the stride of a bottleneck is that of its 3x3 convolution.

Plug-ins (`plugins="ELA"`) stand at the end of the residual branch, behind its last norm and before the addition, or
inside it, behind the activation of the 3x3 convolution (the first one of a block of two).
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ..registry import MIXERS
from .layers import BasicBlock, ConvNorm, DropPath, Head
from .skeletons.pyramid import Pyramid
from .zoo import Rules, Variant, register

PLACES = ("end", "inner")


class Bottleneck(nn.Module):
    """relu(shortcut(x) + end(conv3(inner(relu(conv2(relu(conv1(x)))))))): a 3x3 convolution of a quarter of the
    channels between 1x1 convolutions, with batch norms.

    Args, attributes: as of `BasicBlock`.
    """

    def __init__(self, in_dim: int, dim: int, stride: int = 1, drop_path: float = 0.0):
        super().__init__()
        hidden = dim // 4
        self.conv1, self.conv2 = ConvNorm(in_dim, hidden), ConvNorm(hidden, hidden, 3, stride)
        self.conv3 = ConvNorm(hidden, dim)
        self.inner: nn.Module = nn.Identity()
        self.end: nn.Module = nn.Identity()
        changes = stride != 1 or in_dim != dim
        self.shortcut = ConvNorm(in_dim, dim, 1, stride) if changes else nn.Identity()
        self.activation = nn.ReLU(inplace=True)  # of norms and sums, whose backward reads no output
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(self.activation(self.conv2(self.activation(self.conv1(x)))))
        return self.activation(self.shortcut(x) + self.drop_path(self.end(self.conv3(y))))


class ResNet(Pyramid):
    """ResNet. In the dense form it gives the maps as they are, without norms.

    Args:
        dims, depths, drop_path_rate, plugins, **common: as of `Pyramid`.
        bottleneck: whether blocks are bottlenecks, or have two 3x3 convolutions.
        strides: as of `Pyramid`; (2, 4, 8, 16) leaves the pooling of the stem out.
        plugin_place: "end" of the branch, or "inner", behind the activation of the 3x3 convolution.
    """

    unused = ("mlp_ratio", "layer_scale")

    def __init__(
        self,
        dims=(256, 512, 1024, 2048),
        depths=(3, 4, 6, 3),
        bottleneck: bool = True,
        plugin_place: str = "end",
        strides: Sequence[int] | None = None,
        **common,
    ):
        if plugin_place not in PLACES:
            raise ValueError(f"ResNet: plugin_place={plugin_place!r} must be one of {PLACES}")
        self.bottleneck, self.plugin_place = bottleneck, plugin_place
        super().__init__(dims, depths, strides=strides, **common)

    @property
    def stem_dim(self) -> int:
        return self.dims[0] // 4 if self.bottleneck else self.dims[0]

    def make_stem(self, in_channels: int, dim: int) -> nn.Module:
        conv = ConvNorm(in_channels, self.stem_dim, 7, stride=2)
        if self.strides[0] not in (2, 4):
            raise ValueError(f"ResNet: strides={self.strides} must begin with 4, or with 2 for a stem without pooling")
        pooling = [nn.MaxPool2d(3, 2, 1)] if self.strides[0] == 4 else []
        return nn.Sequential(conv, nn.ReLU(inplace=True), *pooling)

    def make_downsample(self, stage: int, in_dim: int, dim: int) -> nn.Module:
        return nn.Identity()  # which the first block does

    def make_block(self, stage: int, index: int, dim: int, drop_path: float) -> nn.Module:
        before = self.dims[stage - 1] if stage else self.stem_dim
        in_dim, stride = (dim, 1) if index else (before, self.ratios[stage] if stage else 1)
        return (Bottleneck if self.bottleneck else BasicBlock)(in_dim, dim, stride, drop_path)

    def plug(self, block: nn.Module, plugin: Mapping, dim: int) -> None:
        inside = dim // 4 if self.bottleneck and self.plugin_place == "inner" else dim
        setattr(block, self.plugin_place, MIXERS.build({**plugin, "dim": inside}))

    def make_output_norm(self, stage: int, dim: int) -> nn.Module:
        return nn.Identity()

    def make_head(self, dim: int, num_classes: int) -> nn.Module:
        return Head(dim, num_classes)

    def initialize(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        else:
            super().initialize(module)


_basic = dict(dims=(64, 128, 256, 512), bottleneck=False)
_bilinear: Any = dict(interpolation="bilinear")

VARIANTS = {
    "resnet18": Variant(_basic | dict(depths=(2, 2, 2, 2)), 11_689_512, 1.81, 69.76, **_bilinear),
    "resnet34": Variant(_basic | dict(depths=(3, 4, 6, 3)), 21_797_672, 3.66, 73.31, **_bilinear),
    "resnet50": Variant(dict(depths=(3, 4, 6, 3)), 25_557_032, 4.09, 76.13, **_bilinear),
    "resnet101": Variant(dict(depths=(3, 4, 23, 3)), 44_549_160, 7.80, 77.37, **_bilinear),
    "resnet152": Variant(dict(depths=(3, 8, 36, 3)), 60_192_808, 11.51, 78.31, **_bilinear),
}

# --- torchvision's checkpoints ---------------------------------------------------------------------------------------


def _stage(match: re.Match) -> str:
    return f"stages.{int(match[1]) - 1}.blocks.{match[2]}."


RULES: Rules = [
    (r"^(conv|bn)1\.", lambda match: f"stem.0.{'conv' if match[1] == 'conv' else 'norm'}."),
    (r"^layer(\d)\.(\d+)\.", _stage),
    (r"\.conv(\d)\.weight$", r".conv\1.conv.weight"),
    (r"\.bn(\d)\.", r".conv\1.norm."),
    (r"\.downsample\.0\.", r".shortcut.conv."),
    (r"\.downsample\.1\.", r".shortcut.norm."),
    (r"^fc\.", r"head.fc."),
]

register(ResNet, VARIANTS, RULES)
