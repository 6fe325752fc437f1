"""DnCNN: a stack of 3x3 convolutions that predicts the noise of an image.

"Beyond a Gaussian Denoiser: Residual Learning of Deep CNN for Image Denoising", TIP 2017, arXiv 1608.03981;
https://github.com/cszn/DnCNN. Written from the paper.

    y = x - conv(...ReLU(BN(conv(ReLU(conv(x)))))...)

Depth 17 sees 35 x 35 pixels and is for one level of noise (DnCNN-S), depth 20 sees 41 x 41 and is for unknown levels
(DnCNN-B, its form for color, CDnCNN-B), or for noise, JPEG and super-resolution together (DnCNN-3, whose image comes in
at the final size).

Paper and code: the released networks have their batch norms merged into the convolutions, so that each has a bias
(`norm=False`, or `fuse`). In the authors' PyTorch training only the first has one; that is the default here, with its
batch norms (eps 1e-4, and running statistics that are 0.95 of the last batch's).
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ...backbones.layers import fuse, fuse_norm
from ...checkpoint import Rules
from ...registry import MODELS
from .network import RestorationNetwork, build_conv, check_whole, weighted_conv


@MODELS.register_module()
class DnCNN(RestorationNetwork):
    """See above.

    Args:
        in_channels: channels of the image.
        depth: number of convolutions, 2 or more.
        width: channels between them.
        norm: whether batch norms stand behind all convolutions but the first and the last.
        bias: whether convolutions other than the first have a bias; without norms all have.
        conv_cfg: config of the convolutions, as of mmcv, such as dict(type="WeightedConv2d", den=[0.7]).

    Raises:
        ValueError: an option that is none of these.
    """

    checkpoint_rules: Rules = [(r"^(dncnn|model)\.(?=\d)", "layers.")]

    def __init__(
        self,
        in_channels: int = 1,
        depth: int = 17,
        width: int = 64,
        norm: bool = True,
        bias: bool = False,
        conv_cfg: Mapping[str, Any] | None = None,
    ):
        super().__init__()
        self.in_channels = in_channels
        check_whole("DnCNN", in_channels=in_channels, width=width)
        check_whole("DnCNN", 2, depth=depth)

        def conv(inputs: int, outputs: int, biased: bool) -> nn.Module:
            return build_conv(conv_cfg, inputs, outputs, 3, padding=1, bias=biased)

        self.in_channels = in_channels
        biased = bias or not norm
        layers = [conv(in_channels, width, True), nn.ReLU(inplace=True)]
        for _ in range(depth - 2):
            layers.append(conv(width, width, biased))
            if norm:
                layers.append(nn.BatchNorm2d(width, eps=1e-4, momentum=0.95))
            layers.append(nn.ReLU(inplace=True))
        layers.append(conv(width, in_channels, biased))
        self.layers = nn.Sequential(*layers)
        for layer in layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x - self.layers(x)

    def fuse(self) -> "DnCNN":
        """As the base's; the network has the form of the released ones then."""
        super().fuse()
        layers: list[Any] = []
        for layer in self.layers:
            if isinstance(layer, nn.BatchNorm2d):
                layers[-1] = fuse_norm(layers[-1], layer)
            else:
                layers.append(fuse(layer))
        self.layers = nn.Sequential(*layers)
        return self

    @staticmethod
    def options_of(state: Mapping[str, Tensor]) -> dict[str, Any]:
        found: dict[tuple[int, str], tuple[int, ...]] = {}
        weighted: dict[str, Any] = {}
        for name, value in state.items():
            if match := re.fullmatch(r"(layers|dncnn|model)\.(\d+)\.(weight|bias|running_mean)", name):
                found[int(match[2]), match[3]] = tuple(value.shape)
                weighted |= weighted_conv(state, f"{match[1]}.0")
        convs = sorted(index for (index, name), shape in found.items() if name == "weight" and len(shape) == 4)
        if len(convs) < 2 or convs[0] != 0:
            raise ValueError("This is no state dict of DnCNN: it lacks the convolutions layers.0 and following.")
        width, in_channels = found[0, "weight"][:2]
        norm = any(name == "running_mean" for _, name in found)
        bias = norm and (convs[1], "bias") in found
        return dict(in_channels=in_channels, depth=len(convs), width=width, norm=norm, bias=bias, **weighted)


# Options and numbers of parameters, which are counted; the paper gives none.
VARIANTS: dict[str, tuple[dict[str, Any], int]] = {
    "dncnn_s": (dict(depth=17), 556_096),
    "dncnn_b": (dict(depth=20), 667_072),
    "cdncnn_b": (dict(in_channels=3, depth=20), 669_376),
    "dncnn_3": (dict(depth=20), 667_072),
}
