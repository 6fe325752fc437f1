"""HorFPN: gated convolutions, or any mixers, in the place of the 3 x 3 convolutions behind a feature pyramid.

"HorNet: Efficient High-Order Spatial Interactions with Recursive Gated Convolutions", NeurIPS 2022, arXiv 2207.14284;
https://github.com/raoyongming/HorNet (MIT; `GNFPN` and `GNConvModule`), whose state dicts load. Their gⁿConv is that of
the backbone, of order 2 and without the scale. `attlas.GNUPerHead` has the same in UperNet's head.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from mmcv.cnn import build_activation_layer, build_norm_layer
from mmdet.models.necks import FPN
from torch import Tensor, nn

from ...checkpoint import Rules
from ...registry import MIXERS, MODELS

GATE = dict(order=2, scale=1.0)  # of the authors' gⁿConv outside of the backbone

RULES: Rules = [(r"^(fpn_convs\.\d+|fpn_bottleneck)\.(proj_in|proj_out|dwconv|pws)\.", r"\1.mixer.\2.")]


def mixer_module(
    mixer: str | Mapping, dim: int, norm_cfg: Mapping | None = None, act_cfg: Mapping | None = None
) -> nn.Sequential:
    """A mixer, a norm and an activation, as mmcv's ConvModule has a convolution, a norm and an activation.

    Args:
        mixer: name of MIXERS, or dict(type=name, **options).
        dim: channels of the output.
        norm_cfg: norm of mmcv, or None.
        act_cfg: activation of mmcv, or None.
    """
    options = dict(type=mixer) if isinstance(mixer, str) else dict(mixer)
    if "dim" in options:
        raise ValueError(f"mixer: dim={options['dim']!r} is not to be given; it is {dim}, the channels of the maps")
    parts: OrderedDict[str, nn.Module] = OrderedDict(mixer=MIXERS.build({**options, "dim": dim}))
    if norm_cfg is not None:
        name, norm = build_norm_layer(dict(norm_cfg), dim)
        parts[name] = norm
    if act_cfg is not None:
        parts["activate"] = build_activation_layer(dict(act_cfg))
    return nn.Sequential(parts)


@MODELS.register_module()
class HorFPN(FPN):
    """mmdet's FPN with a mixer in the place of the 3 x 3 convolution of each map.

    Extra maps (`add_extra_convs`) are made by a strided convolution and a mixer. The authors wrote this down, but their
    code stops there.

    Args:
        in_channels: channels of the backbone's maps.
        out_channels: channels of all maps.
        num_outs: number of maps.
        mixer: name of MIXERS, or dict(type=name, **options). The authors' second form has a global filter:
            dict(type="GnConv", order=2, scale=1.0, filter_size=(32, 17)).
        norm_cfg: norm of mmcv behind the lateral convolutions and the mixers; none by default.
        act_cfg: activation of mmcv behind the norms; none by default.
        **options: what else mmdet's FPN takes.

    Raises:
        ValueError: there are fewer maps than the backbone gives.
    """

    checkpoint_rules = RULES

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int,
        num_outs: int,
        mixer: str | Mapping = dict(type="GnConv", **GATE),
        norm_cfg: Mapping | None = None,
        act_cfg: Mapping | None = None,
        **options: Any,
    ):
        used = len(in_channels) - options.get("start_level", 0)
        if options.get("end_level", -1) == -1 and num_outs < used:
            raise ValueError(f"num_outs={num_outs} must be at least {used}, the maps of the backbone that are used")
        super().__init__(list(in_channels), out_channels, num_outs, norm_cfg=norm_cfg, act_cfg=act_cfg, **options)
        for i, conv in enumerate(self.fpn_convs):
            mixed = mixer_module(mixer, out_channels, norm_cfg, act_cfg)
            self.fpn_convs[i] = mixed if i < len(self.lateral_convs) else nn.Sequential(conv, mixed)

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Maps of the backbone -> `num_outs` maps (B, out_channels, h, w), the finest first.

        Raises:
            ValueError: another number of maps than `in_channels` has, or a map of other channels.
        """
        found = [x.shape[1] for x in inputs]
        if found != self.in_channels:
            raise ValueError(f"HorFPN: the maps have {found} channels, and in_channels={self.in_channels}")
        return super().forward(inputs)
