"""VGG: chains of 3x3 convolutions and max poolings of 2 pixels, with three linear layers.

"Very Deep Convolutional Networks for Large-Scale Image Recognition", arXiv 1409.1556. Names and weights are those of
torchvision, without batch norms. VGG-Face is VGG-16 with the 2,622 people of "Deep Face Recognition", BMVC 2015.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

from torch import Tensor, nn

from .layers import PooledHead
from .layers.head import FIXED_BY_POOLING
from .skeletons.backbone import Backbone, Notes
from .zoo import Rules, Variant, register


class VGG(Backbone):
    """VGG. Its levels are what the max poolings behind the stages give, at strides 2, 4, ..., 32. In the dense form
    there are no norms.

    Args:
        dims: channels of each stage.
        depths: number of convolutions of each stage, at least 1.
        features: width of the two hidden linear layers.
        dropout: rate of dropout behind them.
        **common: of `Backbone`.
    """

    level_modules = "stages"
    fixed_sizes = FIXED_BY_POOLING
    rounds_up = False
    trunc_normal = ()  # see `initialize`

    def __init__(
        self,
        dims: Sequence[int] = (64, 128, 256, 512, 512),
        depths: Sequence[int] = (2, 2, 3, 3, 3),
        features: int = 4096,
        dropout: float = 0.5,
        **common,
    ):
        if len(dims) != len(depths) or not dims or min(depths) < 1:
            raise ValueError(f"VGG: dims={dims} and depths={depths} must have one entry, at least 1, for each stage")
        super().__init__(dims, [2 ** (i + 1) for i in range(len(dims))], **common)
        self.checkpoint_rules = rules(depths)
        self.min_size = 2 ** len(dims)  # of a side, which the poolings make 1 pixel
        before = [self.in_channels, *dims[:-1]]
        self.stages = nn.ModuleList(self._stage(*stage) for stage in zip(before, dims, depths))
        if self.num_classes is not None:
            self.head = PooledHead(dims[-1], features, 7, self.num_classes, dropout, first=False)
        else:
            self.fixed_sizes = {}
            del self.stages[self.out_indices[-1] + 1 :]  # no output needs them
        self.finish()

    @staticmethod
    def _stage(in_dim: int, dim: int, depth: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for i in range(depth):
            layers += [nn.Conv2d(dim if i else in_dim, dim, 3, padding=1), nn.ReLU(inplace=True)]
        return nn.Sequential(*layers, nn.MaxPool2d(2))

    def levels(self, image: Tensor, notes: Notes) -> Iterator[Tensor]:
        x = image
        for stage in self.stages:
            x = stage(x)
            yield x

    def frozen_parts(self) -> list[nn.Module]:
        return [*self.stages[: self.frozen_stages]]

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        blocks: list[tuple] = [(r"^stages\.(\d+)", None) if coarse else (r"^stages\.(\d+)\.(\d+)", None)]
        return dict(stem=r"^stages\.0\.0\.", blocks=blocks, head=self.head_groups())

    def initialize(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, 0.01)
            nn.init.zeros_(module.bias)
        else:
            super().initialize(module)


DEPTHS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
_bilinear: Any = dict(interpolation="bilinear")

VARIANTS = {
    "vgg11": Variant(dict(depths=DEPTHS[11]), 132_863_336, 7.61, 69.02, **_bilinear),
    "vgg13": Variant(dict(depths=DEPTHS[13]), 133_047_848, 11.31, 69.93, **_bilinear),
    "vgg16": Variant(dict(depths=DEPTHS[16]), 138_357_544, 15.47, 71.59, **_bilinear),
    "vgg19": Variant(dict(depths=DEPTHS[19]), 143_667_240, 19.63, 72.38, **_bilinear),
    "vgg_face": Variant(dict(depths=DEPTHS[16]), 145_002_878, classes=2622, **_bilinear),
}

# --- torchvision's checkpoints ---------------------------------------------------------------------------------------


def rules(depths: Sequence[int]) -> Rules:
    """Of a network of these depths: the numbers of its convolutions depend on them."""
    starts = accumulate([2 * depth + 1 for depth in depths], initial=0)
    return [
        *(
            (rf"^features\.{start + 2 * i}\.", rf"stages.{stage}.{2 * i}.")
            for stage, (start, depth) in enumerate(zip(starts, depths))
            for i in range(depth)
        ),
        (r"^classifier\.0\.", r"head.fc1."),
        (r"^classifier\.3\.", r"head.fc2."),
        (r"^classifier\.6\.", r"head.fc."),
    ]


register(VGG, VARIANTS)
