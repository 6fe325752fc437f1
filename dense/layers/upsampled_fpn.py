"""A feature pyramid for backbones whose finest map is too coarse for a detector."""

from collections.abc import Sequence

import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmdet.models.necks import FPN
from torch import Tensor, nn

from ...registry import MODELS


@MODELS.register_module()
class UpsampledFPN(FPN):
    """mmdet's FPN with finer maps before its own: transposed convolutions, one after the other, from the finest lateral
    map behind the top-down sums. Each map has a 3 x 3 convolution of its own. Coarser maps are every other pixel of the
    last.

    SHViT's detectors have it with kernel 2, LSNet's Mask R-CNN with kernel 3. With one map of a plain ViT it makes the
    maps of a pyramid. Sources: the detection code of https://github.com/ysj9909/SHViT and
    https://github.com/THU-MIG/lsnet.

    Args:
        in_channels: channels of the backbone's maps.
        out_channels: channels of all maps.
        num_outs: number of maps, the finer ones included.
        upsample: number of finer maps, each of half the stride.
        kernel: size of the transposed convolutions, 2 or 3.
        norm_cfg: norm of mmcv behind the convolutions; none by default.

    Raises:
        ValueError: there are fewer maps than the backbone gives, or another kernel.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int,
        num_outs: int,
        upsample: int = 1,
        kernel: int = 2,
        norm_cfg: dict | None = None,
    ):
        if upsample < 0 or num_outs < len(in_channels) + upsample:
            raise ValueError(
                f"num_outs={num_outs} must be at least {len(in_channels)} maps of the backbone and {upsample=} of finer"
            )
        if kernel not in (2, 3):
            raise ValueError(f"kernel must be 2 or 3, got {kernel!r}")
        drawn = dict(type="Xavier", layer=["Conv2d", "ConvTranspose2d"], distribution="uniform")
        super().__init__(list(in_channels), out_channels, num_outs - upsample, norm_cfg=norm_cfg, init_cfg=drawn)
        margin = kernel - 2  # so that a map of kernel 3 has twice the pixels, too
        self.upsamples = nn.ModuleList(
            nn.ConvTranspose2d(out_channels, out_channels, kernel, 2, padding=margin, output_padding=margin)
            for _ in range(upsample)
        )
        self.finer_convs = nn.ModuleList(
            ConvModule(out_channels, out_channels, 3, padding=1, norm_cfg=norm_cfg, act_cfg=None)
            for _ in range(upsample)
        )

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Maps of the backbone -> `num_outs` maps (B, out_channels, h, w), the finest first."""
        laterals = [lateral(x) for lateral, x in zip(self.lateral_convs, inputs, strict=True)]
        for i in reversed(range(len(laterals) - 1)):
            laterals[i] = laterals[i] + F.interpolate(laterals[i + 1], size=laterals[i].shape[-2:])
        maps = [conv(x) for conv, x in zip(self.fpn_convs, laterals)]
        finer = laterals[0]
        for upsample, conv in zip(self.upsamples, self.finer_convs):
            finer = upsample(finer)
            maps.insert(0, conv(finer))
        while len(maps) < self.num_outs + len(self.upsamples):
            maps.append(F.max_pool2d(maps[-1], 1, stride=2))
        return tuple(maps)
