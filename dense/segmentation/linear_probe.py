"""A linear probe: what one map of a frozen backbone says about the classes of pixels."""

from collections.abc import Sequence

from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from torch import Tensor, nn

from ...registry import MODELS


@MODELS.register_module()
class LinearProbe(BaseDecodeHead):
    """Batch norm and a 1 x 1 convolution on one map, as DINOv2's and PH-Reg's authors probe maps. The logits have the
    map's size; mmseg enlarges them.

    Args:
        in_channels: channels of the map; "auto" in a config.
        num_classes: number of classes.
        in_index: number of the map among those of the backbone, the last by default.
        **options: further ones of mmseg's `BaseDecodeHead`, such as `loss_decode`.
    """

    def __init__(self, in_channels: int, num_classes: int, in_index: int = -1, **options):
        options = dict(dropout_ratio=0.0, align_corners=False) | options
        super().__init__(in_channels, in_channels, num_classes=num_classes, in_index=in_index, **options)
        self.norm = nn.BatchNorm2d(in_channels)

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Maps of the backbone -> logits (B, num_classes, h, w)."""
        return self.cls_seg(self.norm(self._transform_inputs(inputs)))
