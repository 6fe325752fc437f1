"""AlexNet: the network that the first explanations were made for, and a host for others.

"One weird trick for parallelizing convolutional neural networks", arXiv 1404.5997, as torchvision has it, whose weights
load: five convolutions, three overlapping max poolings of 3 pixels by 2, three linear layers.
"""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from .layers import PooledHead
from .layers.head import FIXED_BY_POOLING
from .skeletons.backbone import Backbone, Notes
from .zoo import Rules, Variant, register


class AlexNet(Backbone):
    """AlexNet. Its levels are what the three max poolings give, at strides 8, 16 and 32. In the dense form there are no
    norms.

    Args:
        dims: channels of the five convolutions.
        features: width of the two hidden linear layers.
        dropout: rate of dropout before them.
        **common: of `Backbone`.
    """

    level_modules = "stages"
    fixed_sizes = FIXED_BY_POOLING
    min_size = 63  # of a side, which the poolings make 1 pixel
    trunc_normal = ()  # PyTorch's initial weights, as torchvision has them

    def __init__(self, dims=(64, 192, 384, 256, 256), features: int = 4096, dropout: float = 0.5, **common):
        if len(dims) != 5:
            raise ValueError(f"AlexNet: dims={tuple(dims)} must be the channels of five convolutions")
        super().__init__((dims[0], dims[1], dims[4]), (8, 16, 32), **common)
        a, b, c, d, e = dims
        self.stages = nn.ModuleList(
            [
                nn.Sequential(nn.Conv2d(self.in_channels, a, 11, 4, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2)),
                nn.Sequential(nn.Conv2d(a, b, 5, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2)),
                nn.Sequential(
                    nn.Conv2d(b, c, 3, padding=1),
                    nn.ReLU(inplace=True),
                    nn.Conv2d(c, d, 3, padding=1),
                    nn.ReLU(inplace=True),
                    nn.Conv2d(d, e, 3, padding=1),
                    nn.ReLU(inplace=True),
                    nn.MaxPool2d(3, 2),
                ),
            ]
        )
        if self.num_classes is not None:
            self.head = PooledHead(e, features, 6, self.num_classes, dropout, first=True)
        else:
            self.fixed_sizes = {}
            del self.stages[self.out_indices[-1] + 1 :]  # no output needs them
        self.finish()

    def levels(self, image: Tensor, notes: Notes) -> Iterator[Tensor]:
        x = image
        for stage in self.stages:
            x = stage(x)
            yield x

    def map_sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        sizes, sides = [], [(max(n, self.min_size) - 7) // 4 + 1 for n in (height, width)]
        for _ in range(self.out_indices[-1] + 1):
            sides = [(n - 3) // 2 + 1 for n in sides]
            sizes.append((sides[0], sides[1]))
        return [sizes[i] for i in self.out_indices]

    def frozen_parts(self) -> list[nn.Module]:
        return [*self.stages[: self.frozen_stages]]

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        blocks: list[tuple] = [(r"^stages\.(\d+)", None) if coarse else (r"^stages\.(\d+)\.(\d+)", None)]
        return dict(stem=r"^stages\.0\.0\.", blocks=blocks, head=self.head_groups())


VARIANTS = {"alexnet": Variant(dict(), 61_100_840, 0.71, 56.52, interpolation="bilinear")}

# --- torchvision's checkpoints ---------------------------------------------------------------------------------------

PLACES = {0: (0, 0), 3: (1, 0), 6: (2, 0), 8: (2, 2), 10: (2, 4)}  # number of a convolution -> stage and place in it
RULES: Rules = [
    *((rf"^features\.{number}\.", rf"stages.{stage}.{place}.") for number, (stage, place) in PLACES.items()),
    (r"^classifier\.1\.", r"head.fc1."),
    (r"^classifier\.4\.", r"head.fc2."),
    (r"^classifier\.6\.", r"head.fc."),
]

register(AlexNet, VARIANTS, RULES)
