"""Multi-scale self-guided attention: position and channel attention in two stages, guided by small autoencoders.

"Multi-scale self-guided attention for medical image segmentation", IEEE JBHI 2020, arXiv 1906.02849;
https://github.com/sinAshish/Multi-Scale-Attention (no license file: written anew from a description), whose state dicts
load. Where text and code differ, this follows the code.

The four maps of a backbone are brought to `channels` C and to the size of the first, D_1 .. D_4, and fused into one
map F. Each of two stages reads, at every scale, the concatenation of D_s with a map (2C channels):

    stage 1:  z_s = [D_s, F],         a_s = stage(z_s)
    stage 2:  z'_s = [D_s, a_s * F],  r_s = stage'(z'_s)
    stage(z) = merge((position(z) + channel(z)) * gate(reconstruction of z))

A prediction is made from every D_s (the first) and every r_s (the second). The output is the mean of the four second
ones. Training compares all eight with the labels, the autoencoders' outputs with their inputs, and the codes of the two
stages with each other. The autoencoder of a stage serves all four scales.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from mmcv.cnn import build_norm_layer
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.losses import accuracy
from mmseg.models.segmentors import EncoderDecoder
from torch import Tensor, nn

from ...checkpoint import Rules
from ...registry import MODELS

SCALES = 4

# The authors number gates and merges from the coarsest scale, all else from the finest.
RULES: Rules = [
    (r"^(conv[67]_[1-4]|attention[1-4]|refine[1-4])\.", None),  # in their network, and never used
    (r"^down(\d)\.", lambda m: f"reduce.{int(m[1]) - 1}."),
    (r"^fuse1\.fuse_attn\.", "fuse."),
    (r"^predict(\d)_2\.", lambda m: f"predict_second.{int(m[1]) - 1}."),
    (r"^predict(\d)\.", lambda m: f"predict_first.{int(m[1]) - 1}."),
    (r"^semanticModule_(\d)_1\.(enc|dec)(\d)\.\w+\.", lambda m: f"stages.{int(m[1]) - 1}.autoencoder.{m[2]}{m[3]}."),
    (r"^conv_sem_(\d)_(\d)\.", lambda m: f"stages.{int(m[1]) - 1}.gate.{SCALES - int(m[2])}."),
    (r"^conv8_(1?)(\d)\.", lambda m: f"stages.{len(m[1])}.merge.{SCALES - int(m[2])}."),
    (r"^pam_attention_(\d)_(\d)\.attn\.", lambda m: f"stages.{int(m[1]) - 1}.position.{int(m[2]) - 1}."),
    (r"^cam_attention_(\d)_(\d)\.attn\.", lambda m: f"stages.{int(m[1]) - 1}.channel.{int(m[2]) - 1}."),
    (r"\.(query|key|value)_conv\.", r".\1."),
]


def position_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of every pixel to every pixel, softmax(query key^T) value, without a scale.

    The logits grow with the channels, so they and the softmax are float32 at least, under autocast too. No tensor of
    N x N is made, forward or backward: PyTorch's fused attention has such a path on a CPU if queries are as wide as
    values. Zeros, which change no product, make them so.

    Args:
        query, key: (B, N, D), D <= C.
        value: (B, N, C).

    Returns:
        (B, N, C), in the dtype of `value`.
    """
    dtype = torch.promote_types(value.dtype, torch.float32)
    with torch.autocast(query.device.type, enabled=False):
        zeros = (0, value.shape[-1] - query.shape[-1])
        q, k, v = (x.to(dtype).unsqueeze(1) for x in (F.pad(query, zeros), F.pad(key, zeros), value))
        return F.scaled_dot_product_attention(q, k, v, scale=1.0).squeeze(1).to(value.dtype)


class PositionAttention(nn.Module):
    """y = gamma * attention(x) + x among all pixels; see `position_attention`. gamma begins at 0: the identity.

    Args:
        channels: channels of the map, 8 or more.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.query = nn.Conv2d(channels, channels // 8, 1)
        self.key = nn.Conv2d(channels, channels // 8, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W); the same shape returns."""
        query, key, value = (project(x).flatten(2).mT for project in (self.query, self.key, self.value))
        return self.gamma * position_attention(query, key, value).mT.unflatten(2, x.shape[2:]) + x


class ChannelAttention(nn.Module):
    """y = gamma * A X + X with X (C, HW) and A = softmax(rowmax(E) - E), E = X X^T: unlike channels weigh most.

    E and its softmax are float32, under autocast too. gamma begins at 0: the identity. There are no other weights.
    """

    def __init__(self):
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1))

    @staticmethod
    def weights(x: Tensor) -> Tensor:
        """A (B, C, C) of a map (B, C, H, W), float32 or, of such a map, float64."""
        with torch.autocast(x.device.type, enabled=False):
            pixels = x.to(torch.promote_types(x.dtype, torch.float32)).flatten(2)
            energy = pixels @ pixels.mT
            return (energy.amax(-1, keepdim=True) - energy).softmax(-1)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W); the same shape returns."""
        attended = self.weights(x).to(x.dtype) @ x.flatten(2)
        return self.gamma * attended.unflatten(2, x.shape[2:]) + x


def convolution(inputs: int, outputs: int, kernel_size: int, norm_cfg: Mapping, activation: nn.Module) -> list:
    """The three modules that stand for a convolution here: with bias, norm, activation."""
    conv = nn.Conv2d(inputs, outputs, kernel_size, padding=kernel_size // 2)
    return [conv, build_norm_layer(norm_cfg, outputs)[1], activation]


def attention_layer(channels: int, attention: nn.Module, norm_cfg: Mapping) -> nn.Sequential:
    """(B, 2C, H, W) -> (B, C, H, W): an attention between two convolutions."""
    before = convolution(2 * channels, channels, 3, norm_cfg, nn.PReLU())
    return nn.Sequential(*before, attention, *convolution(channels, channels, 3, norm_cfg, nn.PReLU()))


class Autoencoder(nn.Module):
    """Two levels down, two up.

    Args:
        channels: channels D of the map; the code has 4D, at a quarter of its sides.
        norm_cfg: norm of every convolution, as of mmcv.
    """

    def __init__(self, channels: int, norm_cfg: Mapping):
        super().__init__()

        def two(inputs: int, outputs: int) -> list:
            first = convolution(inputs, outputs, 3, norm_cfg, nn.ReLU())
            return first + convolution(outputs, outputs, 3, norm_cfg, nn.ReLU())

        def up(channels: int) -> nn.Module:
            return nn.ConvTranspose2d(channels, channels, 2, stride=2)

        self.enc1 = nn.Sequential(*two(channels, 2 * channels), nn.MaxPool2d(2))
        self.enc2 = nn.Sequential(*two(2 * channels, 4 * channels), nn.MaxPool2d(2))
        self.dec2 = nn.Sequential(*two(4 * channels, 2 * channels), up(2 * channels))
        self.dec1 = nn.Sequential(*two(2 * channels, channels), up(channels))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x: (B, D, H, W), H and W even, 4 or more.

        Returns:
            The code (B, 4D, H // 4, W // 4) and the reconstruction (B, D, H, W).
        """
        half = self.enc1(x)
        code = self.enc2(half)
        return code, self.dec1(F.interpolate(self.dec2(code), half.shape[2:], mode="bilinear"))


class GuidedStage(nn.Module):
    """Position and channel attention at every scale, gated by the output of one autoencoder for all scales.

    Args:
        channels: channels C.
        norm_cfg: norm of every convolution, as of mmcv.
    """

    def __init__(self, channels: int, norm_cfg: Mapping):
        super().__init__()
        self.autoencoder = Autoencoder(2 * channels, norm_cfg)
        self.position = nn.ModuleList(
            attention_layer(channels, PositionAttention(channels), norm_cfg) for _ in range(SCALES)
        )
        self.channel = nn.ModuleList(attention_layer(channels, ChannelAttention(), norm_cfg) for _ in range(SCALES))
        self.gate = nn.ModuleList(nn.Conv2d(2 * channels, channels, 3, padding=1) for _ in range(SCALES))
        self.merge = nn.ModuleList(nn.Conv2d(channels, channels, 1) for _ in range(SCALES))

    def forward(self, x: Tensor, scale: int) -> tuple[Tensor, Tensor, Tensor]:
        """x: (B, 2C, H, W) of a scale (0 is the finest).

        Returns:
            The refined map (B, C, H, W), the code (B, 8C, H // 4, W // 4) and the reconstruction of x.
        """
        code, reconstruction = self.autoencoder(x)
        attended = self.position[scale](x) + self.channel[scale](x)
        return self.merge[scale](attended * self.gate[scale](reconstruction)), code, reconstruction


class Guided(NamedTuple):
    """What the losses compare: a list of four for each name, from the finest scale to the coarsest."""

    first: list[Tensor]  # predictions (B, classes, H, W)
    second: list[Tensor]
    inputs: tuple[list[Tensor], list[Tensor]]  # of both stages, (B, 2C, H, W)
    codes: tuple[list[Tensor], list[Tensor]]  # (B, 8C, H // 4, W // 4)
    reconstructions: tuple[list[Tensor], list[Tensor]]  # (B, 2C, H, W)


# The authors' initialization of everything, the backbone included.
INIT = (
    dict(type="Xavier", layer=["Conv2d", "ConvTranspose2d"], distribution="normal"),
    dict(type="Normal", layer="_BatchNorm", mean=1.0, std=0.02, bias=0.0),
)


@MODELS.register_module()
class GuidedAttentionHead(BaseDecodeHead):
    """The network above as a decode head for any backbone of four maps. Logits come in the size of the first map.

    Losses, each by name: eight of `loss_decode`, four of the codes, eight of the reconstructions.

    Args:
        in_channels: channels of the four maps, from the finest to the coarsest.
        channels: width C of the head, a multiple of 8.
        num_classes: number of classes, the background among them.
        code_weight: weight of the mean squared difference between the codes of the two stages, at each scale.
        reconstruction_weight: weight of that between the input of an autoencoder and its output, at each scale and
            stage.
        loss_decode: loss of a prediction, or a list of losses, as of every head of mmseg. Weights are in it.
        in_index: which four of the backbone's maps.
        norm_cfg: norm of every convolution, as of mmcv.
        ignore_index: label of the pixels that `loss_decode` leaves out.
        init_cfg: initialization; the authors' by default.

    Raises:
        ValueError: not four maps; a width that is no multiple of 8.
    """

    checkpoint_rules = RULES
    fixed_sizes = dict.fromkeys(("height", "width"), "the head checks that its maps lie on each other")

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int = 64,
        *,
        num_classes: int,
        code_weight: float = 0.25,
        reconstruction_weight: float = 0.1,
        loss_decode: Mapping[str, Any] | Sequence[Mapping[str, Any]] = dict(
            type="CrossEntropyLoss", avg_non_ignore=True
        ),
        in_index: Sequence[int] = (0, 1, 2, 3),
        norm_cfg: Mapping[str, Any] = dict(type="BN"),
        ignore_index: int = 255,
        init_cfg: Any = INIT,
    ):
        for name, value in (("in_channels", in_channels), ("in_index", in_index)):
            if not isinstance(value, (list, tuple)) or len(value) != SCALES:
                raise ValueError(
                    f"{name}={value!r} must be a list of four numbers, from the finest map to the coarsest."
                )
        if channels < 8 or channels % 8:
            raise ValueError(f"channels={channels!r} must be a multiple of 8: queries and keys have an eighth of them.")
        super().__init__(
            in_channels=list(in_channels),
            channels=channels,
            num_classes=num_classes,
            dropout_ratio=0,
            norm_cfg=norm_cfg,
            in_index=list(in_index),
            input_transform="multiple_select",
            loss_decode=loss_decode,
            ignore_index=ignore_index,
            init_cfg=init_cfg and list(init_cfg),
        )
        del self.conv_seg  # eight classifiers stand for it
        self.code_weight, self.reconstruction_weight = code_weight, reconstruction_weight
        self.reduce = nn.ModuleList(
            nn.Sequential(*convolution(inputs, channels, 1, norm_cfg, nn.PReLU())) for inputs in in_channels
        )
        self.fuse = nn.Sequential(
            *convolution(SCALES * channels, channels, 3, norm_cfg, nn.PReLU()),
            *convolution(channels, channels, 3, norm_cfg, nn.PReLU()),
            *convolution(channels, channels, 1, norm_cfg, nn.PReLU()),
        )
        self.stages = nn.ModuleList(GuidedStage(channels, norm_cfg) for _ in range(2))
        self.predict_first = nn.ModuleList(nn.Conv2d(channels, num_classes, 1) for _ in range(SCALES))
        self.predict_second = nn.ModuleList(nn.Conv2d(channels, num_classes, 1) for _ in range(SCALES))

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Logits (B, classes, H, W), the mean of the four second predictions, from the maps of a backbone.

        Raises:
            ValueError: the maps are not of an image whose sides are multiples of 32.
        """
        return torch.stack(self.guided(inputs).second).mean(0)

    def guided(self, inputs: Sequence[Tensor]) -> Guided:
        """All predictions, and what the guiding losses compare, from the maps of a backbone."""
        maps = self._transform_inputs(inputs)
        check_sizes(maps)
        size = maps[0].shape[2:]
        reduced = [reduce(x) for reduce, x in zip(self.reduce, maps)]
        reduced = [x if x.shape[2:] == size else F.interpolate(x, size, mode="bilinear") for x in reduced]
        fused = self.fuse(torch.cat(reduced[::-1], 1))  # from the coarsest
        out = Guided([], [], ([], []), ([], []), ([], []))
        for scale, x in enumerate(reduced):
            refined = None
            for number, stage in enumerate(self.stages):
                z = torch.cat([x, fused if refined is None else refined * fused], 1)
                refined, code, reconstruction = stage(z, scale)
                out.inputs[number].append(z)
                out.codes[number].append(code)
                out.reconstructions[number].append(reconstruction)
            out.first.append(self.predict_first[scale](x))
            out.second.append(self.predict_second[scale](refined))
        return out

    def loss(self, inputs: Sequence[Tensor], batch_data_samples: list, train_cfg: Any = None) -> dict[str, Tensor]:
        """See `loss_by_feat`."""
        return self.loss_by_feat(self.guided(inputs), batch_data_samples)

    def loss_by_feat(self, seg_logits: Guided, batch_data_samples: list) -> dict[str, Tensor]:
        """The twenty losses, weighted, whose sum is the total; and the accuracy of the output in percent.

        Args:
            seg_logits: what `guided` returned.
            batch_data_samples: mmseg's samples with labels (1, H, W) in `gt_sem_seg`.
        """
        labels = self._stack_batch_gt(batch_data_samples).squeeze(1)
        criteria = self.loss_decode if isinstance(self.loss_decode, nn.ModuleList) else [self.loss_decode]
        losses: dict[str, Tensor] = {}
        logits = {}
        for order, predictions in (("first", seg_logits.first), ("second", seg_logits.second)):
            logits[order] = [F.interpolate(x, labels.shape[1:], mode="bilinear") for x in predictions]
            for scale, x in enumerate(logits[order], start=1):
                for criterion in criteria:
                    name = f"{criterion.loss_name}_{order}{scale}"
                    value = criterion(x, labels, ignore_index=self.ignore_index)
                    losses[name] = losses[name] + value if name in losses else value
        for scale, codes in enumerate(zip(*seg_logits.codes), start=1):
            losses[f"loss_code{scale}"] = self.code_weight * F.mse_loss(*codes)
        for order, inputs, outputs in zip(("first", "second"), seg_logits.inputs, seg_logits.reconstructions):
            for scale, pair in enumerate(zip(outputs, inputs), start=1):
                losses[f"loss_reconstruction_{order}{scale}"] = self.reconstruction_weight * F.mse_loss(*pair)
        losses["acc_seg"] = accuracy(torch.stack(logits["second"]).mean(0), labels, ignore_index=self.ignore_index)
        return losses


def check_sizes(maps: Sequence[Tensor]) -> None:
    """Refuse maps of an image whose sides do not halve exactly: scales would not lie on each other, and an autoencoder
    would not return the size of its input. Backbones of other strides have the same rule."""
    sizes = [tuple(x.shape[2:]) for x in maps]
    first = sizes[0]
    exact = all(side % 2 == 0 and side >= 4 for side in first) and all(
        whole % side == 0 and 1024 % (whole // side) == 0 for size in sizes for whole, side in zip(first, size)
    )
    if not exact:
        shown = ", ".join(f"{height} x {width}" for height, width in sizes)
        raise ValueError(
            f"The maps are of {shown} pixels (height x width). The first must be even, 4 or more, and a power of two "
            "times as large as each other one. The sides of the image must be multiples of the last map's stride: "
            "data_preprocessor=dict(type='SegDataPreProcessor', size_divisor=32, test_cfg=dict(size_divisor=32))."
        )


@MODELS.register_module()
class DAFStack(EncoderDecoder):
    """mmseg's segmentor with a ResNeXt and `GuidedAttentionHead`, which loads the state dict of the authors' training.

    Its options are those of `EncoderDecoder`; configs/guided_attention has the authors'.
    """

    checkpoint_rules: Rules = [
        (r"^resnext\.layer0\.0\.", "backbone.conv1."),
        (r"^resnext\.layer0\.1\.", "backbone.bn1."),
        (r"^resnext\.layer1\.1\.", "backbone.layer1."),
        (r"^resnext\.", "backbone."),
        *RULES,
        (r"^(?!backbone\.)", "decode_head."),
    ]
