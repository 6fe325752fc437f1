"""A mixer of the atlas in the encoder of a DETR, in place of the deformable attention.

    encoder=dict(num_layers=6, mixer="BiLevelRouting", layer_cfg=dict(ffn_cfg=...))

in the config of `attlas.MixerDINO` or `attlas.MixerDeformableDETR`, which are mmdet's `DINO` and `DeformableDETR`
otherwise, or of `attlas.RelationDINO`, `attlas.RelationDeformableDETR` and `attlas.RelationDETR`. `mixer` is a name of
MIXERS, or dict(type=name, **options). A layer is x + mixer(x + positions), norm, FFN, norm.

- Each level is mixed by itself, as a map, by the same mixer. Levels meet only in the decoder, which reads all of them.
- Each image is cropped to its own rectangle at each level before it is mixed, so that padding has no influence on it:
  an image in a batch gets what it gets alone. Padding itself gets 0 from the mixer. Images of the same size are mixed
  together.
- Batch norms of a mixer (ContMix, LSConv, LSNetAttention and SHSA have some), and what else averages over batches
  (HyperZZW), stay in inference mode while training, as those of a detector's backbone do: levels differ, and a step has
  few images. Batch norms are affine maps, then.
- A mixer keeps its own initial values, where mmdet draws all other matrices of the encoder.

The finest level of an image of 800 x 1333 has 16,700 pixels. `docs/atlas.md` has the cost of each mixer against the
number of pixels; what is quadratic there, such as `Attention`, is slow here.
"""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from mmdet.models.detectors import DINO, DeformableDETR
from mmdet.models.layers import DeformableDetrTransformerEncoder
from mmengine.model import BaseModule
from torch import Tensor, nn

from ...backbones.layers import averages
from ...registry import MIXERS, MODELS
from ..layers.deformable_attention import use_kernel


class LevelMixer(nn.Module):
    """A mixer on each level of the tokens of an encoder, in the place of a deformable attention.

    Args:
        mixer: name of MIXERS, or dict(type=name, **options).
        dim: channels C.
    """

    def __init__(self, mixer: str | Mapping, dim: int):
        super().__init__()
        options = dict(type=mixer) if isinstance(mixer, str) else dict(mixer)
        self.mixer = MIXERS.build({**options, "dim": dim})

    def train(self, mode: bool = True) -> "LevelMixer":
        super().train(mode)
        for part in self.mixer.modules():
            if averages(part):
                part.eval()
        return self

    def forward(
        self,
        query: Tensor,
        query_pos: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        *,
        spatial_shapes: Tensor,
        **unread: Any,
    ) -> Tensor:
        """query + what the mixer makes of the levels, (B, N, C).

        Args:
            query: tokens (B, N, C), one level after the other.
            query_pos: position code, which is added to what the mixer reads.
            key_padding_mask: tokens (B, N) that are padding, bool; what is not must be a rectangle at the top left of
                its level. None if nothing is.
            spatial_shapes: height and width (levels, 2) of each level.
            **unread: what else mmdet hands to a deformable attention.

        Raises:
            ValueError: the tokens of an image at a level are no such rectangle.
        """
        shapes = spatial_shapes.tolist()
        lengths = [height * width for height, width in shapes]
        tokens = query if query_pos is None else query + query_pos
        maps = [part.mT.unflatten(2, shape) for part, shape in zip(tokens.split(lengths, 1), shapes)]
        if key_padding_mask is None:
            mixed = [self.mixer(x) for x in maps]
        else:
            masks = [part.unflatten(1, shape) for part, shape in zip(key_padding_mask.split(lengths, 1), shapes)]
            mixed = [self._cropped(x, sizes) for x, sizes in zip(maps, rectangles(masks))]
        return query + torch.cat([x.flatten(2).mT for x in mixed], 1)

    def _cropped(self, x: Tensor, sizes: list[tuple[int, int]]) -> Tensor:
        """The mixer on a map (B, C, H, W), of which each image has its own height and width."""
        out = torch.zeros_like(x)
        for height, width in dict.fromkeys(sizes):
            if height and width:
                chosen = [i for i, size in enumerate(sizes) if size == (height, width)]
                image = x[chosen][..., :height, :width].contiguous(memory_format=torch.channels_last)
                out[chosen, :, :height, :width] = self.mixer(image).to(out.dtype)
        return out


def rectangles(masks: list[Tensor]) -> list[list[tuple[int, int]]]:
    """Height and width of each image at each level, of masks (B, H, W) of the levels, which are True on padding."""
    found = [torch.stack([(~m[:, :, 0]).sum(1), (~m[:, 0]).sum(1), (~m).sum((1, 2))], 1) for m in masks]
    sizes = []
    for level, rows in enumerate(torch.stack(found).tolist()):  # one look at the device for all
        for i, (height, width, pixels) in enumerate(rows):
            if height * width != pixels:
                raise ValueError(
                    f"key_padding_mask: image {i} of the batch must be a rectangle at the top left of level {level}, "
                    f"but has {pixels} pixels, {height} in the first column and {width} in the first row"
                )
        sizes.append([(height, width) for height, width, _ in rows])
    return sizes


def without_attention(layer_cfg: Mapping, mixer: str | Mapping) -> dict:
    """The options of a layer of mmdet's encoder with the least attention in the place that a mixer takes."""
    if (given := layer_cfg.get("self_attn_cfg")) is not None:
        raise ValueError(
            f"encoder.mixer={mixer!r} takes the place of the attention that encoder.layer_cfg.self_attn_cfg={given} "
            "describes. Leave one of them out: layer_cfg=dict(self_attn_cfg=None), or mixer=None."
        )
    dim = layer_cfg.get("ffn_cfg", {}).get("embed_dims", 256)  # mmcv's default
    return {**layer_cfg, "self_attn_cfg": dict(embed_dims=dim, num_heads=dim, num_levels=1, num_points=1)}


class WithMixer(BaseModule):
    """A DETR of mmdet whose encoder is an `encoder_class` and takes `mixer`; its deformable attention is ours.

    A checkpoint of `init_cfg` keeps its values: mmdet would draw the matrices of the encoder and the decoder again.
    """

    encoder_class: type = DeformableDetrTransformerEncoder
    encoder: Any  # mmdet keeps options under this name until it builds them

    def _init_layers(self) -> None:
        options = dict(deepcopy(self.encoder))
        mixer = options.pop("mixer", None)
        if mixer is not None:
            options["layer_cfg"] = without_attention(options.get("layer_cfg") or {}, mixer)
        # mmdet builds an encoder of its own class: of one layer, since it is replaced
        self.encoder = options | {"num_layers": 1, "num_cp": -1}
        super()._init_layers()
        self.encoder = self.encoder_class(**options)
        if mixer is not None:
            for layer in self.encoder.layers:
                layer.self_attn = LevelMixer(mixer, self.encoder.embed_dims)
        use_kernel(self)

    def init_weights(self) -> None:
        if (self.init_cfg or {}).get("type") == "Pretrained":
            BaseModule.init_weights(self)
            return
        mixers = [part for part in self.encoder.modules() if isinstance(part, LevelMixer)]
        own = [deepcopy(mixer.state_dict()) for mixer in mixers]
        super().init_weights()
        for mixer, state in zip(mixers, own):
            mixer.load_state_dict(state)


@MODELS.register_module()
class MixerDINO(WithMixer, DINO):
    """DINO of mmdet, whose `encoder` takes `mixer`."""


@MODELS.register_module()
class MixerDeformableDETR(WithMixer, DeformableDETR):
    """Deformable DETR of mmdet, whose `encoder` takes `mixer`."""
