"""Relation-DETR: DINO with a position relation in its decoder, and a second, one-to-many branch in training.

"Relation DETR: Exploring Explicit Position Relation Prior for Object Detection", ECCV 2024, arXiv 2407.11699;
https://github.com/xiuqhou/Relation-DETR (Apache-2.0), whose weights load.

On mmdet's DINO, from which it differs in this:

- decoder: the position relation (`position_relation.py`), and from the second layer on the queries scale the position
  code;
- encoder: the input and the outputs of all layers are fused by a small network;
- training: a hybrid branch of 1,500 queries and class and box heads of its own for their proposals runs through the
  same decoder, without relation and denoising; every object is a target `hybrid_repeats` times in it;
- class loss: varifocal, with the IoU as the target, also for denoising queries;
- the boxes of the head are clamped to [1e-3, 1 - 1e-3] before the logit, as in the decoder (mmdet: 1e-5);
- positions: temperature 10,000 and offset -0.5 (mmdet: 20 and 0), which the config says.

An image may have fewer tokens than there are queries, and fewer scores than `max_per_img`: queries without a proposal
are left out, and there are fewer results. mmdet's DINO stops at both.
"""

import re

import torch
import torch.nn.functional as F
from mmdet.models.backbones import SwinTransformer
from mmdet.models.dense_heads import DETRHead, DINOHead
from mmdet.models.layers import DeformableDetrTransformerEncoder
from mmdet.models.layers.transformer import inverse_sigmoid
from mmdet.models.losses import QualityFocalLoss
from mmdet.models.necks import ChannelMapper
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
from mmengine.model import BaseModule
from mmengine.structures import InstanceData
from torch import Tensor, nn

from ...checkpoint import Rules
from ...registry import MODELS
from .position_relation import EPS, RelationDINO

# Raw ids of COCO go to 90 for 80 classes; these are unused. The authors' heads have a row for each raw id, 0 included.
UNUSED_IDS = {0, 12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
COCO_IDS = [number for number in range(91) if number not in UNUSED_IDS]


def coco_rows(tensor: Tensor, shape: torch.Size) -> Tensor:
    """Rows of COCO's 80 classes out of 91 of raw ids, if that is what `shape` asks for; else the tensor as it is."""
    return tensor[COCO_IDS] if (len(tensor), shape[0]) == (91, 80) else tensor


def rules(decoder_layers: int = 6, maps: int = 3) -> Rules:
    """Rules for the authors' checkpoints, for a decoder of some layers and a backbone of some maps."""
    proposals, hybrid = decoder_layers, decoder_layers + 1
    return [
        (r"^_classes_$", None),
        (r"^transformer\.", ""),
        (r"^level_embeds$", "level_embed"),
        (r"^enc_output\.", "memory_trans_fc."),
        (r"^enc_output_norm\.", "memory_trans_norm."),
        (r"^encoder\.layers\.(\d+)\.norm([12])\.", lambda m: f"encoder.layers.{m[1]}.norms.{int(m[2]) - 1}."),
        # the self-attention comes first, and its norm is the second by name
        (r"^decoder\.layers\.(\d+)\.norm([123])\.", lambda m: f"decoder.layers.{m[1]}.norms.{'102'[int(m[2]) - 1]}."),
        (r"^((?:en|de)coder\.layers\.\d+)\.linear1\.", r"\1.ffn.layers.0.0."),
        (r"^((?:en|de)coder\.layers\.\d+)\.linear2\.", r"\1.ffn.layers.1."),
        (r"^(decoder\.layers\.\d+\.self_attn)\.(in_proj_|out_proj)", r"\1.attn.\2"),
        (r"^decoder\.position_relation_embedding\.pos_proj\.0\.", "decoder.position_relation.proj."),
        (r"^decoder\.class_head\.", "bbox_head.cls_branches."),
        (r"^encoder_class_head\.", f"bbox_head.cls_branches.{proposals}."),
        (r"^hybrid_class_head\.", f"bbox_head.cls_branches.{hybrid}."),
        (r"^decoder\.bbox_head\.", "bbox_head.reg_branches."),
        (r"^encoder_bbox_head\.", f"bbox_head.reg_branches.{proposals}."),
        (r"^hybrid_bbox_head\.", f"bbox_head.reg_branches.{hybrid}."),
        (r"^(bbox_head\.reg_branches\.\d+)\.layers\.(\d)\.", lambda m: f"{m[1]}.{2 * int(m[2])}."),
        (r"^tgt_embed\.", "query_embedding."),
        (r"^hybrid_tgt_embed\.", "hybrid_query_embedding."),
        (r"^denoising_generator\.label_encoder\.", "dn_query_generator.label_embedding."),
        (rf"^neck\.convs\.([{maps}-9])\.", lambda m: f"neck.extra_convs.{int(m[1]) - maps}."),
        (r"^(neck\.(?:extra_)?convs\.\d)\.0\.", r"\1.conv."),
        (r"^(neck\.(?:extra_)?convs\.\d)\.1\.", r"\1.gn."),
    ]


# --- backbone --------------------------------------------------------------------------------------------------------


def swin_rules(prefix: str = "") -> Rules:
    """Rules for checkpoints of Swin in torchvision's names (the authors', `features.`) and Microsoft's (`layers.`).

    `by_pixel_` marks what `DetectionSwin` has to bring into mmdet's order of numbers.
    """
    at = rf"^{re.escape(prefix)}"
    block = rf"({at}stages\.\d\.blocks\.\d+)\."
    return [
        (rf"{at}(?:.*\.(?:relative_position_index|attn_mask)|(?:norm|head)\.(?:weight|bias))$", None),
        (rf"{at}0\.", prefix),
        (rf"{at}features\.0\.0\.|{at}patch_embed\.proj\.", f"{prefix}patch_embed.projection."),
        (rf"{at}features\.0\.2\.", f"{prefix}patch_embed.norm."),
        (rf"{at}features\.([1357])\.", lambda m: f"{prefix}stages.{int(m[1]) // 2}.blocks."),
        (rf"{at}features\.([246])\.", lambda m: f"{prefix}stages.{int(m[1]) // 2 - 1}.downsample.by_pixel_"),
        (rf"{at}layers\.(\d)\.downsample\.", rf"{prefix}stages.\1.downsample.by_pixel_"),
        (rf"{at}layers\.", f"{prefix}stages."),
        (rf"{block}attn\.(?!w_msa\.)", r"\1.attn.w_msa."),
        (rf"{block}mlp\.(?:fc1|0)\.", r"\1.ffn.layers.0.0."),
        (rf"{block}mlp\.(?:fc2|3)\.", r"\1.ffn.layers.1."),
    ]


@MODELS.register_module()
class DetectionSwin(SwinTransformer):
    """The Swin of the authors' detectors: mmdet's, without norms of the outputs.

    Weights in torchvision's, Microsoft's and mmdet's names load, with an account of every name.
    """

    checkpoint_rules = swin_rules()

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        for i in self.out_indices:
            self.add_module(f"norm{i}", nn.Identity())
        for module in self.modules():  # constants, which files have in several shapes
            if (index := getattr(module, "relative_position_index", None)) is not None:
                module.register_buffer("relative_position_index", index, persistent=False)
        self.register_load_state_dict_pre_hook(self._reorder)

    @staticmethod
    def _reorder(module: nn.Module, state_dict: dict, prefix: str, *_) -> None:
        """Patch merging reads pixels (0, 0), (1, 0), (0, 1), (1, 1), all channels of one before those of another; in
        mmdet it reads all pixels of one channel, row by row."""
        for name in [n for n in state_dict if n.startswith(prefix) and ".by_pixel_" in n]:
            by_pixel = state_dict.pop(name).unflatten(-1, (4, -1))
            by_channel = by_pixel[..., [0, 2, 1, 3], :].transpose(-1, -2).flatten(-2)
            state_dict[name.replace(".by_pixel_", ".")] = by_channel

    def init_weights(self) -> None:
        if self.init_cfg is None:
            super().init_weights()
        else:  # mmdet's own loader leaves out what does not fit, and says nothing
            BaseModule.init_weights(self)


# --- detector --------------------------------------------------------------------------------------------------------


class FusionEncoder(DeformableDetrTransformerEncoder):
    """The encoder of Deformable DETR, whose result is made of the input and of the outputs of all layers."""

    def _init_layers(self) -> None:
        super()._init_layers()
        dim = self.embed_dims
        self.memory_fusion = nn.Sequential(
            nn.Linear((self.num_layers + 1) * dim, dim), nn.ReLU(inplace=True), nn.Linear(dim, dim), nn.LayerNorm(dim)
        )

    def forward(self, query: Tensor, spatial_shapes: Tensor, valid_ratios: Tensor, **kwargs) -> Tensor:
        """(B, tokens, C) -> (B, tokens, C). Args and shapes are those of mmdet's encoder."""
        reference_points = self.get_encoder_reference_points(spatial_shapes, valid_ratios, device=query.device)
        states = [query]
        for layer in self.layers:
            query = layer(
                query=query,
                spatial_shapes=spatial_shapes,
                valid_ratios=valid_ratios,
                reference_points=reference_points,
                **kwargs,
            )
            states.append(query)
        return self.memory_fusion(torch.cat(states, -1))


@MODELS.register_module()
class RelationDETR(RelationDINO):
    """The detector; its head must be a `RelationDETRHead`.

    A checkpoint of the authors has 91 classes, COCO's raw ids. It loads into a detector of 91 classes, and into one of
    80, which takes the rows of those that exist: in the order of ids, as mmdet's `CocoDataset` has them.

    Args:
        num_hybrid_queries: number of queries of the hybrid branch.
        **kwargs: arguments of mmdet's `DINO`; `decoder` takes those of `RelationDinoDecoder`, too, and
            `encoder` a `mixer` (see `mixer_encoder.py`).
    """

    encoder_class = FusionEncoder
    free_batch = True  # in an export (`export.py`)

    def __init__(self, *args, num_hybrid_queries: int = 1500, **kwargs):
        self.num_hybrid_queries = num_hybrid_queries  # `_init_layers` reads it, which the base class calls
        super().__init__(*args, **kwargs)

    def _init_layers(self) -> None:
        super()._init_layers()
        self.hybrid_query_embedding = nn.Embedding(self.num_hybrid_queries, self.embed_dims)

    def init_weights(self) -> None:
        super().init_weights()
        if (self.init_cfg or {}).get("type") == "Pretrained":
            return
        for layer in self.encoder.memory_fusion:  # where mmdet has drawn all matrices from another range
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()
        for embedding in (self.query_embedding, self.hybrid_query_embedding):
            nn.init.normal_(embedding.weight)

    @property
    def checkpoint_rules(self) -> Rules:
        backbone = swin_rules("backbone.") if isinstance(self.backbone, DetectionSwin) else []
        maps = len(self.neck.convs) if isinstance(self.neck, ChannelMapper) else 0  # in other necks nothing is renamed
        return [*backbone, *rules(self.decoder.num_layers, maps)]

    @property
    def checkpoint_resize(self) -> dict:
        classes = [
            f"bbox_head.cls_branches.{i}.{kind}"
            for i in range(len(self.bbox_head.cls_branches))
            for kind in ("weight", "bias")
        ]
        return dict.fromkeys([*classes, "dn_query_generator.label_embedding.weight"], coco_rows)

    def pre_decoder(
        self,
        memory: Tensor,
        memory_mask: Tensor | None,
        spatial_shapes: Tensor,
        batch_data_samples: list | None = None,
    ) -> tuple[dict, dict]:
        """What the decoder and the head start from: proposals of the encoder, denoising queries, in training also the
        proposals of the hybrid branch.

        Args:
            memory: tokens (B, N, C) of the encoder.
            memory_mask: padding (B, N), True where there is no image; None without padding.
            spatial_shapes: height and width (levels, 2) of each level.
            batch_data_samples: samples with ground truth, in training.

        Returns:
            The keywords of `forward_decoder`, and keywords of the head's `loss`.
        """
        tokens, anchors = self.gen_encoder_output_proposals(memory, memory_mask, spatial_shapes)
        branch = self.decoder.num_layers
        scores, boxes = self.proposals(branch, tokens, anchors, self.num_queries)
        query = self.query_embedding.weight[: boxes.shape[1]].expand(memory.shape[0], -1, -1)
        if not self.training:
            return dict(query=query, memory=memory, reference_points=boxes), {}
        noised, noised_boxes, mask, meta = self.dn_query_generator(batch_data_samples)
        query = torch.cat([noised, query], 1)
        hybrid_scores, hybrid_boxes = self.proposals(branch + 1, tokens, anchors, self.num_hybrid_queries)
        decoder_inputs = dict(
            query=query,
            memory=memory,
            reference_points=torch.cat([noised_boxes.sigmoid(), boxes.detach()], 1),
            dn_mask=mask[: query.shape[1], : query.shape[1]],
            hybrid_reference_points=hybrid_boxes.detach(),
        )
        head_inputs = dict(
            enc_outputs_class=scores,
            enc_outputs_coord=boxes,
            hybrid_enc_outputs_class=hybrid_scores,
            hybrid_enc_outputs_coord=hybrid_boxes,
            dn_meta=meta,
        )
        return decoder_inputs, head_inputs

    def proposals(self, branch: int, tokens: Tensor, anchors: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Class logits (B, count, classes) and boxes (B, count, 4) of the `count` tokens of highest score, or of all
        tokens if there are fewer, by one of the head's branches."""
        scores = self.bbox_head.cls_branches[branch](tokens)
        best = scores.max(-1).values.topk(min(count, tokens.shape[1]), dim=1).indices.unsqueeze(-1)
        tokens, anchors, scores = (x.gather(1, best.expand(-1, -1, x.shape[-1])) for x in (tokens, anchors, scores))
        return scores, (self.bbox_head.reg_branches[branch](tokens) + anchors).sigmoid()

    def forward_decoder(
        self,
        query: Tensor,
        memory: Tensor,
        memory_mask: Tensor | None,
        reference_points: Tensor,
        dn_mask: Tensor | None = None,
        hybrid_reference_points: Tensor | None = None,
        **levels: Tensor,
    ) -> dict:
        """Run the decoder, with `hybrid_reference_points` a second time for the hybrid branch.

        Returns:
            `hidden_states` (layers, B, N, C) and `references` (layers, B, N, 4) for the head; those of the hybrid
            branch begin with `hybrid_`.
        """
        common = dict(value=memory, key_padding_mask=memory_mask, reg_branches=self.bbox_head.reg_branches, **levels)
        states, references = self.decoder(query, self_attn_mask=dn_mask, reference_points=reference_points, **common)
        outputs = dict(hidden_states=states, references=references)
        if hybrid_reference_points is not None:
            query = self.hybrid_query_embedding.weight[: hybrid_reference_points.shape[1]].expand(
                query.shape[0], -1, -1
            )
            states, references = self.decoder(
                query, self_attn_mask=None, reference_points=hybrid_reference_points, relate=False, **common
            )
            outputs |= dict(hybrid_hidden_states=states, hybrid_references=references)
        return outputs


# --- losses ----------------------------------------------------------------------------------------------------------


@MODELS.register_module()
class DetachedVarifocalLoss(QualityFocalLoss):
    """Cross entropy of every class with the IoU as the target at a query's own class, and 0 elsewhere.

    The weight is the IoU at a query's own class, and alpha · p^gamma elsewhere; no gradient flows through weights and
    targets. It is a `QualityFocalLoss` because mmdet's heads hand IoUs to these only. mmdet's own `VarifocalLoss` takes
    the weight of the background for a match of IoU 0, and lets the gradient through it.

    Args:
        alpha: weight of all but a query's own class.
        gamma: exponent of the predicted probability there.
        loss_weight: factor of the loss.
    """

    def __init__(self, alpha: float = 0.75, gamma: float = 2.0, loss_weight: float = 1.0):
        super().__init__(loss_weight=loss_weight)
        self.alpha, self.gamma = alpha, gamma

    def forward(
        self,
        pred: Tensor,
        target: tuple[Tensor, Tensor],
        weight: Tensor | None = None,
        avg_factor: float = 1.0,
        reduction_override: str | None = None,
    ) -> Tensor:
        """The sum over queries and classes / avg_factor.

        Args:
            pred: logits (N, classes).
            target: labels (N,), of which `classes` is the background, and IoUs (N,).
            weight: weight (N,) of each query.
            avg_factor: number to divide by.
            reduction_override: None; mmdet's losses have it.
        """
        labels, quality = target
        own = F.one_hot(labels, pred.shape[1] + 1)[:, :-1].to(pred.dtype)
        score = own * quality.to(pred.dtype).unsqueeze(1)
        factor = self.alpha * pred.detach().sigmoid() ** self.gamma * (1 - own) + score
        if weight is not None:
            factor = factor * weight.unsqueeze(1)
        losses = F.binary_cross_entropy_with_logits(pred, score, weight=factor, reduction="sum")
        return self.loss_weight * losses / avg_factor


@MODELS.register_module()
class RelationDETRHead(DINOHead):
    """The heads of the decoder's layers, of the encoder's proposals, and of the hybrid branch's.

    Losses of the hybrid branch have names that begin with `hybrid_`. Sums of losses are divided by the number of ground
    truths, as the authors do; mmdet divides by that of matches, which is smaller where there are more objects than
    queries.

    Args:
        hybrid_repeats: how often every object is a target of the hybrid branch.
        **kwargs: arguments of mmdet's `DINOHead`.
    """

    decodes_as_detr = True  # for exports: `_predict_by_feat_single` finds what mmdet's does

    def __init__(self, *args, hybrid_repeats: int = 6, **kwargs):
        super().__init__(*args, **kwargs)
        if hybrid_repeats < 1:
            raise ValueError(f"hybrid_repeats must be at least 1, got {hybrid_repeats}")
        self.hybrid_repeats = hybrid_repeats

    def _init_layers(self) -> None:
        self.num_pred_layer += 1  # decoder layers, proposals of the encoder, proposals of the hybrid branch
        super()._init_layers()

    def forward(self, hidden_states: Tensor, references: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits (layers, B, N, classes) and boxes (layers, B, N, 4) as (cx, cy, w, h) in [0, 1].

        Args:
            hidden_states: normalized outputs (layers, B, N, C) of the decoder.
            references: boxes (layers, B, N, 4) that each layer started from.
        """
        scores = torch.stack([branch(x) for branch, x in zip(self.cls_branches, hidden_states)])
        deltas = torch.stack([branch(x) for branch, x in zip(self.reg_branches, hidden_states)])
        return scores, (deltas + inverse_sigmoid(references, eps=EPS)).sigmoid()

    def loss(
        self,
        hidden_states: Tensor,
        references: Tensor,
        enc_outputs_class: Tensor,
        enc_outputs_coord: Tensor,
        hybrid_hidden_states: Tensor,
        hybrid_references: Tensor,
        hybrid_enc_outputs_class: Tensor,
        hybrid_enc_outputs_coord: Tensor,
        batch_data_samples: list,
        dn_meta: dict[str, int],
    ) -> dict[str, Tensor]:
        """The losses of DINO, and those of the hybrid branch.

        Args:
            hidden_states: normalized outputs (layers, B, denoising + N, C) of the decoder.
            references: boxes (layers, B, denoising + N, 4) that each layer started from.
            enc_outputs_class: class logits (B, N, classes) of the proposals.
            enc_outputs_coord: boxes (B, N, 4) of the proposals.
            hybrid_hidden_states: normalized outputs of the decoder for the hybrid queries.
            hybrid_references: boxes that each layer started from, for the hybrid queries.
            hybrid_enc_outputs_class: class logits of the hybrid queries' proposals.
            hybrid_enc_outputs_coord: boxes of the hybrid queries' proposals.
            batch_data_samples: samples with ground truth.
            dn_meta: numbers of denoising queries and groups.
        """
        losses = super().loss(
            hidden_states, references, enc_outputs_class, enc_outputs_coord, batch_data_samples, dn_meta
        )
        metas = [sample.metainfo for sample in batch_data_samples]
        repeated = [self.repeated(sample.gt_instances) for sample in batch_data_samples]
        hybrid = DETRHead.loss_by_feat(self, *self(hybrid_hidden_states, hybrid_references), repeated, metas)
        proposals = hybrid_enc_outputs_class, hybrid_enc_outputs_coord
        of_proposals = self.loss_by_feat_single(*proposals, batch_gt_instances=repeated, batch_img_metas=metas)
        hybrid |= dict(zip(("enc_loss_cls", "enc_loss_bbox", "enc_loss_iou"), of_proposals))
        return losses | {f"hybrid_{name}": loss for name, loss in hybrid.items()}

    def repeated(self, instances: InstanceData) -> InstanceData:
        """Boxes and labels of all objects, `hybrid_repeats` times."""
        count = self.hybrid_repeats
        return InstanceData(bboxes=instances.bboxes.repeat(count, 1), labels=instances.labels.repeat(count))

    def get_targets(
        self,
        cls_scores_list: list[Tensor],
        bbox_preds_list: list[Tensor],
        batch_gt_instances: list[InstanceData],
        batch_img_metas: list[dict],
    ) -> tuple:
        """As mmdet's, but for the number of positives, which is that of ground truths."""
        *targets, _, negatives = super().get_targets(
            cls_scores_list, bbox_preds_list, batch_gt_instances, batch_img_metas
        )
        return *targets, sum(len(instances.labels) for instances in batch_gt_instances), negatives

    def _predict_by_feat_single(
        self, cls_score: Tensor, bbox_pred: Tensor, img_meta: dict, rescale: bool = True
    ) -> InstanceData:
        """As mmdet's, which stops where queries and classes make fewer scores than `max_per_img`."""
        most = min(self.test_cfg.get("max_per_img", len(cls_score)), cls_score.numel())
        scores, index = cls_score.sigmoid().flatten().topk(most)
        height, width = img_meta["img_shape"]
        size = bbox_pred.new_tensor([width, height, width, height])
        boxes = (bbox_cxcywh_to_xyxy(bbox_pred[index // self.num_classes]) * size).clamp(min=0).minimum(size)
        if rescale:
            boxes = boxes / boxes.new_tensor(img_meta["scale_factor"]).repeat(2)
        return InstanceData(bboxes=boxes, scores=scores, labels=index % self.num_classes)
