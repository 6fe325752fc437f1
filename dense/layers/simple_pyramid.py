"""The neck of ViTDet: what a plain backbone's rescaled maps go through, each by itself."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ...backbones.layers import LayerNorm2d
from ...registry import MODELS


@MODELS.register_module()
class SimplePyramid(nn.Module):
    """A 1 x 1 and a 3 x 3 convolution, each with a layer norm, on every map; nothing is summed from map to map. Coarser
    maps are every other pixel of the last.

    The maps of several sizes are the backbone's: `Isotropic` makes them of one by `scales=(4, 2, 1, 0.5)`.
    Source: ViTDet, arXiv 2203.16527.

    Args:
        in_channels: channels of the backbone's maps.
        out_channels: channels of all maps.
        num_outs: number of maps.

    Raises:
        ValueError: there are fewer maps than the backbone gives.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int, num_outs: int):
        super().__init__()
        if num_outs < len(in_channels):
            raise ValueError(f"num_outs={num_outs} must be at least {len(in_channels)}, the maps of the backbone")
        self.num_outs = num_outs
        self.levels = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, out_channels, 1, bias=False),
                LayerNorm2d(out_channels),
                nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
                LayerNorm2d(out_channels),
            )
            for channels in in_channels
        )
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out")

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Maps of the backbone -> `num_outs` maps (B, out_channels, h, w), the finest first."""
        maps = [level(x) for level, x in zip(self.levels, inputs, strict=True)]
        while len(maps) < self.num_outs:
            maps.append(F.max_pool2d(maps[-1], 1, stride=2))
        return tuple(maps)
