"""A restorer of any mixer: the skeleton of plain vision transformers, with patches of one or a few pixels.

    y = pixel_shuffle(conv(norm(blocks(patches(x))))) + x, every pixel repeated r² times

so that the blocks add to nearest-neighbor interpolation by the factor r. Nothing is published of it: it is for mixers
that have no restorer of their own, and for comparing them in one frame. Attention to all pixels makes sense on small
tiles alone; windows and neighborhoods have a cost that is linear in the pixels.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ...backbones.skeletons.isotropic import Isotropic
from ...registry import MODELS
from .network import RestorationNetwork, check_whole


@MODELS.register_module()
class IsotropicRestorer(RestorationNetwork):
    """See above.

    Args:
        scale: factor r of both sides; 1 restores at the same size.
        in_channels: channels of the image.
        dim, depth, mixers, registers: as of `Isotropic`; there is no class token and no table of positions.
        patch_size: side of the patches, in pixels.
        **common: further options of `Isotropic`, such as `mlp_ratio` and `drop_path_rate`.

    `forward(x (B, C, H, W)) -> (B, C, r H, r W)`, any H, W >= 1. It begins as nearest-neighbor interpolation.
    """

    def __init__(
        self,
        scale: int = 2,
        in_channels: int = 3,
        dim: int = 64,
        depth: int = 8,
        mixers: str | Mapping | Sequence[str | Mapping] = "NeighborhoodAttention",
        patch_size: int = 1,
        registers: int = 0,
        **common: Any,
    ):
        super().__init__()
        check_whole("IsotropicRestorer", scale=scale, in_channels=in_channels, patch_size=patch_size)
        self.scale, self.in_channels, self.multiple = scale, in_channels, patch_size
        self.body = Isotropic(
            dim,
            depth,
            mixers,
            class_token=None,
            patch_size=patch_size,
            registers=registers,
            position=False,
            in_channels=in_channels,
            out_indices=(depth - 1,),
            **common,
        )
        self.conv = nn.Conv2d(dim, in_channels * (scale * patch_size) ** 2, 3, padding=1)
        for parameter in self.conv.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        height, width = (self.scale * side for side in x.shape[-2:])
        (found,) = self.body(x)
        added = F.pixel_shuffle(self.conv(found), self.scale * self.multiple)[..., :height, :width]
        return added + F.pixel_shuffle(x.repeat_interleave(self.scale**2, 1), self.scale)
