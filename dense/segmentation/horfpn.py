"""HorNet's head: UperNet's, whose fused map comes from a gated convolution.

"HorNet: Efficient High-Order Spatial Interactions with Recursive Gated Convolutions", NeurIPS 2022, arXiv 2207.14284;
https://github.com/raoyongming/HorNet (MIT), whose state dicts load.
"""

from collections.abc import Mapping
from typing import Any

from mmseg.models.decode_heads.uper_head import UPerHead

from ...registry import MODELS
from ..layers.horfpn import GATE, RULES, mixer_module


@MODELS.register_module()
class GNUPerHead(UPerHead):
    """mmseg's UPerHead with a gⁿConv in the place of the 3 x 3 convolution that fuses the maps.

    No other mixer can stand there: it makes `channels` of as many channels for each map.

    Args:
        gnconv: options of `GnConv` that differ from order 2 and scale 1. The authors' class has a kernel of 3 and no
            `proj_out`, their configs a kernel of 7 with one, or filter_size=(32, 17).
        **options: what mmseg's UPerHead takes.
    """

    checkpoint_rules = RULES

    def __init__(self, gnconv: Mapping = dict(kernel_size=3, proj_out=False), **options: Any):
        super().__init__(**options)
        if own := sorted({"type", "dim", "in_dim"} & gnconv.keys()):
            raise ValueError(f"gnconv: {', '.join(own)} must be left out; the head's own channels say what they are")
        mixer = {**GATE, **gnconv, "type": "GnConv", "in_dim": len(self.in_channels) * self.channels}
        self.fpn_bottleneck = mixer_module(mixer, self.channels, self.norm_cfg, self.act_cfg)
