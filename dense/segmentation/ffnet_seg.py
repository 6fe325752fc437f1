"""FFNet-seg: a segmentor of FFNified attention alone, whose head runs at the stride of its finest map.

"MetaMixer Is All You Need", arXiv 2406.02021; https://github.com/ysj9909/FFNet (Apache-2.0), whose state dicts load.
Its backbone is `FFNetSeg`, of which the head reads the maps of strides 8, 16 and 32:

    x = reduce([maps, enlarged to the size of the first])
    x = GELU(x + mixer(x));   x = GELU(x + mlp(x))     # `depth` times
    logits = classifier(GELU(expand(x)))
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from torch import Tensor, nn

from ...backbones.layers import ConvNorm, DepthwiseMlp, DropPath, FFNifiedAttention
from ...backbones.skeletons.options import drop_path_rates
from ...checkpoint import Rules
from ...data import positive
from ...registry import MODELS

UNUSED = ("act_cfg", "conv_cfg", "input_transform", "norm_cfg")  # of mmseg's base


class FFNetSegBlock(nn.Module):
    """GELU(x + mixer(x)), then GELU(x + mlp(x)). Kernels are trained with strips of one row and of one column.

    Args:
        dim: channels C.
        mlp_ratio: hidden width of the second half over C.
        kernel_size: taps along an axis of all depth-wise kernels, odd.
        drop_path: rate of stochastic depth of both branches.

    `forward(x (B, C, H, W)) -> (B, C, H, W)`.
    """

    def __init__(self, dim: int, mlp_ratio: float, kernel_size: int, drop_path: float):
        super().__init__()
        self.mixer = FFNifiedAttention(dim, (kernel_size, kernel_size), strips=True)
        self.mlp = DepthwiseMlp(dim, mlp_ratio, kernel_size, strips=True)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(x + self.drop_path(self.mixer(x)))
        return F.gelu(x + self.drop_path(self.mlp(x)))


@MODELS.register_module()
class FFNetSegHead(BaseDecodeHead):
    """See above. Maps are enlarged by bicubic interpolation, at any size.

    Args:
        in_channels: channels of the maps that are read.
        in_index: numbers of these maps among those of the backbone, the finest first.
        channels: channels that the classifier reads.
        width: channels of the blocks.
        depth: number of blocks.
        mlp_ratio: hidden width of a block's second half over `width`.
        kernel_size: taps along an axis of all depth-wise kernels, odd.
        drop_path_rate: rate of stochastic depth of the last block; it grows linearly up to there.
        **options: what mmseg's `BaseDecodeHead` takes, but for the norm, the activation and the kind of convolutions,
            which are given here, and `input_transform`.

    `forward(maps) -> (B, num_classes, h, w)`, in the size of the first map that is read.

    Raises:
        ValueError: an option that the head does not use, or a number that it cannot have.
    """

    checkpoint_rules: Rules = [
        (r"^squeeze\.", r"reduce."),
        (r"^align\.", r"expand."),
        (r"^head_blocks\.", r"blocks."),
        (r"\.token_mixer\.main\.fc\.", r".mixer.query."),
        (r"\.token_mixer\.main\.conv1\.", r".mixer.key."),
        (r"\.token_mixer\.main\.conv2\.", r".mixer.value."),
        (r"\.channel_mixer\.main\.", r".mlp."),
        (r"\.(key|value|mlp\.conv)\.conv1\.", r".\1.branches.0."),
        (r"\.(key|value|mlp\.conv)\.strip_conv([12])\.", r".\1.branches.\2."),
        (r"\.(key|value|mlp\.conv)\.conv2\.", r".\1.branches.3."),
        (r"\.c\.", r".conv."),
        (r"\.bn\.", r".norm."),
    ]

    def __init__(
        self,
        in_channels: Sequence[int],
        in_index: Sequence[int] = (0, 1, 2),
        channels: int = 1024,
        width: int = 256,
        depth: int = 3,
        mlp_ratio: float = 4.0,
        kernel_size: int = 9,
        drop_path_rate: float = 0.1,
        **options: Any,
    ):
        if refused := sorted(options.keys() & set(UNUSED)):
            raise ValueError(f"FFNetSegHead does not use the option {refused[0]!r}")
        if isinstance(in_channels, int) or isinstance(in_index, int) or len(in_channels) != len(in_index):
            raise ValueError(
                f"FFNetSegHead: in_index={in_index!r} must name a map for each of in_channels={in_channels!r}"
            )
        for name, value in (("channels", channels), ("width", width), ("depth", depth)):
            positive(f"FFNetSegHead: {name}", value)
        if int(width * mlp_ratio) < 1:
            raise ValueError(f"FFNetSegHead: mlp_ratio={mlp_ratio!r} must give a channel or more of width={width}")
        super().__init__(in_channels, channels, in_index=list(in_index), input_transform="multiple_select", **options)
        total = sum(self.in_channels)
        self.reduce = nn.Sequential(ConvNorm(total, total), nn.GELU(), ConvNorm(total, width))
        rates = drop_path_rates(drop_path_rate, depth)
        self.blocks = nn.Sequential(*(FFNetSegBlock(width, mlp_ratio, kernel_size, rate) for rate in rates))
        self.expand = nn.Sequential(ConvNorm(width, channels), nn.GELU())

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        first, *others = self._transform_inputs(maps)
        enlarged = [F.interpolate(x, first.shape[2:], mode="bicubic", align_corners=self.align_corners) for x in others]
        return self.cls_seg(self.expand(self.blocks(self.reduce(torch.cat([first, *enlarged], 1)))))
