"""The position relation of Relation-DETR as a plug-in for DETRs of mmdet (the authors' "++" variants).

A DETR refines boxes from one layer of its decoder to the next. After every layer but the last one, the boxes that it
predicts and those of the layer before give every pair of queries a bias of the next layer's self-attention (see
`attlas.kernels.position_relation`). The first layer has none. One module of 64 heads + heads numbers serves all
layers; denoising queries take part.

    decoder=dict(..., position_relation=dict(num_heads=8))

in the config of `attlas.RelationDINO`, `attlas.RelationDeformableDETR` or `attlas.RelationDABDETR`, which are mmdet's
`DINO`, `DeformableDETR` and `DABDETR` otherwise: without that key they compute the same. Conditional DETR refines no
boxes between layers, so there is nothing to relate. The first two take a `mixer` in their encoder, too (see
`mixer_encoder.py`).

Source: arXiv 2407.11699, and the authors' repository xiuqhou/Relation-DETR.
"""

from copy import deepcopy
from typing import Any

import torch
from mmdet.models.detectors import DABDETR
from mmdet.models.layers import DeformableDetrTransformerDecoder, DinoTransformerDecoder
from mmdet.models.layers.transformer import (
    MLP,
    DABDetrTransformerDecoder,
    coordinate_to_encoding,
    inverse_sigmoid,
)
from mmengine.model import BaseModule
from torch import Tensor, nn

from ...kernels import position_relation
from ...registry import MODELS
from ..layers.deformable_attention import use_kernel
from .mixer_encoder import MixerDeformableDETR, MixerDINO

# Beyond this a coordinate is clamped before its logit, in the loop of DINO's decoder and of Relation-DETR's.
EPS = 1e-3


class PositionRelation(nn.Module):
    """A bias of attention logits, at least 0, for every pair of boxes.

    Args:
        num_heads: number of attention heads.
        embed_dim: number of sines for each of the four terms of a pair; even.
    """

    def __init__(self, num_heads: int = 8, embed_dim: int = 16):
        super().__init__()
        self.proj = nn.Linear(4 * embed_dim, num_heads)

    def forward(self, source: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """The bias as a mask of `nn.MultiheadAttention`.

        Args:
            source: boxes (B, N1, 4) of the queries, as (cx, cy, w, h) in [0, 1]; no gradient flows to them.
            target: boxes (B, N2, 4) of the keys.
            mask: pairs (N1, N2) that may not attend, bool; they get -∞.

        Returns:
            (B · heads, N1, N2).
        """
        dtype = torch.promote_types(torch.promote_types(source.dtype, target.dtype), torch.float32)
        boxes = source.detach().to(dtype), target.detach().to(dtype)
        return position_relation(*boxes, self.proj.weight, self.proj.bias, mask).flatten(0, 1)


def relation(options: dict | None) -> PositionRelation | None:
    return None if options is None else PositionRelation(**options)


# --- decoders --------------------------------------------------------------------------------------------------------


class RelationDinoDecoder(DinoTransformerDecoder):
    """The decoder of DINO, with a position relation, and with the queries' scale of Relation-DETR.

    It differs from mmdet's in three more points, in which it has what the papers have: the sine code of a reference
    box has 2 · embed_dims numbers (4 in the maintained fork); the boxes that are related are those of the layer's
    normalized output, as the head returns them; and the last layer refines no reference, which nobody would read.

    Args:
        position_relation: options of `PositionRelation`, or None for a decoder without.
        scale_queries: whether from the second layer on the position code is multiplied by a function of the query.
    """

    def __init__(self, *args, position_relation: dict | None = None, scale_queries: bool = False, **kwargs):
        self.options = position_relation, scale_queries  # `_init_layers` reads it, which the base class calls
        super().__init__(*args, **kwargs)

    def _init_layers(self) -> None:
        super()._init_layers()
        position_relation, scale_queries = self.options
        dim = self.embed_dims
        self.ref_point_head = MLP(2 * dim, dim, dim, 2)
        self.query_scale = MLP(dim, dim, dim, 2) if scale_queries else None
        self.position_relation = relation(position_relation)

    def forward(
        self,
        query: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None,
        self_attn_mask: Tensor | None,
        reference_points: Tensor,
        spatial_shapes: Tensor,
        level_start_index: Tensor,
        valid_ratios: Tensor,
        reg_branches: nn.ModuleList,
        relate: bool = True,
        **kwargs,
    ) -> tuple[Tensor, Tensor]:
        """Normalized outputs (layers, B, N, C) and the references (layers, B, N, 4) that each layer started from.

        Args and shapes are those of mmdet's decoder; with `relate` False there is no relation.
        """
        states, references = [], [reference_points]
        ratios = torch.cat([valid_ratios, valid_ratios], -1)[:, None]
        mask, previous = self_attn_mask, reference_points
        for number, layer in enumerate(self.layers):
            boxes = reference_points.detach()
            at_levels = boxes[:, :, None] * ratios
            code = coordinate_to_encoding(at_levels[:, :, 0], num_feats=self.embed_dims // 2)
            query_pos = self.ref_point_head(code.to(query.dtype))
            if number and self.query_scale is not None:
                query_pos = query_pos * self.query_scale(query)
            query = layer(
                query,
                query_pos=query_pos,
                value=value,
                key_padding_mask=key_padding_mask,
                self_attn_mask=mask,
                spatial_shapes=spatial_shapes,
                level_start_index=level_start_index,
                valid_ratios=valid_ratios,
                reference_points=at_levels,
                **kwargs,
            )
            states.append(self.norm(query))
            if number + 1 == len(self.layers):
                break
            logits = inverse_sigmoid(boxes, eps=EPS)
            if relate and self.position_relation is not None:
                with torch.no_grad():
                    predicted = (reg_branches[number](states[-1]) + logits).sigmoid()
                mask = self.position_relation(previous, predicted, self_attn_mask)
                previous = predicted
            reference_points = (reg_branches[number](query) + logits).sigmoid()
            references.append(reference_points)
        return torch.stack(states), torch.stack(references)


class RelationDeformableDecoder(DeformableDetrTransformerDecoder):
    """The decoder of Deformable DETR, with a position relation of the boxes that it refines.

    Args:
        position_relation: options of `PositionRelation`, or None for a decoder without.
    """

    def __init__(self, *args, position_relation: dict | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        self.position_relation = relation(position_relation)

    def forward(
        self,
        query: Tensor,
        query_pos: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None,
        reference_points: Tensor,
        spatial_shapes: Tensor,
        level_start_index: Tensor,
        valid_ratios: Tensor,
        reg_branches: nn.ModuleList | None = None,
        **kwargs,
    ) -> tuple[Tensor, Tensor]:
        """As mmdet's. Without `as_two_stage` the first references are points, and the relation starts a layer later.

        Raises:
            ValueError: there is a relation, and no `reg_branches` that refine boxes.
        """
        common = dict(
            query_pos=query_pos,
            value=value,
            key_padding_mask=key_padding_mask,
            spatial_shapes=spatial_shapes,
            level_start_index=level_start_index,
            valid_ratios=valid_ratios,
            **kwargs,
        )
        if self.position_relation is None:
            return super().forward(query, reference_points=reference_points, reg_branches=reg_branches, **common)
        if reg_branches is None:
            raise ValueError("position_relation must be None unless with_box_refine=True: no boxes are refined")
        states, references, mask = [], [], None
        for layer, reg_branch in zip(self.layers, reg_branches):
            known = reference_points.shape[-1]  # numbers of a box that the reference has: 2 or 4
            ratios = valid_ratios.repeat(1, 1, known // 2)[:, None]
            query = layer(query, reference_points=reference_points[:, :, None] * ratios, self_attn_mask=mask, **common)
            logits = reg_branch(query)
            logits = torch.cat([logits[..., :known] + inverse_sigmoid(reference_points), logits[..., known:]], -1)
            predicted = logits.sigmoid().detach()
            if known == 4:
                mask = self.position_relation(reference_points, predicted)
            reference_points = predicted
            states.append(query)
            references.append(reference_points)
        if self.return_intermediate:
            return torch.stack(states), torch.stack(references)
        return query, reference_points


class RelationDABDecoder(DABDetrTransformerDecoder):
    """The decoder of DAB-DETR, with a position relation of the boxes that it refines.

    Args:
        position_relation: options of `PositionRelation`, or None for a decoder without.
    """

    def __init__(self, *args, position_relation: dict | None = None, **kwargs):
        super().__init__(*args, **kwargs)
        if position_relation is not None and self.query_dim != 4:
            raise ValueError(f"position_relation must be None unless query_dim=4 (boxes), got {self.query_dim}")
        self.position_relation = relation(position_relation)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        query_pos: Tensor,
        key_pos: Tensor,
        reg_branches: nn.Module,
        key_padding_mask: Tensor | None = None,
        **kwargs,
    ) -> list[Tensor]:
        """As mmdet's."""
        common = dict(key=key, key_pos=key_pos, key_padding_mask=key_padding_mask, **kwargs)
        if self.position_relation is None:
            return super().forward(query, query_pos=query_pos, reg_branches=reg_branches, **common)
        half, mask, states = self.embed_dims // 2, None, []
        boxes = query_pos.sigmoid()
        references = [boxes]
        for number, layer in enumerate(self.layers):
            code = coordinate_to_encoding(boxes, num_feats=half)
            place = code[..., : self.embed_dims]  # of the center: y, then x
            if self.query_scale_type == "fix_elewise":
                place = place * self.query_scale.weight[number]
            elif number:
                place = place * self.query_scale(query)
            if self.with_modulated_hw_attn:
                size = self.ref_anchor_head(query).sigmoid() / boxes[..., 2:]
                place = place * size.flip(-1).repeat_interleave(half, -1)
            query = layer(
                query,
                query_pos=self.ref_point_head(code),
                ref_sine_embed=place,
                self_attn_masks=mask,
                is_first=number == 0,
                **common,
            )
            states.append(self.post_norm(query))
            refined = (reg_branches(query)[..., :4] + inverse_sigmoid(boxes)).sigmoid()
            mask = self.position_relation(boxes, refined)
            boxes = refined.detach()
            references.append(refined)
        outputs = torch.stack(states) if self.return_intermediate else states[-1].unsqueeze(0)
        return [outputs, torch.stack(references[:-1])]


# --- detectors -------------------------------------------------------------------------------------------------------


class WithRelation(BaseModule):
    """A DETR of mmdet that builds its decoder from `relation_decoder`, and whose deformable attention is ours.

    Every option of that class may stand in the config under `decoder`. A checkpoint of `init_cfg` keeps its values:
    mmdet would draw the matrices of the encoder and the decoder again.
    """

    relation_decoder: type
    decoder: Any  # mmdet keeps options under this name until it builds them

    def _init_layers(self) -> None:
        options: dict[str, Any] = deepcopy(self.decoder)
        own = {"position_relation", "scale_queries"}
        # mmdet builds a decoder of its own class: of one layer, since it is replaced
        self.decoder = {key: value for key, value in self.decoder.items() if key not in own} | {"num_layers": 1}
        super()._init_layers()
        self.decoder = self.relation_decoder(**options)
        use_kernel(self)

    def init_weights(self) -> None:
        if (self.init_cfg or {}).get("type") == "Pretrained":
            BaseModule.init_weights(self)
            return
        super().init_weights()
        if self.decoder.position_relation is not None:  # mmdet draws all matrices of the decoder from another range
            self.decoder.position_relation.proj.reset_parameters()


@MODELS.register_module()
class RelationDINO(WithRelation, MixerDINO):
    """DINO of mmdet with a position relation (DINO++)."""

    relation_decoder = RelationDinoDecoder


@MODELS.register_module()
class RelationDeformableDETR(WithRelation, MixerDeformableDETR):
    """Deformable DETR of mmdet with a position relation (Deformable-DETR++); `with_box_refine` must be on."""

    relation_decoder = RelationDeformableDecoder


@MODELS.register_module()
class RelationDABDETR(WithRelation, DABDETR):
    """DAB-DETR of mmdet with a position relation (DAB-DETR++)."""

    relation_decoder = RelationDABDecoder
